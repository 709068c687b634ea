"""Parameters move between meshes unchanged, and without a whole copy on each device on the way."""

import subprocess
import sys

CODE = """
import jax; jax.config.update("jax_platforms", "cpu"); jax.config.update("jax_num_cpu_devices", 8)
import json, sys
import numpy as np
from jax_rl.config.schema import MeshConfig, RolloutMeshConfig
from jax_rl.models.params import hold, init_params, real_part
from jax_rl.models.registry import model_from_config
from jax_rl.parallel.layouts import make_transfer
from jax_rl.parallel.mesh import make_mesh, make_rollout_mesh
from jax_rl.parallel.sharding import Layout
sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
model = model_from_config({"model_type": "qwen3", "num_attention_heads": 4, "num_key_value_heads": 2, **sizes})
real = init_params(model.specs, jax.random.key(0), "float32")
for devices, mesh in ((8, MeshConfig()), (6, MeshConfig()), (8, MeshConfig(2, 2, 2))):
    policy = make_mesh(jax.devices()[:devices], mesh)
    rollout = make_rollout_mesh(policy, RolloutMeshConfig(), model)
    assert rollout.shape["tensor"] == 2 and rollout.shape["data"] == devices // 2, rollout
    layout, decode = Layout(policy), Layout(rollout)
    there = jax.tree.map(layout.sharding_for, model.specs)
    held = jax.tree.map(lambda s, a, to: jax.device_put(hold(a, s.shape, to), to), model.specs, real, there)
    moved = make_transfer(model.specs, layout, decode)(held)
    for spec, before, after in zip(*map(jax.tree.leaves, (model.specs, real, moved)), strict=True):
        assert after.sharding.is_equivalent_to(decode.sharding_for(spec), after.ndim), spec
        np.testing.assert_array_equal(real_part(np.asarray(after), spec.shape), before)
    assert make_transfer(model.specs, layout, layout)(held) is held
"""


def test_from_the_policys_mesh_to_the_rollouts():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Involuntary full rematerialization" not in done.stderr
