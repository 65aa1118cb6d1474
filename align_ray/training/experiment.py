"""Ray Tune's experiments: gone on with where they can be, after Ray's own state is made sound, else begun.

Ray Tune and Ray Train do not write it atomically: a process that is killed while it writes leaves an empty or cut file,
at which every later run would fail. What is torn is removed here, and Ray goes on from the snapshot before, or anew.
Nothing finished is lost by that: trainings are in the store, and a seed fixes the trials that cost nothing. A file that
cannot be read is not torn: a store that does not answer once is an error, and nothing is removed.
"""

import json
import pickletools
import posixpath
from collections import defaultdict
from typing import Any

from pyarrow import fs as pafs

from align_ray.errors import StoreError
from align_ray.store import file_system

SEARCHERS = ({"basic-variant-state"}, {"search_gen_state", "searcher-state"})
"""Kinds of file in which Tune keeps what it tries next: of a grid, or of a searcher such as Optuna."""


LAYOUT = 3
"""Layout of this package: Tune's pickles name classes by their module, so that an experiment of another layout
cannot be read. Part of the experiments' names."""


def experiment(
    storage: str,
    name: str,
    trainable: Any,
    space: dict[str, Any],
    settings: Any,
    resources: dict[str, float],
    resume: bool = True,
    **run: Any,
) -> Any:
    """Ray Tune's Tuner of the experiment `name` in `storage`: the one that is there, where it can go on, else a new
    one.

    `name` holds the digest of what the experiment depends on. `settings`: a TuneConfig; `resources` of a trial's
    driver; `run`: further fields of the RunConfig. A trial that dies is tried again twice.
    """
    from ray import tune

    trainable = tune.with_resources(trainable, resources)  # restored trials as well: else each takes a CPU
    if resume and restorable(f"{storage}/{name}"):
        return tune.Tuner.restore(f"{storage}/{name}", trainable=trainable, resume_errored=True, param_space=space)
    failures = tune.FailureConfig(max_failures=2)
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=settings,
        run_config=tune.RunConfig(name=name, storage_path=storage, verbose=0, failure_config=failures, **run),
    )


def restorable(folder: str) -> bool:
    """Whether Ray Tune can go on in `folder` (a path or pyarrow URI), from the newest of its snapshots that is
    whole; what is torn is removed. Raises StoreError, and removes nothing more, where a file cannot be read."""
    fs, path = file_system(folder)
    found = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    snapshots: dict[str, dict[str, str]] = defaultdict(dict)  # time -> kind -> path
    for info in found:
        stem, _ = posixpath.splitext(info.base_name)
        kind, _, time = stem.partition("-20") if info.is_file else ("", "", "")
        if time:
            snapshots[time][kind] = info.path
    tuner = next((info.path for info in found if info.base_name == "tuner.pkl"), None)
    if tuner and _sound(fs, tuner):
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
    """Remove a JSON file (a path or pyarrow URI) that is not whole, if it is there. Raises StoreError where it
    cannot be read."""
    fs, path = file_system(file)
    if fs.get_file_info(path).is_file and not _sound(fs, path):
        fs.delete_file(path)


def _sound(fs: pafs.FileSystem, path: str) -> bool:
    """Whether a file is a whole JSON text or a whole pickle; a pickle is read through, never loaded."""
    try:
        with fs.open_input_stream(path) as stream:
            data = stream.read()
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read ({str(error).partition(chr(10))[0]}); run it again when the store answers: "
            "nothing was removed."
        ) from None
    try:
        if data[:1] in b"{[":
            json.loads(data)
        else:
            for _ in pickletools.genops(data):
                pass
    except (ValueError, LookupError):
        return False
    return True
