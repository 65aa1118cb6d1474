"""Loss difference: how much a short training on the target lowers the loss of a candidate's text.

Moore and Lewis (2010) with two language models, the base and the same one tuned on the target, as CoLoR-Filter does
(arXiv 2406.10670). One short training a target; the target's embedded sample is trained on, never its held-out text.
"""

import numpy as np

from align_ray.alignment.influence import SEQUENCES, spread
from align_ray.alignment.measures import Measure
from align_ray.context import Study
from align_ray.corpora.rows import Rows
from align_ray.corpora.sample import read_sample
from align_ray.training.jobs import Job, train_jobs
from align_ray.training.rows import learning_rate

NAME = "loss difference (base less tuned on the target)"


def loss_difference(study: Study) -> Measure:
    """Scores [K, M] in nats per token: the candidate's loss before less after a training on the target's sample, at the
    study's rate. `study` with a single learning rate."""
    study = study.changed(finetune={"keep_weights": False})
    config = study.config
    batches = {c.name: np.concatenate(list(read_sample(study.store, c.name).batches)) for c in config.corpora}
    measured = {c.name: Rows.encoded_as(spread(batches[c.name], SEQUENCES)) for c in config.candidates}
    rate = learning_rate(config)
    jobs = [Job(Rows.encoded_as(batches[t.name]), rate, 0) for t in config.targets]
    study.say(f"training on every target's sample, for the loss difference: {len(jobs)} trainings")
    done = train_jobs(study, measured, jobs, scored=False)
    gain = [[(t.losses[c].before - t.losses[c].after).mean() for t in done] for c in measured]
    seconds = float(np.median([t.seconds for t in done])) * len(jobs) / len(batches)
    return Measure(NAME, "model", np.array(gain), seconds)
