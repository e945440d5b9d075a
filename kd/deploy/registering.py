"""`tracking.register`: the student of a finished run in MLflow's registry, as a model that needs no other package."""

import logging
from pathlib import Path

from kd import tracking
from kd.deploy import export
from kd.deploy.exporting import export_run, record
from kd.deploy.finished import find
from kd.errors import UserError
from kd.run import console
from kd.system.files import digest

log = logging.getLogger(__name__)


def register(folder: Path, name: str, root: Path) -> None:
    """Put the student of a finished run into MLflow's registry as `name`, as ONNX; nothing where it is there already.

    Raises:
        UserError: the run's network cannot be exported, or the store does not take it.
    """
    run = find(folder)
    file = run.folder / "export" / f"{run.weights.stem}.onnx"
    if file.name not in record(run, file.parent)["files"] or not file.is_file():
        export_run(folder, export.Wanted(("onnx",)), None, export.TOLERANCE)
    version = tracking.register(folder, root, name, export.proto(file), digest(run.weights))
    console.say(f"register {name}, version {version}")


def register_or_warn(folder: Path, name: str, root: Path) -> None:
    """The same at the end of a run, which a store that is away does not harm."""
    try:
        register(folder, name, root)
    except Exception as error:  # whatever it is, the run is whole
        defect = not isinstance(error, UserError)
        log.warning(
            "the student is not registered as %s (%s); `kd sync %s` does it later", name, error, folder, exc_info=defect
        )
