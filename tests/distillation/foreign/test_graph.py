"""A graph may name arithmetic, and nothing else; a value is kept as long as somebody needs it."""

import pytest
import torch

from kd.distillation.foreign.graph import Program, Ref, Refused, Step, argument_of, aten, with_ends


def names_of_files() -> list[str]:
    """Every operator of torch's that takes the name of a file."""
    schemas = [schema for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("aten::")]
    taking = [s for s in schemas if any("file" in each.name and "str" in str(each.type) for each in s.arguments)]
    return [f"torch.ops.aten.{s.name.removeprefix('aten::')}.{s.overload_name or 'default'}" for s in taking]


def test_no_operator_that_opens_a_file_may_be_used():
    assert "torch.ops.aten.from_file.default" in names_of_files()
    for name in names_of_files():
        with pytest.raises(Refused):
            aten(name)


@pytest.mark.parametrize(
    "name",
    [
        "torch.ops.aten.relu.default", "torch.ops.aten.batch_norm.default", "torch.ops.aten._softmax.default",
        "torch.ops.aten.div.Tensor_mode", "torch.ops.aten.gelu.default", "torch.ops.aten.upsample_bilinear2d.vec",
        "torch.ops.aten.scaled_dot_product_attention.default", "torch.ops.aten.relu_.default",
    ],
)  # fmt: skip
def test_what_networks_are_made_of_may_be_used(name):
    assert str(aten(name)) == name.removeprefix("torch.ops.")


@pytest.mark.parametrize(
    "name",
    ["", "relu", "aten.relu.default", "torch.relu", "torch.ops.aten.relu", "torch.ops.aten.relu.default.name",
     "torch.ops.aten.relu.__call__", "torch.ops.aten.__dict__.get", "torch.ops.aten.relu.default\n",
     "torch.ops.prims.relu.default", "torch.ops.aten.nothing.default", "builtins.exec"],
)  # fmt: skip
def test_what_is_no_operator_of_atens_may_not_be_used(name):
    with pytest.raises(Refused, match="no arithmetic"):
        aten(name)


@pytest.mark.parametrize("argument", [{"as_graph": {}}, {"as_custom_obj": {}}, {"as_operator": "x"}, {"as_layout": 1}])
def test_an_argument_that_is_no_plain_value_is_refused(argument):
    with pytest.raises(Refused, match=next(iter(argument))):
        argument_of(argument)


def test_a_value_is_let_go_after_the_last_step_that_needs_it():
    """x + x = a, a * x = b, b - a = c: a is needed to the end, b and x are not, and c is the answer."""
    calls = [("add", "x", "x", "a"), ("mul", "a", "x", "b"), ("sub", "b", "a", "c")]
    steps = [
        Step(aten(f"torch.ops.aten.{call}.Tensor"), (Ref(one), Ref(other)), {}, (name,), True)
        for call, one, other, name in calls
    ]
    ended = with_ends(steps, "c")
    assert [set(step.over) for step in ended] == [set(), {"x"}, {"a", "b"}]
    x = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(Program(ended, {}, {}, ("x", "c"))(x), 2 * x * x - 2 * x)
