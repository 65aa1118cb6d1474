"""How any result of a stage is read, written and shown: JSON, a tidy table, main columns as text, a figure."""

from collections.abc import Iterator
from html import escape
from io import StringIO
from typing import Any, ClassVar, Self

import pandas as pd
from pydantic import BaseModel, ConfigDict

from align_ray.reporting.values import Estimate

WIDTH = 80
"""Columns of a terminal that a result's text form fits."""


class Result(BaseModel):
    """The base of all results: a subclass gives the table, and what of it is shown and drawn."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants", protected_namespaces=())

    TITLE: ClassVar[str]
    SHOWN: ClassVar[dict[str, str]]
    """Columns of the readable forms with their format; NAME_low stands for the interval of NAME."""
    DRAWN: ClassVar[tuple[str, str]]
    """Columns of the figure: the label and the value."""
    AXIS: ClassVar[str]
    """What the figure's value is, with its unit."""

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        return getattr(self, name)

    def __contains__(self, name: object) -> bool:
        return name in type(self).model_fields

    @classmethod
    def parse(cls, value: Any) -> Self:
        """From a JSON value, as `dump` gives it."""
        return cls.model_validate(value)

    def dump(self) -> Any:
        """As a JSON value."""
        return self.model_dump(exclude_unset=True)

    def __str__(self) -> str:
        return repr(self)

    def recorded(self) -> dict[str, Any]:
        """What cost.json keeps of it."""
        return {}

    def to_pandas(self) -> pd.DataFrame:
        """Everything as a tidy table; the subclass says what one row is. NAME_error is a standard error, NAME_low
        and NAME_high are the ends of a 95% interval."""
        raise NotImplementedError

    def plot(self) -> Any:
        """The values with their 95% intervals as a plotly Figure, one panel a target; an empty one where there are
        none."""
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
            figure.add_scatter(
                x=part[value], y=part[label], error_x=bars, mode="markers", marker_size=9, row=row, col=1
            )
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
            yield f"{self.TITLE}: {target}" if target else self.TITLE, texts_of(part, self.SHOWN)

    def tables(self) -> Iterator[Any]:
        """The readable form, for a rich console: a table a part."""
        from rich.text import Text

        from align_ray.reporting.tables import plain_table

        for title, frame in self._shown():
            table = plain_table(title)
            for i, column in enumerate(frame):
                heading = str(column).replace(" ", "\n")
                table.add_column(heading, justify="right" if i else "left", no_wrap=i > 0, overflow="fold")
            for row in frame.itertuples(index=False):
                table.add_row(*map(Text, row))
            yield table

    def covers(self, other: Self) -> bool:
        """Whether this one says all that `other` says of the same study, and more: it is then kept in its place."""
        return False

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
        return "".join(
            f"<p><b>{escape(title)}</b></p>{part.to_html(index=False, border=0)}" for title, part in self._shown()
        )


def texts_of(part: pd.DataFrame, shown: dict[str, str]) -> pd.DataFrame:
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
    """p_lower: P(lower)."""
    return f"P({name[2:]})".replace("_", " ") if name.startswith("p_") else name.replace("_", " ")


def _text(value: Any, form: str) -> str:
    return "" if value is None or pd.isna(value) else format(value, form)


def estimate_columns(name: str, found: Estimate | None) -> dict[str, Any]:
    """Columns of a value with its interval; None where there is none."""
    parts = {f"{name}_{part}": getattr(found, part, None) for part in ("error", "low", "high")}
    return {name: getattr(found, "value", None), **parts}
