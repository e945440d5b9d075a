"""Errors have one line, an exit code and a page, and suggest the nearest word to a misspelt one."""

import ast
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd import errors
from kd.config.compose import PROJECT
from kd.errors import MAX_LENGTH, ConfigError, DataError, ModelError, UserError, nearest


@pytest.mark.parametrize("kind", [UserError, ConfigError, DataError, ModelError])
@given(text=st.text("ab:é草 \n\r\t\v\x85\u2028", max_size=20))
@settings(deadline=None, max_examples=50)
def test_a_user_error_is_one_line_with_every_word_of_its_message(kind, text):
    line = str(kind(text))
    assert len(line.splitlines()) <= 1
    assert line.split() == text.split()


def test_a_message_of_several_lines_becomes_one():
    assert str(ConfigError("data.root: no such folder\n  /data/pets\n\nmake it\tor name another ")) == (
        "data.root: no such folder /data/pets make it or name another"
    )


@given(text=st.text(max_size=50))
@settings(deadline=None, max_examples=100)
def test_no_message_can_control_the_terminal(text):
    """Escape sequences, bells and direction changes in file names are escaped; printable text is unchanged."""
    line = str(UserError(text))
    assert line.isprintable()
    if text.isprintable():
        assert line == " ".join(text.split())


@given(text=st.text("ab /", min_size=1, max_size=3), times=st.integers(1, 5000))
@settings(deadline=None, max_examples=50)
def test_a_message_has_a_maximum_length(text, times):
    line = str(UserError(f"begin {text * times} end"))
    assert len(line) <= MAX_LENGTH + 3
    assert line.startswith("begin")
    assert line.endswith("end")


def test_a_configuration_error_exits_with_2_and_all_others_with_1():
    assert ConfigError("x").exit_code == 2
    assert [kind("x").exit_code for kind in (UserError, DataError, ModelError)] == [1, 1, 1]


@pytest.mark.parametrize("kind", [ConfigError, DataError, ModelError])
def test_every_error_is_a_user_error(kind):
    with pytest.raises(UserError, match="said"):
        raise kind("said")


SCHEDULES = ["constant", "linear", "cosine", "exponential", "piecewise"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("cosin", "cosine"), ("expontial", "exponential"), ("Linear", "linear"), ("piecwise", "piecewise")],
)
def test_a_misspelt_word_gets_the_closest_known_one(typed, meant):
    assert nearest(typed, SCHEDULES) == f"did you mean '{meant}'?"


@pytest.mark.parametrize("word", SCHEDULES)
def test_a_known_word_is_its_own_nearest(word):
    assert nearest(word, iter(SCHEDULES)) == f"did you mean '{word}'?"


def test_a_word_close_to_none_gets_a_sorted_list():
    assert nearest("zzz", SCHEDULES) == "choose from constant, cosine, exponential, linear, piecewise"


@pytest.mark.parametrize(("known", "listed"), [(1, True), (12, True), (13, False), (100, False)])
def test_at_most_twelve_words_are_listed(known, listed):
    words = [f"w{number:02d}" for number in range(known)]
    hint = nearest("zzz", words)
    assert [word in hint for word in words] == [listed] * known
    assert ("--help" in hint) != listed


def test_without_known_words_the_hint_is_help():
    assert "--help" in nearest("cosine", [])


# the page that helps

SOURCES = [
    PROJECT / "train.py",
    *sorted((PROJECT / "kd").rglob("*.py")),
    *sorted((PROJECT / "hydra_plugins").rglob("*.py")),
]


def pages(source: Path) -> list[str]:
    """Every page that a source file names: `page=...` in a call, `page = ...` in a class."""
    found = []
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        named = [node.value] if isinstance(node, ast.keyword) and node.arg == "page" else []
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "page" for target in node.targets):
            named = [node.value]
        for value in named:  # one page, or one of two
            choices = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
            found += [choice.value for choice in choices if isinstance(choice, ast.Constant) and choice.value]
    return found


def test_every_page_named_by_an_error_exists():
    named = {page for source in SOURCES for page in pages(source)}
    assert len(named) >= 8
    assert [page for page in sorted(named) if not (PROJECT / "docs" / f"{page}.md").is_file()] == []


@pytest.mark.parametrize("kind", [ConfigError, DataError, ModelError, errors.RunError, errors.StudyError])
def test_an_error_can_override_the_page_of_its_class(kind):
    assert kind("x").page == kind.page is not None
    assert kind("x", page="cache").page == "cache"
    assert str(kind("x", page="cache")) == "x"


def test_a_pickled_error_keeps_its_page():
    error = pickle.loads(pickle.dumps(ConfigError("x", page="cache")))
    assert (str(error), error.page, error.exit_code) == ("x", "cache", 2)
