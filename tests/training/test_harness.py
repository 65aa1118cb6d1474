"""Tasks of lm-eval: what a task file may do, and that its scores are those of the model as it is, item by item."""

import json
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from align_ray.cli.main import app
from align_ray.config import Config
from align_ray.config_corpora import LmEval
from align_ray.corpora import harness
from align_ray.corpora.harness import check_task, harness_task
from align_ray.corpora.items import item_keys, items_of, margins, read_items
from align_ray.corpora.sample import sample_corpora
from align_ray.errors import ConfigError, CorpusError
from align_ray.fisher.probe import load_model, load_tokenizer, locate_probe
from align_ray.fisher.settings import ProbeName
from align_ray.pipeline import open_study
from align_ray.reporting.headline import headline
from align_ray.reporting.trained import Finetuned
from align_ray.training.answers import row_losses
from align_ray.training.finetune import Run, finetune_runs
from align_ray.training.harness import harness_answers

CPU = torch.device("cpu")
CHOICES = """\
task: continues
dataset_path: json
dataset_kwargs: {data_files: {test: items.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{begins}}"
doc_to_choice: choices
doc_to_target: answer
"""
WRITTEN = CHOICES.replace("multiple_choice", "generate_until").replace("doc_to_choice: choices\n", "").replace(
    "doc_to_target: answer", "doc_to_target: '{{choices[answer]}}'\ngeneration_kwargs: {until: ['.'], max_gen_toks: 4}"
)  # fmt: skip


@pytest.fixture(scope="module")
def texts(corpora):
    return [json.loads(line)["text"] for line in (corpora / "python-stdlib-heldout.jsonl").open()]


@pytest.fixture
def task_file(tmp_path, texts):
    """A function that writes a task file with 20 items beside it: Python goes on after Python, a licence does not."""

    def write(content=CHOICES, more="", items=20, name="task.yaml"):
        with (tmp_path / "items.jsonl").open("w") as file:
            for i, text in enumerate(texts[:items]):
                choices = ["self.assertEqual(value, other)", "Permission is hereby granted"][:: 1 - 2 * (i % 2)]
                file.write(json.dumps({"begins": text[:90], "choices": choices, "answer": i % 2}) + "\n")
        (tmp_path / name).write_text(content + more)
        return LmEval(kind="lm_eval", name=str(tmp_path / name))

    return write


# --- what is refused, with or without lm-eval -------------------------------------------------------------------------


def test_without_the_extra_one_sentence_says_how_to_install_it(task_file, monkeypatch, small_config, tmp_path):
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    mapping = small_config(tmp_path / "out")
    mapping["targets"][0]["task"] = task_file().model_dump()
    with pytest.raises(ConfigError) as refused:
        open_study(Config.model_validate(mapping), write=False)
    said = "target 'target': field 'task' asks for lm-eval, which is not installed; pip install 'align-ray[lm-eval]'."
    assert str(refused.value) == said


needs_lm_eval = pytest.mark.skipif(
    not harness.importlib.util.find_spec("lm_eval"), reason="the extra lm-eval is absent"
)


CODE = {
    "!function utils.process": "process_docs: !function utils.process\n",
    "class": "class: tasks.Mine\n",
    "unsafe_code": "unsafe_code: true\n",
    "custom_dataset": "custom_dataset: x\n",
    "metric code_eval of the hub": "metric_list: [{metric: code_eval}]\n",
    "metric acc of the hub": "metric_list: [{metric: acc, hf_evaluate: true}]\n",
    "dataset_kwargs.trust_remote_code": "include: more.yaml\n",
    "tag:yaml.org,2002:python/name:os.system": "description: !!python/name:os.system ''\n",
}


@needs_lm_eval
@pytest.mark.parametrize("found", CODE)
def test_a_task_file_that_runs_code_of_its_own_is_refused_unless_it_is_trusted(task_file, found, tmp_path):
    (tmp_path / "more.yaml").write_text("dataset_kwargs: {trust_remote_code: true}\n")
    (tmp_path / "utils.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    content = CHOICES.replace("dataset_kwargs", "description") if "include" in CODE[found] else CHOICES
    task = task_file(content, CODE[found])
    with pytest.raises(ConfigError, match="runs code of its own") as refused:
        check_task("t", task)
    assert f"({found})" in str(refused.value) and "trust_remote_code: true" in str(refused.value)
    assert check_task("t", task.model_copy(update={"trust_remote_code": True})).name == "task.yaml"
    assert not (tmp_path / "ran").exists(), "to look at it runs nothing"


@needs_lm_eval
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("group: many\ntask: [a, b]\n", "is a group of tasks; name the file of one of them"),
        ("- a\n", "cannot be read (it is no mapping)"),
        ("include: task.yaml\n", "includes itself"),
        ("task: [\n", "cannot be read"),
    ],
)
def test_what_is_no_task_file_is_one_sentence(task_file, content, said):
    with pytest.raises(ConfigError) as refused:
        check_task("t", task_file(content))
    assert said in str(refused.value) and "target 't'" in str(refused.value)


@needs_lm_eval
def test_a_file_that_is_not_there_and_a_name_that_lm_eval_does_not_know(monkeypatch):
    from lm_eval import tasks

    with pytest.raises(ConfigError, match="there is no file nowhere.yaml"):
        check_task("t", LmEval(kind="lm_eval", name="nowhere.yaml"))
    known = type("Manager", (), {"task_index": {}})  # the real one reads 14,000 files
    monkeypatch.setattr(tasks, "TaskManager", known)
    with pytest.raises(ConfigError, match="lm-eval has no task 'nothing-of-the-kind'"):
        check_task("t", LmEval(kind="lm_eval", name="nothing-of-the-kind"))


@pytest.fixture
def hub(monkeypatch, tmp_path, texts):
    """What `datasets` keeps of a data set of the hub, allenai/sciq, whose rows are cut from the corpora; no other is
    there, and there is no network. lm-eval reads two folders of its tasks, not all 14,000 files."""
    import datasets
    from datasets.packaged_modules.parquet.parquet import Parquet
    from lm_eval import tasks

    wrong = {f"distractor{i}": f"Permission {i} is granted" for i in (1, 2, 3)}
    rows = [{"support": t[:60], "question": t[60:90], "correct_answer": t[90:130].strip(), **wrong} for t in texts[:12]]  # fmt: skip
    files = {split: str(tmp_path / f"{split}.parquet") for split in ("train", "validation", "test")}
    for file in files.values():
        datasets.Dataset.from_list(rows).to_parquet(file)
    made = Parquet(cache_dir=str(tmp_path / "made"), dataset_name="sciq", hash="0", data_files=files)
    made.download_and_prepare()
    shutil.copytree(made.cache_dir, tmp_path / "hub" / "allenai___sciq" / "default" / "0.0.0" / "0")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub"))
    folders = [str(harness.own_tasks() / name) for name in ("sciq", "arc")]
    real = tasks.TaskManager
    monkeypatch.setattr(
        tasks, "TaskManager", lambda **given: real(**given or {"include_path": folders, "include_defaults": False})
    )
    harness._file_of.cache_clear()
    harness.load_task.cache_clear()
    return rows


@needs_lm_eval
def test_a_task_of_lm_evals_own_by_name_takes_its_data_from_what_is_kept_of_the_hub(hub, probe):
    model, tokenizer = probe
    asked = harness_task("t", LmEval(kind="lm_eval", name="sciq", items=10), tokenizer)
    assert (asked.items, asked.chance, asked.metric, asked.file) == (10, 0.25, "acc", "sciq/sciq.yaml")
    found = harness_answers(model, asked, tokenizer, CPU)
    choices = [[*(row[f"distractor{i}"] for i in (1, 2, 3)), row["correct_answer"]] for row in hub[:10]]
    contexts = [f"{row['support'].lstrip()}\nQuestion: {row['question']}\nAnswer:" for row in hub[:10]]
    ours = items_of([(c, four, 3) for c, four in zip(contexts, choices, strict=True)], tokenizer, " ", 512)
    expected = margins(row_losses(model, ours.rows, CPU), ours)
    np.testing.assert_allclose(found["score"], expected, atol=0.02)
    assert np.ptp(expected) > 0.2, "items differ by more than that"


@needs_lm_eval
def test_where_the_hub_does_not_answer_one_sentence_says_so(hub, probe):
    with pytest.raises(CorpusError) as refused:
        harness_task("t", LmEval(kind="lm_eval", name="arc_easy"), probe[1])
    said = str(refused.value)
    assert said.startswith("target 't': the data of arc_easy are not on this machine, and the hub does not answer (")
    assert "allenai/ai2_arc" in said and said.endswith("or name a task file with local data.")


@needs_lm_eval
def test_a_template_cannot_reach_python_unless_it_is_trusted(task_file, tiny_probe):
    reach = CHOICES.replace("{{begins}}", "{{ begins.__class__.__mro__[1].__subclasses__()|length }}")
    task, tokenizer = task_file(reach), load_tokenizer(locate_probe(ProbeName(model=tiny_probe)))
    with pytest.raises(CorpusError, match="SecurityError"):
        harness_task("t", task, tokenizer)
    assert harness_task("t", task.model_copy(update={"trust_remote_code": True}), tokenizer).items == 20


@needs_lm_eval
def test_a_refused_task_is_a_row_of_doctor_and_starts_no_run(task_file, small_config, tmp_path):
    import yaml

    from align_ray.doctor import _configuration

    mapping = small_config(tmp_path / "out")
    mapping["targets"][0]["task"] = task_file(more=CODE["class"]).model_dump()
    with pytest.raises(ConfigError, match=r"runs code of its own \(class\)"):
        _configuration(Config.model_validate(mapping))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(mapping))
    done = CliRunner().invoke(app, ["run", str(tmp_path / "study.yaml")])
    assert done.exit_code == 2 and "runs code of its own (class)" in " ".join(done.stderr.split())
    assert not (tmp_path / "out" / "corpora.json").exists()


# --- what is asked and answered ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def probe(tiny_probe):
    located = locate_probe(ProbeName(model=tiny_probe))
    return load_model(located).eval(), load_tokenizer(located)


@needs_lm_eval
def test_margins_of_choices_are_those_of_our_own_task_of_choices(task_file, probe, texts):
    model, tokenizer = probe
    asked = harness_task("t", task_file(), tokenizer)
    assert (asked.items, asked.chance, asked.metric, asked.measure, asked.by_item) == (20, 0.5, "acc", "margin", True)
    found = harness_answers(model, asked, tokenizer, CPU)
    both = ["self.assertEqual(value, other)", "Permission is hereby granted"]
    ours = items_of([(t[:90].rstrip(), both[:: 1 - 2 * (i % 2)], i % 2) for i, t in enumerate(texts[:20])], tokenizer, " ", 512)  # fmt: skip
    expected = margins(row_losses(model, ours.rows, CPU), ours)
    same = [i for i, t in enumerate(texts[:20]) if t[:90] == t[:90].rstrip()]  # lm-eval moves blanks to the choice
    assert len(same) > 10
    np.testing.assert_allclose(np.array(found["score"])[same], expected[same], atol=0.02)
    assert found["unit"] == "nats per byte" and set(found["right"]) <= {0.0, 1.0}
    assert tokenizer.pad_token is None or tokenizer.pad_token == load_tokenizer.__wrapped__(locate_probe(ProbeName())).pad_token  # fmt: skip


@needs_lm_eval
def test_another_metric_and_fewer_items_are_other_tasks_and_a_wrong_one_is_named(task_file, probe):
    task, tokenizer = task_file(more="metric_list: [{metric: acc_norm}, {metric: mcc}]\n"), probe[1]
    asked = harness_task("t", task, tokenizer)
    assert (asked.metric, asked.filter) == ("acc_norm", "none")
    fewer = harness_task("t", task.model_copy(update={"items": 5}), tokenizer)
    assert fewer.items == 5 and fewer.digest() != asked.digest() and fewer.tokens < asked.tokens
    whole = harness_task("t", task.model_copy(update={"metric": "mcc"}), tokenizer)
    assert not whole.by_item and whole.digest() != asked.digest() and whole.unit == ""
    with pytest.raises(ConfigError, match="gives the metric brier_score no standard error"):
        harness_task("t", task_file(more="metric_list: [{metric: brier_score}]\n", name="brier.yaml"), tokenizer)
    with pytest.raises(
        ConfigError, match="field 'task.metric' is bleu; the task has acc_norm, mcc, with the filters none"
    ):
        harness_task("t", task.model_copy(update={"metric": "bleu"}), tokenizer)
    with pytest.raises(CorpusError, match="gives 1 items, and 2 are needed"):
        harness_task("t", task.model_copy(update={"items": 1}), tokenizer)
    broken = task_file(CHOICES.replace("doc_to_choice: choices", "doc_to_choice: nothing"), name="broken.yaml")
    with pytest.raises(CorpusError, match=r"lm-eval cannot make items of .*broken.yaml"):
        harness_task("t", broken, tokenizer)


@needs_lm_eval
def test_an_answer_that_is_written_has_its_metric_for_a_score(task_file, probe):
    model, tokenizer = probe
    asked = harness_task("t", task_file(WRITTEN, "metric_list: [{metric: exact_match}]\n"), tokenizer)
    assert (asked.measure, asked.unit, asked.by_item, asked.chance) == ("exact_match", "", True, 0.0)
    found = harness_answers(model, asked, tokenizer, CPU)
    assert found["score"] == found["right"] and len(found["score"]) == 20 and set(found["score"]) <= {0.0, 1.0}


@needs_lm_eval
def test_a_metric_of_all_items_together_has_lm_evals_error(task_file, probe):
    model, tokenizer = probe
    asked = harness_task("t", task_file(WRITTEN, "metric_list: [{metric: ter}]\n"), tokenizer)
    assert (asked.measure, asked.by_item, asked.higher, asked.chance) == ("minus ter", False, False, None)
    found = harness_answers(model, asked, tokenizer, CPU)
    assert set(found) == {"whole", "error"} and found["whole"] < 0 and found["error"] >= 0


@pytest.fixture
def tasked(small_config, local_ray, texts, tmp_path, task_file):
    def make(content=CHOICES, more=""):
        mapping = small_config(tmp_path / "out")
        (tmp_path / "target.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
        task = task_file(content, more).model_dump()
        mapping["targets"] = [{"name": "target", "source": str(tmp_path / "target.jsonl"), "task": task}]
        mapping["finetune"] |= {"tokens": 1024, "eval_tokens": 512, "batch_size": 4, "learning_rate": 3e-3, "seeds": 3}
        study = open_study(Config.model_validate(mapping))
        sample_corpora(study)
        half = {"python-stdlib": 0.5, "licences": 0.5}
        runs = [Run(name, {name: 1.0}) for name in half] + [Run("uniform", half), Run("mixture", {"python-stdlib": 1.0, "licences": 0.0})]  # fmt: skip
        found = finetune_runs(study, dict.fromkeys(half, 10**6), runs, dict.fromkeys(half, 1.0))
        return study, Finetuned.parse(found)

    return make


@needs_lm_eval
def test_a_study_is_judged_by_a_task_of_lm_eval(tasked, no_trainings):
    study, found = tasked()
    assert set(read_items(study)) == {"target"} and item_keys(study) == set()
    python, licences = (found.runs[name].targets["target"].task for name in ("python-stdlib", "licences"))
    assert (python.items, python.chance, python.measure, python.metric) == (20, 0.5, "margin", "acc")
    assert python.score.value > licences.score.value and python.score_before == licences.score_before
    assert found.verdict.by == "task" and "nats per byte" in found.verdict.measure and found.verdict.against
    assert any(line.startswith("target, task after 'mixture': acc ") for line in found.tasks())
    assert "Task of target: margin, nats per byte; acc" in repr(found)


@needs_lm_eval
def test_a_metric_that_is_not_of_single_items_leaves_the_verdict_to_the_loss(tasked, no_trainings):
    _, found = tasked(WRITTEN, "metric_list: [{metric: chrf}]\n")
    task = found.runs["mixture"].targets["target"].task
    assert task.labels() == {"score": "chrf"} and task.chance is None and task.score.error >= 0
    assert found.verdict.by == "loss" and found.verdict.why.endswith(
        "by the loss, since the metric of the task of target is not one of single items"
    )
    assert any(line.startswith("target, task after 'mixture': chrf ") for line in found.tasks())
    assert "accuracy" not in found.to_pandas() and "score" in found.to_pandas()


@needs_lm_eval
def test_items_that_changed_on_disk_are_read_again(task_file, small_config, tmp_path):
    mapping = small_config(tmp_path / "out")
    mapping["targets"][0]["task"] = task_file().model_dump()
    study = open_study(Config.model_validate(mapping), write=False)
    assert read_items(study)["target"] is (first := read_items(study)["target"]) and first.items == 20
    task_file(items=7)
    assert read_items(study)["target"].items == 7


@needs_lm_eval
def test_code_that_is_trusted_runs_and_its_mean_is_compared_by_item(task_file, probe, tmp_path):
    model, tokenizer = probe
    (tmp_path / "own.py").write_text("def score(doc, results):\n    return {'length': len(doc['begins']) / 100}\n")
    more = "process_results: !function own.score\nmetric_list: [{metric: length, aggregation: mean, higher_is_better: true}]\n"
    task = task_file(WRITTEN, more).model_copy(update={"trust_remote_code": True, "items": 3})
    asked = harness_task("t", task, tokenizer)
    assert (asked.measure, asked.unit, asked.by_item, asked.chance) == ("length", "", True, None)
    assert harness_answers(model, asked, tokenizer, CPU)["score"] == [0.9, 0.9, 0.9]


@needs_lm_eval
def test_adapters_are_asked_as_they_are(task_file, probe):
    from align_ray.training.step import with_adapters

    model, tokenizer = probe
    asked = harness_task("t", task_file(), tokenizer)
    before = harness_answers(model, asked, tokenizer, CPU)["score"]
    import copy

    adapted = with_adapters(copy.deepcopy(model), 2, "all-linear")
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    assert np.abs(np.subtract(harness_answers(adapted, asked, tokenizer, CPU)["score"], before)).max() > 0.01


def test_the_headline_of_a_metric_names_it_for_what_it_is():
    from types import SimpleNamespace

    from align_ray.reporting.values import Against, Verdict

    search = SimpleNamespace(mixtures={"recommended": SimpleNamespace(weights={"a": 0.6, "b": 0.4})})
    against = {"uniform": Against(value=0.08, low=0.01, high=0.15, p_lower=0.02)}
    verdict = Verdict(state="confirmed", why="so", against=against, by="task", measure="minus the task's metric")
    finetuned = SimpleNamespace(verdict=verdict, bytes_per_token={"t": 4.0})
    assert headline({"search": search, "finetune": finetuned}) == (
        "Train on 60% a and 40% b; measured 0.0800 of the task's metric above uniform, P(higher) = 0.980: confirmed."
    )
