"""A user's mistake is one sentence on standard error and exit status 2, before any model is loaded."""

import pytest
import yaml
from typer.testing import CliRunner

from align_ray import stages
from align_ray.cli.main import app


def edit(path):
    """Set a dotted path of a mapping (list indices as numbers)."""

    def set_value(value):
        def apply(mapping):
            *parents, last = path.split(".")
            for part in parents:
                mapping = mapping[int(part)] if part.isdigit() else mapping.setdefault(part, {})
            mapping[last] = value

        return apply

    return set_value


CASES = {
    "an unknown key": (edit("sampling.batchsize")(4), ["sampling.batchsize", "batch_size"]),
    "a missing file": (edit("candidates.0.source")("/nowhere/x.jsonl"), ["/nowhere/x.jsonl", "source"]),
    "an empty corpus": (edit("candidates.0.source")("EMPTY"), ["python-stdlib", "empty"]),
    "a column that is not there": (
        edit("candidates.0.template")("{informal} {text}"),
        ["template", "'informal'", "text"],
    ),
    "a target among its candidates": (
        lambda m: m["candidates"].append({**m["targets"][0], "name": "again"}),
        ["target", "again"],
    ),
    "a negative budget": (edit("search.token_budget")(-5), ["search.token_budget", "-5"]),
    "a repetition cap of zero": (edit("search.max_epochs")(0), ["search.max_epochs"]),
    "an unknown probe": (edit("probe")({"model": "/nowhere/model"}), ["/nowhere/model"]),
    "a probe that the hub does not give": (edit("probe")({"model": "no-such/model"}), ["no-such/model", "hub"]),
    "sequences longer than the probe's context": (edit("sampling.sequence_length")(4096), ["sequence_length", "512"]),
    "a missing section": (lambda m: m.pop("targets"), ["targets"]),
    "an output that cannot be written": (edit("output")("/dev/null/out"), ["output", "/dev/null/out"]),
}


@pytest.mark.parametrize("case", CASES)
def test_exit_status_is_2_and_one_sentence_names_the_mistake(case, small_config, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "connect", lambda *_: pytest.fail("a cluster was asked for"))
    monkeypatch.chdir(tmp_path)
    mapping = small_config(tmp_path / "out")
    change, expected = CASES[case]
    change(mapping)
    (tmp_path / "empty.jsonl").write_text("\n")
    text = yaml.safe_dump(mapping).replace("EMPTY", str(tmp_path / "empty.jsonl"))
    (tmp_path / "study.yaml").write_text(text)
    result = CliRunner().invoke(app, ["run", "study.yaml"])
    message = result.stderr.strip()
    assert result.exit_code == 2, result.output
    assert message.startswith("error:") and "Traceback" not in message and message.count("\n") == 0
    for word in expected:
        assert word in message


def test_a_configuration_that_is_not_there_or_not_yaml_is_named(tmp_path):
    result = CliRunner().invoke(app, ["run", str(tmp_path / "none.yaml")])
    assert result.exit_code == 2 and "none.yaml" in result.stderr
    (tmp_path / "bad.yaml").write_text("a: [1")
    result = CliRunner().invoke(app, ["run", str(tmp_path / "bad.yaml")])
    assert result.exit_code == 2 and "bad.yaml" in result.stderr


@pytest.mark.parametrize(
    "command", ["run", "demo", "embed", "align", "search", "finetune", "report", "study", "robustness"]
)
def test_help_shows_an_example(command):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0 and f"align-ray {command}" in result.stdout


@pytest.mark.parametrize(
    "arguments", [["study.yaml", "--floor", "0.01"], ["s.yaml", "--set", "seed=1"], [], ["--json", "s"]]
)
def test_a_removed_command_names_its_successor_and_is_not_listed(arguments):
    result = CliRunner().invoke(app, ["noise", *arguments])
    sentence = "the command 'noise' was removed in 0.2.0; use align-ray align CONFIG --noise-floor 0.02."
    assert result.exit_code == 2 and sentence in " ".join(result.stderr.split())
    assert " noise " not in CliRunner().invoke(app, ["--help"]).stdout


def test_the_version_is_said():
    from align_ray import __version__

    assert CliRunner().invoke(app, ["--version"]).stdout == f"align-ray {__version__}\n"
