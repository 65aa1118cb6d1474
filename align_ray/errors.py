"""Errors a user can fix. Each message is one sentence that names the file or field and the remedy."""

import errno
import re


class UserError(Exception):
    """Bad input: shown without a traceback; the command line exits with 2."""


class ConfigError(UserError):
    """The configuration is wrong or contradicts itself."""


class CorpusError(UserError):
    """A corpus cannot be read or is too small."""


class StoreError(UserError):
    """The output folder cannot be written (full, read-only), is in use by another run, or holds a damaged file."""


class ProbeError(UserError):
    """The probe or its tokenizer cannot be loaded."""


class ClusterError(UserError):
    """Ray cannot be started, or does not answer where it should be."""


class CapacityError(UserError):
    """The cluster cannot hold what the configuration asks for."""


class CapReached(Exception):
    """The run has cost what it may (`cost.max_cost`); what is finished is stored. The command line exits with 3."""


NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def first_line(error: BaseException) -> str:
    """Of a library's message, for a sentence: at most 200 characters; the class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def named(error: UserError) -> str:
    """ "CorpusError: sentence", the form in which workers return a user's mistake."""
    return f"{type(error).__name__}: {error}"


def mistake(named: str) -> UserError:
    """The error that "CorpusError: sentence" stands for (see `named`)."""
    kind, _, sentence = named.partition(": ")
    known: list[type[UserError]] = [UserError, *UserError.__subclasses__()]
    return {error.__name__: error for error in known}[kind](sentence)


OWN = re.compile(r"^align_ray\.errors\.(\w+Error: .+)$", re.MULTILINE)
"""A line of a traceback that names a user's mistake."""


def mistake_behind(error: BaseException | None) -> UserError | None:
    """The user's mistake that an error came of, through the wrappers of Ray and MLflow; None where there is none."""
    seen = 0
    while error is not None and seen < 20:
        # Ray gives its wrapper the type of what it wraps
        if isinstance(error, UserError) and not hasattr(error, "cause"):
            return error
        text = str(error)
        if named := OWN.search(text):  # of an error in a function of Ray Data only the worker's traceback arrives
            return mistake(named[1])
        full = isinstance(error, OSError) and error.errno in NO_ROOM
        if full or "disk is full" in text or "attempt to write a readonly database" in text:  # SQLite's words
            return StoreError(
                f"a disk is full or read-only ({text.strip().splitlines()[-1]}); free some space and run it again: "
                "what was "
                "finished is kept."
            )
        error, seen = getattr(error, "cause", None) or error.__cause__ or error.__context__, seen + 1
    return None
