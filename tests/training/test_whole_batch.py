"""On a slice of a batch, random draws and batch normalisation are those of the whole batch.

References: the same draws on the whole batch, bit for bit; torch's batch_norm over all processes' inputs.
"""

from itertools import pairwise

import pytest
import together
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.encoders._efficientnet import drop_connect
from timm.layers import drop_path
from torch import distributed as dist
from torch import nn
from torch.nn.modules._functions import SyncBatchNorm

from kd.system.world import World
from kd.training.whole_batch import WholeBatch, _BatchNorm, batch_norm

# random draws

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
    """The result of each of `size` processes on its rows, one after the other."""
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


def test_gradients_pass_where_dropout_keeps_values():
    batch = whole().requires_grad_()
    torch.manual_seed(5)
    with WholeBatch(World(1, 2), 7):
        kept = F.dropout(batch[3:], 0.5)
    kept.sum().backward()
    assert torch.equal(batch.grad[3:] * batch[3:], kept)
    assert not batch.grad[:3].any()


def test_draws_that_are_not_per_sample_are_unchanged():
    def draw():
        torch.manual_seed(5)
        return torch.cat([torch.rand(3), torch.empty(2, 2).bernoulli_().flatten(), F.dropout(torch.ones(3), 0.5)])

    with WholeBatch(World(1, 2), 7):  # 4 rows of 7
        found = draw()
    assert torch.equal(found, draw())


def test_a_network_in_eval_mode_is_unaffected():
    """Frozen blocks normalise by their running statistics and draw nothing, without communication."""
    network = nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.Dropout(0.5)).eval()
    with WholeBatch(World(1, 2), 7):
        found = network(whole()[3:])
    assert torch.equal(found, network(whole()[3:]))


# batch normalisation

CASES = {
    "maps": {"shape": (5, 3, 4, 6)},
    "vectors": {"shape": (7, 3)},
    "no affine": {"shape": (5, 3, 4, 6), "affine": False},
    "no running statistics": {"shape": (5, 3, 4, 6), "running": False},
    "one value a process": {"shape": (2, 3, 1, 1)},
    "far from 0": {"shape": (5, 3, 4, 6), "offset": 1e3, "dtype": torch.float32},
    "half precision": {"shape": (5, 3, 4, 6), "dtype": torch.bfloat16},
    "a mean over all so far": {"shape": (5, 3, 4, 6), "momentum": 1.0},
}


def setting(shape, affine=True, running=True, offset=0.0, dtype=torch.float64, momentum=0.1):
    """Inputs, upstream gradients, and the other arguments."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.promote_types(dtype, torch.float32)
    spread = torch.arange(1, 4).view(1, 3, *[1] * (len(shape) - 2))
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * spread + offset
    upstream = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    channel = [torch.rand(3, generator=generator, dtype=torch.float64).to(wide) + 0.5 for _ in range(4)]
    weight, bias = [each.requires_grad_() for each in channel[2:]] if affine else (None, None)
    mean, var = channel[:2] if running else (None, None)
    return values.to(dtype), upstream, (mean, var, weight, bias), momentum


def normalised(function, inputs, upstream, parameters, **options):
    """Outputs, gradients of inputs and parameters, and running statistics."""
    inputs = inputs.detach().clone().requires_grad_()
    mean, var, weight, bias = parameters
    outputs = function(inputs, mean, var, weight, bias, **options)
    (outputs * upstream).sum().backward()
    found = {"outputs": outputs.detach(), "inputs.grad": inputs.grad, "mean": mean, "var": var}
    return found | {f"{name}.grad": None if p is None else p.grad for name, p in (("weight", weight), ("bias", bias))}


def shared(world):
    """Each case on this process's rows; the first has two thirds of them, so that shares are unequal."""
    found = {}
    for name, case in CASES.items():
        inputs, upstream, parameters, momentum = setting(**case)
        ends = [0, -(-2 * len(inputs) // 3) if len(inputs) > 2 else 1, len(inputs)]
        start, stop = list(pairwise(ends))[world.rank]

        def function(inputs, *parameters, momentum=momentum):
            return batch_norm(world, inputs, *parameters, momentum=momentum)

        found[name] = normalised(function, inputs[start:stop], upstream[start:stop], parameters)
    return found


@pytest.fixture(scope="module")
def processes():
    return together.run(shared)


def near(found, expected, case):
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-3, torch.bfloat16: 2e-2}[case.get("dtype", torch.float64)]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, check_dtype=True)


@pytest.fixture(params=CASES)
def case(request, processes):
    """A case, torch's result on the whole batch, and each process's result on its part."""
    inputs, upstream, parameters, momentum = setting(**CASES[request.param])
    whole = normalised(F.batch_norm, inputs, upstream, parameters, training=True, momentum=momentum)
    return CASES[request.param], whole, [process[request.param] for process in processes]


def test_outputs_are_those_of_the_whole_batch(case):
    case, whole, parts = case
    near(torch.cat([part["outputs"] for part in parts]), whole["outputs"], case)


def test_gradients_of_inputs_are_those_of_the_whole_batch(case):
    case, whole, parts = case
    near(torch.cat([part["inputs.grad"] for part in parts]), whole["inputs.grad"], case)


def test_gradients_of_weight_and_bias_add_up_to_those_of_the_whole_batch(case):
    case, whole, parts = case
    for name in ("weight.grad", "bias.grad"):
        if whole[name] is not None:
            near(sum(part[name] for part in parts), whole[name], case)
        else:
            assert [part[name] for part in parts] == [None, None]


def test_running_statistics_are_those_of_the_whole_batch_in_every_process(case):
    case, whole, parts = case
    for name in ("mean", "var"):
        if whole[name] is not None:
            near(parts[0][name], whole[name], case)
            assert torch.equal(parts[0][name], parts[1][name])


# the path of CUDA, whose kernels are replaced by what they compute


def _stats(x, eps):
    var, mean = torch.var_mean(x, [0, 2, 3], correction=0)
    return mean, (var + eps).rsqrt()


def _gathered(_, means, invstds, running_mean, running_var, momentum, eps, counts):
    weights = (counts / counts.sum())[:, None]
    mean = (weights * means).sum(0)
    var = (weights * (invstds**-2 - eps + (means - mean) ** 2)).sum(0)
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(var * counts.sum() / (counts.sum() - 1), momentum)
    return mean, (var + eps).rsqrt()


def _applied(x, weight, bias, mean, invstd, _):
    shape = (1, -1, 1, 1)
    return (x - mean.view(shape)) * (invstd * weight).view(shape) + bias.view(shape)


class Context:
    def save_for_backward(self, *tensors):
        self.saved = tensors


def forward_with(world, layout):
    """Outputs, saved tensors and statistics of torch's forward pass, and of ours."""
    kernels = {
        "batch_norm_stats": _stats, "batch_norm_gather_stats_with_counts": _gathered, "batch_norm_elemt": _applied,
    }  # fmt: skip
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for name, kernel in kernels.items():
            patch.setattr(torch, name, kernel)
        for function, last in ((SyncBatchNorm, (dist.group.WORLD, world.size)), (_BatchNorm, (world,))):
            inputs, _, (mean, var, weight, bias), momentum = setting((5, 3, 4, 6))
            mine, context = inputs[world.rows(5)].contiguous(memory_format=layout), Context()
            out = function.forward(context, mine, weight.detach(), bias.detach(), mean, var, 1e-5, momentum, *last)
            found.append([out, *context.saved, mean, var])
    return found


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_without_a_mask_batch_normalisation_is_torchs(layout):
    for theirs, ours in together.run(forward_with, layout):
        assert len(theirs) == len(ours) == 8
        for one, other in zip(theirs, ours, strict=True):
            torch.testing.assert_close(one, other)
