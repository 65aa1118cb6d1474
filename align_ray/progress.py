"""Progress of long work: code that works counts its steps, whoever called it may show them (the command line does)."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

Reporter = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Takes what is done and the number of steps; gives a function to call after each."""

_reporter: ContextVar[Reporter | None] = ContextVar("reporter", default=None)
_advance: ContextVar[Callable[[], None]] = ContextVar("advance", default=lambda: None)


@contextmanager
def shown_by(reporter: Reporter) -> Iterator[None]:
    """While it is open, progress is shown by `reporter`."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


@contextmanager
def steps(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Gives a function to call after each of `total` steps."""
    reporter = _reporter.get()
    if reporter is None:
        yield lambda: None
        return
    with reporter(what, total) as advance:
        token = _advance.set(advance)
        try:
            yield advance
        finally:
            _advance.reset(token)


def step() -> None:
    """A step of the innermost `steps`: for code that must be pickled and cannot hold its function."""
    _advance.get()()


def counted(rows: Iterable[Any], what: str, total: int) -> Iterator[Any]:
    """The rows, each a step once it has been dealt with."""
    with steps(what, total) as advance:
        for row in rows:
            yield row
            advance()
