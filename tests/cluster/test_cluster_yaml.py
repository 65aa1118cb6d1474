"""The cluster files are valid for the installed Ray, want the token everywhere, and install what the package needs."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = ("cluster.yaml", "deploy/gcp.yaml")


@pytest.mark.parametrize("file", FILES)
def test_the_file_passes_rays_own_schema(file):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load((ROOT / file).read_text())))


@pytest.mark.parametrize("file", FILES)
def test_workers_are_spot_and_start_from_zero_and_every_node_wants_the_token(file):
    text = (ROOT / file).read_text()
    config = yaml.safe_load(text)
    worker = config["available_node_types"]["gpu"]
    assert worker["min_workers"] == 0 and "spot" in yaml.safe_dump(worker["node_config"]).lower()
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert any("ray start" in c and "RAY_AUTH_MODE=token" in c for c in commands)
    assert "dashboard-host=0.0.0.0" not in text


@pytest.mark.parametrize("file", FILES)
def test_the_nodes_install_every_dependency(file):
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (command,) = [c for c in yaml.safe_load((ROOT / file).read_text())["setup_commands"] if "pip install" in c]
    for name in (re.match(r"[\w-]+", d).group() for d in wanted):
        assert re.search(rf"[ ']{name}[\[ '>=]", command + " "), name


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
