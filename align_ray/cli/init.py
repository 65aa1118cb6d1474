"""Commands before the first run: write a configuration, check the environment."""

import dataclasses
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from align_ray.cli.common import err, guard, tokens_of
from align_ray.errors import ConfigError, UserError
from align_ray.reporting.tables import out, plain_table

SOURCE = "file, folder, glob, URI, hf://owner/name or installed:NAME"


def init(
    path: Annotated[Path, typer.Argument(help="The file to write.", metavar="PATH")] = Path("study.yaml"),
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]SOURCE", help=f"What the model will be evaluated on: {SOURCE}; repeatable."),
    ] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]SOURCE", help="A corpus to choose from; repeatable, two or more."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COLUMN", help="A corpus' text column, or a template such as 'proofs={informal}\\n{formal}'."
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder or URI for the results; default: runs/ and the file's name.")
    ] = None,
    probe: Annotated[str, typer.Option(help="The probe: embedded, smollm2, a folder or a hub id.")] = "embedded",
    tokens: Annotated[
        int | None,
        typer.Option(
            parser=tokens_of,
            metavar="TOKENS",
            help="Training tokens the mixture is meant for; default: about what the candidates hold.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a commented configuration from flags, or from answers where a flag is missing.

    Example: [b]align-ray init study.yaml --target data/test.jsonl --candidate data/web --candidate hf://allenai/c4[/b]
    """
    guard(lambda: _init(path, target or [], candidate or [], column or [], output, probe, tokens, force))


def _init(
    path: Path, target: list[str], candidate: list[str], column: list[str], output: str | None, probe: str,
    tokens: int | None,
    force: bool,
) -> dict[str, Any]:  # fmt: skip
    from align_ray.cli.starter import budget_for, look, proposed_name, shown_examples, write
    from align_ray.config_corpora import Corpus
    from align_ray.corpora.contents import contents

    if path.exists() and not force:
        raise ConfigError(f"{path} exists; add --force to overwrite it, or name another file.")
    ask = _ask if sys.stdin.isatty() else None
    missing = not target or len(candidate) < 2
    if missing and ask is None:
        raise ConfigError(
            "name what to compare with --target SOURCE and two or more --candidate SOURCE; there is no terminal to "
            "ask on."
        )
    columns = dict(_pair(item) for item in column)
    corpora: dict[str, list[dict[str, str]]] = {"targets": [], "candidates": []}

    def add(role: Any, given: str) -> bool:
        if not given:
            return False
        taken = {c["name"] for found in corpora.values() for c in found}
        corpora[role].append(look(given, role, taken, columns, ask, lambda line: out.print(line, highlight=False)))
        return True

    for role, given, fewest in (("targets", target, 1), ("candidates", candidate, 2)):
        for source in given:
            add(role, source)
        if ask is None or len(given) >= fewest:
            continue
        out.print(f"{role}: {SOURCE}, or NAME=SOURCE", highlight=False, markup=False)
        word, more = role.removesuffix("s"), True
        while more:
            enough = len(corpora[role]) >= fewest
            question = f"another {word} (empty: no more)" if enough else f"{word} {len(corpora[role]) + 1}"
            more = ask(question, "" if enough else None, partial(add, role))
    names = {c["name"] for found in corpora.values() for c in found}
    for name in columns.keys() - names:
        raise ConfigError(f"--column {name}: the corpora are {', '.join(sorted(names))}.")
    output = output or f"runs/{proposed_name(path.name)}"
    held = {c["name"]: contents(Corpus.model_validate(c)) for found in corpora.values() for c in found}
    budget, why = budget_for([held[c["name"]] for c in corpora["candidates"]])
    said = "" if tokens else why
    tokens = tokens or budget
    if missing and ask is not None:
        output = ask("folder or URI for the results", output, str)
        tokens = ask("training tokens the mixture is meant for", str(tokens), _tokens)
        probe = ask("probe (embedded, smollm2, a folder or a hub id)", probe, str)
    asked = {"name": proposed_name(path.name), "output": output, **corpora}
    asked |= {"probe": {"model": probe}, "search": {"token_budget": tokens}, "choose": {"by": "training"}}
    write(path, asked)
    for found in corpora.values():
        for corpus in found:
            rest = ", ".join(f"{k} {v!r}" for k, v in corpus.items() if k not in ("name", "source"))
            out.print(
                f"{corpus['name']}: {corpus['source']}{f' ({rest})' if rest else ''}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
            out.print(f"  {held[corpus['name']]}", highlight=False, markup=False, soft_wrap=True)
            if mixed := held[corpus["name"]].mixed():
                out.print(Text.assemble("  ", ("warning:", "yellow"), f" {mixed}"), highlight=False, soft_wrap=True)
            for example in shown_examples(corpus):
                out.print(example, highlight=False, soft_wrap=True)
    if said and tokens == budget:
        out.print(f"search.token_budget: {tokens:,}, {said}", highlight=False, soft_wrap=True)
    file = shlex.quote(str(path))
    out.print(
        f"{path} is written.\ncheck: align-ray doctor {file}\nnext:  align-ray run {file}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return {"path": str(path), "config": asked}


COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


def doctor(
    config: Annotated[Path | None, typer.Argument(help="A study's configuration (YAML), checked as well.")] = None,
    model: Annotated[bool, typer.Option("--model", help="Load the model and try one training step, here.")] = False,
) -> None:
    """Check Ray, GPU, torch, MLflow, the hub, disk, probe and versions. Exit status 1 where a check failed.

    Example: [b]align-ray doctor study.yaml[/b]
    """
    from align_ray.config_file import load_config
    from align_ray.doctor import diagnose

    rows: list[Any] = []

    def work() -> list[dict[str, str]]:
        with err.status(f"checking, at most {'ten' if model else 'three'} minutes"):
            rows.extend(diagnose(load_config(config) if config else None, model))
        table = plain_table("environment" if config is None else f"environment for {config}")
        for column in ("check", "", "result", "what to do"):
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(row.check, Text(row.status, COLOURS[row.status]), row.result, row.remedy)
        out.print(table)
        return [dataclasses.asdict(row) for row in rows]

    guard(work)
    if any(row.status == "failed" for row in rows):
        sys.exit(1)


def _pair(item: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals or not value:
        raise ConfigError(f"--column {item}: write NAME=COLUMN.")
    return name, value


def _tokens(answer: str) -> int:
    try:
        return tokens_of(answer)
    except typer.BadParameter as error:
        raise ConfigError(f"{error}.") from None


def _ask(question: str, default: str | None, check: Callable[[str], Any]) -> Any:
    def value(answer: str) -> Any:
        try:
            return check(answer.strip())
        except UserError as error:
            raise typer.BadParameter(str(error)) from None

    # not among the JSON, where that is asked for
    return typer.prompt(question, default=default, value_proc=value, show_default=bool(default), err=out.quiet)
