"""Select the documents of a corpus that are most aligned with a target, as a Ray job.

ray job submit --working-dir . -- python jobs/select_documents.py --config CONFIG.yaml --corpus NAME --out URI
--tokens N
"""

from align_ray.cli.select import job

if __name__ == "__main__":
    job()
