"""The configuration of a study: YAML in, frozen pydantic models out, validated before any cluster time is spent."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from align_ray.config_corpora import Corpus, Replay
from align_ray.config_fields import Model, Name, Tokens
from align_ray.credentials import Place
from align_ray.fisher import settings


class Probe(Model):
    """The causal language model whose Fisher information makes the embeddings."""

    model: Place = "embedded"
    """`embedded` (shipped with the package), `smollm2` (SmolLM2-135M-Instruct in Q4_1; needs the extra of that
    name), a local folder, or a hub id such as `openai-community/gpt2`. A dense decoder-only transformer,
    safetensors."""
    revision: str | None = None
    """Hub revision (commit, tag or branch)."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off: such a model is refused."""

    def plain(self) -> settings.ProbeName:
        """As `fisher` takes it."""
        return settings.ProbeName(**self.model_dump())


class Sampling(Model):
    """How documents become batches of token sequences."""

    sequence_length: Annotated[int, Field(ge=8)] = 128
    """T, tokens per sequence."""
    batch_size: PositiveInt = 32
    """B, sequences per batch. A batch is the unit over which intervals are taken."""
    batches: Annotated[int, Field(ge=2)] = 16
    """Batches per corpus; a smaller corpus gives as many as it has."""
    sequential: bool = False
    """Start with 8 batches a corpus and go on, up to `batches`, with those alone whose rank is not settled."""
    packing: Literal["pack", "cut", "pad"] = "pack"
    """`pack` joins documents end to end, end-of-text between; `cut` takes the first T tokens of each document and
    leaves out documents shorter than that (counted); `pad` keeps those too, padding masked (counted only by
    `reference`). A row's embedding by `exact` and `head` is a sum over its tokens, so that in a batch a padded row
    weighs by its length (not with the pooling `unit`)."""


FIRST_LOOK = 8
"""Batches of every corpus before `sampling.sequential` first asks whether ranks are settled: fewer leave so few degrees
of freedom that hardly anything can be settled."""


class Unigram(Model):
    """The unigram models by whose cross-entropy candidates are ranked."""

    tokens: Tokens = 8192
    """Tokens on which every model is counted, whatever a corpus holds: one counted on more fits every target better.
    At most what `sampling` gives every corpus; a candidate that holds less is listed apart, without a rank."""


class Quirks(Model):
    """What the published procedure does beside the definition (method 1.4); the defaults are the published procedure.
    Beside the fields below a mapping may hold `preset: published` or `preset: none`, from which it starts."""

    dropout: bool = True
    """Training mode: dropout stays on while tuning and in the Fisher pass."""
    head_epochs: Annotated[int, Field(ge=0)] = 5
    """Epochs of head tuning on the batch itself (5 by the library's path, 10 by its command line, 0: none)."""
    shifted_labels: bool = True
    """Off by one: the label drawn from position t+1's distribution is scored against position t's logits."""
    mini_batch: PositiveInt = 8
    """Rows whose mean gradient is squared; 1 squares per sequence. Tuning takes 8 rows a step whatever this is; in
    the published program one number sets both."""
    pads_counted: bool = True
    """Labels are drawn at padding positions as well; only labels that happen to be the pad token are ignored."""
    axis_0: bool = True
    """Row means over axis 0 of the stored weight: inputs for Conv1D, outputs for Linear. Off: always outputs."""
    vocabulary: bool = True
    """Keep every module with a weight but the head: token and position embeddings (tied, so they carry the head's
    gradients) and layer norms. Off: the trunk's linear modules alone."""
    absolute_epsilon: bool = True
    """The distance adds 1e-8 to a + b, which is of the size of the data, so that small entries drop out. Off: 1e-6
    of the mean of a + b, as for the other estimators."""
    seed_by_batch: bool = False
    """Seed batch i of a corpus with `seed` + i, as for the published diversity values. Off, as for the published
    alignments: all batches have one seed, so that their labels are alike and they come out closer to each other.
    Part of neither preset."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"preset": value}
        if not isinstance(value, dict) or "preset" not in value:
            return value
        name, single = value["preset"], {k: v for k, v in value.items() if k != "preset"}
        if name not in ("published", "none"):
            raise ValueError(f"the preset {name!r} is not known; set it to published or none")
        return ({} if name == "published" else NO_QUIRKS) | single


NO_QUIRKS = {
    "dropout": False,
    "head_epochs": 0,
    "shifted_labels": False,
    "mini_batch": 1,
    "pads_counted": False,
    "axis_0": False,
    "vocabulary": False,
    "absolute_epsilon": False,
}
"""The preset `none`."""


class Embedding(Model):
    """The Fisher estimator."""

    estimator: Literal["exact", "head", "reference"] = "exact"
    """`exact`: trunk rows and head rows; `head`: head rows alone, for one forward pass and without label noise;
    `reference`: the published procedure, many times slower, to compare with published runs."""
    draws: PositiveInt = 2
    """R, label draws per sequence. They share one forward pass; two or more make the noise floor measurable. For
    `reference` the default is 1, as published; more are whole replicates under further seeds, averaged before the
    distance."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The dtype of the probe's weights and activations; squares and sums stay float32. `auto`: bfloat16 where GPUs
    are used or this machine's processor multiplies it, else float32 (benchmarks/README.md has the error, far below
    the label noise). The reference procedure is always float32."""
    pooling: Literal["mean", "unit"] = "mean"
    """How sequences make a batch: their mean (the paper's), or the mean of embeddings normalised to unit sum, which
    limits what one odd sequence can do. Both are additive."""
    head_tuning: Literal["none", "shared", "per_batch"] = "none"
    """Tune the vocabulary head first: once on the first batch of every corpus, or on each batch (the paper's; it breaks
    additivity, so that mixtures are approximate)."""
    filters: Annotated[int, Field(ge=1024)] | None = None
    """Store so many filters of each block (trunk, head) at most, a random choice that is the same in every study; for
    large probes and many corpora. Default: all (docs/probes.md has the error). The published procedure keeps all."""
    quirks: Quirks = Quirks()
    """`reference` only. `published`: all of them; `none`: none; or a mapping of single ones over a preset, for example
    `{preset: none, dropout: true}`; without one it starts from `published`."""

    @model_validator(mode="before")
    @classmethod
    def _draws(cls, value: Any) -> Any:
        published = isinstance(value, dict) and value.get("estimator") == "reference"
        return {"draws": 1} | value if published else value

    @model_validator(mode="after")
    def _published_whole(self) -> Self:
        if self.estimator == "reference" and self.filters is not None:
            raise ValueError(
                "filters: the published procedure keeps all; leave it out, or set estimator to exact or head"
            )
        return self

    @property
    def epsilon(self) -> float | None:
        """The epsilon of every distance of the study (see `settings.Estimator.epsilon`)."""
        return self.plain().epsilon

    def plain(self) -> settings.Estimator:
        """As `fisher` takes it. The dtype is not part of it: the probe is loaded in it."""
        return settings.Estimator(
            **self.model_dump(exclude={"dtype", "quirks"}), quirks=settings.Quirks(**self.quirks.model_dump())
        )


class Bounds(Model):
    """Smallest and largest weight of a corpus; one number in their place pins it."""

    min: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Smallest share of the training tokens."""
    max: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Largest share."""

    @model_validator(mode="before")
    @classmethod
    def _pinned(cls, value: Any) -> Any:
        return {"min": value, "max": value} if isinstance(value, int | float) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}; swap them")
        return self


TRAINED = ("loss", "mixmin", "predicted")
"""Objectives that train models, so that a search costs trainings and depends on how they are made."""


class Search(Model):
    """The search for mixture weights. Weights are shares of training tokens."""

    objective: Literal["cross-entropy", "scaled-cosine", "hellinger", "kl", "linear", "mixmin", "predicted", "loss"] = (
        "cross-entropy"
    )
    """What is maximised, pooled over the mixture. `cross-entropy`: of the target under the mixture of unigram models
    (least is best); `scaled-cosine` (the paper's), `hellinger`, `kl`: similarity of the mixture's Fisher embedding
    with the target's; `linear`: the corpora's mean alignment, a baseline that always chooses one corpus; `mixmin`:
    likelihood of held-out text under the mixture of the candidates' fine-tuned models (trains on every candidate);
    `predicted`: the loss after training, predicted from these models, merged and as an ensemble, and at most eight
    trainings on mixtures (least is best; `method` and `trials` above eight do nothing);
    `loss`: of a proxy trained on each mixture tried (needs `method` tune or swarm)."""
    method: Literal["closed_form", "tune", "swarm"] = "tune"
    """`closed_form`: seconds, no training; `tune`: that, then Ray Tune with Optuna from there; `swarm`: proxies
    trained on designed mixtures, and a surrogate fitted to their losses."""
    token_budget: Tokens = 10_000_000
    """Training tokens the mixture is meant for."""
    max_epochs: Annotated[float, Field(gt=0, le=16)] = 4.0
    """Repetition cap: no corpus is seen more often than this within the budget. Above 4, repetition costs quality."""
    weights: dict[Name, Bounds] = {}
    """By corpus: `{min: 0.1, max: 0.5}`, or one number to pin the weight."""
    max_corpora: PositiveInt | None = None
    """At most so many corpora get a weight; that of all others is exactly zero."""
    prior: Literal["proportional", "uniform"] | dict[Name, Annotated[float, Field(ge=0)]] = "uniform"
    """The mixture to stay near: proportional to the corpora's tokens, uniform, or weights by corpus."""
    prior_strength: Annotated[float, Field(ge=0)] = 0.01
    """Strength of the penalty prior_strength * KL(weights, prior), in the unit of the difference that the objective
    makes between the best and the worst single corpus."""
    targets: Literal["mean", "worst"] | dict[Name, Annotated[float, Field(ge=0)]] = "mean"
    """Several targets: their mean, their mean with weights by target, or the worst of them. The Pareto front of each
    pair is reported in any case."""
    trials: PositiveInt = 32
    """Ray Tune trials at most (it stops by itself when settled), or proxies of the swarm. A trial of a cheap objective
    evaluates 256 mixtures around the suggested one."""
    proxy_tokens: Tokens = 22_000
    """Training tokens of a proxy of `loss` or the swarm; at most `finetune.tokens`."""
    resamples: Annotated[int, Field(ge=20)] = 100
    """Random halves of the batches, for the intervals of weights and values."""


class Finetune(Model):
    """Validation by real fine-tuning."""

    model: Place | None = None
    """Model to fine-tune: a folder or hub id as `probe.model`, also `owner/name@revision`; default: the probe."""
    tokens: Tokens = 22_000
    """Training tokens of every run (22k in the paper)."""
    epochs: PositiveInt = 1
    """Passes over these tokens."""
    learning_rate: Annotated[list[PositiveFloat], Field(min_length=1)] = [3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3]
    """Of AdamW, constant after a short warm-up. One number, or several, of which the best is chosen: that with the
    lowest loss on the targets' validation halves after a training on the uniform mixture."""
    batch_size: PositiveInt = 8
    """Sequences per optimiser step."""
    eval_tokens: Tokens = 16_384
    """Held-out tokens of each target on which the loss is measured."""
    scratch: dict[str, Any] | None = None
    """Pre-train instead: random weights in the model's architecture, with these fields of its transformers
    configuration changed, for example {n_layer: 2, n_embd: 128}; {} changes nothing."""
    lora_rank: PositiveInt | None = None
    """Train low-rank adapters of linear layers instead of all weights (LoRA, by the library `peft`)."""
    lora_targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """The linear modules that get adapters: all but the vocabulary head, or those whose names end so, for example
    [q_proj, v_proj]."""
    dtype: Literal["float32", "bfloat16", "nf4"] = "float32"
    """Of the model's weights. In bfloat16 what is trained has float32 master weights and AdamW states; of LoRA the base
    alone is bfloat16, two bytes a weight. `nf4`: LoRA over a base of four bits a weight (QLoRA, by the extra `nf4`,
    bitsandbytes; on a GPU alone), embeddings and head in float32. Matrix products are in bfloat16 in any case where the
    device has it."""
    micro_batch_size: PositiveInt | None = None
    """Sequences that go through the model at once on a worker; gradients of a step are accumulated over them. Default:
    all of the step. It bounds the memory and changes a loss by rounding alone."""
    checkpoint_layers: bool = False
    """Gradient checkpointing: keep each layer's input alone and form the rest again in the backward pass, for a quarter
    to a third more time."""
    seeds: Annotated[int, Field(ge=2)] = 3
    """Trainings of each candidate and mixture; they differ in the sequences drawn and their order. A verdict needs
    three."""
    delta: PositiveFloat = 0.005
    """A difference of losses that makes none, nats per token (of the scores of a target's task, in their unit): where
    the mixture's is within it of the uniform mixture's, the verdict is `no difference`, and another mixture refutes it
    by more than that alone."""
    workers: PositiveInt = 1
    """Data-parallel Ray Train workers of one run."""
    shard: bool = False
    """Share the model out among the run's workers (torch's FSDP2), for one that does not fit a single device: each
    holds its share of weights, gradients and AdamW's states, and gathers one block after the other. It changes a loss
    by rounding alone."""
    gpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """Where GPUs are used; a fraction lets several runs share one."""
    checkpoint_every: PositiveFloat = 300.0
    """Seconds of a training after which its state is written to the output folder (weights, their average and AdamW's
    moments: sixteen bytes a trained parameter). A training whose worker dies goes on from there."""
    keep_weights: bool = False
    """Keep what every training changed in the model's weights, in bfloat16, under `finetune/weights` (twice the
    model's number of parameters in bytes each; with LoRA the adapters alone)."""

    @model_validator(mode="before")
    @classmethod
    def _one_rate(cls, value: Any) -> Any:
        rate = value.get("learning_rate") if isinstance(value, dict) else None
        single = isinstance(rate, int | float) and not isinstance(rate, bool)
        return {**value, "learning_rate": [rate]} if single else value

    @model_validator(mode="after")
    def _shared_among_several(self) -> Self:
        if self.shard and self.workers == 1:
            raise ValueError(
                "'shard: true' shares the model out among 'workers', and there is 1; set workers: 2 or more"
            )
        return self

    @model_validator(mode="after")
    def _four_bits_are_frozen(self) -> Self:
        if self.dtype == "nf4" and (self.lora_rank is None or self.scratch is not None or self.shard):
            raise ValueError(
                "'dtype: nf4' is a frozen base of four bits a weight, on which adapters alone are trained; set "
                "lora_rank, and take out scratch and shard, or choose dtype: bfloat16"
            )
        return self


class Choose(Model):
    """How candidates are compared."""

    by: Literal["words", "training"] = "words"
    """`words`: ranked by unigram cross-entropy, without training; `training`: every candidate is trained a little, and
    those that may be best go on (`choose`, a stage of `run`), which predicts losses better (docs/study.md)."""


class Predict(Model):
    """The predictive study (`align-ray study`): how well do measures of data predict the loss after training on
    them?"""

    tokens: Tokens = 22_000
    """Training tokens of a run, at most `finetune.tokens` (its rows are drawn from a sample of that size, again for
    every seed). Losses after fewer tokens are those of its rungs."""
    seeds: Annotated[int, Field(ge=2)] = 3
    """Trainings per candidate; they differ in the rows drawn, their order, and in random weights."""
    related: dict[Name, list[Name]] = {}
    """For each target the candidates of its own origin or text template; every result is given without them too."""
    probes: list[Place] = []
    """Further probes, with the same tokenizer, whose alignment is compared: as `probe.model`, also
    `owner/name@revision`."""
    poolings: list[Literal["mean", "unit"]] = ["mean"]
    """How sequences make a batch (see `embedding.pooling`), each compared with the main probe."""
    design: list[Name] = []
    """Targets on which a measure was chosen or tuned; results are given apart for the other ones."""


class Tracking(Model):
    """MLflow."""

    uri: Place | None = None
    """Tracking URI; default: a SQLite store in the output folder."""
    experiment: Annotated[str, Field(min_length=1, max_length=250)] = "align-ray"
    """Name of the experiment that holds the study's parent run."""

    @field_validator("uri")
    @classmethod
    def _with_scheme(cls, uri: str | None) -> str | None:
        if uri and re.match(r"([\w.-]+|\[[\da-fA-F:]+\]):\d+(/|$)", uri):
            raise ValueError(f"an address needs its scheme; write http://{uri} or https://{uri}")
        return uri

    @field_validator("experiment")
    @classmethod
    def _not_blank(cls, name: str) -> str:
        if not name.strip():
            raise ValueError("an experiment needs a name; give one")
        return name


class Cluster(Model):
    """Where the work runs."""

    address: Place | None = None
    """Ray address. Default: RAY_ADDRESS (set inside `ray job submit`), else a local Ray on this machine."""
    use_gpu: bool | None = None
    """Default: whether the cluster has a GPU now. Set it true on a cluster that starts its GPU nodes on demand."""
    max_actors: PositiveInt | None = None
    """Upper bound of the embedding actor pool and of fine-tunings at once; default: what the cluster holds now, one per
    GPU, or per CPU but one where no GPU is used. Set it to the largest size of a cluster that grows on demand."""


class Cost(Model):
    """What a run may cost. A worker is a GPU where GPUs are used, else a CPU; the time of other machines is not
    counted."""

    price_per_hour: PositiveFloat | None = None
    """The price of one worker."""
    currency: str = "USD"
    """The currency of the prices."""
    max_cost: PositiveFloat | None = None
    """The run stops, with what is finished kept, when it has cost so much; with a higher cap it goes on from there.
    What is charged is the time of the workers that were there; when to stop is reckoned with all that a growing
    cluster may have, so that there it comes early. Embedding, scoring and training stop in their middle; reading
    corpora is charged but not stopped."""
    tflops: PositiveFloat | None = None
    """Achieved TFLOP/s of one worker, for the estimate. Default: as measured by what the output folder holds, else
    0.1 of a CPU and 50 of a GPU, which are assumed."""

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.max_cost and not self.price_per_hour:
            raise ValueError("max_cost needs price_per_hour; add it")
        return self


class Config(Model):
    """A whole study."""

    name: Name = "study"
    """The parent run in MLflow."""
    output: Place
    """Folder (or pyarrow URI) for everything the study writes."""
    seed: Annotated[int, Field(ge=0)] = 0
    """The seed of the documents drawn, the labels and the trainings."""
    text_in_results: bool = True
    """Off: no text of a corpus in rejects.parquet, samples.json, the report and MLflow, for data that may not leave."""
    targets: Annotated[list[Corpus], Field(min_length=1)]
    """What the model will be evaluated on."""
    candidates: Annotated[list[Corpus], Field(min_length=2)]
    """What it could be trained on."""
    replay: Replay | None = None
    """General text that is part of every training."""
    probe: Probe = Probe()
    sampling: Sampling = Sampling()
    embedding: Embedding = Embedding()
    unigram: Unigram = Unigram()
    search: Search = Search()
    choose: Choose = Choose()
    finetune: Finetune = Finetune()
    predict: Predict = Predict()
    tracking: Tracking = Tracking()
    cluster: Cluster = Cluster()
    cost: Cost = Cost()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [c.name for c in self.read]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the name '{name}' is used twice; give every corpus its own name")
        taken = {c.name for c in self.candidates} & {"mixture", "uniform"} | {t.name for t in self.targets} & {"all"}
        if taken:  # `finetune` reports its two mixtures beside the candidates, `validate` all targets beside each
            raise ValueError(f"the results call something else '{min(taken)}'; give that corpus another name")
        for corpus in self.read:
            if corpus.task is not None and corpus not in self.targets:
                raise ValueError(f"'{corpus.name}' has a task, which is for targets alone; remove it")
        for target in self.targets:
            for candidate in self.candidates:
                if common := _records(target) & _records(candidate):
                    raise ValueError(
                        f"target '{target.name}' and candidate '{candidate.name}' are the same corpus "
                        f"({min(common)[0]}); "
                        "remove the candidate or give the target held-out files"
                    )
        for corpus in self.corpora if self.replay else ():
            if self.replay and _records(corpus) & _records(self.replay):
                raise ValueError(
                    f"the text for replay is that of '{corpus.name}', which trainings are to be told apart by; give "
                    "other general text"
                )
        return self

    @model_validator(mode="after")
    def _settled(self) -> Self:
        if self.embedding.estimator == "reference" and self.embedding.head_tuning != "none":
            raise ValueError(
                "embedding.head_tuning is for the exact estimator; set embedding.quirks.head_epochs for the reference"
            )
        return self

    @model_validator(mode="after")
    def _mixture(self) -> Self:
        search, candidates, targets = self.search, {c.name for c in self.candidates}, {t.name for t in self.targets}
        named = (
            ("weights", search.weights, candidates),
            ("prior", search.prior, candidates),
            ("targets", search.targets, targets),
        )
        for field, given, known in named:
            for name in given if isinstance(given, dict) else ():
                if name not in known:
                    raise ValueError(f"search.{field} names '{name}', which is not one of {', '.join(sorted(known))}")
            if field != "weights" and isinstance(given, dict) and not any(given.values()):
                raise ValueError(f"search.{field} has no positive weight; give at least one")
        if search.objective == "loss" and search.method == "closed_form":
            raise ValueError("search.objective 'loss' needs trainings; set search.method to tune or swarm")
        if search.method == "swarm" and search.objective != "loss":
            raise ValueError("search.method 'swarm' fits measured losses; set search.objective to loss")
        if search.method == "swarm" and search.trials < 10:
            raise ValueError(
                "search.trials must be at least 10 for search.method 'swarm', which fits a surrogate to them"
            )
        if search.objective == "predicted" and self.finetune.dtype == "nf4":
            raise ValueError(
                "search.objective: predicted adds what trainings changed to the base's weights, and a base of four "
                "bits (finetune.dtype: nf4) cannot be merged with anything; set finetune.dtype: bfloat16"
            )
        if search.objective == "loss" and search.proxy_tokens > self.finetune.tokens:
            raise ValueError(
                f"search.proxy_tokens is {search.proxy_tokens}, but finetune.tokens, the sample proxies are drawn "
                "from, is "
                f"{self.finetune.tokens}; raise it"
            )
        return self

    @model_validator(mode="after")
    def _study(self) -> Self:
        targets, candidates = {t.name for t in self.targets}, {c.name for c in self.candidates}
        for field, names, known in (
            ("related", self.predict.related, targets),
            ("design", self.predict.design, targets),
            *((f"related.{target}", names, candidates) for target, names in self.predict.related.items()),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(f"predict.{field} names '{name}', which is not one of {', '.join(sorted(known))}")
        return self

    @property
    def counted_tokens(self) -> int:
        """Tokens on which unigram models are counted: `unigram.tokens`, at most what every corpus is given."""
        drawn = self.sampling
        batches = min(drawn.batches, FIRST_LOOK) if drawn.sequential else drawn.batches
        return min(self.unigram.tokens, batches * drawn.batch_size * drawn.sequence_length)

    @property
    def corpora(self) -> list[Corpus]:
        """Targets, then candidates."""
        return [*self.targets, *self.candidates]

    @property
    def read(self) -> list[Corpus]:
        """All corpora that text is read of: also the one for replay."""
        return [*self.corpora, *([self.replay] if self.replay else [])]

    def to_yaml(self) -> str:
        """The resolved configuration; reading it back gives an equal Config."""
        return to_yaml(self.model_dump(mode="json"))


class _Dumper(yaml.SafeDumper):
    """Texts with line breaks and the like in one line, with escapes: PyYAML loses U+0085 in its other styles."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, None if text.isprintable() else '"'),
)


def to_yaml(value: Any, flow: bool | None = False) -> str:
    """YAML of plain values, in their order and one line a scalar; the safe loader gives them back. `flow`: None puts
    lists of scalars in one line."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**30, default_flow_style=flow)


def _records(corpus: Corpus) -> set[tuple]:
    """What identifies a corpus' records, by source, whatever text is made of them."""
    sources = [s if ":" in s else str(Path(os.path.expanduser(s)).resolve()) for s in corpus.sources]
    return {(source, corpus.split, corpus.subset) for source in sources}


def digest(value: Any, length: int = 16) -> str:
    """Hexadecimal SHA-256 of a JSON value, cut to `length` digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]
