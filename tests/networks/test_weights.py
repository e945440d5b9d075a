"""Laws of weights files: torch and safetensors files are read alike, and a mismatch costs no memory."""

import json
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kd.errors import ModelError
from kd.networks.weights import fill, opened

OLD = {"_use_new_zipfile_serialization": False}  # torch's format before 1.6
WRITERS = {
    "new.pt": lambda state, path: torch.save(state, path),
    "old.pth": lambda state, path: torch.save(state, path, **OLD),
    "safe.safetensors": save_file,
}


def layer(seed: int) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(4, 3)


@pytest.mark.parametrize("name", WRITERS)
def test_shapes_and_values_are_read_as_written(name, tmp_path):
    state = layer(1).state_dict()
    WRITERS[name](state, tmp_path / name)
    weights = opened(tmp_path / name)
    assert weights.shapes == {"weight": (3, 4), "bias": (3,)}
    assert all(torch.equal(weights.read(key), value) for key, value in state.items())


@pytest.mark.parametrize("name", WRITERS)
def test_a_module_is_filled_by_the_names_in_the_file(name, tmp_path):
    WRITERS[name]({f"head.{key}": value for key, value in layer(1).state_dict().items()}, tmp_path / name)
    module = layer(2)
    fill(module, opened(tmp_path / name), {"weight": "head.weight", "bias": "head.bias"}, "x")
    assert torch.equal(module.weight, layer(1).weight)
    assert torch.equal(module.bias, layer(1).bias)


@pytest.mark.parametrize("change", [{"bias": None}, {"more": torch.zeros(1)}, {"weight": torch.zeros(4, 3)}])
def test_a_mismatched_module_is_left_unchanged(change, tmp_path):
    state = {key: value for key, value in (layer(1).state_dict() | change).items() if value is not None}
    save_file(state, tmp_path / "x.safetensors")
    module = layer(2)
    weights = opened(tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="do not match"):
        fill(module, weights, {key: key for key in weights.shapes}, "x")
    assert torch.equal(module.weight, layer(2).weight)


def test_sparse_tensors_are_refused(tmp_path):
    torch.save({**layer(1).state_dict(), "weight": torch.zeros(3, 4).to_sparse()}, tmp_path / "x.pt")
    with pytest.raises(ModelError, match=r"x.pt: calls torch\._utils _rebuild_sparse_tensor, which"):
        opened(tmp_path / "x.pt")


BOMBS = {  # each of which `weights_only` allows, or may some day
    "__builtin__ bytearray": b"\x80\x02c__builtin__\nbytearray\n\x8a\x06\0\0\0\0\0\x01\x85R.",
    "torch Tensor": b"\x80\x02ctorch\nTensor\n\x8a\x06\0\0\0\0\0\x01\x85R.",
    "collections Counter": b"\x80\x02ccollections\nCounter\n}\x85R.",
    "None": b"\x80\x04\x8c\x08builtins\x8c\x09bytearray\x93K\x01\x85R.",
}


@pytest.mark.parametrize("kind", ["archive", "hidden", "before 1.6"])
@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_that_does_more_than_rebuild_tensors_is_not_loaded(name, kind, tmp_path, monkeypatch):
    """Some calls take all memory before any shape is known."""
    file = tmp_path / "x.pth"
    torch.save(layer(1).state_dict(), file, **(OLD if kind == "before 1.6" else {}))
    if kind == "before 1.6":
        file.write_bytes(file.read_bytes().replace(b"\x80\x02ccollections\nOrderedDict", BOMBS[name] + b"\x80\x02c", 1))
    else:
        with zipfile.ZipFile(file, "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the same name twice
            archive.writestr("x/data.pkl" if kind == "archive" else "x/other.pkl", BOMBS[name])
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(ModelError, match=rf"x\.pth: calls {name}, which weights do not need"):
        opened(file)


@pytest.mark.parametrize("spoil", ["an archive behind it", "a name that is no text"])
def test_a_file_is_read_here_as_torch_reads_it_or_not_loaded(spoil, tmp_path, monkeypatch):
    """torch looks at the first bytes of a file, zipfile at the last ones; torch may skip what Python cannot decode."""
    file, bomb = tmp_path / "x.pth", BOMBS["__builtin__ bytearray"]
    file.write_bytes(b"\x80\x02X\x01\0\0\0\xff0" + bomb if spoil == "a name that is no text" else bomb)
    if spoil == "an archive behind it":
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr("x/version", "3")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(ModelError, match=r"x\.pth: (calls __builtin__ bytearray|not a plain state dict)"):
        opened(file)


def test_a_pickle_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("kd.networks.weights.MOST_PICKLED", 50)
    torch.save(layer(1).state_dict(), tmp_path / "x.pth")
    with pytest.raises(ModelError, match="names more than weights do"):
        opened(tmp_path / "x.pth")


def test_a_mismatch_is_found_without_reading_values(tmp_path, monkeypatch):
    """The file is sparse and claims 64 GB: reading it would exhaust the memory."""
    size, file = 2**36, tmp_path / "huge.safetensors"
    header = json.dumps({"weight": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    with file.open("wb") as out:
        out.write(len(header).to_bytes(8, "little") + header)
        out.truncate(8 + len(header) + size)
    monkeypatch.setattr("kd.networks.weights.load_file", lambda path: pytest.fail("values were read"))
    weights = opened(file)
    with pytest.raises(ModelError, match="do not match"):
        fill(layer(1), weights, {key: key for key in weights.shapes}, "x")
    file.unlink()
