"""A page of `kd report`: written, parsed, and the figures that it should show."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

from kd.report import report
from kd.report.run import sections
from kd.report.run_files import read

SCRIPT = "<script>alert(1)</script>"
ATTRIBUTE = '"><img src=x onerror=alert(2)> \x1b[31m \u202e {{ 7 * 7 }} [bold]'


def write(*folders, **more) -> str:
    """Text of the page."""
    return report([str(folder) for folder in folders], **more).read_text(encoding="utf-8")


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def setup_of(folder: Path) -> dict[str, str]:
    """The facts in the section Setup, by name."""
    section = sections(read(folder))[0][0]
    assert section.id == "setup"
    return {name: cell.text for name, cell in section.blocks[0].rows}


class Parsed(HTMLParser):
    """Content of a page: element names, attributes, numbers by key, text, section ids."""

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

    @property
    def missing(self) -> str:
        """Text of the section Missing."""
        return self.text.split("\nMissing")[1].split("\nSetup")[0] if "missing" in self.sections else ""


def figures(summary: dict, *, prefix: str = "") -> dict[str, float]:
    """Every figure of a summary that the page shows, by the name that it has there."""
    wanted = re.compile(r"parameters|macs|file_bytes|latency_ms|(val|test)/(miou|dice|iou/.*)")
    return {
        f"{prefix}{who}.{name}": value
        for who in ("teacher", "student")
        for name, value in summary.get(who, {}).items()
        if wanted.fullmatch(name) and value is not None
    }
