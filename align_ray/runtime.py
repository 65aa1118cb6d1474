"""Connect to Ray, keep it quiet, and check that the cluster can hold the work before it starts."""

import dataclasses
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from align_ray.config import Cluster
from align_ray.errors import CapacityError, ClusterError, first_line

WORKER_ENVIRONMENT = {
    # One CPU a worker, so one thread; otherwise every worker would start one per core.
    "OMP_NUM_THREADS": "1",
    # glibc gives every large temporary back to the kernel and faults it in again: 20 to 30 % of a CPU pass measured.
    # A thread's own arena could not hold one, and Ray Train trains in a thread: so all have one arena.
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_ARENA_MAX": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
DRIVER_ENVIRONMENT = {
    # The controller looks for reports at this interval (default 2 s, which dominates short runs).
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's tables and banners; with verbose=0 the old output is silent
    # Tune and Train start a few idle actors per run; without this the raylet warns of each.
    "RAY_worker_maximum_startup_concurrency": "8",
    # Every actor pool logs a harmless error about its constructor arguments (ray#53727). Set "info" to look into Ray
    # itself.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


def connect(cluster: Cluster, say: Callable[[str], None] = lambda line: None) -> None:
    """Use the Ray that is there (this process', `cluster.address` or RAY_ADDRESS), else start one on this machine.

    An existing connection is left as it is and is never shut down.
    """
    import ray
    from ray.data import DataContext

    for name, value in DRIVER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not ray.is_initialized():
        address = cluster.address or os.environ.get("RAY_ADDRESS")
        say(f"connecting to Ray at {address}" if address else "starting Ray on this machine")
        given = "field 'cluster.address'" if cluster.address else "RAY_ADDRESS"
        with _one_sentence(given if address else None), _without_ray_log_level_line():
            if address:
                environment = _workers_environment(_reached(address, given))
                ray.init(address, runtime_env=environment, logging_level=logging.ERROR, log_to_driver=False)
            else:
                _start_local()
    for name in ("ray.data", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.execution_no_progress_timeout_s = 600  # a hang ends with an error, not with silence
    context.max_errored_blocks = 0  # data are never dropped silently


def _workers_environment(address: str | None) -> dict[str, dict[str, str]]:
    """The runtime environment of a connection. Ray Train's workers ask for the state of "the" local Ray, and fail where
    there are two on a machine (a trial that was stopped then keeps its resources for ever), so they are told which."""
    return {"env_vars": WORKER_ENVIRONMENT | ({"RAY_ADDRESS": address} if address else {})}


def _reached(address: str, given: str) -> str | None:
    """The host and port of a cluster that was named so or as `auto`, once it answers: ray.init would wait for minutes.
    `given`: where the address is from, named in its place: it may hold a secret. Raises ClusterError."""
    from ray._private.services import canonicalize_bootstrap_address  # private, but what ray.init resolves by

    if address == "local":
        return None
    scheme, there, _ = address.partition("://")
    if there and scheme == "ray":
        raise ClusterError(
            f"{given} names Ray's client ({scheme}://), through which Ray Data and Ray Train do not run; submit the "
            "work with ray job submit, or give HOST:PORT of the cluster's head (port 6379)."
        )
    if there:
        raise ClusterError(
            f"{given} names a web page ({scheme}://), of a dashboard perhaps, and no Ray cluster; give HOST:PORT of "
            "its head (port 6379), or submit the work there with ray job submit --address."
        )
    try:
        found = canonicalize_bootstrap_address(address)
    except (ValueError, OSError) as error:
        raise ClusterError(f"no Ray is found where {given} says ({first_line(error).rstrip('.')}); {REMEDY}") from None
    if found is None:
        raise ClusterError(f"no Ray runs on this machine that {given} could mean; {REMEDY}")
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ClusterError(f"no Ray answers where {given} says ({first_line(error).rstrip('.')}); {REMEDY}") from None
    return found


REMEDY = "start the cluster, or remove 'cluster.address' and RAY_ADDRESS to use this machine."
ANSWER_SECONDS = 10.0
"""How long a cluster may take to answer at all."""


@contextmanager
def _one_sentence(given: str | None) -> Iterator[None]:
    """Ray's reasons not to start or to connect, as one sentence with what to do."""
    try:
        yield
    except ClusterError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        reason = first_line(error).rstrip(".")
        if "AF_UNIX" in str(error) or "socket path" in str(error).lower():
            remedy = "the folder for temporary files has too long a name for Ray's sockets; set TMPDIR=/tmp."
        elif "version" in reason.lower() and "mismatch" in reason.lower():
            remedy = "install the cluster's versions of Ray and Python here."
        elif isinstance(error, OSError):
            remedy = "check that HOME and the folder for temporary files can be written to and are not full."
        else:
            remedy = "align-ray doctor says more."
        what = f"cannot use the Ray that {given} names" if given else "cannot start Ray on this machine"
        raise ClusterError(f"{what} ({reason}): {remedy}") from error


@contextmanager
def _without_ray_log_level_line() -> Iterator[None]:
    """Ray's C++ part says straight to file descriptor 2 that the log level comes from the environment: what is written
    there meanwhile is held back, and given out without that line."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            if rest := b"".join(line for line in held if b"Set ray log level from environment" not in line):
                os.write(2, rest)


LEAST_ROOM = 20_000_000
"""Bytes: with less for its logs Ray's processes end without a word."""


LOGICAL = "logical_cpu"
"""A resource of a local Ray: CPUs that it counts and the machine does not have."""


def _start_local() -> None:
    """A Ray of this process, beside others that may run on this machine; its address must be known before the start
    (see `_workers_environment`)."""
    import ray

    # private, but what ray.init counts by: os.cpu_count knows no container's quota
    from ray._private.utils import get_num_cpus
    from ray.util import get_node_ip_address

    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if os.path.isdir(folder) and (left := shutil.disk_usage(folder).free) < LEAST_ROOM:
        raise ClusterError(
            f"cannot start Ray on this machine: the folder for temporary files, {folder}, has {left / 1e6:.0f} MB "
            "left; make room, or set TMPDIR (or RAY_TMPDIR) to another folder."
        )
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    os.environ["RAY_GCS_SERVER_PORT"] = port
    told = _workers_environment(f"{get_node_ip_address()}:{port}")
    try:
        # One logical CPU more than there are: Ray Data's reading tasks, which idle while actors work, must never
        # wait for a CPU that an actor holds (ray#44687). The dashboard stays on: without it Ray Train leaks
        # placement groups.
        ray.init(
            "local", num_cpus=max(1, int(get_num_cpus(override_docker_cpu_warning=True))) + 1, include_dashboard=True,
            resources={LOGICAL: 1.0}, dashboard_host="127.0.0.1", runtime_env=told, logging_level=logging.ERROR,
            log_to_driver=False,
        )  # fmt: skip
    finally:
        del os.environ["RAY_GCS_SERVER_PORT"]


@dataclasses.dataclass(frozen=True)
class Capacity:
    """What one worker reserves, how many the cluster holds now, and how many there may be once it has grown."""

    resources: dict[str, float]
    now: int
    most: int

    @property
    def use_gpu(self) -> bool:
        return self.resources["num_gpus"] > 0


def machines() -> str | None:
    """What the cluster is now, in words: "3 nodes, 48 CPUs, 8 GPUs (H100)"; None where it does not answer."""
    import ray

    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        total = ray.cluster_resources()
    except Exception:  # the cluster may be what failed
        return None
    kinds = sorted(name.partition(":")[2] for name in total if name.startswith("accelerator_type:"))
    cpus = int(total.get("CPU", 0) - total.get(LOGICAL, 0))
    gpus, of = int(total.get("GPU", 0)), f" ({', '.join(kinds)})" if kinds else ""
    parts = [(len(nodes), "node", ""), (cpus, "CPU", ""), (gpus, "GPU", of)]
    return ", ".join(f"{n} {what}{'s' if n > 1 else ''}{more}" for n, what, more in parts if n)


def waits_for(room: Capacity) -> str:
    """What work that does not move waits for, as far as the cluster tells; empty where nothing waits and the workers
    have the machine to themselves: a step may just be long."""
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status  # the demand of any cluster, with or without an autoscaler

    kind = "GPU" if room.use_gpu else "CPU"
    try:
        there, free = ray.cluster_resources().get(kind, 0), ray.available_resources().get(kind, 0)
        nodes = sum(node["Alive"] for node in ray.nodes())
        demand = get_cluster_status(ray.get_runtime_context().gcs_address).resource_demands
    except Exception as error:  # whatever it is, this is only said
        return f"the cluster does not say what it is waiting for ({type(error).__name__})"
    requests = [r for d in (*demand.ray_task_actor_demand, *demand.placement_group_demand) for r in d.bundles_by_count]
    wanted = sum(request.bundle.get(kind, 0) * request.count for request in requests)
    if wanted:
        asks = "Ray asks the autoscaler" if room.most > room.now else "other work holds them"
        has = f"has {free:.0f} of {there:.0f} free" if free >= 1 else "has none free" if there else "has none"
        return f"waiting for {wanted:.0f} {kind}{'s' * (wanted > 1)}, the cluster {has}; {asks if there else ASKS}"
    return _starved() if nodes == 1 else ""


ASKS = "Ray asks the autoscaler, if there is one"


def _starved() -> str:
    """Where this machine has more to do than CPUs: Ray's workers stand behind all else."""
    load, cpus = os.getloadavg()[0], os.cpu_count() or 1
    if load <= 1.5 * cpus or niceness() <= 0:
        return ""
    return f"the workers are at work behind other programs (load {load:.0f} on {cpus} CPUs): {NICER}"


NICER = (
    "Ray's workers are niced and starve beside other programs; RAY_worker_niceness=0 in the environment gives "
    "them an equal share"
)


def niceness() -> int:
    """Of the workers of a Ray that is started here: RAY_worker_niceness, by default 15."""
    try:
        return int(os.environ.get("RAY_worker_niceness", "15"))
    except ValueError:
        return 15


def as_they_end(references: list[Any]) -> Iterator[Any]:
    """What Ray tasks return, one after the other as they end. Raises what one that failed raised."""
    import ray

    left = references
    while left:
        done, left = ray.wait(left)
        yield ray.get(done[0])


def capacity(cluster: Cluster) -> Capacity:
    """Workers the cluster can hold: one per GPU, else one per CPU but one.

    Raises CapacityError where it is too small: an actor pool that owns every CPU waits for ever (ray#44687).
    """
    import ray

    total = ray.cluster_resources()
    use_gpu = cluster.use_gpu if cluster.use_gpu is not None else total.get("GPU", 0) >= 1
    now = int(total.get("GPU", 0)) if use_gpu else int(total.get("CPU", 0)) - 1
    most = cluster.max_actors or now
    if most < 1:
        need = "field 'cluster.use_gpu' asks for a GPU" if use_gpu else "a worker and a reader need 2 CPUs"
        raise CapacityError(
            f"the cluster has {total.get('CPU', 0):.0f} CPUs and {total.get('GPU', 0):.0f} GPUs, but {need}; start a "
            "larger "
            "one, or set 'cluster.max_actors' if it grows on demand."
        )
    return Capacity({"num_cpus": 1.0, "num_gpus": float(use_gpu)}, max(0, min(now, most)), most)
