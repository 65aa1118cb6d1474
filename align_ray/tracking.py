"""MLflow, from the driver only: one parent run per study, child runs for candidates, trials and fine-tunings.

Workers never talk to MLflow: a new SQLite store that several processes meet at once is destroyed (hydraflow#245).
"""

import dataclasses
import logging
import time
from typing import Any

from align_ray.config import Config
from align_ray.errors import StoreError
from align_ray.store import Store


@dataclasses.dataclass(frozen=True)
class Tracker:
    """The MLflow parent run of a study."""

    uri: str
    experiment_id: str
    run_id: str

    def _client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def metrics(self, values: dict[str, float]) -> None:
        """Log metrics of the parent run."""
        _log(self._client(), self.run_id, {}, values)

    def child(self, name: str, kind: str, params: dict[str, Any], values: dict[str, float]) -> None:
        """A finished child run; one that exists under the same name and kind is replaced."""
        client = self._client()
        clause = f"tags.`mlflow.parentRunId` = '{self.run_id}' and tags.`align_ray.kind` = '{kind}' and tags.`mlflow.runName` = '{name}'"
        for old in client.search_runs([self.experiment_id], clause):
            client.delete_run(old.info.run_id)
        tags = {"mlflow.parentRunId": self.run_id, "mlflow.runName": name, "align_ray.kind": kind}
        run = client.create_run(self.experiment_id, tags=tags)
        _log(client, run.info.run_id, params, values)
        client.set_terminated(run.info.run_id)

    def artefact(self, path: str) -> None:
        """Attach a local file to the parent run."""
        self._client().log_artifact(self.run_id, path)

    def finish(self, status: str = "FINISHED") -> None:
        """End the parent run: FINISHED, FAILED or KILLED."""
        self._client().set_terminated(self.run_id, status)


def start_tracking(config: Config, store: Store) -> Tracker:
    """Open the study's parent run, or the one an earlier stage opened (its id is kept beside the results)."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # a new store reports each of its migrations
    folder = store.local_path()
    uri = config.tracking.uri or f"sqlite:///{folder}/mlflow.db"
    try:
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(config.tracking.experiment)
    except Exception as error:  # no server, no data base, one of another version: SQLAlchemy's and MLflow's own classes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise StoreError(f"MLflow's store {uri} cannot be opened ({reason}); mend it, or move it away to start a new one.") from None
    if experiment:
        experiment_id = experiment.experiment_id
    else:
        location = None if config.tracking.uri else (folder / "mlartifacts").as_uri()
        experiment_id = client.create_experiment(config.tracking.experiment, artifact_location=location)
    known = store.find_json("mlflow-run.json")
    if isinstance(known, dict) and known.keys() >= {"uri", "experiment_id", "run_id"}:
        if known["uri"] == uri:
            try:
                client.get_run(known["run_id"])
                return Tracker(uri, known["experiment_id"], known["run_id"])
            except MlflowException:
                pass  # the store was removed: open a new run
    run_id = client.create_run(experiment_id, run_name=config.name).info.run_id
    store.write_json("mlflow-run.json", {"uri": uri, "experiment_id": experiment_id, "run_id": run_id})
    flat = {f"{s}.{k}": v for s, section in config.model_dump(mode="json").items() if isinstance(section, dict) for k, v in section.items()}
    names = {"targets": ",".join(t.name for t in config.targets), "candidates": ",".join(c.name for c in config.candidates)}
    _log(client, run_id, {**flat, **names, "seed": config.seed}, {})
    return Tracker(uri, experiment_id, run_id)


def _log(client: Any, run_id: str, params: dict[str, Any], values: dict[str, float]) -> None:
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    client.log_batch(
        run_id,
        metrics=[Metric(k, float(v), now, 0) for k, v in values.items()],
        params=[Param(k, str(v)[:500]) for k, v in params.items()],
    )
