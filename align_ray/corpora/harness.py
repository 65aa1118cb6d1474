"""Tasks of EleutherAI's lm-eval (the extra `lm-eval`): what a task file may do, and what it asks of a model.

A task file is YAML that may name Python functions, classes, metrics of the hub and data by a script: such a file is
refused unless it is trusted. Templates of one that is not are rendered in Jinja's sandbox. Nothing is asked of a hub
for a local file with local data. What a model answers is in `training/harness.py`.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import logging
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from align_ray.config import digest
from align_ray.config_corpora import LmEval
from align_ray.errors import ConfigError, CorpusError, UserError, first_line

FEWEST = 2
"""Items without which there is no interval."""
FEWSHOT_SEED = 1234
"""Of the examples in prompts; lm-eval's own default."""
NATS = "nats per byte"
OUTPUTS = {"multiple_choice": "margin", "loglikelihood": "log-likelihood"}
"""By kind of task the continuous score that its log-likelihoods give."""


@dataclasses.dataclass(frozen=True)
class HarnessTask:
    """A task of lm-eval with n items."""

    target: str
    task: LmEval
    file: str
    """Its YAML: an absolute path, or one within lm-eval's own tasks."""
    data: str
    """Fields of the file whose paths are made absolute, as JSON: a worker runs in another folder."""
    metric: str
    """The main metric, as lm-eval calls it."""
    filter: str
    """Which of lm-eval's ways to read an answer counts."""
    measure: str
    """What the continuous score is called: that of the log-likelihoods, else the metric."""
    unit: str
    higher: bool
    """Whether more of the metric is better."""
    by_item: bool
    """Whether the metric is the mean of its items' values: only then are trainings compared in pairs."""
    items: int
    chance: float | None
    """Accuracy of guessing, where it is known."""
    tokens: int
    """That go through the model."""
    requests: str
    """Digest of all that the model is asked."""

    def digest(self) -> str:
        """Digest of all that a score depends on."""
        version = importlib.metadata.version("lm_eval")
        return digest([version, self.requests, self.metric, self.filter, self.measure])


def check_task(target: str, task: LmEval) -> Path:
    """The task's YAML file. Raises ConfigError where lm-eval is not installed, there is no such task, it is a group of
    tasks, or it runs code of its own and is not trusted."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            f"target '{target}': field 'task' asks for lm-eval, which is not installed; pip install "
            "'align-ray[lm-eval]'."
        )
    file = _file_of(target, task.name)
    try:
        config, code = _read(file, set())
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"target '{target}': the task file {file} cannot be read ({first_line(error)}).") from None
    if "group" in config or not isinstance(config.get("task"), str):
        raise ConfigError(f"target '{target}': {file} is a group of tasks; name the file of one of them.")
    code += _code_of(config)
    if code and not task.trust_remote_code:
        raise ConfigError(
            f"target '{target}': the task file {file} runs code of its own ({', '.join(dict.fromkeys(code))}); read "
            "it, and set 'task.trust_remote_code: true' if you trust it."
        )
    return file


def own_tasks() -> Path:
    """The folder of the tasks that come with lm-eval."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "tasks"


@lru_cache
def _file_of(target: str, name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        if not (file := Path(name).expanduser().resolve()).is_file():
            raise ConfigError(f"target '{target}': field 'task.name': there is no file {name}; check the path.")
        return file
    with quietly():
        from lm_eval.tasks import TaskManager

        known = TaskManager().task_index.get(name)
    if known is None or known.yaml_path is None:
        raise ConfigError(
            f"target '{target}': field 'task.name': lm-eval has no task '{name}'; give one of its names (lm-eval ls "
            "tasks) or a YAML file."
        )
    return Path(known.yaml_path)


def _read(file: Path, seen: set[Path]) -> tuple[dict[str, Any], list[str]]:
    """What a task file and those that it includes say, without running any of it, and the tags that would be run."""
    code: list[str] = []

    class Loader(yaml.SafeLoader):
        """Notes every tag that is not plain data."""

    def note(loader: Any, suffix: str, node: Any) -> str:
        code.append(f"{node.tag} {node.value}".strip() if isinstance(node.value, str) else node.tag)
        return ""

    Loader.add_multi_constructor("!", note)
    Loader.add_multi_constructor("tag:yaml.org,2002:python", note)
    if file in seen:
        raise ValueError(f"{file} includes itself")
    config = yaml.load(file.read_bytes(), Loader=Loader)  # noqa: S506 - a SafeLoader
    if not isinstance(config, dict):
        raise ValueError("it is no mapping")
    included = config.pop("include", [])
    merged: dict[str, Any] = {}
    for name in included if isinstance(included, list) else [included]:
        more, its_code = _read((file.parent / name).resolve(), seen | {file})
        merged |= more
        code += its_code
    return merged | config, code


def _code_of(config: dict[str, Any]) -> list[str]:
    """What else in a task file runs code."""
    from lm_eval.api import metrics, registry

    assert metrics  # whose import registers them
    found = [name for name in ("class", "custom_dataset", "unsafe_code", "use_prompt") if config.get(name)]
    if (config.get("dataset_kwargs") or {}).get("trust_remote_code"):
        found.append("dataset_kwargs.trust_remote_code")
    path = str(config.get("dataset_path") or "")
    if path.endswith(".py") or (Path(path).is_dir() and any(Path(path).glob("*.py"))):
        found.append(f"dataset_path {path}")
    for entry in config.get("metric_list") or []:
        name = entry.get("metric") if isinstance(entry, dict) else None
        known = config.get("process_results") is not None or name in registry.metric_registry
        if name and (entry.get("hf_evaluate") or not known):
            found.append(f"metric {name} of the hub")
    return found


@contextlib.contextmanager
def quietly(trusted: bool = False) -> Iterator[None]:
    """Within, lm-eval prints nothing and starts no processes, and templates of files that are not trusted are rendered
    in Jinja's sandbox: theirs could otherwise reach any Python."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    logger, plain, before = logging.getLogger("lm_eval"), utils.env, os.environ.get("DISABLE_MULTIPROC")
    level = logger.level
    if not trusted:
        utils.env = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
        utils.env.filters |= plain.filters
    os.environ["DISABLE_MULTIPROC"] = "1"  # of the bootstrap: a worker has the processes it was given
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        utils.env = plain
        logger.setLevel(level)
        os.environ.pop("DISABLE_MULTIPROC") if before is None else os.environ.update(DISABLE_MULTIPROC=before)


@lru_cache
def load_task(file: str, data: str, trusted: bool, seen: object) -> Any:
    """lm-eval's task object of a file (see `HarnessTask.file` and `.data`), with its data, loaded once in a process as
    long as `seen`, which tells what is there, stays as it is; within `quietly`."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(own_tasks() / file, resolve_func=True) | json.loads(data)
    (task,) = TaskManager(include_defaults=False).load([config])["tasks"].values()
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    return task


def task_files(target: str, task: LmEval) -> tuple[object, ...]:
    """What tells that a task's file and its local data are those that were read. Raises ConfigError as `check_task`."""
    path = check_task(target, task)
    found = [path]

    def look(value: Any) -> None:
        if isinstance(value, dict | list):
            for part in value.values() if isinstance(value, dict) else value:
                look(part)
        elif isinstance(value, str) and os.path.isabs(value) and os.path.exists(value):
            found.append(Path(value))

    look(_absolute(_read(path, set())[0], path.parent))
    return tuple((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in found)


def harness_task(target: str, task: LmEval, tokenizer: Any) -> HarnessTask:
    """What a task of lm-eval asks. Raises ConfigError as `check_task` and where it has no such metric, CorpusError
    where its data cannot be read or is too little."""
    path = check_task(target, task)
    own = own_tasks()
    file = str(path.relative_to(own) if path.is_relative_to(own) else path)
    data = json.dumps(_absolute(_read(path, set())[0], path.parent))
    try:
        with quietly(task.trust_remote_code):
            loaded = load_task(file, data, task.trust_remote_code, task_files(target, task))
            loaded.set_fewshot_seed(seed=FEWSHOT_SEED)
            loaded.build_all_requests(limit=task.items)
            found = _described(target, task, loaded)
    except UserError:
        raise
    except ConnectionError as error:  # as datasets has it for a hub that does not answer, and without its network
        raise CorpusError(
            f"target '{target}': the data of {task.name} are not on this machine, and the hub does not answer "
            f"({first_line(error)}); check the network and HF_HUB_OFFLINE, or name a task file with local data."
        ) from None
    except Exception as error:  # of any library that reads data or renders a template
        raise CorpusError(
            f"target '{target}': lm-eval cannot make items of {task.name} ({type(error).__name__}: "
            f"{first_line(error)}); check its data and templates."
        ) from None
    asked = [[instance.request_type, *map(str, instance.args)] for instance in loaded.instances]
    lengths = [len(ids) for ids in tokenizer(["".join(texts[1:3]) for texts in asked], verbose=False)["input_ids"]]
    written = sum(_written(instance) for instance in loaded.instances)
    requests = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    return HarnessTask(target, task, file, data, tokens=sum(lengths) + written, requests=requests, **found)


def _described(target: str, task: LmEval, loaded: Any) -> dict[str, Any]:
    from lm_eval.api.metrics import mean, stderr_for_metric

    aggregations = loaded.aggregation()
    filters = [ensemble.name for ensemble in getattr(loaded, "_filters", [])] or ["none"]
    name, _, wanted = (task.metric or next(iter(aggregations))).partition(",")
    if name not in aggregations or (wanted and wanted not in filters):
        raise ConfigError(
            f"target '{target}': field 'task.metric' is {task.metric}; the task has {', '.join(aggregations)}, with "
            f"the filters {', '.join(filters)}: give one of them, or METRIC,FILTER."
        )
    if stderr_for_metric(aggregations[name], bootstrap_iters=1) is None:
        raise ConfigError(
            f"target '{target}': lm-eval gives the metric {name} no standard error, so nothing could be told "
            "by it; name another in 'task.metric'."
        )
    items = len({instance.doc_id for instance in loaded.instances})
    if items < FEWEST:
        raise CorpusError(f"target '{target}': {task.name} gives {items} items, and {FEWEST} are needed.")
    higher = loaded.higher_is_better().get(name) is not False
    own = not callable(loaded.get_config("process_results")) and not getattr(loaded, "multiple_input", 0)
    by_item = aggregations[name] is mean
    by_likelihood = OUTPUTS.get(loaded.OUTPUT_TYPE) if own and by_item and higher else None
    chance: float | None = 0.0 if name in ("acc", "exact_match") else None
    if loaded.OUTPUT_TYPE == "multiple_choice" and by_likelihood:
        docs = [doc for _, doc in loaded.doc_iterator(limit=task.items)]
        chance = sum(len(right_ones(loaded, d)) / len(loaded.doc_to_choice(d)) for d in docs) / len(docs)
    measure = by_likelihood or (name if higher else f"minus {name}")
    unit = NATS if by_likelihood else ""
    return {
        "metric": name, "filter": wanted or filters[0], "measure": measure, "unit": unit, "higher": higher,
        "by_item": by_item, "items": items, "chance": chance,
    }  # fmt: skip


def right_ones(loaded: Any, doc: Any) -> list[int]:
    """Numbers of the right choices of a document, one or several."""
    gold, choices = loaded.doc_to_target(doc), loaded.doc_to_choice(doc)
    given = gold if isinstance(gold, list) else [gold]
    return [choices.index(g) if isinstance(g, str) else int(g) for g in given]


def _written(instance: Any) -> int:
    """Tokens that a request asks for at most."""
    if instance.request_type != "generate_until":
        return 0
    settings = instance.args[1]
    return int(settings.get("max_gen_toks") or settings.get("max_new_tokens") or 256)  # lm-eval's default


def _absolute(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The fields of a task file that name its data, with local paths made absolute: from the current folder, as lm-eval
    takes them, or from that of the file."""

    def there(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: there(part) for key, part in value.items()}
        if isinstance(value, list):
            return [there(part) for part in value]
        found = [place / value for place in (Path.cwd(), folder) if isinstance(value, str) and "://" not in value]
        return next((str(path.resolve()) for path in found if path.exists()), value)

    changed = {}
    if isinstance(kwargs := config.get("dataset_kwargs"), dict):
        fields = {key: there(value) for key, value in kwargs.items() if key in ("data_files", "data_dir")}
        changed["dataset_kwargs"] = kwargs | fields
    if isinstance(path := config.get("dataset_path"), str) and "/" in path:
        changed["dataset_path"] = there(path)
    return changed
