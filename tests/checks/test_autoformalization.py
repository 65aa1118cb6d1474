"""Real corpora, target ProofNet's test split: the ranking a mathematician would expect."""

import pytest

from align_ray.config import Config
from align_ray.pipeline import align, embed, open_study
from tests.conftest import SHARED

CANDIDATES = [
    "minif2f-lean4/validation", "forml4-mathlib/train", "gsm8k/train", "openlogic/train", "python-problems/train",
    "wikitext-2/train", "tiny-shakespeare/train", "gutenberg-novels/train", "pubmedqa/train", "c4-sample/train",
    "sgd-dialogues/train",
]  # fmt: skip


FEW = ("minif2f-lean4/validation", "gsm8k/train", "gutenberg-novels/train")


@pytest.mark.shared
@pytest.mark.full
@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(("candidates", "batches"), [(FEW, 4), (CANDIDATES, 8)], ids=["few", "all"])
def test_formal_mathematics_ranks_first_and_mathematical_prose_above_dialogue_and_fiction(
    tmp_path, candidates, batches
):
    mapping = {
        "output": str(tmp_path),
        "targets": [{"name": "proofnet-test", "source": str(SHARED / "proofnet-lean4/test.jsonl")}],
        "candidates": [{"name": c.split("/")[0], "source": str(SHARED / f"{c}.jsonl")} for c in candidates],
        "sampling": {"batch_size": 8, "batches": batches},
        "search": {"token_budget": 100_000},
    }
    study = open_study(Config.model_validate(mapping))
    embed(study)
    ranking = align(study)["ranking"]["proofnet-test"]
    for row in ranking:
        print(
            f"{row['candidate']:20s} {row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}] P(above next) {row['p_above_next']}"
        )
    order = [row["candidate"] for row in ranking]
    formal = {"minif2f-lean4", "forml4-mathlib"} & set(order)
    assert formal and set(order[: len(formal)]) == formal
    compared = [
        (p, o) for p in ("gsm8k", "openlogic") for o in ("sgd-dialogues", "tiny-shakespeare", "gutenberg-novels")
    ]
    compared = [(prose, other) for prose, other in compared if {prose, other} <= set(order)]
    assert compared and all(order.index(prose) < order.index(other) for prose, other in compared), order
