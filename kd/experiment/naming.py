"""The name that MLflow lists a run under: what it is made of, in a few words."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from kd.settings import Settings

NAMED = ("backbone", "loss", "schedule", "data")  # config groups that a name always tells
LONGEST, WIDEST = 24, 120  # characters of an option's value, and of a name that options are added to
#: Keys that a name tells already, or that make no difference to a student.
LEFT_OUT = ("schedule.initial", "schedule.final", "seed", "data.root", "root", "resume", "quick", "pictures")


def run_name(settings: Settings, choices: Mapping[str, str], typed: Sequence[str]) -> str:
    """A run's name, such as "b0 from b3, cwd, cosine 4-1, camvid, rate=3, seed 2".

    `choices` are the options of the config groups, `typed` the command line's overrides; those that are not in the name
    yet are added, each whole, as long as it stays shorter than WIDEST.
    """
    student, _, teacher = choices.get("backbone", "").partition("_from_")
    taught = settings.loss.needs_teacher
    who = f"{student} from {teacher}" if taught and teacher else f"{student} alone" if not taught else student
    parts = [who, choices.get("loss", ""), _temperatures(settings, choices) if taught else "", _data(settings, choices)]
    last = [f"seed {settings.seed}"] if settings.seed else []
    options = _options(typed)
    while len(name := ", ".join([*filter(None, parts), *options, *last])) > WIDEST and options:
        options.pop()
    return name


def _temperatures(settings: Settings, choices: Mapping[str, str]) -> str:
    ends = [getattr(settings.schedule, name) for name in ("initial", "final") if hasattr(settings.schedule, name)]
    return " ".join(filter(None, [choices.get("schedule", ""), "-".join(f"{end:g}" for end in ends)]))


def _data(settings: Settings, choices: Mapping[str, str]) -> str:
    name, root = choices.get("data", ""), getattr(settings.data, "root", None)
    return Path(root).name if name == "folder" and root else name


def _options(typed: Sequence[str]) -> list[str]:
    """The typed options that no other part tells."""
    pairs = [line.lstrip("+~").partition("=")[::2] for line in typed]
    return [
        f"{_shortest(key, {other for other, _ in pairs})}={value}"
        for key, value in pairs
        if key not in (*NAMED, *LEFT_OUT) and not key.startswith(("tracking", "hydra.", "trainer.device"))
        and 0 < len(value) <= LONGEST
    ]  # fmt: skip


def _shortest(key: str, keys: Collection[str]) -> str:
    """The last word of a key, and the groups before it that tell it from the other keys and from a student's."""
    words = key.split(".")
    first = words.index("teacher") if "teacher" in words else len(words) - 1
    ends = [".".join(words[start:]) for start in range(first, -1, -1)]
    return next((end for end in ends if not any(other.endswith(f".{end}") for other in keys if other != key)), key)
