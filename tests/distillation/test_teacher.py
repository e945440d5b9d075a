"""A teacher returns raw logits and never changes."""

import copy
from dataclasses import replace

import albumentations
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from toy import hand_made

from kd.data import Shapes
from kd.data.batches.batch import Batch
from kd.data.batches.loading import TrainLoader
from kd.data.views.augmentation import Augmentation
from kd.distillation.logit_cache import LogitCache
from kd.distillation.logit_codec import CODECS, EXACT
from kd.distillation.losses import DistillationLoss
from kd.distillation.teacher import CachedTeacher, LiveTeacher
from kd.networks import build
from kd.networks.network import Network
from kd.networks.precision import Precision
from kd.plan.schedules import Linear
from kd.plan.timeline import LearningRates, Timeline
from kd.plan.unfreeze import Progressive
from kd.settings import NetworkSettings
from kd.system.record_file import file_bytes
from kd.training.loop import fit
from kd.training.step import Distillation, TrainingOptions

SOURCE = Shapes(image_size=(32, 32), train=6, val=2, test=1)
CPU = torch.device("cpu")
PRECISIONS = ["fp32", "bf16", "fp16"]


def network(seed=0) -> Network:
    torch.manual_seed(seed)
    settings = NetworkSettings(arch="unet", encoder="tu-mobilenetv3_small_050")
    return build.build(settings, 1, SOURCE.class_names, "backbone.teacher")


@pytest.fixture(scope="module")
def settled():
    """A network whose statistics and weights are no longer the initial ones."""
    made = network(seed=5).train()
    with torch.no_grad():
        made(batch().images)
    return made


@pytest.fixture
def teacher(settled):
    return LiveTeacher(copy.deepcopy(settled).train(), Precision(CPU))


def batch() -> Batch:
    return next(loader().epoch(0))


def loader() -> TrainLoader:
    return TrainLoader(SOURCE, Augmentation([], 0), 3, 0)


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_logits_are_the_networks_own_in_eval_mode(teacher, settled):
    with torch.no_grad():
        expected = settled.eval()(batch().images)
    assert torch.equal(teacher(batch())[0], expected.half().float())


@pytest.mark.parametrize("name", PRECISIONS)
def test_logits_are_float32_in_every_precision(name, settled):
    answers = LiveTeacher(copy.deepcopy(settled), Precision(CPU, name))(batch())[0]
    assert answers.shape == (3, 1, 32, 32)
    assert answers.dtype == torch.float32
    assert answers.min() < 0 or answers.max() > 1  # not probabilities
    torch.testing.assert_close(answers, LiveTeacher(settled, Precision(CPU))(batch())[0], rtol=0.1, atol=0.1)


def test_logits_do_not_depend_on_temperature_or_on_the_rest_of_the_batch(teacher):
    """Invariant 1: temperature is not an argument. Eval mode: the logits of each image are independent."""
    whole = teacher(batch())[0]
    alone = Batch(batch().images[:1], batch().masks[:1], batch().indices[:1], 0)
    torch.testing.assert_close(teacher(alone)[0], whole[:1], rtol=2e-3, atol=1e-4)  # the last bit of a half


def test_logits_have_no_gradient(teacher):
    answers = teacher(batch())[0]
    assert not answers.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


def test_a_teacher_is_in_eval_mode_from_the_start(teacher):
    assert not any(module.training for module in teacher.network.modules())


def test_calling_a_teacher_does_not_change_it(teacher):
    before = snapshot(teacher.network)
    assert torch.equal(teacher(batch())[0], teacher(batch())[0])
    assert same(before, snapshot(teacher.network))


def test_a_teacher_does_not_change_while_a_student_trains(teacher):
    """Invariant 7: weights, batch-norm statistics, mode and gradients, over epochs that unfreeze and freeze blocks."""
    before = snapshot(teacher.network)
    student = network(seed=1)
    timeline = Timeline(Linear(4, 1), Progressive(1, 1), LearningRates(1e-2, 0, 1.0), 3, len(student.partition.blocks))
    loss = DistillationLoss({"alpha": 1, "beta": 1, "gamma": 1, "delta": 1}, 1)
    options = TrainingOptions(seed=0, weight_decay=0.1, betas=(0.9, 0.999), clip_norm=None)
    first = teacher(batch())[0]
    for _ in fit(Distillation(student, loss, timeline, teacher), loader(), dict, options, Precision(CPU)):
        assert same(before, snapshot(teacher.network))
        assert not any(module.training for module in teacher.network.modules())
        assert all(p.grad is None and not p.requires_grad for p in teacher.network.parameters())
    assert torch.equal(first, teacher(batch())[0])


def test_a_student_initialised_from_its_teacher_trains_alone(teacher):
    """Invariant 7: a copy is independent."""
    student = copy.deepcopy(teacher.network).requires_grad_(True)
    student.unfreeze(len(student.partition.blocks))
    student.train()
    before = snapshot(teacher.network)
    student(batch().images).mean().backward()
    torch.optim.SGD(student.parameters(), 1.0).step()
    assert same(before, snapshot(teacher.network))
    assert not same(before, snapshot(student))


def test_a_teacher_put_into_train_mode_still_uses_eval_mode(teacher):
    """Invariant 7: always in eval mode, even if others change the mode."""
    before, answers = snapshot(teacher.network), teacher(batch())[0]
    teacher.network.train()
    assert torch.equal(teacher(batch())[0], answers)
    assert same(before, snapshot(teacher.network))


# the cache


def cached(live: LiveTeacher, folder, **options) -> CachedTeacher:
    shape, dtype = live.codecs[0].record((1, 32, 32))
    return CachedTeacher(live, {"train": [LogitCache(folder / "teacher" / "abc", 6, shape, dtype=dtype, **options)]})


def test_a_live_teacher_rounds_like_the_cache(teacher, settled):
    with torch.no_grad():
        exact = settled.eval()(batch().images)
    assert torch.equal(teacher.encoded(batch())[0], EXACT.encode(exact))
    assert torch.equal(teacher(batch())[0], EXACT.encode(exact).float())


@pytest.mark.parametrize("form", CODECS)
def test_a_live_teacher_says_what_it_would_store(form, settled):
    with torch.no_grad():
        exact = settled.eval()(batch().images)
    live, codec = LiveTeacher(settled, Precision(CPU), codec=CODECS[form]), CODECS[form]
    assert torch.equal(live(batch())[0], codec.decode(codec.encode(exact), (32, 32)))


def test_computed_one_by_one_logits_do_not_depend_on_the_batch(settled):
    """To the last bit, for any order and batch, with several classes too."""
    torch.manual_seed(0)
    unet = NetworkSettings(arch="unet", encoder="tu-mobilenetv3_small_050")
    several = build.build(unet, 3, ("a", "b", "c"), "backbone.teacher")
    for of in (settled, several):
        teacher = LiveTeacher(of, Precision(CPU), one_by_one=True)
        asked = batch()
        answers = teacher(asked)[0]
        for order in ([2, 0, 1], [1], [0, 2]):
            part = Batch(asked.images[order], asked.masks[order], asked.indices[order], asked.view)
            assert torch.equal(teacher(part)[0], answers[order])


@pytest.mark.parametrize("form", CODECS)
def test_stored_logits_equal_computed_ones(form, settled, tmp_path):
    teacher = LiveTeacher(settled, Precision(CPU), codec=CODECS[form])
    first = cached(teacher, tmp_path)
    answers = first(batch())[0]
    assert torch.equal(answers, teacher(batch())[0])
    assert first.counts() == {"read": 0, "computed": 3, "not_stored": 0}
    stored = first.caches["train"][0].read(0, batch().indices.tolist())
    second = cached(teacher, tmp_path)
    assert torch.equal(second(replace(batch(), answers=(stored,)))[0], answers)
    assert second.counts() == {"read": 3, "computed": 0, "not_stored": 0}


def test_a_fully_cached_teacher_is_never_built(tmp_path):
    def built():
        raise AssertionError("nobody needs the network")

    teacher = cached(LiveTeacher(build, Precision(CPU)), tmp_path)
    known = torch.zeros(3, 1, 32, 32, dtype=torch.float16)
    assert torch.equal(teacher(replace(batch(), answers=(known,)))[0], known.float())


STAGES = (3, 5)


def with_features(live: LiveTeacher, folder, **options) -> CachedTeacher:
    shapes = {"logits": (1, 32, 32), "3": (16, 4, 4), "5": (288, 1, 1)}
    return CachedTeacher(
        live, {"train": [LogitCache(folder / name, 6, shape, **options) for name, shape in shapes.items()]}
    )


def test_features_are_the_encoders_own_in_eval_mode_and_change_no_logit(teacher, settled):
    with torch.no_grad():
        maps = settled.eval().body.encoder(settled.normalised(batch().images))
    watched = LiveTeacher(teacher.network, Precision(CPU), stages=STAGES)
    logits, *features = watched(batch())
    assert torch.equal(logits, teacher(batch())[0])
    assert all(torch.equal(one, maps[stage].half().float()) for one, stage in zip(features, STAGES, strict=True))
    assert not any(each.requires_grad for each in features)
    assert not teacher.network.body.encoder._forward_hooks


def test_with_features_too_the_codec_is_of_the_logits_alone(settled):
    exact, int8 = (
        LiveTeacher(settled, Precision(CPU), stages=STAGES, codec=CODECS[form]) for form in ("exact", "int8")
    )
    (logits, *features), (other, *same) = exact.encoded(batch()), int8.encoded(batch())
    assert (logits.dtype, other.dtype) == (torch.float16, torch.uint8)
    assert all(torch.equal(one, another) for one, another in zip(features, same, strict=True))


@pytest.mark.parametrize("stages", [(), (1, 2)])
def test_a_compiled_teacher_answers_as_its_network_does_and_is_compiled_once_for_each_shape(stages):
    """The network itself, which is measured, stays as it is."""
    torch._dynamo.reset()
    graphs, own = CompileCounterWithBackend("aot_eager"), hand_made()
    compiled = LiveTeacher(own, Precision(CPU), stages=stages, backend=graphs)
    eager = LiveTeacher(own, Precision(CPU), stages=stages)
    for seed, size in enumerate((2, 2, 3, 2)):
        images = torch.randint(0, 256, (size, 3, 32, 32), generator=torch.Generator().manual_seed(seed))
        asked = Batch(images.to(torch.uint8), torch.zeros(size, 32, 32), torch.arange(size), 0)
        for one, other in zip(compiled(asked), eager(asked), strict=True):
            torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-4)  # the last bit of a half
    assert graphs.frame_count == 2
    assert not own.body.encoder._forward_hooks


def test_a_compiled_teacher_gives_the_features_that_are_asked_for_after_others():
    torch._dynamo.reset()
    for stages in ((), (1, 2), (1,), (2,)):
        compiled, eager = (
            LiveTeacher(hand_made(), Precision(CPU), stages=stages, backend=each) for each in ("eager", None)
        )
        assert all(torch.equal(*each) for each in zip(compiled(batch()), eager(batch()), strict=True))


@pytest.mark.parametrize("one_by_one", [False, True])
def test_stored_features_equal_computed_ones(teacher, tmp_path, one_by_one):
    live = LiveTeacher(teacher.network, Precision(CPU), one_by_one, STAGES)
    first, second = with_features(live, tmp_path), with_features(live, tmp_path)
    computed = first(batch())
    first.flush()
    asked = next(TrainLoader(SOURCE, Augmentation([], 0), 3, 0, stored=second.caches).epoch(0))
    assert [each.shape for each in asked.answers] == [(3, 1, 32, 32), (3, 16, 4, 4), (3, 288, 1, 1)]
    assert all(torch.equal(one, other) for one, other in zip(second(asked), computed, strict=True))
    assert second.counts() == {"read": 3, "computed": 0, "not_stored": 0}


def test_what_is_only_partly_stored_is_computed(teacher, tmp_path):
    """Logits of an earlier run are there, its features are not."""
    live = LiveTeacher(teacher.network, Precision(CPU), stages=STAGES)
    first = with_features(live, tmp_path)
    first.caches["train"][0].write(0, batch().indices.tolist(), teacher.encoded(batch())[0])
    assert next(TrainLoader(SOURCE, Augmentation([], 0), 3, 0, stored=first.caches).epoch(0)).answers is None
    first(batch())
    assert first.counts() == {"read": 0, "computed": 3, "not_stored": 0}


@pytest.mark.parametrize(("options", "not_stored"), [({}, 0), ({"writable": False}, 6), ({"budget": 0}, 6)])
def test_counts_cover_every_sample(options, not_stored, teacher, tmp_path):
    asked = cached(teacher, tmp_path, **options)
    for one in loader().epoch(0):
        asked(one)
    assert asked.counts() == {"read": 0, "computed": 6, "not_stored": not_stored}


def test_a_live_a_cached_and_a_partly_cached_teacher_give_the_same_student(teacher, tmp_path):
    """With recurring views, in different batches."""
    flip = Augmentation([albumentations.HorizontalFlip(p=0.5)], 0)
    teacher.one_by_one = True
    options = TrainingOptions(seed=0, weight_decay=0.1, betas=(0.9, 0.999), clip_norm=None)
    loss = DistillationLoss({"alpha": 1, "beta": 1, "gamma": 1, "delta": 1}, 1)
    outcomes = []
    one_view = LogitCache(tmp_path / "teacher" / "abc", 6, (1, 32, 32), budget=1.5 * file_bytes(6, 2 * 32 * 32))
    for who in (
        teacher,
        CachedTeacher(teacher, {"train": [one_view]}),
        CachedTeacher(teacher, {"train": [one_view]}),
        teacher,
    ):
        student = network(seed=1)
        rates, blocks = LearningRates(1e-2, 0, 1.0), len(student.partition.blocks)
        timeline = Timeline(Linear(4, 1), Progressive(1, 1), rates, 4, blocks)
        caches = who.caches if isinstance(who, CachedTeacher) else None
        views = TrainLoader(SOURCE, flip, 3, 0, views=2, stored=caches)
        for _ in fit(Distillation(student, loss, timeline, who), views, dict, options, Precision(CPU)):
            pass
        outcomes.append(snapshot(student))
        if caches:
            assert 6 <= who.counts()["read"] < 24
            assert who.counts()["read"] + who.counts()["computed"] == 24
    assert all(same(outcomes[0], other) for other in outcomes[1:])
