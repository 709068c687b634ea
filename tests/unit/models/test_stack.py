"""Any list of layer kinds is split into a repeating part and a tail, and the parameters keep their layer numbers."""

from hypothesis import given
from hypothesis import strategies as st
from jax.nn import initializers

from jax_rl.models.params import ParamSpec, spec_leaves
from jax_rl.models.stack import find_period, stack_specs

KINDS = st.lists(st.sampled_from("ab"), min_size=1, max_size=12).map(tuple)


@given(KINDS)
def test_the_split_is_the_list(kinds):
    period = find_period(kinds)
    assert period.kinds * period.repeats + period.tail == kinds
    assert period.repeats != 1 and bool(period.kinds) == bool(period.repeats)


@given(KINDS)
def test_no_split_traces_fewer_layers(kinds):
    period = find_period(kinds)
    splits = [
        width + len(kinds) - repeats * width
        for width in range(1, len(kinds) + 1)
        for repeats in range(1, len(kinds) // width + 1)
        if kinds[: width * repeats] == kinds[:width] * repeats
    ]
    assert len(period.kinds) + len(period.tail) == min(splits)


@given(KINDS)
def test_every_layer_is_named_once_and_stacks_hold_one_kind(kinds):
    def one_layer(kind, number):
        return {"w": ParamSpec((3, 2), ("out", "in"), initializers.zeros, (f"layers.{number}.{kind}",))}

    specs = spec_leaves(stack_specs(kinds, one_layer))
    names = [name for spec in specs for name in spec.hf_names]
    assert sorted(names) == sorted(f"layers.{i}.{kind}" for i, kind in enumerate(kinds))
    for spec in specs:
        assert len({name[-1] for name in spec.hf_names}) == 1
        assert spec.tensor_shape == (3, 2)
        assert spec.shape == ((len(spec.hf_names), 3, 2) if spec.stacked else (3, 2))
