"""The answers that output folders hold: list them, and set two beside each other."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from align_ray.cli.common import guard
from align_ray.errors import ConfigError
from align_ray.reporting.tables import out, plain_table

if TYPE_CHECKING:
    from align_ray.answers import Answer
    from align_ray.compare import Comparison, Row
    from align_ray.store import Store

WHERE = "An output folder or configuration: its last answer; FOLDER@ID: one of align-ray list."


def list_(
    places: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PLACE]...", help="Output folders, configurations, or folders of output folders."),
    ] = None,
) -> None:
    """List the answers that output folders hold, the last one first.

    Example: [b]align-ray list runs[/b]
    """
    guard(lambda: _list(places or ["runs"]))


def compare(
    before: Annotated[str, typer.Argument(metavar="A", help=WHERE)],
    after: Annotated[str, typer.Argument(metavar="B", help="What it is compared with, named in the same way.")],
) -> None:
    """Set two answers beside each other: configuration, weights, losses, task scores, and why they differ.

    Example: [b]align-ray compare runs/study@1f0c23ab runs/study[/b]
    """
    guard(lambda: _compare(before, after))


def _list(places: list[str]) -> list[dict[str, Any]]:
    from align_ray.answers import answers, differences
    from align_ray.compare import results_of
    from align_ray.reporting.headline import shares_of
    from align_ray.reporting.trained import verdict_of

    rows: list[dict[str, Any]] = []
    for store in (store for place in places for store in _stores(place)):
        if not (known := answers(store)):
            continue
        table = plain_table(_near(store.uri))
        for column in ("answer", "made (UTC)", "differs from the next in", "mixture", "verdict"):
            table.add_column(column, overflow="fold", no_wrap=column in ("answer", "made (UTC)"))
        for answer, earlier in zip(known, [*known[1:], None], strict=True):
            results = results_of(answer)
            changed = [str(d) for d in differences(earlier.config, answer.config)] if earlier else []
            mixture = results.get("search")
            weights, state = mixture and mixture.mixtures["recommended"].weights, verdict_of(results).state
            known_by = {"output": store.uri, "answer": answer.id, "made": answer.made, "differs": changed}
            rows.append({**known_by, "weights": weights, "verdict": state})
            made = answer.made.replace("T", " ")[:16]
            table.add_row(answer.id, made, "; ".join(changed), shares_of(weights) if weights else "none", state)
        out.print(table)
    if not rows:
        raise ConfigError(f"{', '.join(places)}: no answers; run a study first, for example align-ray run study.yaml.")
    return rows


def _compare(before: str, after: str) -> dict[str, Any]:
    from align_ray.compare import compare as set_beside

    found = set_beside(answer_at(before), answer_at(after))
    show_comparison(found)
    return found.dump()


def show_comparison(found: "Comparison") -> None:
    """Print two answers beside each other."""
    for letter, answer, verdict in zip("AB", found.answers, found.verdicts, strict=True):
        name, made = f"{_near(answer.store.uri)}@{answer.id}", answer.made.replace("T", " ")[:16]
        out.print(f"{letter}: {name}, {made} UTC; {verdict.state}", highlight=False, soft_wrap=True)
    from align_ray.answers import CORPORA, shown

    table = plain_table("configuration")
    for column in ("field", "A", "B"):
        table.add_column(column, overflow="fold")
    for d in found.configuration:
        sides = ("" if v is None else v for v in (d.before, d.after)) if d.field in CORPORA else (d.before, d.after)
        table.add_row(d.field, *(str(v) if d.field in CORPORA else shown(v) for v in sides))
    if found.configuration:
        out.print(table)
    else:
        out.print("configuration: no field differs that a number depends on", highlight=False)
    for title, rows, form in (
        ("weights (shares of tokens)", found.weights, ".1%"),
        ("predicted (nats per token)", found.predicted, ".4f"),
        ("measured after training (nats per token)", found.measured, ".4f"),
        ("tasks after training (higher is better), with 95% intervals", found.tasks, ".4f"),
    ):
        if rows:
            out.print(_table(title, rows, form))
    for line in found.why:
        out.print(line, highlight=False)


def say_what_changed(before: "Answer", now: "Answer") -> None:
    """Print which numbers are others than in the answer before, and why; nothing where it is the same answer."""
    from align_ray.compare import compare as set_beside

    if before.id == now.id:
        return
    found, where = set_beside(before, now), _near(now.store.uri)
    out.print(f"beside the answer before, {before.id}: {'; '.join(map(str, found.configuration)) or 'made again'}")
    for what, rows, form in (
        ("weight of", found.weights, ".1%"),
        ("cross-entropy and predicted loss,", found.predicted, ".4f"),
        ("measured loss,", found.measured, ".4f"),
        ("task,", found.tasks, ".4f"),
    ):
        moved = [row for row in rows if row.difference]
        shown = [f"{row.what} {row.before:{form}} now {row.after:{form}}" for row in moved[:MOST_MOVED]]
        more = f" and {len(moved) - MOST_MOVED} more" if len(moved) > MOST_MOVED else ""
        if shown:
            out.print(f"changed: {what} {', '.join(shown)}{more}", highlight=False, markup=False)
    for line in found.why:
        out.print(line, highlight=False, markup=False)
    out.print(f"all of it: align-ray compare {where}@{before.id} {where}@{now.id}", highlight=False, soft_wrap=True)


MOST_MOVED = 4
"""Numbers of one kind that are shown when an answer follows another."""


def _table(title: str, rows: "list[Row]", form: str) -> Any:
    table, targets = plain_table(title), list(dict.fromkeys(row.target for row in rows))
    if len(targets) > 1:
        table.add_column("target", overflow="fold")
    table.add_column("", overflow="fold")
    for column in ("A", "B", "B less A"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        difference = row.difference
        both = zip((row.before, row.after), row.ends, strict=True)
        cells = ("" if v is None else f"{v:{form}}{_between(ends, form)}" for v, ends in both)
        signed = "" if difference is None else format(difference, f"+{form}")
        table.add_row(*([row.target] if len(targets) > 1 else []), row.what, *cells, signed)
    return table


def _between(ends: tuple[float, float] | None, form: str) -> str:
    return "" if ends is None else f"\n[{ends[0]:{form}}, {ends[1]:{form}}]"


def answer_at(place: str) -> "Answer":
    """The answer that FOLDER, FOLDER@ID or a configuration names. Raises ConfigError where there is none."""
    from align_ray.answers import answer_id, answers
    from align_ray.config_file import load_config
    from align_ray.store import Store

    folder, at, wanted = place.rpartition("@")
    if not at or "/" in wanted:  # s3://user@host/...
        folder, wanted = place, ""
    if folder.endswith((".yaml", ".yml")):
        config = load_config(folder)
        store, wanted = Store(config.output), wanted or answer_id(config)
    else:
        store = Store(folder)
    known = answers(store)
    found = [answer for answer in known if answer.id.startswith(wanted)]
    if not known:
        raise ConfigError(f"{place}: {store.uri} holds no answers; name an output folder of a study that was run.")
    if not found or (wanted and len(found) > 1):
        ids = ", ".join(answer.id for answer in known)
        raise ConfigError(f"{place}: {'no' if not found else 'more than one'} answer '{wanted}'; there are {ids}.")
    return found[0]


def _stores(place: str) -> "list[Store]":
    """The output folder of a configuration, one that is named, or those within a folder."""
    from align_ray.config_file import load_config
    from align_ray.store import Store

    if place.endswith((".yaml", ".yml")):
        return [Store(load_config(place).output)]
    store = Store(place)
    folder = store.local_path()
    if folder is None or store.names("answers") or not folder.is_dir():
        return [store]
    return [Store(str(below)) for below in sorted(folder.iterdir()) if (below / "answers").is_dir()]


def _near(uri: str) -> str:
    """A path as it is seen from here, where that is shorter."""
    near = os.path.relpath(uri) if "://" not in uri else uri
    return near if not near.startswith("..") and Path(near) != Path(".") else uri
