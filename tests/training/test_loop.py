"""Laws of the loop. Reference: the obvious loop, which creates an optimiser for a part when that part first trains."""

import copy
import io
import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import albumentations
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli, kl_divergence
from toy import (
    ALL_TERMS,
    BLOCKS,
    EIGHT,
    HARD,
    SOURCE,
    TRAINING,
    hand_made,
    loader,
    moved,
    plan,
    same,
    state,
    teacher,
    train,
)

from kd.data.batches.batch import Batch
from kd.distillation.losses import DistillationLoss
from kd.errors import DivergedError, UserError
from kd.networks import build
from kd.networks.network import Network
from kd.networks.precision import Precision
from kd.plan.schedules import Constant
from kd.plan.unfreeze import All, AtEpoch, Frozen, Progressive
from kd.settings import NetworkSettings
from kd.system.world import SOLO
from kd.training import step
from kd.training.step import TrainingOptions, apply_plan, optimizer_for, step_seed


def names_in(network: Network, parts) -> set[str]:
    """Weights, biases and statistics below parts of the body, by name alone."""
    return {name for name in network.state_dict() if name.startswith(tuple(f"body.{part}." for part in parts))}


@pytest.fixture
def optimizers(monkeypatch):
    """The optimisers that `fit` creates."""
    made = []

    def spy(*args):
        made.append(optimizer_for(*args))
        return made[-1]

    monkeypatch.setattr(step, "optimizer_for", spy)
    return made


@pytest.fixture
def gradients(monkeypatch):
    """The gradients of each step of each `fit`."""
    steps = []

    def watch(*args):
        optimizer = optimizer_for(*args)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.register_step_pre_hook(lambda *_: steps.append([p.grad.clone() for p in parameters]))
        return optimizer

    monkeypatch.setattr(step, "optimizer_for", watch)
    return steps


# references


def obvious_loop(network, timeline, batches, options, weights=ALL_TERMS):
    """An optimiser per part, created when the part first trains; unfrozen blocks by name; rates written out."""
    loss, answer = DistillationLoss(weights, 1), teacher()
    parts = {"decoder": [*network.body.decoder.parameters(), *network.body.head.parameters()]}
    optimizers, epochs = {}, len(timeline)
    for epoch in range(epochs):
        opened = BLOCKS[:epoch]  # Progressive(start_epoch=1, rate=1)
        temperature = 4 - 3 * epoch / (epochs - 1)
        rate = 1e-4 + (1e-2 - 1e-4) * (1 + math.cos(math.pi * epoch / epochs)) / 2
        network.requires_grad_(False).train()
        network.body.encoder.spare.eval()
        for name in BLOCKS:
            getattr(network.body.encoder, name).train(name in opened)
        parts |= {name: list(getattr(network.body.encoder, name).parameters()) for name in opened}
        for name, parameters in parts.items():
            for parameter in parameters:
                parameter.requires_grad_(True)
            if name not in optimizers:
                optimizers[name] = (
                    torch.optim.AdamW(parameters, betas=options.betas, weight_decay=options.weight_decay, fused=True)
                    if options.algorithm == "adamw"
                    else torch.optim.SGD(parameters, momentum=options.momentum, nesterov=options.nesterov,
                                         weight_decay=options.weight_decay, fused=True)
                )  # fmt: skip
            scale = 1.0 if name == "decoder" else 0.3 * 0.5 ** BLOCKS.index(name)
            optimizers[name].param_groups[0]["lr"] = rate * scale
        steps = list(batches.epoch(epoch))
        for first in range(0, len(steps), options.accumulate):
            torch.manual_seed(step_seed(options.seed, epoch, first))
            group = steps[first : first + options.accumulate]
            for batch in group:
                (answers,) = answer(batch)
                (loss(network(batch.images), batch.masks, answers, temperature).loss / len(group)).backward()
            if options.clip_norm:
                torch.nn.utils.clip_grad_norm_(network.parameters(), options.clip_norm)
            for optimizer in optimizers.values():
                optimizer.step()
            for parameter in network.parameters():
                parameter.grad = None


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("accumulate", [1, 2, 5])
def test_fit_is_the_obvious_loop_bit_for_bit(accumulate, clip_norm):
    """Invariant 5: a late block is one whose optimiser was created late. There are 3 batches: groups may be short."""
    options = TrainingOptions(seed=4, weight_decay=0.1, betas=(0.8, 0.99), clip_norm=clip_norm, accumulate=accumulate)
    ours, reference = hand_made(), hand_made()
    timeline = plan(epochs=4)
    for _ in train(ours, timeline, options=options):
        pass
    obvious_loop(reference, timeline, loader(), options)
    assert moved(state(ours), hand_made()) >= names_in(ours, ["decoder", "head", *(f"encoder.{b}" for b in BLOCKS)])
    assert same(ours, reference)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_fit_with_sgd_is_the_obvious_loop_bit_for_bit(momentum, nesterov):
    """Invariant 5 again: momentum never builds up while a block is frozen."""
    options = replace(TRAINING, algorithm="sgd", momentum=momentum, nesterov=nesterov, clip_norm=0.5)
    ours, reference = hand_made(), hand_made()
    for _ in train(ours, plan(epochs=4), options=options):
        pass
    obvious_loop(reference, plan(epochs=4), loader(), options)
    assert moved(state(ours), hand_made()) >= names_in(ours, ["decoder", "head", *(f"encoder.{b}" for b in BLOCKS)])
    assert same(ours, reference)


def test_a_skipped_first_step_leaves_sgd_without_momentum():
    """torch's own fused SGD keeps memory without a value there."""
    weight = torch.nn.Linear(4, 4)
    network = SimpleNamespace(blocks=SimpleNamespace(groups=lambda _: [{"params": [*weight.parameters()]}]))
    optimizer = optimizer_for(network, replace(TRAINING, algorithm="sgd"))
    optimizer.param_groups[0]["lr"] = 0.1
    before = state(weight)
    for parameter in weight.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert moved(before, weight) == set()
    assert all(not each["momentum_buffer"].any() for each in optimizer.state.values())


def test_the_first_record_holds_the_terms_by_their_definitions():
    """Invariants 2 and 3: the binary KL of two Bernoulli variables at T, times T squared, a mean over pixels."""
    student, answer = hand_made(drop=0.0), teacher()
    batch = next(loader(batch_size=6).epoch(0))
    with torch.no_grad():
        logits, target = copy.deepcopy(student).train()(batch.images), answer(batch)[0]
    truth = batch.masks[:, None].float()
    probability = logits.sigmoid()
    kl = kl_divergence(Bernoulli(logits=target.double() / 4), Bernoulli(logits=logits.double() / 4)).mean()
    expected = {
        "kl": 16 * kl.item(),
        "mse": F.mse_loss(logits, target).item(),
        "ce": F.binary_cross_entropy_with_logits(logits, truth).item(),
        "dice": 1 - (2 * (probability * truth).sum() / (probability + truth).sum()).item(),
    }
    found = next(train(student, plan(All()), train=loader(batch_size=6))).train
    assert expected["kl"] > 0.1
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    total = sum(weight * term for weight, term in zip(ALL_TERMS.values(), expected.values(), strict=True))
    assert found["loss"] == pytest.approx(total, rel=1e-4)


class Uneven:
    """A loader with a short last batch."""

    def __init__(self) -> None:
        self.batches = [next(loader(batch_size=size, seed=size).epoch(0)) for size in (4, 1)]
        self.world = SOLO

    def steps(self) -> int:
        return 2

    def epoch(self, epoch: int, start: int = 0):
        return iter(self.batches[start:])


def test_an_epochs_terms_are_means_over_images():
    network = hand_made(norm=False, drop=0.0)
    loss = DistillationLoss(HARD, 1)
    (four, one) = (loss(network(b.images), b.masks, None, 1.0).scalars() for b in Uneven().batches)
    found = next(train(network, plan(lr=0.0, min_lr=0.0), HARD, train=Uneven(), who=None)).train
    assert found == pytest.approx({name: (4 * four[name].item() + one[name].item()) / 5 for name in found})
    assert found.keys() == {"loss", "ce", "dice"}


@pytest.mark.parametrize(("accumulate", "batch_size"), [(2, 4), (4, 2), (8, 1)])
def test_accumulating_batches_is_one_large_batch(accumulate, batch_size, gradients):
    """Without batch norm and dropout, and for terms that are means over pixels."""
    for options, size in ((TRAINING, 8), (replace(TRAINING, accumulate=accumulate), batch_size)):
        network, batches = hand_made(norm=False, drop=0.0), loader(EIGHT, batch_size=size)
        next(train(network, plan(All()), {**HARD, "delta": 0}, train=batches, options=options, who=None))
    whole, parts = gradients
    assert len(whole) == 10
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-7)


# a generator


def test_nothing_happens_before_the_first_item_is_requested():
    network, calls = hand_made(), []
    answer, before = teacher(), state(network)
    random = torch.get_rng_state()
    epochs = train(network, validate=lambda: calls.append(1) or {}, who=lambda: answer)
    assert torch.equal(random, torch.get_rng_state())
    assert moved(before, network) == set()
    assert calls == []
    next(epochs)
    assert moved(before, network)
    assert calls == [1]


def test_each_item_is_one_epoch():
    network = hand_made()
    results = [result.plan for result in train(network, plan(epochs=4))]
    assert results == list(plan(epochs=4))


@pytest.mark.parametrize(
    ("every", "epochs", "seen"), [(1, 3, [0, 1, 2]), (2, 5, [1, 3, 4]), (3, 6, [2, 5]), (9, 4, [3])]
)
def test_validation_runs_every_few_epochs_and_at_the_end(every, epochs, seen):
    options = replace(TRAINING, validate_every=every)
    results = list(train(hand_made(), plan(epochs=epochs), options=options, validate=lambda: {"miou": 0.5}))
    assert [result.plan.epoch for result in results if result.val] == seen
    assert [result.plan.epoch for result in results if "val/miou" in result.metrics()] == seen


def test_validating_less_often_changes_no_weight():
    often, seldom = hand_made(), hand_made()
    list(train(often, plan(epochs=3)))
    list(train(seldom, plan(epochs=3), options=replace(TRAINING, validate_every=2)))
    assert same(often, seldom)


def test_validation_sees_the_weights_at_the_epochs_end():
    network, seen = hand_made(), []

    def validate():
        seen.append(state(network))
        network.eval()  # as an evaluation may leave it
        return {"miou": float(len(seen)), "loss": None}

    for count, result in enumerate(train(network, validate=validate), start=1):
        assert len(seen) == count
        assert moved(seen[-1], network) == set()
        assert result.val == {"miou": count, "loss": None}


def test_a_mode_changed_by_validation_does_not_matter():
    disturbed, reference = hand_made(), hand_made()
    for _ in train(disturbed, validate=lambda: disturbed.eval() and {}):
        torch.manual_seed(1)
        disturbed.requires_grad_(True)
    for _ in train(reference):
        pass
    assert same(disturbed, reference)


# the record


def test_a_record_has_the_names_that_users_look_for():
    validate = lambda: {"loss": 0.5, "miou": None, "iou/foreground": 0.25, "teacher_agreement": 1.0}  # noqa: E731
    result = next(train(hand_made(), plan(policy=All()), validate=validate))
    record = result.metrics()
    assert list(record) == [
        "epoch", "temperature", "unfrozen_blocks", "lr/decoder", "lr/encoder",
        "train/loss", "train/kl", "train/mse", "train/ce", "train/dice",
        "val/loss", "val/miou", "val/iou/foreground", "val/teacher_agreement",
        "seconds", "seconds_waiting", "images_per_second",
    ]  # fmt: skip
    assert all(type(value) in (int, float, type(None)) for value in record.values())
    assert (record["val/miou"], record["val/iou/foreground"]) == (None, 0.25)
    assert 0 < record["seconds_waiting"] < record["seconds"]
    assert record["seconds"] * record["images_per_second"] == pytest.approx(6)


PLANNED = ("epoch", "temperature", "unfrozen_blocks", "lr/decoder", "lr/encoder")


def test_records_show_the_plan():
    timeline = plan(epochs=5)
    for result in train(hand_made(), timeline, HARD, who=None):
        expected = timeline[result.plan.epoch]
        record = result.metrics()
        assert {name: record.get(name) for name in PLANNED} == {
            "epoch": expected.epoch,
            "temperature": expected.temperature,
            "unfrozen_blocks": expected.unfrozen_blocks,
            "lr/decoder": expected.lr_decoder,
            "lr/encoder": expected.lr_blocks[0] if expected.unfrozen_blocks else None,
        }


def test_without_a_teacher_a_record_has_no_temperature():
    timeline = replace(plan(), schedule=None)
    assert all("temperature" not in result.metrics() for result in train(hand_made(), timeline, HARD, who=None))


@pytest.mark.parametrize(
    ("weights", "terms"),
    [
        (ALL_TERMS, ["loss", "kl", "mse", "ce", "dice"]),
        ({**HARD, "alpha": 1}, ["loss", "kl", "ce", "dice"]),
        ({**HARD, "gamma": 0}, ["loss", "dice"]),
    ],
)
def test_only_terms_with_a_weight_are_recorded(weights, terms):
    assert sorted(next(train(hand_made(), weights=weights)).train) == sorted(terms)


def test_a_loss_that_needs_no_teacher_trains_without_one():
    network, before = hand_made(), state(hand_made())
    results = list(train(network, weights=HARD, who=None))
    assert moved(before, network)
    assert [sorted(result.train) for result in results] == [["ce", "dice", "loss"]] * 3


# invariants 1, 4, 5, 9


def test_temperature_affects_only_the_distillation_term():
    """Invariant 1: without that term the schedule makes no difference, bit for bit."""

    def trained(temperature, weights):
        network = hand_made()
        for _ in train(network, plan(schedule=Constant(temperature)), weights):
            pass
        return network

    without_kl = {**ALL_TERMS, "alpha": 0}
    assert same(trained(1.0, without_kl), trained(20.0, without_kl))
    assert not same(trained(1.0, ALL_TERMS), trained(20.0, ALL_TERMS))


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_frozen_blocks_are_bit_identical_after_training_and_unfrozen_ones_are_not(count):
    """Invariant 4, weight decay and statistics included."""
    network = hand_made()
    policy = Progressive(0, 1, max_blocks=count) if count else Frozen()
    before = state(network)
    for _ in train(network, plan(policy)):
        pass
    opened = {1: BLOCKS[:1], 2: BLOCKS[:2], 3: BLOCKS, 0: ()}[count]
    assert moved(before, network) == names_in(network, ["decoder", "head", *(f"encoder.{name}" for name in opened)])


def test_a_block_changes_from_the_epoch_in_which_it_is_unfrozen():
    """Invariant 4."""
    network = hand_made()
    before, epochs = state(network), train(network, plan(Progressive(1, 1), epochs=4))
    for result in epochs:
        expected = names_in(network, ["decoder", "head"] if not result.plan.epoch else [])
        opened = [f"encoder.{name}" for name in BLOCKS[: result.plan.epoch]]
        assert moved(before, network) == expected | names_in(network, ["decoder", "head", *opened])


def test_a_frozen_encoder_is_never_differentiated():
    """Frozen parts do no backward work."""
    network, features = hand_made(), []
    network.body.encoder.register_forward_hook(lambda module, inputs, output: features.extend(output))
    for _ in train(network, plan(Frozen())):
        pass
    assert len(features) == 3 * 9
    assert not any(feature.requires_grad for feature in features)


def test_all_groups_exist_from_the_first_step(optimizers):
    """Invariant 5: one group for the decoder and one per block, whatever is unfrozen."""
    network = hand_made()
    for result in train(network, plan(epochs=5)):
        (optimizer,) = optimizers
        assert [len(group["params"]) for group in optimizer.param_groups] == [4, 4, 4, 4]
        assert network.unfrozen_blocks == result.plan.unfrozen_blocks


def test_groups_are_the_decoder_and_the_blocks_from_the_deepest_up():
    network = hand_made()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = [{names[id(p)] for p in group["params"]} for group in optimizer_for(network, TRAINING).param_groups]
    weights = {name for name, _ in network.named_parameters()}
    assert groups[0] == names_in(network, ["decoder", "head"])
    assert groups[1:] == [names_in(network, [f"encoder.{block}"]) & weights for block in BLOCKS]
    assert weights - set().union(*groups) == names_in(network, ["encoder.spare"])


def test_an_unfrozen_block_starts_with_empty_optimiser_state(optimizers):
    """Invariant 5: no moments build up before; afterwards there is one step per step since."""
    network = hand_made()
    for result in train(network, plan(Progressive(1, 2), epochs=6)):
        (optimizer,) = optimizers
        epoch = result.plan.epoch
        trained = [3 * (epoch + 1), *(3 * max(0, epoch - opens + 1) for opens in (1, 3, 5))]
        for group, steps in zip(optimizer.param_groups, trained, strict=True):
            found = [int(optimizer.state[p]["step"]) if p in optimizer.state else 0 for p in group["params"]]
            assert found == [steps] * 4


def test_a_block_that_is_frozen_again_does_not_change():
    """Invariant 4: moments of earlier steps do not move it, nor does weight decay."""
    network = hand_made()
    optimizer, timeline = optimizer_for(network, TRAINING), plan(AtEpoch(1), epochs=2)
    batch = next(loader().epoch(0))
    for epoch in (1, 0):
        apply_plan(network, optimizer, timeline[epoch])
        network.train()
        before = state(network)
        network(batch.images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        encoder = {name for name in moved(before, network) if ".encoder." in name}
        assert bool(encoder) == (epoch == 1)


def test_learning_rates_are_those_of_the_plan_as_plain_floats(optimizers):
    timeline = plan(epochs=5)
    for result in train(hand_made(), timeline):
        rates = [group["lr"] for group in optimizers[0].param_groups]
        assert all(type(rate) is float for rate in rates)
        expected = timeline[result.plan.epoch]
        assert rates == [expected.lr_decoder, *expected.lr_blocks]


def test_the_optimisers_state_can_be_loaded_without_unpickling(optimizers):
    """Invariant 12: `weights_only` accepts it as it is."""
    next(train(hand_made()))
    file = io.BytesIO()
    torch.save(optimizers[0].state_dict(), file)
    file.seek(0)
    assert len(torch.load(file, weights_only=True)["param_groups"]) == 4


def test_teacher_and_student_see_the_same_view():
    """Invariant 9: the very same augmented batch."""
    network, shown, asked = hand_made(), [], []
    answer = teacher()
    network.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))

    def remember(batch: Batch) -> torch.Tensor:
        asked.append(batch.images)
        return answer(batch)

    flips = loader(transforms=[albumentations.HorizontalFlip(p=0.5), albumentations.GaussNoise(p=1)])
    for _ in train(network, train=flips, who=lambda: remember):
        pass
    assert len(shown) == len(asked) == 9
    assert all(torch.equal(one, other) for one, other in zip(shown, asked, strict=True))
    assert not torch.equal(shown[0], shown[3])  # another epoch, another view


def test_a_plan_for_another_encoder_is_refused():
    with pytest.raises(ValueError, match="zip"):
        next(train(hand_made(), plan(blocks=7)))


# what a run depends on


def weights_after(epochs=2, seed=0, order=None, workers=0, network=hand_made):
    student = network()
    options = replace(TRAINING, seed=seed, clip_norm=5.0)
    flips = [albumentations.HorizontalFlip(p=0.5)]
    batches = loader(seed=seed if order is None else order, workers=workers, transforms=flips)
    for _ in train(student, plan(epochs=epochs), train=batches, options=options):
        pass
    return state(student)


def equal(one, other) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_same_seed_gives_the_same_weights_bit_for_bit():
    assert equal(weights_after(), weights_after())


def test_another_seed_gives_other_weights():
    assert not equal(weights_after(), weights_after(seed=1))


def test_the_seed_reaches_dropout_and_the_order_each():
    assert not equal(weights_after(seed=0, order=0), weights_after(seed=1, order=0))
    assert not equal(weights_after(seed=0, order=0), weights_after(seed=0, order=1))


@pytest.mark.parametrize("before", [7, 123])
def test_earlier_random_draws_do_not_matter(before):
    def disturbed():
        network = hand_made()
        torch.manual_seed(before)
        torch.rand(before)
        return network

    assert equal(weights_after(network=disturbed), weights_after())


def test_the_number_of_workers_does_not_matter():
    assert equal(weights_after(workers=2), weights_after(workers=0))


def test_a_real_network_trains_the_same_twice():
    def real():
        torch.manual_seed(0)
        settings = NetworkSettings(arch="unet", encoder="tu-mobilenetv3_small_050")
        return build.build(settings, 1, SOURCE.class_names, "backbone.student")

    timeline = plan(Progressive(1, 1), epochs=2, blocks=6)
    one, other = real(), real()
    for network in (one, other):
        for _ in train(network, timeline):
            pass
    assert same(one, other)
    opened = tuple(f"body.encoder.{name}." for name in one.partition.blocks[0].modules)
    encoder = {name for name in moved(state(one), real()) if ".encoder." in name}
    assert encoder == {name for name in one.state_dict() if name.startswith(opened)}


def test_step_seeds_are_different_and_fit_torch():
    seeds = {step_seed(*where) for where in itertools.product((0, 1, 11), (-1, 0, 1, 11), (0, 1, 11))}
    assert len(seeds) == 36
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(1, 11, 1) != step_seed(11, 1, 1)


# precision, clipping, divergence, learning


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_mixed_precision_trains_to_nearly_the_same_loss(name, clip_norm):
    options = replace(TRAINING, clip_norm=clip_norm)
    mixed, exact = hand_made(drop=0.0), hand_made(drop=0.0)
    half = list(train(mixed, plan(All()), options=options, precision=Precision(torch.device("cpu"), name)))
    full = list(train(exact, plan(All()), options=options))
    assert [r.train["loss"] for r in half] == pytest.approx([r.train["loss"] for r in full], rel=0.1)
    assert all(value.dtype in (torch.float32, torch.int64) for value in mixed.state_dict().values())
    assert not same(mixed, exact)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_no_step_has_gradients_above_the_norm(accumulate, gradients):
    """Clipped once per step, over all parameters together; without clipping they are larger."""
    for clip_norm in (None, 1e-3):
        next(train(hand_made(), plan(All()), options=replace(TRAINING, clip_norm=clip_norm, accumulate=accumulate)))
    norms = [torch.cat([gradient.flatten() for gradient in step]).norm().item() for step in gradients]
    free, clipped = norms[: 3 // accumulate], norms[3 // accumulate :]
    assert min(free) > 1e-2
    assert clipped == pytest.approx([1e-3] * (3 // accumulate), rel=1e-3)


def test_fp16_gradients_are_clipped_at_their_own_scale():
    """A norm that no gradient reaches changes nothing, bit for bit; scaled by 65,536 they would all reach it."""
    half = Precision(torch.device("cpu"), "fp16")
    free, bounded = hand_made(), hand_made()
    for network, clip_norm in ((free, None), (bounded, 100.0)):
        for _ in train(network, plan(All()), options=replace(TRAINING, clip_norm=clip_norm), precision=half):
            pass
    assert same(free, bounded)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nonfinite_loss_ends_the_training(value):
    network, calls = hand_made(), []
    with torch.no_grad():
        network.body.head.bias.fill_(value)
    epochs = train(network, validate=lambda: calls.append(1) or {})
    with pytest.raises(DivergedError, match=r"^train/loss is (nan|inf) .* in epoch 1, step 0; lower .*fp32") as caught:
        next(epochs)
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)
    assert calls == []


def test_training_learns():
    network = hand_made(drop=0.0)
    results = list(train(network, plan(All(), epochs=25, schedule=Constant(2.0)), train=loader(batch_size=3)))
    for term in ("loss", "kl", "mse"):
        assert results[-1].train[term] < 0.8 * results[0].train[term]
