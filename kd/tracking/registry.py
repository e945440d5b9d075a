"""MLflow's model registry: a run's student as an ONNX model, which loads without this package and without pickle.

The run must have been delivered first. Trials are not registered automatically; register a study's winner by name.
"""

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kd.run.folder import SavedRun
from kd.system.untrusted import mapping_at
from kd.tracking.delivery import NOTE
from kd.tracking.folder import known_run, opened, store_of, sync_command
from kd.tracking.store import Store, TrackingError, brief

VERSIONS = "mlflow.modelVersions"  # MLflow's tag of a logged model that is registered
WEIGHTS = "kd.weights"  # a tag of a model version: the digest of its weights
ARTIFACTS = "model"
STUDENT, MODEL_TYPE = "student", "segmentation"
LONGEST = 500  # characters of a logged model's parameter
NOT_IN_NAMES = "/:.%\"'"  # of MLflow's models
NUMBERS = {1: "float32", 2: "uint8"}  # by ONNX's number of a type


def wanted_name(path: Path) -> str | None:
    """The name that a run's student is to be registered under; None for a trial or without `tracking.register`."""
    folder = SavedRun(path)
    if "trial" in folder.identity().get("tags", {}):
        return None
    name = mapping_at(folder.config(), "tracking").get("register")
    return str(name) if name else None


def register(path: Path, root: Path, name: str, model: Any, weights: str, uri: str | None = None) -> str:
    """Register a run's student as a version of the model `name`, unless it is one already; returns the version.

    `model` is the student in ONNX, `weights` the digest of its weights, `root` and `uri` as for `sync`.

    Raises:
        TrackingError: the run is not in the store, or the store does not accept the model.
        ConfigError: MLflow does not support the kind of address.
    """
    folder = opened(path)
    store = store_of(folder, root, uri)
    store.check()
    run_id = known_run(folder.identity(), store)
    if run_id is None:
        raise TrackingError(
            f"{path}: this run is not in MLflow at {store} yet; {sync_command(folder)} delivers it first"
        )
    try:
        return _register(store, run_id, name, model, weights)
    except Exception as error:  # each transport and store raises its own kinds
        raise TrackingError(
            f"MLflow at {store} did not store the model {name} ({brief(error, store.uri)}); nothing is lost: "
            f"{sync_command(folder)} registers it later"
        ) from error


def _register(store: Store, run_id: str, name: str, model: Any, weights: str) -> str:
    from mlflow.exceptions import MlflowException

    client, _ = store.open()
    for known in client.search_model_versions(f"run_id = '{run_id}'"):
        if known.name == name and known.tags.get(WEIGHTS) == weights:
            return str(known.version)
    run = client.get_run(run_id)
    logged = _logged_model(client, run, model, weights)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    note = run.data.tags.get(NOTE)
    made = client.create_model_version(
        name, logged.artifact_location, run_id, tags={WEIGHTS: weights}, description=note, await_creation_for=0,
        model_id=logged.model_id,
    )  # fmt: skip
    versions = [*json.loads(logged.tags.get(VERSIONS, "[]")), {"name": name, "version": str(made.version)}]
    client.set_logged_model_tags(logged.model_id, {VERSIONS: json.dumps(versions)})
    return str(made.version)


def _logged_model(client: Any, run: Any, model: Any, weights: str) -> Any:
    """The run's student among MLflow's models, with parameters, data and figures; logged unless it is there already."""
    from mlflow.entities import LoggedModelStatus, Metric

    run_id, experiments = run.info.run_id, [run.info.experiment_id]
    for known in client.search_logged_models(experiments, f"source_run_id = '{run_id}'"):
        if known.tags.get(WEIGHTS) == weights and known.status == LoggedModelStatus.READY:
            return known
    name = "".join("_" if char in NOT_IN_NAMES else char for char in run.info.run_name or STUDENT)
    parameters = {key: value for key, value in run.data.params.items() if len(value) <= LONGEST}
    tags = {WEIGHTS: weights, NOTE: run.data.tags.get(NOTE, "")}
    logged = client.create_logged_model(experiments[0], name, run_id, tags, parameters, MODEL_TYPE)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / ARTIFACTS
        _save(model, run_id, path, logged.model_id)
        client.log_model_artifacts(logged.model_id, str(path))
    figures = [(name, value) for name, value in run.data.metrics.items() if name.startswith(f"{STUDENT}/")]
    about = {"model_id": logged.model_id, "run_id": run_id}
    if run.inputs.dataset_inputs:
        data = run.inputs.dataset_inputs[0].dataset
        about |= {"dataset_name": data.name, "dataset_digest": data.digest}
    when = run.info.end_time or 0
    client.log_batch(run_id, metrics=[Metric(name, value, when, 0, **about) for name, value in figures])
    return client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)


def _save(model: Any, run_id: str, path: Path, model_id: str) -> None:
    """Save an ONNX model in MLflow's format: MLmodel, model.onnx and the requirements for serving it."""
    import mlflow.onnx
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    images = model.graph.input[0].type.tensor_type
    channels = images.shape.dim[1].dim_value
    classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(NUMBERS[images.elem_type]), (-1, channels, -1, -1), "images")]),
        Schema([TensorSpec(np.dtype("float32"), (-1, classes, -1, -1), "logits")]),
    )
    mlflow.onnx.save_model(
        model,
        str(path),
        mlflow_model=Model(artifact_path=ARTIFACTS, run_id=run_id, model_id=model_id),
        signature=signature,
        pip_requirements=[f"{library}=={version(library)}" for library in ("onnx", "onnxruntime", "numpy")],
        metadata={each.key: each.value for each in model.metadata_props},
        save_as_external_data=False,
    )
