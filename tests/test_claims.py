"""Two runs on one output without a lock, as a bucket is: what each spent is kept, and one of another configuration is
refused while the first is at work."""

import json
import os

import pytest

from align_ray import claims, spending
from align_ray.claims import STALE, claimed, held
from align_ray.config import Config, digest
from align_ray.errors import StoreError
from align_ray.spending import charge, costs
from align_ray.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "study"))


def test_another_configuration_is_refused_while_a_run_is_at_work_and_not_after_it(store):
    with claimed(store, "one", run="first"):
        with pytest.raises(StoreError, match=r"in use by process \d+ on .*, with another configuration; wait for it"):
            with claimed(store, "two", run="second"):
                pass
        assert store.names("running") == {"first.json"}, "who is refused leaves no marker behind"
        with claimed(store, "one", run="second"):
            assert store.names("running") == {"first.json", "second.json"}
    assert not store.names("running")
    with claimed(store, "two", run="second"):
        pass


def test_of_two_that_come_at_once_not_both_go_on(store, monkeypatch):
    """The second writes its marker between the first one's marker and its look: each sees the other."""
    look = claims._refuse_beside_another

    def late(*arguments):
        monkeypatch.setattr(claims, "_refuse_beside_another", look)
        with pytest.raises(StoreError), claimed(store, "two", run="second"):
            pass
        look(*arguments)

    monkeypatch.setattr(claims, "_refuse_beside_another", late)
    with claimed(store, "one", run="first"):
        assert store.names("running") == {"first.json"}


def test_the_marker_of_a_killed_run_is_in_the_way_until_it_is_stale(store):
    marker = store.local_path("running/dead.json")
    store.write_json("running/dead.json", {"configuration": "one", "process": "process 1 on there"})
    with pytest.raises(StoreError, match=r"process 1 on there, .* If it was killed, try again in (90|89) s"):
        with claimed(store, "two"):
            pass
    with claimed(store, "one"):  # the same command again goes on at once
        pass
    old = marker.stat().st_mtime - STALE - 1
    os.utime(marker, (old, old))
    with claimed(store, "two"):
        assert not marker.exists()


def test_a_run_at_work_writes_its_marker_again(store, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.02)
    with claimed(store, "one", run="first"):
        marker = store.local_path("running/first.json")
        os.utime(marker, (0, 0))
        for _ in range(500):
            if marker.stat().st_mtime:
                break
            claims.threading.Event().wait(0.01)
        assert marker.stat().st_mtime > 0


def spent(store, work):
    return costs(store)[work]["spent"]


def test_what_two_processes_spend_adds_up_whoever_writes_last(store, monkeypatch):
    charge(store, "embed", {"seconds": 1.0, "rate": "a"}, 10.0)
    monkeypatch.setattr(spending, "RUN", "other")
    charge(store, "embed", {"seconds": 2.0, "rate": "b"}, 5.0)
    charge(store, "search", {"seconds": 3.0}, 1.0)
    charge(store, "embed", {"seconds": 4.0, "rate": "c"}, 5.0)
    store.write_json("cost.json", {})  # what a slow writer of an older view would leave
    assert costs(store) == {
        "embed": {"seconds": 4.0, "rate": "c", "spent": 20.0},
        "search": {"seconds": 3.0, "spent": 1.0},
    }
    charge(store, "search", {"seconds": 3.0}, 1.0)
    assert store.read_json("cost.json") == costs(store) and spent(store, "search") == 2.0


def test_what_an_older_version_has_spent_still_counts(store):
    store.write_json("cost.json", {"embed": {"seconds": 7.0, "spent": 7.0}})
    assert spent(store, "embed") == 7.0
    charge(store, "embed", {"seconds": 1.0}, 1.0)
    charge(store, "embed", {"seconds": 1.0}, 1.0)
    assert spent(store, "embed") == 9.0 == store.read_json("cost.json")["embed"]["spent"]


def plain(output):
    return {
        "output": output,
        "tracking": {"uri": "http://127.0.0.1:1"},
        "targets": [{"name": "target", "source": "t.jsonl"}],
        "candidates": [{"name": name, "source": f"{name}.jsonl"} for name in "ab"],
    }


@pytest.mark.slow
def test_two_configurations_on_one_bucket_do_not_replace_each_others_files(bucket, monkeypatch):
    """On an S3 server: the second configuration is refused, and config.yaml stays the first one's."""
    known, files = bucket
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    one = Config.model_validate(plain("s3://bucket/two-runs"))
    other = one.model_copy(update={"seed": 1})
    store = Store(one.output)
    with claimed(store, digest(one.model_dump(mode="json")), run="elsewhere"):
        store.write_bytes("config.yaml", one.to_yaml().encode())
        with pytest.raises(StoreError, match="s3://bucket/two-runs is in use by"):
            with held(store, other):
                store.write_bytes("config.yaml", other.to_yaml().encode())
        with held(store, one), held(store, one):
            assert len(store.names("running")) == 2
            charge(store, "embed", {"seconds": 1.0}, 1.0)
    with files.open_input_stream("bucket/two-runs/config.yaml") as file:
        assert file.read() == one.to_yaml().encode()
    with files.open_input_stream("bucket/two-runs/cost.json") as file:
        assert json.loads(file.read())["embed"]["spent"] == 1.0
    with held(store, other):
        pass
