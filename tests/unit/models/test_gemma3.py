"""Gemma 3 computes what transformers computes. The reference is each row alone, unpadded, without a cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from jax_rl.models import gemma3
from jax_rl.models.hf_checkpoint import load_model, open_checkpoint
from jax_rl.models.params import spec_leaves

TOLERANCE = 1e-4  # of logits up to about 15
VOCAB = 200
LENGTHS = np.array([24, 17, 5])  # of the prompts; the sliding window is 8
STEPS = 12  # decoded after each


@pytest.fixture(scope="module", params=["text", "wrapper"])
def pair(request):
    """(transformers' model, our model, our parameters)."""
    hf = request.getfixturevalue(f"{request.param}_hf")
    return hf, *load_model(request.getfixturevalue(f"{request.param}_folder"), jnp.float32)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return [rng.integers(3, VOCAB, length + STEPS) for length in LENGTHS]


@pytest.fixture(scope="module")
def reference(pair, rows):
    """Logits of each row, [length + STEPS, V]."""
    with torch.no_grad():
        return [pair[0](input_ids=torch.tensor(row)[None], use_cache=False).logits[0].numpy() for row in rows]


def padded(rows, lengths, width, side):
    tokens, positions = np.zeros((len(rows), width), np.int32), np.full((len(rows), width), -1, np.int32)
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        start = width - length if side == "left" else 0
        tokens[i, start : start + length] = row[:length]
        positions[i, start : start + length] = np.arange(length)
    return tokens, positions


def make_forward(model):
    def run(params, tokens, positions, cache=None):
        hidden, cache = model.forward(params, tokens, positions, cache=cache)
        return model.logits(params, hidden), cache

    return jax.jit(run)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_give_the_logits_of_transformers(pair, rows, reference, side):
    _, model, params = pair
    lengths = LENGTHS + STEPS
    tokens, positions = padded(rows, lengths, 40, side)
    logits, _ = make_forward(model)(params, tokens, positions)
    for i, expected in enumerate(reference):
        np.testing.assert_allclose(logits[i][positions[i] >= 0], expected, atol=TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_prefill_and_decoding_past_the_window_give_the_logits_of_transformers(pair, rows, reference, side):
    _, model, params = pair
    forward = make_forward(model)
    tokens, positions = padded(rows, LENGTHS, 24, side)
    logits, cache = forward(params, tokens, positions, model.init_cache(3, 24 + STEPS, jnp.float32))
    for i, length in enumerate(LENGTHS):
        np.testing.assert_allclose(logits[i][positions[i] >= 0], reference[i][:length], atol=TOLERANCE)
    for step in range(STEPS):
        at = (LENGTHS + step)[:, None].astype(np.int32)
        token = np.array([[row[p]] for row, [p] in zip(rows, at, strict=True)], np.int32)
        logits, cache = forward(params, token, at, cache)
        expected = [row[p] for row, [p] in zip(reference, at, strict=True)]
        np.testing.assert_allclose(logits[:, 0], expected, atol=TOLERANCE)
    assert int(cache.length) == 24 + STEPS


@pytest.mark.parametrize("kind, remat", [("text", False), ("text", True), ("wrapper", True)])
def test_gradients_of_a_completions_logprob_are_those_of_torch(request, rows, kind, remat):
    hf = request.getfixturevalue(f"{kind}_hf")
    model, params = load_model(request.getfixturevalue(f"{kind}_folder"), jnp.float32)
    row, start = rows[1], LENGTHS[1]
    hf.zero_grad()
    log_probs = hf(input_ids=torch.tensor(row)[None], use_cache=False).logits[0].log_softmax(-1)
    log_probs[np.arange(start - 1, len(row) - 1), row[start:]].sum().backward()
    wanted = {name.removeprefix("model.").removeprefix("language_model."): p.grad for name, p in hf.named_parameters()}

    def logprob(params):
        hidden, _ = model.forward(params, jnp.asarray(row)[None], jnp.arange(len(row))[None], remat=remat)
        log_probs = jax.nn.log_softmax(model.logits(params, hidden)[0])
        return log_probs[jnp.arange(start - 1, len(row) - 1), row[start:]].sum()

    gradients = jax.tree.leaves(jax.jit(jax.grad(logprob))(params))
    for spec, ours in zip(spec_leaves(model.specs), gradients, strict=True):
        for name, mine in zip(spec.hf_names, ours if spec.stacked else [ours], strict=True):
            theirs = wanted[name].numpy()
            np.testing.assert_allclose(mine, theirs, atol=1e-4 * np.abs(theirs).max(), err_msg=name)


def test_an_untied_head_is_used(make_text_model, text_hf, tmp_path):
    hf = make_text_model(tie_word_embeddings=False)
    hf.save_pretrained(tmp_path)
    model, params = load_model(tmp_path, jnp.float32)
    tokens = np.arange(3, 15, dtype=np.int32)[None]
    logits, _ = make_forward(model)(params, tokens, np.arange(12, dtype=np.int32)[None])
    with torch.no_grad():
        expected = hf(input_ids=torch.tensor(tokens).long(), use_cache=False).logits.numpy()
        tied = text_hf(input_ids=torch.tensor(tokens).long(), use_cache=False).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE)
    assert np.abs(expected - tied).max() > 1  # the head makes a difference


def test_a_padding_token_changes_nothing(text_folder, rows):
    model, params = load_model(text_folder, jnp.float32)
    forward = make_forward(model)
    tokens, positions = padded(rows, LENGTHS, 30, "left")
    other = np.where(positions >= 0, tokens, 77)
    a, b = forward(params, tokens, positions)[0], forward(params, other, positions)[0]
    np.testing.assert_array_equal(np.where(positions[..., None] >= 0, a - b, 0), 0)
    assert np.isfinite(a).all()


def test_bfloat16_embeddings_are_those_of_transformers_bit_for_bit(text_folder):
    """The root of 2560 is 50.596, in bfloat16 50.5."""
    cfg = dataclasses.replace(open_checkpoint(text_folder).model.cfg, hidden_size=2560)
    table = torch.nn.init.normal_(torch.empty(8, 2560)).bfloat16()
    theirs = Gemma3TextScaledWordEmbedding(8, 2560, 0, embed_scale=2560**0.5).bfloat16()
    theirs.weight.data = table
    ours = gemma3.embed(cfg, {"embed": jnp.asarray(table.float(), jnp.bfloat16)}, jnp.arange(8)[None])
    np.testing.assert_array_equal(ours[0].astype(jnp.float32), theirs(torch.arange(8)).detach().float())
