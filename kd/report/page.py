"""A page as HTML: one file that fetches nothing and runs nothing.

Everything from a run folder is text: jinja escapes it, and unprintable characters are written as escapes. The page's
content security policy forbids scripts, frames, forms, and images from outside the page; its one style sheet is allowed
by its digest.
"""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from kd.errors import shown
from kd.report.elements import SHADES, Page
from kd.run.predictions import INVENTED, MISSED, VOID, class_colours

MARKS = {"void": VOID, "missed": MISSED, "wrong": MISSED, "invented": INVENTED}
HERE = Path(__file__).parent


def html(page: Page) -> str:
    """Render a page."""
    style = _style(page.classes())
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return _template().render(page=page, style=Markup(style), policy=Markup(policy), uri=_uri, printed=_printable,
                              breakable=_breakable)  # fmt: skip


@cache
def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, finalize=_printable
    )
    return environment.get_template("page.html.j2")


def _printable(value: Any) -> Any:
    """Escape unprintable characters in texts: control characters, and those that reverse the writing direction."""
    return shown(value, None) if type(value) is str and not value.isprintable() else value


def _breakable(text: str) -> Markup:
    """A text that may be broken after each dot and underscore, as in the keys of a configuration."""
    return escape(_printable(text)).replace(".", Markup(".<wbr>")).replace("_", Markup("_<wbr>"))


def _uri(png: bytes) -> Markup:
    return Markup(f"data:image/png;base64,{base64.b64encode(png).decode()}")


def _style(classes: int) -> str:
    """Style sheet with the colours of `classes` classes and of the cells' shades."""
    lines = [(HERE / "page.css").read_text(encoding="utf-8")]
    for number, (red, green, blue) in enumerate(class_colours(classes).tolist()):
        lines.append(f".k{number} {{ background: #{red:02x}{green:02x}{blue:02x}; }}")
    for name, (red, green, blue) in MARKS.items():
        lines.append(f".k-{name} {{ background: #{red:02x}{green:02x}{blue:02x}; }}")
    for shade in range(SHADES + 1):
        white = " color: #fff;" if shade > 0.7 * SHADES else ""
        lines.append(f".s{shade} {{ background: rgba(var(--blue), {shade / SHADES:.2f});{white} }}")
    return "\n".join(lines)
