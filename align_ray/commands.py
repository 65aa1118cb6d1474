"""What all commands share: their arguments, the study a configuration gives, and how a user's mistake ends."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape

from align_ray.errors import mistake_behind
from align_ray.terminal import out

err = Console(stderr=True)

Path_ = Annotated[Path, typer.Argument(help="The study's configuration (YAML).", metavar="CONFIG")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a field, for example search.trials=8.")
]


def study_of(config: Path | None, overrides: list[str] | None) -> Any:
    from align_ray.config import load_config
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
            raise ConfigError(f"--set {item}: the value is not valid YAML ({str(error).splitlines()[0]}).") from None
    return open_study(load_config(config, values), say=lambda line: out.print(line, highlight=False))


def guard(work: Callable[[], None]) -> None:
    """A user's mistake is one sentence and exit status 2, also where it was met by a worker."""
    try:
        work()
    except Exception as error:
        mistake = mistake_behind(error)
        if mistake is None:
            raise
        err.print(f"[red]error:[/red] {escape(str(mistake))}", highlight=False, soft_wrap=True)
        sys.exit(2)
