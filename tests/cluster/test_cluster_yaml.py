"""The cluster files are valid for the installed Ray, want the token everywhere, and start from one image, which is
built from the lock."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
FILES = ("cluster.yaml", "deploy/gcp.yaml")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("file", FILES)
def test_the_file_passes_rays_own_schema(file):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load((ROOT / file).read_text())))


@pytest.mark.parametrize("file", FILES)
def test_ray_adds_no_installation_of_its_own(file):
    from ray.autoscaler._private.util import prepare_config

    config = prepare_config(yaml.safe_load((ROOT / file).read_text()))
    assert [config[f"{which}setup_commands"] for which in ("", "head_", "worker_")] == [[], [], []]


@pytest.mark.parametrize("file", FILES)
def test_workers_are_spot_and_start_from_zero_and_every_node_wants_the_token(file):
    text = (ROOT / file).read_text()
    config = yaml.safe_load(text)
    worker = config["available_node_types"]["gpu"]
    assert worker["min_workers"] == 0 and "spot" in yaml.safe_dump(worker["node_config"]).lower()
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert any("ray start" in c and "RAY_AUTH_MODE=token" in c for c in commands)
    assert "dashboard-host=0.0.0.0" not in text


IMAGE = f"YOUR-REGISTRY/align-ray:{PROJECT['version']}"


@pytest.mark.parametrize("file", [*FILES, "deploy/rayjob.yaml", "deploy/skypilot.yaml"])
def test_every_node_starts_from_the_image_and_installs_nothing(file):
    text = (ROOT / file).read_text()
    images = re.findall(r"image(?:_id)?: (?:docker:)?(YOUR-REGISTRY\S+)", text)
    assert images and set(images) == {IMAGE}
    assert "pip install" not in text


def locked() -> dict[str, list[tuple[SpecifierSet, str, Marker | None]]]:
    """(version, line, marker) of every line of the lock, by package."""
    found: dict[str, list] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            one = Requirement(line)
            found.setdefault(canonicalize_name(one.name), []).append((one.specifier, line, one.marker))
    return found


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_the_lock_holds_one_version_in_range_of_every_dependency(python):
    wanted = [
        *PROJECT["dependencies"],
        *(d for extra in ("cluster", "test", "dev") for d in PROJECT["optional-dependencies"][extra]),
    ]
    here, known = {"python_version": python, "python_full_version": f"{python}.0"}, locked()
    for requirement in map(Requirement, wanted):
        if requirement.name == "torch":
            continue
        lines = [
            version
            for version, _, marker in known[canonicalize_name(requirement.name)]
            if not marker or marker.evaluate(here)
        ]
        assert len(lines) == 1, requirement
        assert requirement.specifier.contains(str(lines[0]).removeprefix("==")), requirement


def test_the_lock_leaves_torch_to_the_user_and_names_no_host():
    text = (ROOT / "requirements.lock").read_text()
    names = locked().keys()
    assert "torch" not in names and not any(n.startswith(("nvidia-", "triton", "cuda-")) for n in names)
    pins = [line for line in text.splitlines() if not line.startswith("#")]
    assert not [line for line in pins if "+" in line or "/" in line or line.startswith("-")]


def test_make_and_the_image_install_from_the_lock():
    installs = re.findall(r"pip install .*", (ROOT / "Makefile").read_text())
    assert [line for line in installs if "-e" in line] and all(
        "-c requirements.lock" in line for line in installs if "-e" in line
    )
    image = (ROOT / "deploy/Dockerfile").read_text()
    assert re.search(r"^RUN pip install .*-c requirements.lock '/app\[cluster\]'$", image, re.MULTILINE)
    torch = re.search(r"^TORCH \?= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert f'ARG TORCH="{torch.group(1)}"' in image
    copied = [
        line[1:] for line in (ROOT / "deploy/Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    assert all((ROOT / name).exists() for name in copied)
    needed = {"align_ray", "jobs", "pyproject.toml", "requirements.lock", PROJECT["readme"], *PROJECT["license-files"]}
    assert needed <= {*copied}


def test_the_image_and_the_job_have_the_ray_of_the_lock():
    ((version, _, _),) = locked()["ray"]
    number = str(version).removeprefix("==")
    assert f"FROM rayproject/ray:{number}-py311-" in (ROOT / "deploy/Dockerfile").read_text()
    assert yaml.safe_load((ROOT / "deploy/rayjob.yaml").read_text())["spec"]["rayClusterSpec"]["rayVersion"] == number


def test_the_kuberay_job_scales_from_zero_and_drives_from_the_head():
    job = yaml.safe_load((ROOT / "deploy/rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert cluster["enableInTreeAutoscaling"] and workers["minReplicas"] == 0 < workers["maxReplicas"]
    head = cluster["headGroupSpec"]["rayStartParams"]
    assert head["num-cpus"] == "0" and "driver" in head["resources"]
    assert all(isinstance(v, str) for v in head.values()), "KubeRay takes strings alone"
    script = job["spec"]["entrypoint"].split()[1].removeprefix("/app/")
    assert (ROOT / script).exists()


SCRIPTS = {"slurm": (ROOT / "deploy/slurm.sbatch").read_text(), "skypilot": (ROOT / "deploy/skypilot.yaml").read_text()}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_parses_wants_a_token_and_submits_a_job_that_is_there(name, tmp_path):
    text = SCRIPTS[name]
    script = tmp_path / "script"
    script.write_text(text if name == "slurm" else yaml.safe_load(text)["run"])
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert "RAY_AUTH_MODE=token" in text and "0.0.0.0" not in text
    submitted = re.search(r"ray job submit .*--working-dir \. --(?: \\\n *)? python (\S+) --config", text)
    assert submitted and (ROOT / submitted.group(1)).exists()
    assert "ray stop --force" not in text, "that would end SkyPilot's own Ray, and other jobs' on a shared node"


def test_the_slurm_job_starts_a_head_then_workers_then_the_study(tmp_path):
    """With stand-ins for Slurm's and Ray's commands that write down how they were called."""
    log = tmp_path / "log"
    stand_ins = {
        "srun": 'echo "srun $*" >> $LOG\nwhile [[ $1 == -* ]]; do if [[ $1 == -w ]]; then shift; fi; shift; done\nexec "$@"',
        "scontrol": "printf 'n1\\nn2\\nn3\\n'",
        "hostname": "echo 10.0.0.1 10.0.0.2",
        "ray": 'if [[ $1 == job ]]; then exit 3; fi; [[ -n $RAY_AUTH_TOKEN ]] || exit 9',
    }  # fmt: skip
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    known = {
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "n[1-3]",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_ON_NODE": "4",
    }
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", ROOT / "deploy/slurm.sbatch", "study.yaml", "--set", "seed=1"],
        env={**known, "PATH": path, "ALIGN_RAY_BIN": str(tmp_path), "LOG": str(log)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 3, "the study's exit status is the job's: " + done.stderr
    called = log.read_text()
    assert re.search(r"-w n1 ray start --head .*--node-ip-address=10\.0\.0\.1 --port=20007 ", called)
    assert re.search(r"--nodes=2 .*--exclude=n1 ray start --block --address=10\.0\.0\.1:20007 ", called)
    # the workers' step runs beside the rest, so that its line may come last
    assert any(line.endswith("python jobs/run.py --config study.yaml --set seed=1") for line in called.splitlines())
