"""Adapters compute and learn what PEFT's do; without them, or switched off, the base is what it was."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import SingleDeviceSharding
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM

from jax_rl.models.errors import ModelError
from jax_rl.models.hf_checkpoint import load_model
from jax_rl.models.hf_export import save_model
from jax_rl.models.lora import Adapted, adapter_specs, attach, init_adapters
from jax_rl.models.params import ParamSpec, spec_leaves

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # of PEFT

RANK, ALPHA = 4, 12.0
SCALE = ALPHA / RANK
TARGETS = ("q_proj", "o_proj", "down_proj")
TOKENS = np.arange(3, 33)[None]


@pytest.fixture(scope="module")
def base(text_folder):
    """(model, weights)."""
    return load_model(text_folder, jnp.float32)


@pytest.fixture(scope="module")
def specs(base):
    return adapter_specs(base[0].specs, RANK, TARGETS)


def on_first_device(spec):
    return SingleDeviceSharding(jax.devices()[0])


@pytest.fixture(scope="module")
def adapters(specs):
    """As after training: B is not zero."""
    fresh = init_adapters(specs, jax.random.key(0), on_first_device)
    return jax.tree.map(lambda a: a + 0.05 * jax.random.normal(jax.random.key(a.size), a.shape), fresh)


@pytest.fixture(scope="module")
def peft_model(text_folder, specs, adapters):
    """PEFT's own model with the same adapters."""
    hf = AutoModelForCausalLM.from_pretrained(text_folder, attn_implementation="eager")
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), lora_dropout=0.0)
    model = get_peft_model(hf, config)
    expected = get_peft_model_state_dict(model)
    values = dict(peft_tensors(specs, adapters))
    assert values.keys() == expected.keys()
    assert {n: v.shape for n, v in values.items()} == {n: v.shape for n, v in expected.items()}
    assert not set_peft_model_state_dict(model, values).unexpected_keys
    return model.eval()


def peft_tensors(specs, adapters):
    """Tensors by the names of a PEFT file."""
    for spec, leaf in zip(spec_leaves(specs), jax.tree.leaves(adapters), strict=True):
        for name, value in zip(spec.hf_names, leaf if spec.stacked else [leaf], strict=True):
            yield f"base_model.model.model.{name}", torch.tensor(np.asarray(value))


@pytest.fixture(scope="module")
def logits(base):
    """(weights, tokens) -> logits: one program for every adapter."""
    model = base[0]

    @jax.jit
    def run(params, tokens):
        hidden, _ = model.forward(params, tokens, jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape))
        return model.logits(params, hidden)

    return partial(run, tokens=jnp.asarray(TOKENS))


def hf_logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor(TOKENS), use_cache=False).logits.numpy()


def test_logits_equal_those_of_peft(base, adapters, logits, peft_model, text_hf):
    theirs = hf_logits(peft_model)
    assert np.abs(theirs - hf_logits(text_hf)).max() > 1, "the adapters should matter"
    np.testing.assert_allclose(logits(attach(base[1], adapters, SCALE)), theirs, atol=1e-4)


def test_gradients_are_those_of_torch_and_of_the_adapters_alone(base, specs, adapters, peft_model):
    model, weights = base
    tokens, direction = jnp.asarray(TOKENS), np.random.default_rng(0).normal(size=(1, 30, 200)).astype(np.float32)

    @jax.jit
    @jax.grad
    def gradient_of(adapters, weights):
        params = attach(weights, adapters, SCALE)
        hidden, _ = model.forward(params, tokens, jnp.arange(30)[None], remat="full")
        return jnp.mean(model.logits(params, hidden) * direction)

    ours = gradient_of(adapters, weights)
    assert jax.tree.structure(ours) == jax.tree.structure(adapters)
    peft_model.zero_grad()
    torch.mean(peft_model(input_ids=torch.tensor(TOKENS)).logits * torch.tensor(direction)).backward()
    theirs = {n: p.grad for n, p in peft_model.named_parameters() if p.requires_grad}
    ours = {name.replace(".weight", ".default.weight"): g for name, g in peft_tensors(specs, ours)}
    assert ours.keys() == theirs.keys()
    scale = max(float(g.abs().max()) for g in theirs.values())
    for name, gradient in ours.items():
        np.testing.assert_allclose(gradient, theirs[name], atol=1e-4 * scale, err_msg=name)


def test_switched_off_and_fresh_adapters_are_the_base(base, specs, adapters, logits):
    """In one program bit for bit, which is how the reference runs; in the base's own up to float32 rounding."""
    off = logits(attach(base[1], adapters, 0.0))
    fresh = init_adapters(specs, jax.random.key(1), on_first_device)
    np.testing.assert_array_equal(off, logits(attach(base[1], fresh, SCALE)))
    np.testing.assert_allclose(off, logits(base[1]), atol=2e-5)


def test_fresh_adapters_are_distributed_as_pefts(specs):
    fresh = init_adapters(adapter_specs_of_width(specs), jax.random.key(2), on_first_device)
    for pair in (fresh["q"], fresh["stack"]):
        assert not np.any(pair["b"])
        a, width = np.asarray(pair["a"]), pair["a"].shape[-1]
        reference = torch.nn.init.kaiming_uniform_(torch.empty(64, width), a=5**0.5).numpy()
        assert np.abs(a).max() <= width**-0.5 and np.abs(a).max() == pytest.approx(np.abs(reference).max(), rel=0.05)
        assert a.std() == pytest.approx(reference.std(), rel=0.05) and abs(a.mean()) < 0.01
    assert not np.array_equal(fresh["stack"]["a"][0], fresh["stack"]["a"][1])


def adapter_specs_of_width(specs):
    """Of wide weights, for statistics: one layer and a stack of two."""
    one = ParamSpec((50, 300), ("heads", "embed"), jax.nn.initializers.zeros, ("layers.0.q_proj.weight",))
    wide = {"q": one, "stack": one.stack(("layers.0.q_proj.weight", "layers.1.q_proj.weight"))}
    return adapter_specs(wide, 32, ("q_proj",))


def test_specs_name_axes_and_stacks(specs, base):
    q = specs["blocks"]["0"]["self_attn"]["q_proj"]
    assert q["a"].shape == (2, RANK, 64) and q["a"].axes == ("layers", None, "embed")
    assert q["b"].shape == (2, 64, RANK) and q["b"].axes == ("layers", "heads", None)
    assert q["b"].hf_names[1] == "layers.3.self_attn.q_proj.lora_B.weight"
    assert set(specs) == {"blocks", "tail"} and set(specs["tail"]["0"]["self_attn"]) == {"q_proj", "o_proj"}
    everything = adapter_specs(base[0].specs, RANK, ("all-linear",))
    assert set(everything["tail"]["0"]["mlp"]) == {"gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("targets", [("q_proj", "query"), ()])
def test_a_target_that_is_not_there_lists_those_that_are(base, targets):
    named = "query" if targets else "nothing"
    with pytest.raises(ModelError, match=f"name {named}; this model has down_proj, .*v_proj.*all-linear"):
        adapter_specs(base[0].specs, RANK, targets)


def test_merged_weights_load_in_transformers_with_equal_logits(base, adapters, peft_model, text_folder, tmp_path):
    save_model(tmp_path, base[0], attach(base[1], adapters, SCALE), text_folder)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    np.testing.assert_allclose(hf_logits(merged), hf_logits(peft_model), atol=1e-4)


def test_bf16_weights_take_float32_adapters(base, adapters):
    weights = jax.tree.map(lambda w: w.astype(jnp.bfloat16), base[1])
    q_proj = attach(weights, adapters, SCALE)["tail"]["0"]["self_attn"]["q_proj"]
    assert isinstance(q_proj, Adapted) and q_proj.dtype == jnp.bfloat16 and q_proj.a.dtype == jnp.float32
    hidden, _ = base[0].forward(attach(weights, adapters, SCALE), jnp.asarray(TOKENS), jnp.arange(30)[None])
    assert hidden.dtype == jnp.bfloat16
    exact = np.asarray(q_proj.weight, np.float64) + SCALE * np.asarray(q_proj.b, np.float64) @ np.asarray(q_proj.a)
    np.testing.assert_allclose(q_proj.merged(), exact, atol=1e-6)
