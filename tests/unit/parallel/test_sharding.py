"""Meshes and the rules, for published sizes, without devices."""

import json
import math

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding

from jax_rl.models.params import held_shape, hold, param_bytes, real_part, spec_leaves
from jax_rl.models.registry import model_from_config
from jax_rl.parallel.mesh import AXES, MeshError, fill_in
from jax_rl.parallel.sharding import ShardingError, bytes_per_device, check_tensor, layout_of_sizes, tensor_counts

GEMMA3_27B = {
    "model_type": "gemma3_text",
    "vocab_size": 262208,
    "hidden_size": 5376,
    "intermediate_size": 21504,
    "num_hidden_layers": 62,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "head_dim": 128,
}
QWEN3_5_27B = {
    "model_type": "qwen3_5_text",
    "vocab_size": 248320,
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "num_hidden_layers": 64,
    "num_attention_heads": 24,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
}


def layout(data: int, fsdp: int, tensor: int):
    return layout_of_sizes({"data": data, "fsdp": fsdp, "tensor": tensor})


@pytest.mark.parametrize(
    ("sizes", "devices", "full"),
    [((1, -1, 1), 6, (1, 6, 1)), ((2, -1, 2), 8, (2, 2, 2)), ((-1, 1, 4), 8, (2, 1, 4)), ((1, 4, 2), 8, (1, 4, 2))],
)
def test_what_is_left(sizes, devices, full):
    assert fill_in(sizes, devices, "model.mesh") == full


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((1, -1, 4), ["model.mesh (data 1, fsdp -1, tensor 4)", "4 of 6 devices", "must divide 6"]),
        ((2, 2, 1), ["model.mesh (data 2, fsdp 2, tensor 1)", "4 of 6 devices", "must be 6"]),
        ((-1, -1, 1), ["more than one size open"]),
    ],
)
def test_sizes_that_do_not_fit(sizes, words):
    with pytest.raises(MeshError) as caught:
        fill_in(sizes, 6, "model.mesh")
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("raw", [GEMMA3_27B, QWEN3_5_27B], ids=["gemma3", "qwen3_5"])
@pytest.mark.parametrize("sizes", [(1, 6, 1), (1, 8, 1), (2, 2, 2), (1, 16, 4)])
def test_every_parameter_is_held_in_equal_parts(raw, sizes):
    specs, place = model_from_config(raw).specs, layout(*sizes)
    for spec in spec_leaves(specs):
        sharding = place.sharding_for(spec)
        held = held_shape(spec.shape, sharding)
        longer = [d for d, (n, real) in enumerate(zip(held, spec.shape, strict=True)) if n != real]
        assert len(longer) <= 1 and all(0 <= n - real < math.prod(sizes) for n, real in zip(held, spec.shape))
        sharding.shard_shape(held)  # raises where it does not divide


def test_bytes_on_each_device():
    """Within 1 % of an equal share where all matrices are cut along all axes; DeltaNet's are whole along tensor."""
    for raw, sizes in ((GEMMA3_27B, (1, 6, 1)), (GEMMA3_27B, (1, 16, 4)), (QWEN3_5_27B, (1, 6, 1))):
        specs = model_from_config(raw).specs
        share = param_bytes(specs, "bfloat16") / math.prod(sizes)
        assert share <= bytes_per_device(specs, layout(*sizes), "bfloat16") < 1.01 * share


def test_without_need_nothing_is_padded():
    specs, place = model_from_config(GEMMA3_27B).specs, layout(1, 6, 1)
    assert all(held_shape(s.shape, place.sharding_for(s)) == s.shape for s in spec_leaves(specs))


def test_heads_must_divide():
    model = model_from_config(QWEN3_5_27B)
    assert tensor_counts(model) == [1, 2, 4]
    with pytest.raises(ShardingError) as caught:
        check_tensor(model, AbstractMesh((1, 1, 8), AXES), "model.mesh")
    for word in ("model.mesh: tensor 8", "4 kv_heads", "k_proj.weight", "1, 2, 4"):
        assert word in str(caught.value), caught.value


def test_holding_and_reading_are_inverse():
    sharding = NamedSharding(AbstractMesh((1, 6, 1), AXES), jax.sharding.PartitionSpec(None, "fsdp"))
    real = np.arange(1, 21, dtype=np.float32).reshape(2, 10)
    held = hold(real, real.shape, sharding)
    assert held.shape == (2, 12) and float(held.sum()) == float(real.sum())
    np.testing.assert_array_equal(real_part(held, real.shape), real)
    np.testing.assert_array_equal(hold(held, real.shape, sharding), held)


def test_a_layout_is_a_key():
    assert hash(layout(1, 2, 1)) == hash(layout(1, 2, 1)) and layout(1, 2, 1) == layout(1, 2, 1) != layout(2, 1, 1)
    assert json.dumps(dict(layout(1, 2, 1).mesh.shape)) == '{"data": 1, "fsdp": 2, "tensor": 1}'
