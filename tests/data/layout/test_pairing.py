"""Pairs of files are listed; links out of the root, special files and unreadable files are refused."""

import os
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

import pytest
from pairs import mask, put, save

from kd.data import Folder
from kd.data.layout.listing import inside
from kd.data.layout.pairing import paired
from kd.data.layout.split_folders import layout
from kd.errors import DataError


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "data"
    for stem in "abc":
        put(data, stem)
    put(data, "v", split="val")
    return data


def kinds(folder, split="train"):
    pairs, faults, _ = paired(layout(folder), split)
    assert all(str(fault.error).isprintable() for fault in faults)
    return "".join(pairs), [(fault.kind, fault.file.name) for fault in faults]


def refusal(folder):
    """The message of `check`, which equals that of all other methods."""
    said = set()
    for call in (Folder.check, Folder.fingerprint, lambda source: source.size("train")):
        with pytest.raises(DataError) as caught:
            call(Folder(folder, image_size=(32, 64)))
        said.add(str(caught.value))
    assert len(said) == 1
    return said.pop()


def test_a_valid_folder_has_pairs_and_no_faults(folder):
    assert kinds(folder) == ("abc", [])
    assert kinds(folder, "test") == ("", [])


def test_all_faults_and_all_complete_pairs_are_found(folder):
    for stem in "defgh":
        put(folder, stem)
    (folder / "masks/train/d.png").unlink()
    (folder / "images/train/e.png").unlink()
    (folder / "masks/train/f.png").rename(folder / "masks/train/f.jpg")
    (folder / "images/train/g.jpg").write_bytes((folder / "images/train/g.png").read_bytes())
    (folder / "images/train/h.png").unlink()
    (folder / "images/train/h.png").mkdir()
    whole, faults = kinds(folder)
    assert whole == "abc"
    assert sorted(faults) == [
        ("jpeg_mask", "f.jpg"),
        ("no_image", "e.png"),
        ("no_mask", "d.png"),
        ("not_a_file", "h.png"),
        ("same_name", "g.png"),
    ]


# Unicode


def renamed(folder, form):
    """Rename every file to a Unicode form, as copying does."""
    for path in folder.rglob("*.png"):
        path.rename(path.with_name(unicodedata.normalize(form, path.name)))


@pytest.fixture
def accents(tmp_path):
    for number in range(6):
        put(tmp_path / "data", f"p {number} é가")
    return tmp_path / "data"


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_names_in_two_unicode_forms_are_pairs_and_files_keep_their_paths(accents, kind):
    usual = Folder(accents)
    names, fingerprint = [usual.name(split, 0) for split in ("train", "val")], usual.fingerprint()
    renamed(accents / kind, "NFD")
    source = Folder(accents)
    source.check()
    assert source.fingerprint() == fingerprint
    assert [source.name(split, 0) for split in ("train", "val")] == names
    assert all(path.exists() for path in source.files("train", 0))
    template = Folder(accents, images="images/{split}/{stem} é가.png", masks="masks/{split}/{stem} é가.png")
    assert template.size("train") + template.size("val") == 6


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_list_and_a_template_in_any_unicode_form_name_the_files(accents, form):
    text = unicodedata.normalize(form, "p 0 é가.png\np 1 é가\n")
    (accents / "train.txt").write_text(text)
    options = {"images": "images/train", "masks": "masks/train", "split_lists": {"train": "train.txt"}}
    assert Folder(accents, **options).name("train", 0) in ("p 0 é가.png", "p 1 é가.png")
    form_of_stem = unicodedata.normalize(form, "images/{split}/{stem} é가.png")
    assert Folder(accents, images=form_of_stem, masks="masks/{split}/{stem} é가.png").size("train") > 0


def test_one_name_in_two_unicode_forms_in_a_folder_is_refused(accents):
    save(mask(), accents / "images/train" / unicodedata.normalize("NFD", "p 0 é가.png"))
    assert "have the same name in two Unicode forms (NFC and NFD): keep one of them" in refusal(accents)


# Roots


@pytest.mark.parametrize("train", ["train", "training"])
def test_a_root_one_level_too_deep_is_said_with_the_right_one(folder, train, monkeypatch):
    for kind in ("images", "masks"):
        (folder / kind / "train").rename(folder / kind / train)
    message = f"images/images/train does not exist: data.root is one level too deep, set data.root={folder}"
    assert refusal(folder / "images").endswith(message)
    monkeypatch.chdir(folder / "images")
    assert refusal(".") == message.removeprefix("images/")
    spaced = folder.rename(folder.parent / "my data")
    monkeypatch.chdir(folder.parent)
    assert refusal(spaced / "images").endswith(f"set 'data.root={spaced}'")


def test_a_root_without_the_folders_is_said_not_to_have_them(tmp_path):
    (tmp_path / "other").mkdir()
    assert refusal(tmp_path / "other") == (
        f"{tmp_path}/other/images/train does not exist: set data.root to the folder with images/train and masks/train, "
        "or say where they are by data.images and data.masks"
    )


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_link_to_a_file_outside_the_root_is_refused(folder, kind):
    outside = folder.parent / "secret.png"
    save(mask(), outside)
    link = folder / kind / "train" / "b.png"
    link.unlink()
    for target in (outside, Path("../../../secret.png")):
        link.symlink_to(target)
        assert refusal(folder).startswith(f"{link} is a link out of {folder}: put what it names there, or, ")
        link.unlink()


def test_a_link_to_a_folder_outside_the_root_is_refused(folder):
    elsewhere = folder.parent / "elsewhere"
    (folder / "masks/train").rename(elsewhere)
    (folder / "masks/train").symlink_to(elsewhere)
    assert f"{folder}/masks/train is a link out of {folder}" in refusal(folder)


def test_links_inside_the_root_and_a_linked_root_are_followed(folder):
    (folder / "images/train/b.png").rename(folder / "elsewhere.png")
    (folder / "images/train/b.png").symlink_to("../../elsewhere.png")
    root = folder.parent / "link"
    root.symlink_to(folder)
    for place in (folder, root):
        source = Folder(place, image_size=(32, 64))
        source.check()
        assert source.size("train") == 3


def test_a_broken_link_a_loop_and_a_pipe_are_named_without_blocking(folder):
    for stem in "def":
        put(folder, stem)
        (folder / f"images/train/{stem}.png").unlink()
    (folder / "images/train/d.png").symlink_to("nothing.png")
    (folder / "images/train/e.png").symlink_to("e.png")
    os.mkfifo(folder / "images/train/f.png")
    _, faults, _ = paired(layout(folder), "train")
    assert [str(fault.error).partition("train/")[2] for fault in faults] == [
        "d.png is not a file but a broken link: remove it, or fetch the file that it stands for "
        "(dvc pull, git annex get)",
        "e.png cannot be read (Too many levels of symbolic links): make it readable",
        "f.png is not a file but a pipe, socket or device: remove it",
    ]


def test_a_folder_named_like_an_image_is_named(folder):
    (folder / "masks/val/w.png").mkdir()
    assert "masks/val/w.png is not a file but a folder: remove it" in refusal(folder)


@pytest.mark.parametrize("name", ["\x1b[2Jcleared", "tab\tand\nline", "b\udcffd", "x" * 240])
def test_names_are_escaped_and_shortened(folder, name):
    (folder / "images/train" / f"{name}.png").write_bytes(b"x")
    message = refusal(folder)
    assert message.isprintable()
    assert message.encode()
    assert name not in message
    assert "has no mask" in message
    assert len(message) < 4 * len(str(folder)) + 400


def test_a_path_below_a_root_with_a_similar_name_is_not_inside(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data-2").mkdir()
    assert inside(tmp_path / "data" / ".." / "data" / "x", tmp_path / "data")
    assert not inside(tmp_path / "data-2", tmp_path / "data")
    assert not inside(tmp_path / "data" / ".." / "..", tmp_path / "data")


CHECK = """
import os, sys
from kd.data import Folder
from kd.config.hydra_errors import one_line_errors

root, shut = sys.argv[1:]
Folder(root, image_size=(32, 64)).check()  # what it imports must not be looked for without privileges
os.chmod(shut, 0)
if os.geteuid() == 0:  # whom no mode stops
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
with one_line_errors():
    Folder(root, image_size=(32, 64)).check()
"""


@pytest.mark.parametrize("place", ["", "images", "masks/val", "images/train", "masks/train/a.png"])
def test_missing_permissions_are_reported_in_one_line(place):
    with tempfile.TemporaryDirectory() as root:  # pytest's own folders are shut to other accounts
        os.chmod(root, 0o755)
        for stem in "ab":
            put(Path(root), stem)
            put(Path(root), stem, split="val")
        shut = Path(root, place)
        command = [sys.executable, "-c", CHECK, root, str(shut)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        shut.chmod(0o755)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1
    assert str(shut) in done.stderr
    assert "(Permission denied): " in done.stderr
