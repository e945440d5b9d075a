"""`kd cache` tells what is kept, finds what is damaged, deletes what it is asked to, and nothing else, ever."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.cli import main
from kd.distillation.logit_cache import LogitCache
from kd.system import cache_folder, tensor_file
from kd.system.cache_folder import DAY, GB, Entry, entries, superfluous
from kd.system.record_file import FileRecords, create

OLD, NEW, SAMPLES = "0123456789abcdef", "fedcba9876543210", "0" * 32


@pytest.fixture
def cache(root) -> Path:
    """Two teachers' answers (10 and 2 days old), one data set's samples (5), a teacher's figures (1)."""
    cache = root / "runs" / "cache"
    for name, views in ((OLD, 3), (NEW, 1)):
        folder = cache / "teacher" / name
        answers = LogitCache(folder, 4, (1, 64, 64), budget=10**9)
        for view in range(views):
            answers.write(view, [0, 1, 3], torch.ones(3, 1, 64, 64).half())
        (folder / "facts.json").write_text(
            json.dumps({"teacher": f"{root}/runs/teachers/of_{name}/teacher.safetensors"})
        )
    folder = cache / "data" / SAMPLES
    create(folder / "train.slots", 5, 4096)
    FileRecords(folder / "train.slots").write(1, memoryview(bytes(range(256)) * 16))
    (folder / "facts.json").write_text(json.dumps({"data": "/my/[red]pictures"}))
    (cache / "figures").mkdir()
    tensor_file.write(cache / "figures" / f"{NEW}.safetensors", {"labels": torch.ones(3)}, {"teacher": "/a/teacher"})
    for path, days in ((f"teacher/{OLD}", 10), (f"teacher/{NEW}", 2), (f"data/{SAMPLES}", 5), ("figures", 1)):
        for file in (cache / path).iterdir():
            os.utime(file, (time.time() - days * DAY,) * 2)
    return cache


def everything(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder, links included, but locks."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
            for path in sorted(folder.rglob("*")) if path.name != ".lock"}  # fmt: skip


def names(cache: Path) -> list[str]:
    return [f"{entry.kind}/{entry.path.stem}" for entry in entries(cache)]


def kd(capsys, *arguments: str) -> str:
    main(["cache", *arguments])
    return capsys.readouterr().out


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["cache", *arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err


# the list


def test_the_list_tells_every_entry_by_kind_and_last_use(cache, capsys):
    out = kd(capsys)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    told = [(kind, entry, views, full) for kind, entry, views, full, *_ in rows if kind]
    assert told == [
        ("teacher", NEW[:8], "1", "75%"),
        ("teacher", OLD[:8], "3", "75%"),
        ("data", SAMPLES[:8], "-", "20%"),
        ("figures", NEW[:8], "-", "-"),
    ]
    assert "4 entries" in out


def test_the_list_says_whose_each_is_and_takes_no_name_for_a_colour(cache, capsys):
    found = {f"{entry.kind}/{entry.path.stem}": entry.facts() for entry in entries(cache)}
    assert found[f"teacher/{OLD}"]["teacher"].endswith(f"of_{OLD}/teacher.safetensors")
    assert found[f"figures/{NEW}"]["teacher"] == "/a/teacher"
    out = kd(capsys)
    assert f" teachers/of_{OLD} " in out
    assert " /my/[red]pictures " in out


def test_an_entry_takes_what_its_disk_says_and_not_what_is_promised(cache):
    create(cache / "teacher" / OLD / "view-000003.slots", 1000, 4096)
    (entry,) = (entry for entry in entries(cache) if entry.path.name == OLD)
    assert entry.bytes == sum(path.stat().st_blocks * 512 for path in entry.path.iterdir())
    assert entry.bytes < sum(path.stat().st_size for path in entry.path.iterdir())
    assert time.time() - entry.used == pytest.approx(0, abs=60)
    (entry,) = (entry for entry in entries(cache) if entry.path.name == NEW)
    assert time.time() - entry.used == pytest.approx(2 * DAY, abs=60)


@pytest.mark.parametrize("damage", ["no facts", "garbage", "a list", "deep", "slots"])
def test_the_list_bears_what_is_damaged(damage, cache, capsys):
    folder = cache / "teacher" / OLD
    damages = {"garbage": b"\xff{", "a list": b"[]", "deep": b"[" * 10**5}
    if damage == "no facts":
        (folder / "facts.json").unlink()
    elif damage == "slots":
        for path in folder.glob("*.slots"):
            path.write_bytes(b"garbage")
        (cache / "figures" / f"{NEW}.safetensors").write_bytes(b"garbage")
    else:
        (folder / "facts.json").write_bytes(damages[damage])
    assert "4 entries" in kd(capsys)


def test_where_there_is_no_cache_that_is_said(root, capsys):
    assert kd(capsys).endswith("/runs/cache: empty\n")
    assert ": intact" in kd(capsys, "verify")
    assert "deleted 0 entries" in kd(capsys, "prune", "--all")
    assert list(root.iterdir()) == []


def test_the_list_imports_nothing_heavy(cache):
    code = (
        "import sys; from kd.cli import main; main(['cache']);"
        "heavy = {'torch', 'albumentations', 'mlflow', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


# verify


def test_what_is_whole_is_left_as_it_is(cache, capsys):
    before = everything(cache)
    assert "4 entries" in kd(capsys, "verify")
    assert everything(cache) == before


def test_what_is_damaged_is_emptied_and_the_rest_stays(cache, capsys):
    view, samples = cache / "teacher" / OLD / "view-000001.slots", cache / "data" / SAMPLES / "train.slots"
    slots = FileRecords(view)
    slots._store(slots._place(3) + 77, memoryview(b"x"))
    os.truncate(samples, 5000)
    figures = cache / "figures" / f"{NEW}.safetensors"
    figures.write_bytes(figures.read_bytes()[:-1] + b"x")
    before = everything(cache)
    with pytest.raises(SystemExit) as caught:
        main(["cache", "verify"])
    assert caught.value.code == 1
    out = capsys.readouterr().out
    assert f"{view}: 1 of 3 records; emptied" in out
    assert f"{samples} has 5000 bytes" in out
    assert f"{figures}: its digest does not fit its content; deleted" in out
    assert np.flatnonzero(slots.filled()).tolist() == [0, 1]
    left = everything(cache)
    gone = {f"data/{SAMPLES}/train.slots", f"figures/{NEW}.safetensors"}
    assert before.keys() - left.keys() == gone
    assert {name for name in left if left[name] != before[name]} == {f"teacher/{OLD}/view-000001.slots"}
    assert ": intact" in kd(capsys, "verify")


# prune


def test_without_a_word_about_what_nothing_is_deleted(cache, capsys):
    before = everything(cache)
    err = refused(capsys, "prune")
    choices = "--older-than DAYS, --keep-gb GB, or --all"
    assert err == f"error: kd cache prune: say what to delete: {choices} (docs/cache.md)\n"
    for option in ("--older-than", "--keep-gb"):
        for value in ("-1", "nan"):
            assert refused(capsys, "prune", f"{option}={value}").count("\n") == 1
    assert everything(cache) == before


def test_what_was_not_used_for_some_days_is_deleted(cache, capsys):
    assert "deleted 2 entries" in kd(capsys, "prune", "--older-than", "4")
    assert names(cache) == [f"teacher/{NEW}", f"figures/{NEW}"]
    assert not (cache / "teacher" / OLD).exists()


def test_the_least_recently_used_is_deleted_until_so_much_is_left(cache, capsys):
    sizes = {f"{entry.kind}/{entry.path.stem}": entry.bytes for entry in entries(cache)}
    keep = sum(sizes.values()) - sizes[f"teacher/{OLD}"]
    kd(capsys, "prune", "--keep-gb", str(keep / GB))
    assert set(names(cache)) == sizes.keys() - {f"teacher/{OLD}"}
    kd(capsys, "prune", "--keep-gb", str((keep - 1) / GB))
    assert names(cache) == [f"teacher/{NEW}", f"figures/{NEW}"]
    kd(capsys, "prune", "--keep-gb", "0")
    assert names(cache) == []


class Made(Entry):
    """An entry of a given size and age, without files."""

    def __init__(self, name: int, size: int, age: float) -> None:
        super().__init__("data", Path(str(name)))
        self.__dict__.update(bytes=size, used=-age * DAY)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10), st.floats(0, 100)), max_size=8),
    st.none() | st.floats(0, 100),
    st.none() | st.integers(0, 50),
)
def test_what_is_kept_is_young_enough_small_enough_and_as_much_as_can_be(made, days, keep):
    found = [Made(number, size, age) for number, (size, age) in enumerate(made)]
    doomed = superfluous(found, days, None if keep is None else keep / GB, now=0)
    kept = [entry for entry in found if entry not in doomed]
    old = [entry for entry in found if days is not None and -entry.used / DAY > days]
    assert not set(old) & set(kept)
    if keep is not None:
        assert sum(entry.bytes for entry in kept) <= keep
    young = [entry for entry in doomed if entry not in old]
    assert all(one.used <= other.used for one in young for other in kept)
    if young:
        assert keep is not None
        assert sum(entry.bytes for entry in [*kept, young[-1]]) > keep


def test_all_is_all_but_what_is_not_ours(cache, root, capsys):
    """Another file, another folder, a name of another form: they stay, and so do their folders."""
    strange = [
        "teacher/notes.txt", f"teacher/{OLD}/notes.txt", "teacher/mine/view-000000.slots", "other/x.slots",
        f"data/{SAMPLES}/all.slots", "figures/notes.safetensors", f"teacher/{OLD}/sub/view-000000.slots",
    ]  # fmt: skip
    for name in strange:
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_text("mine")
    (root / "runs" / "run").mkdir()
    (root / "runs" / "run" / "student.safetensors").write_text("mine")
    assert "deleted 4 entries" in kd(capsys, "prune", "--all")
    assert {name for name, content in everything(root / "runs").items() if content is not None} == {
        "run/student.safetensors", *(f"cache/{name}" for name in strange)
    }  # fmt: skip


@pytest.mark.parametrize("what", ["kind", "entry", "file", "figures", "lock"])
def test_nothing_that_a_link_leads_to_is_touched(what, cache, tmp_path, capsys):
    outside = tmp_path / "outside"
    outside.mkdir()
    precious = outside / "view-000000.slots"
    create(precious, 4, 8192)
    (outside / "facts.json").write_text("{}")
    tensor_file.write(outside / "figures", {}, {})
    os.utime(precious, (0, 0))
    link, target = {
        "kind": (cache / "data", outside.parent),
        "entry": (cache / "teacher" / "0000000000000000", outside),
        "file": (cache / "teacher" / OLD / "view-000009.slots", precious),
        "figures": (cache / "figures" / "0000000000000000.safetensors", outside / "figures"),
        "lock": (cache / "teacher" / ".lock", outside / "facts.json"),
    }[what]
    if what == "kind":
        link.rename(tmp_path / ("a" * 32))
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    before = everything(outside)
    for command in (["verify"], ["prune", "--keep-gb", "0"], ["prune", "--older-than", "0"], ["prune", "--all"]):
        try:
            kd(capsys, *command)
        except (SystemExit, OSError):
            assert what == "lock"
        assert everything(outside) == before
    assert link.is_symlink()


def test_what_a_killed_process_left_of_its_writes_is_deleted_once_it_is_old(cache, capsys):
    places = [cache / "teacher" / NEW / ".view-000000.slots.abcdefgh.slots",
              cache / "figures" / f".{NEW}.safetensors.abcdefgh.safetensors"]  # fmt: skip
    for path in places:
        path.write_text("half")
    kd(capsys, "prune", "--older-than", "1000")
    assert all(path.exists() for path in places)
    for path in places:
        os.utime(path, (time.time() - 7200,) * 2)
    kd(capsys, "prune", "--older-than", "1000")
    assert not any(path.exists() for path in places)
    assert len(names(cache)) == 4


def test_a_run_at_work_does_not_notice(cache, capsys):
    """It reads on what it has open, and stores its next view in a folder of the same name."""
    answers = LogitCache(cache / "teacher" / OLD, 4, (1, 64, 64))
    ones = torch.ones(1, 1, 64, 64).half()
    assert torch.equal(answers.read(0, [0]), ones)
    kd(capsys, "prune", "--all")
    assert torch.equal(answers.read(0, [0]), ones)
    assert answers.read(1, [0]) is None
    answers.write(1, [2], ones)
    assert answers.writable
    assert torch.equal(LogitCache(cache / "teacher" / OLD, 4, (1, 64, 64)).read(1, [2]), ones)
    assert "1 entries" in kd(capsys)


def test_a_cache_may_be_pruned_and_verified_while_it_is_filled(cache, capsys):
    """Whoever writes, reads what belongs there or nothing, and is never stopped."""
    answers, chance = LogitCache(cache / "teacher" / OLD, 4, (1, 64, 64)), random.Random(0)
    for step in range(60):
        view, index = chance.randrange(3), chance.randrange(4)
        answers.write(view, [index], torch.full((1, 1, 64, 64), float(index + 1)).half())
        found = LogitCache(cache / "teacher" / OLD, 4, (1, 64, 64)).read(view, [index])
        assert found is None or set(found.unique().tolist()) <= {1.0, index + 1.0}
        if step % 5 == 0:
            cache_folder.prune(cache, None, None, everything=True)
        elif step % 5 == 2:
            assert cache_folder.verify(cache)
    assert answers.writable
    assert answers.refused == 0
    capsys.readouterr()
