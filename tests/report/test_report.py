"""`kd report`: the page says what the run folder says, whole in itself, whatever state the folder is in."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import browser
import optuna
import program
import pytest
import torch
import yaml
from mlflow_server import Server
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from kd.cli import main as kd
from kd.config.compose import PROJECT
from kd.errors import UserError
from kd.report import report
from kd.report.run import sections
from kd.report.run_files import read
from kd.study.space import Space
from kd.study.storage import Database, default_url
from kd.system import tensor_file
from kd.training.calibration import expected_error

SMALL = [
    "backbone=tiny", "data.image_size=[32,32]", "data.train=16", "data.val=8", "data.test=8", "trainer.batch_size=8",
    "trainer.epochs=3", "trainer.device=cpu", "unfreeze.start_epoch=1", "unfreeze.rate=1", "teacher.epochs=1",
]  # fmt: skip
SCRIPT = "<script>alert(1)</script>"
ATTRIBUTE = '"><img src=x onerror=alert(2)> \x1b[31m \u202e {{ 7 * 7 }} [bold]'
FILES = ["config.yaml", ".hydra/overrides.yaml", "run.json", "metrics.jsonl", "summary.json", "evidence.json",
         "evidence.safetensors"]  # fmt: skip


def train(root: Path, *overrides: str) -> Path:
    done = program.train(root, *SMALL, *overrides)
    done.check_returncode()
    return Path(re.search(r"^run +(\S+)$", done.stdout, re.MULTILINE).group(1))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def distilled(home) -> Path:
    return train(home, "data.classes=3", "data.class_names=[sky,road,car]")


@pytest.fixture(scope="module")
def alone(home) -> Path:
    """A student without a teacher, of another seed."""
    return train(home, "data.classes=3", "data.class_names=[sky,road,car]", "loss=hard_only", "seed=7")


@pytest.fixture
def copied(distilled, tmp_path) -> Path:
    return shutil.copytree(distilled, tmp_path / "runs" / "2026-01-01" / "12-00-00")


@pytest.fixture
def lean(copied) -> Path:
    """A run folder whose page is drawn in a moment: without the diagrams of its calibration."""
    seen, facts = tensor_file.read(copied / "evidence.safetensors")
    kept = {name: tensor for name, tensor in seen.items() if not name.endswith("calibration")}
    tensor_file.write(copied / "evidence.safetensors", kept, facts)
    return copied


@pytest.fixture(scope="module")
def chromium():
    with browser.Browser() as opened:
        yield opened


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def write(*folders, **more) -> str:
    """The text of the page."""
    return report([str(folder) for folder in folders], **more).read_text(encoding="utf-8")


class Parsed(HTMLParser):
    """What is in a page: the names of its elements, its attributes, its numbers by key, its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.numbers, self.text, self.sections = [], [], {}, "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        found = dict(attrs)
        if tag == "section":
            self.sections.append(found["id"])
        if "data-key" in found:
            self.numbers.setdefault(found["data-key"], set()).add(float(found["value"]))

    def handle_data(self, data):
        self.text += data


def figures(summary: dict, *, prefix: str = "") -> dict[str, float]:
    """Every closing figure that the page shows, by the name that it has there."""
    wanted = re.compile(r"parameters|macs|file_bytes|latency_ms|(val|test)/(miou|dice|iou/.*)")
    return {
        f"{prefix}{who}.{name}": value
        for who in ("teacher", "student")
        for name, value in summary.get(who, {}).items()
        if wanted.fullmatch(name) and value is not None
    }


# the page of a run


def asked(folder: Path) -> list[tuple[str, str]]:
    """What the page says was asked, by name."""
    section = sections(read(folder))[0][0]
    return [(name, cell.text) for name, cell in section.blocks[0].rows]


def test_every_number_of_the_page_is_that_of_its_file(distilled):
    page, summary = Parsed(write(distilled)), summary_of(distilled)
    expected = figures(summary)
    assert len(expected) >= 2 * (4 + 2 * (2 + 3))
    assert {key: page.numbers[key] for key in expected} == {key: {value} for key, value in expected.items()}
    assert page.numbers["total_seconds"] == {summary["total_seconds"]}
    best = [json.loads(line) for line in (distilled / "metrics.jsonl").open()][summary["best_epoch"]]
    assert page.numbers["best.val/teacher_agreement"] == {best["val/teacher_agreement"]}


def test_the_page_has_every_part(distilled):
    page = Parsed(write(distilled))
    assert page.sections == [
        "asked", "figures", "classes", "curves", "samples", "confusion", "calibration", "agreement", "cost", "again"
    ]  # fmt: skip
    for words in ("sky", "road", "car", "trivial baseline", "backbone=tiny", "torch", "python train.py", "commit"):
        assert words in page.text


def test_the_page_fetches_nothing_and_runs_nothing(distilled):
    text = write(distilled)
    page = Parsed(text)
    assert not re.search(r"https?:", text)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {*page.tags}
    links = [value for name, value in page.attributes if name in ("src", "href", "srcset", "action")]
    assert links
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    policy = next(value for _, value in page.attributes if value and value.startswith("default-src"))
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy


@browser.needed
def test_a_browser_shows_it_without_an_error_with_all_pictures_and_the_numbers_of_the_summary(distilled, chromium):
    page = report([str(distilled)])
    chromium.open(page.as_uri())
    assert chromium.errors == []
    assert {address.partition(":")[0] for address in chromium.asked} == {"file", "data"}
    assert chromium.evaluate("document.fonts.ready.then(() => getComputedStyle(document.body).display)") == "grid"
    widths = chromium.evaluate("[...document.images].map(each => each.naturalWidth)")
    assert len(widths) > 10
    assert min(widths) > 0
    shown = chromium.evaluate(
        "[...document.querySelectorAll('data[data-key]')].map(each => [each.dataset.key, each.value, each.innerText])"
    )
    expected = figures(summary_of(distilled))
    assert {key for key, _, _ in shown} >= set(expected)
    for key, value, text in shown:
        if key in expected:
            assert float(value) == expected[key]
            form = {"parameters": ",d", "macs": ",d", "file_bytes": ",d", "latency_ms": ".1f"}
            rounded = format(expected[key], form.get(key.rpartition(".")[2], ".4f"))
            assert text.removesuffix(" bytes").removesuffix(" ms") == rounded


def test_ece_and_confusion_of_the_page_are_those_of_the_evidence(distilled):
    page, (seen, _) = Parsed(write(distilled)), tensor_file.read(distilled / "evidence.safetensors")
    for who in ("teacher", "student"):
        for split, title in (("val", "validation"), ("test", "test")):
            table, counts = seen[f"{who}/{split}/calibration"], seen[f"{who}/{split}/confusion"]
            assert page.numbers[f"ece.{who}, {title}"] == {expected_error(table)}
            assert int(counts.sum()) == int(table[:, 0].sum()) == 8 * 32 * 32
            iou = counts.diagonal() / (counts.sum(0) + counts.sum(1) - counts.diagonal())
            expected = summary_of(distilled)[who][f"{split}/miou"]
            assert float(iou.nanmean()) == pytest.approx(expected, abs=1e-6)


def test_the_trivial_baseline_is_made_of_the_training_masks(distilled):
    from kd.config.read import checked

    data = checked(read(distilled).config).data
    stack = torch.stack([torch.from_numpy(data.read("train", index)[1]) for index in range(16)]).long()
    usual = torch.nn.functional.one_hot(stack, 3).sum(0).argmax(-1)
    counts = torch.zeros(3, 3)
    for index in range(8):
        truth = torch.from_numpy(data.read("test", index)[1]).long()
        counts += torch.bincount((truth * 3 + usual).flatten(), minlength=9).view(3, 3)
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    there = union > 0
    expected = float((counts.diagonal()[there] / union[there]).mean())
    page = Parsed(write(distilled))
    assert [*page.numbers["baseline.test/miou"]] == [pytest.approx(expected, abs=1e-6)]


def test_the_terminal_says_it_in_short(distilled, capsys):
    kd(["report", str(distilled), "-o", str(distilled / "mine.html")])
    out = capsys.readouterr().out
    assert "trivial baseline" in out
    assert f"{summary_of(distilled)['student']['test/miou']:.4f}" in out
    assert out.splitlines()[-1] == f"page     {distilled / 'mine.html'}"
    assert (distilled / "mine.html").read_bytes() == Path(report([str(distilled)])).read_bytes()


def test_a_run_notes_its_commit_and_whether_files_differed_from_it(distilled):
    tags = json.loads((distilled / "run.json").read_text())["tags"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True)
    if head.returncode:
        assert "git.dirty" not in tags
    else:
        assert tags["mlflow.source.git.commit"] == head.stdout.strip()
        assert tags["git.dirty"] in ("true", "false")


# hostile and damaged folders


def hostile(folder: Path) -> None:
    """Put markup wherever a text can stand."""
    for name in ("evidence.json", "run.json", "summary.json", "metrics.jsonl"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("sky", SCRIPT).replace("road", json.dumps(ATTRIBUTE)[1:-1]))
    facts = json.loads((folder / "run.json").read_text())
    facts |= {"name": SCRIPT, "choices": {SCRIPT: ATTRIBUTE}, "tags": {"mlflow.source.git.commit": ATTRIBUTE}}
    facts["environment"] |= {SCRIPT: SCRIPT, "packages": {ATTRIBUTE: SCRIPT}}
    (folder / "run.json").write_text(json.dumps(facts))
    evidence = json.loads((folder / "evidence.json").read_text())
    for sample in evidence["samples"]:
        sample["name"] = SCRIPT + ATTRIBUTE
    (folder / "evidence.json").write_text(json.dumps(evidence))
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([f"tracking.tags.x={SCRIPT}", ATTRIBUTE]))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config[SCRIPT] = {ATTRIBUTE: [SCRIPT]}
    config["data"]["class_names"] = [SCRIPT, ATTRIBUTE, "car"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "error.txt").write_text(SCRIPT + ATTRIBUTE)
    (folder / "curves.png").write_text("<svg onload=alert(3)>")


def test_markup_in_a_folder_is_shown_as_text(copied, capsys):
    hostile(copied)
    page = Parsed(write(copied))
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count(SCRIPT) >= 8
    assert "{{ 7 * 7 }}" in page.text
    assert not set("\x1b\u202e") & {*page.text}
    assert not set("\x1b\u202e") & {*capsys.readouterr().out}


@browser.needed
def test_a_browser_runs_nothing_of_a_hostile_folder(copied, chromium):
    hostile(copied)
    chromium.open(report([str(copied)]).as_uri())
    assert chromium.errors == []
    assert chromium.evaluate("document.scripts.length") == 0
    assert chromium.evaluate("[...document.images].every(each => each.naturalWidth > 0)")
    assert SCRIPT in chromium.evaluate("document.body.innerText")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_and_the_rest_is_shown(lean, name):
    (lean / name).unlink()
    page = Parsed(write(lean))
    assert f"{name} is not there" in page.text
    assert len(page.sections) >= 7


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"\x00\xff{[", b"[1, 2, 3]\n", b"{}\n", b"", b'{"student": 3, "epoch": {}}\n'])
def test_a_damaged_file_is_named_and_the_rest_is_shown(lean, name, content):
    (lean / name).write_bytes(content)
    page = Parsed(write(lean))
    assert len(page.sections) >= 6
    if content == b"\x00\xff{[":
        assert name in page.text.split("Not here")[1].split("What was asked")[0]


def test_tensors_of_another_shape_cost_their_part_of_the_page(copied):
    seen, facts = tensor_file.read(copied / "evidence.safetensors")
    changed = {name: torch.zeros(2, 2, dtype=torch.uint8) for name in seen}
    tensor_file.write(copied / "evidence.safetensors", changed, facts)
    page = Parsed(write(copied))
    assert "its data is damaged" in page.text
    assert {"asked", "figures", "classes", "curves", "cost", "again"} <= {*page.sections}


def test_a_run_without_an_end_shows_its_curves_and_its_plan(copied):
    for path in copied.iterdir():
        if path.is_file() and path.name not in ("config.yaml", "run.json", "metrics.jsonl"):
            path.unlink()
    facts = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps({**facts, "status": "KILLED"}))
    page = Parsed(write(copied))
    assert {"asked", "figures", "curves", "cost", "again"} <= {*page.sections}
    assert page.tags.count("img") == 2
    assert "goes on with it" in page.text
    assert "epochs trained" in page.text


def test_a_teacher_from_elsewhere_is_not_said_to_be_the_backbones(copied):
    config = yaml.safe_load((copied / "config.yaml").read_text())
    assert config["backbone"]["teacher"]["encoder"] in dict(asked(copied))["teacher"]
    config["teacher"] = {"kind": "smp", "path": "my_unet", "class_map": None}
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    assert dict(asked(copied))["teacher"] == "kind smp, path my_unet"


def test_a_teachers_folder_has_a_page_too(home, distilled):
    teacher = next(path for path in (home / "runs" / "teachers").iterdir() if path.is_dir())
    page = Parsed(write(teacher))
    assert page.numbers["teacher.val/miou"] == {summary_of(teacher)["teacher"]["val/miou"]}


@pytest.mark.parametrize("name", ["", "nowhere", "a\nb", "../elsewhere"])
def test_what_is_no_run_is_told_in_one_line(name, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as end:
        kd(["report", name or str(tmp_path / "empty")])
    err = capsys.readouterr().err
    assert end.value.code == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


# several runs


def test_several_runs_show_what_they_differ_in_and_their_figures_side_by_side(distilled, alone, root):
    page = Parsed(write(distilled, alone))
    for prefix, folder in (("A.", distilled), ("B.", alone)):
        expected = figures(summary_of(folder), prefix=prefix)
        shown = {key: value for key, value in expected.items() if "teacher" not in key or "iou/" not in key}
        assert {key: page.numbers[key] for key in shown} == {key: {value} for key, value in shown.items()}
    assert page.sections[:4] == ["which", "differences", "curves", "figures"]
    assert "B, without a teacher" in page.text
    rows = page.text.split("settingAB")[1].split("settings that change no result")[0]
    assert re.search(r"seed\s*0\s*7", rows)
    assert "loss.alpha" in rows
    assert "optimizer.lr" not in rows
    assert list((root / "runs" / "reports").glob("*.html"))


def test_a_run_beside_itself_differs_in_nothing(distilled):
    assert "No setting that changes a result." in write(distilled, distilled)


# a study


@pytest.fixture(scope="module")
def studied(home, distilled, alone):
    """Two studies whose winners are runs of ours."""
    url = default_url(home)
    Path(home / "runs" / "studies").mkdir()
    storage = Database(url).open()
    searched = {"optimizer.lr": FloatDistribution(1e-4, 1e-1, log=True)}
    for name, folder in (("mine", distilled), ("no_teacher", alone)):
        reached = summary_of(folder)["objective"]["val/miou"]
        made = optuna.create_study(study_name=name, storage=storage, directions=["maximize"])
        Space(searched, (f"+x={SCRIPT}",), {"val/miou": "maximize"}, {}).write(made)
        for number in range(5):
            value = reached - 0.05 * abs(number - 2)
            made.add_trial(create_trial(
                state=TrialState.PRUNED if number == 4 else TrialState.COMPLETE, value=value,
                params={"optimizer.lr": 10.0 ** (-1.5 - 0.3 * number)}, distributions=searched,
                user_attrs={"epochs": 1 + number % 3, "planned_epochs": 3, "test/miou": value,
                            **({"run_folder": str(folder)} if number == 2 else {})},
                intermediate_values={1: value / 2, 2: value},
            ))  # fmt: skip
    folder = home / "runs" / "studies" / "mine"
    (folder / "plots").mkdir(parents=True)
    shutil.copyfile(distilled / "curves.png", folder / "plots" / "slice.png")
    return folder


def test_a_study_is_shown_with_its_winners_run_in_full(studied, distilled, alone, home, monkeypatch):
    monkeypatch.setenv("KD_ROOT", str(home))
    page = Parsed(write("mine"))
    assert {"question", "best", "mattered", "saved", "against", "trials", "winner-figures", "winner-classes"} <= {
        *page.sections
    }
    expected = figures(summary_of(distilled))
    assert {key: page.numbers[key] for key in expected} == {key: {value} for key, value in expected.items()}
    assert f"{summary_of(alone)['student']['test/miou']:.4f}" in page.text
    assert "student without teacher" in page.text
    assert "script" not in page.tags
    assert (studied / "report.html").is_file()


def test_a_study_without_its_database_shows_its_table(tmp_path):
    folder = tmp_path / "elsewhere" / "old"
    folder.mkdir(parents=True)
    (folder / "trials.csv").write_text(f"trial,state,val/miou\n0,complete,0.5\n1,{SCRIPT},0.25\n")
    page = Parsed(write(folder))
    assert "0.25" in page.text
    assert SCRIPT in page.text
    assert "the database of the study" in page.text


def test_a_study_that_does_not_exist_is_an_error_of_one_line(studied, home, monkeypatch):
    monkeypatch.setenv("KD_ROOT", str(home))
    with pytest.raises(UserError, match="no study 'mina'"):
        report(["mina"])


# MLflow's own page


#: What MLflow's page asks for beside any run, and this small server does not have: users, and an assistant.
NOT_OURS = ("/users/current", "/assistant/config", "/assistant/providers")


def metrics_of(text: str) -> dict[str, list[str]]:
    """The table of metrics on MLflow's page of two runs: its names come first, then its cells, row by row."""
    lines = iter(text.split("\nMetrics\n")[1].splitlines())
    names, cells = [], []
    for line in lines:
        if line == "Artifacts":
            break
        if re.fullmatch(r"-?[\d.]+(e-?\d+)?", line):
            cells.append(line)
        elif line != "Show diff only":
            names.append(line)
    return {name: cells[2 * row : 2 * row + 2] for row, name in enumerate(names)}


@browser.needed
def test_mlflows_compare_page_shows_both_runs_figures_without_an_error(home, distilled, alone, chromium):
    server = Server(home, f"sqlite:///{home}/mlruns/mlflow.db").start()
    try:
        runs = [json.loads((folder / "run.json").read_text())["tracking"]["run_id"] for folder in (distilled, alone)]
        asked = json.dumps(runs, separators=(",", ":"))
        chromium.open(f"{server.uri}/#/compare-runs?runs={asked}&experiments=[%221%22]")
        chromium.wait("/Metrics[^]*best.val.miou[^]*Artifacts/.test(document.body.innerText)")
        shown = metrics_of(chromium.evaluate("document.body.innerText"))
        errors = chromium.errors
    finally:
        server.kill()
    for name, key in (("best/val/miou", "val/miou"), ("student/test/miou", "test/miou")):
        if name in shown:  # the page draws the rows that are in sight
            for text, folder in zip(shown[name], (distilled, alone), strict=True):
                value = summary_of(folder)["student"][key]
                assert float(text) == round(value, len(text.partition(".")[2]))
    assert len(shown["best/val/miou"]) == 2
    assert [(said, where) for _, said, where in errors if not where.endswith(NOT_OURS)] == []
