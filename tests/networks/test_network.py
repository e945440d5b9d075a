"""Laws of `Network`: its own normalisation, and frozen blocks that stay frozen. Reference: smp, and plain names.

The real encoders are small ones of three families; the hand-made one has what they lack: dropout in a block, a
layer that never runs with a batch norm in it, and batch norms at every depth.
"""

import copy
from contextlib import suppress

import pytest
import torch
from torch import nn

from kd.networks import build
from kd.networks.network import IMAGENET_MEAN, IMAGENET_STD, Network, eval_mode
from kd.settings import NetworkSettings

NAMES = ("background", "foreground")
RESNET18 = [["layer4"], ["layer3"], ["layer2"], ["layer1"], ["conv1", "bn1"]]  # deepest first, by torchvision's names


class Stage(nn.Module):
    """Half the resolution; dropout so that two calls in train mode differ."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.norm, self.drop = nn.BatchNorm2d(outputs), nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.norm(self.conv(x)).relu())


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.deep = Stage(3, 4), Stage(4, 6), Stage(6, 8)
        self.spare = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))  # as EfficientNet's _conv_head and _bn1

    def forward(self, x):
        features = [x]
        for stage in (self.stem, self.middle, self.deep):
            features.append(stage(features[-1]))
        return features


class Body(nn.Module):
    """Encoder, decoder and head like smp's models; the decoder uses the two deepest features."""

    def __init__(self, classes: int = 1) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder, self.norm = nn.Conv2d(14, 8, 1), nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, x):
        features = self.encoder(x)
        up = nn.functional.interpolate(features[3], scale_factor=2)
        hidden = self.norm(self.decoder(torch.cat([up, features[2]], 1))).relu()
        return nn.functional.interpolate(self.head(hidden), scale_factor=4)


def hand_made() -> Network:
    torch.manual_seed(0)
    return Network(NetworkSettings(arch="unet", encoder="hand-made"), Body(), 1, NAMES)


@pytest.fixture(scope="module", params=["hand-made", "resnet18", "tu-mobilenetv3_small_050", "efficientnet-b0"])
def built(request):
    if request.param == "hand-made":
        return hand_made()
    torch.manual_seed(0)
    return build.build(NetworkSettings(arch="unet", encoder=request.param), 1, NAMES, "backbone.student")


@pytest.fixture
def network(built):
    """A network in train mode with every block unfrozen."""
    built.zero_grad(set_to_none=True)
    built.unfreeze(len(built.partition.blocks))
    return built.train()


def pictures(count=2, side=32, seed=0):
    return torch.randint(
        0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def decoder_parameters(network: Network) -> list[nn.Parameter]:
    return network.blocks.groups(network)[0]["params"]


def trainable(network: Network, count: int) -> dict[str, bool]:
    """For each encoder parameter, whether `unfreeze(count)` should make it trainable."""
    unfrozen = {name for block in network.partition.blocks[:count] for name in block.parameters}
    return {name: name in unfrozen for name, _ in network.body.encoder.named_parameters()}


def modules_of(network: Network, block) -> list[nn.Module]:
    return [m for path in block.modules for m in network.body.encoder.get_submodule(path).modules()]


def statistics(network: Network) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.body.encoder.named_buffers()}


def backward(network: Network) -> None:
    network(pictures()).square().mean().backward()


# normalisation


def test_a_network_is_its_normalisation_then_its_body(network):
    network.eval()
    x = pictures()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        torch.testing.assert_close(network(x), network.body((x / 255 - mean) / std), rtol=1e-4, atol=1e-5)


def test_the_dtype_of_images_does_not_matter(network):
    network.eval()
    with torch.no_grad():
        assert torch.equal(network(pictures()), network(pictures().float()))
        assert torch.equal(network(pictures()), network(pictures().to(torch.int64)))


def test_each_network_applies_its_own_normalisation():
    """Invariant 9."""
    body = Body().eval()
    settings = NetworkSettings(arch="unet", encoder="hand-made")
    halves = Network(settings, body, 1, NAMES, ((0.5, 0.5, 0.5), (0.25, 0.5, 1.0))).eval()
    units = Network(settings, body, 1, NAMES, ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))).eval()
    x = pictures()
    normalised = (x / 255 - 0.5) / torch.tensor([0.25, 0.5, 1.0]).view(1, 3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(halves(x), units(normalised * 255), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(halves(x), units(x))


def test_the_normalisation_moves_with_the_network_and_is_not_saved():
    network = hand_made()
    assert network.to("meta").mean.device.type == "meta"
    assert all(name.startswith("body.") for name in hand_made().state_dict())


# which parameters


def test_every_parameter_is_in_the_decoder_or_one_block_or_never_runs(network):
    blocks = [network.blocks.parameters(depth) for depth in range(len(network.partition.blocks))]
    never = [network.body.encoder.get_parameter(name) for name in network.partition.never_run.parameters]
    parts = [decoder_parameters(network), *blocks, never]
    listed = [id(parameter) for part in parts for parameter in part]
    assert sorted(listed) == sorted(id(parameter) for parameter in network.parameters())
    assert sum(p.numel() for part in parts for p in part) == network.count_parameters()


def test_the_decoder_is_everything_outside_the_encoder(network):
    expected = {name for name, _ in network.named_parameters() if not name.startswith("body.encoder.")}
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert {names[id(parameter)] for parameter in decoder_parameters(network)} == expected


def test_exactly_the_deepest_blocks_and_the_decoder_train(network):
    for count in range(len(network.partition.blocks) + 1):
        network.unfreeze(count)
        expected = trainable(network, count)
        assert {name: p.requires_grad for name, p in network.body.encoder.named_parameters()} == expected
        assert all(parameter.requires_grad for parameter in decoder_parameters(network))
        assert network.unfrozen_blocks == count


def test_a_resnet_is_unfrozen_layer_by_layer_from_layer4():
    network = build.build(NetworkSettings(arch="unet", encoder="resnet18"), 1, NAMES, "backbone.student")
    for count in (5, 0, 1, 4, 2, 3):
        network.unfreeze(count)
        roots = tuple(f"{root}." for layer in RESNET18[:count] for root in layer)
        for name, parameter in network.body.encoder.named_parameters():
            assert parameter.requires_grad == name.startswith(roots), name


def test_modules_that_never_run_stay_frozen():
    network = build.build(NetworkSettings(arch="unet", encoder="efficientnet-b0"), 1, NAMES, "backbone.student")
    spare = [network.body.encoder.get_parameter(name) for name in network.partition.never_run.parameters]
    assert sum(parameter.numel() for parameter in spare) == 412_160
    for count in (0, 7, 3, 7):
        network.unfreeze(count)
        network.train()
        assert not any(parameter.requires_grad for parameter in spare)
        assert not any(module.training for module in modules_of(network, network.partition.never_run))


def test_a_new_network_is_unfrozen(network):
    fresh = hand_made()
    assert fresh.unfrozen_blocks == len(fresh.partition.blocks) == 3
    assert fresh.training


# invariant 4


def test_a_frozen_block_has_no_gradients_and_is_in_eval_mode(network):
    """Invariant 4: no gradient required, none stored, modules in eval mode."""
    backward(network)
    for count in reversed(range(len(network.partition.blocks))):
        network.unfreeze(count)
        for block in (*network.partition.blocks[count:], network.partition.never_run):
            frozen = [network.body.encoder.get_parameter(name) for name in block.parameters]
            assert all(not parameter.requires_grad and parameter.grad is None for parameter in frozen)
            assert not any(module.training for module in modules_of(network, block))
        for block in network.partition.blocks[:count]:
            assert all(p.grad is not None for p in (network.body.encoder.get_parameter(n) for n in block.parameters))
            assert all(module.training for module in modules_of(network, block))


def test_a_frozen_block_stays_frozen_through_train(network):
    """Invariant 4: `.train()` is called every epoch and after every evaluation."""
    network.unfreeze(1)
    expected = [(path, module.training) for path, module in network.named_modules()]
    assert not all(training for _, training in expected)
    for _ in range(3):
        network.train()
        assert [(path, module.training) for path, module in network.named_modules()] == expected
        network.eval()
        assert not any(module.training for module in network.modules())
        network.train(True)
        assert [(path, module.training) for path, module in network.named_modules()] == expected


def test_every_module_with_a_mode_in_a_frozen_encoder_is_in_eval_mode(network):
    """Invariant 4: for all modules that depend on the mode, found by type rather than by the partition."""
    network.unfreeze(0)
    network.train()
    switches = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    found = [m for m in network.body.encoder.modules() if isinstance(m, switches) or "Drop" in type(m).__name__]
    assert found
    assert not any(module.training for module in found)
    in_decoder = [m for name, m in network.named_modules() if isinstance(m, switches) and ".encoder." not in name]
    assert all(module.training for module in in_decoder)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_the_previous_one_even_after_an_error(network, training):
    network.train(training)
    with suppress(MemoryError), eval_mode(network):
        assert not network.training
        raise MemoryError
    assert network.training is training


def test_unfreezing_in_eval_mode_keeps_eval_mode(network):
    network.eval()
    network.unfreeze(1)
    assert not any(module.training for module in network.modules())
    network.unfreeze(len(network.partition.blocks))
    assert not any(module.training for module in network.modules())


def test_only_unfrozen_blocks_update_their_statistics(network):
    """Invariant 4: the batch-norm statistics."""
    deepest = tuple(f"{path}." for path in network.partition.blocks[0].modules)
    network.unfreeze(1)
    before = statistics(network)
    with torch.no_grad():
        network(pictures())
    moved = {name for name, value in network.body.encoder.named_buffers() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith(deepest)}
    assert moved


def test_a_frozen_encoder_is_deterministic():
    """Invariant 4: including the dropout of the hand-made encoder."""
    network = hand_made()
    x = pictures().float()
    assert not torch.equal(network.body.encoder(x)[3], network.body.encoder(x)[3])
    network.unfreeze(0)
    assert torch.equal(network.body.encoder(x)[3], network.body.encoder(x)[3])


def test_freezing_again_removes_gradients(network):
    backward(network)
    network.unfreeze(0)
    assert all(parameter.grad is None for parameter in network.body.encoder.parameters())
    assert all(parameter.grad is not None for parameter in decoder_parameters(network))


def test_unfreezing_more_keeps_existing_gradients(network):
    network.unfreeze(1)
    backward(network)
    before = [parameter.grad.clone() for parameter in network.blocks.parameters(0)]
    network.unfreeze(2)
    assert all(torch.equal(p.grad, g) for p, g in zip(network.blocks.parameters(0), before, strict=True))
    assert all(parameter.grad is None for parameter in network.blocks.parameters(1))


def test_a_frozen_encoder_builds_no_graph(network):
    """Frozen parts need no backward pass: their outputs are not in the graph."""
    features = []
    hook = network.body.encoder.register_forward_hook(lambda module, inputs, output: features.extend(output))
    network.unfreeze(0)
    network(pictures())
    assert features
    assert not any(feature.requires_grad for feature in features)
    features.clear()
    network.unfreeze(1)
    network(pictures())
    hook.remove()
    assert features[-1].requires_grad
    assert not any(feature.requires_grad for feature in features[:-1])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_gradients_of_unfrozen_blocks_do_not_depend_on_frozen_ones(count):
    """In eval mode, freezing the upper blocks changes no gradient below them."""
    network = hand_made().eval()
    backward(network)
    everything = {
        name: parameter.grad.clone() for name, parameter in network.named_parameters() if parameter.grad is not None
    }
    network.zero_grad(set_to_none=True)
    network.unfreeze(count)
    backward(network)
    found = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert 0 < len(found) < len(everything)
    assert all(torch.equal(gradient, everything[name]) for name, gradient in found.items())


def test_a_copy_is_frozen_and_unfrozen_independently():
    network = hand_made()
    twin = copy.deepcopy(network)
    twin.unfreeze(0)
    assert all(p.requires_grad == trainable(network, 3)[name] for name, p in network.body.encoder.named_parameters())
    assert not any(parameter.requires_grad for parameter in twin.body.encoder.parameters())
