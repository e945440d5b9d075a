"""The law of the keys that change no result, and of flattened configurations."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kd.config import resume
from kd.config.compose import compose, container, plain
from kd.config.read import checked
from kd.experiment.teacher_training import fingerprint
from kd.settings import RESULT_NEUTRAL, changes_no_result, flat, is_under, result_differences, same_result
from kd.study.space import Space

#: Another value of every key that changes no result.
OTHER = {
    "root": "elsewhere",
    "tracking": "none",
    "pictures": "false",
    "trainer.workers": "3",
    "trainer.checkpoint_minutes": "1",
    "data.root": "elsewhere",
    "data.cache": "disk",
    "data.cache_gb": "1",
    "data.follow_links": "true",
    "teacher.cache": "off",
    "teacher.cache_gb": "1",
}


def config(*overrides: str) -> dict:
    return plain(compose([*overrides]))


# what changes no result


def test_every_result_neutral_key_exists_and_has_another_value_here():
    assert set(OTHER) == set(RESULT_NEUTRAL)
    known = {key for key, _ in flat(container(compose(["data=folder"]), resolve=False))}
    assert all(any(is_under(key, [neutral]) for key in known) for neutral in RESULT_NEUTRAL)


@pytest.mark.parametrize("key", RESULT_NEUTRAL)
def test_a_result_neutral_key_changes_no_fingerprint_run_or_study(key):
    of_files = key in ("data.root", "data.follow_links")
    source = ["data=folder", "data.root=here"] if of_files else []
    before, now = config(*source), config(*source, f"{key}={OTHER[key]}")
    assert before != now
    assert result_differences(dict(flat(before)), dict(flat(now))) == []
    spaces = [Space({}, (), {}, dict(flat(each))) for each in (before, now)]
    assert spaces[0]._question() == spaces[1]._question()
    if not of_files:  # whose content is compared by the fingerprint of the data itself
        assert checked(before).data.fingerprint() == checked(now).data.fingerprint()
        assert fingerprint(checked(before)) == fingerprint(checked(now))


@pytest.mark.parametrize(
    "key", ["seed", "trainer.epochs", "trainer.devices", "data.classes", "rooted", "data", "trainer"]
)
def test_any_other_key_may_change_a_result(key):
    assert not changes_no_result(key)
    assert not same_result(key, 1, 2)
    assert same_result(key, 1, 1)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("cuda:0", "cuda:1", True), ("cuda", "cuda:1", True), ("cpu", "cpu", True), ("auto", "cuda:3", True),
        ("cpu", "auto", True), ("cpu", "cuda", False), ("cuda:0", "mps", False), ("cpu", None, False),
        ("auto", "choice(cpu,cuda)", False),
    ],
)  # fmt: skip
def test_only_the_kind_of_a_device_matters(one, other, same):
    assert same_result("trainer.device", one, other) is same
    assert same_result("trainer.device", other, one) is same


def test_differences_include_keys_that_one_side_lacks():
    assert result_differences({"a": 1, "root": 1}, {"b": None, "a": 1}) == ["b"]
    assert result_differences({"seed": 0}, {}) == ["seed"]


def test_a_resumed_run_and_its_studys_trials_are_compared_by_the_same_keys(tmp_path):
    """Both list exactly the keys that differ in a result."""
    one, other = config("trainer.checkpoint_minutes=5"), config("seed=1", "trainer.checkpoint_minutes=7")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(one))
    assert not resume.same_run(tmp_path, other)
    assert resume.same_run(tmp_path, config("trainer.checkpoint_minutes=9"))


# flattening


@given(
    st.recursive(
        st.integers(),
        lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3),
        max_leaves=9,
    ).filter(lambda tree: isinstance(tree, dict))
)
def test_flat_has_every_leaf_at_its_dotted_key(tree):
    for key, value in flat(tree):
        node = tree
        for part in key.split("."):
            node = node[part]
        assert node == value
        assert not isinstance(value, dict)
    assert str(tree).count(":") >= len(list(flat(tree)))


def test_an_empty_mapping_and_a_list_are_leaves():
    assert list(flat({"a": {}, "b": {"c": [1, {"d": 2}]}})) == [("a", {}), ("b.c", [1, {"d": 2}])]
