"""Several runs: their differences, and their figures side by side."""

import json
import re
import shutil

import browser
from mlflow_server import Server
from pages import Parsed, figures, summary_of, write

from kd.system import tensor_file


def test_runs_show_their_differences_and_their_figures_side_by_side(distilled, alone, root):
    page = Parsed(write(distilled, alone))
    for prefix, folder in (("A.", distilled), ("B.", alone)):
        expected = figures(summary_of(folder), prefix=prefix)
        shown = {key: value for key, value in expected.items() if "teacher" not in key or "iou/" not in key}
        assert {key: page.numbers[key] for key in shown} == {key: {value} for key, value in shown.items()}
    assert page.sections == [
        "runs", "outcome", "differences", "curves", "results", "per-class", "predictions", "calibration", "cost",
        "reproduce",
    ]  # fmt: skip
    assert "B, without a teacher" in page.text
    assert "Temperature and teacher settings have no effect in B: no teacher." in page.text
    rows = page.text.split("settingAB")[1].split("settings that do not change the result")[0]
    assert re.search(r"seed\s*0\s*7", rows)
    assert "loss.alpha" in rows
    assert "optimizer.lr" not in rows
    assert list((root / "runs" / "reports").glob("*.html"))


def test_a_teacher_of_several_runs_is_shown_once(distilled, alone):
    text = Parsed(write(distilled, alone, distilled)).text
    assert "A and C, teacher" in text
    assert "C, student" in text


def test_the_better_student_is_named_with_the_difference(distilled, alone):
    values = {"A": summary_of(distilled)["student"], "B": summary_of(alone)["student"]}
    key = "test/miou"
    better, worse = sorted(values, key=lambda letter: -values[letter][key])
    gain = values[better][key] - values[worse][key]
    text = Parsed(write(distilled, alone)).text
    assert f"{better} has the best student: mIoU {values[better][key]:.4f} on test" in text
    assert f"{gain:+.4f} against {worse}." in text


def test_figures_of_different_sizes_are_told_apart(distilled, tmp_path):
    other = shutil.copytree(distilled, tmp_path / "other")
    summary = json.loads((other / "summary.json").read_text())
    (other / "summary.json").write_text(json.dumps(summary | {"measured_at": "64 x 64 pixels (resized)"}))
    assert "The figures are of different sizes, and cannot be compared: A at" in write(distilled, other)
    assert "different sizes" not in write(distilled, distilled)


def test_figures_of_other_pictures_are_told_apart_and_each_data_has_its_baseline(distilled, tmp_path):
    other = shutil.copytree(distilled, tmp_path / "other")
    seen, facts = tensor_file.read(other / "evidence.safetensors")
    painted = {name: tensor + 1 if name.endswith("/image") else tensor for name, tensor in seen.items()}
    tensor_file.write(other / "evidence.safetensors", painted, facts)
    summary = json.loads((other / "summary.json").read_text())
    baseline = summary["baseline"] | {"test/miou": 0.0123}
    (other / "summary.json").write_text(json.dumps(summary | {"baseline": baseline}))
    text = Parsed(write(distilled, other)).text
    assert "A, B: measured on other pictures than the other runs, so the figures cannot be compared." in text
    assert "A, trivial baseline" in text
    assert "B, trivial baseline" in text
    assert "0.0123" in text
    text = Parsed(write(distilled, distilled)).text
    assert "other pictures" not in text
    assert "A, trivial baseline" not in text


def test_a_run_and_itself_do_not_differ(distilled):
    text = Parsed(write(distilled, distilled)).text
    assert "No setting that changes the result differs." in text
    assert f"A and B are equally good: mIoU {summary_of(distilled)['student']['test/miou']:.4f} on test." in text


def test_all_runs_that_are_equally_good_are_named(distilled, alone):
    best, other = sorted((distilled, alone), key=lambda run: -summary_of(run)["student"]["test/miou"])
    assert "A, B and C are equally good: mIoU" in Parsed(write(best, best, best)).text
    assert "A and C are equally good: mIoU" in Parsed(write(best, other, best)).text


# MLflow's own page


#: Requests of MLflow's page, beside any run, that this small server has no answer to: users, and an assistant.
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
