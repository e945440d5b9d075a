"""Laws of the partition, for encoders of every family, on the meta device."""

import functools
import inspect
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segmentation_models_pytorch.encoders import TimmViTEncoder, get_encoder
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from kd.networks.partition import Block, Partition, partition

# fmt: off
NATIVE = [
    "resnet18", "resnext50_32x4d", "se_resnet50", "timm-skresnet18", "dpn68", "vgg11", "vgg11_bn", "densenet121",
    "inceptionv4", "inceptionresnetv2", "xception", "mobilenet_v2", "mobileone_s0", "mit_b0", "efficientnet-b0",
    "efficientnet-b3", "timm-efficientnet-b0", "timm-tf_efficientnet_lite0",
]
TIMM = [
    "tu-convnext_atto", "tu-cspresnet50", "tu-davit_tiny", "tu-dla34", "tu-efficientnet_b0", "tu-efficientvit_b0",
    "tu-ese_vovnet19b_dw", "tu-fastvit_t8", "tu-ghostnet_100", "tu-hgnetv2_b0", "tu-hrnet_w18_small",
    "tu-mambaout_femto", "tu-mobilenetv3_small_100", "tu-mobilenetv4_conv_small", "tu-mobilevit_xxs",
    "tu-poolformer_s12", "tu-pvt_v2_b0", "tu-regnety_002", "tu-repvgg_a0", "tu-resnest14d",
    "tu-resnetv2_50", "tu-rexnet_100", "tu-selecsls42", "tu-swin_tiny_patch4_window7_224", "tu-swiftformer_xs",
    "tu-xception41",
]
REAL = [
    "efficientnet-b0", "resnet18", "mobilenet_v2", "mit_b0", "densenet121", "mobileone_s0",
    "tu-mobilenetv3_small_100", "tu-convnext_atto",
]
# fmt: on

MBCONV = {  # first and last index in `_blocks` of each block, deepest first
    "efficientnet-b0": [(15, 15), (11, 14), (8, 10), (5, 7), (3, 4), (1, 2), (0, 0)],
    "efficientnet-b3": [(24, 25), (18, 23), (13, 17), (8, 12), (5, 7), (2, 4), (0, 1)],
}


class BuiltWithoutData(TorchFunctionMode):
    """Lets the meta device build encoders.

    Transformers read their drop rates from a linspace when they are built, and it has no data there. Nor have initial
    weights, so there is nothing to clamp, and torch is slow at it.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.clamp_ and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}) | ({"device": "cpu"} if func is torch.linspace else {}))


def build(name: str, device: str = "cpu", **settings) -> nn.Module:
    with warnings.catch_warnings(), torch.device(device), BuiltWithoutData():
        warnings.simplefilter("ignore", DeprecationWarning)  # timm- names, deprecated but listed
        return get_encoder(name, in_channels=3, weights=None, **settings)


@functools.cache
def walk(name: str) -> tuple[nn.Module, Partition]:
    encoder = build(name, device="meta")
    return encoder, partition(encoder)


def all_blocks(parts: Partition) -> tuple[Block, ...]:
    return (*parts.blocks, parts.never_run)


def numel(encoder: nn.Module, block: Block) -> int:
    return sum(encoder.get_parameter(name).numel() for name in block.parameters)


def submodules(encoder: nn.Module, block: Block) -> list[nn.Module]:
    return [encoder.get_submodule(path) for path in block.modules]


@functools.cache
def has_a_training_mode(module: type[nn.Module]) -> bool:
    """Batch norm, dropout, stochastic depth and any other module that uses `self.training`."""
    return "self.training" in inspect.getsource(module.forward)


#: One of each way to be built.
USUAL = (
    "resnet18 se_resnet50 densenet121 mobilenet_v2 mobileone_s0 mit_b0 efficientnet-b0 efficientnet-b3 "
    "tu-convnext_atto tu-fastvit_t8 tu-mobilenetv3_small_100 tu-repvgg_a0 tu-swin_tiny_patch4_window7_224"
).split()
every_encoder = pytest.mark.parametrize(
    "name", [name if name in USUAL else pytest.param(name, marks=pytest.mark.slow) for name in NATIVE + TIMM]
)


@every_encoder
def test_every_parameter_is_in_exactly_one_block(name):
    encoder, parts = walk(name)
    owned = [parameter for block in all_blocks(parts) for parameter in block.parameters]
    assert sorted(owned) == sorted(name for name, _ in encoder.named_parameters())


@every_encoder
def test_there_are_four_to_eight_blocks_and_none_is_empty(name):
    _, parts = walk(name)
    assert all(block.parameters and block.modules for block in parts.blocks)
    assert 4 <= len(parts.blocks) <= 8


@every_encoder
def test_every_module_with_a_mode_is_in_exactly_one_block(name):
    encoder, parts = walk(name)
    below = [{m for root in submodules(encoder, block) for m in root.modules()} for block in all_blocks(parts)]
    for path, module in encoder.named_modules():
        if has_a_training_mode(type(module)):
            assert sum(module in block for block in below) == 1, path


@every_encoder
def test_a_block_owns_every_parameter_below_its_modules(name):
    encoder, parts = walk(name)
    for block in all_blocks(parts):
        own = {encoder.get_parameter(parameter) for parameter in block.parameters}
        assert all(own.issuperset(module.parameters()) for module in submodules(encoder, block))


@pytest.mark.parametrize("name", MBCONV)
def test_efficientnets_have_seven_blocks_with_the_stem_in_the_last(name):
    encoder, parts = walk(name)
    for block, (first, last) in zip(parts.blocks, MBCONV[name], strict=True):
        assert [m for m in block.modules if "_blocks" in m] == [f"_blocks.{i}" for i in range(first, last + 1)]
    outside = [p for p in parts.blocks[-1].parameters if not p.startswith("_blocks")]
    assert outside == ["_conv_stem.weight", "_bn0.weight", "_bn0.bias"]
    assert set(parts.never_run.parameters) == {"_conv_head.weight", "_bn1.weight", "_bn1.bias"}
    assert numel(encoder, parts.never_run) == {"efficientnet-b0": 412_160, "efficientnet-b3": 592_896}[name]


@pytest.mark.parametrize(
    ("name", "first_modules"),
    [
        ("resnet18", ["layer4", "layer3", "layer2", "layer1", "conv1"]),
        ("mit_b0", [f"patch_embed{stage}" for stage in (4, 3, 2, 1)]),
        ("mobileone_s0", [f"stage{stage}" for stage in (4, 3, 2, 1, 0)]),
        ("tu-efficientnet_b0", [f"model.blocks.{stage}" for stage in (6, 5, 4, 3, 2, 1, 0)]),
        ("tu-mobilenetv3_small_100", [f"model.blocks.{stage}" for stage in (5, 4, 3, 2, 1, 0)] + ["model.conv_stem"]),
        ("tu-regnety_002", ["model.s4", "model.s3", "model.s2", "model.s1", "model.stem"]),
    ],
)
def test_blocks_are_the_stages_of_the_network(name, first_modules):
    _, parts = walk(name)
    assert len(parts.blocks) == len(first_modules)
    assert all(module in block.modules for module, block in zip(first_modules, parts.blocks, strict=True))


def unfreeze(encoder: nn.Module, parts: Partition, count: int) -> set[str]:
    """Unfreeze the `count` deepest blocks and freeze the rest; returns the names of the unfrozen parameters."""
    encoder.train()
    unfrozen = {parameter for block in parts.blocks[:count] for parameter in block.parameters}
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad, parameter.grad = name in unfrozen, None
    for block in (*parts.blocks[count:], parts.never_run):
        for module in submodules(encoder, block):
            module.eval()
    return unfrozen


@pytest.fixture(scope="module", params=REAL)
def real(request):
    """An encoder with data, and its blocks; which of them are frozen is left to each test."""
    return build(request.param), walk(request.param)[1]


def assert_outside_the_graph(module: nn.Module, inputs: object, output: object) -> None:
    assert not any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in tree_leaves(output))


def assert_gradients_stop_at_the_frozen_part(encoder: nn.Module, parts: Partition) -> None:
    image = torch.randn(2, 3, 64, 64)
    for count in range(1, len(parts.blocks) + 1):
        unfrozen = unfreeze(encoder, parts, count)
        frozen = [module for block in parts.blocks[count:] for module in submodules(encoder, block)]
        with_parameters = [module for module in frozen if any(True for _ in module.parameters())]
        hooks = [module.register_forward_hook(assert_outside_the_graph) for module in with_parameters]
        features = encoder(image)
        sum(feature.mean() for feature in features if feature.requires_grad).backward()
        assert {name for name, p in encoder.named_parameters() if p.grad is not None} == unfrozen
        for hook in hooks:
            hook.remove()


def test_gradients_reach_exactly_the_unfrozen_blocks(real):
    assert_gradients_stop_at_the_frozen_part(*real)


def test_only_unfrozen_blocks_update_their_statistics(real):
    encoder, parts = real
    half = len(parts.blocks) // 2
    unfreeze(encoder, parts, half)
    before = {path: buffer.clone() for path, buffer in encoder.named_buffers()}
    with torch.no_grad():
        encoder(torch.randn(2, 3, 64, 64))
    roots = tuple(f"{module}." for block in parts.blocks[:half] for module in block.modules)
    moved = {path for path, buffer in encoder.named_buffers() if not torch.equal(buffer, before[path])}
    assert moved == {path for path in before if path.startswith(roots)}


def test_a_frozen_encoder_is_deterministic(real):
    encoder, parts = real
    unfreeze(encoder, parts, 0)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert all(map(torch.equal, encoder(image), encoder(image)))


def test_the_partition_does_not_depend_on_device_dtype_mode_or_freezing():
    _, expected = walk("efficientnet-b0")
    encoder = build("efficientnet-b0").half().eval().requires_grad_(False)
    with torch.inference_mode():
        assert partition(encoder) == expected
    assert partition(encoder.train()) == expected


@pytest.mark.parametrize("name", ["efficientnet-b0", "resnet18", "tu-resnet18"])
@pytest.mark.parametrize("depth", [3, 4])
def test_unused_layers_of_a_shallow_encoder_stay_frozen(name, depth):
    encoder = build(name, depth=depth)
    parts = partition(encoder)
    assert len(parts.blocks) < len(walk(name)[1].blocks)
    assert_gradients_stop_at_the_frozen_part(encoder, parts)


@pytest.mark.parametrize("name", ["efficientnet-b0", "resnet18", "mit_b0", "tu-resnet18"])
def test_dilation_does_not_change_the_blocks(name):
    assert partition(build(name, device="meta", output_stride=8)) == walk(name)[1]


def test_a_network_of_constant_shape_is_cut_at_its_features():
    encoder = TimmViTEncoder("test_vit", pretrained=False, depth=3)
    parts = partition(encoder)
    assert len(parts.blocks) == len(encoder(torch.empty(1, 3, 160, 160))[0]) == 3
    assert "model.norm" in parts.never_run.modules


class Toy(nn.Module):
    """Two resolutions, an own parameter, a layer used twice, a dropout in between and an unused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.shift = nn.Parameter(torch.zeros(4, 1, 1))
        self.twice = nn.Conv2d(4, 4, 1)
        self.drop = nn.Dropout()
        self.down = nn.Conv2d(4, 4, 2, stride=2)
        self.spare = nn.Conv2d(4, 4, 1)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        shallow = self.twice(self.stem(image) + self.shift)
        return [image, shallow, self.twice(self.down(self.drop(shallow)))]


def test_own_shared_and_unused_parameters_are_assigned():
    assert partition(Toy()) == Partition(
        blocks=(
            Block(("drop", "down"), ("down.weight", "down.bias")),
            Block(("stem", "twice"), ("shift", "stem.weight", "stem.bias", "twice.weight", "twice.bias")),
        ),
        never_run=Block(("spare",), ("spare.weight", "spare.bias")),
    )


class Unit(nn.Module):
    """A convolution and a norm, with `skips` plus a projection of the input."""

    def __init__(self, channels: tuple[int, int], stride: int, skips: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(*channels, 3, stride, 1)
        self.norm = nn.BatchNorm2d(channels[1])
        self.project = nn.Conv2d(*channels, 1, stride) if skips else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.norm(self.conv(x))
        return out if self.project is None else out + self.project(x)


class Drawn(nn.Module):
    """A chain of units with drawn strides, widths and skips; not all are features, and some never run."""

    def __init__(self, plan: list[tuple[int, int, bool, bool]], spares: int) -> None:
        super().__init__()
        widths = [3, *(width for _, width, _, _ in plan)]
        units = [
            Unit((before, after), stride, skips)
            for before, after, (stride, _, skips, _) in zip(widths, widths[1:], plan, strict=False)
        ]
        self.units, self.spares = nn.ModuleList(units), nn.ModuleList(nn.Conv2d(2, 2, 1) for _ in range(spares))
        self.shows = [shown for _, _, _, shown in plan]

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        features = [image]
        for unit, shown in zip(self.units, self.shows, strict=True):
            image = unit(image)
            features += [image] if shown else []
        return features


plans = st.lists(
    st.tuples(st.sampled_from([1, 2]), st.integers(1, 4), st.booleans(), st.booleans()), min_size=1, max_size=6
).filter(lambda plan: any(shown for _, _, _, shown in plan))


@given(plans, st.integers(0, 2))
@settings(deadline=None, max_examples=60)
def test_the_blocks_hold_as_many_parameters_as_the_encoder_runs(plan, spares):
    encoder = Drawn(plan, spares)
    parts = partition(encoder)
    sum(feature.sum() for feature in encoder(torch.randn(2, 3, 64, 64)) if feature.requires_grad).backward()
    run = {name: parameter.numel() for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    owned = [name for block in parts.blocks for name in block.parameters]
    assert sorted(owned) == sorted(run)
    assert sum(numel(encoder, block) for block in parts.blocks) == sum(run.values())
    everything = sum(parameter.numel() for parameter in encoder.parameters())
    assert numel(encoder, parts.never_run) == everything - sum(run.values())
    assert all(block.parameters for block in parts.blocks)


@given(plans, st.integers(0, 2))
@settings(deadline=None, max_examples=15)
def test_gradients_of_any_encoder_reach_exactly_the_unfrozen_blocks(plan, spares):
    encoder = Drawn(plan, spares)
    assert_gradients_stop_at_the_frozen_part(encoder, partition(encoder))


class NeedsData(Toy):
    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return super().forward(image * image.sum().item())


def test_an_encoder_that_needs_data_is_one_block_with_a_warning():
    encoder = NeedsData()
    with pytest.warns(UserWarning, match="NeedsData does not run without data"):
        parts = partition(encoder)
    modules = tuple(path for path, _ in encoder.named_children())
    parameters = tuple(name for name, _ in encoder.named_parameters())
    assert parts == Partition((Block(modules, parameters),), Block((), ()))
