"""Laws of what a user is told: one line, an exit code, and the nearest word to a misspelt one."""

import ast
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd import errors
from kd.config.compose import PROJECT
from kd.errors import LONGEST, ConfigError, DataError, ModelError, UserError, nearest


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
def test_no_message_can_speak_to_the_terminal(text):
    """No escape sequence, bell or change of direction from a file's name reaches it; what prints stays as it is."""
    line = str(UserError(text))
    assert line.isprintable()
    if text.isprintable():
        assert line == " ".join(text.split())


@given(text=st.text("ab /", min_size=1, max_size=3), times=st.integers(1, 5000))
@settings(deadline=None, max_examples=50)
def test_a_message_has_a_length_whatever_it_quotes(text, times):
    line = str(UserError(f"begin {text * times} end"))
    assert len(line) <= LONGEST + 3
    assert line.startswith("begin")
    assert line.endswith("end")


def test_a_mistake_in_the_configuration_exits_with_two_and_every_other_with_one():
    assert ConfigError("x").exit_code == 2
    assert [kind("x").exit_code for kind in (UserError, DataError, ModelError)] == [1, 1, 1]


@pytest.mark.parametrize("kind", [ConfigError, DataError, ModelError])
def test_every_kind_is_caught_as_a_user_error(kind):
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


def test_a_word_close_to_none_of_a_few_gets_all_of_them_in_order():
    assert nearest("zzz", SCHEDULES) == "choose from constant, cosine, exponential, linear, piecewise"


@pytest.mark.parametrize(("known", "listed"), [(1, True), (12, True), (13, False), (100, False)])
def test_up_to_twelve_words_are_listed_and_more_are_not(known, listed):
    words = [f"w{number:02d}" for number in range(known)]
    hint = nearest("zzz", words)
    assert [word in hint for word in words] == [listed] * known
    assert ("--help" in hint) != listed


def test_where_nothing_is_known_help_is_offered():
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


def test_every_page_that_an_error_names_is_there():
    named = {page for source in SOURCES for page in pages(source)}
    assert len(named) >= 8
    assert [page for page in sorted(named) if not (PROJECT / "docs" / f"{page}.md").is_file()] == []


@pytest.mark.parametrize("kind", [ConfigError, DataError, ModelError, errors.RunError, errors.StudyError])
def test_a_kind_of_error_has_a_page_which_one_of_them_may_replace(kind):
    assert kind("x").page == kind.page is not None
    assert kind("x", page="cache").page == "cache"
    assert str(kind("x", page="cache")) == "x"


def test_an_error_from_another_process_keeps_its_page():
    error = pickle.loads(pickle.dumps(ConfigError("x", page="cache")))
    assert (str(error), error.page, error.exit_code) == ("x", "cache", 2)
