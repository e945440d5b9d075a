"""Sessions of Python in docstrings (>>> ...) as blocks of code, which Markdown would else take for quotations."""

from typing import Any

import griffe


class Sessions(griffe.Extension):
    """Put every paragraph that begins with >>> into a fenced block."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    paragraphs = text.split("\n\n")
    return "\n\n".join(f"```pycon\n{each}\n```" if each.startswith(">>>") else each for each in paragraphs)
