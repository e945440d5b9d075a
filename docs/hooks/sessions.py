"""Fence the Python sessions (>>> ...) in docstrings, which Markdown would otherwise read as block quotes."""

from typing import Any

import griffe


class Sessions(griffe.Extension):
    """Put every paragraph that starts with >>> into a fenced code block."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    paragraphs = text.split("\n\n")
    return "\n\n".join(f"```pycon\n{each}\n```" if each.startswith(">>>") else each for each in paragraphs)
