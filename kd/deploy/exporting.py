"""`kd export`: files that run without this package, and export.json, which says what was checked."""

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from kd.deploy import export
from kd.deploy.finished import Finished, facts, find
from kd.run import console
from kd.system.files import write_json


def export_run(path: Path, wanted: export.Wanted, out: Path | None, tolerance: float) -> None:
    """Write files that run without this package, and export.json, which says what was checked; tells what it does."""
    run = find(path)
    out = out or run.folder / "export"
    images, origin = export.pictures(run.data, run.image_size)
    check = export.Check.of(run.network, images, origin, tolerance)
    console.say(f"export   {run.weights}: checked on {origin}, it may differ by {tolerance:g} of the largest logit")
    said = record(run, out)
    for name, found in export.export(
        run.network, run.image_size, out, run.weights.stem, wanted, check, facts(run), run.data
    ):
        said["files"][name] = {**found, "checked_on": origin, "tolerance": tolerance}
        write_json(out / "export.json", said)
        console.say(_told(name, found))
    console.say(f"export   {out}")


def record(run: Finished, out: Path) -> dict[str, Any]:
    """export.json to be: it keeps what an earlier call wrote of the same weights."""
    libraries = ("torch", "onnx", "onnxruntime", "segmentation-models-pytorch")
    fresh = {**facts(run), "versions": {name: metadata.version(name) for name in libraries}}
    try:
        before = json.loads((out / "export.json").read_text(encoding="utf-8"))
        kept = before["files"] if before["weights"] == fresh["weights"] else {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        kept = {}
    return {**fresh, "files": dict(kept) if isinstance(kept, dict) else {}}


def _told(name: str, found: Mapping[str, Any]) -> str:
    apart = found["difference"]
    line = f"export   {name}: {found['bytes'] / 1e6:.1f} MB, largest difference {apart['largest']:.2g}"
    quality = "".join(
        f", {split} {console.figure(each['int8'])} (float32: {console.figure(each['fp32'])})"
        for split, each in found.get("quality", {}).items()
    )
    return f"{line} ({apart['relative']:.1g} of the largest logit){quality}"
