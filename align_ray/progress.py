"""Progress of long work: code that works counts its steps, whoever called it may show them (the command line does) or
watch them (`watched`)."""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

Reporter = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Takes what is done and the number of steps; gives a function to call after each."""

_shown: ContextVar[bool] = ContextVar("shown", default=False)
_reporters: ContextVar[tuple[Reporter, ...]] = ContextVar("reporters", default=())
_advance: ContextVar[Callable[[], None]] = ContextVar("advance", default=lambda: None)


@contextmanager
def shown_by(reporter: Reporter) -> Iterator[None]:
    """While it is open, progress is shown by `reporter`, to somebody who watches."""
    token = _shown.set(True)
    try:
        with counted_by(reporter):
            yield
    finally:
        _shown.reset(token)


def is_shown() -> bool:
    """Whether somebody watches: where nobody does, lines of text say now and then how it stands."""
    return _shown.get()


@contextmanager
def counted_by(reporter: Reporter) -> Iterator[None]:
    """While it is open, `reporter` is told of progress as well, unseen."""
    token = _reporters.set((*_reporters.get(), reporter))
    try:
        yield
    finally:
        _reporters.reset(token)


@contextmanager
def steps(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Gives a function to call after each of `total` steps."""
    with ExitStack() as stack:
        told = [stack.enter_context(reporter(what, total)) for reporter in _reporters.get()]

        def advance() -> None:
            for tell in told:
                tell()

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


@dataclasses.dataclass(frozen=True)
class Standing:
    """How the work under way stands; times in seconds."""

    what: str = ""
    """Empty where nothing is counted at the moment."""
    done: int = 0
    total: int = 0
    left: float | None = None
    """At the pace so far; None before the first step."""
    rate: float | None = None
    """Steps a second."""
    idle: float = 0.0
    """Since the last step, or since the work that is counted began."""


@dataclasses.dataclass
class _Counted:
    what: str
    total: int
    start: float
    last: float
    done: int = 0


@contextmanager
def watched(tell: Callable[[Standing], None], every: float) -> Iterator[None]:
    """While it is open, a thread calls `tell` every so many seconds, whether or not anything moves."""
    under_way, stop = [_Counted("", 0, time.monotonic(), time.monotonic())], threading.Event()

    @contextmanager
    def count(what: str, total: int) -> Iterator[Callable[[], None]]:
        now = time.monotonic()
        one = _Counted(what, total, now, now)

        def advance() -> None:
            one.done, one.last = one.done + 1, time.monotonic()

        under_way.append(one)
        try:
            yield advance
        finally:
            under_way.remove(one)
            under_way[-1].last = time.monotonic()

    def look() -> None:
        while not stop.wait(every):
            one, now = under_way[-1], time.monotonic()
            rate = one.done / max(now - one.start, 1e-9) if one.done else None
            left = max(0, one.total - one.done) / rate if rate else None
            tell(Standing(one.what, one.done, one.total, left, rate, now - one.last))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        with counted_by(count):
            yield
    finally:
        stop.set()
        thread.join()


def duration(seconds: float) -> str:
    """In words, rounded for a human: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
