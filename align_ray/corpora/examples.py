"""The first texts of a corpus, for people: what is read of its records, and what of that counts."""

import itertools
from collections import Counter
from itertools import islice

from align_ray.config_corpora import Corpus
from align_ray.corpora.formats import recognise
from align_ray.corpora.records import parts_of
from align_ray.corpora.sources import documents, first_records, plan_fragments

EXAMPLES, SHOWN = 2, 240
"""Texts that are shown, and characters of a part, from either end."""

Parts = list[tuple[str, bool]]
"""Pieces of a text in order, shortened, each with whether it counts."""


def examples(corpus: Corpus, count: int = EXAMPLES, shown: int = SHOWN) -> list[Parts]:
    """The parts of the first `count` texts. Raises CorpusError where the source cannot be read."""
    found: list[Parts] = []
    for fragment in plan_fragments(corpus):
        for text in islice(documents(corpus, [fragment], Counter()), count - len(found)):
            found.append(
                _first_parts([(_shortened(part, shown), counts) for part, counts in parts_of(text)], 3 * shown)
            )
        if len(found) == count:
            break
    return found


def _first_parts(parts: Parts, most: int) -> Parts:
    """Those with which a text, of many turns perhaps, comes to `most` characters, and a mark where there were more."""
    lengths = itertools.accumulate(len(text) for text, _ in parts)
    kept = 1 + sum(length < most for length in lengths)
    return [*parts[:kept], (" ...", False)] if kept < len(parts) else parts


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def marked(parts: Parts) -> str:
    """In one line; what counts stands in guillemets, where not all does."""
    some = not all(counts for _, counts in parts)
    return " ".join(
        "".join(f"\u00ab{text.strip()}\u00bb" if counts and some else text for text, counts in parts).split()
    )


def way(corpus: Corpus) -> str:
    """How a record becomes a text, as the configuration says."""
    if corpus.chat is not None:
        return f"conversations in '{corpus.chat.messages}'"
    if corpus.completion is not None:
        return f"prompt '{corpus.prompt}', completion '{corpus.completion}'"
    return f"template '{corpus.template}'" if corpus.template is not None else f"column '{corpus.column}'"


def looks_like_more(corpus: Corpus) -> str:
    """Why a corpus whose whole text counts may hold conversations or answers of which a part should; "" where nothing
    says so."""
    if corpus.chat is not None or corpus.completion is not None or corpus.template is not None:
        return ""
    found = recognise(first_records(corpus), corpus.name)
    return found.why if found and "column" not in found.fields else ""
