"""A configuration is read strictly: what is wrong is refused in one sentence that names the file, the field and a
remedy."""

import os

import pytest
import yaml

from align_ray.config import Config, digest
from align_ray.config_file import EMBEDDED_DEFAULT, load_config
from align_ray.credentials import without_secret
from align_ray.errors import ConfigError

STUDY = {
    "output": "out",
    "targets": [{"name": "goal", "source": "goal.jsonl"}],
    "candidates": [{"name": "web", "source": "web/*.jsonl.gz"}, {"name": "code", "source": "code.parquet"}],
}


def write(path, **changes):
    path = path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY | changes), encoding="utf-8")
    return path


def refusal(path, overrides=None):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


def test_the_embedded_default_loads():
    config = load_config()
    assert config == load_config(EMBEDDED_DEFAULT)
    assert config.name == "demo" and len(config.candidates) == 8
    assert [c.name for c in config.corpora][:2] == ["python-stdlib-heldout", "python-stdlib"]
    assert all(c.source.startswith("installed:") for c in config.corpora)


def test_a_resolved_configuration_survives_the_round_trip_through_yaml(tmp_path):
    overrides = {"search.trials": 5, "probe.revision": "main"}
    config = load_config(write(tmp_path, name="etude-2", seed=7, output="résultats"), overrides)
    (tmp_path / "again.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(tmp_path / "again.yaml") == config


def test_overrides_set_dotted_fields_and_create_missing_sections(tmp_path):
    config = load_config(
        write(tmp_path, search={"trials": 3}), {"search.max_epochs": 2, "embedding.draws": 4, "seed": 9}
    )
    assert (config.search.trials, config.search.max_epochs, config.embedding.draws, config.seed) == (3, 2.0, 4, 9)


def test_a_configuration_cannot_be_changed_after_it_was_validated(tmp_path):
    with pytest.raises(ValueError, match="frozen"):
        load_config(write(tmp_path)).seed = 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sampling": {"batchsize": 4}}, "unknown field 'sampling.batchsize'; did you mean 'batch_size'?"),
        ({"candidate": []}, "unknown field 'candidate'; did you mean 'candidates'?"),
        ({"tracking": {"zzz": 1}}, "unknown field 'tracking.zzz'; known fields: uri, experiment."),
        ({"targets": [{"name": "a", "source": "b", "colum": "c"}]}, "'targets.0.colum'; did you mean 'column'?"),
        ({"targets": [{"name": "a"}]}, "the field 'targets.0.source' is missing; add it."),
        ({"targets": []}, "field 'targets' is []"),
        ({"candidates": STUDY["candidates"][:1]}, "field 'candidates': list should have at least 2 items"),
        ({"search": {"token_budget": -5}}, "field 'search.token_budget' is -5: input should be greater than 0."),
        (
            {"sampling": {"packing": "glue"}},
            "field 'sampling.packing' is 'glue': input should be 'pack', 'cut' or 'pad'.",
        ),
        ({"embedding": {"draws": 0}}, "field 'embedding.draws' is 0: input should be greater than 0."),
        ({"targets": [{"name": "a b", "source": "x"}]}, "field 'targets.0.name' is 'a b'"),
        ({"targets": [{"name": "web", "source": "x"}]}, "the name 'web' is used twice; give every"),
        ({"targets": [{"name": "all", "source": "x"}]}, "the results call something else 'all'; give that corpus"),
        (
            {"candidates": [{"name": "uniform", "source": "x"}, {"name": "b", "source": "y"}]},
            "the results call something else 'uniform'; give that corpus another name",
        ),
        (
            {
                "targets": [{"name": "goal", "source": "~/x.jsonl"}],
                "candidates": [
                    {"name": "a", "source": os.path.expanduser("~/x.jsonl")},
                    {"name": "b", "source": "~nobody-here/y"},
                ],
            },
            "'goal' and candidate 'a' are the same corpus",
        ),
        (
            {"targets": [{"name": "goal", "source": "x/../code.parquet"}]},
            "'goal' and candidate 'code' are the same corpus",
        ),
    ],
)
def test_a_wrong_field_is_refused_by_name(tmp_path, changes, sentence):
    assert sentence in refusal(write(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"search": {"sampler": "gp"}}, "'search.sampler' was removed in 0.2.0: the search always uses"),
        ({"embedding": {"pooling": "winsorised"}}, "'embedding.pooling: winsorised' was removed in 0.2.0: it breaks"),
        ({"predict": {"poolings": ["winsorised"]}}, "'predict.poolings: winsorised' was removed in 0.2.0: it breaks"),
        ({"search": {"targets": "sum"}}, "'search.targets: sum' was renamed in 0.2.0: it always was the mean"),
    ],
)
def test_what_earlier_versions_had_is_refused_with_what_takes_its_place(tmp_path, changes, sentence):
    assert sentence in refusal(write(tmp_path, **changes))


def quirks_of(value):
    return Config.model_validate(STUDY | {"embedding": {"quirks": value}}).embedding.quirks


def test_quirks_are_a_preset_or_single_ones_over_it():
    published, none = quirks_of({}), quirks_of("none")
    assert published == quirks_of("published") == quirks_of({"preset": "published"})
    assert published == Config.model_validate(STUDY).embedding.quirks
    assert (published.head_epochs, published.mini_batch, none.head_epochs, none.mini_batch) == (5, 8, 0, 1)
    for name in set(type(none).model_fields) - {"head_epochs", "mini_batch", "seed_by_batch"}:
        assert getattr(published, name) is True and getattr(none, name) is False
    assert quirks_of({"preset": "none", "dropout": True}) == none.model_copy(update={"dropout": True})
    assert quirks_of({"head_epochs": 1}) == published.model_copy(update={"head_epochs": 1}), "as in version 0.1"
    assert quirks_of(none.model_dump()) == none
    assert not published.seed_by_batch and not none.seed_by_batch
    by_batch = quirks_of({"seed_by_batch": True})
    assert by_batch != published and quirks_of(by_batch.model_dump()) == by_batch


def test_the_published_procedure_has_one_draw_unless_more_are_asked_for():
    def draws(**embedding):
        config = Config.model_validate(STUDY | {"embedding": embedding})
        assert Config.model_validate(yaml.safe_load(config.to_yaml())) == config
        assert f"draws: {config.embedding.draws}\n" in config.to_yaml()
        return config.embedding.draws

    assert draws() == draws(estimator="exact") == draws(estimator="head") == 2
    assert draws(estimator="reference") == draws(estimator="reference", quirks="none") == 1
    assert draws(estimator="reference", draws=3) == draws(draws=3) == 3


def test_an_unknown_preset_of_quirks_is_refused_by_name(tmp_path):
    for value in ("some", {"preset": "some"}, {"preset": None}):
        assert "set it to published or none" in refusal(write(tmp_path, embedding={"quirks": value}))
    assert "'embedding.quirks.dropuot'; did you mean 'dropout'" in refusal(
        write(tmp_path, embedding={"quirks": {"preset": "none", "dropuot": True}})
    )


def test_a_missing_section_is_refused_by_name(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("output: out\ncandidates: [{name: a, source: a}, {name: b, source: b}]\n")
    assert "the field 'targets' is missing; add it." in refusal(path)


def test_all_mistakes_of_a_file_are_named_at_once(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "output: out\nsed: 1\ncandidates: [{name: a b, source: a}, {name: b}]\n"
        "search: {token_budget: -5}\nfinetune: {learning_rate: [0.1, -1]}\n"
    )
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    first, *lines = str(refused.value).splitlines()
    assert first == f"{path}: 6 mistakes:"
    for field in ("'targets'", "'candidates.0.name'", "'candidates.1.source'", "'search.token_budget'", "'sed'"):
        assert len([line for line in lines if field in line]) == 1
    assert "field 'finetune.learning_rate.1' is -1: " in str(refused.value), "one sentence, of the kind that was meant"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("a: [", "not valid YAML"), ("- a\n", "be a mapping"), ("", "be a mapping"), (b"\xff\xfe\xff", "not valid YAML")],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, content, sentence):
    path = tmp_path / "study.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert sentence in refusal(path)


def test_a_missing_file_is_refused(tmp_path):
    assert "check the path" in refusal(tmp_path / "none.yaml")


def test_an_override_below_a_plain_value_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--set output.x: 'output' is not a section"):
        load_config(write(tmp_path), {"output.x": 1})


def test_one_source_may_be_target_and_candidate_in_different_splits():
    goal = {"name": "goal", "source": "hf://a/b", "split": "test"}
    train = {"name": "train", "source": "hf://a/b"}
    assert Config.model_validate(STUDY | {"targets": [goal], "candidates": [train, STUDY["candidates"][0]]})


def test_a_digest_ignores_the_order_of_keys_and_nothing_else():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
    assert len(digest({}, 8)) == 8


@pytest.mark.parametrize("field", ["output", "tracking.uri", "targets.source"])
@pytest.mark.parametrize(
    "uri",
    [
        "s3://KEY:planted-pass@bucket/x",
        "https://user:planted-pass@mlflow.example.org",
        "s3://bucket/x?secret_key=planted-pass",
        "https://host/x?X-Amz-Signature=planted-pass",
        "s3://bucket/x?endpoint_override=http://user:planted-pass@host:9000",
        "s3://bucket/x?scheme=http&endpoint_override=user:planted-pass@host:9000",
    ],
)
def test_a_credential_in_a_uri_is_refused_and_not_repeated(tmp_path, field, uri):
    data = {
        "output": str(tmp_path),
        "targets": [{"name": "t", "source": "t.jsonl"}],
        "candidates": [{"name": n, "source": f"{n}.jsonl"} for n in "ab"],
    }
    if field == "targets.source":
        data["targets"][0]["source"] = uri
    elif field == "output":
        data["output"] = uri
    else:
        data["tracking"] = {"uri": uri}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match="carries a credential") as caught:
        load_config(file)
    assert "planted" not in str(caught.value) and field.split(".")[0] in str(caught.value)


def test_ordinary_uris_are_taken():
    for uri in (
        "s3://bucket/a/b?region=eu-west-1",
        "hf://owner/name",
        "installed:licences",
        "C:/data",
        "user@host/path",
    ):
        assert without_secret(uri) == uri
