"""The benchmark: its arithmetic, that the loop it compares with does the same job, and that it writes what it says."""

import json
import os
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from scipy import stats

from benchmarks import bench, crowd, fit, history, machine, pipeline, report, screen, terms
from benchmarks.case import QUICK, Case, folder_of
from benchmarks.elsewhere import elsewhere
from benchmarks.hand_written import Loop, total_loss
from benchmarks.rounds import exponent, race, ratios, spread
from kd.data import Folder
from kd.distillation.losses import DistillationLoss
from kd.errors import DataError
from kd.experiment.evaluator import Evaluator

# arithmetic


class Track:
    """A clock that only the runners move: each of its turns takes as long as the day is slow."""

    def __init__(self):
        self.now, self.slowness, self.turns = 0.0, 1.0, []

    def clock(self):
        return self.now

    def runner(self, name, seconds):
        while True:
            self.turns.append(name)
            self.now += seconds * self.slowness
            yield


def raced(rounds, warm_up=1, slower=lambda turn: 1.0, **runners):
    track = Track()

    def between(turn):
        track.slowness = slower(turn + 1)

    everybody = {name: track.runner(name, seconds) for name, seconds in runners.items()}
    return track, race(everybody, rounds, warm_up, track.clock, between)


def test_everybody_has_a_turn_in_each_round_and_nobody_is_always_first():
    track, times = raced(3, one=1.0, other=2.0)
    assert track.turns == ["one", "other", "other", "one"] * 2
    assert times == {"one": [1.0] * 3, "other": [2.0] * 3}


def test_rounds_that_warm_up_are_not_counted():
    _, times = raced(2, warm_up=2, slower=lambda turn: 1.0 if turn >= 2 else 100.0, one=1.0)
    assert times == {"one": [1.0, 1.0]}


def test_a_ratio_does_not_see_how_fast_the_machine_is_in_a_round():
    _, times = raced(5, slower=lambda turn: 2.0**turn, one=3.0, other=2.0)
    assert ratios(times["one"], times["other"]) == [1.5] * 5


def test_a_ratio_to_several_is_one_to_their_sum():
    assert ratios([6.0, 10.0], [1.0, 3.0], [2.0, 2.0]) == [2.0, 2.0]


def test_rounds_of_different_number_make_no_ratio():
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0, 2.0], [1.0])


def test_a_spread_is_the_median_with_the_least_and_the_greatest():
    assert spread([5.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 5.0, "rounds": 3}


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_its_power(power):
    sizes = [32, 64, 128]
    assert exponent(sizes, [0.1 * size**power for size in sizes]) == pytest.approx(power)


def test_a_matrix_product_is_counted_as_two_operations_per_element_of_a_row_and_column():
    left, right = torch.ones(4, 5), torch.ones(5, 6)
    assert machine.operations(iter(left @ right for _ in repeat(None))) == 2 * 4 * 5 * 6


@pytest.mark.parametrize("groups", [1, 4, 96])
def test_a_convolution_forward_and_backward_is_three_times_its_forward_pass(groups):
    """96 channels, 8 x 8 pixels, a 3 x 3 kernel: 2 x 9 x 96 / groups operations for each of 96 x 64 outputs."""
    images, weights = torch.zeros(1, 96, 8, 8, requires_grad=True), torch.zeros(96, 96 // groups, 3, 3)
    by_hand = 2 * 9 * (96 // groups) * 96 * 64

    def turn(trained):
        weights.requires_grad_(trained)
        yield torch.nn.functional.conv2d(images, weights, padding=1, groups=groups).sum().backward()

    assert machine.operations(turn(True)) == 3 * by_hand
    assert machine.operations(turn(False)) == 2 * by_hand  # frozen weights need no gradient


def test_a_crowd_of_workers_ends_a_study_with_exactly_its_trials(tmp_path):
    url = f"sqlite:///{tmp_path}/studies.db"
    claims = crowd.simulated(url, workers=3, trials=5, seconds=0.0)
    assert len(claims) >= 5 + 3  # and a last one of each worker
    assert crowd.ledger(url, 5).tally().finished == 5


@pytest.mark.slow
def test_copies_of_a_run_are_runs_of_their_own(tmp_path):
    run = history.trained(tmp_path)
    history.copied(tmp_path, run, 4)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("kd-sweeper").experiment_id
    runs = client.search_runs([experiment], "tags.role = 'student'")
    assert len({tuple(sorted(each.data.metrics.items())) for each in runs}) == 1
    folders = [json.loads(path.read_text()) for path in tmp_path.glob("runs/20*/*/run.json")]
    assert sorted(each["tracking"]["run_id"] for each in folders) == sorted(each.info.run_id for each in runs)
    assert len({each["id"] for each in folders}) == len(folders) == 4


@pytest.mark.parametrize("name", pipeline.RECIPES)
def test_each_transform_of_an_augmentation_has_its_microseconds_a_sample(name):
    decoded = [(np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8))]
    transforms = pipeline._recipe(name)
    found = pipeline._profiled(transforms, decoded)
    assert found.keys() == {"none", *(type(each).__name__ for each in transforms)}
    next(pipeline._augment(transforms, decoded))


def test_a_peak_is_operations_over_the_time_of_a_product():
    assert 0 < machine.peak(torch.device("cpu"), side=64, times=1) < 1e15


def test_an_iterator_elsewhere_gives_its_items_from_another_process():
    with elsewhere(iter, [5, 6]) as items:
        assert [next(items), next(items)] == [5, 6]
    with elsewhere(iter, os.getpid, None) as items:
        assert next(items) == next(items) != os.getpid()


# the same job


@pytest.fixture(scope="module")
def small():
    """Overrides that name 8 pictures in files, 32x32, and a plan that opens the encoder block by block."""
    plan = ["trainer.epochs=3", "unfreeze.start_epoch=1", "unfreeze.rate=1", "trainer.device=cpu", "loss.alpha=0.6"]
    with folder_of(replace(QUICK, steps=2, batch=4)) as overrides:
        yield [*overrides, *plan, "trainer.batch_size=4"]


def double(tensor, single=torch.Tensor.float):
    return tensor.double() if tensor.is_floating_point() else single(tensor)


def in_double(case, monkeypatch):
    """Both trainings in double precision, where the last bit that AdamW makes so much of is out of sight."""
    monkeypatch.setattr(torch.Tensor, "float", double)
    ours, teacher, loop = case.network().double(), case.teacher.double(), Loop(case.job(), torch.device("cpu"))
    for network in (loop.student, loop.teacher):
        network.double()
    loop.mean, loop.std = loop.mean.double(), loop.std.double()
    return ours, lambda batch: (teacher.eval()(batch.images).detach(),), loop


def apart(ours, loop):
    """The greatest distance of any number in one student from its like in the other."""
    by_hand = loop.student.state_dict()
    return max((value - by_hand[name]).abs().max().item() for name, value in ours.body.state_dict().items())


@pytest.mark.slow
def test_the_loop_by_hand_trains_the_same_student(small, monkeypatch):
    case = Case.of(QUICK, small)
    ours, teacher, loop = in_double(case, monkeypatch)
    begun = {name: value.clone() for name, value in ours.state_dict().items()}
    for _ in zip(case.fit(case.loader(), teacher, network=ours), loop.epochs(), strict=True):
        assert apart(ours, loop) < 1e-6
    stem, deepest, decoder = "_conv_stem.weight", "_blocks.15._project_conv.weight", "decoder.blocks.0.conv1.0.weight"
    moved = {name for name, value in ours.state_dict().items() if (value - begun[name]).abs().max() > 1e-4}
    assert {f"body.encoder.{deepest}", f"body.{decoder}"} <= moved
    assert f"body.encoder.{stem}" not in moved
    evaluation = Evaluator(case.bench).evaluate(ours, "val").metrics(ours.class_names)
    assert loop.miou() == pytest.approx(evaluation["miou"], abs=1e-12)


@pytest.mark.parametrize("classes", [1, 3])
def test_the_loss_by_hand_has_the_same_gradient(classes):
    """The teacher's entropy, by which the two differ, has none; at another temperature it is another one."""
    torch.manual_seed(0)
    logits = torch.randn(2, classes, 4, 5, dtype=torch.float64, requires_grad=True)
    answers = 4 * torch.randn(2, classes, 4, 5, dtype=torch.float64)
    masks = torch.randint(max(2, classes), (2, 4, 5), dtype=torch.uint8)
    weights = {"alpha": 0.3, "beta": 0.5, "gamma": 0.7, "delta": 1.1}

    def by_hand(temperature):
        return torch.autograd.grad(total_loss(logits, answers, masks, temperature, weights), logits)[0]

    for temperature in (1.0, 4.0):
        ours = DistillationLoss(weights, classes)(logits, masks, answers, temperature).loss
        (wanted,) = torch.autograd.grad(ours, logits)
        torch.testing.assert_close(by_hand(temperature), wanted, rtol=1e-4, atol=1e-8)
        assert (by_hand(2 * temperature) - wanted).abs().max() > 1e-3


# what is measured


def test_of_data_of_ones_own_as_much_is_measured_as_an_epoch_needs(small):
    root = Path(next(each for each in small if each.startswith("data.root=")).removeprefix("data.root="))
    with folder_of(replace(QUICK, steps=1, batch=3), root) as overrides:
        found, whole = Case.of(QUICK, overrides).bench.data, Folder(root, image_size=(32, 32))
        assert found.size("train") == 3
        for index in range(3):
            for one, other in zip(found.read("train", index), whole.read("train", index), strict=True):
                np.testing.assert_array_equal(one, other)


def test_a_folder_that_is_not_there_is_told_in_one_line(tmp_path):
    with pytest.raises(DataError, match="is not a folder"), folder_of(QUICK, tmp_path / "none"):
        pass


# end to end


SPREAD = {"median", "min", "max", "rounds"}
BY_STATE = [
    "warm_over_student", "cold_over_live", "live_over_parts", "epoch_over_steps", "hand_written_over_warm",
    "hand_written_channels_last_over_warm",
]  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "results.json"
    bench.main(["--quick", "--only", "steps,startup,tracking", "--out", str(out)])
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_STATE)
def test_a_ratio_is_told_for_a_frozen_and_for_an_unfrozen_encoder(results, name):
    assert set(results[name]) == {"frozen", "unfrozen"}
    for found in results[name].values():
        assert set(found) == SPREAD
        assert 0 < found["min"] <= found["median"] <= found["max"]


@pytest.mark.slow
def test_a_ratio_lies_between_those_of_its_rounds(results):
    """Which the ratio of two medians need not: the median of ratios is reported."""
    for name, (over, *under) in bench.steps.RATIOS.items():
        for state, seconds in results["seconds_per_step"].items():
            found = results[name][state]
            assert found["min"] <= seconds[over]["max"] / sum(seconds[each]["min"] for each in under)
            assert found["max"] >= seconds[over]["min"] / sum(seconds[each]["max"] for each in under)


@pytest.mark.slow
def test_the_start_is_told_in_cpu_seconds(results):
    assert set(results["startup_cpu_seconds"]) == {"help", "error", "hydra alone"}
    assert all(found["min"] > 0 for found in results["startup_cpu_seconds"].values())
    assert results["tracking_share"]["min"] > 0


@pytest.mark.slow
def test_the_machine_and_the_libraries_are_told(results):
    assert results["machine"]["threads"] == torch.get_num_threads()
    assert torch.__version__.startswith(results["versions"]["torch"])
    assert {"cpu", "cores", "gpu"} <= set(results["machine"])
    assert {"python", "optuna", "mlflow", "hydra-core", "segmentation-models-pytorch"} <= set(results["versions"])


@pytest.mark.slow
def test_every_ratio_stands_in_the_table(results):
    assert {report.TITLES[name] for name in BY_STATE} <= set(report.table(results).columns[0].cells)


def test_the_readme_says_what_was_measured():
    """`make bench` writes it there."""
    figures = report.in_readme(json.loads(bench.RESULTS.read_text()))
    assert report.between("speed").findall(bench.README.read_text()) == [figures]
    assert report.between("screen").findall(bench.README.read_text()) == [screen.in_readme(screen.known(screen.FILE))]
    assert report.between("fit").findall(fit.PAGE.read_text()) == [fit.table(screen.known(fit.FILE))]


@pytest.mark.slow
def test_figures_are_put_into_their_place_in_a_readme_and_nothing_else_is_changed(results, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- speed -->\nold\n<!-- /speed -->\nafter\n")
    report.write_readme(readme, "speed", report.in_readme(results))
    assert readme.read_text() == f"before\n<!-- speed -->\n{report.in_readme(results)}<!-- /speed -->\nafter\n"
    lines = report.in_readme(results).splitlines()
    assert {line.count("|") for line in lines} == {5}
    assert any(line.startswith(f"| {report.TITLES['warm_over_student']} |") for line in lines)


def test_an_unknown_section_is_refused_by_name(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--only", "steps,speed"])
    assert "'speed' is no section; choose from steps," in capsys.readouterr().err


def test_the_table_of_arms_has_paired_gains_over_the_student_alone():
    def line(arm, seed, value):
        return {"data": "nuclei", "arm": arm, "seed": seed, "student": {"test/miou": value}}

    lines = [
        line("alone", 0, 0.5),
        line("alone", 1, 0.75),
        line("soft_targets", 0, 0.625),
        line("soft_targets", 1, 0.875),
    ]
    rows = screen.table([*lines, line("composite", 0, 0.25)]).splitlines()
    assert rows[3] == "| nuclei | `loss=soft_targets` | 2 | 0.7500 ± 0.1768 | **+0.1250 (+0.1250 to +0.1250)** |"
    assert rows[4] == "| nuclei | `loss=composite` | 1 | 0.2500 | -0.2500, one seed |"
    assert len(rows) == 5
    assert screen.table(lines, least=3).splitlines()[2:] == []


def test_a_gain_is_certain_among_all_that_are_looked_at():
    """Against Holm's step-down procedure, written as its definition: reject while the next p is small enough."""
    random = np.random.default_rng(0)
    gains = {name: screen.Spread(dict(enumerate(random.normal(name / 800, 0.004, 5)))) for name in range(12)}
    ps = {name: stats.ttest_1samp(list(gain.by_seed.values()), 0).pvalue for name, gain in gains.items()}
    ordered, rejected = sorted(ps, key=ps.get), set()
    while ordered and ps[ordered[0]] <= 0.05 / len(ordered):
        rejected.add(ordered.pop(0))
    assert screen.certain(gains) == rejected
    assert 0 < len(rejected) < sum(p < 0.05 for p in ps.values())
    assert screen.certain({"one": screen.Spread({0: 0.1}), "none": screen.Spread({0: 0.0, 1: 0.0})}) == set()


def test_students_with_fewer_masks_are_compared_with_one_that_has_as_few():
    values = {"alone": 0.75, "third": 0.5, "third_soft_targets": 0.5, "third_and_pictures": 0.625}
    lines = [
        {"data": "nuclei", "arm": arm, "seed": seed, "student": {"test/miou": value + seed / 8}}
        for arm, value in values.items()
        for seed in (0, 1)
    ]
    gains = [row.split(" | ")[-1] for row in screen.table(lines).splitlines()[2:]]
    assert gains == [" |", " |", "+0.0000 (+0.0000 to +0.0000) |", "**+0.1250 (+0.1250 to +0.1250)** |"]


def test_every_arm_of_a_seed_comes_before_the_next_seed_and_binary_data_has_no_arm_of_three_classes():
    arms = [*screen.ARMS]
    jobs = screen.jobs({"nuclei": "a", "camvid": "b"}, arms, seeds=2)
    found = [(name["seed"], name["data"], name["arm"]) for name, _ in jobs]
    allowed = {"nuclei": [arm for arm in arms if arm not in screen.MANY_CLASSES], "camvid": arms}
    assert found == [(seed, data, arm) for seed in (0, 1) for data in allowed for arm in allowed[data]]


def test_every_term_has_a_row_and_those_of_three_classes_none_for_one_logit():
    rows = [row.strip("| ").split(" | ") for row in terms.table(size=32, batch=2, rounds=1).splitlines()[2:]]
    assert [row[0] for row in rows] == list(terms.TERMS)
    absent = {row[0] for row in rows if row[1] == "-"}
    assert absent == {"dist_inter", "tckd", "nckd"} & {row[0] for row in rows}
    assert all(float(row[3]) > 0 for row in rows)


def test_what_a_term_keeps_is_counted_without_what_it_was_given():
    """The squared error of two tensors of the same size keeps their difference, of 4 bytes a number."""
    assert terms.Term("mse", 11, 32, 2).kept() in range(2 * 11 * 32 * 32 * 4, 2 * 2 * 11 * 32 * 32 * 4 + 1)
