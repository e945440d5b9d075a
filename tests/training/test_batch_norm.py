"""Synchronised batch normalisation is torch's own, over the concatenated inputs of all processes."""

from itertools import pairwise

import pytest
import together
import torch
import torch.nn.functional as F

from kd.training.whole_batch import batch_norm

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
    """Inputs, what weighs the outputs in a loss, and the other arguments."""
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
    """Outputs, their gradients' way back to the inputs and parameters, and the running statistics after it."""
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
    """A case, what torch makes of the whole batch, and what each process made of its part."""
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
