"""What lies on the disk: `kd check` looks at the data, `kd cache` at what is kept."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from kd.cli.verb import add_verb
from kd.config.compose import compose, project_root
from kd.config.read import read


def add_check(verbs: Any) -> None:
    check = add_verb(
        verbs, "check", _check,
        help="read all data and list everything that is wrong with it",
        description="Read every pair of every split; list all problems, sizes and the balance of the classes. Exits "
        "with 1 where training would stop at something, or be misled by it; warnings do not count.",
        epilog="example: kd check data=folder data.root=~/pictures",
    )  # fmt: skip
    check.add_argument("overrides", nargs="*", metavar="override", help="as for train.py: data=folder data.root=...")
    check.add_argument("--headers", action="store_true", help="read no pixels: pairs, formats and sizes only, fast")
    check.add_argument("--json", action="store_true", help="print the whole report as JSON")


def _check(arguments: argparse.Namespace) -> None:
    from kd.data import check_report
    from kd.data.check import check

    source = read(compose(arguments.overrides), look_at_data=False).data
    report = check(source, arguments.headers, watch=check_report.watched)
    if arguments.json:
        json.dump(check_report.as_json(report), sys.stdout, indent=2)
        print()
    else:
        check_report.show(report)
    if report.errors:
        sys.exit(1)


def add_cache(verbs: Any) -> None:
    cache = add_verb(
        verbs, "cache", _cache,
        help="list what is kept below runs/cache: teachers' answers, decoded samples; verify or delete it",
        description="List what is kept below runs/cache: teachers' answers, decoded samples, teachers' figures.",
        epilog="example: kd cache prune --keep-gb 10",
    )  # fmt: skip
    what = cache.add_subparsers(metavar="verify or prune")
    add_verb(
        what, "verify", _cache_verify,
        help="read all of it, and empty what is damaged",
        description="Read all of it. What is damaged is emptied, so that it is computed again; exits with 1 then.",
    )  # fmt: skip
    prune = add_verb(
        what, "prune", _cache_prune,
        help="delete some of it, or all",
        description="Delete entries. Runs that are at work on them go on, and make again what they miss.",
        epilog="example: kd cache prune --older-than 30 --keep-gb 10",
    )  # fmt: skip
    prune.add_argument("--older-than", type=float, metavar="DAYS", help="what was not used for so many days")
    prune.add_argument("--keep-gb", type=float, metavar="GB", help="least recently used first, until so much is left")
    prune.add_argument("--all", action="store_true", help="everything")


def _cache(arguments: argparse.Namespace) -> None:
    from kd.cli import cache

    cache.show(_cache_root())


def _cache_verify(arguments: argparse.Namespace) -> None:
    from kd.cli import cache

    if not cache.verify(_cache_root()):
        sys.exit(1)


def _cache_prune(arguments: argparse.Namespace) -> None:
    from kd.cli import cache

    cache.prune(_cache_root(), arguments.older_than, arguments.keep_gb, arguments.all)


def _cache_root() -> Path:
    return project_root() / "runs" / "cache"
