"""The page fetches nothing, runs nothing, and shows text of a hostile folder as text."""

import json
import re
from pathlib import Path

import browser
import pytest
import yaml
from pages import ATTRIBUTE, SCRIPT, Parsed, figures, summary_of, write

from kd.report import report


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
        "[...document.querySelectorAll('data[data-key]')].map(each => [each.dataset.key, each.value, each.textContent])"
    )
    expected = figures(summary_of(distilled))
    assert {key for key, _, _ in shown} >= set(expected)
    for key, value, text in shown:
        if key in expected:
            assert float(value) == expected[key]
            form = {"parameters": ",d", "macs": ",d", "file_bytes": ",d", "latency_ms": ".1f"}
            rounded = format(expected[key], form.get(key.rpartition(".")[2], ".4f"))
            assert text.removesuffix(" bytes").removesuffix(" ms") == rounded


@browser.needed
@pytest.mark.parametrize("width", [360, 412])
def test_on_a_phone_every_cell_and_every_picture_is_on_the_screen(width, distilled, chromium):
    """Of a comparison, the last column, the trivial baseline, may be a swipe away."""
    with chromium.phone(width):
        for name in ("a run", "two runs"):
            chromium.open(report([str(distilled)] * (1 + (name == "two runs"))).as_uri())
            assert chromium.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
            outside = chromium.evaluate(
                "[...document.querySelectorAll('th, td, img')].filter(each => {"
                " const box = each.getBoundingClientRect();"
                " return box.width === 0 || box.left < 0 || box.right > innerWidth })"
                ".map(each => [...each.parentElement.children].at(-1) === each ? 'last' : each.outerHTML)"
            )
            assert set(outside) <= ({"last"} if name == "two runs" else set())


def hostile(folder: Path) -> None:
    """Put markup wherever a text may be."""
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
def test_bars_of_one_scale_have_one_length_in_every_column(distilled, chromium):
    """The columns are as wide as their titles, so bars of the columns' width would mislead."""
    chromium.open(report([str(distilled)]).as_uri())
    lengths = chromium.evaluate("[...document.querySelectorAll('#per-class > .scroll meter')].map(e => e.clientWidth)")
    assert len(lengths) >= 6
    assert len({*lengths}) == 1


@browser.needed
def test_a_browser_runs_nothing_of_a_hostile_folder(copied, chromium):
    hostile(copied)
    chromium.open(report([str(copied)]).as_uri())
    assert chromium.errors == []
    assert chromium.evaluate("document.scripts.length") == 0
    assert chromium.evaluate("[...document.images].every(each => each.naturalWidth > 0)")
    assert SCRIPT in chromium.evaluate("document.body.innerText")
