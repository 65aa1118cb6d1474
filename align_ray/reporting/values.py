"""The values that results are made of: estimates with their intervals, rankings, mixtures, losses, scores."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """The base of all values: fixed once made; fields that this version does not know are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants", protected_namespaces=())

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        return getattr(self, name)

    def __contains__(self, name: object) -> bool:
        return name in type(self).model_fields or name in (self.model_extra or {})


class Estimate(Value):
    """A value with its standard error and the ends of its 95% interval."""

    value: float
    error: float
    low: float
    high: float


Estimates = dict[str, Estimate]


Weights = dict[str, float]
"""Shares of tokens by candidate."""


class Counts(Value):
    """Counts of one corpus: what was read and what was drawn of it."""

    model_config = ConfigDict(extra="allow")

    role: str
    batches: int
    estimated_tokens: int
    """Bytes of all documents times the tokens per byte of the sample."""
    sample_digest: str = ""
    documents: int = 0
    bytes: int = 0
    in_target: int = 0
    """Drawn documents left out because a target holds the same text."""
    shared_with: dict[str, float] = {}
    """By another candidate, the share of this one's documents that it has as well."""


class Embedded(Value):
    """What the embedding stage did: units planned and computed now, their folder, and batches used by corpus where
    fewer."""

    key: str
    dtype: str
    planned: int
    computed: int
    tokens: int
    actor_seconds: float
    used: dict[str, int] | None = None
    looks: list[dict[str, int]] = []
    """By look of sequential embedding: batches embedded so far, and corpora whose rank is `unsettled`."""


class Ranked(Estimate):
    """A candidate's place in a ranking: its value, and how sure that place is (see `alignment.comparison.ranking`)."""

    candidate: str
    p_best: float
    p_above_next: float | None = None
    """P(the true value is better than the next one's), given the batches seen."""
    adjusted: float | None = None
    """1 - p of a test of that order, adjusted for all comparisons."""
    settled: bool | None = None
    """Whether it is better than the next one after that adjustment; None for the last."""
    separate: int | None = None
    """Batches a corpus that would tell it from the next."""
    corrected: Estimate | None = None
    """Without label noise."""
    pooled: Estimate | None = None
    """The alignment of the corpora's mean embeddings."""


class Diversity(Estimate):
    """div of a corpus, also without label noise."""

    corrected: Estimate | None = None


class Noise(Value):
    """Label noise of a corpus (see `alignment.noise.corpus_noise`)."""

    floor: Estimate | None
    draw_variance: float | None
    share: float | None
    draws: int
    sequences: int


class Measured(Value):
    """One measure of all pairs: 1 - div on the diagonal of `matrix`."""

    matrix: dict[str, Estimates] = {}
    ranking: dict[str, list[Ranked]]
    """By target, most aligned first."""
    diversity: dict[str, Diversity] = {}
    ceiling: Estimates = {}
    """By target: 1 - div(T), what a candidate of the target's very distribution reaches."""


class Unranked(Estimate):
    """A candidate that holds less than models are counted on: its value under a model of what it holds."""

    candidate: str
    tokens: int


class Predicted(Value):
    """The ranking by the unigram models' cross-entropy."""

    measure: str
    ranking: dict[str, list[Ranked]]
    tokens: int = 0
    """On which every candidate's model is counted."""
    unranked: dict[str, list[Unranked]] = {}


class Described(Value):
    """A mixture: `value` of the objective (higher is better), pooled alignment, and epochs of every corpus at the
    budget."""

    weights: Weights
    value: float
    feasible: bool | None = None
    """Whether it keeps to the constraints; None where an earlier version searched."""
    alignment: Estimate
    epochs: dict[str, float]


class Bounded(Value):
    """A corpus' weight at the optimum, what limits it, and what more of it would gain."""

    weight: float
    low: float
    high: float
    binds: str | None
    more_tokens: int = 0
    """A tenth more than it holds, where repetition limits it."""
    gain_of_more: float = 0.0
    """What they would add to the objective, to first order."""
    price_of_bound: float = 0.0


class Lead(Value):
    """The optimum's objective less that of the best single corpus."""

    corpus: str
    value: float
    low: float
    high: float


class Trial(Value):
    """A mixture that a search tried: `value` and `penalised` of a cheap objective, `loss` of a proxy, nats per
    token."""

    weights: Weights
    value: float | None = None
    penalised: float | None = None
    loss: float | None = None
    losses: dict[str, float] | None = None


class FrontPoint(Value):
    """A mixture of the Pareto front, and every target's objective."""

    target_weights: dict[str, float]
    weights: Weights
    values: dict[str, float]


class AtBudget(Value):
    """The optimum at another token budget: its objective (`value`), that less UniMax's at that budget (`gain`), the
    corpora that repetition limits, and whether the constraints leave it `only`."""

    token_budget: int
    weights: Weights
    value: float
    gain: float
    capped: list[str] = []
    only: bool = False


class Checked(Value):
    """Pooled alignment with a target, predicted and measured on other text."""

    predicted: Estimate
    measured: Estimate


class Forgotten(Value):
    """The loss on held-out general text before and after a training, nats per token."""

    before: float
    after: float
    change: float
    change_error: float | None
    """Standard error over seeds and held-out rows; None for a single row."""
    change_low: float | None = None
    change_high: float | None = None


class TaskScore(Value):
    """A target's task on its items: the share answered (of a task of lm-eval: its metric), and a continuous score,
    higher is better; intervals over seeds and items."""

    measure: str = "margin"
    """What the score is called: `margin`, the log-likelihood per byte of the right choice less that of the best wrong
    one; `log-likelihood`, that of the whole right answer per byte; or, of a task of lm-eval that has neither, its
    metric, which accuracy is then as well."""
    unit: str = "nats per byte"
    """Of the score; none of a metric."""
    metric: str = "accuracy"
    """What the accuracy is called: of a task of lm-eval as there."""
    items: int
    chance: float | None
    """Accuracy of guessing, where it is known."""
    accuracy_before: float
    accuracy: Estimate
    accuracy_change: Estimate
    score_before: float
    score: Estimate
    score_change: Estimate

    def labels(self) -> dict[str, str]:
        """The fields that say how good it is, the one that decides first, and what each is called."""
        if not self.unit:
            return {"score": self.measure}
        return {"score": f"{self.measure}, {self.unit}", "accuracy": self.metric}

    @property
    def at_floor(self) -> bool:
        """Whether the accuracy is not told from guessing: the end of its interval is at it or below."""
        return self.chance is not None and self.accuracy.low <= self.chance


class Change(Forgotten):
    """The same of a target's held-out text."""

    task: TaskScore | None = None
    """Where the target has a task."""

    overlap: float
    """Share of the held-out 13-token windows that occur in the training rows."""


class Rung(Value):
    """Losses by target after so many steps, nats per token on the first half of the held-out text."""

    steps: int
    losses: dict[str, float]


class AtTokens(Value):
    """A loss after so many tokens with the ends of its 95% interval, nats per token."""

    tokens: int
    value: float
    low: float
    high: float


class Course(Value):
    """A run's loss on a target: `measured` at its rungs and its end, and `expected` beyond, the last at the budget; the
    probability that it is the lowest of all runs, at the end and at the budget."""

    measured: list[AtTokens]
    """Before the end: what the loss on the first half of the held-out rows, where rungs are measured, was above its
    end's, added to the end's on the second half."""
    expected: list[AtTokens]
    p_best: float
    p_best_at_budget: float


class Extrapolation(Value):
    """How a target's losses would go on to the token budget (see `training.extrapolation`): the runs with the lowest
    loss measured and with the lowest expected at the budget."""

    token_budget: int
    best: str
    best_at_budget: str
    settled_at_budget: bool
    """Whether that one is the lowest with probability 0.9."""
    holds_to: int | None
    """Tokens up to which the lowest one measured is still so with probability 0.9; None where it is not so even at the
    end of the training."""
    runs: dict[str, Course]


class Against(Value):
    """Another mixture's loss (see `Verdict.measure`) less the recommended one's (above 0 the other is worse), mean over
    targets, and the probability that the other's is lower."""

    value: float
    low: float
    high: float
    p_lower: float


class Verdict(Value):
    """Whether the recommended mixture held."""

    state: Literal["confirmed", "not confirmed", "undecided", "no difference", "not tested"]
    why: str
    against: dict[str, Against] = {}
    """By mixture that was trained and could be recommended in its place, and the uniform one."""
    seeds_needed: int | None = None
    """Of an undecided one: about how many seeds would settle it."""
    by: Literal["loss", "task"] = "loss"
    """What it is by: the loss, or the continuous score of the targets' tasks where there are any."""
    measure: str = "held-out loss, nats per token"
    """What `against` compares, lower is better."""
    accuracy: Estimate | None = None
    """By a task: the recommended mixture's accuracy less the uniform one's; None where they differ on no item."""
    by_loss: str | None = None
    """By a task: what the verdict by the loss would be, where it is another."""

    def __str__(self) -> str:
        return f"{self.state}: {self.why}"


class Training(Value):
    """One run of the fine-tuning stage."""

    weights: Weights
    sequences: int
    distinct_tokens: int | None = None
    """Tokens of its different sequences; None where an earlier version trained."""
    epochs: float | None = None
    """How often each of them is seen."""
    epochs_at_budget: float | None = None
    """How often the token budget would see the corpus that these weights repeat most; None where an earlier version
    trained."""
    training: list[tuple[int, float]] = []
    """Steps with the loss of their batch."""
    rungs: list[Rung] = []
    """Losses while it was trained."""
    targets: dict[str, Change]
    general: Forgotten | None = None
    """What it made the model forget, where the study has general text (`replay`)."""


class Validated(Value):
    """A mixture's loss by target, nats per token, over seeds and held-out sequences."""

    weights: Weights
    distinct_tokens: int | None = None
    """Tokens of the different sequences of a training; None where an earlier version trained."""
    epochs: float | None = None
    """How often each of them is seen."""
    same_as: str | None
    """A mixture with the same weights that was trained in its place."""
    loss: Estimates
    task: dict[str, TaskScore] = {}
    """By target that has a task."""


class Difference(Estimate):
    """The difference of two mixtures' losses, paired; `p_lower`: the probability that the first one's is lower."""

    p_lower: float


class Overlap(Value):
    """`documents` of a candidate, of `of` in all, that share a run of words with a target; the share of its runs
    they cover."""

    documents: int
    of: int
    covered: float


class Clean(Value):
    """A candidate's sample with and without the sequences that hold text of the target."""

    share: float = 0.0
    """The share of its sampled sequences that hold some."""
    alignment: Estimate
    alignment_clean: Estimate | None
    cross_entropy: float | None
    cross_entropy_clean: float | None
    rank: int | None
    rank_clean: int | None
    explained: bool = False
    """Whether the cross-entropy without leaked text is higher by more than chance."""


class MixturePrediction(Value):
    """Losses of mixtures predicted from trainings on each candidate and some mixtures."""

    experts: int
    """Candidates trained on alone."""
    runs: int
    """Mixtures trained on."""
    mixtures: dict[str, Estimates]
    """By mixture and target, nats per token on the half of the held-out rows that chooses."""

    def lines(self) -> list[str]:
        """What was predicted of the recommended and the uniform mixture, a sentence a target."""
        found = []
        for target, best in self.mixtures["recommended"].items():
            beside = self.mixtures.get("uniform", {}).get(target)
            uniform = f", uniform {beside.value:.4f} [{beside.low:.4f}, {beside.high:.4f}]" if beside else ""
            found.append(f"predicted loss, {target}: {best.value:.4f} [{best.low:.4f}, {best.high:.4f}]{uniform}")
        return [*found, f"from trainings on {self.experts} candidates alone and {self.runs} mixtures"]


class Excerpt(Value):
    """A sequence's text, its alignment with the target and the probe's loss on it, nats per token."""

    text: str
    alignment: float
    loss: float | None


class Scores(Value):
    """Alignment of a corpus' sequences with a target: minimum, quartiles and maximum, and examples."""

    of: int
    quantiles: list[float]
    most: list[Excerpt] = []
    least: list[Excerpt] = []


class Sampled(Value):
    """The scored sequences of a corpus."""

    role: str
    targets: dict[str, Scores]


class Interval(Value):
    """A mean over targets with the ends of its 95% interval."""

    value: float
    low: float
    high: float


class Gap(Interval):
    """A measure's rank correlation less that of the best cheap baseline; p: twice the share of resamples on the
    other side of 0."""

    p: float


class Judged(Value):
    """What a measure is worth (see `checks.prediction.Quality`)."""

    spearman: Interval
    pearson: Interval
    regret: Interval
    centred: Interval
    pooled_r2: float
    by_target: list[float]


class MeasureScores(Value):
    """A measure's scores [K][M], and the seconds it takes a corpus."""

    name: str
    family: str
    scores: list[list[float]]
    seconds: float


class Versus(Value):
    """The best cheap baseline, and what every other measure's rank correlation is above it."""

    baseline: str
    difference: dict[str, Gap]


class Setting(Value):
    """Trainings on one number of tokens: losses [K][M], nats per token, and how well every measure predicts them."""

    learning_rate: float
    epochs: list[float] = []
    """[K]: how often a training sees each of its rows."""
    before: list[float]
    loss: list[list[float]]
    seed_error: float
    seconds: float
    reliability: float
    results: dict[str, dict[str, Judged]]
    versus: dict[str, Versus]


class Final(Estimate):
    """What is believed of a candidate's loss at the end of a whole training, nats per token."""

    tokens: int
    """It was trained on."""
    p_best: float
    p_within: float
    """Probability of being within delta of the best one."""
    regret: float
    """Expected loss above the best candidate's."""
    task: TaskScore | None = None
    """After those tokens, where the target has a task; interval over items."""


class Standings(Value):
    """A target's candidates, lowest loss first."""

    state: Literal["settled", "open", "no difference"]
    """Whether one is within delta of the best with probability 0.9; `no difference`: all of them are."""
    why: str
    before: float
    """The base's loss."""
    candidates: dict[str, Final]
