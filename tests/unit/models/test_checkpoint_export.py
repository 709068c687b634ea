"""Checkpoints of every family, exported, load in transformers and PEFT with the logits of what was trained."""

import copy
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import AutoPeftModel, AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from jax_rl.checkpoints import Checkpoints
from jax_rl.cli import main_guard
from jax_rl.config.schema import RLConfig
from jax_rl.export import main
from jax_rl.learning.optimizer import init_train_state, make_optimizer
from jax_rl.models.hf_checkpoint import load_model
from jax_rl.models.lora import adapter_specs, attach, init_adapters

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # of PEFT

FAMILIES = ["gemma3", "gemma3_wrapper", "llama", "qwen3", "qwen3_5", "qwen3_5_wrapper"]
LORA = {"enabled": True, "rank": 3, "alpha": 6.0, "dropout": 0.0, "target_modules": ["all-linear"]}
TOKENS = np.arange(3, 33)[None]


def save(run, params, source, dtype="float32", lora=None, tokenizer=None):
    """A checkpoint as a run leaves it, the optimizer's state with it."""
    config = {
        "model": {
            "policy_name_or_path": str(source),
            "tokenizer_name_or_path": None if tokenizer is None else str(tokenizer),
            **({} if lora is None else {"lora": lora}),
        },
        "misc": {"dtype": dtype, "huggingface_cache_dir": None, "huggingface_token_env": "HF_TOKEN"},
    }
    state = vars(init_train_state(params, make_optimizer(RLConfig())))  # Orbax writes the same of dict and dataclass
    Checkpoints(run).save(state, {"update": 5, "config": config, "mesh": {"data": 1, "fsdp": 1, "tensor": 1}})
    return run / "checkpoint-5"


def export(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def failure(capsys, *arguments):
    """The message of a command that must exit with 2."""
    assert main_guard(lambda: main([str(argument) for argument in arguments])) == 2
    return capsys.readouterr().err


def transformers_model(folder, attention="eager"):
    wrapped = "text_config" in json.loads((folder / "config.json").read_text())
    loader = AutoModelForImageTextToText if wrapped else AutoModelForCausalLM
    return loader.from_pretrained(folder, attn_implementation=attention).eval()


def hf_logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor(TOKENS), use_cache=False).logits.numpy()


def is_text(name):
    return "vis" not in name and "multi_modal" not in name


def trained_adapters(model):
    """Adapters of every linear layer, B not zero any more."""
    specs = adapter_specs(model.specs, LORA["rank"], ("all-linear",))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    fresh = init_adapters(specs, jax.random.key(0), lambda spec: here)
    return jax.tree.map(lambda a: a + np.random.default_rng(a.size).normal(0, 0.03, a.shape).astype(np.float32), fresh)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_weights(family, tiny_checkpoint, tmp_path):
    """Training is stood in for by a factor, with which transformers' own model is multiplied too: equal bits."""
    hf, source = tiny_checkpoint(family)
    _, params = load_model(source, jnp.float32)
    checkpoint = save(tmp_path, jax.tree.map(lambda p: p * 1.25, params), source)
    export(checkpoint, "--to", tmp_path / "out")
    expected = copy.deepcopy(hf)
    with torch.no_grad():
        for name, p in expected.named_parameters():
            p.mul_(1.25 if is_text(name) else 1.0)
    ours = transformers_model(tmp_path / "out", hf.config._attn_implementation)
    assert np.array_equal(hf_logits(ours), hf_logits(expected))
    for (name, a), (_, b) in zip(ours.named_parameters(), expected.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("family", ["gemma3_wrapper", "llama", "qwen3_5_wrapper"])
def test_adapters_merged_and_for_peft(family, tiny_checkpoint, tmp_path):
    hf, source = tiny_checkpoint(family)
    model, weights = load_model(source, jnp.float32)
    adapters = trained_adapters(model)
    params = attach(weights, adapters, 2.0)
    hidden, _ = jax.jit(model.forward)(params, jnp.asarray(TOKENS), jnp.arange(TOKENS.size)[None])
    trained = np.asarray(model.logits(params, hidden))
    checkpoint = save(tmp_path, adapters, source, lora=LORA)

    export(checkpoint, "--to", tmp_path / "merged")
    np.testing.assert_allclose(hf_logits(transformers_model(tmp_path / "merged")), trained, atol=1e-4)
    assert np.abs(trained - hf_logits(hf)).max() > 1, "the adapters should matter"

    export(checkpoint, "--to", tmp_path / "peft", "--adapter")
    assert sorted(p.name for p in (tmp_path / "peft").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    loaded = PeftModel.from_pretrained(transformers_model(source), tmp_path / "peft")
    assert not [name for name, _ in loaded.named_parameters() if "lora" in name and not is_text(name)]
    np.testing.assert_allclose(hf_logits(loaded.eval()), trained, atol=1e-4)
    auto = AutoPeftModel if "wrapper" in family else AutoPeftModelForCausalLM
    np.testing.assert_allclose(hf_logits(auto.from_pretrained(tmp_path / "peft").eval()), trained, atol=1e-4)


def test_the_tokenizer_that_was_trained_with_goes_along(tiny_checkpoint, tmp_path, capsys):
    """A base model trained with the tokenizer, chat template and stop ids of the instruction-tuned one."""
    _, source = tiny_checkpoint("llama")
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    shutil.copytree(source, base)
    tuned.mkdir()
    for folder in (base, tuned):
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            (folder / name).write_text(json.dumps({"of": folder.name}))
    (base / "merges.txt").write_text("base")
    (base / "preprocessor_config.json").write_text("{}")
    (tuned / "chat_template.jinja").write_text("tuned")
    (tuned / "config.json").write_text("{}")
    _, params = load_model(base, jnp.float32)
    checkpoint = save(tmp_path / "run", params, base, tokenizer=tuned)
    export(checkpoint, "--to", tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == {"of": "tuned"}
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names >= {"chat_template.jinja", "preprocessor_config.json"} and "merges.txt" not in names
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"

    tuned.rename(tmp_path / "moved")
    error = failure(capsys, checkpoint, "--to", tmp_path / "again")
    assert f"there is no folder {tuned}" in error and "--tokenizer" in error and not (tmp_path / "again").exists()
    export(checkpoint, "--to", tmp_path / "again", "--tokenizer", tmp_path / "moved")
    assert json.loads((tmp_path / "again" / "tokenizer.json").read_text()) == {"of": "tuned"}
    same = save(tmp_path / "same", params, base, tokenizer=base)
    base.rename(tmp_path / "elsewhere")
    export(same, "--to", tmp_path / "follows", "--base", tmp_path / "elsewhere")
    assert json.loads((tmp_path / "follows" / "tokenizer.json").read_text()) == {"of": "base"}


@pytest.mark.parametrize("decay_rates", [torch.float32, torch.bfloat16])
def test_tensors_keep_the_type_of_their_file(decay_rates, tiny_checkpoint, tmp_path):
    """Qwen3.5's A_log and dt_bias are published in float32 or in bfloat16; they are trained in float32."""
    _, source = tiny_checkpoint("qwen3_5")
    folder = tmp_path / "source"
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    wide = [name for name in tensors if name.endswith(("A_log", "dt_bias"))]
    kept = {name: t.to(decay_rates if name in wide else torch.bfloat16) for name, t in tensors.items()}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    _, params = load_model(folder, jnp.bfloat16)
    checkpoint = save(tmp_path, params, folder, dtype="bfloat16")
    export(checkpoint, "--to", tmp_path / "same")
    export(checkpoint, "--to", tmp_path / "other", "--dtype", "float32")
    same, other = (load_file(tmp_path / name / "model.safetensors") for name in ("same", "other"))
    assert len(wide) == 6 and same.keys() == kept.keys()
    for name, tensor in kept.items():
        assert same[name].dtype == tensor.dtype and torch.equal(same[name], tensor), name
        assert other[name].dtype == torch.float32 and torch.equal(other[name], tensor.float()), name
    assert json.loads((tmp_path / "other" / "config.json").read_text())["dtype"] == "float32"


@pytest.fixture
def lora_checkpoint(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint("llama")[1]
    return save(tmp_path, trained_adapters(load_model(source, jnp.float32)[0]), source, lora=LORA)


def test_killed_half_way_it_leaves_nothing_and_can_be_repeated(lora_checkpoint, tmp_path):
    code = """
import os, signal, sys
from jax_rl.models import hf_export
from jax_rl.export import main
merged, count = hf_export.TensorToWrite.array, [0]
def array(name, shape, dtype, fetch):
    def dying():
        count[0] += 1
        if count[0] == 12:
            os.kill(os.getpid(), signal.SIGKILL)
        return fetch()
    return merged(name, shape, dtype, dying)
hf_export.TensorToWrite.array = array
main(sys.argv[1:])
"""
    out = tmp_path / "exports" / "out"
    command = [sys.executable, "-c", code, str(lora_checkpoint), "--to", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert [p.name for p in out.parent.iterdir()] == [".out.new"]
    export(lora_checkpoint, "--to", out)
    assert [p.name for p in out.parent.iterdir()] == ["out"] and transformers_model(out)


def test_what_cannot_be_exported_is_said(lora_checkpoint, tiny_checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    _, llama = tiny_checkpoint("llama")
    _, gemma = tiny_checkpoint("gemma3")
    assert "is not a checkpoint" in failure(capsys, tmp_path / "nowhere", "--to", out)
    assert "is a Hugging Face folder already" in failure(capsys, llama, "--to", out)
    assert "exists and is not empty" in failure(capsys, lora_checkpoint, "--to", llama)
    assert "there is no folder /nowhere" in failure(capsys, lora_checkpoint, "--to", out, "--base", "/nowhere")
    message = failure(capsys, lora_checkpoint, "--to", out, "--base", gemma)
    assert "does not fit the model in" in message and "missing: blocks/1/mlp/down_proj/a" in message
    full = save(tmp_path / "full", load_model(llama, jnp.float32)[1], llama)
    assert "holds no adapters" in failure(capsys, full, "--to", out, "--adapter")
    assert not out.exists()
