"""`kd export`: files that run without this package, and export.json, which records how each was checked."""

from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from kd.deploy import export
from kd.deploy.finished import Finished, facts, find
from kd.errors import UserError
from kd.run import console
from kd.system.files import alone_in, clear_leftovers, write_json
from kd.system.untrusted import UnreadableError, check_below, mapping_at, read_json

LIBRARIES = ("torch", "onnx", "onnxruntime", "segmentation-models-pytorch")


def export_run(path: Path, wanted: export.Wanted, out: Path | None, tolerance: float) -> list[UserError]:
    """Export a run's network into `out` (export/ in its folder by default), and print a line for each file.

    Returns the errors of the files that could not be written; the others are.
    """
    run = find(path)
    if out is None:
        out = run.folder / "export"
        check_below(run.folder, out / "export.json")
    with alone_in(out) as alone:
        if alone:
            clear_leftovers(out)
        return _export(run, wanted, out, tolerance)


def _export(run: Finished, wanted: export.Wanted, out: Path, tolerance: float) -> list[UserError]:
    images, origin = export.pictures(run.data, run.image_size, pixels=run.network.pixels)
    check = export.Check.of(run.network, images, origin, tolerance)
    console.say(f"export   {run.weights}: checked on {origin}, tolerance {tolerance:g} of the largest logit")
    record = export_record(run, out)
    failed: list[UserError] = []
    target = out / run.weights.stem
    for name, found in export.export(run.network, run.image_size, target, wanted, check, facts(run), run.data):
        if isinstance(found, UserError):
            failed.append(found)
            continue
        record["files"][name] = {**found, "checked_on": origin, "tolerance": tolerance}
        write_json(out / "export.json", record)
        console.say(_line(name, found))
    if len(failed) < wanted.count:
        console.say(f"export   {out}")
    return failed


def export_record(run: Finished, out: Path) -> dict[str, Any]:
    """Content for `out`/export.json; entries of an earlier export of the same weights are kept."""
    kept: dict[str, Any] = {}
    with suppress(UnreadableError):
        before = read_json(out, "export.json", dict)
        kept = mapping_at(before, "files") if before.get("weights") == facts(run)["weights"] else {}
    return {**facts(run), "versions": {name: metadata.version(name) for name in LIBRARIES}, "files": kept}


def _line(name: str, found: Mapping[str, Any]) -> str:
    """One exported file in a line of the console."""
    apart = found["difference"]
    line = f"export   {name}: {found['bytes'] / 1e6:.1f} MB, largest difference {apart['largest']:.2g}"
    quality = "".join(
        f", {split} {console.figure(each['int8'])} (float32: {console.figure(each['fp32'])})"
        for split, each in found.get("quality", {}).items()
    )
    return f"{line} ({apart['relative']:.1g} of the largest logit){quality}"
