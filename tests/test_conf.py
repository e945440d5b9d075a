"""Every file of conf/ composes, is read, and does what it says; found by glob, so that a new one is tested too."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from kd.config.compose import CONF, PROJECT, compose, plain
from kd.config.read import read
from kd.settings import TASK_KEYS

FILES = sorted(CONF.rglob("*.yaml"))
SWEEPS = sorted((CONF / "sweeps").glob("*.yaml"))  # through a link, which rglob does not follow
STUDY = CONF / "hydra"
OPTIONS = [(file.parent.name, file.stem) for file in FILES if file.parent != CONF and STUDY not in file.parents]
ON_DISK = ("folder", "coco", "coco2017", "camvid", "voc", "voc_sbd", "cityscapes", "ade20k")
NEEDED = {("data", "hugging_face"): "data.path=x",
          **{("data", option): "data.root=." for option in ON_DISK}, ("teacher", "file"): "teacher.path=x",
          ("teacher", "smp"): "teacher.path=x", ("teacher", "torchvision"): "teacher.path=x",
          ("teacher", "exported"): "teacher.path=x teacher.normalisation=none",
          **{("loss", option): "data.classes=3" for option in ("dist", "dkd", "standardised")}}  # fmt: skip


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_is_read(group, option):
    overrides = [f"{group}={option}", *NEEDED.get((group, option), "").split()]
    settings = read(compose(overrides), look_at_data=False)
    assert len(settings.timeline(blocks=7)) == settings.trainer.epochs


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "augment"])
def test_every_augmentation_is_built_by_albumentations(option):
    from kd.config.transforms import build_transforms

    recipe = read(compose([f"augment={option}"])).augment.transforms
    assert [type(built).__name__ for built in build_transforms(recipe)] == [
        named["_target_"].rpartition(".")[2] for named in recipe
    ]


@pytest.mark.slow
@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "backbone"])
def test_every_backbone_exists_in_smp(option):
    from kd.networks.build import count_blocks

    backbone = read(compose([f"backbone={option}"])).backbone
    assert count_blocks(backbone.student) > 1
    assert count_blocks(backbone.teacher) > 1


@pytest.mark.parametrize("file", [*FILES, *SWEEPS], ids=lambda file: str(file.relative_to(CONF)))
def test_every_file_is_short_and_says_what_it_is_for(file: Path):
    lines = file.read_text().splitlines()
    assert len(lines) <= 30 or file.name in ("config.yaml", "folder.yaml")
    purpose = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert purpose.startswith("# ")
    assert len(purpose.split()) >= 4


def test_every_group_has_a_default():
    groups = {group for group, _ in OPTIONS} - {"experiment"}
    assert groups <= set(compose([]))


def test_the_studies_at_the_root_are_a_config_group():
    assert (PROJECT / "sweeps").samefile(CONF / "sweeps")
    assert {file.stem for file in SWEEPS} >= {"temperature_unfreeze", "no_teacher", "ablation", "pareto"}


SHARED = {
    "optimizer.lr": 1e-4,
    "optimizer.min_lr": 1e-6,
    "optimizer.weight_decay": 1e-4,
    "optimizer.clip_norm": 5.0,
    "trainer.batch_size": 4,
    "trainer.precision": "bf16",
    "data.image_size": [640, 640],
    "backbone.teacher.encoder": "efficientnet-b3",
    "backbone.student.encoder": "efficientnet-b0",
    "backbone.teacher.weights": "imagenet",
    "backbone.student.weights": "imagenet",
    "loss.alpha": 0.3,
    "loss.beta": 0.5,
    "loss.gamma": 0.5,
    "loss.delta": 1.0,
}
REFERENCE = {
    **SHARED,
    "trainer.epochs": 50,
    "schedule._target_": "kd.plan.Cosine",
    "schedule.initial": 4.0,
    "schedule.final": 1.0,
}


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (
            "b0_from_b3_temp_prog",
            {**REFERENCE, "unfreeze.start_epoch": 5, "unfreeze.rate": 3, "optimizer.encoder_lr_scale": 0.3},
        ),
        ("b0_from_b3_gpu", {"trainer.batch_size": 32, "optimizer.lr": 2.8e-4, "schedule.initial": 4.0}),
        (
            "temp_prog_guide",
            {**REFERENCE, "unfreeze.start_epoch": 10, "unfreeze.rate": 5, "optimizer.encoder_lr_scale": 0.1},
        ),
        (
            "t10_curriculum",
            {**SHARED, "trainer.epochs": 100, "schedule.at": [0, 0.2, 0.8, 1], "schedule.temperatures": [10, 8, 3, 1]},
        ),
    ],
)
def test_a_recipe_carries_the_figures_of_its_source(recipe, says):
    cfg = compose([f"experiment={recipe}"])
    assert {key: OmegaConf.select(cfg, key) for key in says} == says


def test_the_reference_recipe_has_the_heavy_augmentation_of_its_source():
    names = [
        node["_target_"].rpartition(".")[2] for node in compose(["experiment=b0_from_b3_temp_prog"]).augment.transforms
    ]
    assert names == [
        "HorizontalFlip", "ColorJitter", "RandomBrightnessContrast", "RandomRain", "RandomFog", "RandomSunFlare",
        "GaussianBlur", "GaussNoise",
    ]  # fmt: skip


def test_small_data_unfreezes_later_and_learns_slower_than_the_guide():
    small, guide = (read(compose([f"experiment={name}"])) for name in ("small_data", "temp_prog_guide"))
    assert small.unfreeze.first_epoch > guide.unfreeze.first_epoch
    assert small.optimizer.lr * small.optimizer.encoder_lr_scale < guide.optimizer.lr * guide.optimizer.encoder_lr_scale


def test_large_data_unfreezes_earlier_than_the_guide():
    large, guide = (read(compose([f"experiment={name}"])) for name in ("large_data", "temp_prog_guide"))
    assert large.unfreeze.first_epoch < guide.unfreeze.first_epoch


def test_finetune_starts_at_a_lower_temperature_and_unfreezes_few_blocks():
    tune, guide = (read(compose([f"experiment={name}"])) for name in ("finetune", "temp_prog_guide"))
    assert tune.schedule(0.0) < guide.schedule(0.0)
    assert tune.timeline(7)[tune.trainer.epochs - 1].unfrozen_blocks < 7


def test_an_override_wins_over_a_recipe():
    cfg = compose(["experiment=temp_prog_guide", "unfreeze.rate=2", "schedule=linear"])
    assert (cfg.unfreeze.rate, cfg.schedule["_target_"]) == (2, "kd.plan.Linear")


@pytest.mark.parametrize("name", [path.stem for path in (CONF / "loss").glob("*.yaml") if path.stem != "soft_only"])
def test_presets_differ_only_in_what_the_teacher_adds(name):
    """Else a comparison of two presets compares two task losses; soft_only has none on purpose."""
    task = [plain(compose([f"loss={each}"]))["loss"] for each in (name, "hard_only")]
    assert [task[0][key] for key in TASK_KEYS] == [task[1][key] for key in TASK_KEYS]


def test_hard_only_needs_no_teacher():
    assert not read(compose(["loss=hard_only"])).loss.needs_teacher
