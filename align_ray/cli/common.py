"""What all commands share: their arguments, the study a configuration gives, what is shown where, and how a command
ends."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from typer.core import TyperGroup

from align_ray import __version__
from align_ray.errors import CapReached, mistake_behind
from align_ray.progress import shown_by
from align_ray.reporting.tables import out

err = Console(stderr=True, emoji=False)
lines = out
"""Where lines of progress go: beside the tables, or to standard error where standard output is JSON."""

Path_ = Annotated[
    Path,
    typer.Argument(help="The study's configuration (YAML), or its output folder for the last one.", metavar="CONFIG"),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Override a field, for example search.trials=8."),
]


class OptionsAnywhere(TyperGroup):
    """`--quiet` and `--json` may stand before or after the command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        flags = [a for a in args if a in ("-q", "--quiet", "--json")]
        return super().parse_args(ctx, [*flags, *(a for a in args if a not in flags)])


def _version(asked: bool) -> None:
    if asked:
        print(f"align-ray {__version__}")
        raise typer.Exit


def set_output(
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, only the answer.")] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="The answer as JSON on standard output, progress on standard error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of every command."""
    global lines
    out.quiet = json_
    err.quiet = False
    lines = Console(stderr=json_, quiet=quiet, markup=False, emoji=False)


def study_of(config: Path | None, overrides: list[str] | None, write: bool = True) -> Any:
    """The study of a configuration file (None: the embedded default) with `--set` applied."""
    from align_ray.errors import ConfigError
    from align_ray.pipeline import open_study

    values = {}
    for item in overrides or []:
        field, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--set {item}: write FIELD=VALUE.")
        try:
            values[field] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"--set {field}: the value is not valid YAML ({str(error).splitlines()[0]}); quote it."
            ) from None
    return open_study(
        config_of(config, values), say=lambda line: lines.print(line, highlight=False, soft_wrap=True), write=write
    )


def config_of(place: Path | None, values: dict[str, Any] | None = None) -> Any:
    """The configuration in a file (None: the embedded default), or the last one of an output folder, wherever that
    folder is now and was named from. Its relative sources are relative to where it was started: this process goes
    there, so that paths of the command line are made absolute before (`from_here`)."""
    from align_ray.answers import answer_id, answers
    from align_ray.config_file import load_config
    from align_ray.errors import ConfigError
    from align_ray.store import Store

    if place is None or not place.is_dir():
        return load_config(place, values)
    folder = place.resolve()
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{place}: no output folder of a study, which holds config.yaml; name that or a YAML file.")
    config = load_config(folder / "config.yaml", {"output": str(folder), **(values or {})})
    known = answers(Store(str(folder)))
    last = next((a for a in known if a.id == answer_id(config)), known[0] if known else None)
    if last and Path(last.started_in).is_dir():
        os.chdir(last.started_in)
    return config


def from_here(place: str) -> str:
    """A path or URI that means the same from another folder."""
    return place if "://" in place else os.path.abspath(os.path.expanduser(place))


def tokens_of(answer: str) -> int:
    """A number of tokens as it is written on a command line: 22_000, 10M, 1.5B, 5e9."""
    from align_ray.config_fields import number

    count = number(answer)
    if not isinstance(count, int) or count < 1:
        raise typer.BadParameter("a whole number above 0, such as 22_000, 10M or 5e9")
    return count


def guard(work: Callable[[], Any]) -> None:
    """Run a command and end with its exit status; what `work` returns is printed where JSON is asked for.

    A user's mistake is one sentence, also where it was met by a worker."""
    try:
        with shown_by(bar) if lines.is_terminal else contextlib.nullcontext():  # else lines say how it stands
            result = work()
    except CapReached as error:
        err.print(escape(str(error)), highlight=False, soft_wrap=True)
        sys.exit(3)
    except Exception as error:
        mistake = mistake_behind(error)
        if mistake is None:
            raise
        err.print(f"[red]error:[/red] {escape(str(mistake))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    if out.quiet:
        print(json.dumps(result, indent=1))


@contextlib.contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar with rate and time left; nothing where no one watches."""
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(
        *columns,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=lines,
        transient=True,
        disable=not lines.is_terminal,
    ) as progress:
        task = progress.add_task(what, total=total, rate="")

        def advance() -> None:
            progress.advance(task)
            speed = progress.tasks[0].speed
            progress.update(task, rate=f"{speed:.2f}/s" if speed else "")

        yield advance
