"""From a composed Hydra configuration to typed settings: the only module below train.py that sees a DictConfig.

Light on purpose: no torch, so that a mistake is reported at once. Everything that a configuration can get wrong ends as
one `ConfigError` that names the key, the value and what is allowed.
"""

from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from pydantic import ValidationError

from kd.config.compose import TARGETS, WHITELIST, known_keys, options, plain
from kd.data import Source
from kd.errors import ConfigError, UserError, nearest
from kd.networks.block_counts import BLOCK_COUNTS, FULL_DEPTH
from kd.networks.spec import find_weights, read_spec
from kd.settings import OBJECTIVES, ForeignTeacher, NetworkSettings, Settings, TeacherFile


def read(cfg: DictConfig, look_at_data: bool = True) -> Settings:
    """Check a composed configuration and turn it into settings; without a look at the files, where nothing will train.

    Raises:
        ConfigError: a key has the wrong type or an impossible value, or two do not fit together.
        DataError: the data folder is not what the configuration says.
    """
    return checked(plain(cfg), look_at_data)


def checked(config: dict[str, Any], look_at_data: bool = True) -> Settings:
    """What `read` does, of a configuration in plain containers."""
    config = {**config}
    for group in ("schedule", "unfreeze", "data"):
        config[group] = _instantiate(group, config.get(group))
    try:
        settings = Settings(**config)
    except ValidationError as error:
        raise ConfigError(_first_mistake(error)) from error
    _check_together(settings)
    if look_at_data:
        settings.data.check()
        _check_teacher(settings)
    return settings


def source(config: dict[str, Any]) -> Source:
    """The data of a configuration in plain containers, whatever else it holds: an older run's may lack keys of today.

    Raises:
        ConfigError: its data is not what a configuration may build.
    """
    return _instantiate("data", config.get("data"))


def _instantiate(group: str, node: Any) -> Any:
    if not isinstance(node, dict) or "_target_" not in node:
        raise ConfigError(f"{group}={node!r} is not an option of conf/{group}; {options(group)}")
    if unknown := sorted(key for key in node if str(key).startswith("_") and key != "_target_"):
        raise ConfigError(f"{group}.{unknown[0]} is not an option; {options(group)}")
    if node["_target_"] not in TARGETS[group]:
        raise ConfigError(
            f"{group}._target_={node['_target_']} is not what a configuration may build; {options(group)}"
        )
    try:
        return instantiate(node, _convert_="all", _execution_whitelist_=WHITELIST)
    except UserError:
        raise
    except (InstantiationException, ValueError, TypeError) as error:
        cause = error.__cause__ or error
        said = f"{group}: {cause}" if isinstance(cause, TypeError) else f"{group}.{cause}"
        raise ConfigError(said) from error


def _first_mistake(error: ValidationError) -> str:
    """One line on the first mistake that the checks found, and how many more there are."""
    mistakes = error.errors(include_url=False)
    first = mistakes[0]
    kinds = ("auto", "file", "foreign")  # of teachers: no keys
    where = [part for part in first["loc"] if part not in kinds]
    key = ".".join(map(str, where)) or "configuration"
    values = {repr(mistake["input"]) for mistake in mistakes}  # one value may fill several keys
    more = f" (and {len(values) - 1} more)" if len(values) > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{key} is not an option; {nearest(key, [name for name in known_keys() if name != key])}{more}"
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "should")
    shown = "" if isinstance(first["input"], dict) else f"={first['input']!r}"
    return f"{key}{shown}: {message}{more}"


def _check_together(settings: Settings) -> None:
    """What single keys cannot tell: the plan against the run's length, objectives against what is measured."""
    epochs, first = settings.trainer.epochs, settings.unfreeze.first_epoch
    if first is not None and first >= epochs:
        raise ConfigError(
            f"unfreeze.start_epoch={first} is beyond the last epoch, {epochs - 1} (trainer.epochs={epochs}, counted "
            "from 0); lower it, train longer, or say unfreeze=frozen"
        )
    known = {*OBJECTIVES, *(f"val/iou/{name}" for name in settings.data.class_names)}
    for objective in settings.objective:
        if objective not in known:
            raise ConfigError(f"objective={objective} is not measured; {nearest(objective, known)}")
        if objective == "val/teacher_agreement" and not settings.loss.needs_teacher:
            raise ConfigError(
                "objective=val/teacher_agreement needs a teacher, and this loss has none (alpha = beta = 0)"
            )
    if not settings.objective:
        raise ConfigError(f"objective is empty; choose from {', '.join(sorted(known))}")
    if not settings.objective[0].startswith("val/"):
        raise ConfigError(f"objective={settings.objective[0]} cannot choose the best epoch; name a val/ metric first")


def _check_teacher(settings: Settings) -> None:
    """Refuse a teacher file that is missing or that knows other classes than the data."""
    if not settings.loss.needs_teacher:
        return
    if isinstance(settings.teacher, ForeignTeacher):
        _check_foreign(settings.teacher, settings.data.class_names)
    if not isinstance(settings.teacher, TeacherFile):
        return
    file = find_weights(Path(settings.teacher.path), "teacher.path")
    spec = read_spec(file)
    if (spec.classes, spec.class_names) != (settings.data.classes, settings.data.class_names):
        raise ConfigError(
            f"teacher.path={file}: this teacher knows {_few(spec.class_names)} by {spec.classes} logits, the data has "
            f"{_few(settings.data.class_names)} with data.classes={settings.data.classes}; they must be the same",
            page="your-teacher",
        )


def _check_foreign(teacher: ForeignTeacher, class_names: tuple[str, ...]) -> None:
    """Refuse a foreign teacher whose file is not there; of smp's also its classes, which it tells without torch."""
    from kd.distillation.foreign import files

    file = files.find(teacher)
    if teacher.kind == "smp":
        files.channels(teacher, files.smp_config(file).classes, class_names)


def _few(names: tuple[str, ...]) -> str:
    return f"{len(names)} classes ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"


def block_count(network: NetworkSettings) -> int:
    """Number of encoder blocks of a network: from the table, or, where that cannot tell, from the network (slow).

    The table holds for architectures that run the encoder to its full depth at its own strides.
    """
    if network.arch.lower() in FULL_DEPTH and network.encoder in BLOCK_COUNTS:
        return BLOCK_COUNTS[network.encoder]
    from kd.networks.build import count_blocks

    return count_blocks(network)
