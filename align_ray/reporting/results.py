"""What the stages return: the stored JSON value, a dictionary, with a table, a figure and a readable form.

`result["ranking"]` and `json.dumps(result)` work as for any dictionary; `to_pandas()` gives everything as a tidy table, a
notebook shows the main columns of it, and `plot()` draws values with their intervals.
"""

from collections.abc import Iterator
from html import escape
from io import StringIO
from typing import Any

import pandas as pd

WIDTH = 80
"""Columns of a terminal that a result's text form fits."""


class Result(dict[str, Any]):
    """The base of all results: a subclass gives the table, and what of it is shown and drawn."""

    TITLE: str
    SHOWN: dict[str, str]
    """Columns of the readable forms with their format; NAME_low stands for the interval of NAME."""
    DRAWN: tuple[str, str]
    """Columns of the figure: the label and the value."""
    AXIS: str
    """What the figure's value is, with its unit."""

    def to_pandas(self) -> pd.DataFrame:
        """Everything as a tidy table; the subclass says what one row is. NAME_error is a standard error, NAME_low and NAME_high
        are the ends of a 95% interval."""
        raise NotImplementedError

    def plot(self) -> Any:
        """The values with their 95% intervals as a plotly Figure, one panel a target; an empty one where there are none."""
        from plotly.graph_objects import Figure
        from plotly.subplots import make_subplots

        (label, value), parts = self.DRAWN, list(self._by_target())
        if not parts:
            return Figure(layout={"template": "simple_white", "title": self.TITLE})
        titles = [target for target, _ in parts]
        figure = make_subplots(
            len(parts), 1, subplot_titles=titles if any(titles) else None, vertical_spacing=0.25 / len(parts)
        )
        for row, (_, part) in enumerate(parts, start=1):
            bars = None
            if f"{value}_low" in part:
                bars = {"array": part[f"{value}_high"] - part[value], "arrayminus": part[value] - part[f"{value}_low"]}
            figure.add_scatter(x=part[value], y=part[label], error_x=bars, mode="markers", marker_size=9, row=row, col=1)
        figure.update_traces(marker_color="#3b7dd8").update_yaxes(autorange="reversed", automargin=True)
        figure.update_xaxes(title=self.AXIS)
        height = len(parts) * 120 + 26 * sum(len(part) for _, part in parts)
        return figure.update_layout(template="simple_white", title=self.TITLE, showlegend=False, height=height)

    def _by_target(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """The table in parts, one a target; ("", the table) where it has no targets."""
        frame = self.to_pandas()
        for target in frame["target"].unique() if "target" in frame else [""]:
            yield target, frame[frame["target"] == target].reset_index(drop=True) if target else frame

    def _shown(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Title and main columns, as text, of every part."""
        for target, part in self._by_target():
            yield f"{self.TITLE}: {target}" if target else self.TITLE, _texts(part, self.SHOWN)

    def tables(self) -> Iterator[Any]:
        """The readable form, for a rich console: a table a part."""
        from rich.text import Text

        from align_ray.reporting.tables import plain_table

        for title, frame in self._shown():
            table = plain_table(title)
            for i, column in enumerate(frame):
                table.add_column(
                    str(column).replace(" ", "\n"), justify="right" if i else "left", no_wrap=i > 0, overflow="fold"
                )
            for row in frame.itertuples(index=False):
                table.add_row(*map(Text, row))
            yield table

    def notes(self) -> list[str]:
        """What the command line says below the tables: their columns in words, with units."""
        return []

    def __repr__(self) -> str:
        from rich.console import Console

        text = StringIO()
        console = Console(file=text, width=WIDTH, highlight=False, markup=False, force_jupyter=False, color_system=None)
        for table in self.tables():
            console.print(table)
        return text.getvalue().rstrip()

    def _repr_html_(self) -> str:
        return "".join(f"<p><b>{escape(title)}</b></p>{part.to_html(index=False, border=0)}" for title, part in self._shown())


def _texts(part: pd.DataFrame, shown: dict[str, str]) -> pd.DataFrame:
    """The columns `shown` of a table as text, without empty ones; NAME_low gives the interval of NAME."""
    columns = []
    for name, form in shown.items():
        if name not in part or part[name].isna().all():
            continue
        texts = [_text(value, form) for value in part[name]]
        if name.endswith("_low"):
            highs = (_text(value, form) for value in part[f"{name.removesuffix('_low')}_high"])
            texts = [f"[{low}, {high}]" if low else "" for low, high in zip(texts, highs, strict=True)]
        columns.append(pd.Series(texts, name="95%" if name.endswith("_low") else _heading(name)))
    return pd.concat(columns, axis=1)


def _heading(name: str) -> str:
    """p_worse: P(worse)."""
    return f"P({name[2:]})".replace("_", " ") if name.startswith("p_") else name.replace("_", " ")


def _text(value: Any, form: str) -> str:
    return "" if value is None or pd.isna(value) else format(value, form)


def _estimate(name: str, value: Any) -> dict[str, Any]:
    """Columns of a value with its interval, or of one that was not to be had."""
    given = value or dict.fromkeys(("value", "error", "low", "high"))
    return {name: given["value"]} | {f"{name}_{part}": given[part] for part in ("error", "low", "high")}


class Corpora(Result):
    """What `embed` returns."""

    TITLE = "Corpora"
    SHOWN = {"corpus": "", "role": "", "documents": ",", "estimated_tokens": ",", "batches": ",", "in_target": ","}
    DRAWN = ("corpus", "estimated_tokens")
    AXIS = "tokens (estimated from bytes)"

    def to_pandas(self) -> pd.DataFrame:
        """One row a corpus: counts of its documents, bytes, tokens, and records left out."""
        frame = pd.DataFrame([{"corpus": name, **counts} for name, counts in self["corpora"].items()])
        counts = frame.select_dtypes("number").columns
        return frame.fillna(dict.fromkeys(counts, 0)).astype(dict.fromkeys(counts, int))  # absent: no such record


class Alignment(Result):
    """What `align` returns."""

    TITLE = "Candidates, best first"
    SHOWN = {
        "candidate": "",
        "cross_entropy": ".3f",
        "cross_entropy_low": ".3f",
        "p_above_next_adjusted": ".3f",
        "alignment": ".4f",
        "alignment_low": ".4f",
    }
    DRAWN = ("candidate", "cross_entropy")
    AXIS = "cross-entropy of the target under the candidate's unigram model (nats per token), 95%"

    def to_pandas(self) -> pd.DataFrame:
        """One row a target and candidate, ranked by `cross_entropy`; to it belong `p_best`, `p_above_next` (also `_adjusted` for
        all comparisons) and `batches_to_separate` the row from the next. `alignment` is the paper's coefficient with its own
        `alignment_p_best`, ..., `alignment_corrected` is it without label noise, `alignment_pooled` that of the corpora's mean
        embeddings; further rows of the probe stand under their name, for example `head`; `ceiling` is 1 - div(target)."""
        blocks = {"alignment": self["ranking"]} | {name: block["ranking"] for name, block in self["others"].items()}
        rows = []
        for target, ranking in self["predicted"]["ranking"].items():
            for rank, row in enumerate(ranking, start=1):
                candidate = row["candidate"]
                cells = {"target": target, "candidate": candidate, "rank": rank, **_ranked("cross_entropy", "", row)}
                for name, block in blocks.items():
                    found = next(r for r in block[target] if r["candidate"] == candidate)
                    cells |= _ranked(name, f"{name}_", found)
                    cells |= _estimate(f"{name}_corrected", found["corrected"]) | _estimate(f"{name}_pooled", found["pooled"])
                rows.append(cells | _estimate("ceiling", self["ceiling"][target]))
        return pd.DataFrame(rows)


def _ranked(name: str, prefix: str, row: dict[str, Any]) -> dict[str, Any]:
    keys = {
        "p_best": "p_best",
        "p_above_next": "p_above_next",
        "adjusted": "p_above_next_adjusted",
        "separate": "batches_to_separate",
    }
    return _estimate(name, row) | {f"{prefix}{column}": row[key] for key, column in keys.items()}


class Mixture(Result):
    """What `search` returns."""

    TITLE = "Recommended mixture (shares of tokens)"
    SHOWN = {
        "corpus": "",
        "weight": ".1%",
        "optimum": ".1%",
        "optimum_low": ".1%",
        "epochs": ".2f",
        "limited_by": "",
        "gain_per_million_tokens": ".4f",
    }
    DRAWN = ("corpus", "optimum")
    AXIS = "weight at the optimum (share of tokens), 95%"

    def to_pandas(self) -> pd.DataFrame:
        """One row a corpus, largest weight first: `weight` (recommended), `optimum` with its interval, `cap` of the repetition
        limit, `epochs` of the corpus within the budget, what limits it and what more of it would gain."""
        best = self["mixtures"]["recommended"]
        rows = [
            {
                "corpus": name,
                "weight": best["weights"][name],
                "optimum": found["weight"],
                "optimum_low": found["low"],
                "optimum_high": found["high"],
                "cap": self["caps"][name],
                "epochs": best["epochs"][name],
                "limited_by": found["binds"],
                "gain_per_million_tokens": found["gain_per_million_tokens"],
            }
            for name, found in self["weights"].items()
        ]
        return pd.DataFrame(rows).sort_values("weight", ascending=False, ignore_index=True)

    def _shown(self) -> Iterator[tuple[str, pd.DataFrame]]:
        yield from super()._shown()
        shown = {"mixture": "", "value": ".4f", "alignment": ".4f", "alignment_low": ".4f", "most_epochs": ".2f"}
        yield "Beside it", _texts(self.comparison(), shown)

    def notes(self) -> list[str]:
        return [
            f"optimum: of the objective ({self['objective']}), 95% over resampled batches",
            "weight: the mean of all mixtures that are as good within its error",
            "gain: of the objective, where repetition limits a corpus",
            "value: of the objective, higher is better; alignment: pooled",
            f"effective number of corpora: {self['effective_corpora']:.1f}",
        ]

    def comparison(self) -> pd.DataFrame:
        """One row a mixture (recommended, uniform, proportional, ...): `value` of the objective, its mean alignment with the
        targets with interval, and the epochs of the corpus that is repeated most."""
        return pd.DataFrame(
            [
                {
                    "mixture": name, "value": m["value"], **_estimate("alignment", m["alignment"]),
                    "most_epochs": max(m["epochs"].values()),
                }
                for name, m in self["mixtures"].items()
            ]
        )  # fmt: skip


class Finetuned(Result):
    """What `finetune` returns."""

    TITLE = "Change of the held-out loss (nats per token)"
    SHOWN = {"run": "", "after": ".4f", "change": "+.4f", "change_low": "+.4f"}
    DRAWN = ("run", "change")
    AXIS = "change of the loss (nats per token), 95% over held-out sequences"

    def to_pandas(self) -> pd.DataFrame:
        """One row a target and training run, lowest loss first: loss `before` and `after`, `change` with its interval over the
        held-out sequences, and `overlap`, the share of held-out 13-token windows in the training text."""
        rows = []
        for name, run in self["runs"].items():
            for target, loss in run["targets"].items():
                cells = {"target": target, "run": name, "tokens": self["tokens"], **loss}
                if loss["change_error"] is not None:
                    margin = 1.96 * loss["change_error"]
                    cells |= {"change_low": loss["change"] - margin, "change_high": loss["change"] + margin}
                rows.append(cells)
        return _by_loss(rows, "after")


class Validation(Result):
    """What `validate` returns."""

    TITLE = "Loss after training on each mixture (nats per token)"
    SHOWN = {
        "mixture": "",
        "loss": ".4f",
        "loss_low": ".4f",
        "difference": "+.4f",
        "p_worse": ".3f",
        "same_as": "",
    }
    DRAWN = ("mixture", "loss")
    AXIS = "held-out loss (nats per token), 95% over seeds and sequences"

    def to_pandas(self) -> pd.DataFrame:
        """One row a target (`all`: their mean) and mixture, lowest loss first: `loss` with its interval, `difference` from the
        recommended mixture's (positive: worse), `p_worse`, the probability that it is worse, and `same_as`, the mixture with the
        same weights that was trained in its place."""
        rows = []
        for name, mixture in self["mixtures"].items():
            for target, loss in mixture["loss"].items():
                cells = {"target": target, "mixture": name, "same_as": mixture["same_as"], **_estimate("loss", loss)}
                against = self["versus"].get(name, {}).get("recommended", {}).get(target)
                p_worse = 1 - against["p_lower"] if against else None
                rows.append({**cells, **_estimate("difference", against), "p_worse": p_worse})
        frame = _by_loss(rows, "loss")
        return frame if frame["target"].nunique() > 2 else frame[frame["target"] != "all"]

    def notes(self) -> list[str]:
        before = ", ".join(f"{target} {loss:.4f}" for target, loss in self["before"].items())
        return [
            f"after {self['tokens']:,} tokens, {self['seeds']} seeds, 95% over seeds and sequences; before: {before}",
            "difference: from the recommended mixture, positive is worse; same as: trained once for both",
        ]


def _by_loss(rows: list[dict[str, Any]], loss: str) -> pd.DataFrame:
    frame = pd.DataFrame(rows).sort_values(loss, kind="stable")
    order = dict.fromkeys(row["target"] for row in rows)
    return pd.concat([frame[frame["target"] == target] for target in order], ignore_index=True)


class Contamination(Result):
    """What `contamination` returns."""

    TITLE = "Text shared with the target"
    SHOWN = {
        "candidate": "",
        "documents": ",",
        "covered": ".2%",
        "alignment": ".4f",
        "alignment_clean": ".4f",
        "cross_entropy": ".3f",
        "cross_entropy_clean": ".3f",
        "rank": ".0f",
        "rank_clean": ".0f",
    }
    DRAWN = ("candidate", "covered")
    AXIS = "share of the target's runs of 13 words that the candidate holds"

    def to_pandas(self) -> pd.DataFrame:
        """One row a target and candidate: `documents` of `of` that share a run of words with the target, the share of the target's
        runs they cover, and alignment, cross-entropy and rank with and without (`_clean`) the sequences concerned."""
        rows = []
        for candidate, targets in self["overlap"].items():
            for target, overlap in targets.items():
                clean = dict(self["clean"][candidate][target])
                for name in ("alignment", "alignment_clean"):
                    clean |= _estimate(name, clean[name])
                rows.append({"target": target, "candidate": candidate, **overlap, **clean})
        return pd.DataFrame(rows).sort_values(["target", "rank"], kind="stable", ignore_index=True)

    def notes(self) -> list[str]:
        return [
            f"documents: that share a run of {self['words']} words with the target; covered: share of its runs",
            "clean: without the sequences that hold such a run; cross-entropy: nats per token",
        ]


class Samples(Result):
    """What `samples` returns."""

    TITLE = "Alignment of single sequences"
    SHOWN = {"corpus": "", "of": ",", "smallest": ".4f", "median": ".4f", "largest": ".4f"}
    DRAWN = ("corpus", "median")
    AXIS = "median alignment of a sequence with the target; lines: smallest to largest"

    def to_pandas(self) -> pd.DataFrame:
        """One row a target and corpus: `of`, sequences scored, and the quantiles of their alignment with the target; texts are in
        the result itself, `most` and `least`. Without corpora of which no score is finite; empty where the estimator has no
        embedding of a single sequence."""
        names = ("smallest", "lower_quartile", "median", "upper_quartile", "largest")
        rows = []
        for corpus, found in self.items():
            for target, scores in found["targets"].items():
                if not scores["quantiles"]:
                    continue
                values = dict(zip(names, scores["quantiles"], strict=True))
                ends = {"median_low": values["smallest"], "median_high": values["largest"]}
                rows.append({"target": target, "corpus": corpus, "of": scores["of"], **values, **ends})
        return pd.DataFrame(rows, columns=None if rows else ["target", "corpus", "of", *names])


RESULTS: dict[str, type[Result]] = {
    "embed": Corpora,
    "align": Alignment,
    "contamination": Contamination,
    "samples": Samples,
    "search": Mixture,
    "finetune": Finetuned,
    "validate": Validation,
}
"""By stage."""
