"""Reading a file returns what was written, or an error."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from kd.system import tensor_file

TENSORS = {"labels": torch.arange(12, dtype=torch.uint8).view(3, 2, 2), "scale": torch.tensor([0.5, float("nan")])}
FACTS = {"figures": {"val/miou": 0.5, "loss": None}, "names": ["a", "ü"]}
DTYPES = [torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.bool]


def same(one, other):
    def raw(tensor):
        return tensor.dtype, tensor.shape, tensor.contiguous().view(-1).view(torch.uint8).tolist()

    return {name: raw(tensor) for name, tensor in one.items()} == {name: raw(tensor) for name, tensor in other.items()}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("sealed") / "s.safetensors"


@pytest.fixture(scope="module")
def whole(file):
    """The bytes of an intact file."""
    tensor_file.write(file, TENSORS, FACTS)
    return file.read_bytes()


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text("abc.", min_size=1), st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3))
    ),
    st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()),
)
def test_what_was_written_is_read(file, shapes, facts):
    tensors = {name: torch.randint(0, 2, shape).to(dtype) for name, (dtype, shape) in shapes.items()}
    tensor_file.write(file, tensors, facts)
    read, told = tensor_file.read(file)
    assert same(read, tensors)
    assert told == tensor_file.facts(file) == facts


def test_a_tensor_in_another_memory_layout_keeps_its_values(file):
    turned = torch.arange(6.0).view(2, 3).T
    tensor_file.write(file, {"turned": turned}, {})
    assert torch.equal(tensor_file.read(file)[0]["turned"], turned)


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 10**9), mask=st.integers(1, 255))
def test_a_flipped_byte_is_detected_or_changes_nothing(file, whole, place, mask):
    place %= len(whole)
    file.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
    try:
        tensors, facts = tensor_file.read(file)
    except tensor_file.DAMAGES:
        return
    assert same(tensors, TENSORS)
    assert facts == FACTS


@settings(max_examples=50, deadline=None)
@given(length=st.integers(0, 10**9))
def test_a_truncated_file_is_detected(file, whole, length):
    file.write_bytes(whole[: length % len(whole)])
    for look in (tensor_file.read, tensor_file.facts):
        with pytest.raises(tensor_file.DAMAGES):
            look(file)


@pytest.mark.parametrize("change", ["facts", "tensor"])
def test_a_wrong_digest_in_a_valid_file_is_detected(change, file, whole):
    """The file is valid for safetensors."""
    file.write_bytes(whole)
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    tensors = {**TENSORS, "labels": TENSORS["labels"] + (change == "tensor")}
    save_file(tensors, file, header | ({"facts": json.dumps({"figures": {}})} if change == "facts" else {}))
    with pytest.raises(ValueError, match="its digest does not match its content"):
        tensor_file.read(file)


@pytest.mark.parametrize(
    "metadata", [None, {"format": "pt"}, {"format": tensor_file.FORMAT}, {"format": "0", "facts": "{}"}]
)
def test_another_kind_of_file_is_refused(metadata, file):
    save_file(TENSORS, file, metadata)
    with pytest.raises(tensor_file.DAMAGES):
        tensor_file.read(file)
    file.write_bytes(b"anything")
    with pytest.raises(tensor_file.DAMAGES):
        tensor_file.read(file)
    file.unlink()
    with pytest.raises(tensor_file.DAMAGES):
        tensor_file.read(file)
