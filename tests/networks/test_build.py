"""Laws of building, saving and loading networks. Every refusal is one line, and nothing from a file is executed."""

import json
import os
import pickle
import socket

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kd.errors import ModelError
from kd.networks import build
from kd.networks.network import IMAGENET_MEAN, IMAGENET_STD, Network
from kd.settings import NetworkSettings

BINARY, FORMS = ("background", "foreground"), ("background", "star", "ring")
SMALL, RESNET = "tu-mobilenetv3_small_050", "resnet18"


def built(encoder=SMALL, arch="unet", weights=None, seed=0, names=BINARY, key="backbone.student"):
    torch.manual_seed(seed)
    classes = 1 if names == BINARY else len(names)
    return build.build(NetworkSettings(arch=arch, encoder=encoder, weights=weights), classes, names, key)


def pictures():
    return torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def answers(network):
    return network.eval()(pictures())


def same_state(one: nn.Module, other: nn.Module) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def a_few_steps(network):
    """Move weights and batch-norm statistics away from where they began."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    for _ in range(3):
        network(pictures()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return network


def refusal(call, *args, **kwargs) -> str:
    """The message of the ModelError that a call ends in, which is one line."""
    with pytest.raises(ModelError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def trained():
    return a_few_steps(built())


# building


@pytest.mark.parametrize("encoder", [SMALL, RESNET])
def test_building_is_deterministic_in_torchs_seed(encoder):
    assert same_state(built(encoder, seed=3), built(encoder, seed=3))
    assert not same_state(built(encoder, seed=3), built(encoder, seed=4))


def test_a_network_is_what_smp_builds():
    ours = built(RESNET, names=FORMS)
    theirs = smp.Unet(RESNET, encoder_weights=None, classes=3)
    assert {n: v.shape for n, v in ours.body.state_dict().items()} == {
        n: v.shape for n, v in theirs.state_dict().items()
    }
    theirs.load_state_dict(ours.body.state_dict())
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        expected = theirs.eval()((pictures() / 255 - mean) / std)
    torch.testing.assert_close(answers(ours), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("names", "channels"), [(BINARY, 1), (FORMS, 3), (("a", "b"), 2)])
def test_there_is_one_logit_per_class_and_one_for_binary(names, channels):
    network = built(names=names)
    assert answers(network).shape == (2, channels, 32, 32)
    assert (network.classes, network.class_names) == (channels, names)


def test_architectures_are_smps_and_their_case_does_not_matter():
    assert set(build.ARCHITECTURES.values()) <= set(dir(smp))
    assert same_state(built(arch="unet"), built(arch="Unet"))


@pytest.mark.parametrize("arch", sorted(build.ARCHITECTURES))
def test_every_architecture_is_built_saved_and_loaded(arch, tmp_path):
    network = built(arch=arch, names=FORMS)
    network.unfreeze(0)
    assert not any(parameter.requires_grad for parameter in network.body.encoder.parameters())
    saved.save(network, tmp_path / "student.safetensors")
    loaded = saved.load_file(tmp_path / "student.safetensors")
    (tmp_path / "student.safetensors").unlink()  # pytest keeps folders, and these are large
    assert same_state(loaded, network)


def test_a_random_network_forgets_old_statistics_as_fast_as_torchs_default():
    norms = [m for m in built("efficientnet-b0").modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert {norm.momentum for norm in norms} == {nn.BatchNorm2d(1).momentum}


def test_an_unknown_architecture_is_named_with_the_nearest():
    message = refusal(build, arch="unett", key="backbone.teacher")
    assert message == "backbone.teacher.arch=unett is not an architecture; did you mean 'unet'?"


@pytest.mark.parametrize(
    ("encoder", "nearest"),
    [
        ("resnet81", "resnet18"),
        ("eficientnet-b0", "efficientnet-b0"),
        ("ResNet18", "resnet18"),
        ("tu-resnet81", "tu-resnet18"),
        ("tu-mobilenetv3_smal_050", SMALL),
    ],
)
def test_an_unknown_encoder_is_named_with_the_nearest(encoder, nearest):
    message = refusal(build, encoder)
    assert message.startswith(f"backbone.student.encoder={encoder} is not an encoder")
    assert f"did you mean '{nearest}'?" in message


def test_a_pair_that_smp_refuses_is_one_line():
    message = refusal(build, "mit_b0", "unetplusplus")
    assert "unetplusplus" in message
    assert "mit_b0" in message


def test_a_pair_that_smp_refuses_is_not_blamed_on_the_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "could not be fetched" not in refusal(build, "mit_b0", "unetplusplus", weights="imagenet")


@pytest.mark.parametrize("encoder", [RESNET, SMALL, "mit_b0"])
def test_blocks_are_counted_as_they_are(encoder):
    assert build.count_blocks(NetworkSettings(arch="unet", encoder=encoder)) == len(built(encoder).partition.blocks)


def test_counting_blocks_of_an_unknown_encoder_is_refused():
    assert "did you mean 'resnet18'?" in refusal(build.count_blocks, NetworkSettings(arch="unet", encoder="resnet81"))


# saving and loading


@pytest.mark.parametrize(("encoder", "names"), [(SMALL, BINARY), (SMALL, FORMS), ("efficientnet-b0", BINARY)])
def test_a_loaded_network_answers_bit_for_bit_as_the_saved_one(encoder, names, tmp_path):
    network = built(encoder, names=names)
    saved.save(network, tmp_path / "student.safetensors")
    loaded = saved.load_file(tmp_path / "student.safetensors")
    assert torch.equal(answers(loaded), answers(network))
    assert (loaded.classes, loaded.class_names) == (network.classes, network.class_names)
    assert (loaded.settings.arch, loaded.settings.encoder) == ("unet", encoder)


def test_what_training_changed_is_saved_statistics_included(trained, tmp_path):
    saved.save(trained, tmp_path / "student.safetensors")
    loaded = saved.load_file(tmp_path / "student.safetensors")
    assert same_state(loaded, trained)
    assert torch.equal(answers(loaded), answers(trained))
    assert not torch.equal(answers(loaded), answers(built()))


def test_memory_layout_and_closed_blocks_do_not_matter_to_the_file(trained, tmp_path):
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
def test_any_normalisation_survives_saving_bit_for_bit(mean, std, trained, tmp_path):
    network = Network(trained.settings, trained.body, 1, BINARY, mean, std)
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


def test_saving_over_a_network_replaces_it_whole(trained, tmp_path):
    saved.save(built(names=FORMS), tmp_path / "student.safetensors")
    saved.save(trained, tmp_path / "student.safetensors")
    assert same_state(saved.load_file(tmp_path / "student.safetensors"), trained)


def test_loading_looks_for_no_pretrained_weights(trained, tmp_path, monkeypatch):
    """A student that began with ImageNet weights is its own file: no socket is opened to load it."""
    settings = NetworkSettings(arch="unet", encoder=SMALL, weights="imagenet")
    saved.save(Network(settings, trained.body, 1, BINARY), tmp_path / "student.safetensors")

    def refuse(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert same_state(saved.load_file(tmp_path / "student.safetensors"), trained)


# what cannot be loaded


@pytest.fixture
def saved(trained, tmp_path):
    saved.save(trained, tmp_path / "student.safetensors")
    return tmp_path / "student.safetensors"


@pytest.mark.parametrize("kept", [0, 4, 100, 10_000, -1])
def test_a_cut_off_file_of_weights_is_refused(saved, kept):
    saved.write_bytes(saved.read_bytes()[:kept])
    assert refusal(saved.load_file, saved).startswith(f"{saved}: ")


def test_a_file_of_something_else_is_refused(saved):
    saved.write_bytes(b"\x89PNG\r\n\x1a\n" * 100)
    assert str(saved) in refusal(saved.load_file, saved)


def test_missing_weights_are_named(saved):
    saved.unlink()
    assert refusal(saved.load_file, saved) == f"{saved}: no such file of weights"


def test_a_missing_description_is_named(saved):
    saved.with_suffix(".json").unlink()
    assert f"{saved.with_suffix('.json')} is missing" in refusal(saved.load_file, saved)


@pytest.mark.parametrize(
    "change",
    [{"encoder": RESNET}, {"arch": "fpn"}, {"classes": 3, "class_names": ["a", "b", "c"]}, {"arch": "Linknet"}],
)
def test_a_description_of_another_network_is_refused(saved, change):
    file = saved.with_suffix(".json")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    message = refusal(saved.load_file, saved)
    assert message.startswith(f"{saved}: the weights do not fit the network")


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
def test_a_description_names_only_what_the_libraries_list(saved, change):
    """Invariant 12: no other name is looked up anywhere, on disk or on the network."""
    file = saved.with_suffix(".json")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refusal(saved.load_file, saved)


# weights from a file


OLD = {"_use_new_zipfile_serialization": False}  # torch's format before 1.6


@pytest.fixture(scope="module")
def donor():
    """An smp network whose encoder has been somewhere."""
    torch.manual_seed(9)
    model = smp.create_model("fpn", SMALL, encoder_weights=None, classes=4)
    with torch.no_grad():
        for tensor in model.encoder.state_dict().values():
            if tensor.is_floating_point():
                tensor += torch.rand_like(tensor)
    return model


def ours(donor):
    network = built(names=FORMS)
    network.body.encoder.load_state_dict(donor.encoder.state_dict())
    return network


@pytest.mark.parametrize(
    ("file", "write"),
    [
        ("encoder.pt", lambda donor, path: torch.save(donor.encoder.state_dict(), path)),
        ("encoder.pth", lambda donor, path: torch.save(donor.encoder.state_dict(), path, **OLD)),
        ("encoder.safetensors", lambda donor, path: save_file(donor.encoder.state_dict(), path)),
        ("ours.safetensors", lambda donor, path: saved.save(ours(donor), path)),
        ("smp.pt", lambda donor, path: torch.save(donor.state_dict(), path)),
        ("smp.safetensors", lambda donor, path: save_file(donor.state_dict(), path)),
    ],
)  # fmt: skip
def test_an_encoder_starts_from_a_file(file, write, donor, tmp_path):
    write(donor, tmp_path / file)
    network = built(weights=str(tmp_path / file))
    assert same_state(network.body.encoder, donor.encoder)
    fresh = built()
    assert torch.equal(network.body.segmentation_head[0].weight, fresh.body.segmentation_head[0].weight)


def test_a_file_in_the_working_directory_is_a_file(donor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(donor.encoder.state_dict(), "mine.pt")
    assert same_state(built(weights="mine.pt").body.encoder, donor.encoder)


def test_weights_of_another_encoder_are_refused(donor, tmp_path):
    save_file(donor.encoder.state_dict(), tmp_path / "encoder.safetensors")
    message = refusal(build, RESNET, weights=str(tmp_path / "encoder.safetensors"))
    assert message.startswith(f"backbone.student.weights={tmp_path / 'encoder.safetensors'}: ")
    assert "do not fit" in message


@pytest.mark.parametrize("what", [[1, 2], {"model": {"a": torch.zeros(1)}}, {"epoch": 3}, torch.zeros(3), {}])
def test_a_file_without_tensors_by_name_is_refused(what, tmp_path):
    torch.save(what, tmp_path / "odd.pt")
    assert str(tmp_path / "odd.pt") in refusal(build, weights=str(tmp_path / "odd.pt"))


def test_a_missing_file_of_weights_is_named(tmp_path):
    assert refusal(build, weights=str(tmp_path / "none.pt")) == f"{tmp_path / 'none.pt'}: no such file of weights"


class Trap:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark) -> None:
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def pickled(trap, path):
    path.write_bytes(pickle.dumps({"conv.weight": trap}, protocol=2))


def zipped(trap, path):
    torch.save({"conv.weight": trap}, path)


@pytest.mark.parametrize("write", [pickled, zipped])
@pytest.mark.parametrize("suffix", [".pt", ".pkl", ".safetensors", ".bin"])
def test_a_file_of_weights_is_never_executed(write, suffix, tmp_path):
    """Invariant 12."""
    file, mark = tmp_path / f"weights{suffix}", tmp_path / "mark"
    write(Trap(mark), file)
    assert str(file) in refusal(build, weights=str(file))
    assert not mark.exists()
    pickle.loads(pickle.dumps(Trap(mark)))
    assert mark.exists()  # the trap is one


def test_a_saved_network_is_never_executed(saved, tmp_path):
    """Invariant 12."""
    zipped(Trap(tmp_path / "mark"), saved)
    refusal(saved.load_file, saved)
    assert not (tmp_path / "mark").exists()


# weights from the hub


@pytest.mark.parametrize("encoder", [RESNET, SMALL])
def test_pretrained_weights_without_a_network_are_advised_on(encoder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refusal(build, encoder, weights="imagenet")
    assert message.startswith(f"backbone.student.weights=imagenet: the weights of {encoder} could not be fetched")
    assert "set backbone.student.weights=null" in message


def test_pretrained_weights_that_do_not_exist_are_told_from_those_out_of_reach():
    message = refusal(build, RESNET, weights="imaginet", key="backbone.teacher")
    assert message.startswith("backbone.teacher.weights=imaginet: ")
    assert "'imagenet'" in message


def test_weights_named_for_a_tu_encoder_are_those_it_has():
    """timm would take any name for its default; a mistyped one is refused, as it is for smp's own encoders."""
    assert timm.is_model("resnet18")
    message = refusal(build, "tu-resnet18", weights="imaginet")
    assert "could not be fetched" not in message
    assert "imagenet" in message
