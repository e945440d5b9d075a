"""Saving and loading networks: nothing is lost, every refusal is one line, and nothing in a file is executed."""

import json
import socket

import pytest
import torch
from safetensors.torch import load_file
from traps import MARK, old_trap, trap

from kd.networks import build, saved
from kd.networks.network import Network
from kd.settings import IMAGENET_MEAN, IMAGENET_STD, NetworkSettings
from tests.networks.test_build import BINARY, FORMS, RESNET, SMALL, built, logits_of, pictures, refusal, same_state


def a_few_steps(network):
    """Change weights and batch-norm statistics from their initial values."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    for _ in range(3):
        network(pictures()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return network


@pytest.fixture(scope="module")
def trained():
    return a_few_steps(built())


# saving and loading


@pytest.mark.parametrize("arch", sorted(build.ARCHITECTURES))
def test_every_architecture_can_be_built_saved_and_loaded(arch, tmp_path):
    network = built(arch=arch, names=FORMS)
    network.unfreeze(0)
    assert not any(parameter.requires_grad for parameter in network.body.encoder.parameters())
    saved.save(network, tmp_path / "student.safetensors")
    loaded = saved.load_file(tmp_path / "student.safetensors")
    (tmp_path / "student.safetensors").unlink()  # pytest keeps folders, and these are large
    assert same_state(loaded, network)


@pytest.mark.parametrize(("encoder", "names"), [(SMALL, BINARY), (SMALL, FORMS), ("efficientnet-b0", BINARY)])
def test_a_loaded_network_gives_bit_identical_logits(encoder, names, tmp_path):
    network = built(encoder, names=names)
    saved.save(network, tmp_path / "student.safetensors")
    loaded = saved.load_file(tmp_path / "student.safetensors")
    assert torch.equal(logits_of(loaded), logits_of(network))
    assert (loaded.classes, loaded.class_names) == (network.classes, network.class_names)
    assert (loaded.settings.arch, loaded.settings.encoder) == ("unet", encoder)


def test_trained_weights_and_statistics_are_saved(trained, tmp_path):
    saved.save(trained, tmp_path / "student.safetensors")
    loaded = saved.load_file(tmp_path / "student.safetensors")
    assert same_state(loaded, trained)
    assert torch.equal(logits_of(loaded), logits_of(trained))
    assert not torch.equal(logits_of(loaded), logits_of(built()))


def test_memory_layout_and_frozen_blocks_do_not_change_the_file(trained, tmp_path):
    saved.save(trained, tmp_path / "plain.safetensors")
    trained.to(memory_format=torch.channels_last)
    trained.unfreeze(2)
    saved.save(trained, tmp_path / "other.safetensors")
    trained.to(memory_format=torch.contiguous_format)
    trained.unfreeze(6)
    assert (tmp_path / "plain.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (IMAGENET_MEAN, IMAGENET_STD),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),  # CLIP's
        ((1 / 3, 2 / 3, 0.1), (1 / 7, 1 / 255, 1.0)),
    ],
)
def test_any_normalisation_is_saved_bit_for_bit(mean, std, trained, tmp_path):
    network = Network(trained.settings, trained.body, 1, BINARY, (mean, std))
    saved.save(network, tmp_path / "student.safetensors")
    loaded = saved.load_file(tmp_path / "student.safetensors")
    assert torch.equal(loaded.mean, network.mean)
    assert torch.equal(loaded.std, network.std)


def test_a_saved_network_is_tensors_and_plain_strings(trained, tmp_path):
    """Invariant 12."""
    saved.save(trained, tmp_path / "student.safetensors", epoch=3, image_size=[32, 32])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student.json", "student.safetensors"]
    assert json.loads((tmp_path / "student.json").read_text()) == {
        "arch": "unet",
        "encoder": SMALL,
        "classes": 1,
        "class_names": ["background", "foreground"],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "epoch": 3,
        "image_size": [32, 32],
    }
    tensors = load_file(tmp_path / "student.safetensors")
    assert tensors.keys() == trained.state_dict().keys()


def test_saving_replaces_an_existing_network(trained, tmp_path):
    saved.save(built(names=FORMS), tmp_path / "student.safetensors")
    saved.save(trained, tmp_path / "student.safetensors")
    assert same_state(saved.load_file(tmp_path / "student.safetensors"), trained)


def test_loading_never_downloads_pretrained_weights(trained, tmp_path, monkeypatch):
    """A student initialised from ImageNet weights is loaded without opening a socket."""
    settings = NetworkSettings(arch="unet", encoder=SMALL, weights="imagenet")
    saved.save(Network(settings, trained.body, 1, BINARY), tmp_path / "student.safetensors")

    def refuse(*_):
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert same_state(saved.load_file(tmp_path / "student.safetensors"), trained)


# refused files


@pytest.fixture
def file(trained, tmp_path):
    saved.save(trained, tmp_path / "student.safetensors")
    return tmp_path / "student.safetensors"


@pytest.mark.parametrize("kept", [0, 4, 100, 10_000, -1])
def test_truncated_weights_are_refused(file, kept):
    file.write_bytes(file.read_bytes()[:kept])
    assert refusal(saved.load_file, file).startswith(f"{file}: ")


def test_another_kind_of_file_is_refused(file):
    file.write_bytes(b"\x89PNG\r\n\x1a\n" * 100)
    assert str(file) in refusal(saved.load_file, file)


def test_missing_weights_are_named(file):
    file.unlink()
    assert refusal(saved.load_file, file) == f"{file}: no such weights file"


def test_a_missing_description_is_named(file):
    file.with_suffix(".json").unlink()
    assert f"{file.with_suffix('.json')} is missing" in refusal(saved.load_file, file)


@pytest.mark.parametrize(
    "change",
    [{"encoder": RESNET}, {"arch": "fpn"}, {"classes": 3, "class_names": ["a", "b", "c"]}, {"arch": "Linknet"}],
)
def test_a_description_of_another_network_is_refused(file, change):
    spec = file.with_suffix(".json")
    spec.write_text(json.dumps(json.loads(spec.read_text()) | change))
    message = refusal(saved.load_file, file)
    assert message.startswith(f"{file}: the weights do not match the network")


@pytest.mark.parametrize(
    "change",
    [
        {"arch": "os.system"},
        {"arch": "torch.nn.Linear"},
        {"encoder": "builtins.print"},
        {"encoder": "tu-nothing"},
        {"encoder": "tu-hf-hub:nobody/nothing"},
        {"encoder": "tu-local-dir:/tmp"},
    ],
)
def test_a_description_may_only_name_what_the_libraries_list(file, change):
    """Invariant 12: other names are looked up neither on disk nor on the network."""
    spec = file.with_suffix(".json")
    spec.write_text(json.dumps(json.loads(spec.read_text()) | change))
    refusal(saved.load_file, file)


@pytest.mark.parametrize("write", [trap, old_trap])
def test_a_saved_network_is_never_executed(write, file, tmp_path):
    """Invariant 12."""
    write(file)
    refusal(saved.load_file, file)
    assert not (tmp_path / MARK).exists()


# facts and run folders


def test_the_facts_are_read_from_the_weights(trained, tmp_path):
    saved.save(trained, tmp_path / "student.safetensors", epoch=3, image_size=[32, 32])
    assert saved.saved_facts(tmp_path / "student.safetensors") == {"epoch": 3, "image_size": [32, 32]}


@pytest.mark.parametrize("content", [None, b"", b"no weights"])
def test_missing_or_damaged_weights_have_no_facts(content, tmp_path):
    if content is not None:
        (tmp_path / "student.safetensors").write_bytes(content)
    assert saved.saved_facts(tmp_path / "student.safetensors") == {}


def test_a_run_folder_loads_as_its_student_in_eval_mode(file, trained):
    loaded = saved.load(file.parent)
    assert not loaded.training
    assert same_state(loaded, trained)
