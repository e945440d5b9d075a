"""`kd cache` lists, verifies and prunes the cache folder, and touches nothing else."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from caches import NEW, OLD, SAMPLES, everything, fill, names

from kd.cli import main
from kd.cli.cache import prune, verify
from kd.distillation.logit_cache import LogitCache
from kd.system import tensor_file
from kd.system.cache_folder import GB, entries
from kd.system.record_file import FileRecords, create


@pytest.fixture
def cache(root) -> Path:
    return fill(root / "runs" / "cache")


def kd(capsys, *arguments: str) -> str:
    main(["cache", *arguments])
    return capsys.readouterr().out


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["cache", *arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err


# the list


def test_the_list_is_sorted_by_kind_and_last_use(cache, capsys):
    out = kd(capsys)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    listed = [(kind, entry, views, full) for kind, entry, views, full, *_ in rows if kind]
    assert listed == [
        ("teacher", NEW[:8], "1", "75%"),
        ("teacher", OLD[:8], "3", "75%"),
        ("data", SAMPLES[:8], "-", "20%"),
        ("figures", NEW[:8], "-", "-"),
        ("files", OLD[:8], "-", "-"),
    ]
    assert "5 entries" in out


def test_the_list_names_each_owner_without_interpreting_markup(cache, capsys):
    found = {f"{entry.kind}/{entry.path.stem}": entry.facts() for entry in entries(cache)}
    assert found[f"teacher/{OLD}"]["teacher"].endswith(f"of_{OLD}/teacher.safetensors")
    assert found[f"figures/{NEW}"]["teacher"] == "/a/teacher"
    out = kd(capsys)
    assert f" teachers/of_{OLD} " in out
    assert " /my/[red]pictures " in out


@pytest.mark.parametrize("damage", ["no facts", "garbage", "a list", "deep", "records"])
def test_the_list_tolerates_damage(damage, cache, capsys):
    folder = cache / "teacher" / OLD
    damages = {"garbage": b"\xff{", "a list": b"[]", "deep": b"[" * 10**5}
    if damage == "no facts":
        (folder / "facts.json").unlink()
    elif damage == "records":
        for path in folder.glob("*.records"):
            path.write_bytes(b"garbage")
        (cache / "figures" / f"{NEW}.safetensors").write_bytes(b"garbage")
    else:
        (folder / "facts.json").write_bytes(damages[damage])
    assert "5 entries" in kd(capsys)


def test_an_empty_cache_is_reported(root, capsys):
    assert kd(capsys).endswith("/runs/cache: empty\n")
    assert ": intact" in kd(capsys, "verify")
    assert "deleted 0 entries" in kd(capsys, "prune", "--all")
    assert list(root.iterdir()) == []


def test_listing_imports_nothing_slow(cache):
    code = (
        "import sys; from kd.cli import main; main(['cache']);"
        "heavy = {'torch', 'albumentations', 'mlflow', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


# verify


def test_verify_does_not_change_intact_entries(cache, capsys):
    before = everything(cache)
    assert "5 entries" in kd(capsys, "verify")
    assert everything(cache) == before


def test_verify_erases_only_damaged_records(cache, capsys):
    view, samples = cache / "teacher" / OLD / "view-000001.records", cache / "data" / SAMPLES / "train.records"
    records = FileRecords(view)
    records._store(records._offset(3) + 77, memoryview(b"x"))
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
    assert f"{figures}: its digest does not match its content; deleted" in out
    assert np.flatnonzero(records.filled()).tolist() == [0, 1]
    left = everything(cache)
    gone = {f"data/{SAMPLES}/train.records", f"figures/{NEW}.safetensors"}
    assert before.keys() - left.keys() == gone
    assert {name for name in left if left[name] != before[name]} == {f"teacher/{OLD}/view-000001.records"}
    assert ": intact" in kd(capsys, "verify")


# prune


def test_prune_without_options_deletes_nothing(cache, capsys):
    before = everything(cache)
    err = refused(capsys, "prune")
    choices = "--older-than DAYS, --keep-gb GB, or --all"
    assert err == f"error: kd cache prune: say what to delete: {choices} (docs/cache.md)\n"
    for option in ("--older-than", "--keep-gb"):
        for value in ("-1", "nan"):
            assert refused(capsys, "prune", f"{option}={value}").count("\n") == 1
    assert everything(cache) == before


def test_prune_deletes_entries_older_than_some_days(cache, capsys):
    assert "deleted 2 entries" in kd(capsys, "prune", "--older-than", "4")
    assert names(cache) == [f"teacher/{NEW}", f"figures/{NEW}", f"files/{OLD}"]
    assert not (cache / "teacher" / OLD).exists()


def test_prune_deletes_the_least_recently_used_until_some_gigabytes_are_left(cache, capsys):
    sizes = {f"{entry.kind}/{entry.path.stem}": entry.bytes for entry in entries(cache)}
    keep = sum(sizes.values()) - sizes[f"teacher/{OLD}"]
    kd(capsys, "prune", "--keep-gb", str(keep / GB))
    assert set(names(cache)) == sizes.keys() - {f"teacher/{OLD}"}
    kd(capsys, "prune", "--keep-gb", str((keep - 1) / GB))
    assert names(cache) == [f"teacher/{NEW}", f"figures/{NEW}", f"files/{OLD}"]
    kd(capsys, "prune", "--keep-gb", "0")
    assert names(cache) == []


def test_prune_all_deletes_only_files_of_the_cache(cache, root, capsys):
    """Files, folders and names of another form stay, and so do the folders around them."""
    strange = [
        "teacher/notes.txt", f"teacher/{OLD}/notes.txt", "teacher/mine/view-000000.records", "other/x.records",
        f"data/{SAMPLES}/all.records", "figures/notes.safetensors", f"teacher/{OLD}/sub/view-000000.records",
    ]  # fmt: skip
    for name in strange:
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_text("mine")
    (root / "runs" / "run").mkdir()
    (root / "runs" / "run" / "student.safetensors").write_text("mine")
    assert "deleted 5 entries" in kd(capsys, "prune", "--all")
    assert {name for name, content in everything(root / "runs").items() if content is not None} == {
        "run/student.safetensors", *(f"cache/{name}" for name in strange)
    }  # fmt: skip


@pytest.mark.parametrize("what", ["kind", "entry", "file", "figures", "lock"])
def test_links_are_never_followed(what, cache, tmp_path, capsys):
    outside = tmp_path / "outside"
    outside.mkdir()
    precious = outside / "view-000000.records"
    create(precious, 4, 8192)
    (outside / "facts.json").write_text("{}")
    tensor_file.write(outside / "figures", {}, {})
    os.utime(precious, (0, 0))
    link, target = {
        "kind": (cache / "data", outside.parent),
        "entry": (cache / "teacher" / "0000000000000000", outside),
        "file": (cache / "teacher" / OLD / "view-000009.records", precious),
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


def test_old_temporary_files_are_deleted(cache, capsys):
    places = [cache / "teacher" / NEW / ".view-000000.records.abcdefgh.records",
              cache / "figures" / f".{NEW}.safetensors.abcdefgh.safetensors"]  # fmt: skip
    for path in places:
        path.write_text("half")
    kd(capsys, "prune", "--older-than", "1000")
    assert all(path.exists() for path in places)
    for path in places:
        os.utime(path, (time.time() - 7200,) * 2)
    kd(capsys, "prune", "--older-than", "1000")
    assert not any(path.exists() for path in places)
    assert len(names(cache)) == 5


def test_pruning_does_not_disturb_an_active_run(cache, capsys):
    """It keeps reading open files, and stores its next view in a folder of the same name."""
    logit_cache = LogitCache(cache / "teacher" / OLD, 4, (1, 64, 64))
    ones = torch.ones(1, 1, 64, 64).half()
    assert torch.equal(logit_cache.read(0, [0]), ones)
    kd(capsys, "prune", "--all")
    assert torch.equal(logit_cache.read(0, [0]), ones)
    assert logit_cache.read(1, [0]) is None
    logit_cache.write(1, [2], ones)
    assert logit_cache.writable
    assert torch.equal(LogitCache(cache / "teacher" / OLD, 4, (1, 64, 64)).read(1, [2]), ones)
    assert "1 entries" in kd(capsys)


def test_a_cache_can_be_pruned_and_verified_while_it_is_written(cache, capsys):
    """A writer reads what it wrote or nothing, and never fails."""
    logit_cache, chance = LogitCache(cache / "teacher" / OLD, 4, (1, 64, 64)), random.Random(0)
    for step in range(60):
        view, index = chance.randrange(3), chance.randrange(4)
        logit_cache.write(view, [index], torch.full((1, 1, 64, 64), float(index + 1)).half())
        found = LogitCache(cache / "teacher" / OLD, 4, (1, 64, 64)).read(view, [index])
        assert found is None or set(found.unique().tolist()) <= {1.0, index + 1.0}
        if step % 5 == 0:
            prune(cache, None, None, everything=True)
        elif step % 5 == 2:
            assert verify(cache)
    assert logit_cache.writable
    assert logit_cache.refused == 0
    capsys.readouterr()
