"""What a model makes of a study's tasks before and after one training on single candidates.

    python benchmarks/tasks.py studies/tasks.yaml [--model smollm2] [--candidates abstracts solutions] [--tokens 8192]

Losses on the report halves of the targets, and the tasks' scores with 95% intervals over items (one training, one
seed). Goes on where it was stopped.
"""

import argparse
from pathlib import Path

from align_ray.config_file import load_config
from align_ray.corpora.items import read_items
from align_ray.corpora.rows import report_half
from align_ray.corpora.sample import sample_corpora
from align_ray.pipeline import open_study
from align_ray.runtime import connect
from align_ray.training.jobs import train_jobs
from align_ray.training.rows import candidate_jobs, heldout_rows
from align_ray.training.tasks import task_scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--candidates", nargs="+")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--micro-batch", type=int)
    options = parser.parse_args()
    settings = {"tokens": options.tokens, "eval_tokens": 4096, "learning_rate": [options.rate]}
    changes = {"probe": {"model": options.model}, "output": f"runs/tasks-{Path(options.model).name}"}
    changes |= {f"finetune.{name}": value for name, value in settings.items()}
    changes |= {"sampling.batches": 2, "finetune.micro_batch_size": options.micro_batch}
    study = open_study(load_config(options.study, changes), say=lambda line: print(line, flush=True))
    connect(study.config.cluster)
    sample_corpora(study)
    heldout, items = heldout_rows(study), read_items(study)
    names = options.candidates or [c.name for c in study.config.candidates]
    jobs = candidate_jobs(study, options.tokens, names=names)
    done = train_jobs(study, heldout, jobs)
    show = lambda e, form: f"{e['value']:{form}} [{e['low']:{form}}, {e['high']:{form}}]"  # noqa: E731
    print(
        "| target | trained on | loss before | loss after | accuracy before | after | score before | change of score |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, trained in zip(names, done, strict=True):
        scores = task_scores([trained], items)
        for target, losses in trained.losses.items():
            before, after = (report_half(x).mean() for x in (losses.before, losses.after))
            s = scores[target]
            print(
                f"| {target} | {name} | {before:.3f} | {after:.3f} | {s['accuracy_before']:.3f} "
                f"| {show(s['accuracy'], '.3f')} | {s['score_before']:.3f} | {show(s['score_change'], '+.3f')} |"
            )
    for target, s in scores.items():
        guessing = "" if s["chance"] is None else f", guessing {s['chance']:.3f}"
        print(f"{target}: {s['items']} items, score: {s['measure']}, {s['unit'] or s['metric']}{guessing}")


if __name__ == "__main__":
    main()
