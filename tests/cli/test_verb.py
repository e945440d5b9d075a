"""A verb's parser, and the usage that its errors show."""

import pytest

from kd.cli import main


@pytest.mark.parametrize(
    ("typed", "rest"),
    [
        (["predict", "run", "one", "two", "-o", "out"], "two"),
        (["export", "run", "--fp32"], "--fp32"),
        (["report", "run", "--nonsense"], "--nonsense"),
    ],
)
def test_an_unknown_argument_shows_the_usage_of_its_verb(typed, rest, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(typed)
    error = capsys.readouterr().err
    assert error.startswith(f"usage: kd {typed[0]} ")
    assert error.endswith(f"kd {typed[0]}: error: unrecognized arguments: {rest}\n")
