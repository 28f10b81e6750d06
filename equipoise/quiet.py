"""Flower, Ray and MLflow without phoning home: nothing leaves a hospital that the study did not ask for."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",  # what MLflow reads too, and whatever else keeps to it
}


def quiet_flower(home: Path | None = None) -> None:
    """Switch off telemetry, update checks and installs at run time, for this process and its children.

    Args:
        home: folder for Flower's own files (`FLWR_HOME`), made where it is missing; None leaves it as it is.
    """
    os.environ.update(SETTINGS)
    if home is not None:
        home.mkdir(parents=True, exist_ok=True)
        os.environ["FLWR_HOME"] = str(home.resolve())
    # Flower reads its telemetry switch once, on import; a program that imported it before us must be quiet as well.
    telemetry = sys.modules.get("flwr.supercore.telemetry")
    if telemetry is not None:
        vars(telemetry)["FLWR_TELEMETRY_ENABLED"] = "0"
