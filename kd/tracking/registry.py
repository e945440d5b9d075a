"""MLflow's model registry: a run's student as an ONNX model, which loads without this package and without pickle.

The run must have been delivered first. Trials are not registered automatically; register a study's winner by name.
"""

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kd.run.folder import SavedRun
from kd.system.untrusted import mapping_at
from kd.tracking.folder import known_run, opened, store_of, sync_command
from kd.tracking.store import Store, TrackingError, brief

WEIGHTS = "kd.weights"  # a tag of a model version: the digest of its weights
NUMBERS = {1: "float32", 2: "uint8"}  # by ONNX's number of a type
ARTIFACTS = "model"  # the model's folder among the run's artifacts


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
    with tempfile.TemporaryDirectory() as temporary:
        _save(model, run_id, Path(temporary) / ARTIFACTS)
        client.log_artifacts(run_id, str(Path(temporary) / ARTIFACTS), ARTIFACTS)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/{ARTIFACTS}"
    made = client.create_model_version(name, source, run_id, tags={WEIGHTS: weights}, await_creation_for=0)
    return str(made.version)


def _save(model: Any, run_id: str, path: Path) -> None:
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
        mlflow_model=Model(artifact_path=ARTIFACTS, run_id=run_id),
        signature=signature,
        pip_requirements=[f"{library}=={version(library)}" for library in ("onnx", "onnxruntime", "numpy")],
        metadata={each.key: each.value for each in model.metadata_props},
        save_as_external_data=False,
    )
