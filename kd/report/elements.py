"""The parts of a page as plain values, which the template renders as HTML and the terminal as lines.

Texts may come from any file. None of them is markup: template and terminal escape them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from kd.run.console import SIZES

SHADES = 20  # levels of a cell's background


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: the text shown.
        value: the unrounded number, if `text` is one.
        key: the number's name in its file, for programs that read the page.
        shade: strength of the background, 0 to SHADES.
        bar: length of a bar beside the text, in [0, 1].
        swatch: index of the class whose colour precedes the text.
    """

    text: str
    value: float | int | None = None
    key: str = ""
    shade: int | None = None
    bar: float | None = None
    swatch: int | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells under a head; the first column names the rows."""

    kind: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    square: bool = False  # a matrix: narrow cells, vertical heads


@dataclass(frozen=True)
class Facts:
    """Names and values, one pair per line."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, Cell]]


@dataclass(frozen=True)
class Text:
    """Paragraphs; `tone` is "" or "warning"."""

    kind: ClassVar[str] = "text"
    lines: Sequence[str]
    tone: str = ""


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    kind: ClassVar[str] = "code"
    lines: Sequence[str]


@dataclass(frozen=True)
class Picture:
    """A PNG with its description."""

    kind: ClassVar[str] = "picture"
    png: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Strip:
    """Small pictures of one sample in a row, as (caption, PNG) pairs."""

    kind: ClassVar[str] = "strip"
    title: str
    panels: Sequence[tuple[str, bytes]]


@dataclass(frozen=True)
class Legend:
    """Class names with their colours, and names of other colours of `kd.report.page`."""

    kind: ClassVar[str] = "legend"
    names: Sequence[str]
    errors: Sequence[str] = ()


@dataclass(frozen=True)
class Folded:
    """Elements that unfold on a click."""

    kind: ClassVar[str] = "folded"
    title: str
    blocks: Sequence[Any]


@dataclass(frozen=True)
class Section:
    """A part of the page; `brief` elements appear on the terminal too."""

    id: str
    title: str
    blocks: Sequence[Any]
    brief: Sequence[Any] = ()


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        tiles: (name, figure, reference values) of the headline figures.
        missing: the parts that are absent, each with its reason.
    """

    title: str
    subtitle: str
    badges: Sequence[str]
    tiles: Sequence[tuple[str, Cell, str]]
    sections: Sequence[Section]
    missing: Sequence[str] = field(default=())

    def classes(self) -> int:
        """Number of class colours that the page needs."""
        return max((_colours(block) for section in self.sections for block in section.blocks), default=0)


def _colours(block: Any) -> int:
    if isinstance(block, Legend):
        return len(block.names)
    if isinstance(block, Table):
        return max((cell.swatch + 1 for row in block.rows for cell in row if cell.swatch is not None), default=0)
    return max(map(_colours, block.blocks), default=0) if isinstance(block, Folded) else 0


#: Format of a figure by the last part of its name, on the page and on the terminal.
FORMS = {key: form for key, _, form in SIZES}


def figure(value: Any, key: str = "", form: str | None = None) -> Cell:
    """Cell of a number in the format `form`, or that of its key (4 decimals by default); a dash for None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return Cell("–" if value is None else str(value))
    form = form or FORMS.get(key.rpartition(".")[2], ".4f")
    return Cell(format(int(value) if form == ",d" else value, form), value, key)


def barred(cell: Cell) -> Cell:
    """The cell with a bar of its number's length."""
    return cell if cell.value is None else replace(cell, bar=min(max(float(cell.value), 0.0), 1.0))


def row(*cells: Any) -> list[Cell]:
    """A row of cells; other values are converted to text."""
    return [cell if isinstance(cell, Cell) else Cell(str(cell)) for cell in cells]


def facts(pairs: Iterable[tuple[str, Any]]) -> Facts:
    """Facts of pairs; those whose value is None are left out."""
    return Facts([(name, row(value)[0]) for name, value in pairs if value is not None])
