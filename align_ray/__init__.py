"""align-ray: choose training data by how well it is aligned with what the model will be evaluated on.

    import align_ray

    study = align_ray.open_study(align_ray.load_config("study.yaml"))
    align_ray.embed(study)
    align_ray.align(study).to_pandas()
    align_ray.search(study).mixtures["recommended"].weights
    align_ray.finetune(study).plot()
    print(align_ray.report(study))

What a stage returns has typed fields, `to_pandas()` and `plot()` (`reporting/results.py` and `trained.py`);
examples/quickstart.ipynb shows them.
"""

import importlib
import os
from typing import Any

__version__ = "0.2.0"

# MLflow reads it when it is imported, which several modules and processes do: here it holds for all of them, the server
# of `align-ray ui` too. A study contacts what its user named.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

STAGE_NAMES = ("embed", "align", "contamination", "samples", "choose", "search", "finetune", "validate", "predict")
"""Names of the stages (see `pipeline.STAGES`), each a function of a Study."""
_PUBLIC = {
    "load_config": "config_file",
    "Config": "config",
    "open_study": "pipeline",
    "Study": "context",
    **dict.fromkeys(STAGE_NAMES, "pipeline"),
    "recipe": "pipeline",
    "report": "pipeline",
    "run": "pipeline",
    "UserError": "errors",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import on first use: `align-ray --help` must not wait for torch and Ray."""
    if name in _PUBLIC:
        value = getattr(importlib.import_module(f"align_ray.{_PUBLIC[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'align_ray' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
