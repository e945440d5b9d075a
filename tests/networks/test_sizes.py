"""What sizes networks take: asked without weights, before anything trains."""

import pytest
import torch

from kd.config.compose import compose
from kd.config.read import read
from kd.deploy.export.check import Check
from kd.errors import ConfigError
from kd.networks import build
from kd.networks.block_counts import BLOCK_COUNTS, FIXED_SIDES
from kd.networks.sizes import check_built, sides_instead, takes, takes_other_sizes
from kd.settings import NetworkSettings

SWIN, VIT = "tu-swin_tiny_patch4_window7_224", "tu-vit_tiny_patch16_224"


def student(encoder, arch="unet"):
    return [f"backbone.student.arch={arch}", f"backbone.student.encoder={encoder}", "backbone.student.weights=null"]


@pytest.mark.parametrize(("arch", "encoder"), [("unet", SWIN), ("dpt", VIT)])
def test_an_encoder_of_one_size_is_refused_in_one_line_that_names_it(arch, encoder):
    settings = [*student(encoder, arch), "loss=hard_only"]
    with pytest.raises(
        ConfigError, match=r"does not take data.image_size=\[64,96\]: it takes 224x224 alone"
    ) as refused:
        read(compose([*settings, "data.image_size=[64,96]"]), look_at_data=False)
    assert "set 'data.image_size=[224,224]'" in str(refused.value)
    read(compose([*settings, "data.image_size=[224,224]"]), look_at_data=False)


def test_a_teacher_of_one_size_is_refused_only_if_it_is_trained():
    teacher = [f"backbone.teacher.encoder={SWIN}", "backbone.teacher.arch=unet", "data.image_size=[64,64]"]
    with pytest.raises(ConfigError, match=f"backbone.teacher.encoder={SWIN} does not take"):
        read(compose(teacher), look_at_data=False)
    read(compose([*teacher, "loss=hard_only"]), look_at_data=False)


@pytest.mark.parametrize("encoder", ["tu-convnext_atto", "tu-pvt_v2_b0", "tu-mobilenetv3_small_050", "resnet18"])
def test_an_encoder_that_takes_any_size_passes(encoder):
    read(compose([*student(encoder), "loss=hard_only", "data.image_size=[64,96]"]), look_at_data=False)
    assert sides_instead(NetworkSettings(arch="unet", encoder=encoder), (64, 96)) == ()


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [name for name in BLOCK_COUNTS if name.startswith("tu-")])
def test_the_table_knows_which_encoders_have_one_size(encoder):
    side = FIXED_SIDES.get(encoder)
    assert sides_instead(NetworkSettings(arch="unet", encoder=encoder), (64, 96)) == (() if side is None else (side,))


def test_a_finished_network_of_one_size_is_checked_at_that_size_alone():
    torch.manual_seed(0)
    network = build.build(NetworkSettings(arch="dpt", encoder=VIT), 1, ("background", "foreground"), "x").eval()
    assert takes(network, (224, 224))
    check_built(network, (224, 224), "backbone.student")
    with pytest.raises(ConfigError, match="it takes 224x224 alone"):
        check_built(network, (64, 64), "backbone.student")
    assert not takes_other_sizes(network, (224, 224))
    check = Check.of(network, torch.zeros(2, 3, 224, 224, dtype=torch.uint8), "noise")
    assert [tuple(batch.shape) for batch in check.batches] == [(2, 3, 224, 224), (1, 3, 224, 224)]
