"""MetricX-24: an mT5 encoder-decoder whose first decoding step is read as one number, the error score.

Parameter names are those of Google's checkpoints (`shared`, `encoder.*`, `decoder.*`, `lm_head.weight`), so they load
unchanged. Works with transformers 4.57 and 5.x. Reference: https://github.com/google-research/metricx, models.py.
"""

import copy

import torch
import transformers
from torch import Tensor, nn
from transformers import MT5Config
from transformers.models.mt5.modeling_mt5 import MT5PreTrainedModel, MT5Stack

SCORE_TOKEN_ID = 250089  # <extra_id_10> of mT5; a checkpoint with another vocabulary says `metricx_token_id`
MIN_SCORE, MAX_SCORE = 0.0, 25.0  # MQM error points: 0 is perfect
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_TRANSFORMERS_5 = int(transformers.__version__.split(".")[0]) >= 5


class MetricXRegression(MT5PreTrainedModel):
    """`forward` gives the raw score of each row; `score_ids` the one that MetricX reports."""

    _tied_weights_keys = dict.fromkeys(_TIED, "shared.weight") if _TRANSFORMERS_5 else list(_TIED)
    _keys_to_ignore_on_load_unexpected = ["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"]

    def __init__(self, config: MT5Config):
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = _stack(config, self.shared, is_decoder=False, num_layers=config.num_layers)
        self.decoder = _stack(config, self.shared, is_decoder=True, num_layers=config.num_decoder_layers)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.shared

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.shared = value
        self.encoder.set_input_embeddings(value)
        self.decoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> None:
        """None: the head is not tied, though transformers 5 sets tie_word_embeddings for every mT5."""

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, L] token ids and their mask (1 = a token) -> encoder states [B, L, D]."""
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)[0]

    def read_out(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """Encoder states -> raw scores [B], float32: the first decoding step's logit of the score token.

        Only that row of `lm_head` is used, and its dot product is done in float32: bfloat16 would round scores to 1/8.
        """
        start = states.new_zeros((states.shape[0], 1), dtype=torch.long)
        hidden = self.decoder(
            input_ids=start,
            encoder_hidden_states=states,
            encoder_attention_mask=attention_mask,
            use_cache=False,
            return_dict=True,
        )[0][:, 0]
        return hidden.float() @ self.lm_head.weight[self.score_token_id].float()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Raw scores [B], float32, not clipped: what training fits."""
        return self.read_out(self.encode(input_ids, attention_mask), attention_mask)

    @torch.inference_mode()
    def score_ids(self, token_ids: list[list[int]]) -> list[float]:
        """Scores in 0..25 (lower is better, NaN where the model overflowed) of one batch of unpadded token ids."""
        device = self.shared.weight.device
        rows = [torch.tensor(ids, device=device) for ids in token_ids]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        raw = self(ids, mask)
        finite = raw.isfinite()
        return torch.where(finite, raw.clamp(MIN_SCORE, MAX_SCORE), torch.nan).tolist()

    @property
    def score_token_id(self) -> int:
        return self.config.to_dict().get("metricx_token_id", SCORE_TOKEN_ID)


def load_model(folder: str, dtype: torch.dtype, device: str) -> MetricXRegression:
    """The checkpoint in `folder` (`.safetensors` or, read with `weights_only`, `.bin`), ready to score.

    ValueError when it is not a MetricX checkpoint: weights missing or left over, or no row for the score token.
    """
    model, info = MetricXRegression.from_pretrained(
        folder, dtype=dtype, local_files_only=True, weights_only=True, output_loading_info=True
    )
    missing = sorted(set(info["missing_keys"]) - set(_TIED))
    unexpected = sorted(set(info["unexpected_keys"]) - set(_TIED))
    if missing or unexpected or info["mismatched_keys"]:
        raise ValueError(
            f"{folder} is not a MetricX checkpoint: missing {missing[:5]}, unexpected {unexpected[:5]}, "
            f"of another shape {sorted(info['mismatched_keys'])[:5]}"
        )
    if model.score_token_id >= model.config.vocab_size:
        raise ValueError(
            f"{folder}: the score token {model.score_token_id} is outside the vocabulary of {model.config.vocab_size}; "
            "a checkpoint with its own vocabulary needs metricx_token_id in config.json"
        )
    return model.eval().to(device)


def _stack(config: MT5Config, shared: nn.Embedding, is_decoder: bool, num_layers: int) -> MT5Stack:
    config = copy.deepcopy(config)
    config.is_decoder, config.num_layers = is_decoder, num_layers
    config.use_cache = config.is_encoder_decoder = False
    if not _TRANSFORMERS_5:
        return MT5Stack(config, shared)
    stack = MT5Stack(config)
    stack.set_input_embeddings(shared)
    return stack
