"""cluster.yaml is valid for the installed Ray."""

from pathlib import Path

import yaml

TEXT = (Path(__file__).resolve().parents[1] / "cluster.yaml").read_text()


def test_cluster_yaml_passes_rays_own_schema():
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load(TEXT)))


def test_workers_are_spot_and_start_from_zero_and_every_node_wants_the_token():
    config = yaml.safe_load(TEXT)
    worker = config["available_node_types"]["gpu"]
    assert worker["min_workers"] == 0 and worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert any("ray start" in c and "RAY_AUTH_MODE=token" in c for c in commands)
    assert "dashboard-host=0.0.0.0" not in TEXT
