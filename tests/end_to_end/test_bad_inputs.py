"""The catalogue of bad inputs: each ends in a one-line error, and none is executed.

A row is an input and what the error must say. Rows only run the code that reads the input: a configuration is composed
and checked, a weights file is loaded; the few that must train run `train.py`.
"""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import program
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from traps import MARK, Trap, bomb, old_trap, trap

from kd.cli import main
from kd.config.compose import PROJECT, compose
from kd.config.hydra_errors import one_line_errors
from kd.config.read import read
from kd.networks import build
from kd.networks.saved import load_file, save
from kd.settings import NetworkSettings
from kd.study import hydra_options
from kd.study.recipe import winner_study

SMALL = (
    "backbone=tiny loss=hard_only unfreeze=all data.image_size=[32,32] trainer.batch_size=8 trainer.epochs=1 "
    "trainer.device=cpu tracking=none pictures=false"
).split()


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def told(error: str, says: list[str]) -> None:
    """Check that a message is one printable line with these words."""
    assert error.startswith("error: "), error
    assert error.count("\n") == 1, error
    assert error[:-1].isprintable(), repr(error)
    assert len(error) < 2100
    page = re.search(r" \((docs/[a-z-]+\.md)\)\n$", error)
    assert page is None or (PROJECT / page[1]).is_file(), error
    assert all(part in error for part in says), error


def refused(call: Callable[[], object], says: list[str], root: Path, capsys) -> int:
    """The exit code of `call`, which must fail like a program and leave the root unchanged."""
    before = contents(root)
    with pytest.raises(SystemExit) as exit_, one_line_errors():
        call()
    told(capsys.readouterr().err, says)
    assert contents(root) == before
    assert not (root / MARK).exists()
    return exit_.value.code


def train_refuses(root: Path, says: list[str], *typed: str) -> None:
    before = contents(root)
    done = program.train(root, *typed)
    assert done.returncode != 0
    told(done.stderr, says)
    assert contents(root) == before
    assert not (root / MARK).exists()


def table(rows):
    """Rows as pytest parameters, named after their first item."""
    return [pytest.param(*row, id=str(row[0])[:60].replace("\0", "?")) for row in rows]


# configurations

CONFIGURATIONS = [
    # keys and groups that are not there
    ("trainer.epoch=3", ["trainer.epoch is not an option", "'trainer.epochs'"]),
    ("schedul=cosine", ["schedul is not an option", "'schedule'"]),
    ("schedule=cosin", ["schedule=cosin", "'cosine'"]),
    ("backbone=b1", ["backbone=b1", "conf/backbone"]),
    ("experiment=b0", ["experiment=b0", "conf/experiment"]),
    ("experiment=/etc/passwd", ["experiment=etc/passwd is not an option", "arm_both"]),
    ("schedule=../../etc", ["Parent traversal", "../../etc"]),
    ("tracking=wandb", ["tracking=wandb", "mlflow, none"]),
    ("hydra/launcher=slurm", ["hydra/launcher=slurm", "conf/hydra/launcher", "submitit_slurm"]),
    ("hydra/sweeper/pruner=sha", ["hydra/sweeper/pruner=sha", "'asha'"]),
    ("+loss.foo=1", ["loss.foo is not an option"]),
    ("++trainer.foo=1", ["trainer.foo is not an option", "trainer has accumulate, batch_size"]),
    ("trainer.foo=1", ["trainer.foo is not an option", "trainer has accumulate, batch_size"]),
    ("+experiment=arm_both", ["adds a second experiment; leave out the +: experiment=arm_both"]),
    ("+foo=1", ["foo is not an option"]),
    ("+schedule.finall=2", ["schedule.finall is not an option of the chosen schedule", "'schedule.final'"]),
    ("+data.rot=x", ["data.rot is not an option of the chosen data"]),
    ("loss.alfa=1", ["loss.alfa is not an option", "'loss.alpha'"]),
    ("backbone.student.encodr=x", ["'backbone.student.encoder'"]),
    ("schedule=constant schedule.final=1", ["schedule.final is not an option of the chosen schedule"]),
    ("tracking.tags={a:b}", ["tracking.tags.a does not exist yet", "+tracking.tags.a=..."]),
    ("+tracking.tags.a.b=c", ["tracking.tags.a", "string"]),
    ("tracking.tags=[a]", ["tracking.tags=[a]", "incompatible"]),
    # what is no override
    ("seed", ["seed cannot be read as key=value"]),
    ("schedule.initial=[1", ["schedule.initial=[1 cannot be read as key=value", "quotes"]),
    ("seed=$(mkdir)", ["seed=$(mkdir) cannot be read as key=value"]),
    ("seed=1,2", ["seed=1,2", "--multirun"]),
    ("~foo", ["foo", "does not exist"]),
    ("~unfreeze", ["a group cannot be removed, only replaced: unfreeze=..."]),
    ("schedule=null", ["schedule=null", "must be a string", "cosine"]),
    ("loss=[1]", ["loss: ", "choose from composite"]),
    # values of the wrong type, or impossible
    ("seed=-1", ["seed=-1"]),
    ("seed=true", ["seed=True", "not be true or false"]),
    ("teacher.seed=99999999999999999999", ["teacher.seed=99999999999999999999", "less than"]),
    ("teacher.seed=-1", ["teacher.seed=-1"]),
    ("seed=99999999999999999999", ["seed=99999999999999999999", "less than"]),
    ("trainer.epochs=abc", ["trainer.epochs='abc'", "integer"]),
    ("trainer.epochs=0", ["trainer.epochs=0", "greater than 0"]),
    ("trainer.epochs=true", ["trainer.epochs=True", "not be true or false"]),
    ("trainer.epochs=1e9", ["trainer.epochs=1000000000", "100000"]),
    ("trainer.epochs=null", ["trainer.epochs=None", "integer"]),
    ("trainer.batch_size=1.5", ["trainer.batch_size=1.5", "integer"]),
    ("trainer.accumulate=0", ["trainer.accumulate=0", "greater than 0"]),
    ("trainer.precision=fp8", ["trainer.precision='fp8'", "'bf16'"]),
    ("trainer.device=tpu", ["trainer.device='tpu'", "cuda"]),
    ("trainer.workers=-2", ["trainer.workers=-2", "0 or more"]),
    ("trainer.workers=1.5", ["trainer.workers=1.5", "0 or more"]),
    ("trainer.workers=100000", ["trainer.workers=100000", "at most"]),
    ("optimizer.lr=0", ["optimizer.lr=0", "greater than 0"]),
    ("optimizer.lr=nan", ["optimizer.lr=nan", "finite"]),
    ("optimizer.min_lr=1", ["min_lr must not be above lr=0.001", "1"]),
    ("optimizer.depth_decay=2", ["optimizer.depth_decay=2", "less than or equal to 1"]),
    ("optimizer.clip_norm=-5", ["optimizer.clip_norm=-5"]),
    ("optimizer.betas=[0.9,1.0]", ["optimizer.betas.1=1.0", "less than 1"]),
    ("loss.alpha=-1", ["loss.alpha=-1", "greater than or equal to 0"]),
    ("loss=dkd", ["loss.tckd=1.0 needs three classes or more", "set loss.tckd=0", "data.classes=1"]),
    ("loss=dist", ["loss.dist_inter=1.0 needs three classes or more", "set loss.dist_inter=0"]),
    ("loss=standardised", ["loss.standardise=True needs three classes or more", "set loss.standardise=false"]),
    (
        "loss={alpha:0,cwd:0,gamma:0,delta:0}",
        ["features, gamma, delta, focal, tversky, jaccard and lovasz are all 0"],
    ),
    ("loss.feature_stages=[]", ["loss.feature_stages=[]", "at least 1"]),
    ("loss.feature_stages=[0]", ["loss.feature_stages.0=0", "greater than or equal to 1"]),
    ("loss.feature_stages=[5,5]", ["loss.feature_stages", "[5, 5] names a stage twice"]),
    ("loss.feature_term=l1", ["loss.feature_term='l1'", "'mse' or 'cwd'"]),
    ("loss=hinton loss.gamma=-1.0", ["loss.gamma=-1.0", "greater than or equal to 0"]),
    ("backbone.student.normalisation=inception", ["backbone.student.normalisation='inception'", "imagenet, half"]),
    ("backbone.student.decoder_channels=[64,0]", ["backbone.student.decoder_channels", "greater than 0"]),
    ("schedule.initial=-1", ["schedule.initial", "positive", "-1"]),
    ("schedule.final=0", ["schedule.final", "positive", "0"]),
    ("schedule.initial=inf", ["schedule.initial", "finite", "inf"]),
    ("schedule.initial=warm", ["schedule.initial", "'warm'"]),
    ("schedule=piecewise schedule.at=3", ["schedule.at must be a list of numbers", "3"]),
    ("schedule=piecewise schedule.at=[0,a,b,1]", ["schedule.at must increase strictly", "'a'"]),
    ("schedule=piecewise schedule.at=[0,1]", ["schedule.at and temperatures", "2 and 4"]),
    ("unfreeze.rate=0", ["unfreeze.rate", "1 or more", "0"]),
    ("unfreeze.start_epoch=-1", ["unfreeze.start_epoch", "-1"]),
    ("unfreeze.start_epoch=25", ["unfreeze.start_epoch=25: the decoder trains alone", "trainer.epochs=25 leaves none"]),
    ("unfreeze.max_blocks=0", ["unfreeze.max_blocks", "1 or more"]),
    ("data.image_size=[100,100]", ["data.image_size", "multiples of 32", "[96,96] or [128,128]"]),
    ("data.image_size=128", ["data.image_size", "[height,width]"]),
    ("data.classes=0", ["data.classes", "0"]),
    ("data.classes=1000000000", ["data.classes", "from 1 to 12", "1000000000"]),
    ("data.classes=3 data.class_names=[a,a,b]", ["data.class_names", "3 different names"]),
    ("data.ignore_index=1", ["data.ignore_index", "1"]),
    ("data=folder", ["data.root", "data.root=..."]),
    ("objective=val/mio", ["objective=val/mio", "'val/miou'"]),
    ("objective=[]", ["objective is empty", "val/miou"]),
    ("objective=student/latency_ms", ["cannot select the best epoch"]),
    ("loss=hard_only objective=val/teacher_agreement", ["val/teacher_agreement needs a teacher"]),
    ("teacher=file", ["teacher.path"]),
    ("loss.class_weights=median", ["loss.class_weights='median'", "null, auto, or a list"]),
    ("loss.class_weights=[1]", ["loss.class_weights has 1 weights", "two (background, foreground)"]),
    ("loss.class_weights=[0,0]", ["class_weights are all 0"]),
    ("loss.class_weights=auto loss.gamma=0", ["class_weights weigh the pixels", "set class_weights=null"]),
    ("loss.focal_alpha=2", ["loss.focal_alpha=2", "less than or equal to 1"]),
    ("optimizer.warmup=25", ["optimizer.warmup=25 epochs", "trainer.epochs=25", "lower it"]),
    ("optimizer=sgd +optimizer.betas=[0.5,0.9]", ["betas has no effect with algorithm=sgd", "optimizer=adamw"]),
    ("optimizer=sgd optimizer.nesterov=true optimizer.momentum=0", ["nesterov=true needs momentum above 0"]),
    ("optimizer=sgd optimizer.ema=1", ["optimizer.ema=1", "less than 1"]),
    ("optimizer.decay=linear", ["optimizer.decay='linear'", "'cosine' or 'polynomial'"]),
    ("trainer.oversample=1.5", ["trainer.oversample=1.5", "less than or equal to 1"]),
    ("teacher.gamma=0 teacher.delta=0", ["gamma and delta are both 0"]),
    ("backbone.student.arch=[a]", ["backbone.student.arch=['a']", "string"]),
    ("augment.transforms=5", ["augment.transforms=5", "list"]),
    ("root=null", ["root=None", "path"]),
    # interpolations
    ("seed=${seed}", ["seed", "Recursive interpolation"]),
    ("trainer.epochs=${trainer.batch_size} trainer.batch_size=${trainer.epochs}", ["epochs", "Recursive"]),
    ("root=${nothing}", ["root", "'nothing' not found"]),
    ("seed=${nonesuch:3}", ["seed", "nonesuch"]),
    ("seed=${oc.env:NO_SUCH_VARIABLE}", ["seed", "NO_SUCH_VARIABLE"]),
    # names of things to build
    ("schedule._target_=os.system", ["schedule._target_=os.system", "may build", "cosine"]),
    ("schedule._target_=kd.plan.Schedule", ["kd.plan.Schedule", "may build"]),
    ("schedule._target_={a:b}", ["schedule._target_", "may build"]),
    ("unfreeze._target_=subprocess.run", ["unfreeze._target_=subprocess.run", "progressive"]),
    ("data._target_=kd.data.sets.folder.hashlib.new", ["may build"]),
    (f"schedule.initial={{_target_:os.mkdir,path:ROOT/{MARK}}}", ["schedule.initial must be a positive, finite"]),
    ("+schedule._execution_whitelist_=['os.*']", ["_execution_whitelist_"]),
    ("+backbone.student._target_=os.system", ["backbone.student._target_ is not an option"]),
    ("+trainer._target_=os.system", ["trainer._target_ is not an option"]),
    # control characters and very long values
    ("'trainer.device=a\x1b[31mred'", ["trainer.device", "\\x1b[31mred"]),
    (f"objective={'x' * 5000}", ["objective=xxx", "...", "is not measured"]),
]


@pytest.mark.parametrize(("typed", "says"), table(CONFIGURATIONS))
def test_a_configuration_error_is_reported_in_one_line(typed, says, root, capsys):
    typed = typed.replace("ROOT", str(root))
    overrides = [typed.strip("'")] if typed.startswith("'") else typed.split(" ")
    assert refused(lambda: main(["preview", *overrides]), says, root, capsys) == 2


# what only train.py meets

TRAINING = [
    ("+any.key=1", ["any is not an option"]),
    ("++trainer.max_epochs=3", ["trainer.max_epochs is not an option", "'trainer.epochs'"]),
    ("-m seed=1,2 --cfg job", ["give only one of -m, --cfg and --info"]),
    ("-m --info", ["give only one of -m, --cfg and --info"]),
    ("backbone.student.weights=imagenet", ["backbone.student.weights=imagenet", "backbone.student.weights=null"]),
    (f"augment.transforms=[{{_target_: os.mkdir, path: ROOT/{MARK}}}]", ["augment.transforms", "os.mkdir"]),
    ("augment.transforms=[{_target_: albumentations.NoSuch}]", ["augment.transforms", "NoSuch"]),
    ("loss=features loss.feature_stages=[5,6]", ["loss.feature_stages=[5, 6]", "stage 6", "choose from 1, 2, 3, 4, 5"]),
    ("trainer.batch_size=1", ["trainer.batch_size=1", "data.image_size=[32,32]", "batch norms"]),
    ("root=/proc/nowhere", ["/proc/nowhere", "root=..."]),
    ("~unfreeze", ["a group cannot be removed, only replaced: unfreeze=..."]),
    (
        "-m unfreeze=all seed=1,2",
        ["is searched by the study temperature_unfreeze", "the chosen unfreeze has no such key", "hydra/sweeper=basic"],
    ),
    (
        "-m schedule=constant unfreeze=progressive seed=1,2",
        ["schedule.final is searched by the study temperature_unfreeze", "hydra/sweeper=basic"],
    ),
    (
        "-m unfreeze=progressive trainer.epochs=3",
        ["unfreeze.start_epoch=4: the decoder trains alone", "searches this key", "hydra/sweeper=basic"],
    ),
    ("data=folder data.root=~/no/such/place", [str(Path.home() / "no/such/place"), "is not a folder"]),
    ("data=folder data.root=/no/set#2", ["data.root=/no/set#2 is not a folder"]),
    ("-m ~unfreeze", ["a group cannot be removed, only replaced: unfreeze=..."]),
    ("+trainer.epoch=1", ["trainer.epoch is not an option", "'trainer.epochs'"]),
    ("-m hydra.launcher._target_=os.system", ["Unknown plugin class", "os.system"]),
    ("-m hydra.sweeper.study_name=a/b", ["hydra.sweeper.study_name='a/b'", "letters"]),
    ("-m hydra.sweeper.storage=postgresql://me:secret@host/db", ["hydra.sweeper.storage", "PGPASSWORD"]),
    (
        f"+hydra.callbacks.trap={{_target_:os.mkdir,path:ROOT/{MARK}}}",
        ["os.mkdir", "whitelist"],
    ),
    (
        f"+hydra.job_logging.handlers.a={{class:os.mkdir,path:ROOT/{MARK}}} hydra.job_logging.root.handlers=[a]",
        ["handler 'a'", "os.mkdir", "whitelist"],
    ),
]


@pytest.mark.parametrize(("typed", "says"), table(TRAINING))
def test_a_mistake_found_in_training_is_reported_in_one_line(typed, says, root):
    typed = typed.replace("ROOT", str(root))
    train_refuses(root, says, *SMALL, *([typed] if "transforms" in typed else typed.split(" ")))


def test_weights_that_cannot_be_fetched_are_reported_before_a_teacher_trains(root):
    taught = [override for override in SMALL if override != "loss=hard_only"]
    says = ["backbone.student.weights=imagenet", "without a network"]
    train_refuses(root, says, *taught, "backbone.student.weights=imagenet")


# images and masks


def pictures(root: Path) -> Path:
    """A folder of 32 x 32 images, three pairs in each of two splits."""
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / "data" / kind / split).mkdir(parents=True)
        for name in "abc":
            Image.effect_noise((32, 32), 50).convert("RGB").save(root / "data" / "images" / split / f"{name}.png")
            Image.new("L", (32, 32), 1).save(root / "data" / "masks" / split / f"{name}.png")
    return root / "data"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def palette(path: Path) -> None:
    picture = Image.new("P", (32, 32), 7)
    picture.putpalette([0, 0, 0] * 7 + [255, 0, 0])
    picture.save(path)


def remove_all(data: Path) -> None:
    for path in data.rglob("*.png"):
        path.unlink()


IMAGE, MASK = "images/train/a.png", "masks/train/a.png"
PICTURES = [
    ("image cut short", lambda data: cut(data / IMAGE), ["a.png"]),
    ("mask cut short", lambda data: cut(data / MASK), ["masks/train/a.png", "cannot be read as an image"]),
    ("empty image", lambda data: (data / IMAGE).write_bytes(b""), ["images/train/a.png"]),
    ("empty mask", lambda data: (data / MASK).write_bytes(b""), ["masks/train/a.png"]),
    ("text named .png", lambda data: (data / IMAGE).write_text("no picture"), ["images/train/a.png"]),
    ("mask of another size", lambda data: Image.new("L", (16, 32)).save(data / MASK), ["a.png", "16", "32"]),
    ("16-bit mask beyond the classes", lambda d: Image.new("I;16", (32, 32), 300).save(d / MASK), ["a.png", "300"]),
    ("mask beyond the classes", lambda data: Image.new("L", (32, 32), 2).save(data / MASK), ["a.png", "2"]),
    ("palette beyond the classes", lambda data: palette(data / MASK), ["masks/train/a.png", "7"]),
    ("coloured mask", lambda d: Image.new("RGB", (32, 32), (1, 2, 3)).save(d / MASK), ["a.png", "colour"]),
    ("image without mask", lambda data: (data / MASK).unlink(), ["images/train/a.png", "mask"]),
    ("mask without image", lambda data: (data / IMAGE).unlink(), ["masks/train/a.png", "image"]),
    ("no images", remove_all, ["images/train", "no images"]),
    ("no folder", lambda data: data.rename(data.parent / "elsewhere"), ["data.root=", "is not a folder"]),
    (
        "a name with control characters",
        lambda data: (data / IMAGE).rename(data / "images/train/\x1b[2J\n.png"),
        ["\\x1b[2J"],
    ),
]


@pytest.mark.parametrize(("done", "spoil", "says"), table(PICTURES))
def test_invalid_data_is_reported_in_one_line(done, spoil, says, root, capsys):
    data = pictures(root)
    spoil(data)
    overrides = ["data=folder", f"data.root={data}", "data.image_size=[32,32]"]

    def look():
        source = read(compose(overrides)).data
        source.read("train", 0)  # a look at the headers alone does not see every broken picture

    refused(look, says, root, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_images_damaged_during_training_are_reported_in_one_line(workers, root):
    data = pictures(root)
    for image in (data / "images" / "train").iterdir():
        cut(image)
    folder = ["data=folder", f"data.root={data}", f"trainer.workers={workers}"]
    train_refuses(root, [".png", "cannot be read as an image"], *SMALL, "trainer.batch_size=2", *folder)


def test_the_same_folder_trains_once_it_is_valid(root):
    done = program.train(root, *SMALL, "trainer.batch_size=2", "data=folder", f"data.root={pictures(root)}")
    assert done.returncode == 0, done.stderr
    assert list((root / "runs").rglob("student.safetensors"))


# networks and weights, saved and made up

ENCODER = "tu-mobilenetv3_small_050"
BINARY = ("background", "foreground")


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("saved") / "teacher.safetensors"
    save(build.build(NetworkSettings(arch="unet", encoder=ENCODER), 1, BINARY, "backbone.teacher"), file)
    return file


@pytest.fixture
def saved(saved_once, root) -> Path:
    """A valid network with one logit, for tests to damage."""
    for file in (saved_once, saved_once.with_suffix(".json")):
        (root / file.name).write_bytes(file.read_bytes())
    return root / saved_once.name


def spec(**changes) -> Callable[[Path], None]:
    """Changes the description beside the weights."""

    def change(file: Path) -> None:
        beside = file.with_suffix(".json")
        beside.write_text(json.dumps(json.loads(beside.read_text()) | changes))

    return change


def beside(text: str) -> Callable[[Path], object]:
    return lambda file: file.with_suffix(".json").write_text(text)


def lying(shape: list[int], end: int) -> Callable[[Path], None]:
    """A header that claims more data than the file has."""

    def write(file: Path) -> None:
        header = json.dumps({"mean": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 16)

    return write


#: Damaged networks, and what `load` says of them. The first group is detected from the description alone.
DESCRIPTIONS = [
    ("description missing", lambda file: file.with_suffix(".json").unlink(), ["teacher.json is missing"]),
    ("description empty", beside(""), ["teacher.json is not readable JSON"]),
    ("description nested too deep", beside("[" * 100_000), ["teacher.json is not readable JSON"]),
    ("description of 2 MB", beside(" " * 2**21), ["teacher.json is larger than 1048576 bytes"]),
    ("description is a list", beside("[1]"), ["teacher.json: content"]),
    ("a thousand million classes", spec(classes=10**9), ["teacher.json: classes", "255"]),
    ("true classes", spec(classes=True), ["teacher.json: classes", "integer"]),
    ("names of control characters", spec(arch="unet\x1b[2J\n"), ["teacher.json: arch", "non-printable"]),
    ("class names of control characters", spec(class_names=["a\x07", "b"]), ["class_names.0", "non-printable"]),
    ("a name of a million letters", spec(encoder="x" * 10**6), ["teacher.json: encoder", "200 characters"]),
    ("an encoder to instantiate", spec(encoder={"_target_": "os.system"}), ["teacher.json: encoder", "string"]),
    ("a deviation of zero", spec(std=[0, 1, 1]), ["teacher.json: std.0", "greater than 0"]),
    ("a mean that is not a number", spec(mean=[float("nan"), 0, 0]), ["teacher.json", "NaN is not a finite number"]),
]
NETWORKS = [
    ("architecture unknown", spec(arch="unett"), ["teacher.json: arch=unett", "'unet'"]),
    ("architecture a dotted name", spec(arch="os.system"), ["arch=os.system is not an architecture"]),
    ("encoder unknown", spec(encoder="resnet81"), ["teacher.json: encoder=resnet81", "'resnet18'"]),
    ("encoder a path", spec(encoder="/tmp/encoder.pt"), ["encoder=/tmp/encoder.pt is not an encoder"]),
    ("encoder from the hub", spec(encoder="tu-hf-hub:nobody/nothing"), ["tu-hf-hub:nobody/nothing is not an encoder"]),
    ("encoder a folder", spec(encoder="tu-local-dir:/tmp"), ["tu-local-dir:/tmp is not an encoder"]),
    ("weights of another network", spec(encoder="resnet18"), ["teacher.safetensors: the weights do not match"]),
    ("weights missing", lambda file: file.unlink(), ["teacher.safetensors: no such weights file"]),
    ("weights cut short", cut, ["teacher.safetensors: not a readable safetensors file"]),
    ("weights empty", lambda file: file.write_bytes(b""), ["teacher.safetensors: not a readable"]),
    ("weights of no network", lambda f: save_file({"a": torch.zeros(1)}, f), ["do not match", "1 unknown"]),
    ("a pickle named .safetensors", trap, ["teacher.safetensors: not a readable safetensors file"]),
    ("a header of exabytes", lambda f: f.write_bytes(b"\xff" * 7 + b"\x0f" + b"{}"), ["not a readable"]),
    ("a header of a shape that is not there", lying([10**12], 16), ["not a readable safetensors file"]),
    ("a header beyond the file", lying([10**12], 4 * 10**12), ["not a readable safetensors file"]),
    ("a header of an overflowing shape", lying([2**62, 2**62], 16), ["not a readable safetensors file"]),
]


@pytest.mark.parametrize(("done", "spoil", "says"), table([*DESCRIPTIONS, *NETWORKS]))
def test_a_damaged_network_is_reported_in_one_line(done, spoil, says, saved, root, capsys):
    spoil(saved)
    assert refused(lambda: load_file(saved), says, root, capsys) == 1


TEACHERS = [
    *DESCRIPTIONS,
    ("weights missing", lambda file: file.unlink(), ["teacher.path=", "no weights found"]),
    (
        "weights of a torch file",
        lambda file: file.rename(file.with_suffix(".pt")),
        ["teacher.path=", ".safetensors file"],
    ),
    (
        "classes that do not fit",
        spec(classes=3, class_names=["a", "b", "c"]),
        ["teacher.path=", "3 classes (a, b, c) and 3 logits", "data.classes=1"],
    ),
]


@pytest.mark.parametrize(("done", "spoil", "says"), table(TEACHERS))
def test_an_unsuitable_teacher_is_refused_before_training(done, spoil, says, saved, root, capsys):
    spoil(saved)
    refused(lambda: read(compose(["teacher=file", f"teacher.path={saved}"])), says, root, capsys)


@pytest.mark.parametrize(
    "path", ["/nowhere", "~nobody-of-that-name/x", "x" * 300 + ".safetensors", "a\x1b[2J.safetensors", "/dev/zero"]
)
def test_a_path_without_a_teacher_is_reported_in_one_line(path, root, capsys):
    says = ["teacher.path=", "no weights found"]
    refused(lambda: read(compose(["teacher=file", f"teacher.path='{path}'"])), says, root, capsys)


@pytest.mark.parametrize(
    ("done", "spoil", "says"),
    table(
        [
            ("weights cut short", cut, ["teacher.safetensors: not a readable safetensors file"]),
            ("a pickle named .safetensors", trap, ["teacher.safetensors: not a readable safetensors file"]),
        ]
    ),
)
def test_a_teacher_that_cannot_be_loaded_leaves_no_files(done, spoil, says, saved, root):
    spoil(saved)
    train_refuses(root, says, *SMALL, "loss=composite", "teacher=file", f"teacher.path={saved}")


WEIGHTS = [
    ("none.pt", lambda file: None, ["none.pt: no such weights file"]),
    ("empty.pt", lambda file: file.write_bytes(b""), ["empty.pt: not a plain state dict"]),
    ("text.pth", lambda file: file.write_text("no weights"), ["text.pth: not a plain state dict"]),
    ("trap.pt", trap, ["trap.pt: calls ", "which weights do not need"]),
    ("trap.pth", old_trap, ["trap.pth: calls "]),
    ("trap.bin", old_trap, ["trap.bin: calls "]),
    ("trap.safetensors", trap, ["trap.safetensors: not a readable safetensors file"]),
    ("bomb.pt", bomb, ["bomb.pt: its records are compressed"]),
    ("list.pt", lambda file: torch.save([1], file), ["list.pt: holds list"]),
    ("numbers.pt", lambda file: torch.save({1: torch.zeros(1)}, file), ["numbers.pt: holds dict"]),
    ("other.pt", lambda file: torch.save({"a": torch.zeros(1)}, file), ["backbone.student.weights=", "do not match"]),
    ("huge.pt", lambda file: torch.save({"a": torch.zeros(1).expand(10**12)}, file), ["do not match", "1 unknown"]),
    ("x" * 300 + ".pt", lambda file: None, ["no such weights file", "..."]),
]


@pytest.mark.parametrize(("name", "write", "says"), table(WEIGHTS))
def test_invalid_encoder_weights_are_reported_in_one_line(name, write, says, root, capsys):
    write(root / name)
    settings = NetworkSettings(arch="unet", encoder=ENCODER, weights=str(root / name))
    assert refused(lambda: build.build(settings, 1, BINARY, "backbone.student"), says, root, capsys) == 1


@pytest.mark.parametrize(
    ("settings", "says"),
    table(
        [
            ({"arch": "unett", "encoder": ENCODER}, ["backbone.student.arch=unett", "'unet'"]),
            ({"arch": "unet", "encoder": "efficientnet-b00"}, ["backbone.student.encoder=", "'efficientnet-b0'"]),
            ({"arch": "unet", "encoder": "os.system"}, ["backbone.student.encoder=os.system is not an encoder"]),
            ({"arch": "unet", "encoder": "resnet18", "weights": "imaginet"}, ["weights=imaginet", "'imagenet'"]),
            ({"arch": "unet", "encoder": ENCODER, "weights": "best"}, ["weights=best", "imagenet or null"]),
            ({"arch": "unetplusplus", "encoder": "mit_b0"}, ["cannot build unetplusplus with mit_b0"]),
        ]
    ),
)
def test_a_network_that_cannot_be_built_is_reported_in_one_line(settings, says, root, capsys):
    network = NetworkSettings(**settings)
    assert refused(lambda: build.build(network, 1, BINARY, "backbone.student"), says, root, capsys) == 1


def test_the_traps_work(root):
    """Unpickling the files refused above would execute code."""
    pickle.loads(pickle.dumps(Trap(root)))
    assert (root / MARK).is_dir()


# studies and their stores


def no_database(path: Path) -> None:
    path.write_bytes(b"no database " * 100)


STORES = [
    ("no database", no_database, "sqlite:///ROOT/studies.db", ["studies.db", "file is not a database"]),
    ("a folder in its place", lambda path: path.mkdir(), "sqlite:///ROOT/studies.db", ["studies.db"]),
    ("no file", lambda path: None, "sqlite:///ROOT/studies.db", ["there is no study yet"]),
    ("no scheme", lambda path: None, "studies.db", ["hydra.sweeper.storage=studies.db", "sqlite:////"]),
    ("unknown scheme", lambda path: None, "gopher://host/db", ["gopher://host/db", "postgresql://"]),
    ("mysql", lambda path: None, "mysql://host/db", ["mysql://host/db", "not an address"]),
    ("memory", lambda path: None, "sqlite:///:memory:", ["not an address"]),
    ("nobody at the port", lambda path: None, "postgresql://me@127.0.0.1:1/db", ["127.0.0.1:1/db", "cannot be used"]),
    ("control characters", lambda path: None, "gopher://\x1b[2J", ["\\x1b[2J"]),
]


@pytest.mark.parametrize(("done", "make", "url", "says"), table(STORES))
def test_an_invalid_study_storage_is_reported_in_one_line(done, make, url, says, root, capsys):
    make(root / "studies.db")
    command = ["study", "--no-files", "--storage", url.replace("ROOT", str(root))]
    before = {path for path in contents(root) if "lock" not in path.name}
    with pytest.raises(SystemExit) as exit_:
        main(command)
    assert exit_.value.code == 1
    told(capsys.readouterr().err, says)
    assert {path for path in contents(root) if "lock" not in path.name} == before


@pytest.mark.parametrize("url", ["postgresql://me:hunter2@127.0.0.1:1/db", "gopher://me:hunter2@host/db"])
def test_a_password_in_an_address_is_never_shown(url, capsys):
    with pytest.raises(SystemExit):
        main(["study", "--storage", url])
    told(capsys.readouterr().err, ["***"] if url.startswith("gopher") else ["127.0.0.1"])
    assert "hunter2" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a b", "\x1b[2J", "a\n", "x" * 300, 5, None])
def test_an_impossible_folder_name_is_refused(name, root, capsys):
    assert (
        refused(lambda: hydra_options.check_name(name), ["hydra.sweeper.study_name=", "80 letters"], root, capsys) == 2
    )


@pytest.mark.parametrize(
    ("node", "says"),
    table(
        [
            ({"_target_": "os.mkdir"}, ["hydra.sweeper.sampler (os.mkdir)", "whitelist"]),
            ({"_target_": "optuna.samplers.NoSuch"}, ["optuna.samplers.NoSuch"]),
            ({"_target_": "optuna.samplers.TPESampler", "x": 1}, ["TPESampler", "sampler.x is not an argument"]),
            ({"_target_": "optuna.samplers.TPESampler", "seed": -1}, ["hydra.sweeper.sampler.seed=-1"]),
            ({"_target_": "optuna.samplers.TPESampler", "gamma": {"_target_": "os.getcwd"}}, ["os.getcwd"]),
            ({"_target_": "optuna.samplers._tpe.sampler.warnings.warn", "message": "x"}, ["warnings.warn"]),
        ]
    ),
)
def test_a_sampler_must_be_one_of_optunas(node, says, root, capsys):
    assert refused(lambda: hydra_options.sampler(node, 0)(0), says, root, capsys) == 2


def test_a_pruner_must_be_one_of_optunas(root, capsys):
    node = {"_target_": "optuna.pruners.PatientPruner", "wrapped_pruner": {"_target_": "os.getcwd"}, "patience": 1}
    assert refused(lambda: hydra_options.pruner(node), ["hydra.sweeper.pruner", "os.getcwd"], root, capsys) == 2


# recipes from strangers: --config-dir

GLOBAL = "# @package _global_\n"
LOG = "{job_logging: {formatters: {simple: {format: 'do harm #'}}, handlers: {file: {filename: ROOT/executed}}}}"
RECIPES = [
    ("log into any file", "experiment/x.yaml", f"{GLOBAL}hydra: {LOG}", ["sets hydra"]),
    ("the same in quotes", "experiment/x.yaml", f'{GLOBAL}"\\x68ydra": {LOG}', ["sets hydra"]),
    ("the same by its package", "experiment/x.yaml", f"# @package hydra\n{LOG}", ["is placed at hydra"]),
    ("the same by its name", "experiment/hydra.yaml", f"# @package _name_\n{LOG}", ["is placed at _name_"]),
    ("by another file", "loss/x.yaml", f"{GLOBAL}hydra: {LOG}", ["loss/x.yaml: sets hydra"]),
    ("placed by its defaults", "experiment/x.yaml", "defaults: [/loss@hydra: y]", ["among its defaults"]),
    ("a launcher by its defaults", "experiment/x.yaml", "defaults: [override /hydra/launcher: joblib]", ["launcher"]),
    ("a file out of reach", "experiment/x.yaml", "defaults: [/elsewhere/evil]", ["/elsewhere/evil"]),
    ("a file above", "experiment/x.yaml", "defaults: [../evil]", ["../evil"]),
    ("a secret", "experiment/x.yaml", "data: {root: '${oc.env:HOME}'}", ["computes '${oc.env:HOME}'"]),
    ("a secret in disguise", "experiment/x.yaml", "data: {root: '${oc.${a}:HOME}'}", ["computes"]),
    ("a study of another kind", "sweeps/x.yaml", "# @package hydra.sweeper\n_target_: x", ["sets _target_ of a study"]),
    ("a store", "sweeps/x.yaml", "# @package hydra.sweeper\nstorage: x", ["sets storage of a study"]),
    ("trials that log", "sweeps/x.yaml", "# @package hydra.sweeper\nparams: {hydra.run.dir: x}", ["hydra.run.dir"]),
    ("no YAML", "experiment/x.yaml", "a: [", ["experiment/x.yaml cannot be read as YAML"]),
    ("no text", "experiment/x.yaml", b"\xff\xfe\x00", ["experiment/x.yaml cannot be read as YAML"]),
    ("nested too deep", "experiment/x.yaml", "[" * 1500, ["experiment/x.yaml cannot be read as YAML"]),
]


def recipe(root: Path, name: str, content: str | bytes) -> list[str]:
    file = root / "stranger" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.replace("ROOT", str(root)).encode())
    return ["--config-dir", str(root / "stranger")]


@pytest.mark.parametrize(("done", "name", "content", "says"), table(RECIPES))
def test_a_recipe_may_only_describe_a_training(done, name, content, says, root, capsys):
    typed = recipe(root, name, content)
    assert refused(lambda: hydra_options.check_recipes([*typed, "experiment=x"]), says, root, capsys) == 2


def test_a_recipe_folder_cannot_lead_elsewhere(root, capsys):
    typed = recipe(root, "experiment/x.yaml", GLOBAL)
    (root / "stranger" / "experiment" / "more").symlink_to(root)
    refused(lambda: hydra_options.check_recipes(typed), ["experiment/more is a link to another folder"], root, capsys)


def test_recipes_written_by_studies_and_people_are_accepted(root):
    recipe(root, "sweeps/winner.yaml", winner_study("hydra", "x", seed=0))
    recipe(root, "loss/own.yaml", "alpha: 1\ngamma: ${loss.alpha}\n")
    text = "defaults: [small_data, {override /loss: own}, _self_]\ndata: {root: /hydra/data}\n"
    typed = recipe(root, "experiment/best.yaml", f"{GLOBAL}# a note: @hydra\n{text}")
    hydra_options.check_recipes([*typed, "experiment=best"])
    hydra_options.check_recipes(["experiment=small_data"])


@pytest.mark.parametrize(
    ("content", "says"),
    table(
        [
            (f"{GLOBAL}hydra: {LOG}", ["experiment/x.yaml: sets hydra"]),
            (f"{GLOBAL}schedule: {{_target_: os.mkdir, path: ROOT/{MARK}}}", ["schedule._target_=os.mkdir"]),
        ]
    ),
)
def test_a_hostile_recipe_executes_nothing(content, says, root):
    typed = recipe(root, "experiment/x.yaml", content)
    train_refuses(root, says, *typed, "experiment=x", *SMALL)
