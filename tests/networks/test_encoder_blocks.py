"""Laws of `EncoderBlocks` in a plain training loop; test_network has those of a `Network`."""

import copy

import pytest
import torch
from torch import nn
from toy import BLOCKS, Body

from kd.networks.encoder_blocks import EncoderBlocks


@pytest.fixture
def body():
    torch.manual_seed(0)
    return Body(norm=True, drop=0.5)


def training(encoder: nn.Module) -> dict[str, bool]:
    """Whether all modules of each block are in train mode."""
    return {name: all(module.training for module in encoder.get_submodule(name).modules()) for name in BLOCKS}


def batch():
    return torch.randn(4, 3, 32, 32)


def test_blocks_are_listed_deepest_first_and_initially_unfrozen(body):
    blocks = EncoderBlocks(body.encoder)
    assert [name for block in blocks for name in block.modules] == list(BLOCKS)
    assert blocks.unfrozen == len(blocks) == 3
    assert all(p.requires_grad for depth in range(3) for p in blocks.parameters(depth))
    assert not any(p.requires_grad for p in body.encoder.spare.parameters())


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_frozen_block_stays_frozen_through_train(body, count):
    blocks = EncoderBlocks(body.encoder)
    blocks.unfreeze(count)
    expected = {name: depth < count for depth, name in enumerate(BLOCKS)}
    for _ in range(2):
        body.train()
        body(batch())
        assert training(body.encoder) == expected
        assert body.decoder.training
        body.eval()
        body(batch())
        assert not any(module.training for module in body.modules())


def test_without_a_hook_train_changes_modes_until_settle(body):
    blocks = EncoderBlocks(body.encoder, watch=False)
    blocks.unfreeze(0)
    body.train()
    body(batch())
    assert all(training(body.encoder).values())
    blocks.settle()
    assert not any(training(body.encoder).values())


def test_steps_change_exactly_the_unfrozen_blocks(body):
    blocks = EncoderBlocks(body.encoder)
    optimizer = torch.optim.AdamW(blocks.groups(body), lr=1e-2, weight_decay=0.1)
    blocks.unfreeze(1)
    before = copy.deepcopy(body.state_dict())
    body.train()
    body(batch()).square().mean().backward()
    optimizer.step()
    moved = {name for name, value in body.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert {name.split(".")[1] for name in moved if name.startswith("encoder.")} == {"deep"}
    assert {name for name, _ in body.named_parameters() if not name.startswith("encoder.")} <= moved


def test_groups_are_the_decoder_and_each_block_once(body):
    blocks = EncoderBlocks(body.encoder)
    groups = [[id(parameter) for parameter in group["params"]] for group in blocks.groups(body)]
    named = {id(parameter): name for name, parameter in body.named_parameters()}
    roots = [{named[each].removeprefix("encoder.").split(".")[0] for each in group} for group in groups]
    assert roots == [{"decoder", "head"}, {"deep"}, {"middle"}, {"stem"}]
    assert sum(map(len, groups)) == len(named) - len(list(body.encoder.spare.parameters()))


def test_freezing_removes_gradients(body):
    blocks = EncoderBlocks(body.encoder)
    body(batch()).square().mean().backward()
    blocks.unfreeze(1)
    assert all(p.grad is not None for p in blocks.parameters(0))
    assert all(p.grad is None for depth in (1, 2) for p in blocks.parameters(depth))


def test_a_second_instance_replaces_the_hook_of_the_first(body):
    """A notebook cell run again: otherwise the first instance would keep its frozen blocks in eval mode forever."""
    first = EncoderBlocks(body.encoder)
    first.unfreeze(0)
    second = EncoderBlocks(body.encoder)
    body.train()
    body(batch())
    assert all(training(body.encoder).values())
    assert second.unfrozen == 3


def test_a_copy_has_its_own_hook(body):
    blocks = EncoderBlocks(body.encoder)
    blocks.unfreeze(1)
    twin = copy.deepcopy(body)
    blocks.unfreeze(3)
    for each, expected in ((twin, [True, False, False]), (body, [True] * 3)):
        each.train()
        each(batch())
        assert list(training(each.encoder).values()) == expected


@pytest.mark.parametrize("count", [-1, 4])
def test_an_impossible_number_of_blocks_is_refused(body, count):
    with pytest.raises(ValueError, match=f"0 to 3, but got {count}"):
        EncoderBlocks(body.encoder).unfreeze(count)
