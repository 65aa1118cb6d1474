"""A hub that is not there: one sentence, soon."""

import socket
import time

import pytest

from align_ray import hub
from align_ray.config_corpora import Corpus
from align_ray.corpora.sources import plan_fragments
from align_ray.errors import CorpusError, ProbeError
from align_ray.fisher.probe import locate_probe
from align_ray.fisher.settings import ProbeName


@pytest.fixture(params=["silent", "refused"])
def absent_hub(request, monkeypatch):
    """The hub's address leads to a server that says nothing, or to none."""
    from huggingface_hub import constants

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if request.param == "silent":
            server.listen()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(hub, "PATIENCE", 0.5)
        yield address


def read(source):
    return lambda: plan_fragments(Corpus(name="a", source=source))


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda: locate_probe(ProbeName(model="owner/name")), ProbeError),
        (read("hf://owner/name"), CorpusError),
        (read("hf://datasets/owner/name/*.parquet"), CorpusError),
    ],
)
def test_a_hub_that_does_not_answer_is_one_sentence_soon(absent_hub, ask, error):
    begin = time.monotonic()
    with pytest.raises(error, match="HF_HUB_OFFLINE=1") as found:
        ask()
    assert (
        time.monotonic() - begin < 8
        and absent_hub.removeprefix("http://") in str(found.value)
        and "\n" not in str(found.value)
    )


def test_an_address_with_a_secret_is_not_shown(absent_hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", absent_hub.replace("http://", "http://user:planted@"))
    assert "planted" not in hub.not_answering() and "127.0.0.1" in hub.not_answering()


def test_it_may_take_less_than_ten_seconds():
    assert hub.PATIENCE * hub.TRIES <= 8


def test_offline_it_is_not_asked(absent_hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.not_answering() == ""


def test_a_local_folder_needs_no_hub(absent_hub, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"text": "some text"}\n')
    assert len(plan_fragments(Corpus(name="a", source=f"hf://{tmp_path}"))) == 1
