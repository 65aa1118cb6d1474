"""Compare candidates by short trainings, as a Ray job.

ray job submit --working-dir . -- python jobs/choose.py --config CONFIG.yaml [--set FIELD=VALUE ...]
"""

from align_ray.cli.main import job

if __name__ == "__main__":
    job("choose")
