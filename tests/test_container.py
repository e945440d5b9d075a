"""The Dockerfile, as far as it can be tried without Docker: `.ci/run` and `make` install in the same way."""

import re

from kd.config.compose import PROJECT

TEXT = re.sub(r"\\\n", "", (PROJECT / "Dockerfile").read_text(encoding="utf-8"))
STEPS = [line.split(maxsplit=1) for line in TEXT.splitlines() if line and not line.startswith("#")]


def test_it_starts_from_a_base_of_ones_choice_and_ends_as_an_ordinary_user():
    assert [step for step in STEPS if step[0] in ("ARG", "FROM")] == [
        ["ARG", "BASE=python:3.12-slim"],
        ["FROM", "${BASE}"],
    ]
    after = STEPS[STEPS.index(["USER", "kd"]) :]
    assert not [step for step in after if step[0] in ("RUN", "COPY", "ADD", "USER")][1:]
    assert ["ENTRYPOINT", '["kd"]'] in after


def test_it_installs_exactly_what_the_lock_says_as_make_does():
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    for part in ("--require-hashes -r requirements.lock", "--no-deps --no-build-isolation"):
        assert part in TEXT
        assert part in makefile


def test_no_secret_and_nothing_of_this_machine_gets_in():
    ignored = (PROJECT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {*(PROJECT / ".gitignore").read_text(encoding="utf-8").split(), ".git", ".env"} <= {*ignored}
    assert not re.search(r"token|secret|password|--index|--extra-index", TEXT, re.IGNORECASE)
    assert [step[1] for step in STEPS if step[0] in ("COPY", "ADD")] == ["requirements.lock .", ". ."]
