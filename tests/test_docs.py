"""The documentation builds strictly and loads nothing from elsewhere, and every command in it is run or checked.

Blocks of commands and of Python are found in the README, docs/, sweeps/README.md and CONTRIBUTING.md. `<!-- run -->`
before a block has it run here, with trainings made small; a plain block right after it is what it prints, and a line
`...` stands for any lines. `<!-- not run: why -->` leaves a block out. All other commands are looked at: options are
composed and checked, verbs are parsed, targets exist. Blocks of Python are run, unless `<!-- run by tests/x.py -->`
says which other test does it; sessions (`pycon`) are run by a test of their page.
"""

import importlib.util
import os
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import program
import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from mkdocs.commands.build import build
from mkdocs.config import load_config
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from kd import cli
from kd.config.compose import CONF, PROJECT, compose
from kd.config.read import read
from kd.settings import flat
from kd.study import hydra_options
from kd.study.recipe import recipe, winner_study
from kd.study.space import Space

sys.path.append(str(PROJECT / "docs" / "hooks"))
import reference
import sessions

PAGES = [
    PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", PROJECT / "sweeps" / "README.md",
    *sorted((PROJECT / "docs").rglob("*.md")),
]  # fmt: skip
SMALL = (
    "backbone=tiny data.image_size=[32,32] data.train=16 data.val=8 data.test=8 trainer.batch_size=8 trainer.epochs=2 "
    "trainer.device=cpu unfreeze.start_epoch=1 unfreeze.rate=1 tracking=none"
).split()


# blocks

RUN_IT = "<!-- run -->"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the comment before it, and what it prints (the plain block right after it)."""

    page: str
    line: int
    language: str
    text: str
    mark: str
    printed: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path) -> list[Block]:
    lines, found, mark, at = path.read_text(encoding="utf-8").splitlines(), [], "", 0
    page, joins = path.relative_to(PROJECT).as_posix(), False  # whether a plain block here is what the last one prints
    while at < len(lines):
        fence = re.fullmatch(r"```(\w*)", lines[at])
        if fence is None:
            mark, joins = (lines[at], False) if lines[at] else (mark, joins)
            at += 1
            continue
        end = lines.index("```", at + 1)
        text = "\n".join(lines[at + 1 : end])
        if joins and not fence[1]:
            found[-1] = replace(found[-1], printed=text)
            joins = False
        else:
            found.append(Block(page, at + 1, fence[1], text, mark))
            joins = mark == RUN_IT
        mark, at = "", end + 1
    return found


ALL = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in ALL if block.language in ("sh", "bash", "shell", "console")]
RUN = [block for block in SHELL if block.mark == RUN_IT]
LEFT_OUT = re.compile(r"<!-- not run: \S.* -->")
LOOKED_AT = [block for block in SHELL if block not in RUN and not LEFT_OUT.fullmatch(block.mark)]
RUN_BY = re.compile(r"<!-- run by (tests/[\w/]+\.py) -->")
PYTHON = [block for block in ALL if block.language == "python" and not LEFT_OUT.fullmatch(block.mark)]
HERE = [block for block in PYTHON if not RUN_BY.fullmatch(block.mark)]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command: comments, loops and what is set before a command left out."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= set(";&|"):
                command.append(word)
                continue
            while command and (command[0] == "do" or re.match(r"[A-Z_]+=", command[0])):
                command = command[1:]
            if command and command[0] not in ("for", "done", "wait"):
                yield command
            command = []


def test_the_words_of_commands_are_found():
    text = "for g in 0 1; do GPU=$g python train.py -m & done; wait\nmake x  # why\nkd a \\\n  'b=[1,2]'\n"
    assert list(commands(text)) == [["python", "train.py", "-m"], ["make", "x"], ["kd", "a", "b=[1,2]"]]


def test_there_are_commands_of_each_kind():
    """What finds them would else find nothing, and every test below pass."""
    assert len(RUN) >= 4
    assert len(LOOKED_AT) >= 20
    assert PYTHON
    assert {block.page for block in SHELL} >= {"README.md", "sweeps/README.md", "docs/index.md"}


@pytest.mark.parametrize("block", [each for each in ALL if each not in SHELL], ids=str)
def test_commands_stand_in_blocks_that_say_so(block):
    """In a block without a language nobody would check them."""
    assert block.language in ("", "text", "yaml", "json", "python", "pycon", "cpp")
    assert not re.search(r"^(python|kd|make|torchrun|pip) ", block.text, re.MULTILINE)


# commands that are looked at


@pytest.mark.parametrize("block", LOOKED_AT, ids=str)
def test_every_command_is_one_that_the_program_takes(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = list(commands(block.text))
    assert found
    for words in found:
        look_at(words, tmp_path)


def look_at(words: list[str], folder: Path) -> None:
    match words:
        case ["python", "train.py", *typed]:
            look_at_training(typed, folder)
        case ["torchrun", *typed]:
            from torch.distributed.run import get_args_parser as torchrun

            script = next(at for at, word in enumerate(typed) if word in ("train.py", "kd"))
            torchrun().parse_args(typed[: script + 1])
            look_at(["python", *typed[script:]] if typed[script] == "train.py" else typed[script:], folder)
        case ["kd", "train", *typed]:
            look_at_training(typed, folder)
        case ["kd", *typed]:
            look_at_configuration(*getattr(cli.parser().parse_args(typed), "overrides", []))
        case ["make", *targets]:
            assert set(targets) <= set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
        case ["pip", "install", *options, requirement]:  # -e: `pip install .` would replace the clone by a copy
            place, extra = re.fullmatch(r"(.+)\[(\w+)\]", requirement).groups()
            assert (place, options) in ((".", ["-e"]), (project()["name"], []))
            assert extra in project()["optional-dependencies"]
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module)
        case ["python", script, *_]:
            assert (PROJECT / script).is_file()
        case ["source" | "eval" | "cd" | "export", *_]:  # the shell's own
            pass
        case _:
            assert shutil.which(words[0], path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def project() -> dict:
    return tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]


@cache
def look_at_configuration(*overrides: str) -> None:
    """Compose and check; once, as the same commands stand in several places."""
    read(compose([*overrides]), look_at_data=False)


def look_at_training(words: list[str], folder: Path) -> None:
    """Compose what is typed, and check it as a run of its own would be."""
    arguments = get_args_parser().parse_args(words)
    typed, path = arguments.overrides, []
    if arguments.shell_completion:
        return
    if arguments.config_dir:
        study = folder / arguments.config_dir
        winner = winner_study("s", str(study), seed=0)
        for name, text in {"experiment/best": recipe("best", [], []), "sweeps/winner": winner}.items():
            (study / name).parent.mkdir(parents=True, exist_ok=True)
            (study / f"{name}.yaml").write_text(text)
        path = [f"hydra.searchpath=[file://{study}]"]
    if arguments.multirun:
        look_at_study(typed, path)
    else:
        look_at_configuration(*path, *typed)


def look_at_study(typed: list[str], path: list[str]) -> None:
    """Compose the sweeper, read the space, and check two of its corners."""
    swept = [word for word in typed if OverridesParser.create().parse_override(word).is_sweep_override()]
    with initialize_config_dir(str(CONF)):
        cfg = hydra_compose("config", [*path, *(word for word in typed if word not in swept)], return_hydra_config=True)
    params = [f"{name}={value}" for name, value in (cfg.hydra.sweeper.params or {}).items()]
    of_trials = [word for word in typed if not re.match(r"\+?(hydra|sweeps)\b", word)]
    searched, kept = hydra_options.search_space([*params, *of_trials])
    space = Space(searched, kept, {}, {})
    first, *_, last = [*space.corners(), *space.corners()]
    for corner in (first, last):
        look_at_configuration(*path, *space.overrides(corner))


# commands and Python that are run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where the commands of all pages are run, one page after the other."""
    return tmp_path_factory.mktemp("docs")


@pytest.mark.parametrize("block", RUN, ids=str)
def test_a_command_that_is_run_does_what_it_shows(block, place, monkeypatch, capsys):
    monkeypatch.setenv("KD_ROOT", str(place))
    monkeypatch.chdir(place)
    printed = []
    for words in commands(block.text):
        if words[:2] == ["python", "train.py"]:
            done = program.train(place, *words[2:], *SMALL, cwd=place)
            assert done.returncode == 0, done.stderr
            printed.append(done.stdout)
        else:
            assert words[0] == "kd"
            cli.main(words[1:])
            printed.append(capsys.readouterr().out)
    if block.printed is not None:
        assert re.fullmatch(pattern(block.printed), "".join(printed)), "".join(printed)


def pattern(shown: str) -> str:
    return "".join("(.*\n)*" if line == "..." else re.escape(line) + "\n" for line in shown.splitlines())


@pytest.mark.parametrize(("printed", "fits"), [("a\nb\nc\nd\n", True), ("a\nd\n", True), ("a\nb\n", False)])
def test_three_points_stand_for_any_lines(printed, fits):
    assert bool(re.fullmatch(pattern("a\n...\nd"), printed)) == fits


@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in HERE))
def test_the_blocks_of_python_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for block in HERE:
        if block.page == page:
            exec(compile(block.text, str(block), "exec"), names)


def test_python_that_is_run_elsewhere_is_run_by_a_test_that_names_its_page():
    for block in PYTHON:
        if test := RUN_BY.fullmatch(block.mark):
            assert Path(block.page).name in (PROJECT / test[1]).read_text()
    tests = [path.read_text() for path in (PROJECT / "tests").rglob("test_*.py")]
    assert len(tests) >= 96  # a search in the wrong place finds fewer
    for page in {Path(block.page).name for block in ALL if block.language == "pycon"}:
        assert [text for text in tests if page in text and "import doctest" in text]


# the site


class Resources(HTMLParser):
    """What a page makes a browser load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "link" and attrs.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(attrs["href"])
        elif tag in ("script", "img", "iframe", "source", "video") and "src" in attrs:
            self.found.append(attrs["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site as `make docs` builds it: a broken link, anchor or picture, or a page in no list, raises."""
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(PROJECT / "mkdocs.yml"), strict=True, site_dir=str(folder)))
    return folder


def test_the_site_loads_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        for resource in Resources(page.read_text()).found:
            assert not re.match(r"(\w+:)?//", resource), f"{page}: {resource}"
            if page.name != "404.html":
                assert (page.parent / resource.partition("?")[0]).is_file(), f"{page}: {resource}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"@import|url\(['\"]?(https?:)?//", sheet.read_text())


def test_every_picture_is_drawn_and_shown(site):
    text = "".join(page.read_text() for page in site.rglob("*.html"))
    pictures = [path.relative_to(site).as_posix() for path in (site / "pictures").iterdir()]
    assert pictures
    assert [name for name in pictures if f'src="{name}"' not in text] == []


def test_every_option_has_its_place_in_the_reference(site):
    text = (site / "options.html").read_text()
    options = [path.relative_to(CONF) for path in CONF.glob("*/*.yaml")]
    assert len(options) > 30
    for option in options:
        assert f"{option.parent}={option.stem}" in text


def test_every_verb_has_its_help_in_the_reference(site):
    text = (site / "cli.html").read_text()
    for parser in reference.parsers():
        assert f'id="{parser.prog.replace(" ", "-")}"' in text


def test_a_session_in_a_docstring_is_shown_as_code(site):
    """Markdown would take >>> for a quotation, and what is in brackets for a link."""
    assert sessions.fenced("One line.\n\n>>> f()\n[1]\n\nMore.") == "One line.\n\n```pycon\n>>> f()\n[1]\n```\n\nMore."
    assert "<blockquote>" not in (site / "names.html").read_text()


def test_every_decision_is_listed(site):
    text = (site / "index.html").read_text()
    for decision in (PROJECT / "docs" / "adr").glob("*.md"):
        assert f'href="adr/{decision.stem}.html"' in text


# the reference


def test_the_page_of_options_is_what_conf_says():
    """`python docs/hooks/reference.py` writes it again."""
    assert (PROJECT / "docs" / "options.md").read_text() == reference.options_page()


TABLES = [CONF / "config.yaml", reference.STUDY, *(
    path for path in sorted(CONF.glob("*/*.yaml")) if path.parent.name not in reference.RECIPES
)]  # fmt: skip


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.relative_to(CONF).as_posix())
def test_the_reference_says_what_the_file_says(file):
    content = OmegaConf.to_container(OmegaConf.load(file))
    for name in ("defaults", "hydra", "_target_"):
        content.pop(name, None)
    assert {key.name: yaml.safe_load(key.default) for key in reference.keys(file)} == dict(flat(content))


def test_a_comment_belongs_to_the_key_of_its_line(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("# first\na: 1  # one\nb: {c: '#2', d: [3, 4]}  # four\ne: x\n")
    assert reference.keys(file) == [("a", "1", "one"), ("b.c", "'#2'", ""), ("b.d", "[3, 4]", ""), ("e", "x", "")]


@pytest.mark.parametrize(
    ("name", "option", "words"),
    [
        ("trainer.epochs", "default", "whole number > 0, ≤ 100000"),
        ("trainer.precision", "default", "`fp32` or `bf16` or `fp16`"),
        ("optimizer.clip_norm", "adamw", "number > 0 or null"),
        ("backbone.student.weights", "b0_from_b3", "text or null"),
        ("teacher.seed", "auto", "whole number ≥ 0, < 9223372036854775808"),
        ("teacher.path", "file", "text"),
        ("data.classes", "folder", ""),
        ("nothing", "x", ""),
    ],
)
def test_limits_are_those_of_the_settings(name, option, words):
    assert reference._allowed(name, option) == words


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "whole number"), (bool, "true or false"), (Path, "text"), (list[int], "list of whole number"),
        (tuple[int, int], "list of 2: whole number"), (dict[str, str], "mapping"), (int | None, "whole number or null"),
    ],
)  # fmt: skip
def test_types_are_said_in_words(kind, words):
    assert reference.in_words(TypeAdapter(kind).json_schema()) == words
    assert reference.in_words(TypeAdapter(int, config=None).json_schema() | {"minimum": 3}) == "whole number ≥ 3"
