"""The terminal shows the brief elements of a page, escaped."""

from pages import summary_of

from kd.cli import main as kd
from kd.report import terminal
from kd.report.elements import Cell, Code, Page, Section, Table, Text, facts


def test_the_results_are_on_the_terminal_and_the_last_line_is_the_page(distilled, tmp_path, capsys):
    kd(["report", str(distilled), "-o", str(tmp_path / "mine.html")])
    out = capsys.readouterr().out
    assert "trivial baseline" in out
    assert f"{summary_of(distilled)['student']['test/miou']:.4f}" in out
    assert out.splitlines()[-1] == f"page     {tmp_path / 'mine.html'}"


def test_brief_elements_are_printed_and_others_are_not(capsys):
    brief = [facts([("epochs", 3)]), Text(["One line."]), Table(["", "A"], [[Cell("mIoU"), Cell("0.5")]])]
    section = Section("x", "Results", [*brief, Code(["hidden"])], brief)
    terminal.say(Page("Run 1", "3 epochs", ["complete"], [], [section], ["run.json is missing"]))
    out = capsys.readouterr().out
    assert out.startswith("report   Run 1: complete, 3 epochs\nepochs: 3\nOne line.\n")
    assert out.endswith("missing  run.json is missing\n")
    assert "mIoU" in out
    assert "results" in out
    assert "hidden" not in out


def test_markup_and_control_characters_are_shown_as_text(capsys):
    hostile = "[bold]x[/bold] \x1b[31m \u202e"
    section = Section(
        "x", hostile, [], [facts([(hostile, hostile)]), Text([hostile]), Table([hostile], [[Cell(hostile)]])]
    )
    terminal.say(Page(hostile, hostile, [hostile], [], [section], [hostile]))
    out = capsys.readouterr().out
    assert out.count("[bold]x[/bold]") == 10
    assert not set("\x1b\u202e") & {*out}
