"""Missing devices are refused, and half precision is mixed and stays finite."""

import shutil

import pytest
import torch
from torch import nn

from kd.deploy.finished import device_of
from kd.distillation.losses import DistillationLoss
from kd.errors import ConfigError
from kd.networks.precision import DTYPES, Precision, choose_device, compiled
from kd.settings.keys import DEVICE
from kd.system.launch import Rank

CPU = torch.device("cpu")
NAMES = sorted(DTYPES)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 1))


def test_the_cpu_is_always_available():
    assert choose_device("cpu") == CPU


def test_auto_takes_the_best_available_device():
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert choose_device("auto").type == best


@pytest.mark.parametrize("name", ["cuda:128", "cuda:300", "cuda:99999999999999999999"])
def test_an_index_that_torch_would_misread_is_no_device(name):
    assert not DEVICE.fullmatch(name)
    with pytest.raises(ConfigError, match=rf"^--device={name} should be auto, cpu, mps, cuda or cuda:<number>$"):
        device_of(name)


@pytest.mark.parametrize("name", ["cuda:99", "cuda:8"])
def test_a_missing_device_is_refused_with_its_key(name):
    with pytest.raises(
        ConfigError, match=rf"^trainer\.device={name}: this machine has \d+ such device\(s\); use auto or cpu$"
    ):
        choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1"])
def test_missing_cuda_is_refused(name):
    with pytest.raises(ConfigError, match=rf"^trainer\.device={name}: this machine has 0 such device"):
        choose_device(name)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has MPS")
def test_missing_mps_is_refused():
    with pytest.raises(ConfigError, match=r"^trainer\.device=mps: this machine has 0 such device"):
        choose_device("mps")


@pytest.mark.parametrize("name", NAMES)
def test_products_are_computed_in_the_requested_precision(name):
    with Precision(CPU, name).autocast():
        assert small()(torch.rand(1, 3, 8, 8)).dtype == DTYPES[name]
    assert small()(torch.rand(1, 3, 8, 8)).dtype == torch.float32


def test_fp32_is_plain_torch_bit_for_bit():
    x = torch.rand(2, 3, 8, 8)
    with Precision(CPU, "fp32").autocast():
        mixed = small()(x)
    assert torch.equal(mixed, small()(x))


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_are_finite_in_every_precision(name):
    network, precision = small(), Precision(CPU, name)
    loss = DistillationLoss({"alpha": 0.3, "beta": 0.5, "gamma": 0.5, "delta": 1.0}, 1)
    x, mask, teacher = torch.rand(2, 3, 16, 16), torch.randint(0, 2, (2, 16, 16)), torch.randn(2, 1, 16, 16)
    with precision.autocast():
        logits = network(x)
    total = loss(logits, mask, teacher, 4.0).loss
    total.backward()
    assert total.dtype == torch.float32
    assert total.isfinite()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in network.parameters())
    exact = loss(small()(x), mask, teacher, 4.0).loss
    assert torch.isclose(total, exact, rtol=0.02)


@pytest.mark.parametrize(("name", "scales"), [("fp32", False), ("bf16", False), ("fp16", True)])
def test_only_fp16_scales_its_loss(name, scales):
    scaler = Precision(CPU, name).scaler()
    assert scaler.is_enabled() == scales
    assert (scaler.scale(torch.ones(())).item() == 1) != scales


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_network_is_placed_in_the_requested_layout(channels_last):
    network = Precision(CPU, "fp32", channels_last).place(small())
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert network[0].weight.is_contiguous() != channels_last


@pytest.mark.parametrize("channels_last", [True, False])
def test_placing_a_network_changes_no_value(channels_last):
    placed, plain = Precision(CPU, "fp32", channels_last).place(small()), small()
    assert all(torch.equal(a, b) for a, b in zip(placed.parameters(), plain.parameters(), strict=True))


# compilation


class Wrapped(nn.Module):
    """The compiled part of a `Network`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small()

    def forward(self, images):
        return self.body(images)


def test_without_a_compiler_compilation_is_refused_in_one_line():
    from torch._inductor import config, cpp_builder

    cpp_builder.cpp_compiler_search.cache_clear()
    with (
        config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ConfigError, match=r"needs a C\+\+ compiler"),
    ):
        compiled(Wrapped())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with a C++ compiler")
def test_a_compiled_network_gives_the_same_logits_and_file():
    network = Wrapped().eval()
    images = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        before = network(images)
        names = list(network.state_dict())
        torch.testing.assert_close(compiled(network)(images), before, rtol=1e-3, atol=1e-4)
    assert list(network.state_dict()) == names


# several processes

SECOND_OF_TWO = Rank(rank=1, size=2, local_rank=1, local_size=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_processes_without_gpus_share_the_cpu():
    assert choose_device("auto", SECOND_OF_TWO) == choose_device("cpu", SECOND_OF_TWO) == CPU


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are needed")
def test_each_process_has_its_own_gpu():
    assert choose_device("auto", SECOND_OF_TWO) == choose_device("cuda", SECOND_OF_TWO) == torch.device("cuda:1")


@pytest.mark.parametrize("name", ["cuda:0", "mps"])
def test_a_single_device_is_not_shared_among_processes(name):
    with pytest.raises(ConfigError, match=rf"^trainer\.device={name} is a single device, and 2 processes train; use"):
        choose_device(name, SECOND_OF_TWO)


@pytest.mark.parametrize("local_rank", range(4))
def test_a_single_visible_gpu_is_index_0_whatever_the_local_rank(local_rank, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    rank = Rank(rank=local_rank, size=4, local_rank=local_rank, local_size=4)
    assert choose_device("auto", rank) == choose_device("cuda", rank) == torch.device("cuda:0")


@pytest.mark.parametrize(("gpus", "own"), [(0, True), (1, False), (2, False), (2, True)])
def test_more_processes_than_gpus_are_refused(gpus, own, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    message = rf"^trainer\.device=cuda: this machine has {gpus} GPU\(s\) for 3 processes"
    with pytest.raises(ConfigError, match=message):
        choose_device("cuda", Rank(rank=1, size=3, local_rank=1, local_size=3, own_gpus=own))
