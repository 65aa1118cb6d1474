"""What the mixtures of a search are called, and what each one is, in a line."""

MIXTURES = {
    "recommended": ("recommended", "the mean of all mixtures that are as good as the optimum within its error"),
    "closed_form": ("optimum", "the best by the objective, within budget and limits"),
    "search": ("best trial", "the best that Ray Tune's trials found: a check of the optimum"),
    "unconstrained": ("optimum without limits", "the best by the objective if text never ran out"),
    "uniform": ("uniform", "the same share of every corpus"),
    "proportional": ("proportional", "every corpus by its size, as if all were poured together"),
    "unimax": ("UniMax", "uniform, but no corpus repeated more often than allowed (Chung et al.)"),
    "best_single": ("best corpus alone", "all of the one corpus that is best by the objective"),
    "bad": ("worst on purpose", "as much as allowed of the worst corpus: what a bad choice costs"),
    "dsir": ("DSIR", "documents resampled by their n-grams to match the target (Xie et al.)"),
    "mixmin": ("MixMin", "the least loss of mixed models, one trained on each corpus (Thudi et al.)"),
    "by mixmin": ("optimum by MixMin", "what the search by predicted losses started from"),
}
"""By the name in the results, which `validate --mixture` takes: name and explanation."""


def called(mixture: str) -> str:
    """What a person reads."""
    return MIXTURES[mixture][0] if mixture in MIXTURES else mixture.replace("by ", "optimum by ", 1)


def explained(mixture: str) -> str:
    """What it is, in a line."""
    if mixture in MIXTURES:
        return MIXTURES[mixture][1]
    return "the optimum of another objective, within the same limits" if mixture.startswith("by ") else ""
