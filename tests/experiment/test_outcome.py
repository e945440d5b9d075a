"""The objective and a study's facts are read from the best epoch and the measured student."""

import math

from kd.experiment.outcome import objective, study_facts

SUMMARY = {"epochs": 2, "planned_epochs": 3, "best_epoch": 1, "total_seconds": 4.0, "state": "complete",
           "objective": {"val/iou/car": 0.3}}  # fmt: skip
NAMES = ["sky", "road", "car"]


def test_an_objective_is_the_best_epochs_unless_it_names_the_student():
    best, student = {"val/miou": 0.5}, {"val/miou": 0.6, "parameters": 7}
    assert objective("val/miou", best, student) == 0.5
    assert objective("student/val/miou", best, student) == 0.6
    assert objective("student/parameters", best, student) == 7.0


def test_an_objective_without_a_value_is_nan():
    assert math.isnan(objective("val/miou", {"val/miou": None}, {}))


def test_a_studys_facts_are_lengths_times_and_the_quality_of_student_teacher_and_baseline():
    plain = {name: value for name, value in SUMMARY.items() if name not in ("state", "objective")}
    student = {
        "val/miou": 0.5,
        "test/miou": None,
        "macs": 1,
        "val/iou/car": 0.3,
        "val/iou/road": 0.4,
        "latency_ms": 2.0,
    }
    assert study_facts(SUMMARY, NAMES) == plain
    assert study_facts({**SUMMARY, "student": student, "baseline": {"val/miou": 0.2}}, NAMES) == plain | {
        "val/miou": 0.5, "val/iou/car": 0.3, "latency_ms": 2.0, "baseline/val/miou": 0.2,
    }  # fmt: skip
