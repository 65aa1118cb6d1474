"""Check the environment: a row for each thing that a study needs, and what to do where it is missing.

What may hang, crash or start processes (torch, Ray, MLflow, the hub, the probe, file systems) is looked at in a process
of its own under a time limit; Ray's processes end with theirs. Rows never hold the value of an environment variable, so
that of an unforeseen exception they give the class alone: a message may quote an address with a password in it.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from align_ray.config import Config
from align_ray.config_corpora import Corpus
from align_ray.errors import CapacityError, ClusterError, UserError
from align_ray.runtime import NICER, niceness

PACKAGE = "align-ray"
LEAST_DISK = 5e9
"""Bytes; the embeddings of a study are megabytes to a few gigabytes, MLflow keeps a second copy of the report."""
LEAST_OBJECT_STORE = 1e9
SAME = ("align-ray", "ray", "torch", "transformers")
"""Packages whose versions should be the driver's on every node: workers get its objects, and numbers depend on them."""
NUMBERS_ALONE = {"torch", "transformers"}
"""Packages of which another version is a warning: a study runs, but its numbers may not be those of one environment."""
MISMATCH = re.compile(r"Version mismatch:.*?Ray: (\S+)\s+Python: (\S+).*?Ray: (\S+)\s+Python: (\S+)", re.DOTALL)
"""Ray's words where it refuses to connect: the cluster's versions, then the driver's."""


@dataclasses.dataclass(frozen=True)
class Check:
    """What was looked at, how it stands and what to do."""

    check: str
    status: Literal["ok", "warning", "failed"]
    result: str
    remedy: str = ""


def diagnose(config: Config | None = None, model: bool = False) -> list[Check]:
    """All checks, of the environment alone or for one study; with `model` also one training step of the model that is
    to be fine-tuned, on this machine. Nothing that it starts or writes stays behind."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        left_out = [*(["configuration"] if config is None else []), *([] if model else ["training step"])]
        names = [n for n in APART if n not in left_out]
        apart = list(pool.map(lambda name: _apart(name, config), names))
    return [_python(), _priority(), *_packages(), *_extras(), *(row for rows in apart for row in rows)]


def _apart(name: str, config: Config | None) -> list[Check]:
    """Run one check in a process of its own; it answers with a line of JSON."""
    _, seconds, see = APART[name]
    given = json.dumps(config.model_dump(mode="json") if config else None)
    # the same modules as here, none of the current folder
    command = [sys.executable, "-P", "-m", "align_ray.doctor", name]
    with tempfile.TemporaryDirectory(prefix="ar") as folder:  # short: Ray's socket paths must be
        environment = {**os.environ, "RAY_TMPDIR": folder, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            printed, _ = process.communicate(given, seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return [Check(name, "failed", f"no answer within {seconds} s", see)]
    if process.returncode:
        return [Check(name, "failed", f"the check ended with status {process.returncode}", see)]
    return [Check(**row) for row in json.loads(printed.splitlines()[-1])]


# --- in this process --------------------------------------------------------------------------------------------------


def _python() -> Check:
    version, wanted = platform.python_version(), _metadata_python()
    if wanted and not _within(version, wanted):
        return Check("Python", "failed", version, f"install Python {wanted}")
    return Check("Python", "ok", f"{version}, {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs")


def _priority() -> Check:
    """How the workers of a Ray that is started here stand beside other programs."""
    nice, load, cpus = niceness(), os.getloadavg()[0], os.cpu_count() or 1
    result = f"Ray's workers run at nice {nice} here; load {load:.1f} on {cpus} CPUs"
    if nice > 0 and load > cpus:
        return Check("priority", "warning", result, NICER)
    return Check("priority", "ok", result)


def _metadata_python() -> str:
    try:
        return importlib.metadata.metadata(PACKAGE)["Requires-Python"] or ""
    except importlib.metadata.PackageNotFoundError:
        return ""


def _within(version: str, wanted: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(wanted).contains(version, prereleases=True)


def _requirements(extra: str) -> list[tuple[str, str, str | None]]:
    """(name, wanted, installed version or None) of the dependencies, or of those that an extra adds."""
    from packaging.requirements import Requirement

    found = []
    for requirement in map(Requirement, importlib.metadata.requires(PACKAGE) or []):
        wanted = [requirement.marker is None or requirement.marker.evaluate({"extra": name}) for name in ("", extra)]
        if wanted != [not extra, True]:
            continue
        try:
            installed = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            installed = None
        found.append((requirement.name, str(requirement.specifier), installed))
    return found


def _packages() -> list[Check]:
    try:
        found = _requirements("")
    except importlib.metadata.PackageNotFoundError:
        return [
            Check("packages", "warning", f"{PACKAGE} is not installed, versions unchecked", f"pip install {PACKAGE}")
        ]
    wrong = [(n, w, v) for n, w, v in found if v is None or not _within(v, w)]
    if not wrong:
        main = ", ".join(f"{n} {v}" for n, _, v in found if n in ("ray", "torch", "transformers", "mlflow"))
        return [Check("packages", "ok", f"{len(found)} in their ranges: {main}")]
    return [Check(n, "failed", v or "not installed", f"pip install '{n}{w}'") for n, w, v in wrong]


EXTRAS = {
    "smollm2": "the probe smollm2",
    "study": "sentence embeddings in align-ray study",
    "lm-eval": "tasks of kind lm_eval",
}
"""What is installed if wanted, and what for."""


def _extras() -> list[Check]:
    rows = []
    for extra, use in EXTRAS.items():
        try:
            absent = [n for n, w, v in _requirements(extra) if v is None or not _within(v, w)]
        except importlib.metadata.PackageNotFoundError:
            return []
        result = f"not installed (for {use})" if absent else "installed"
        rows.append(
            Check(f"extra {extra}", "ok", result, f"to use it: pip install '{PACKAGE}[{extra}]'" if absent else "")
        )
    return rows


# --- each in a process of its own -------------------------------------------------------------------------------------


def _configuration(config: Config) -> list[Check]:
    from align_ray.pipeline import open_study

    open_study(config, write=False)
    said = f"{len(config.read)} corpora can be read, the probe's context suffices"
    end = time.monotonic() + EXAMPLES_SECONDS
    rows = [_corpus(corpus, config.text_in_results) for corpus in config.read if time.monotonic() < end]
    return [Check("configuration", "ok", said), *rows]


EXAMPLES_SECONDS = 30
"""How long corpora are looked at for examples: one that is slow to answer must not cost the other rows."""


def _corpus(corpus: Corpus, with_text: bool) -> Check:
    """What it holds, what is read of its records, the first of them, and whether they look like something else."""
    from align_ray.corpora.contents import contents
    from align_ray.corpora.examples import examples, looks_like_more, marked, way

    lines, why = [way(corpus)], ""
    try:
        held = contents(corpus)
        lines.append(str(held))
        lines += [marked(parts) for parts in (examples(corpus, shown=120) if with_text else [])]
        why = looks_like_more(corpus)
    except UserError as error:  # that it can be read was checked before
        return Check(f"corpus {corpus.name}", "warning", lines[0], str(error))
    if mixed := held.mixed():
        return Check(f"corpus {corpus.name}", "warning", "\n".join(lines), mixed)
    if why:
        remedy = "where answers alone should count, write 'chat', or 'prompt' and 'completion' (docs/configuration.md)"
        return Check(f"corpus {corpus.name}", "warning", "\n".join([f"{lines[0]}, but {why}", *lines[1:]]), remedy)
    return Check(f"corpus {corpus.name}", "ok", "\n".join(lines))


def _output(config: Config | None) -> list[Check]:
    from align_ray.store import Store

    place = config.output if config else "runs"
    folder = Store(place).local_path()
    if folder is None:
        Store(place).check_writable()
        return [Check("output", "ok", f"{place} is writable")]
    there = next(p for p in (folder, *folder.parents) if p.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        return [
            Check("output", "failed", f"{place}: {error.strerror}", "choose a writable folder in the field 'output'")
        ]
    free = shutil.disk_usage(there).free
    result = f"{place} is writable, {free / 1e9:.0f} GB free"
    if free < LEAST_DISK:
        return [Check("output", "warning", result, "make room, or choose another place in the field 'output'")]
    return [Check("output", "ok", result)]


def _torch(config: Config | None) -> list[Check]:
    import torch

    from align_ray.fisher.probe import has_bfloat16

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    gpu = torch.cuda.is_available()
    fast = "fast" if has_bfloat16(torch.device("cuda" if gpu else "cpu")) else "not fast here, float32 is used"
    rows = [Check("torch", "ok", f"{torch.__version__}, {build} build; bfloat16: {fast}")]
    driver = shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists()
    elsewhere = config is not None and bool(config.cluster.address or os.environ.get("RAY_ADDRESS"))
    wanted = config is not None and config.cluster.use_gpu and not elsewhere
    if gpu:
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        try:
            torch.ones(8, 8, device="cuda").matmul(torch.ones(8, 8, device="cuda")).sum().item()
        except RuntimeError:
            remedy = "install the torch build for this GPU and driver"
            return [*rows, Check("GPU", "failed", f"{names[0]} does not multiply with this torch", remedy)]
        return [*rows, Check("GPU", "ok", f"{len(names)} x {names[0]}, {memory:.0f} GiB")]
    if driver:
        remedy = (
            "install a CUDA build of torch"
            if torch.version.cuda is None
            else f"update the driver for {build}, or use torch for an older one"
        )
        return [
            *rows,
            Check("GPU", "failed" if wanted else "warning", "a driver is here, but torch cannot use it", remedy),
        ]
    if wanted:
        return [
            *rows,
            Check(
                "GPU",
                "failed",
                "none here, but the field 'cluster.use_gpu' asks for one",
                "set it to false or name a cluster",
            ),
        ]
    return [*rows, Check("GPU", "ok", "none here; the CPU is used")]


def _ray(config: Config | None) -> list[Check]:
    import ray

    from align_ray.config import Cluster
    from align_ray.runtime import capacity, connect

    cluster = config.cluster if config else Cluster()
    given = "field 'cluster.address'" if cluster.address else "RAY_ADDRESS" if os.environ.get("RAY_ADDRESS") else None
    try:
        connect(cluster)
    except ClusterError as error:
        if refused := MISMATCH.search(str(error.__cause__)):
            ray_there, python_there, ray_here, python_here = refused.groups()
            here, there = {"ray": ray_here, "Python": python_here}, {"ray": ray_there, "Python": python_there}
            return [compared(here, [there])]
        raise
    total, nodes = ray.cluster_resources(), [n for n in ray.nodes() if n["Alive"]]
    here, workers = _versions([n["NodeID"] for n in nodes])
    size = (
        f"{len(nodes)} node{'s' * (len(nodes) > 1)}, "
        f"{total.get('CPU', 0):.0f} CPU slots, {total.get('GPU', 0):.0f} GPUs"
    )
    rows = [Check("Ray", "ok", f"{ray.__version__}, {f'reached by {given}' if given else 'starts here'}: {size}")]
    rows.append(compared(here, workers))
    memory, shared = total.get("object_store_memory", 0.0), Path("/dev/shm")
    small = memory < LEAST_OBJECT_STORE or not given and shared.exists() and shutil.disk_usage(shared).free < memory
    remedy = "enlarge the shared memory, for example docker run --shm-size=8g" if small else ""
    rows.append(Check("object store", "warning" if small else "ok", f"{memory / 1e9:.1f} GB", remedy))
    if config is None:
        return rows
    try:
        able = capacity(cluster)
        result = f"{able.now} workers on {'GPUs' if able.use_gpu else 'CPUs'} now, at most {able.most}"
        rows.append(Check("workers", "ok", result))
    except CapacityError as error:
        rows.append(Check("workers", "failed", str(error)))
    if len(nodes) > 1 and not total.get("driver"):
        remedy = "start the on-demand head with --resources='{\"driver\": 1000}'"
        rows.append(
            Check("driver", "warning", "no node offers the resource 'driver': a spot node may drive the runs", remedy)
        )
    return rows


def _versions(nodes: list[str]) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The versions of the packages in `SAME` that are installed here, and those on every node, by a task on each."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    names = SAME

    def installed() -> dict[str, str]:
        import importlib
        import importlib.metadata

        found = {}
        for name in names:
            try:  # align-ray may come with the job's files and have no metadata
                if name == "align-ray":
                    found[name] = importlib.import_module("align_ray").__version__
                else:
                    found[name] = importlib.metadata.version(name)
            except ImportError:  # of a package that is not there, too
                pass
        return found

    task = ray.remote(num_cpus=0)(installed)
    places = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]  # soft: a node may have left by now
    return installed(), ray.get([task.options(scheduling_strategy=place).remote() for place in places], timeout=60)


def compared(here: dict[str, str], nodes: list[dict[str, str]]) -> Check:
    """Whether the nodes have the versions that are here, by package. Builds of one version, +cpu and +cu128, are
    one."""

    def version(of: dict[str, str], name: str) -> str:
        return of.get(name, "not installed").partition("+")[0]

    apart = {}
    for name in here:
        others = [version(node, name) for node in nodes if version(node, name) != version(here, name)]
        if others:
            where = f"{len(others)} of {len(nodes)} nodes" if len(nodes) > 1 else "the cluster"
            apart[name] = f"{name} is {version(here, name)} here, but {' and '.join(sorted(set(others)))} on {where}"
    if apart:
        remedy = "install the same versions here and on every node"
        status: Literal["warning", "failed"] = "warning" if apart.keys() <= NUMBERS_ALONE else "failed"
        return Check("versions", status, "; ".join(apart.values()), remedy)
    return Check("versions", "ok", f"as here on every node: {', '.join(f'{n} {version(here, n)}' for n in here)}")


def _mlflow(config: Config | None) -> list[Check]:
    os.environ.update(MLFLOW_HTTP_REQUEST_MAX_RETRIES="0", MLFLOW_HTTP_REQUEST_TIMEOUT="10")
    from mlflow import MlflowClient

    from align_ray.store import Store

    uri = config.tracking.uri if config else None
    file = Store(config.output).local_path("mlflow.db") if config else None
    with tempfile.TemporaryDirectory() as folder:
        known = f"sqlite:///{file if file and file.exists() else f'{folder}/mlflow.db'}"
        MlflowClient(uri or known).search_experiments(max_results=1)
    version = importlib.metadata.version("mlflow")
    return [
        Check("MLflow", "ok", f"{version}, {'the server of tracking.uri answers' if uri else 'a SQLite store opens'}")
    ]


def _hub(_: Config | None) -> list[Check]:
    import huggingface_hub
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return [Check("hub", "ok", "HF_HUB_OFFLINE is set: models and data sets from the cache alone")]
    try:
        status = huggingface_hub.get_session().head(ENDPOINT, timeout=5).status_code
        trouble = f"answers with status {status}" if status >= 400 else ""
    except Exception as error:  # whatever it is, most studies do not need the hub
        trouble = f"does not answer ({type(error).__name__})"
    if not trouble:
        return [Check("hub", "ok", "answers")]
    return [
        Check(
            "hub",
            "warning",
            trouble,
            "needed for probes and data sets from the hub alone; check the network or HF_ENDPOINT",
        )
    ]


def _probe(config: Config | None) -> list[Check]:
    import torch

    from align_ray.fisher.probe import load_model, load_tokenizer, locate_probe
    from align_ray.fisher.settings import ProbeName
    from align_ray.fisher.sound import check_model
    from align_ray.fisher.suited import check_probe

    probe = config.probe.plain() if config else ProbeName()
    located = locate_probe(probe)
    check_model(located)
    model = load_model(located)
    check_probe(model, located.name)
    ids = torch.tensor([load_tokenizer(located)("The sum of two even numbers is even.")["input_ids"]])
    with torch.no_grad():
        finite = bool(torch.isfinite(model(input_ids=ids).logits).all())
    size = f"{probe.model}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters"
    if finite:
        return [Check("probe", "ok", f"{size}, finite logits")]
    return [
        Check(
            "probe",
            "failed",
            f"{size}, its logits are not finite",
            "the weights are broken; choose another 'probe.model'",
        )
    ]


def _training_step(config: Config | None) -> list[Check]:
    """One step of the model as it would be trained, on random tokens: weights are loaded, gradients taken, AdamW's
    states made."""
    import numpy as np
    import torch

    from align_ray.config_file import load_config
    from align_ray.corpora.rows import Rows
    from align_ray.pipeline import open_study
    from align_ray.training.memory import check_memory, memory_here
    from align_ray.training.step import trainable_model, whole_step

    study = open_study(config or load_config(), write=False)
    tune, length = study.config.finetune, study.config.sampling.sequence_length
    gpu = study.config.cluster.use_gpu is not False and torch.cuda.is_available()
    needed, device = check_memory(study, gpu, memory_here(gpu)), torch.device("cuda" if gpu else "cpu")
    if tune.shard:
        each = f"{needed.total / 1e9:.2f} GB of each by formula"
        return [Check("training step", "ok", f"not tried: {tune.workers} workers share the model, {each}")]
    rows = -(-tune.batch_size // tune.workers)
    size = tune.micro_batch_size or rows
    ids = np.random.default_rng(0).integers(0, len(study.tokenizer), (rows, length))
    model = trainable_model({"located": study.model, **tune.model_dump()}, device).train()
    parts = [Rows.plain(ids[start : start + size].astype(np.int32)) for start in range(0, rows, size)]
    start = time.perf_counter()
    try:
        loss = whole_step(model, parts, device)()
    except torch.OutOfMemoryError:
        remedy = "set finetune.micro_batch_size: 1, checkpoint_layers: true or lora_rank: 16"
        return [Check("training step", "failed", f"out of memory; {needed.total / 1e9:.1f} GB by formula", remedy)]
    seconds = time.perf_counter() - start
    about = f"{rows} x {length} tokens on {device.type} in {seconds:.1f} s, {needed.total / 1e9:.2f} GB by formula"
    if not np.isfinite(loss):
        remedy = "the weights are broken, or finetune.dtype does not suit them; choose another model"
        return [Check("training step", "failed", f"{about}; its loss is not finite", remedy)]
    return [Check("training step", "ok", f"{about}; loss {loss:.2f} on random tokens")]


Look = Callable[[Any], list[Check]]
APART: dict[str, tuple[Look, int, str]] = {
    "configuration": (_configuration, 120, "align-ray embed says more; check that the sources answer"),
    "output": (_output, 60, "check the field 'output' and that its file system answers"),
    "torch": (_torch, 60, 'python -c "import torch" shows why; install torch again'),
    "Ray": (
        _ray,
        120,
        "ray status shows why; check the address and the cluster, or unset both for a Ray on this machine",
    ),
    "MLflow": (_mlflow, 60, "check the field 'tracking.uri' and its server"),
    "hub": (_hub, 30, "check the network"),
    "probe": (_probe, 180, "check the field 'probe.model' and the memory it needs"),
    "training step": (_training_step, 600, "check the field 'finetune.model' and the memory it needs"),
}
"""By name: the check, its time limit in seconds, and what to do where it does not come to an end."""


def _answer(name: str, given: str) -> str:
    """What a process of its own prints: the rows as a line of JSON."""
    look, _, see = APART[name]
    config = json.loads(given)
    try:
        rows = look(Config.model_validate(config) if config else None)
    except UserError as error:
        rows = [Check(name, "failed", str(error))]  # the sentence says what to do
    except Exception as error:
        rows = [Check(name, "failed", type(error).__name__, see)]
    return json.dumps([dataclasses.asdict(row) for row in rows])


if __name__ == "__main__":
    print(_answer(sys.argv[1], sys.stdin.read()))
