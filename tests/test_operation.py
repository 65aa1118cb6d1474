"""What a person who operates a long study is told, and what is written down of it."""

import json
import threading
import time

import pytest

from align_ray import events, observed, runtime
from align_ray.errors import CapReached, ConfigError
from align_ray.events import logged, told
from align_ray.observed import Place, line
from align_ray.progress import Standing, counted, duration, is_shown, shown_by, steps, watched
from align_ray.store import Store


def written(store):
    return [
        [json.loads(text) for text in store.read_bytes(f"events/{name}").decode().splitlines()]
        for name in sorted(store.names("events"))
    ]


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def test_every_run_of_a_stage_has_an_object_of_its_own_from_its_beginning_on(store):
    heard = []
    say = told(heard.append)
    say("before any stage")
    with logged(store, "embed", workers=2) as log:
        assert [e["event"] for e in written(store)[0]] == ["started"], "what a kill leaves"
        say("reading 3 corpora")
        log.add("spent", seconds=1.5)
    with logged(store, "embed"):
        pass
    first, second = written(store)
    assert [e["event"] for e in first] == ["started", "said", "spent", "finished"]
    assert first[1]["text"] == "reading 3 corpora" and first[0]["workers"] == 2
    assert [e["event"] for e in second] == ["started", "finished"]
    assert heard == ["before any stage", "reading 3 corpora"]
    assert {e["run"] for e in first + second} == {events.RUN} and {e["stage"] for e in first} == {"embed"}
    times = [e["time"] for e in first + second]
    assert times == sorted(times) and all(t.endswith("+00:00") for t in times)


@pytest.mark.parametrize(
    ("error", "last"),
    [
        (CapReached("stopped at cost.max_cost"), {"event": "stopped", "text": "stopped at cost.max_cost"}),
        (ConfigError("field 'x'."), {"event": "failed", "error": "ConfigError", "text": "field 'x'."}),
        (OSError("http://user:secret@host"), {"event": "failed", "error": "OSError", "text": ""}),
        (KeyboardInterrupt(), {"event": "failed", "error": "KeyboardInterrupt", "text": ""}),
    ],
)
def test_how_a_stage_ended_is_its_last_event_without_the_words_of_strange_errors(store, error, last):
    with pytest.raises(type(error)), logged(store, "search"):
        raise error
    assert last.items() <= written(store)[0][-1].items()


def test_a_store_that_refuses_the_log_does_not_stop_the_study(store, monkeypatch):
    monkeypatch.setattr(Store, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with logged(store, "embed"):
        done = True
    assert done


def seen_while(work, every=0.01):
    told_, enough = [], threading.Event()

    def tell(standing):
        told_.append(standing)
        enough.set()

    with watched(tell, every):
        work(lambda: (enough.clear(), enough.wait(10), told_[-1])[-1])
    return told_


def test_a_watcher_is_told_how_the_innermost_work_stands_whether_or_not_it_moves():
    def work(next_look):
        assert next_look().what == ""
        with steps("batches embedded", 4) as advance:
            assert (next_look().done, next_look().left) == (0, None)
            time.sleep(0.05)
            assert next_look().idle >= 0.04
            advance()
            next_look()
            look = next_look()
            assert (look.what, look.done, look.total) == ("batches embedded", 1, 4)
            assert look.left == pytest.approx(3 / look.rate)
        next_look()
        assert next_look().what == ""

    seen_while(work)


def test_shown_and_watched_progress_both_get_every_step():
    from contextlib import contextmanager

    bar = []

    @contextmanager
    def reporter(what, total):
        yield lambda: bar.append(what)

    def work(next_look):
        with steps("rows", 3) as advance:
            [advance() for _ in range(3)]
            next_look()
            assert next_look().done == 3

    assert not is_shown()
    with shown_by(reporter):
        assert is_shown()
        seen_while(work)
    assert bar == ["rows"] * 3 and list(counted([1, 2], "x", 2)) == [1, 2]


def test_a_line_says_the_stage_of_the_run_the_pace_and_what_is_left():
    standing = Standing("batches embedded", 120, 450, left=165.0, rate=2.0)
    place = Place(3, 7, later=3600.0)
    assert line("embed", place, standing) == "stage 3/7, embed: 120 of 450 batches embedded, 2/s, 3 min left of these"
    assert observed._run_left(place, 2, 165.0) == "; about 33 min left of the run, later stages by the estimate"
    assert line("embed", None, Standing("rows", 0, 9)) == "embed: 0 of 9 rows"
    assert [duration(s) for s in (40, 600, 7200)] == ["40 s", "10 min", "2.0 h"]


def test_a_stage_says_how_it_stands_and_logs_it_where_nobody_watches(store, monkeypatch):
    from align_ray.config import Config
    from align_ray.context import Study

    monkeypatch.setattr(observed, "EVERY", 0.02)
    monkeypatch.setattr(observed, "STALLED", 0.05)
    monkeypatch.setattr(observed, "waits_for", lambda room: "waiting for 1 GPU, the cluster has none")
    room = runtime.Capacity({"num_cpus": 1.0, "num_gpus": 1.0}, 0, 4)
    for shown in (False, True):
        said = []
        study = Study(Config.model_validate(plain(store.uri)), store, None, told(said.append))
        with shown_by(_no_bar) if shown else observed.placed(Place(2, 7, 80.0)):
            with observed.observed(study, "samples", room), steps("batches", 9) as advance:
                advance()
                time.sleep(0.4)
        lines = [text for text in said if "1 of 9 batches" in text]
        assert bool(lines) != shown, "lines where there is no bar"
        waits = [text for text in said if text == "samples: no step for 0 s: waiting for 1 GPU, the cluster has none"]
        assert len(waits) == 1, "once, not at every look"
        if not shown:
            assert said[0] == "stage 2/7: samples, after it about 20 s by the estimate"
            assert lines[0].startswith("stage 2/7, samples: 1 of 9 batches") and " left of the run" in lines[0]
        kinds = [e["event"] for e in written(store)[-1]]
        assert kinds[0] == "started" and kinds[-1] == "finished" and {"progress", "waiting"} <= {*kinds}


def plain(output):
    corpora = {"targets": "t", "candidates": "ab"}
    return {
        "output": output,
        **{role: [{"name": n, "source": f"{n}.jsonl"} for n in ns] for role, ns in corpora.items()},
    }


def _no_bar(what, total):
    from contextlib import nullcontext

    return nullcontext(lambda: None)


def test_a_wait_names_what_no_node_has(local_ray):
    @local_ray.remote(num_gpus=1)
    def never():
        pass

    waiting = never.remote()
    room = runtime.Capacity({"num_cpus": 1.0, "num_gpus": 1.0}, 0, 4)
    try:
        end = time.monotonic() + 30
        while not (text := runtime.waits_for(room)).startswith("waiting") and time.monotonic() < end:
            time.sleep(0.5)
        assert text == "waiting for 1 GPU, the cluster has none; Ray asks the autoscaler, if there is one"
    finally:
        local_ray.cancel(waiting, force=True)


@pytest.mark.parametrize(("load", "nice", "said"), [(9.0, None, True), (9.0, "0", False), (0.5, None, False)])
def test_a_machine_with_other_work_is_named_where_rays_workers_starve(monkeypatch, load, nice, said):
    monkeypatch.setattr(runtime.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(runtime.os, "cpu_count", lambda: 2)
    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    if nice:
        monkeypatch.setenv("RAY_worker_niceness", nice)
    assert ("RAY_worker_niceness=0" in runtime._starved()) is said
