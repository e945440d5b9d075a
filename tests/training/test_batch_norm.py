"""Measured batch-norm statistics are means over the first training batches; nothing else changes."""

import torch
from torch import nn
from toy import CPU, hand_made, loader, moved, same, state

from kd.training.batch_norm import measure_batch_norm


def statistics(network) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.named_buffers() if "running" in name}


def test_measured_statistics_are_means_over_batches():
    network = hand_made(drop=0.0)
    measure_batch_norm(network, loader(), CPU, seed=0)
    means, variances = [], []
    with torch.no_grad():
        for batch in loader().epoch(0):
            maps = network.body.encoder.stem.conv((batch.images - network.mean) / network.std)
            means.append(maps.mean(dim=(0, 2, 3)))
            variances.append(maps.transpose(0, 1).flatten(1).var(dim=1))
    norm = network.body.encoder.stem.norm
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0), rtol=1e-4, atol=1e-5)


def test_measuring_batch_norm_changes_only_statistics():
    network = hand_made()
    before, momenta = state(network), [m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    measure_batch_norm(network, loader(), CPU, seed=0)
    assert moved(before, network) == {name for name in before if "running" in name or "num_batches" in name}
    assert [m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)] == momenta
    assert all(parameter.grad is None for parameter in network.parameters())


def test_measuring_batch_norm_depends_only_on_the_seed():
    networks = [hand_made() for _ in range(4)]
    for network, drawn, seed in zip(networks, (0, 5, 5, 0), (0, 0, 0, 1), strict=True):
        torch.manual_seed(drawn)
        measure_batch_norm(network, loader(), CPU, seed)
    assert same(networks[0], networks[1])
    assert same(networks[1], networks[2])
    assert not same(networks[0], networks[3])  # dropout


def test_measuring_batch_norm_resets_old_statistics_and_unfreezes_all_blocks():
    fresh, used = hand_made(), hand_made()
    used.unfreeze(1)
    for name, value in used.named_buffers():
        if "running" in name:
            value.fill_(3.0)
    for network in (fresh, used):
        measure_batch_norm(network, loader(), CPU, seed=0)
    assert same(fresh, used)


def test_measuring_batch_norm_uses_the_given_number_of_batches():
    one, all_three, more = hand_made(), hand_made(), hand_made()
    measure_batch_norm(one, loader(), CPU, 0, batches=1)
    measure_batch_norm(all_three, loader(), CPU, 0, batches=3)
    measure_batch_norm(more, loader(), CPU, 0, batches=50)
    assert one.body.encoder.stem.norm.num_batches_tracked == 1
    assert same(all_three, more)
    assert not same(one, all_three)


def test_a_frozen_random_encoder_outputs_normalised_features():
    """The purpose of measuring: in eval mode, activations after a batch norm have about mean 0 and variance 1."""
    network = hand_made(drop=0.0)
    measure_batch_norm(network, loader(batch_size=6), CPU, 0)
    network.unfreeze(0)
    images = next(loader(batch_size=6).epoch(0)).images
    maps = []
    network.body.encoder.deep.norm.register_forward_hook(lambda module, inputs, output: maps.append(output))
    network(images)
    torch.testing.assert_close(maps[0].mean(dim=(0, 2, 3)), torch.zeros(8), rtol=0, atol=0.01)
    torch.testing.assert_close(maps[0].var(dim=(0, 2, 3)), torch.ones(8), rtol=0.01, atol=0)
