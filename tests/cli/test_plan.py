"""`kd preview` prints the plan that training follows, without importing anything heavy."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from kd.cli import main
from kd.config.compose import compose
from kd.config.read import read

REFERENCE = "experiment=b0_from_b3_temp_prog"
GUIDE = "experiment=temp_prog_guide"


def preview(capsys, *arguments):
    main(["preview", *arguments])
    return capsys.readouterr().out


def rows(text):
    """(first epoch, last epoch, unfrozen blocks) of each row of the printed table."""
    found = []
    for line in text.splitlines()[1:]:
        first, _, last = line.split()[0].partition("-")
        found.append((int(first), int(last or first), int(line.split(" of ")[0].split()[-1])))
    return found


def test_the_table_has_a_column_of_unfrozen_blocks(capsys):
    header, *_ = preview(capsys).splitlines()
    assert header.split()[:3] == ["epochs", "temperature", "unfrozen"]


def test_preview_prints_the_reference_table(capsys):
    expected = [(1, 5, 0), (6, 8, 1), (9, 11, 2), (12, 14, 3), (15, 17, 4), (18, 20, 5), (21, 23, 6), (24, 50, 7)]
    assert rows(preview(capsys, REFERENCE)) == expected


def test_preview_prints_the_table_of_the_guide(capsys):
    expected = [(1, 10, 0), (11, 15, 1), (16, 20, 2), (21, 25, 3), (26, 30, 4), (31, 35, 5), (36, 40, 6), (41, 50, 7)]
    assert rows(preview(capsys, GUIDE)) == expected


def test_json_has_one_object_per_epoch_of_the_training_plan(capsys):
    overrides = ["schedule=cosine", "unfreeze.rate=3", "trainer.epochs=50"]
    timeline = read(compose(overrides)).timeline(7)
    assert json.loads(preview(capsys, *overrides, "--json")) == [
        {
            "epoch": plan.epoch,
            "temperature": plan.temperature,
            "unfrozen_blocks": plan.unfrozen_blocks,
            "lr": {"decoder": plan.lr_decoder, "encoder": plan.lr_blocks[0] if plan.unfrozen_blocks else None},
        }
        for plan in timeline
    ]


def test_png_is_an_image(capsys, tmp_path):
    preview(capsys, "schedule=linear", "--png", str(tmp_path / "plan.png"))
    with Image.open(tmp_path / "plan.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300


def test_preview_needs_no_data_and_no_teacher(capsys):
    assert preview(capsys, "data=folder", "data.root=/nowhere", "teacher=file", "teacher.path=/nowhere")


def test_preview_says_what_a_batch_has_where_there_may_be_pictures_without_masks(capsys):
    """Without looking at the data; nothing is said where there cannot be any, or no term has a teacher."""
    folder = ["data=folder", "data.root=/nowhere", "data.unlabelled_share=0.2"]
    says = "batch   8 pictures with masks and, if the data has pictures without, 2 of those (data.unlabelled_share=0.2)"
    assert says in preview(capsys, *folder)
    for more in (["data.unlabelled=9"], ["data=oxford_pet", "data.labelled=0.5"]):
        assert "batch   8 pictures" in preview(capsys, *more)
    for more in ([], ["data=oxford_pet"], [*folder, "loss=hard_only"], [*folder, "data.unlabelled_share=0"]):
        assert "batch" not in preview(capsys, *more)


def test_preview_says_what_a_recipe_does_besides_the_usual(capsys):
    text = preview(capsys, "optimizer=sgd", "optimizer.nesterov=true", "optimizer.warmup=2", "optimizer.ema=0.99")
    assert "optimizer  SGD, momentum 0.9, nesterov, weight decay 0.0005" in text
    assert "rates      polynomial decay, power 0.9, after 2 epochs of warm-up; constant within an epoch" in text
    assert "weights    their average over the steps (decay 0.99) is measured beside the raw ones; the better" in text
    table = text.splitlines()
    assert table[1].split()[0] == "1-2"
    assert "3.3e-03 -> 6.4e-03" in table[1]
    assert not any(line.startswith(("optimizer", "rates", "weights")) for line in preview(capsys).splitlines())


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_preview_imports_nothing_heavy(form):
    code = (
        "import sys; from kd.cli import main; main(['preview', *sys.argv[1:]]);"
        "heavy = {'torch', 'albumentations', 'cv2', 'mlflow', 'matplotlib', 'segmentation_models_pytorch'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, REFERENCE, *form], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_closed_pipe_ends_the_command_without_an_error():
    code = "from kd.cli import main; main(['preview', 'trainer.epochs=5000', 'unfreeze.rate=600', '--json'])"
    done = subprocess.run(["bash", "-c", f'{sys.executable} -c "{code}" | head -1'], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[\n", "")


def test_recipes_of_ones_own_are_found(tmp_path, capsys):
    own = tmp_path / "it's mine, #1"
    (own / "experiment").mkdir(parents=True)
    (own / "experiment" / "short.yaml").write_text("# @package _global_\ntrainer:\n  epochs: 7\n")
    plan = json.loads(preview(capsys, "--config-dir", str(own), "experiment=short", "--json"))
    assert len(plan) == 7


@pytest.mark.parametrize("verb", ["preview", "check", "verdict"])
@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "there is no such folder"), ("hydra: {run: {dir: x}}", "sets hydra, which a recipe of --config-dir may")],
)
def test_a_folder_of_recipes_is_checked_as_kd_train_does(verb, content, says, tmp_path, capsys):
    if content:
        (tmp_path / "own" / "experiment").mkdir(parents=True)
        (tmp_path / "own" / "experiment" / "short.yaml").write_text(content)
    with pytest.raises(SystemExit) as refused:
        main([verb, "--config-dir", str(tmp_path / "own"), "experiment=short"])
    (line,) = capsys.readouterr().err.splitlines()
    assert refused.value.code == 2
    assert says in line
