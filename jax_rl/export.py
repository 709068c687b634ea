"""python -m jax_rl.export DIR --to OUT: a checkpoint of a run as a folder for transformers, vLLM or PEFT."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from jax_rl.cli import main_guard


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jax_rl.export", description=__doc__)
    parser.add_argument("dir", type=Path, metavar="DIR", help="a checkpoint-N or resume_latest folder")
    parser.add_argument("--to", type=Path, metavar="OUT", required=True, help="the folder to make; LoRA is merged")
    parser.add_argument("--adapter", action="store_true", help="write the LoRA adapters alone, as PEFT stores them")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the written tensors; default: the run's own"
    )
    parser.add_argument(
        "--base", metavar="MODEL", help="folder or hub name that the run started from, if it is not there any more"
    )
    parser.add_argument("--tokenizer", metavar="MODEL", help="likewise, of the tokenizer that the run used")
    args = parser.parse_args(argv)

    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # an accelerator may be busy with the run itself
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax's warnings; what matters comes as an error
    from jax_rl.checkpoint_export import export_checkpoint  # here, so that --help is quick

    export_checkpoint(
        args.dir, args.to, adapter=args.adapter, dtype=args.dtype, base=args.base, tokenizer=args.tokenizer
    )
    print(f"wrote {args.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main_guard(main))
