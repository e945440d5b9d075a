"""A check tells a file with the network's logits from any other, at several shapes."""

from dataclasses import replace

import pytest
import torch
from exported import check_of, network

from kd.deploy.export import ExportError
from kd.deploy.export.check import HALF


def test_a_check_has_all_images_one_alone_and_a_larger_one(tiny):
    check = check_of(tiny)
    assert {tuple(batch.shape) for batch in check.batches} == {(6, 3, 64, 64), (1, 3, 64, 64), (1, 3, 96, 128)}
    assert [tuple(logits.shape) for logits in check.logits] == [
        (len(batch), 3, *batch.shape[2:]) for batch in check.batches
    ]


def test_other_logits_are_told_from_the_networks_own(tiny, tmp_path):
    check, other = check_of(tiny), network()
    other.body.segmentation_head[0].bias += 0.1
    assert check.passed(tmp_path, tiny).largest == 0
    assert check.difference(other).largest == pytest.approx(0.1, rel=1e-3)
    for wrong in (other, lambda images: tiny(images) * torch.nan, lambda images: tiny(images)[:, :1]):
        with pytest.raises(ExportError):
            check.passed(tmp_path, wrong)


def test_half_precision_may_differ_by_more(tiny, tmp_path):
    check, other = check_of(tiny), network()
    other.body.segmentation_head[0].bias += 0.01
    relative = check.difference(other).relative
    replace(check, tolerance=1.01 * relative / HALF).passed(tmp_path, other, half=True)
    with pytest.raises(ExportError):
        replace(check, tolerance=0.99 * relative / HALF).passed(tmp_path, other, half=True)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_logits_that_are_not_finite_get_no_advice_about_the_tolerance(tiny, tmp_path, value):
    check = check_of(tiny)
    with pytest.raises(ExportError, match=r"do not fit half precision.*leave --fp16 out$"):
        check.passed(tmp_path, lambda images: tiny(images) + value, half=True)
    with pytest.raises(ExportError, match=r"its logits are not finite.*leave it out$"):
        check.passed(tmp_path, lambda images: tiny(images) + value)
