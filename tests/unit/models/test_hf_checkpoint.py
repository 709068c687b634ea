"""Loading says all that is wrong with a folder at once; what is exported loads in transformers."""

import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3ForConditionalGeneration

from jax_rl.models import hf_export
from jax_rl.models.errors import ModelError
from jax_rl.models.hf_checkpoint import load_model, open_checkpoint
from jax_rl.models.hf_export import save_model
from jax_rl.models.params import spec_leaves
from jax_rl.models.registry import model_from_config, read_config

TOKENS = torch.arange(3, 33)[None]


@pytest.fixture
def damaged(text_folder, tmp_path):
    """A copy to be spoilt: call it with a function that changes the dict of tensors."""

    def spoil(change=lambda tensors: None):
        folder = tmp_path / "damaged"
        shutil.copytree(text_folder, folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return spoil


def hf_logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits.numpy()


def reload(cls, folder):
    """With the attention of the models that are compared, so that equal weights give the same bits."""
    return cls.from_pretrained(folder, attn_implementation="eager")


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_every_value_comes_from_the_tensor_of_its_name(text_folder):
    model, params = load_model(text_folder, jnp.float32)
    stored = load_file(text_folder / "model.safetensors")
    for spec, leaf in zip(spec_leaves(model.specs), jax.tree.leaves(params), strict=True):
        for name, value in zip(spec.hf_names, leaf if spec.stacked else [leaf], strict=True):
            np.testing.assert_array_equal(value, stored.pop(f"model.{name}").numpy())
    assert not stored


def test_the_dtype_is_converted(text_folder):
    exact, half = load_model(text_folder, jnp.float32)[1], load_model(text_folder, jnp.bfloat16)[1]
    equal(jax.tree.map(lambda a: a.astype(jnp.bfloat16), exact), half)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", ""])
def test_every_layout_of_the_names_loads_the_same(text_folder, damaged, prefix):
    def rename(tensors):
        for name in list(tensors):
            tensors[prefix + name.removeprefix("model.")] = tensors.pop(name)
        tensors["vision_tower.layers.0.weight"] = torch.zeros(3)

    equal(load_model(damaged(rename), jnp.float32)[1], load_model(text_folder, jnp.float32)[1])


def test_sharded_files_load_as_one(text_hf, text_folder, tmp_path):
    text_hf.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    equal(load_model(tmp_path, jnp.float32)[1], load_model(text_folder, jnp.float32)[1])


def test_arrays_are_read_sharded(text_folder):
    """On 4 simulated devices, split over the first axis that divides, stacked leaves over a later one too.

    Whether stacks are gathered on the host or filled layer by layer, as big ones are, must not matter.
    """
    code = """
import sys, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jax_rl.models import hf_checkpoint
from jax_rl.models.hf_checkpoint import load_model
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"))
def sharding_for(spec):
    wide = [i for i, n in enumerate(spec.shape) if n % 2 == 0][-2:]
    names = dict(zip(wide, ("a", "b")))
    return NamedSharding(mesh, P(*(names.get(i) for i in range(len(spec.shape)))))
_, whole = load_model(sys.argv[1], np.float32)
_, parts = load_model(sys.argv[1], np.float32, sharding_for)
jax.tree.map(np.testing.assert_array_equal, whole, parts)
hf_checkpoint.MAX_BUFFER_BYTES = 0
for sharding in (None, sharding_for):
    _, by_layers = load_model(sys.argv[1], np.float32, sharding)
    jax.tree.map(np.testing.assert_array_equal, whole, by_layers)
    up_proj = by_layers["blocks"]["0"]["mlp"]["up_proj"]
    assert up_proj.sharding == (whole if sharding is None else parts)["blocks"]["0"]["mlp"]["up_proj"].sharding
shard = parts["blocks"]["0"]["mlp"]["up_proj"].addressable_shards[0].data
print(len(jax.devices()), parts["embed"].addressable_shards[0].data.shape, shard.shape)
"""
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code, text_folder], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "4 (100, 32) (2, 48, 32)", done.stderr


def test_all_wrong_tensors_are_in_one_message(damaged):
    def change(tensors):
        for layer in (1, 4):
            del tensors[f"model.layers.{layer}.mlp.up_proj.weight"]
        tensors["model.layers.7.mlp.up_proj.weight"] = torch.zeros(96, 64)
        tensors["model.layers.2.self_attn.q_proj.bias"] = torch.zeros(64)
        tensors["model.norm.weight"] = torch.zeros(65)
        tensors["model.layers.0.self_attn.k_norm.weight"] = torch.zeros(16, dtype=torch.int8)

    with pytest.raises(ModelError) as error:
        load_model(damaged(change), jnp.float32)
    assert sorted(line.strip() for line in str(error.value).splitlines()[1:]) == [
        "missing: model.layers.{1,4}.mlp.up_proj.weight",
        "shape of model.norm.weight: [65] in the file, [64] by config.json",
        "type of model.layers.0.self_attn.k_norm.weight: I8 (quantised?), must be one of F64, F32, F16, BF16",
        "unexpected: model.layers.2.self_attn.q_proj.bias",
        "unexpected: model.layers.7.mlp.up_proj.weight",
    ]


def test_a_file_that_is_cut_off_names_the_tensors_it_lost(damaged):
    folder = damaged()
    path = folder / "model.safetensors"
    whole = open_checkpoint(folder).tensors
    last = max(whole, key=lambda name: whole[name].end)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelError, match=f"cut off.*{last}"):
        load_model(folder, jnp.float32)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ModelError, match="no whole safetensors file"):
        load_model(folder, jnp.float32)


def test_a_shard_that_is_not_there_is_named(text_hf, tmp_path):
    text_hf.save_pretrained(tmp_path, max_shard_size="100KB")
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ModelError, match=f"unreadable file: .*{gone.name}(?s:.*)missing: "):
        load_model(tmp_path, jnp.float32)


def test_tables_that_old_files_hold_are_left_out(damaged):
    """Llama 2's files have one a layer, though it follows from the config; transformers drops it too."""

    def add_tables(tensors):
        tensors |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(7)}

    assert not [name for name in open_checkpoint(damaged(add_tables)).tensors if "inv_freq" in name]


def test_one_file_wins_over_an_index_as_in_transformers(text_hf, text_folder, tmp_path, caplog):
    """A model saved over the shards of another."""
    text_hf.save_pretrained(tmp_path, max_shard_size="100KB")
    for shard in tmp_path.glob("*.safetensors"):
        shard.write_bytes(b"old")
    shutil.copy(text_folder / "model.safetensors", tmp_path)
    equal(load_model(tmp_path, jnp.float32)[1], load_model(text_folder, jnp.float32)[1])
    assert "the former is read" in caplog.text


def test_folders_that_are_no_checkpoint(text_folder, tmp_path):
    with pytest.raises(ModelError, match="there is no folder"):
        load_model(tmp_path / "nowhere", jnp.float32)
    with pytest.raises(ModelError, match="no config.json"):
        load_model(tmp_path, jnp.float32)
    shutil.copy(text_folder / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match=r"neither model.safetensors nor .* \(weights found: pytorch_model.bin\)"):
        load_model(tmp_path, jnp.float32)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        load_model(tmp_path, jnp.float32)


def test_a_head_that_equals_the_embedding_stays_tied(damaged):
    def repeat_embedding(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    assert open_checkpoint(damaged(repeat_embedding)).model.cfg.tie_word_embeddings


def test_export_loads_in_transformers_with_equal_logits(text_hf, text_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(hf_export, "MAX_FILE_BYTES", 100_000)
    source = tmp_path / "source"
    shutil.copytree(text_folder, source)
    (source / "tokenizer.json").write_text("{}")
    (source / "optimizer.pt").touch()
    model, params = load_model(source, jnp.float32)
    save_model(tmp_path / "out", model, params, source)
    assert np.array_equal(hf_logits(reload(AutoModelForCausalLM, tmp_path / "out")), hf_logits(text_hf))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors.index.json"} <= names
    assert "optimizer.pt" not in names and len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    equal(load_model(tmp_path / "out", jnp.float32)[1], params)


def test_export_writes_what_was_trained_and_its_dtype(text_folder, tmp_path):
    model, params = load_model(text_folder, jnp.bfloat16)
    params = jax.tree.map(lambda a: a * 2, params)
    save_model(tmp_path, model, params, text_folder)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    up_proj = loaded.model.layers[4].mlp.up_proj.weight.detach().float().numpy()
    np.testing.assert_array_equal(up_proj, params["blocks"]["1"]["mlp"]["up_proj"][1].astype(jnp.float32))


def test_export_of_the_wrapper_keeps_names_and_vision_tower(wrapper_hf, wrapper_folder, tmp_path):
    model, params = load_model(wrapper_folder, jnp.float32)
    save_model(tmp_path, model, params, wrapper_folder)
    before, after = load_file(wrapper_folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert any("vision_tower" in name for name in after)
    loaded = reload(Gemma3ForConditionalGeneration, tmp_path)
    assert np.array_equal(hf_logits(loaded), hf_logits(wrapper_hf))


def test_export_says_that_a_head_is_not_tied(make_text_model, tmp_path):
    """config.json says tied, the file holds a head of its own: older readers would drop it."""
    untied = make_text_model(tie_word_embeddings=False)
    untied.save_pretrained(tmp_path / "source")
    config = tmp_path / "source" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": True}))
    save_model(tmp_path / "out", *load_model(tmp_path / "source", jnp.float32), source=tmp_path / "source")
    assert read_config(tmp_path / "out")["tie_word_embeddings"] is False
    assert np.array_equal(hf_logits(reload(AutoModelForCausalLM, tmp_path / "out")), hf_logits(untied))


def test_a_fresh_model_is_written_beside_its_config(text_folder, tmp_path):
    shutil.copy(text_folder / "config.json", tmp_path)
    model = model_from_config(read_config(tmp_path))
    params = jax.tree.map(lambda s: jnp.full(s.shape, s.size, jnp.float32), model.specs)
    save_model(tmp_path, model, params)
    equal(load_model(tmp_path, jnp.float32)[1], params)
    AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_wrapper_without_its_vision_tower_is_not_written(wrapper_folder, tmp_path):
    shutil.copy(wrapper_folder / "config.json", tmp_path)
    model = model_from_config(read_config(tmp_path))
    params = jax.tree.map(lambda s: jnp.zeros(s.shape), model.specs)
    with pytest.raises(ModelError, match="no weights to copy its vision tower from"):
        save_model(tmp_path, model, params)
    assert not (tmp_path / "model.safetensors").exists()
