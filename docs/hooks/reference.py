"""Generate the Markdown reference: of conf/ from its files, of the verbs of `kd` from their help texts."""

import argparse
import os
import pydoc
import re
import textwrap
from collections.abc import Iterator
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

import yaml
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from kd import cli
from kd.config.compose import CONF, WHITELIST
from kd.settings import Group, Settings

RECIPES = ("experiment", "sweeps", "augment", "hydra/sweeper/pruner")  # shown verbatim
STUDY = CONF / "hydra" / "sweeper" / "study.yaml"


class Key(NamedTuple):
    """A key of an option file: its dotted name, its default as written, and the comment on its line."""

    name: str
    default: str
    comment: str


def configuration() -> str:
    """Every group of conf/, each option with its purpose, keys, defaults, limits and comments."""
    parts = ["## The top level\n", _table(CONF / "config.yaml", "")]
    for group in groups():
        parts.append(f"## {group}\n")
        for file in sorted((CONF / group).glob("*.yaml")):
            parts += [f"### {group}={file.stem}\n", f"{purpose(file)}\n", _option(group, file)]
    parts += ["## hydra/sweeper=study\n", f"{purpose(STUDY)}\n", _table(STUDY, "hydra.sweeper.")]
    return "\n".join(parts)


def groups() -> list[str]:
    """The folders of conf/ that hold options, the sweeper's last."""
    plain = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ("hydra", "sweeps"))
    return [*plain, "sweeps", "hydra/sweeper/pruner"]


def purpose(file: Path) -> str:
    """The line at the top of an option file that describes it."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return lines[lines[0].startswith("# @package")].removeprefix("# ")


def _option(group: str, file: Path) -> str:
    if group in RECIPES:
        return f"```yaml\n{file.read_text(encoding='utf-8').strip()}\n```\n"
    read = yaml.safe_load(file.read_text(encoding="utf-8"))
    if base := read.get("defaults"):
        return f"What differs from `{group}={base[0]}`:\n\n{_table(file, f'{group}.')}"
    target = read.get("_target_")
    description = f"{_prose(getdoc(pydoc.locate(target)) or '')}\n" if target in WHITELIST else ""
    return "\n".join([description, _table(file, f"{group}.")])


def _prose(docstring: str) -> str:
    """A docstring without its examples, which the Python API page shows."""
    return docstring.partition("\n>>>")[0].rstrip()


def _table(file: Path, prefix: str) -> str:
    """A table of the keys of a file, with the allowed values if the settings have a type for them."""
    rows = [
        (f"`{prefix}{key.name}`", f"`{_short(key.default)}`", _allowed(f"{prefix}{key.name}", file.stem), key.comment)
        for key in keys(file)
    ]
    if not rows:
        return "No keys.\n"
    titles = ("key", "default", "allowed", "")
    shown = [column for column in range(4) if any(row[column] for row in rows)]
    lines = [titles, ("---",) * 4, *rows]
    return "".join("| " + " | ".join(line[at].replace("|", "\\|") for at in shown) + " |\n" for line in lines)


def _short(default: str) -> str:
    """A default in one line, of which long lists show the beginning."""
    return textwrap.shorten(default, 120, placeholder=" ...]")


def keys(file: Path) -> list[Key]:
    """The keys of an option file in the order of its lines, without those that only Hydra reads."""
    text = file.read_text(encoding="utf-8")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    return list(_walk(root, "", text)) if isinstance(root, yaml.MappingNode) else []


def _walk(node: yaml.MappingNode, prefix: str, text: str) -> Iterator[Key]:
    for key, value in node.value:
        if not prefix and key.value in ("defaults", "hydra", "_target_"):
            continue
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _walk(value, f"{name}.", text)
        else:
            rest = text[value.end_mark.index :].partition("\n")[0]
            comment = re.fullmatch(r"\s*# *(.*)", rest)
            default = text[value.start_mark.index : value.end_mark.index]
            yield Key(name, default, comment[1] if comment else "")


def _allowed(name: str, option: str) -> str:
    """The values that the settings accept for a dotted key, in words; empty if no type is known."""
    kind: Any = Settings
    for part in name.split("."):
        if part == "teacher" and kind is Settings:
            kind = _teachers().get(option)
            continue
        field: FieldInfo | None = getattr(kind, "model_fields", {}).get(part)
        if field is None:
            return ""
        kind = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    is_group = isinstance(kind, type) and issubclass(kind, Group)
    return "" if kind is None or is_group else in_words(TypeAdapter(kind).json_schema())


def _teachers() -> dict[str, type[Group]]:
    """The settings classes of teachers by option."""
    kinds = (get_args(kind) for kind in get_args(Settings.model_fields["teacher"].annotation))
    return {tag.tag: kind for kind, tag in kinds}


NAMES = {
    "integer": "whole number", "number": "number", "boolean": "true or false", "string": "text", "null": "null",
    "object": "mapping", "array": "list",
}  # fmt: skip
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def in_words(schema: dict[str, Any]) -> str:
    """Describe the JSON schema of a value in words."""
    if "anyOf" in schema:
        return " or ".join(map(in_words, schema["anyOf"]))
    if "$ref" in schema:  # a group of settings
        return NAMES["object"]
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])}: {in_words(schema['prefixItems'][0])}"
    if isinstance(schema.get("items"), dict):
        return f"list of {in_words(schema['items'])}"
    limits = [f"{sign} {schema[limit]:.20g}" for limit, sign in LIMITS.items() if limit in schema]
    return f"{NAMES[schema['type']]} {', '.join(limits)}".strip()


def commands() -> str:
    """The help text of every verb of `kd`."""
    width = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"  # argparse reads the terminal width from it
    try:
        return "\n".join(f"## {parser.prog}\n\n```text\n{parser.format_help().strip()}\n```\n" for parser in parsers())
    finally:
        os.environ.pop("COLUMNS")
        if width is not None:
            os.environ["COLUMNS"] = width


def parsers(parser: argparse.ArgumentParser | None = None) -> Iterator[argparse.ArgumentParser]:
    """The parser of `kd` and those of its verbs, parents first."""
    parser = parser or cli.parser()
    yield parser
    for action in parser._actions:  # argparse has no public access to subparsers
        if isinstance(action, argparse._SubParsersAction):
            for verb in dict.fromkeys(action.choices.values()):
                yield from parsers(verb)
