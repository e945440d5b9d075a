"""The command `kd`: train a student, or run a study; plan it, check its data, and use and compare the results."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from kd.cli import data, plan, runs, student, train
from kd.system.installation import NAME, version
from kd.system.terminal import discreet_logging, steady_output


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    steady_output()
    discreet_logging()
    if arguments[:1] == ["train"]:  # Hydra parses the rest
        train.run(arguments[1:])
        return
    if arguments[:1] == ["-sc"]:  # a shell's completion, installed by `kd train -sc install=...`
        train.complete(arguments, verbs(parser()))
        return
    parsed, rest = parser().parse_known_args(arguments)
    if rest:  # argparse itself would show the usage of all verbs
        parsed.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    from kd.config.hydra_errors import one_line_errors  # heavy: hydra

    with one_line_errors():
        parsed.verb(parsed)


def parser() -> argparse.ArgumentParser:
    """The parser of all verbs; `verb` among the parsed arguments is the function that runs one, `parser` its parser."""
    command = argparse.ArgumentParser(
        prog="kd",
        description=__doc__,
        epilog="examples: kd preview schedule=cosine | kd train schedule=cosine | kd check data=folder "
        "data.root=my_data | kd ui | kd study temperature_unfreeze; kd VERB --help explains one verb, and kd train "
        "--help lists every option.",
    )
    command.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    subparsers = command.add_subparsers(required=True, metavar="verb")
    for add in (
        train.add_train,
        plan.add_preview,
        runs.add_study,
        runs.add_verdict,
        runs.add_report,
        data.add_check,
        student.add_export,
        student.add_predict,
        student.add_evaluate,
        student.add_bench_model,
        runs.add_sync,
        runs.add_ui,
        data.add_cache,
    ):
        add(subparsers)
    return command


def verbs(command: argparse.ArgumentParser) -> list[str]:
    """The names of a parser's verbs."""
    return [name for action in command._actions if action.choices for name in action.choices]  # no public way


class _Version(argparse.Action):
    """Print the version and exit; it is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"{NAME} {version()}")
        parser.exit()
