"""What Prometheus gets of a running study, and what the dashboard asks for."""

import json
import re
from pathlib import Path

import pytest

from align_ray import metrics

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana.json").read_text())


def asked() -> set[str]:
    """Names of metrics in the dashboard's queries."""
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return {name for query in queries for name in re.findall(r"\bray_\w+", query)}


def test_the_dashboard_shows_every_metric_under_the_name_that_ray_exports():
    assert asked() == {f"ray_{name}_total" for name in metrics.COUNTERS} | {f"ray_{name}" for name in metrics.GAUGES}


def test_the_dashboard_groups_by_tags_that_the_metrics_have():
    tags = {f"ray_{n}_total": t for n, (_, t) in metrics.COUNTERS.items()} | {
        f"ray_{n}": t for n, (_, t) in metrics.GAUGES.items()
    }
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            (name,) = re.findall(r"\bray_\w+", target["expr"])
            used = {t.strip() for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for t in group.split(",")}
            shown = {*re.findall(r"{{(\w+)}}", target["legendFormat"])} - {"WorkerId"}  # Ray's own
            assert used | shown <= {*tags[name]}, panel["title"]


@pytest.mark.slow
def test_every_metric_of_the_dashboard_occurs_in_a_scrape_of_a_running_study(job_run):
    assert job_run.done.returncode == 0, job_run.done.stdout + job_run.done.stderr
    assert asked() <= job_run.scraped
