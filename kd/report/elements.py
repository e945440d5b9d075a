"""What a page is made of: plain values, which the template turns into HTML and the terminal into lines.

Texts are whatever a file says; nothing here is markup, and both sides escape them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from kd.run.console import ROWS

SHADES = 20  # of a cell's background


@dataclass(frozen=True)
class Cell:
    """A table's cell.

    Attributes:
        text: what it shows.
        value: the number that `text` is a rounding of, whole, where it is one.
        key: the name that this number has in its file, for whoever reads the page by program.
        shade: how strong its background is, 0 to SHADES.
        bar: the length of a bar beside it, in [0, 1].
        swatch: the number of a class, whose colour stands before the text.
    """

    text: str
    value: float | int | None = None
    key: str = ""
    shade: int | None = None
    bar: float | None = None
    swatch: int | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells under a head; the first column names the rows. `wide` ones are scrolled sideways."""

    kind: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    square: bool = False  # a matrix: narrow cells, heads on end


@dataclass(frozen=True)
class Facts:
    """Names and values, a line each."""

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
    """Lines to be copied."""

    kind: ClassVar[str] = "code"
    lines: Sequence[str]


@dataclass(frozen=True)
class Picture:
    """A PNG, and what it shows in words."""

    kind: ClassVar[str] = "picture"
    png: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Strip:
    """Small pictures of one sample side by side: (caption, PNG) pairs."""

    kind: ClassVar[str] = "strip"
    title: str
    panels: Sequence[tuple[str, bytes]]


@dataclass(frozen=True)
class Legend:
    """The classes' names, each beside its colour."""

    kind: ClassVar[str] = "legend"
    names: Sequence[str]


@dataclass(frozen=True)
class Folded:
    """Blocks that are opened by a click."""

    kind: ClassVar[str] = "folded"
    title: str
    blocks: Sequence[Any]


@dataclass(frozen=True)
class Section:
    """A part of the page; `brief` blocks are shown on the terminal too."""

    id: str
    title: str
    blocks: Sequence[Any]
    brief: Sequence[Any] = ()


@dataclass(frozen=True)
class Page:
    """A whole report. `missing` says which parts there are not, and why."""

    title: str
    subtitle: str
    badges: Sequence[str]
    tiles: Sequence[tuple[str, Cell, str]]  # what a figure is, the figure, and what stands beside it
    sections: Sequence[Section]
    missing: Sequence[str] = field(default=())

    def classes(self) -> int:
        """How many class colours the page needs."""
        return max((_colours(block) for section in self.sections for block in section.blocks), default=0)


def _colours(block: Any) -> int:
    if isinstance(block, Legend):
        return len(block.names)
    if isinstance(block, Table):
        return max((cell.swatch + 1 for row in block.rows for cell in row if cell.swatch is not None), default=0)
    return max(map(_colours, block.blocks), default=0) if isinstance(block, Folded) else 0


#: How a figure is rounded, by the last part of its name; the same on the page, on the terminal and in the tables.
FORMS = {"macs": ",d", **{key: form for key, _, form in ROWS}}


def figure(value: Any, key: str = "", form: str | None = None) -> Cell:
    """A cell of a number, rounded by the name of its key (4 decimals) or as `form` says; a dash where there is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return Cell("–" if value is None else str(value))
    form = form or FORMS.get(key.rpartition(".")[2], ".4f")
    return Cell(format(int(value) if form == ",d" else value, form), value, key)


def barred(cell: Cell) -> Cell:
    """The same cell with a bar as long as its number."""
    return cell if cell.value is None else replace(cell, bar=min(max(float(cell.value), 0.0), 1.0))


def row(*cells: Any) -> list[Cell]:
    """Cells of a row, made of whatever is none yet."""
    return [cell if isinstance(cell, Cell) else Cell(str(cell)) for cell in cells]


def facts(pairs: Iterable[tuple[str, Any]]) -> Facts:
    """Facts that exist: pairs whose value is None are left out."""
    return Facts([(name, row(value)[0]) for name, value in pairs if value is not None])
