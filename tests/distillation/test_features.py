"""What a student learns from its teacher's features, and that nothing of it outlasts the training."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import CPU, SOURCE, hand_made, state

from kd.distillation.features import Learner, Watch, feature_shapes, normalised_mse
from kd.distillation.losses import DistillationLoss
from kd.distillation.structure import channel_wise_kl
from kd.errors import ConfigError
from kd.networks import build
from kd.networks.precision import compiled
from kd.networks.saved import load_file, save
from kd.settings import NetworkSettings

IMAGES = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def maps(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_distance(student, teacher):
    """The mean of 2 - 2 cos over positions, in double precision, position by position."""
    found = []
    for b in range(student.shape[0]):
        for y in range(student.shape[2]):
            for x in range(student.shape[3]):
                s, t = student[b, :, y, x].double(), teacher[b, :, y, x].double()
                found.append(2 - 2 * float((s * t).sum()) / math.sqrt(float((s * s).sum() * (t * t).sum())))
    return sum(found) / len(found)


@settings(max_examples=30, deadline=None)
@given(*[st.integers(1, 4)] * 4, st.floats(0.01, 100))
def test_the_distance_is_that_of_directions(batch, channels, height, width, scale):
    student, teacher = maps(1, batch, channels, height, width), maps(2, batch, channels, height, width)
    expected = slow_distance(student, teacher)
    assert normalised_mse(student, teacher).item() == pytest.approx(expected, abs=1e-5)
    assert normalised_mse(scale * student, teacher / scale).item() == pytest.approx(expected, abs=1e-4)
    assert normalised_mse(scale * teacher, teacher).item() == pytest.approx(0, abs=1e-6)
    assert normalised_mse(-teacher, teacher).item() == pytest.approx(4, abs=1e-5)


def test_a_distance_of_features_of_half_precision_is_computed_in_single():
    student, teacher = maps(1, 2, 3, 4, 4), 300 * maps(2, 2, 3, 4, 4)
    found = normalised_mse(student.half(), teacher.half())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(slow_distance(student, teacher), abs=1e-2)


def test_a_dead_feature_has_a_finite_gradient():
    student = torch.zeros(1, 3, 2, 2, requires_grad=True)
    normalised_mse(student, maps(2, 1, 3, 2, 2)).backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("term", ["mse", "cwd"])
def test_the_term_is_a_mean_over_stages(term):
    pairs = [(maps(seed, 2, 3, seed, 4), maps(seed + 9, 2, 3, seed, 4)) for seed in (2, 4)]
    asked = {"features": 2.0, "gamma": 1.0, "feature_term": term, "feature_temperature": 3.0}
    logits, mask = torch.zeros(2, 1, 8, 8), torch.ones(2, 8, 8)
    found = DistillationLoss(asked, 1)(logits, mask, logits, 4.0, pairs)
    each = [normalised_mse(*pair) if term == "mse" else channel_wise_kl(*pair, 3.0) for pair in pairs]
    torch.testing.assert_close(found.features, (each[0] + each[1]) / 2)
    torch.testing.assert_close(found.loss, 2 * found.features + found.ce)


def test_a_term_without_its_features_is_an_error():
    logits = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match="features of student and teacher are missing"):
        DistillationLoss({"features": 1.0}, 1)(logits, torch.ones(2, 8, 8), logits, 4.0)


# the learner


def test_a_learner_gives_its_students_logits_and_projects_its_encoders_features():
    student = hand_made().eval()
    torch.manual_seed(3)
    learner = Learner(student, (1, 2), (6, 8), (5, 7))
    expected = student.body.encoder(student.normalised(IMAGES))
    logits, *features = learner(IMAGES)
    assert torch.equal(logits, student(IMAGES))
    assert [each.shape for each in features] == [(2, 5, 8, 8), (2, 7, 4, 4)]
    for projection, found, of in zip(learner.projections, features, expected[1:], strict=True):
        torch.testing.assert_close(found, torch.einsum("kc,bchw->bkhw", projection.weight[..., 0, 0], of)
                                   + projection.bias[:, None, None])  # fmt: skip


def test_features_alone_teach_the_encoder_and_leave_the_decoder():
    student = hand_made(drop=0.0).train()
    learner = Learner(student, (2,), (8,), (7,))
    *_, features = learner(IMAGES)
    normalised_mse(features, maps(1, 2, 7, 4, 4)).backward()
    assert student.body.encoder.deep.conv.weight.grad.any()
    assert student.body.encoder.stem.conv.weight.grad.any()
    assert student.body.head.weight.grad is None
    assert learner.projections[0].weight.grad.any()


def test_the_projections_are_in_the_decoders_group_and_in_no_weights_file(tmp_path):
    torch.manual_seed(0)
    settings = NetworkSettings(arch="unet", encoder="tu-mobilenetv3_small_050")
    student = build.build(settings, 1, SOURCE.class_names, "backbone.student")
    before = state(student)
    learner = Learner(student, (5,), (288,), (4,))
    groups = learner.blocks.groups(learner)
    own = {id(parameter) for parameter in learner.projections.parameters()}
    assert own < {id(parameter) for parameter in groups[0]["params"]}
    assert not any(id(parameter) in own for group in groups[1:] for parameter in group["params"])
    save(student, tmp_path / "student.safetensors")
    assert state(load_file(tmp_path / "student.safetensors")).keys() == before.keys() == state(student).keys()


def test_nothing_of_a_step_is_kept_until_the_next():
    """A map would hold its whole graph."""
    learner = Learner(hand_made(), (2,), (8,), (7,))
    learner(IMAGES)
    assert learner._watch.take() == ()


def test_a_watch_ends_with_its_block():
    network = hand_made()
    with Watch(network, (1,)) as watch:
        network(IMAGES)
        assert watch.take()[0].shape == (2, 6, 8, 8)
    network(IMAGES)
    assert watch.take() == ()


# stages


@pytest.mark.parametrize("encoder", ["tu-mobilenetv3_small_050", "resnet18", "efficientnet-b0"])
def test_the_shapes_are_those_of_a_forward_pass_and_asking_changes_nothing(encoder):
    torch.manual_seed(0)
    network = build.build(NetworkSettings(arch="unet", encoder=encoder), 1, SOURCE.class_names, "backbone.student")
    network.unfreeze(1)
    before, modes = state(network), [module.training for module in network.train().modules()]
    shapes = feature_shapes(network, (1, 3, 5), (64, 32))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in state(network).items())
    with torch.no_grad():
        found = network.eval().body.encoder(torch.zeros(1, 3, 64, 32))
    assert shapes == tuple(tuple(found[stage].shape[1:]) for stage in (1, 3, 5))
    assert [shape[1:] for shape in shapes] == [(32, 16), (8, 4), (2, 1)]


@pytest.mark.parametrize(("encoder", "stages", "known"), [
    ("tu-mobilenetv3_small_050", (6,), "1, 2, 3, 4, 5"), ("mit_b0", (1, 2), "2, 3, 4, 5"),
])  # fmt: skip
def test_a_stage_without_features_is_named_with_those_that_have_some(encoder, stages, known):
    network = build.build(NetworkSettings(arch="unet", encoder=encoder), 1, SOURCE.class_names, "backbone.student")
    with pytest.raises(
        ConfigError, match=rf"loss.feature_stages=.*{encoder} has no features at stage .*choose from {known}"
    ):
        feature_shapes(network, stages, (64, 64))


def test_the_features_of_a_placed_network_keep_its_layout():
    assert feature_shapes(CPU.place(hand_made()), (2,), (32, 32)) == ((8, 4, 4),)


def test_features_of_a_compiled_student_are_watched_after_one_of_the_same_architecture_that_was_not():
    """As in a study whose trials compare features or not, at one stage or another."""
    torch._dynamo.reset()
    for stages in ((), (1,), (2,), (1, 2)):
        network = compiled(hand_made().eval(), "eager")
        watch = Watch(network, stages)
        network(IMAGES)
        maps_of = hand_made().eval().body.encoder(network.normalised(IMAGES))
        taken = watch.take()
        assert len(taken) == len(stages)
        assert all(torch.equal(each, maps_of[stage]) for each, stage in zip(taken, stages, strict=True))
