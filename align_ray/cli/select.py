"""The command that selects documents within a corpus."""

from pathlib import Path
from typing import Annotated, Any

import typer

from align_ray.cli.common import Path_, Set, from_here, guard, study_of, tokens_of
from align_ray.errors import ConfigError
from align_ray.reporting.tables import out, plain_table

CorpusName = Annotated[str, typer.Option("--corpus", help="The candidate whose documents are selected.")]
Folder = Annotated[str, typer.Option("--out", help="Folder or pyarrow URI for the shards.")]
Target = Annotated[str | None, typer.Option(help="The target to be like; default: the only one.")]
Documents = Annotated[int | None, typer.Option(min=1, help="Take so many documents.")]
Tokens = Annotated[
    int | None, typer.Option(parser=tokens_of, metavar="TOKENS", help="Take documents until they hold so many tokens.")
]
Fraction = Annotated[float | None, typer.Option(min=0, max=1, help="Take this share of the documents.")]
Method = Annotated[
    str, typer.Option(help="top: the highest scores; gumbel: with scores distributed as the target's own documents'.")
]
By = Annotated[
    str, typer.Option(help="What scores a document: words, which no model reads; alignment, the probe's embedding.")
]


def select(
    config: Path_,
    corpus: CorpusName,
    folder: Folder,
    target: Target = None,
    documents: Documents = None,
    tokens: Tokens = None,
    fraction: Fraction = None,
    method: Method = "top",
    by: By = "words",
    set_: Set = None,
) -> None:
    """Rank the documents of a corpus by likeness to a target and write the best, or a matching sample, as Parquet.

    Example: [b]align-ray select study.yaml --corpus web --tokens 50000000 --method gumbel --out data/web[/b]
    """

    def work() -> dict[str, Any]:
        from align_ray import pipeline
        from align_ray.embedding.scores import refuse_unscorable, score_targets
        from align_ray.handover import select as selection
        from align_ray.handover.documents import words_against
        from align_ray.handover.rule import METHODS, Amount
        from align_ray.stages import charged, need
        from align_ray.store import Store

        asked = (Amount("documents", documents or 0), Amount("tokens", tokens or 0), Amount("fraction", fraction or 0))
        given = [amount for amount in asked if amount.value]
        if len(given) != 1:
            raise ConfigError("give one of --documents, --tokens and --fraction (above 0), the amount to select.")
        if method not in METHODS:
            raise ConfigError(f"--method {method}: choose one of {', '.join(METHODS)}.")
        if by not in ("words", "alignment"):
            raise ConfigError(f"--by {by}: choose words or alignment.")
        place = Store(from_here(folder))
        opened = study_of(config, set_)
        study = opened.config
        chosen = selection.named(study.candidates, corpus, "--corpus", "candidates")
        goal = selection.named(study.targets, target, "--target", "targets")
        if by == "alignment":
            refuse_unscorable(study.embedding)
        need(opened, pipeline.embed)
        with charged(opened, "select"):
            against = (
                words_against(opened, chosen) if by == "words" else score_targets(opened, pipeline.evidence_of(opened))
            )
            result = selection.select(opened, against, chosen, goal, given[0], place, method)
        show_selection(result, place.uri)
        return result

    guard(work)


def job() -> None:
    """Entry point of jobs/select_documents.py: `--config FILE` and the options of `align-ray select`."""

    def command(
        config: Annotated[Path, typer.Option(help="The study's configuration (YAML).")],
        corpus: CorpusName,
        folder: Folder,
        target: Target = None,
        documents: Documents = None,
        tokens: Tokens = None,
        fraction: Fraction = None,
        method: Method = "top",
        by: By = "words",
        set_: Set = None,
    ) -> None:
        select(config, corpus, folder, target, documents, tokens, fraction, method, by, set_)

    typer.run(command)


def show_selection(result: dict[str, Any], where: str) -> None:
    """Print what was selected of how much, what was left out and why, and the texts with the highest and lowest
    scores."""
    settings, counts, taken = result["settings"], result["counts"], result["selected"]
    table = plain_table(f"{settings['corpus']}, by {settings['by']} like {settings['target']} ({settings['method']})")
    for column in ("", "documents", "tokens", "mean score"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    before, after = result["score"]["before"], result["score"]["after"]
    table.add_row("scored", f"{counts['scored']:,}", f"{result['available']['tokens']:,}", f"{before:.4f}")
    table.add_row("selected", f"{taken['documents']:,}", f"{taken['tokens']:,}", f"{after:.4f}")
    out.print(table)
    left_out = [
        f"{n:,} {reason.replace('_', ' ')}"
        for reason, n in counts.items()
        if n and reason not in ("documents", "scored")
    ]
    lines = [f"read: {counts['documents']:,} documents; left out: {', '.join(left_out) or 'none'}"]
    lines.append(f"lowest score taken: {result['score']['lowest']:.4f}")
    if match := result["match"]:
        lines.append(
            f"Kolmogorov-Smirnov distance to the scores of {match['documents']:,} held-out documents of "
            f"{settings['target']}: "
            f"{match['before']:.3f} before, {match['after']:.3f} after"
        )
    if (work := result["work"])["computed"]:
        rate = work["computed"] / work["wall_seconds"]
        lines.append(f"{work['computed']:,} documents scored in {work['wall_seconds']:.0f} s, {rate:.0f} a second")
    lines += [f"note: {note}" for note in result["notes"]]
    shards = "1 shard" if len(result["files"]) == 1 else f"{len(result['files'])} shards"
    lines.append(f"{shards} and manifest.json in {where}")
    out.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    table = plain_table("documents with the highest and lowest scores")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("taken", no_wrap=True)
    table.add_column("text", no_wrap=True)
    for row in [*result["examples"]["most"], *result["examples"]["least"][::-1]]:
        text = " ".join(row["text"].split())[:60]
        table.add_row(f"{row['score']:.4f} ", "yes" if row["taken"] else "no", text)
    out.print(table)
