"""`align-ray ui`: MLflow's pages of a study, on this machine alone."""

import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from align_ray.cli.common import config_of, guard
from align_ray.errors import ConfigError
from align_ray.reporting.tables import out

HOST = "127.0.0.1"


def ui(
    study: Annotated[Path, typer.Argument(help="The study's configuration (YAML) or its output folder.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Open MLflow with the study's runs, on this machine's loopback; Ctrl-C ends it.

    Example: [b]align-ray ui runs/my-study[/b]
    """
    guard(lambda: _serve(study, port))


def _serve(study: Path, port: int) -> None:
    from align_ray.store import Store

    study = study.resolve()
    uri, store = local_tracking(study), Store(config_of(study).output)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(f"--port {port}: {error.strerror}; choose another port.") from None
    page = ""
    # MLflow opens on its pages for chat applications unless the link says otherwise
    if store.exists("mlflow-run.json"):
        page = (
            f"/#/experiments/{store.read_json('mlflow-run.json')['experiment_id']}/runs?workflowType=machine_learning"
        )
    out.print(f"MLflow: http://{HOST}:{port}{page}\nstore: {uri}", highlight=False, soft_wrap=True)
    server = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", HOST, "--port", str(port)]
    server += ["--artifacts-destination", str(Path(uri.partition(":///")[2]).parent / "mlartifacts"), "--workers", "1"]
    os.execv(sys.executable, server)


def local_tracking(config: Path) -> str:
    """The SQLite store of a study; raises ConfigError where it is tracked elsewhere or holds no store yet."""
    from align_ray.reporting.tracking import tracking_uri

    known = config_of(config)
    uri = tracking_uri(known)
    kind, _, path = uri.partition(":///")
    if kind != "sqlite":
        raise ConfigError(f"{config}: this study is tracked at {uri} (field 'tracking.uri'); open its pages there.")
    if not Path(path).is_file():
        raise ConfigError(
            f"{config}: {path} does not exist yet; run a stage first, for example align-ray run {config}."
        )
    return uri
