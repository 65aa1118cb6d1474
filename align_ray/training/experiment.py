"""Ray's own state of an experiment, made sound before it is read.

Ray Tune and Ray Train do not write it atomically: a process that is killed while it writes leaves an empty or cut file, at which
every later run would fail. What is torn is removed here, and Ray goes on from the snapshot before, or anew. Nothing finished is
lost by that: trainings are in the store, and a seed fixes the trials that cost nothing.
"""

import json
import pickletools
import posixpath
from collections import defaultdict

from pyarrow import fs as pafs

from align_ray.store import file_system

SEARCHERS = ({"basic-variant-state"}, {"search_gen_state", "searcher-state"})
"""Kinds of file in which Tune keeps what it tries next: of a grid, or of a searcher such as Optuna."""


def restorable(folder: str) -> bool:
    """Whether Ray Tune can go on in `folder` (a path or pyarrow URI), from the newest of its snapshots that is whole."""
    fs, path = file_system(folder)
    found = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    snapshots: dict[str, dict[str, str]] = defaultdict(dict)  # time -> kind -> path
    for info in found:
        stem, _ = posixpath.splitext(info.base_name)
        kind, _, time = stem.partition("-20") if info.is_file else ("", "", "")
        if time:
            snapshots[time][kind] = info.path
    tuner = posixpath.join(path, "tuner.pkl")
    if _sound(fs, tuner):
        for _, files in sorted(snapshots.items(), reverse=True):
            if "experiment_state" in files and any(kinds <= files.keys() for kinds in SEARCHERS):
                if all(_sound(fs, file) for file in files.values()):
                    return True
            for file in files.values():
                fs.delete_file(file)
    if found:
        fs.delete_dir(path)
    return False


def drop_torn(file: str) -> None:
    """Remove a JSON file (a path or pyarrow URI) that is not whole, if it is there."""
    fs, path = file_system(file)
    if fs.get_file_info(path).is_file and not _sound(fs, path):
        fs.delete_file(path)


def _sound(fs: pafs.FileSystem, path: str) -> bool:
    """Whether a file is a whole JSON text or a whole pickle; a pickle is read through, never loaded."""
    try:
        with fs.open_input_stream(path) as stream:
            data = stream.read()
        if data[:1] in b"{[":
            json.loads(data)
        else:
            for _ in pickletools.genops(data):
                pass
    except (OSError, ValueError, LookupError):
        return False
    return True
