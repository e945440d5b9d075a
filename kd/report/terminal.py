"""Summary of a page on the terminal: its brief elements as rich tables and lines."""

from typing import Any

from rich import box
from rich.table import Table as RichTable
from rich.text import Text as RichText

from kd.errors import shown
from kd.report.elements import Facts, Page, Table, Text
from kd.run import console


def say(page: Page) -> None:
    """Print the parts of a page that are marked as brief."""
    console.say(shown(f"report   {page.title}: {', '.join([*page.badges, page.subtitle])}", None))
    for section in page.sections:
        for block in section.brief:
            _say(section.title, block)
    for line in page.missing:
        console.say(shown(f"missing  {line}", None))


def _say(title: str, block: Any) -> None:
    if isinstance(block, Table):
        console.show(_table(title, block))
    elif isinstance(block, Facts):
        for name, cell in block.rows:
            console.say(shown(f"{name}: {cell.text}", None))
    elif isinstance(block, Text):
        console.say(*(shown(line, None) for line in block.lines))


def _table(title: str, block: Table) -> RichTable:
    table = RichTable(title=_text(title.lower()), title_justify="left", box=box.HEAVY_HEAD)
    for number, head in enumerate(block.head):
        table.add_column(_text(head), justify="right" if number else "left")
    for line in block.rows:
        table.add_row(*(_text(cell.text) for cell in line))
    return table


def _text(text: str) -> RichText:
    """Text without markup: brackets are kept, and unprintable characters are escaped."""
    return RichText(shown(text, None))
