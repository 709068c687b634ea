"""Every published Gemma 3 config.json is read as transformers reads it."""

import pytest
from transformers import Gemma3Config as HFWrapper
from transformers import Gemma3TextConfig as HFText

from jax_rl.models.errors import ModelError
from jax_rl.models.params import count_params
from jax_rl.models.registry import model_from_config
from jax_rl.models.stack import find_period

LINEAR = {"factor": 8.0, "rope_type": "linear"}
UNSCALED = {"rope_scaling": None, "rope_theta": 1_000_000, "rope_local_base_freq": 10_000}
# as on the hub: written by transformers 4, which left out what equals its defaults in the larger three
SIZES = {
    "270m": dict(
        hidden_size=640,
        intermediate_size=2048,
        num_attention_heads=4,
        num_hidden_layers=18,
        num_key_value_heads=1,
        sliding_window=512,
        vocab_size=262144,
        **UNSCALED,
    ),
    "1b": dict(
        hidden_size=1152,
        intermediate_size=6912,
        num_attention_heads=4,
        num_hidden_layers=26,
        num_key_value_heads=1,
        sliding_window=512,
        sliding_window_pattern=6,
        vocab_size=262144,
        **UNSCALED,
    ),
    "4b": dict(
        hidden_size=2560, intermediate_size=10240, num_hidden_layers=34, rope_scaling=LINEAR, sliding_window=1024
    ),
    "12b": dict(
        hidden_size=3840,
        intermediate_size=15360,
        num_attention_heads=16,
        num_hidden_layers=48,
        num_key_value_heads=8,
        rope_scaling=LINEAR,
        sliding_window=1024,
    ),
    "27b": dict(
        head_dim=128,
        hidden_size=5376,
        intermediate_size=21504,
        num_attention_heads=32,
        num_hidden_layers=62,
        num_key_value_heads=16,
        query_pre_attn_scalar=168,
        rope_scaling=LINEAR,
        sliding_window=1024,
    ),
}
BILLIONS = {"270m": 0.268, "1b": 1.000, "4b": 3.880, "12b": 11.77, "27b": 27.01}
SAME = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "query_pre_attn_scalar sliding_window rms_norm_eps initializer_range tie_word_embeddings"
).split()


def copy_of(size):
    """transformers changes the dicts that it is given."""
    fields = SIZES[size]
    return {**fields, "rope_scaling": dict(fields["rope_scaling"]) if fields["rope_scaling"] else None}


def forms(size):
    """The same config as both versions of transformers write it, text-only and wrapped."""
    hf = HFText(**copy_of(size))
    return {
        "v4 text": {"model_type": "gemma3_text", **copy_of(size)},
        "v4 wrapper": {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", **copy_of(size)}},
        "v5 text": hf.to_dict(),
        "v5 wrapper": HFWrapper(text_config=hf.to_dict()).to_dict(),
    }


@pytest.mark.parametrize("form", ["v4 text", "v4 wrapper", "v5 text", "v5 wrapper"])
@pytest.mark.parametrize("size", SIZES)
def test_is_read_as_transformers_reads_it(size, form):
    hf = HFText(**copy_of(size))
    cfg = model_from_config(forms(size)[form]).cfg
    assert {name: getattr(cfg, name) for name in SAME} == {name: getattr(hf, name) for name in SAME}
    assert list(cfg.layer_types) == list(hf.layer_types)
    for rope, kind in ((cfg.rope_sliding, "sliding_attention"), (cfg.rope_full, "full_attention")):
        theirs = hf.rope_parameters[kind]
        assert (rope.theta, rope.kind, rope.factor) == (
            theirs["rope_theta"],
            theirs["rope_type"],
            theirs.get("factor", 1.0),
        )
    assert hash(cfg) == hash(model_from_config(forms(size)["v5 text"]).cfg)


@pytest.mark.parametrize("size", SIZES)
def test_has_the_published_number_of_parameters(size):
    count = count_params(model_from_config(forms(size)["v4 text"]).specs)
    assert count / 1e9 == pytest.approx(BILLIONS[size], abs=5e-3)


@pytest.mark.parametrize(
    "size, repeats, tail", [("270m", 3, 0), ("1b", 4, 2), ("4b", 5, 4), ("12b", 8, 0), ("27b", 10, 2)]
)
def test_is_scanned_over_periods_of_six(size, repeats, tail):
    period = find_period(model_from_config(forms(size)["v4 text"]).cfg.layer_types)
    assert (len(period.kinds), period.repeats, len(period.tail)) == (6, repeats, tail)


def test_unsupported_fields_are_all_named():
    raw = forms("1b")["v4 text"] | {"attention_bias": True, "final_logit_softcapping": 30.0, "layer_types": ["strange"]}
    with pytest.raises(ModelError) as error:
        model_from_config(raw)
    for part in ("attention_bias is True, must be False", "final_logit_softcapping is 30.0", "'strange'", "1 entries"):
        assert part in str(error.value)


def test_an_unknown_rope_type_is_an_error():
    raw = forms("1b")["v4 text"] | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
    with pytest.raises(ModelError, match="full_attention: rope_type 'yarn' is not implemented; known: default, linear"):
        model_from_config(raw)


@pytest.mark.parametrize("raw", [{"model_type": "mamba"}, {}])
def test_an_unknown_model_type_names_the_known(raw):
    with pytest.raises(ModelError, match="is not known; known: gemma3, gemma3_text"):
        model_from_config(raw)
