"""The table of block counts against the encoders themselves."""

import subprocess
import sys

import pytest
from test_blocks import walk

from kd.encoders import BLOCK_COUNTS, FULL_DEPTH
from kd.models import count_blocks
from kd.settings import NetworkSettings


@pytest.mark.parametrize(("name", "count"), BLOCK_COUNTS.items())
def test_the_table_equals_the_partition(name, count):
    assert len(walk(name)[1].blocks) == count


@pytest.mark.parametrize("arch", sorted(FULL_DEPTH))
def test_the_table_holds_for_every_architecture_of_full_depth(arch):
    assert count_blocks(NetworkSettings(arch=arch, encoder="resnet18")) == BLOCK_COUNTS["resnet18"]


def test_reading_the_table_imports_nothing():
    code = "import sys; before = set(sys.modules); import kd.encoders; print(*sorted(set(sys.modules) - before))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["kd", "kd.encoders"]
