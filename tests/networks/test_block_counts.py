"""The table of block counts against the encoders themselves."""

import subprocess
import sys

import pytest

from kd.networks.block_counts import BLOCK_COUNTS, FULL_DEPTH
from kd.networks.build import count_blocks
from kd.settings import NetworkSettings
from tests.networks.test_partition import walk

#: The encoders that conf/ names, and one of most other families.
USUAL = (
    "efficientnet-b0 efficientnet-b3 efficientnet-b5 resnet18 resnet50 mit_b0 mit_b3 tu-mobilenetv3_small_050 "
    "tu-mobilenetv3_small_100 tu-tf_efficientnet_lite0 tu-tf_efficientnet_lite2 mobilenet_v2 tu-convnext_tiny "
    "densenet121 vgg11_bn inceptionv4 tu-hrnet_w18_small"
).split()
EVERY = [pytest.param(*item, marks=() if item[0] in USUAL else pytest.mark.slow) for item in BLOCK_COUNTS.items()]


@pytest.mark.parametrize(("name", "count"), EVERY)
def test_the_table_equals_the_partition(name, count):
    assert len(walk(name)[1].blocks) == count


@pytest.mark.parametrize("arch", sorted(FULL_DEPTH))
def test_the_table_is_valid_for_every_architecture_of_full_depth(arch):
    assert count_blocks(NetworkSettings(arch=arch, encoder="resnet18")) == BLOCK_COUNTS["resnet18"]


def test_reading_the_table_imports_nothing():
    code = (
        "import sys; before = set(sys.modules); import kd.networks.block_counts\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert [name for name in printed.split() if name.partition(".")[0] not in sys.stdlib_module_names] == [
        "kd", "kd.errors", "kd.networks", "kd.networks.block_counts",
    ]  # fmt: skip
