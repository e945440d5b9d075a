"""`kd check` reads the data; `kd cache` manages the caches."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from kd.cli.verb import add_overrides, add_verb, composed


def add_check(verbs: Any) -> None:
    check = add_verb(
        verbs, "check", _check,
        help="read all data and list every problem",
        description="Read every pair of every split; list all problems, sizes and the class balance. Exits with 1 if "
        "there are errors, which would stop or mislead training; warnings do not count.",
        epilog="example: kd check data=folder data.root=~/pictures",
    )  # fmt: skip
    add_overrides(check, "as for kd train: data=folder data.root=...")
    check.add_argument("--headers", action="store_true", help="check pairs, formats and sizes only; read no pixels")
    check.add_argument("--json", action="store_true", help="print the whole report as JSON")


def _check(arguments: argparse.Namespace) -> None:
    from kd.config.read import measured_classes, read
    from kd.data.checks import check_report
    from kd.data.checks.check import check

    settings = read(composed(arguments), look_at_data=False)
    report = check(settings.data, arguments.headers, watch=check_report.watched, measured=measured_classes(settings))
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
        help="list, verify or delete what is cached: teacher logits, decoded samples, teachers' metrics",
        description="List what is cached in runs/cache: teacher logits, decoded samples, teachers' metrics.",
        epilog="example: kd cache prune --keep-gb 10",
    )  # fmt: skip
    actions = cache.add_subparsers(metavar="verify or prune")
    add_verb(
        actions, "verify", _cache_verify,
        help="read everything and drop what is damaged",
        description="Read everything and drop what is damaged, so that it is recomputed; exits with 1 if there was "
        "any damage.",
    )  # fmt: skip
    prune = add_verb(
        actions, "prune", _cache_prune,
        help="delete some or all entries",
        description="Delete entries. Runs that use them continue, and recompute what they miss.",
        epilog="example: kd cache prune --older-than 30 --keep-gb 10",
    )  # fmt: skip
    prune.add_argument("--older-than", type=float, metavar="DAYS", help="entries not used for this many days")
    prune.add_argument("--keep-gb", type=float, metavar="GB", help="the least recently used, until this much is left")
    prune.add_argument("--all", action="store_true", help="all entries")


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
    from kd.config.compose import project_root
    from kd.system.places import CACHE

    return project_root() / CACHE
