"""The recipe: the recommended mixture with all a trainer must know to use it, as JSON (recipe.json in the output
folder)."""

import json
from pathlib import Path
from typing import Any, Self

from pydantic import (
    BaseModel,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from align_ray.answers import answer_id
from align_ray.config import digest
from align_ray.config_fields import Name
from align_ray.context import Study
from align_ray.errors import ConfigError
from align_ray.fisher.probe import load_tokenizer, locate_probe
from align_ray.fisher.settings import ProbeName
from align_ray.reporting.results import Corpora, Mixture

FORMAT = "align-ray recipe 1"


def make_recipe(study: Study, found: Mixture, sample: Corpora) -> dict[str, Any]:
    """From the stored results of the search and embedding stages.

    `answer`: to which answer of the output folder it belongs (`align-ray list`). Weights are shares of tokens of the
    probe's tokenizer. `corpora[name]`: how to read it, its documents, tokens
    (estimated from its bytes) and the epochs the budget takes of it.
    """
    config = study.config
    best = found.mixtures["recommended"]
    known = {c.name: c.model_dump(mode="json", exclude={"name"}) for c in config.candidates}
    counts = {
        name: {
            **known[name],
            "documents": sample.corpora[name].documents,
            "tokens": sample.corpora[name].estimated_tokens,
            "epochs": best.epochs[name],
        }
        for name in known
    }
    return {
        "format": FORMAT,
        "answer": answer_id(config),
        "unit": "share of tokens",
        "weights": best.weights,
        "token_budget": config.search.token_budget,
        "max_epochs": config.search.max_epochs,
        "objective": found.objective,
        "targets": [t.name for t in config.targets],
        "seed": config.seed,
        "tokenizer": {"model": config.probe.model, "vocabulary": vocabulary_digest(study.tokenizer)},
        "probe": {"model": config.probe.model, "digest": study.probe.digest},
        "corpora": counts,
    }


def vocabulary_digest(tokenizer: Any) -> str:
    """Digest of a tokenizer's vocabulary: what weights in tokens depend on."""
    return digest(sorted(tokenizer.get_vocab().items()))


class _Counts(BaseModel):
    documents: NonNegativeInt
    tokens: PositiveFloat
    epochs: NonNegativeFloat


class _Recipe(BaseModel):
    """What exporters rely on. Names become parts of paths, so that they are held to the pattern of the
    configuration."""

    weights: dict[Name, NonNegativeFloat]
    corpora: dict[Name, _Counts]
    targets: list[Name]
    token_budget: PositiveInt
    seed: NonNegativeInt
    tokenizer: dict[str, str]

    @model_validator(mode="after")
    def _same_names(self) -> Self:
        if self.weights.keys() != self.corpora.keys():
            raise ValueError("'weights' and 'corpora' name different corpora")
        return self


def read_recipe(path: Path) -> dict[str, Any]:
    """Raises ConfigError where the file is not a recipe, or its names are not those of a configuration."""
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable recipe ({error}); make one with align-ray search.") from None
    if not isinstance(recipe, dict) or recipe.get("format") != FORMAT:
        raise ConfigError(
            f"{path}: not a recipe of this version ('format' must be '{FORMAT}'); make one with align-ray search."
        )
    try:
        _Recipe.model_validate(recipe)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "weights"
        raise ConfigError(
            f"{path}: field {field!r} of the recipe is wrong ({first['msg']}); make the recipe again with align-ray "
            "search."
        ) from None
    return recipe


def check_tokenizer(recipe: dict[str, Any], model: str, force: bool) -> None:
    """Refuse a recipe for another tokenizer, whose tokens are other shares of the same text, unless forced."""
    if force or vocabulary_digest(load_tokenizer(locate_probe(ProbeName(model)))) == recipe["tokenizer"]["vocabulary"]:
        return
    raise ConfigError(
        f"--tokenizer {model}: the recipe's weights are shares of tokens of '{recipe['tokenizer']['model']}', which "
        "has another "
        "vocabulary; run the study with this tokenizer as the probe, or add --force to use the weights as they are."
    )


def row_shares(recipe: dict[str, Any]) -> dict[str, float]:
    """Weights for trainers that draw documents, not tokens: w_k / mean tokens of a document, normalised."""
    corpora = recipe["corpora"]
    rows = {n: w * corpora[n]["documents"] / corpora[n]["tokens"] for n, w in recipe["weights"].items()}
    total = sum(rows.values())
    return {n: r / total for n, r in rows.items()}
