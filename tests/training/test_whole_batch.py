"""What is drawn for a part of a batch is what is drawn for the whole of it, bit for bit."""

import pytest
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.encoders._efficientnet import drop_connect
from timm.layers import drop_path
from torch import nn

from kd.system.world import World
from kd.training.whole_batch import WholeBatch

CHANNELS_LAST = torch.channels_last
DRAWS = {
    "dropout": lambda x: F.dropout(x, 0.3),
    "dropout, in place": lambda x: F.dropout(x.clone(), 0.3, inplace=True),
    "a layer of dropout": lambda x: nn.Dropout(0.3)(x),
    "dropout of channels": lambda x: F.dropout2d(x, 0.5),
    "smp's stochastic depth": lambda x: drop_connect(x, 0.5, training=True),
    "timm's stochastic depth": lambda x: drop_path(x, 0.5, training=True),
    "noise of a list's shape": lambda x: x + torch.rand([x.shape[0], 1, 2, 3]),
    "noise of a shape": lambda x: x + torch.rand(x.shape[0], 4, 1, 1, dtype=x.dtype),
    "noise of a named shape": lambda x: x + torch.rand(size=(x.shape[0], 1, 1, 1)),
    "several in a row": lambda x: F.dropout(drop_path(F.dropout(x, 0.1), 0.5, training=True), 0.2),
}


def whole(layout=torch.contiguous_format):
    return torch.arange(7 * 4 * 2 * 3).view(7, 4, 2, 3).float().add(1).contiguous(memory_format=layout)


def shares(draw, batch, size):
    """What each of `size` processes makes of its rows, one after the other."""
    for rank in range(size):
        world = World(rank, size)
        torch.manual_seed(5)
        with WholeBatch(world, len(batch)):
            yield draw(batch[world.rows(len(batch))])


@pytest.mark.parametrize("layout", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_the_parts_of_all_processes_make_what_one_process_draws(draw, size, layout):
    batch = whole(layout)
    torch.manual_seed(5)
    expected = draw(batch)
    assert not torch.equal(expected, batch)
    assert torch.equal(torch.cat(list(shares(draw, batch, size))), expected)


def test_gradients_pass_where_values_do():
    batch = whole().requires_grad_()
    torch.manual_seed(5)
    with WholeBatch(World(1, 2), 7):
        kept = F.dropout(batch[3:], 0.5)
    kept.sum().backward()
    assert torch.equal(batch.grad[3:] * batch[3:], kept)
    assert not batch.grad[:3].any()


def test_what_is_not_drawn_for_samples_is_drawn_as_ever():
    def draw():
        torch.manual_seed(5)
        return torch.cat([torch.rand(3), torch.empty(2, 2).bernoulli_().flatten(), F.dropout(torch.ones(3), 0.5)])

    with WholeBatch(World(1, 2), 7):  # 4 rows of 7
        found = draw()
    assert torch.equal(found, draw())


def test_a_network_in_eval_mode_is_let_be():
    """Closed blocks normalise by their running statistics and draw nothing; no other process is asked."""
    network = nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.Dropout(0.5)).eval()
    with WholeBatch(World(1, 2), 7):
        found = network(whole()[3:])
    assert torch.equal(found, network(whole()[3:]))
