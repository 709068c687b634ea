"""Completions in batches of prompts of like length, and back in the order of the prompts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_rl.data.examples import Example
from jax_rl.data.prompts import Prompt
from jax_rl.models.registry import model_from_config
from jax_rl.rollout.collect import concatenate, generate_rollouts, in_order
from jax_rl.rollout.engine import RolloutEngine
from jax_rl.rollout.sampling import SamplingParams
from jax_rl.tokens.tokenizer import Tokenizer
from jax_rl.toy.tokenizer import save_tokenizer, train_tokenizer

VOCAB, GROUP = 300, 2
LENGTHS = (40, 3, 20, 3, 33, 7, 41)
ALL = range(len(LENGTHS))
SAMPLING = SamplingParams(temperature=1.0, top_k=50)


@pytest.fixture(scope="module")
def generate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(["open the file and close the file"], VOCAB), folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"vocab_size": VOCAB, "num_key_value_heads": 1, "head_dim": 8, "query_pre_attn_scalar": 8}
    model = model_from_config({"model_type": "gemma3_text", **sizes})
    params = model.init(jax.random.key(0), jnp.float32)
    engine = RolloutEngine(model, 6, (1,), 0)
    prompts = [Prompt(_example(i), "p", tuple(range(10, 10 + n))) for i, n in enumerate(LENGTHS)]
    fixed = dict(group_size=GROUP, sampling=SAMPLING, seed=1, stream=2)

    def run(prompts_per_batch, numbers=ALL, ids=ALL, **changes):
        tokenizer = Tokenizer.load(folder)
        chosen = [prompts[n] for n in numbers]
        how = fixed | changes
        return list(
            generate_rollouts(engine, params, tokenizer, chosen, ids, prompts_per_batch=prompts_per_batch, **how)
        )

    return run


def _example(number):
    return Example(str(number), "src", "English", "Korean", "en", "ko", None)


def test_prompts_of_like_length_share_a_batch(generate):
    batches = generate(3)
    assert [[len(p.token_ids) for p in b.prompts[::GROUP]] for b in batches] == [[3, 3, 7], [40, 20, 33], [41]]


@pytest.mark.parametrize("prompts_per_batch", [1, 3])
def test_batches_put_together_are_one_batch_in_the_order_of_the_prompts(generate, prompts_per_batch):
    (whole,) = generate(0)
    parts = generate(prompts_per_batch)
    together = concatenate(parts, pad_id=0)
    assert [p.example.example_id for p in together.prompts] == [str(i) for i in range(7) for _ in range(GROUP)]
    assert [r.completion_token_ids for r in together.rollouts] == [r.completion_token_ids for r in whole.rollouts]
    width = whole.tokens.shape[1]
    np.testing.assert_array_equal(together.tokens[:, -width:], whole.tokens)
    np.testing.assert_array_equal(together.positions[:, -width:], whole.positions)
    np.testing.assert_array_equal(together.mask, whole.mask)
    np.testing.assert_allclose(together.logp, whole.logp, atol=1e-5)
    assert in_order(parts, [[r.example_id for r in part.rollouts] for part in parts]) == [
        r.example_id for r in whole.rollouts
    ]


@pytest.mark.parametrize("prompts_per_batch", [0, 1])
def test_a_prompt_that_comes_again_in_an_update_is_sampled_anew(generate, prompts_per_batch):
    """An update that ends one epoch and begins the next: what it gets is one group of twice the size."""
    parts = generate(prompts_per_batch, numbers=(5, 1, 5), ids=(5, 1, 5))
    sampled = [r.completion_token_ids for r in concatenate(parts, pad_id=0).rollouts]
    (large,) = generate(0, numbers=(5,), ids=(5,), group_size=2 * GROUP)
    assert sampled[:GROUP] + sampled[-GROUP:] == [r.completion_token_ids for r in large.rollouts]
    assert sampled[:GROUP] != sampled[-GROUP:]
