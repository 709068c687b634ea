"""Writes a model of random weights as a Hugging Face folder, with transformers: every system loads this one.

python -m benchmarks.model_folder MODEL FOLDER
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

from benchmarks.workloads import BOS, EOS, MODELS, PAD, UNK, ModelSize


def write(size: ModelSize, folder: Path) -> None:
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        num_hidden_layers=size.layers,
        hidden_size=size.hidden,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        intermediate_size=size.mlp,
        vocab_size=size.vocab,
        sliding_window=256,
        max_position_embeddings=2048,
        query_pre_attn_scalar=size.head_dim,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=BOS,
    )
    model = Gemma3ForCausalLM(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # zeros, as they are made, would hide a norm that is left out
                parameter.copy_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)

    special = {"<pad>": PAD, "<eos>": EOS, "<bos>": BOS, "<unk>": UNK}
    words = special | {f"▁t{token}": token for token in range(UNK + 1, size.vocab)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="left",
    ).save_pretrained(folder)


if __name__ == "__main__":
    write(MODELS[sys.argv[1]], Path(sys.argv[2]))
