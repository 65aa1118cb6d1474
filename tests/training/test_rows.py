"""What a proxy trains on: proportions, and the repetition of the real run."""

import dataclasses

import numpy as np

from align_ray.config import Config
from align_ray.corpora.rows import FILLED, Rows, report_half, validation_half
from align_ray.training.jobs import Job
from align_ray.training.rows import mixture_rows, seen, unique_sequences

T = 16
TRAINING = {
    "a": Rows.plain(np.arange(200)[:, None] + np.zeros(T, int)),
    "b": Rows.plain(1000 + np.arange(50)[:, None] + np.zeros(T, int)),
}


def rows(weights, unique, count=100, seed=0):
    return mixture_rows(TRAINING, unique, weights, count, seed).ids[:, 0]


def test_rows_are_in_proportion_and_not_repeated_while_there_are_enough():
    drawn = rows({"a": 0.7, "b": 0.3}, {"a": 200, "b": 50})
    assert (drawn < 1000).sum() == 70 and len(set(drawn.tolist())) == 100
    np.testing.assert_array_equal(drawn, rows({"a": 0.7, "b": 0.3}, {"a": 200, "b": 50}))
    assert set(drawn.tolist()) != set(rows({"a": 0.7, "b": 0.3}, {"a": 200, "b": 50}, seed=1).tolist())


def test_a_corpus_is_repeated_as_often_as_in_the_real_run():
    """10,000 tokens of `b` in a budget of 40,000: half of the mixture repeats it twice, and so must a proxy."""
    corpus = {"name": "x", "source": "x.jsonl"}
    config = Config.model_validate(
        {
            "output": "out",
            "targets": [{**corpus, "name": "t", "source": "t.jsonl"}],
            "candidates": [corpus, {"name": "y", "source": "y.jsonl"}],
            "sampling": {"sequence_length": T},
            "search": {"token_budget": 40_000},
        }
    )
    proxy_tokens = 40 * T
    unique = unique_sequences(config, {"a": 10**6, "b": 10_000}, proxy_tokens)
    assert unique["b"] == 10
    drawn = rows({"a": 0.5, "b": 0.5}, unique, 40)
    counts = np.unique(drawn[drawn >= 1000], return_counts=True)[1]
    assert len(counts) == 10 and (counts == 2).all() and len(set(drawn[drawn < 1000].tolist())) == 20


def test_the_halves_of_the_held_out_text_are_all_of_it_and_share_nothing():
    values = np.arange(7)
    np.testing.assert_array_equal(np.concatenate([validation_half(values), report_half(values)]), values)


def test_what_a_job_has_seen_is_counted_in_distinct_tokens_and_epochs():
    job = Job(rows=TRAINING["a"][np.array([0, 1, 1, 2, 2, 2])], learning_rate=1e-3, seed=0)
    assert seen(job, epochs=2) == {"distinct_tokens": 3 * T, "epochs": 4.0}


def test_what_fills_a_row_up_is_no_token_that_is_seen():
    rows = dataclasses.replace(
        TRAINING["a"][:4], documents=np.where(np.arange(T) < 10, 5, FILLED) + np.zeros((4, 1), int)
    )
    assert seen(Job(rows, 1e-3, 0), epochs=1) == {"distinct_tokens": 4 * 10, "epochs": 1.0}
