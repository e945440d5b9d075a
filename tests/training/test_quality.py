"""Which metrics decide, the way from trivial to teacher, and when a network is of no use."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd.training.metrics import Confusion
from kd.training.quality import Compared, is_near_trivial, quality_metrics, share_of_way

BINARY, THREE = ["background", "cell"], ["sky", "road", "car"]


@pytest.mark.parametrize("names", [BINARY, THREE])
def test_the_metrics_of_quality_are_measured(names):
    assert {*quality_metrics(names)} <= Confusion(len(names)).summary(names).keys()


def test_the_foreground_decides_in_binary_data():
    assert quality_metrics(BINARY)[0] == "iou/cell"
    assert quality_metrics(THREE)[0] == "miou"


@given(st.floats(0, 0.5), st.floats(0.1, 0.5), st.floats(-1, 2))
def test_the_share_of_the_way_is_linear_between_trivial_and_teacher(trivial, gap, share):
    assert share_of_way(trivial + share * gap, trivial, trivial + gap) == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize(
    "figures", [(None, 0.1, 0.5), (0.3, None, 0.5), (0.3, 0.1, None), (0.3, 0.5, 0.5), (0.015, 0.0, 0.007)]
)
def test_without_a_way_there_is_no_share_of_it(figures):
    assert share_of_way(*figures) is None


def test_a_network_that_predicts_background_everywhere_is_near_trivial_by_its_foreground_whatever_the_mean():
    assert is_near_trivial(0.0, 0.0)
    assert is_near_trivial(0.04, 0.0)
    assert not is_near_trivial(0.06, 0.0)
    assert not is_near_trivial(None, 0.0)


def test_the_test_split_decides_where_there_is_one():
    both = {"val/miou": 0.5, "test/miou": 0.4}
    assert Compared(THREE, both, {}, {}).decisive == "test/miou"
    assert Compared(THREE, {**both, "test/miou": None}, {}, {}).decisive == "val/miou"


def test_the_conclusion_names_the_share_the_metric_and_the_split():
    compared = Compared(BINARY, {"test/iou/cell": 0.5}, {"test/iou/cell": 0.8}, {"test/iou/cell": 0.0})
    assert compared.against_teacher() == (
        "The student came 62% of the way from a trivial prediction to its teacher, by IoU of cell on test."
    )
    assert compared.warning() == ""


@pytest.mark.parametrize(("student", "far"), [(0.7979, "99%"), (0.8, "100%"), (0.81, "101%")])
def test_a_student_just_below_its_teacher_has_not_come_all_of_the_way(student, far):
    compared = Compared(BINARY, {"test/iou/cell": student}, {"test/iou/cell": 0.8}, {"test/iou/cell": 0.0})
    assert compared.against_teacher().startswith(f"The student came {far} of the way")


def test_a_useless_teacher_is_named():
    compared = Compared(THREE, {"val/miou": 0.5}, {"val/miou": 0.2}, {"val/miou": 0.3})
    assert compared.against_teacher().startswith("The teacher does not beat a trivial prediction (0.2000 against 0.3")
    compared = Compared(THREE, {"val/miou": 0.5}, {"val/miou": 0.31}, {"val/miou": 0.3})
    assert compared.against_teacher().startswith("The teacher is hardly better than a trivial prediction (0.3100 agai")


def test_a_student_below_trivial_has_come_none_of_the_way():
    compared = Compared(THREE, {"val/miou": 0.29}, {"val/miou": 0.8}, {"val/miou": 0.3})
    assert compared.against_teacher().startswith("The student came none of the way from a trivial prediction")


def test_a_mean_below_the_trivial_one_is_a_warning_though_the_foreground_is_found():
    student, trivial = {"test/iou/cell": 0.2, "test/miou": 0.33}, {"test/iou/cell": 0.1, "test/miou": 0.45}
    assert Compared(BINARY, student, {}, trivial).warning() == (
        "The student does not beat a trivial prediction: mIoU 0.3300 against 0.4500 on test. Train longer."
    )
    assert Compared(BINARY, {**student, "test/miou": 0.45}, {}, trivial).warning() == ""


def test_a_useless_student_is_a_warning_that_names_a_better_objective():
    compared = Compared(BINARY, {"val/iou/cell": 0.01, "val/miou": 0.49}, {}, {"val/iou/cell": 0.0})
    assert compared.warning() == (
        "The student is hardly better than a trivial prediction: IoU of cell 0.0100 against 0.0000 on validation. "
        "Train longer, or choose the best epoch by objective=val/iou/cell."
    )
    assert compared.against_teacher() == ""
