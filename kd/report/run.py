"""One run as sections of a page: what was asked, what came out, how far it can be trusted, what it cost."""

import json
import reprlib
import shlex
import statistics
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from kd.config.read import block_count, checked
from kd.errors import UserError, one_line
from kd.report import pictures
from kd.report.elements import Cell, Code, Folded, Picture, Section, Text, facts, figure
from kd.report.outcome import Others, by_class, came_out, curves, samples
from kd.report.reliability import agreement, calibration, confusion
from kd.report.run_files import DAMAGES, Run
from kd.run import plots
from kd.settings import flat
from kd.system.installation import train_command

MOST_KEYS = 2000  # of a configuration: one that refers to itself has no end


def sections(run: Run, others: Others | None = None) -> tuple[list[Section], list[str]]:
    """The sections of a run that can be made of its folder, and why others cannot.

    `others`: figures to be set beside the student's, as those of a student without a teacher.
    """
    parts: list[tuple[str, Callable[[], Section | None]]] = [
        ("What was asked", lambda: asked(run)),
        ("What came out", lambda: came_out(run, others or {})),
        ("Class by class", lambda: by_class(run)),
        ("Learning curves", lambda: curves(run)),
        ("Worst and best", lambda: samples(run)),
        ("Confusion", lambda: confusion(run)),
        ("Calibration", lambda: calibration(run)),
        ("Agreement with the teacher", lambda: agreement(run)),
        ("Cost", lambda: cost(run)),
        ("How to get it again", lambda: again(run)),
    ]
    made, missing = [], []
    for title, part in parts:
        try:
            section = part()
        except (UserError, *DAMAGES) as error:
            missing.append(f"{title}: its data is damaged ({one_line(str(error) or type(error).__name__)[:200]})")
            continue
        if section is not None:
            made.append(section)
    return made, missing


def flat_config(config: Mapping[str, Any]) -> dict[str, str]:
    """A configuration as dotted keys and short values."""
    return {str(key): shortly(value) for key, value in islice(flat(dict(config)), MOST_KEYS)}


def shortly(value: Any) -> str:
    """A value of a configuration in a line, however deep or long it is."""
    if isinstance(value, list | dict):
        brief = reprlib.Repr()
        brief.maxlevel, brief.maxlist, brief.maxdict, brief.maxstring, brief.maxother = 4, 12, 12, 200, 200
        return brief.repr(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# what was asked


def asked(run: Run) -> Section | None:
    if not run.config and not run.overrides and not run.identity:
        return None
    blocks: list[Any] = []
    choices = run.identity.get("choices") or {}
    typed = [override for override in run.overrides if not override.startswith("resume=")]
    blocks.append(facts([("typed", " ".join(map(shlex.quote, typed)) or "nothing: the defaults"), *_recipe(run)]))
    if choices:
        named = [(group, option) for group, option in choices.items() if str(option) not in ("None", "null")]
        blocks.append(Folded(f"the option of each group ({len(named)})", [facts(named)]))
    if run.config:
        keys = flat_config(run.config)
        blocks.append(Folded(f"the whole configuration ({len(keys)} keys)", [facts(keys.items())]))
    picture = run.picture("timeline.png") or _timeline(run)
    if picture:
        blocks.append(
            Picture(
                picture,
                "temperature, open encoder blocks and learning rates over the epochs",
                "The plan: the temperature of the soft targets, the encoder blocks that train, the learning rates.",
            )
        )
    else:
        blocks.append(Text(["The plan cannot be drawn: the configuration is missing or is not one."], "warning"))
    return Section("asked", "What was asked", blocks)


def _recipe(run: Run) -> list[tuple[str, Any]]:
    """The parts of a configuration that make the experiment, in words."""
    config = run.config

    def node(group: str) -> Mapping[str, Any]:
        found = config.get(group)
        return found if isinstance(found, dict) else {}

    def called(group: str) -> str | None:
        left_out = ("_target_", "cache", "cache_gb")
        inside = {name: value for name, value in node(group).items() if name not in left_out}
        target = str(node(group).get("_target_", "")).rpartition(".")[2]
        return f"{target}: {_pairs(inside)}" if target else _pairs(inside) or None

    def network(who: str) -> str | None:
        found = node("backbone").get(who)
        return f"{found['arch']}, {found['encoder']}, weights {shortly(found['weights'])}" if found else None

    own = network("teacher") if "path" not in node("teacher") else called("teacher")  # a file is not the backbone's
    teacher = own if not run.learns_alone else "none: the loss has no term for one"
    images = run.evidence.get("images") or {}
    sizes = ", ".join(f"{count} {split}" for split, count in images.items())
    return [
        ("student", network("student")),
        ("teacher", teacher),
        ("data", called("data")),
        ("images", sizes or None),
        ("temperature", called("schedule")),
        ("unfreezing", called("unfreeze")),
        ("loss", called("loss")),
        ("optimiser", called("optimizer")),
        ("seed", shortly(config["seed"]) if "seed" in config else None),
    ]


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {shortly(value)}" for name, value in values.items() if value not in (None, (), []))


def _timeline(run: Run) -> bytes | None:
    """The plan, drawn from the configuration as a resume would read it; None where it cannot be had."""
    try:
        settings = checked(dict(run.config), look_at_data=False)
        timeline = settings.timeline(block_count(settings.backbone.student))
        return pictures.drawn(lambda path: plots.draw_timeline(timeline, path))
    except (UserError, *DAMAGES):
        return None


# what it cost


def cost(run: Run) -> Section | None:
    figures, memory = run.student, run.evidence.get("memory") or {}
    speeds = [r["images_per_second"] for r in run.records if r.get("images_per_second") is not None]
    epochs = [r["seconds"] for r in run.records if r.get("seconds") is not None]
    rows = [
        ("whole run", _clock(run.summary.get("total_seconds"))),
        ("epochs", len(run.records) or None),
        ("one epoch's steps", f"{statistics.median(epochs):.1f} s (median)" if epochs else None),
        ("training speed", f"{statistics.median(speeds):.1f} images/s (median of the epochs)" if speeds else None),
        ("most memory of the process", _bytes(memory.get("process_bytes"))),
        ("most memory of the GPU", _bytes(memory.get("device_bytes"))),
        ("student: parameters", _cell(figures, "parameters")),
        ("student: multiply-adds per image", _cell(figures, "macs")),
        ("student: latency, one image", _cell(figures, "latency_ms", " ms")),
        ("student: file", _cell(figures, "file_bytes", " bytes")),
    ]
    if answers := run.summary.get("teacher_answers"):
        told = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in answers.items())
        rows.append(("teacher's answers, in images", told))
    shown = facts(rows)
    return Section("cost", "Cost", [shown]) if shown.rows else None


def _cell(figures: Mapping[str, Any], key: str, unit: str = "") -> Cell | None:
    if figures.get(key) is None:
        return None
    cell = figure(figures[key], f"student.{key}")
    return Cell(f"{cell.text}{unit}", cell.value, cell.key)


def _clock(seconds: Any) -> Cell | None:
    if seconds is None:
        return None
    minutes, rest = divmod(float(seconds), 60)
    text = f"{int(minutes) // 60}:{int(minutes) % 60:02d}:{rest:04.1f} (h:min:s)" if minutes else f"{rest:.1f} s"
    return Cell(text, seconds, "total_seconds")


def _bytes(count: Any) -> str | None:
    return None if count is None else f"{int(count) / 1e9:.2f} GB"


# how to get it again


def again(run: Run) -> Section | None:
    around = run.identity.get("environment") or {}
    processes = around.get("processes", 1)
    typed = [shlex.quote(line) for line in run.overrides if not line.startswith("resume=")]
    commit = run.commit
    dirty = ", with changes that are in no commit" if run.tags.get("git.dirty") == "true" else ""
    blocks: list[Any] = []
    if run.overrides or run.config:
        lines = [f"git checkout {commit}"] if commit else []
        blocks.append(Code([*lines, " ".join([train_command(processes), *typed])]))
    plain = {name: value for name, value in around.items() if name not in ("packages", "processes")}
    shown = facts([
        ("commit", f"{commit}{dirty}" if commit else "unknown: it was not run from a git checkout"),
        *plain.items(),
        ("processes", processes if around else None),
        *(around.get("packages") or {}).items(),
    ])  # fmt: skip
    blocks.append(shown)
    if error := run.text("error.txt"):
        blocks.append(Folded("how it failed", [Code(error.splitlines()[-60:])]))
    if diverged := run.text("nonfinite.json"):
        blocks.append(Folded("what was not a number", [Code(json.dumps(json.loads(diverged), indent=1).splitlines())]))
    return Section("again", "How to get it again", blocks) if len(blocks) > 1 or around or commit else None


def tiles(run: Run) -> list[tuple[str, Cell, str]]:
    """The few figures that stand on top, each with its teacher's and the trivial baseline's."""
    chosen = [("mIoU, val", "val/miou"), ("mIoU, test", "test/miou"), ("parameters", "parameters"),
              ("ms per image", "latency_ms")]  # fmt: skip
    found = []
    for title, key in chosen:
        cell = figure(run.student.get(key), f"student.{key}")
        known = (("teacher", run.teacher.get(key)), ("trivial", run.baseline.get(key)))
        beside = ", ".join(f"{who} {figure(value, key).text}" for who, value in known if value is not None)
        if cell.value is not None:
            found.append((title, cell, beside))
    return found
