"""One run as sections of a page: setup, results, how far to trust them, cost, how to reproduce it."""

import reprlib
import shlex
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from kd.config.read import block_count, checked
from kd.errors import UserError, one_line
from kd.report import pictures
from kd.report.elements import Cell, Code, Folded, Picture, Section, Text, facts, figure
from kd.report.outcome import Others, curves, per_class, results
from kd.report.reliability import agreement, calibration, confusion
from kd.report.run_files import DAMAGES, Run
from kd.report.samples import predictions
from kd.run import plots
from kd.settings import LossSettings, flat
from kd.system.installation import train_command
from kd.system.untrusted import mapping_at
from kd.training.quality import metric_title, quality_metrics


def sections(run: Run, others: Others | None = None) -> tuple[list[Section], list[str]]:
    """The sections that a run folder has data for, and the reasons why others could not be made.

    `others`: figures to set beside the student's, such as those of a student without a teacher.
    """
    parts: list[tuple[str, Callable[[], Section | None]]] = [
        ("Setup", lambda: setup(run)),
        ("Results", lambda: results(run, others or {})),
        ("Per class", lambda: per_class(run)),
        ("Learning curves", lambda: curves(run)),
        ("Predictions", lambda: predictions(run)),
        ("Confusion", lambda: confusion(run)),
        ("Calibration", lambda: calibration(run)),
        ("Agreement with the teacher", lambda: agreement(run)),
        ("Cost", lambda: cost(run)),
        ("Reproduce", lambda: reproduce(run)),
    ]
    made, missing = [], []
    for title, part in parts:
        try:
            section = part()
        except (UserError, *DAMAGES) as error:
            missing.append(f"{title}: damaged data ({one_line(str(error) or type(error).__name__)[:200]})")
            continue
        if section is not None:
            made.append(section)
    return made, missing


def in_short(value: Any) -> str:
    """A configuration value in one line, however long or nested it is."""
    if isinstance(value, list | dict):
        brief = reprlib.Repr()
        brief.maxlevel, brief.maxlist, brief.maxdict, brief.maxstring, brief.maxother = 4, 12, 12, 200, 200
        return brief.repr(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# setup


def setup(run: Run) -> Section | None:
    """The overrides, the experiment in words, the whole configuration, the plan."""
    if not run.config and not run.overrides and not run.identity:
        return None
    typed = [override for override in run.overrides if not override.startswith("resume=")]
    words = facts([("overrides", " ".join(map(shlex.quote, typed)) or "none, all defaults"), *_experiment(run)])
    blocks: list[Any] = [words]
    if choices := mapping_at(run.identity, "choices"):
        named = [(group, option) for group, option in choices.items() if str(option) not in ("None", "null")]
        blocks.append(Folded(f"option of each config group ({len(named)})", [facts(named)]))
    if run.config:
        keys = [(key, in_short(value)) for key, value in flat(run.config)]
        blocks.append(Folded(f"whole configuration ({len(keys)} keys)", [facts(keys)]))
    return Section("setup", "Setup", [*blocks, _plan(run)])


def _plan(run: Run) -> Picture | Text:
    picture = run.picture("timeline.png") or _timeline(run)
    if not picture:
        return Text(["The plan cannot be drawn: the configuration is missing or damaged."], "warning")
    return Picture(
        picture,
        "temperature, unfrozen encoder blocks and learning rates over the epochs",
        "The plan: temperature of the soft targets, unfrozen encoder blocks, learning rates.",
    )


def _experiment(run: Run) -> list[tuple[str, Any]]:
    """The parts of the configuration that define the experiment, in words."""
    config = run.config

    def group(name: str) -> str | None:
        inside = mapping_at(config, name)
        target = str(inside.get("_target_", "")).rpartition(".")[2]
        pairs = _pairs({key: value for key, value in inside.items() if key not in ("_target_", "cache", "cache_gb")})
        return f"{target}: {pairs}" if target else pairs or None

    def network(who: str) -> str | None:
        found = mapping_at(config, "backbone").get(who)
        return f"{found['arch']}, {found['encoder']}, weights {in_short(found['weights'])}" if found else None

    is_file = "path" in mapping_at(config, "teacher")  # then it is not backbone.teacher
    teacher = group("teacher") if is_file else network("teacher")
    sizes = ", ".join(f"{count} {split}" for split, count in mapping_at(run.evidence, "images").items())
    return [
        ("student", network("student")),
        ("teacher", "none: the loss has no term for one" if run.learns_alone else teacher),
        ("data", group("data")),
        ("images", sizes or None),
        ("training pictures", _pictures(mapping_at(run.identity, "pictures"))),
        ("temperature", None if run.learns_alone else group("schedule")),
        ("unfreezing", group("unfreeze")),
        ("loss", _loss(mapping_at(config, "loss")) or group("loss")),
        ("optimiser", group("optimizer")),
        ("seed", in_short(config["seed"]) if "seed" in config else None),
    ]


def _loss(options: Mapping[str, Any]) -> str:
    """The terms with their weights; empty if they are damaged."""
    try:
        weights = LossSettings(**options).weights
    except DAMAGES:
        return ""
    return " + ".join(f"{weight:g} {term}" for term, weight in weights.items() if weight)


def _pictures(counts: Mapping[str, Any]) -> str | None:
    """How many training pictures there are, with and without masks."""
    if not counts.get("unlabelled"):
        return None
    beside = counts.get("unlabelled_per_batch")
    used = f"{beside} of them in each batch, for the teacher's terms" if beside else "not used: there is no teacher"
    return f"{counts.get('labelled')} with masks, {counts['unlabelled']} without ({used})"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {in_short(value)}" for name, value in values.items() if value not in (None, (), []))


def _timeline(run: Run) -> bytes | None:
    """The plan, drawn from the configuration; None if that is damaged."""
    try:
        settings = checked(dict(run.config), look_at_data=False)
        timeline = settings.timeline(block_count(settings.backbone.student))
        return pictures.drawn(lambda path: plots.draw_timeline(timeline, path))
    except (UserError, *DAMAGES):
        return None


# cost


def cost(run: Run) -> Section | None:
    """Time, speed and memory of the training; size and latency of the student."""
    figures, memory = run.student, mapping_at(run.evidence, "memory")
    speeds = [r["images_per_second"] for r in run.records if r.get("images_per_second") is not None]
    epochs = [r["seconds"] for r in run.records if r.get("seconds") is not None]
    waits = [r["seconds_waiting"] / r["seconds"] for r in run.records if r.get("seconds_waiting") and r.get("seconds")]
    rows = [
        ("total time", _clock(run.summary.get("total_seconds"))),
        ("epochs", len(run.records) or None),
        ("steps of one epoch", f"{statistics.median(epochs):.1f} s (median)" if epochs else None),
        ("of that, waiting for data", f"{statistics.median(waits):.0%} (median)" if waits else None),
        ("training speed", f"{statistics.median(speeds):.1f} images/s (median over epochs)" if speeds else None),
        ("peak memory of the process", _bytes(memory.get("process_bytes"))),
        ("peak memory of the GPU", _bytes(memory.get("device_bytes"))),
        ("student: parameters", _cell(figures, "parameters")),
        ("student: multiply-adds per image", _cell(figures, "macs")),
        ("student: latency, one image", _cell(figures, "latency_ms", " ms")),
        ("student: file", _cell(figures, "file_bytes", " bytes")),
    ]
    if counts := mapping_at(run.summary, "teacher_answers"):
        listed = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in counts.items())
        rows.append(("teacher logits, in images", listed))
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


# reproduce


def reproduce(run: Run) -> Section | None:
    """The command, the commit, the versions, and the error of a failed run."""
    around = mapping_at(run.identity, "environment")
    processes = around.get("processes", 1)
    commit = run.commit
    dirty = ", with uncommitted changes" if run.tags.get("git.dirty") == "true" else ""
    blocks: list[Any] = []
    if run.overrides or run.config:
        lines = [f"git checkout {commit}"] if commit else []
        blocks.append(Code([*lines, f"{train_command(processes)} {shlex.join(run.arguments)}".rstrip()]))
    plain = {name: value for name, value in around.items() if name not in ("packages", "processes")}
    shown = facts([
        ("commit", f"{commit}{dirty}" if commit else "unknown: not run from a git checkout"),
        *plain.items(),
        ("processes", processes if around else None),
        *mapping_at(around, "packages").items(),
    ])  # fmt: skip
    blocks.append(shown)
    if error := run.text("error.txt"):
        blocks.append(Folded("error", [Code(error.splitlines()[-60:])]))
    if diverged := run.text("nonfinite.json"):
        blocks.append(Folded("values that are not finite", [Code(diverged.splitlines()[:1000])]))
    return Section("reproduce", "Reproduce", blocks) if len(blocks) > 1 or around or commit else None


def tiles(run: Run) -> list[tuple[str, Cell, str]]:
    """The headline figures, each with those of the teacher and the trivial baseline."""
    metric = quality_metrics(run.class_names)[0]
    chosen = [(f"{metric_title(metric)}, val", f"val/{metric}"), (f"{metric_title(metric)}, test", f"test/{metric}"),
              ("parameters", "parameters"), ("ms per image", "latency_ms")]  # fmt: skip
    found = []
    for name, key in chosen:
        cell = figure(run.student.get(key), f"student.{key}")
        references = (("teacher", run.teacher.get(key)), ("trivial", run.baseline.get(key)))
        beside = ", ".join(f"{who} {figure(value, key).text}" for who, value in references if value is not None)
        if cell.value is not None:
            found.append((name, cell, beside))
    return found
