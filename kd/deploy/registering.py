"""`tracking.register`: the student of a finished run in MLflow's model registry, as ONNX."""

import logging
from pathlib import Path

from kd import tracking
from kd.deploy import export
from kd.deploy.exporting import export_record, export_run
from kd.deploy.finished import find
from kd.errors import UserError
from kd.run import console
from kd.run.folder import SavedRun
from kd.system.files import digest
from kd.system.untrusted import is_regular

log = logging.getLogger(__name__)


def register(folder: Path, name: str, root: Path, uri: str | None = None) -> None:
    """Register the student of a finished run as model `name`; does nothing if this version is registered already.

    `uri` is the address of the store if it is not the project's own.

    Raises:
        UserError: the network cannot be exported, or the store rejects it.
    """
    run = find(folder)
    file = run.folder / "export" / f"{run.weights.stem}.onnx"
    if file.name not in export_record(run, file.parent)["files"] or not is_regular(run.folder, f"export/{file.name}"):
        for error in export_run(folder, export.Wanted(("onnx",)), None, export.TOLERANCE):
            raise error
    version = tracking.register(folder, root, name, export.proto(file), digest(run.weights), uri)
    console.say(f"register {name}, version {version}")


def register_or_warn(folder: Path, name: str, root: Path, uri: str | None = None) -> None:
    """The same at the end of a run, where any error is only a warning: the run itself is complete."""
    try:
        register(folder, name, root, uri)
    except Exception as error:
        is_bug = not isinstance(error, UserError)
        retry = tracking.sync_command(SavedRun(folder))
        log.warning("could not register the student as %s (%s); retry with `%s`", name, error, retry, exc_info=is_bug)
