"""Every process has the same network, bit for bit, wrapped again when blocks are unfrozen."""

import gc
import weakref

import pytest
import together
import torch
from toy import BLOCKS, hand_made

from kd.errors import RunError
from kd.networks.precision import compiled
from kd.training.replica import Replica, digest


@pytest.mark.parametrize("name", ["body.head.weight", "body.encoder.deep.norm.running_mean", "body.encoder.spare.bias"])
def test_the_smallest_change_of_any_saved_value_changes_the_digest(name):
    one, other = hand_made(), hand_made()
    assert digest(one) == digest(other)
    value = other.state_dict()[name].flatten()[:1]
    value.copy_(torch.nextafter(value, torch.tensor(torch.inf)))
    assert digest(one) != digest(other)


def test_a_single_process_uses_the_network_itself():
    network, images = hand_made(drop=0.0), torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    replica = Replica(network)
    replica.wrap()
    replica.compare(epoch=0)
    assert torch.equal(replica(images)[0], network(images))


def openings(world):
    """The gradients after each unfreezing, and which wrappers are still alive."""
    network = hand_made(drop=0.0)
    replica, found, wrappers = Replica(network, world, 4), [], []
    for opened in (0, 1, 1, 3):
        network.unfreeze(opened)
        network.train()
        replica.wrap()
        wrappers.append(weakref.ref(replica._wrapped))
        images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(world.rank))
        replica(images.to(torch.uint8))[0].square().sum().backward()
        gradients = {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}
        found.append(gradients)
        network.zero_grad()
    gc.collect()
    alive = [wrapper() for wrapper in wrappers]
    return found, [each is not None for each in alive], alive[-1] is replica._wrapped


@pytest.fixture(scope="module")
def opened():
    return together.run(openings)


def test_gradients_are_the_same_in_every_process_whatever_was_unfrozen_since(opened):
    (one, *_), (other, *_) = opened
    for here, there in zip(one, other, strict=True):
        assert here.keys() == there.keys()
        assert all(torch.equal(here[name], there[name]) for name in here)
        assert any(value.abs().sum() > 0 for value in here.values())


def test_only_unfrozen_blocks_have_gradients(opened):
    for count, gradients in zip((0, 1, 1, 3), opened[0][0], strict=True):
        in_encoder = {name.split(".")[2] for name in gradients if name.startswith("body.encoder.")}
        assert in_encoder == set(BLOCKS[:count])


def test_no_wrapper_outlives_the_next(opened):
    """Its hooks would accumulate gradients a second time."""
    for _, alive, last_is_in_use in opened:
        assert alive == [False, False, False, True]
        assert last_is_in_use


def trained(world, backend):
    """Logits, and gradients, of a network whose batch norm counts all processes' samples."""
    torch.manual_seed(0)
    network = hand_made(drop=0.0)
    network.unfreeze(3)
    network.train()
    replica = Replica(compiled(network, backend) if backend else network, world, 4)
    replica.wrap()
    images = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(world.rank))
    logits = replica(images.to(torch.uint8))[0]
    logits.square().mean().backward()
    return logits.detach(), [value.grad for value in network.parameters() if value.grad is not None]


@pytest.mark.slow
def test_a_compiled_network_in_several_processes_computes_what_it_does_as_it_is():
    for (logits, gradients), (expected, slopes) in zip(
        together.run(trained, "inductor"), together.run(trained, None), strict=True
    ):
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        for one, other in zip(gradients, slopes, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def disagree(world, epoch):
    network = hand_made()
    if world.rank == 2:
        with torch.no_grad():
            network.body.head.bias.add_(1e-6)
    Replica(network, world, 4).compare(epoch)


def test_processes_that_hold_different_weights_are_named_with_the_epoch():
    for ended in together.outcomes(disagree, 7, size=3):
        assert isinstance(ended, RunError)
        assert "epoch 8: the weights of process 2 differ from those of process 0" in str(ended)
