"""From a composed configuration to validated settings.

Every mistake in a configuration becomes one `ConfigError` that names the key, the value and what is allowed. Light: no
torch, so that a mistake is reported at once.
"""

import re
from collections.abc import Iterable
from inspect import signature
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pydantic import ValidationError

from kd.config.compose import TARGETS, class_of, nearest_key, options, plain
from kd.data import Source
from kd.data.masks.content import check_content
from kd.data.views.augmentable import refusal
from kd.errors import ConfigError, UserError, nearest
from kd.networks.block_counts import BLOCK_COUNTS, FIXED_SIDES, is_known, size_refusal
from kd.networks.spec import find_weights, read_spec
from kd.settings import OBJECTIVES, ForeignTeacher, NetworkSettings, Settings, TeacherFile, TrainedTeacher
from kd.system.places import CACHE
from kd.training.quality import quality_metrics

#: Names of timm's encoders that may take one image size alone.
MAY_BE_FIXED = re.compile(
    r"^tu-.*(vit|swin|mixer|mlp|former|beit|deit|eva|cait|coat|volo|xcit|twins|nest|hiera|pit_|tnt|_(224|256|384|448|512)(\D|$))"
)


def read(cfg: DictConfig, look_at_data: bool = True) -> Settings:
    """Validate a composed configuration; `look_at_data` also checks the data and teacher files that training needs.

    Raises:
        ConfigError: a key has the wrong type or an invalid value, or two keys contradict each other.
        DataError: the data folder does not match the configuration.
    """
    return checked(plain(cfg), look_at_data)


def checked(config: dict[str, Any], look_at_data: bool = True) -> Settings:
    """Like `read`, for a configuration in plain containers."""
    config = {**config}
    for group in ("schedule", "unfreeze", "data"):
        config[group] = _instantiate(group, config.get(group))
    try:
        settings = Settings(**config)
    except ValidationError as error:
        raise ConfigError(_first_mistake(error)) from error
    settings.data.keep_findings(settings.root / CACHE / "files")
    _check_plan(settings)
    _check_loss(settings)
    _check_pixels(settings)
    _check_objective(settings)
    for key, network in _networks(settings):
        _check_size(key, network, settings.data.image_size)
    if look_at_data:
        settings.data.check()
        _check_teacher(settings)
        check_content(settings.data, measured_classes(settings))
    return settings


def source(config: dict[str, Any]) -> Source:
    """The data source of a configuration in plain containers, whose other keys may be an older version's.

    Raises:
        ConfigError: the group `data` is invalid.
    """
    return _instantiate("data", config.get("data"))


def _instantiate(group: str, node: Any) -> Any:
    if not isinstance(node, dict) or "_target_" not in node:
        raise ConfigError(f"{group}={node!r} is not an option of conf/{group}; {options(group)}")
    if unknown := sorted(key for key in node if str(key).startswith("_") and key != "_target_"):
        raise ConfigError(f"{group}.{unknown[0]} is not an option; {options(group)}")
    if str(node["_target_"]) not in TARGETS[group]:
        raise ConfigError(
            f"{group}._target_={node['_target_']} is not what a configuration may build; {options(group)}"
        )
    build, given = class_of(str(node["_target_"])), {key: node[key] for key in node if key != "_target_"}
    known = signature(build).parameters
    if unknown := [f"{group}.{key}" for key in given if key not in known]:
        advice = nearest(unknown[0], [f"{group}.{key}" for key in known])
        raise ConfigError(f"{unknown[0]} is not an option of the chosen {group}; {advice}")
    try:  # not hydra's instantiate, which resolves interpolations: this may be another person's configuration
        return build(**given)
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{group}: {error}" if isinstance(error, TypeError) else f"{group}.{error}") from error


def _first_mistake(error: ValidationError) -> str:
    """The first validation error in one line, and the number of further ones."""
    mistakes = error.errors(include_url=False)
    first = mistakes[0]
    kinds = ("auto", "file", "foreign")  # tags of the teacher classes, which are not keys
    where = [part for part in first["loc"] if part not in kinds]
    key = ".".join(map(str, where)) or "configuration"
    values = {repr(mistake["input"]) for mistake in mistakes}  # several keys may interpolate the same value
    more = f" (and {len(values) - 1} more)" if len(values) > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{key} is not an option; {nearest_key(key)}{more}"
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "should")
    shown = "" if isinstance(first["input"], dict) else f"={first['input']!r}"
    return f"{key}{shown}: {message}{more}"


def _check_plan(settings: Settings) -> None:
    """Check that unfreezing starts, and that the warm-up ends, before the training does."""
    epochs, first = settings.trainer.epochs, settings.unfreeze.first_epoch
    if first is not None and first >= epochs:
        raise ConfigError(
            f"unfreeze.start_epoch={first}: the decoder trains alone for so many epochs, and trainer.epochs={epochs} "
            "leaves none for the encoder; lower it, train longer, or set unfreeze=frozen; for a short try, quick=true "
            "shortens everything"
        )
    lengths = {"trainer.epochs": epochs}
    if settings.loss.needs_teacher and isinstance(settings.teacher, TrainedTeacher):
        lengths["teacher.epochs"] = settings.teacher.epochs
    for key, length in lengths.items():
        if settings.optimizer.warmup >= length:
            raise ConfigError(
                f"optimizer.warmup={settings.optimizer.warmup} epochs would last the whole training ({key}={length}); "
                "lower it, or train longer"
            )


def _check_loss(settings: Settings) -> None:
    """Check that every term of the loss is defined for the number of classes."""
    if refusal := settings.loss.refusal(settings.data.classes):
        raise ConfigError(f"{refusal} (data.classes={settings.data.classes})", page="concepts")


def _check_pixels(settings: Settings) -> None:
    """Check that augmentation and normalisation are defined for the channels and the depth of the pictures."""
    pixels = settings.data.pixels
    if reason := refusal(settings.augment.transforms, pixels):
        raise ConfigError(reason, page="your-data")
    normalised = {f"{key}.normalisation": network.normalisation for key, network in _networks(settings)}
    if isinstance(settings.teacher, ForeignTeacher) and settings.loss.needs_teacher:
        normalised["teacher.normalisation"] = settings.teacher.normalisation
    for key, normalisation in normalised.items():
        try:
            if normalisation is not None:
                normalisation.unscaled(pixels.channels)
        except ValueError as error:
            raise ConfigError(f"{key} {error}", page="your-data") from error


def _check_objective(settings: Settings) -> None:
    """Check that every objective is measured, and that the first can select the best epoch."""
    names = settings.data.class_names
    metrics = [*(f"iou/{name}" for name in names), *quality_metrics(names)]
    known = {*OBJECTIVES, *(f"val/{metric}" for metric in metrics)}
    for objective in settings.objective:
        if objective not in known:
            raise ConfigError(f"objective={objective} is not measured; {nearest(objective, known)}")
        if objective == "val/teacher_agreement" and not settings.loss.needs_teacher:
            raise ConfigError(
                "objective=val/teacher_agreement needs a teacher, and no term of this loss uses one; choose "
                "loss=cwd, or another objective"
            )
    if not settings.objective:
        raise ConfigError(f"objective is empty; choose from {', '.join(sorted(known))}")
    if not settings.objective[0].startswith("val/"):
        raise ConfigError(f"objective={settings.objective[0]} cannot select the best epoch; name a val/ metric first")


def measured_classes(settings: Settings) -> tuple[str, ...]:
    """The classes that must occur in val for the objectives to mean anything: of binary data always the foreground."""
    names = settings.data.class_names
    foreground = names[1:] if len(names) == 2 else ()
    return tuple(name for name in names if name in foreground or _is_measured(name, settings.objective))


def _is_measured(name: str, objectives: Iterable[str]) -> bool:
    return any(objective in (f"val/iou/{name}", f"val/dice/{name}") for objective in objectives)


def _check_teacher(settings: Settings) -> None:
    """Check that the teacher's file exists and has the data's classes."""
    if not settings.loss.needs_teacher:
        return
    if isinstance(settings.teacher, ForeignTeacher):
        _check_foreign(settings.teacher, settings.data)
        if settings.loss.features:
            raise ConfigError(
                f"loss.features={settings.loss.features:g} compares the features of two encoders of this project, and "
                f"teacher.path={settings.teacher.path} is a network from elsewhere ({settings.teacher.kind}), of which "
                "logits alone are known; set loss.features=0",
                page="your-teacher",
            )
    if not isinstance(settings.teacher, TeacherFile):
        return
    file = find_weights(Path(settings.teacher.path), "teacher.path")
    spec = read_spec(file)
    _check_size("teacher", NetworkSettings(arch=spec.arch, encoder=spec.encoder), settings.data.image_size)
    if (spec.classes, spec.class_names) != (settings.data.classes, settings.data.class_names):
        raise ConfigError(
            f"teacher.path={file}: this teacher has {_few(spec.class_names)} and {spec.classes} logits, the data has "
            f"{_few(settings.data.class_names)} and data.classes={settings.data.classes}; they must be the same",
            page="your-teacher",
        )
    if spec.pixels != settings.data.pixels:
        raise ConfigError(
            f"teacher.path={file}: this teacher takes pictures of {spec.pixels.in_words}, and the data's have "
            f"{settings.data.pixels.in_words} ({settings.data.pixels.options}); they must be the same",
            page="your-teacher",
        )


def _check_foreign(teacher: ForeignTeacher, data: Source) -> None:
    """Check that a foreign teacher's file exists; for smp's, which can be read without torch, also what it takes."""
    from kd.distillation.foreign import files

    file = files.find(teacher)
    if teacher.kind == "smp":
        config = files.smp_config(file)
        files.check_inputs(teacher, config.in_channels, data.channels)
        files.channels(teacher, config.classes, data.class_names)
    if teacher.kind == "torchvision":
        files.check_inputs(teacher, 3, data.channels)


def _networks(settings: Settings) -> list[tuple[str, NetworkSettings]]:
    """The networks that are built from the configuration, with their keys."""
    found = [("backbone.student", settings.backbone.student)]
    if settings.loss.needs_teacher and isinstance(settings.teacher, TrainedTeacher):
        found.append(("backbone.teacher", settings.backbone.teacher))
    return found


def _check_size(key: str, network: NetworkSettings, image_size: tuple[int, int]) -> None:
    """Check that a network takes images of this size.

    Transformers of timm may take one size alone. Those that the table does not know are built (slow); any other network
    is asked when it is built, before it trains (`kd.experiment.builders`).
    """
    if is_known(network.arch, network.encoder):
        side = FIXED_SIDES.get(network.encoder)
        if side is not None and image_size != (side, side):
            raise size_refusal(key, network.encoder, image_size, (side,))
        return
    if not MAY_BE_FIXED.search(network.encoder):
        return
    from kd.networks.sizes import check_size

    check_size(network, image_size, key)


def _few(names: tuple[str, ...]) -> str:
    return f"{len(names)} classes ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"


def block_count(network: NetworkSettings) -> int:
    """Number of encoder blocks of a network: from a table if it covers the network, else by building it (slow)."""
    if is_known(network.arch, network.encoder):
        return BLOCK_COUNTS[network.encoder]
    from kd.networks.build import count_blocks

    return count_blocks(network)
