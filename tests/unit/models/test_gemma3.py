"""What is Gemma 3's alone; that it computes what transformers computes is in test_parity.py."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from jax_rl.models import gemma3
from jax_rl.models.blocks import keep
from jax_rl.models.hf_checkpoint import load_model, open_checkpoint


def test_an_untied_head_is_used(make_text_model, text_hf, tmp_path):
    hf = make_text_model(tie_word_embeddings=False)
    hf.save_pretrained(tmp_path)
    model, params = load_model(tmp_path, jnp.float32)
    tokens = jnp.arange(3, 15, dtype=jnp.int32)[None]
    hidden, _ = model.forward(params, tokens, jnp.arange(12, dtype=jnp.int32)[None])
    with torch.no_grad():
        expected = hf(input_ids=torch.arange(3, 15)[None], use_cache=False).logits.numpy()
        tied = text_hf(input_ids=torch.arange(3, 15)[None], use_cache=False).logits.numpy()
    np.testing.assert_allclose(model.logits(params, hidden), expected, atol=1e-4)
    assert np.abs(expected - tied).max() > 1  # the head makes a difference


def test_bfloat16_embeddings_are_those_of_transformers_bit_for_bit(text_folder):
    """The root of 2560 is 50.596, in bfloat16 50.5."""
    cfg = dataclasses.replace(open_checkpoint(text_folder).model.cfg, hidden_size=2560)
    table = torch.nn.init.normal_(torch.empty(8, 2560)).bfloat16()
    theirs = Gemma3TextScaledWordEmbedding(8, 2560, 0, embed_scale=2560**0.5).bfloat16()
    theirs.weight.data = table
    ours = gemma3.embed(cfg, {"embed": jnp.asarray(table.float(), jnp.bfloat16)}, jnp.arange(8)[None], keep)
    np.testing.assert_array_equal(ours[0].astype(jnp.float32), theirs(torch.arange(8)).detach().float())
