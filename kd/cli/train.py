"""`kd train`, which `python train.py` calls too, and completion in a shell: Hydra parses both."""

import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from kd.system.installation import NAME, version

COMPOSING = ("train", "preview", "check", "evaluate", "verdict", "ui")  # verbs that take overrides


def add_train(verbs: Any) -> None:
    """Add the help of `kd train`; its command line is Hydra's to parse."""
    train = verbs.add_parser(
        "train", add_help=False,
        usage="kd train [-m] [--config-dir DIR] [--cfg job] [--help] [--hydra-help] [override ...]",
        help="distil a student; with -m, run a study",
        description="Train a teacher, or load it, and distil a student from it; with -m, run a study. kd train --help "
        "lists every group and its options, kd train --hydra-help the flags.",
        epilog="example: kd train schedule=cosine unfreeze.rate=3",
    )  # fmt: skip
    train.add_argument("overrides", nargs="*", metavar="override", help="schedule=cosine unfreeze.rate=3")


def run(arguments: Sequence[str]) -> None:
    """Run `kd train` with these arguments."""
    if "--version" in arguments:  # Hydra would print its own
        print(NAME, version())
        return
    from kd.config.hydra_errors import one_line_errors  # heavy: hydra

    before = sys.argv
    try:
        with one_line_errors():
            from kd.config.typed import readable
            from kd.experiment.train import main

            sys.argv = [_program(arguments), *readable(arguments)]  # Hydra reads it
            main()
    finally:
        sys.argv = before


def _program(arguments: Sequence[str]) -> str:
    """The program's name for Hydra's usage lines, and for `kd.system.installation.train_command`."""
    if Path(sys.argv[0]).name == "train.py":
        return sys.argv[0]
    return "kd" if {"-sc", "--shell-completion"} & {*arguments} else "kd train"  # a completion is for one word


def complete(arguments: Sequence[str], verbs: Collection[str]) -> None:
    """Answer a shell that completes `kd ...`: with verbs, and with overrides after a verb that takes them."""
    program, _, line = os.environ.get("COMP_LINE", "").lstrip().partition(" ")
    verb, space, rest = line.lstrip().partition(" ")
    if not space:
        print("\n".join(name for name in verbs if name.startswith(verb)))
    elif verb in COMPOSING:
        if verb == "evaluate":  # its first word is a run
            rest = rest.lstrip().partition(" ")[2]
        os.environ["COMP_LINE"] = f"{program} {rest}"
        run(arguments)
