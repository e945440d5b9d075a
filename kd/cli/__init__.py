"""The console command `kd`: a look at a run before it starts, at its data, at what came of it. `train.py` trains."""

import argparse
from collections.abc import Sequence

from kd.cli import data, plan, runs, student
from kd.config.hydra_errors import one_line_errors
from kd.system.terminal import steady_output


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console command."""
    steady_output()
    arguments = parser().parse_args(argv)
    with one_line_errors():
        arguments.verb(arguments)


def parser() -> argparse.ArgumentParser:
    """The parser of all verbs; each has `verb`, the function that does it, among its arguments."""
    command = argparse.ArgumentParser(
        prog="kd",
        description=__doc__,
        epilog="examples: kd preview schedule=cosine | kd check data=folder data.root=my_data | kd ui | "
        "kd study temperature_unfreeze; kd VERB --help has more. python train.py --help shows what can be configured.",
    )
    verbs = command.add_subparsers(required=True, metavar="verb")
    for add in (
        plan.add_preview,
        runs.add_study,
        runs.add_report,
        data.add_check,
        student.add_export,
        student.add_predict,
        student.add_bench_model,
        runs.add_sync,
        runs.add_ui,
        data.add_cache,
    ):
        add(verbs)
    return command
