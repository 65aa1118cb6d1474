"""What every stage is handed: the checked configuration, where results are kept, the probe, and who is told of
progress."""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from align_ray.config import Config
from align_ray.errors import ConfigError
from align_ray.fisher.probe import Located, chat_template_of, load_tokenizer, locate_probe
from align_ray.store import Store


@dataclasses.dataclass(frozen=True)
class Study:
    """A checked configuration, ready to run (see `pipeline.open_study`)."""

    config: Config
    store: Store
    probe: Located
    say: Callable[[str], None] = lambda line: None
    """Receives one line of progress per event."""

    @cached_property
    def model(self) -> Located:
        """The model to fine-tune; its tokenizer must be the probe's, since both see the same sequences
        (ConfigError)."""
        config, probe = self.config, self.probe
        if config.finetune.model is None or config.finetune.model == config.probe.model:
            return probe
        located = locate_probe(dataclasses.replace(config.probe.plain(), model=config.finetune.model, revision=None))
        if load_tokenizer(located).get_vocab() != load_tokenizer(probe).get_vocab():
            raise ConfigError(
                f"field 'finetune.model' ({config.finetune.model}) has another tokenizer than the probe "
                f"({config.probe.model}); "
                "use a model of the same family or make it the probe."
            )
        return located

    @cached_property
    def tokenizer(self) -> Any:
        """The probe's."""
        return load_tokenizer(self.probe)

    @cached_property
    def chat_template(self) -> str | None:
        """By which conversations are rendered, in corpora that have no template of their own."""
        return chat_template_of(self.tokenizer)

    def changed(self, **sections: dict[str, Any]) -> "Study":
        """The same study with fields of some sections of its configuration changed: `changed(search={"method":
        "tune"})`."""
        updated = {name: getattr(self.config, name).model_copy(update=fields) for name, fields in sections.items()}
        return dataclasses.replace(self, config=self.config.model_copy(update=updated))


def target_weights(config: Config) -> np.ndarray | None:
    """Weights of the targets [M], sum 1; None for the worst target."""
    given, names = config.search.targets, [t.name for t in config.targets]
    if given == "worst":
        return None
    weights = np.array([1.0 if given == "mean" else given.get(n, 0.0) for n in names])
    return weights / weights.sum()


def reported_weights(config: Config) -> np.ndarray:
    """Weights of the targets [M] for what is reported as their mean: equal ones where the worst target is the goal."""
    weights = target_weights(config)
    return np.full(len(config.targets), 1 / len(config.targets)) if weights is None else weights
