"""The protocol of `kd verdict`: two studies of equal budget, both winners over seeds, and whether distilling helped.

Each step is a command that a person could type, shown before it runs, and each resumes by itself: so does the whole.
The price is bounded in epochs. Pruning and a limit on each study's epochs bound the search, the teacher and its logits
are shared through the cache, and the trial that won counts as its winner's first seed.
"""

import math
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from kd import tracking
from kd.config.compose import compose
from kd.config.hydra_errors import for_children
from kd.config.read import read
from kd.errors import ConfigError, StudyError
from kd.plan.timeline import in_epochs
from kd.run import console
from kd.settings import TASK_KEYS, TEACHING_KEYS, TEACHING_TERMS, Settings, TrainedTeacher, is_under
from kd.study import tables
from kd.study.address import default_url
from kd.study.comparison import LEAST_GAIN, Arm, Verdict, unequal
from kd.study.hydra_options import check_name, check_recipes
from kd.study.results import Results
from kd.study.space import PRIVATE, key_of
from kd.study.storage import Database
from kd.system import signals
from kd.system.files import write_json
from kd.system.installation import config_dir_arguments, train_command
from kd.system.places import STUDIES

PRUNED_FROM = 0.1  # of a training: how long each trial runs at least
#: Keys that the protocol itself sets.
OWN = ("sweeps", "seed", *(f"hydra.sweeper.{name}" for name in ("study_name", "n_trials", "max_epochs", "storage")))
IDENTITY = "verdict_identity"  # attribute of the distilled study: our own id of the verdict's run in MLflow
FEWEST = 2.0  # full trainings that a study needs at least


@dataclass(frozen=True)
class Protocol:
    """What `kd verdict` is asked.

    Attributes:
        name: of the verdict; its studies are <name>-distilled and <name>-alone.
        trials: of each study, at most.
        seeds: of each winner.
        price: of everything but the teacher, in full trainings of a student, at most.
        least: the least gain that is worth a teacher.
        overrides: as for `kd train`, for both arms.
        config_dir: a folder with recipes and options of one's own, for both arms.
    """

    name: str = "verdict"
    trials: int = 40
    seeds: int = 5
    price: float = 25.0
    least: float = LEAST_GAIN
    overrides: Sequence[str] = field(default_factory=list)
    config_dir: Path | None = None

    @property
    def studies(self) -> tuple[str, str]:
        return f"{self.name}-distilled", f"{self.name}-alone"

    @property
    def trainings(self) -> float:
        """How many full trainings each study may cost; its last trial may exceed it by one."""
        return (self.price - 2 * (self.seeds - 1)) / 2 - 1

    def settings(self) -> Settings:
        """The settings that both arms share, without what is searched.

        Raises:
            ConfigError: they are invalid, or the price is too low.
        """
        self._check_numbers()
        check_name(self.name)
        if taken := [line for line in self.overrides if is_under(key_of(line), OWN)]:
            raise ConfigError(
                f"{taken[0]}: kd verdict sets it; use --name, --trials, --seeds, --price, or KD_STORAGE for a database",
                page="does-distillation-help",
            )
        check_recipes(config_dir_arguments(self.config_dir))
        settings = read(compose([line for line in self.overrides if not _sweeps(line)], self.config_dir))
        if len(settings.objective) > 1:
            raise ConfigError(f"objective={list(settings.objective)}: a verdict is on one metric; name one")
        if not settings.loss.needs_teacher:
            raise ConfigError(
                "no term of this loss needs a teacher: nothing is distilled; leave loss out, or choose one with a "
                "teacher (loss=hinton)"
            )
        return settings

    def _check_numbers(self) -> None:
        """Raise a ConfigError for a number that no protocol can have."""
        page = "does-distillation-help"
        for option, value, least in (("--trials", self.trials, 2), ("--seeds", self.seeds, 2)):
            if value < least:
                raise ConfigError(f"{option} {value}: should be {least} or more", page=page)
        for option, number in (("--price", self.price), ("--least", self.least)):
            if not math.isfinite(number):
                raise ConfigError(f"{option} {number}: should be a finite number", page=page)
        if self.trainings < FEWEST:
            needed = 2 * (FEWEST + 1) + 2 * (self.seeds - 1)
            raise ConfigError(
                f"--price {self.price:g} is too low for --seeds {self.seeds}: should be {needed:g} or more", page=page
            )

    def study(self, settings: Settings, distilled: bool) -> list[str]:
        """The arguments of `kd train` that run an arm's study."""
        epochs = settings.trainer.epochs
        own = config_dir_arguments(self.config_dir)
        common = [
            f"hydra.sweeper.n_trials={self.trials}",
            f"hydra.sweeper.max_epochs={int(self.trainings * epochs)}",
            "hydra/sweeper/pruner=asha",
            f"hydra.sweeper.pruner.min_resource={max(1, round(PRUNED_FROM * epochs))}",
        ]
        name = f"hydra.sweeper.study_name={self.studies[not distilled]}"
        if distilled:
            return ["-m", *own, "sweeps=temperature_unfreeze", name, *common, *self.overrides]
        teaching = ("loss", *TEACHING_KEYS)
        task = [line for line in self.overrides if not is_under(key_of(line), teaching) or _is_task(line)]
        delta, untaught = f"loss.delta={settings.loss.delta}", [f"loss.{name}=0" for name in TEACHING_TERMS.values()]
        return ["-m", *own, "sweeps=no_teacher", name, *common, delta, *untaught, *task]

    def winner(self, study: str, folder: Path) -> list[str]:
        """The arguments of `kd train` that train a study's winner, whose recipe has the rest, with other seeds."""
        kept = [line for line in self.overrides if is_under(key_of(line), PRIVATE) or _is_launching(line)]
        seeds = f"hydra.sweeper.n_trials={self.seeds - 1}"
        return ["-m", *config_dir_arguments(folder / study), "sweeps=winner", seeds, *kept]


def _is_task(override: str) -> bool:
    """Whether an override sets the weight of a loss term that needs no teacher, or what it is computed with."""
    return key_of(override) in [f"loss.{name}" for name in TASK_KEYS]


def _is_launching(override: str) -> bool:
    """Whether an override says where trials run, such as hydra/launcher=joblib."""
    launching = ("hydra/launcher", "hydra.launcher", "hydra.sweeper.n_jobs")
    return key_of(override).startswith(launching)


def _sweeps(override: str) -> bool:
    """Whether an override searches a key, or is for a study alone."""
    item = OverridesParser.create().parse_override(override)
    return bool(item.is_sweep_override()) or key_of(override).startswith(("hydra", "sweeps"))


def run(protocol: Protocol) -> None:
    """Run what is missing of the protocol, and print the verdict.

    Raises:
        ConfigError: the overrides are invalid.
        StudyError: an arm has no winner.
    """
    settings = protocol.settings()
    folder = settings.root / STUDIES
    for number, with_teacher in enumerate((True, False), start=1):
        _step(f"study {number} of 2", protocol.study(settings, with_teacher))
    database = Database.chosen(None, default_url(settings.root))
    for name in protocol.studies:
        if useless := tables.useless(Results.of(database.open(), name)):
            raise StudyError(f"study {name}: {useless}")
    for number, name in enumerate(protocol.studies, start=1):
        _step(f"winner {number} of 2, over seeds", protocol.winner(name, folder))
    storage = database.open()
    distilled, alone = (Arm.of(storage, Results.of(storage, name)) for name in protocol.studies)
    console.tell(tables.against(distilled, alone, protocol.least))
    console.say(price(protocol, settings, (distilled, alone)))
    _record(protocol, settings, distilled, alone)


def _record(protocol: Protocol, settings: Settings, distilled: Arm, alone: Arm) -> None:
    """Write the verdict beside the studies, and as a run in MLflow whose metrics are the gain and its interval."""
    verdict = Verdict.of(distilled, alone, protocol.least)
    gain = verdict.gain
    if not gain.by_seed:
        return
    low, high = gain.interval or (gain.mean, gain.mean)
    trainings = (distilled.epochs + alone.epochs) / settings.trainer.epochs
    numbers = {"gain": gain.mean, "gain_low": low, "gain_high": high, "full_trainings": trainings}
    facts = {
        "verdict": verdict.line(),
        "outcome": verdict.outcome,
        "metric": verdict.metric,
        "distilled": verdict.distilled.by_seed,
        "alone": verdict.alone.by_seed,
        "unequal": unequal(distilled.study, alone.study),
        **numbers,
    }
    file = settings.root / STUDIES / protocol.studies[0] / "verdict.json"
    write_json(file, facts)
    if settings.tracking.enabled:
        tags = {"role": "verdict", "outcome": verdict.outcome, **settings.tracking.tags}
        points = {(name, len(gain.by_seed)): (value, round(time.time() * 1000)) for name, value in numbers.items()}
        files = ((file, None),)
        shown = tracking.Shown(protocol.name, tags, {"metric": verdict.metric}, points, files, note=_note(protocol))
        store = tracking.Store.of(settings.tracking, settings.root)
        identity = distilled.study.study.user_attrs.get(IDENTITY) or uuid.uuid4().hex
        distilled.study.study.set_user_attr(IDENTITY, identity)
        tracking.Mirror(lambda: shown, store, tracking.Target(identity), "repeating kd verdict").finish("FINISHED")
    console.say(f"files    {file}")


def _note(protocol: Protocol) -> str:
    """What the page of a verdict's run says first, in Markdown; without figures, which more seeds change."""
    distilled, alone = protocol.studies
    return (
        f"Does distillation help? The winners of two studies of equal budget, `{distilled}` and `{alone}`, over paired "
        "seeds.\n\n`gain` is the distilled student's over that without a teacher, from `gain_low` to `gain_high` at "
        f"95 %; `verdict.json` says it in words, and `kd study {distilled} --against {alone}` shows both.\n"
    )


def price(protocol: Protocol, settings: Settings, arms: Sequence[Arm]) -> str:
    """What the verdict cost, in epochs and in full trainings, beside what it costs without pruning and reuse."""
    epochs, trained = settings.trainer.epochs, sum(arm.epochs for arm in arms)
    naive = 2 * (protocol.trials + protocol.seeds)
    teacher = settings.teacher
    more = f"; and {teacher.epochs} of the teacher, once" if isinstance(teacher, TrainedTeacher) else ""
    return (
        f"price    {trained / epochs:.1f} full trainings ({in_epochs(trained)}{more}); {naive} without pruning and "
        f"reuse (twice {protocol.trials} trials and {protocol.seeds} seeds)"
    )


def _step(title: str, arguments: Sequence[str]) -> None:
    """Show and run one command; a failure ends this program as it ended that one."""
    console.say(f"{title}: {train_command()} {shlex.join(arguments)}")
    command = [sys.executable, "-c", "from kd.cli import main; main()", "train", *arguments]
    with signals.listen():
        # In a session of its own, a signal reaches it once: from here.
        process = subprocess.Popen(command, start_new_session=True, env=for_children())
        try:
            code = process.wait()
        except signals.Interrupted as end:
            process.send_signal(end.number)
            code = process.wait()
    code = 128 - code if code < 0 else code  # of a signal, as a shell says it
    if code > 128:
        console.say(f"resume   {shlex.join(['kd', *sys.argv[1:]])}")
    if code != 0:
        sys.exit(code)
