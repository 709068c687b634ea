"""Post-trains a translation model: `python -m jax_rl.train --config C.yaml [section.key=value ...] [--eval-only]`."""

import argparse
import logging
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

from jax_rl.cli import main_guard


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jax_rl.train", description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="YAML file")
    parser.add_argument("--eval-only", action="store_true", help="evaluate and stop: no update")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the file's")
    args = parser.parse_intermixed_args(argv)
    start_logging()
    return main_guard(lambda: _run(args))


def start_logging() -> None:
    """Lines to stderr: beside the progress bar on a terminal, plain and unwrapped elsewhere."""
    handler: logging.Handler = logging.StreamHandler()
    form = "%(asctime)s %(levelname).1s %(message)s"
    if sys.stderr.isatty():
        handler, form = RichHandler(console=Console(stderr=True), show_path=False), "%(message)s"
    logging.basicConfig(format=form, datefmt="%H:%M:%S", level=logging.INFO, handlers=[handler])
    for chatty in ("absl", "orbax", "httpx", "jax"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _run(args: argparse.Namespace) -> None:
    from jax_rl.config import load_config

    cfg = load_config(args.config, args.overrides)
    if cfg.misc.device == "cpu":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before JAX starts: no search for accelerators
    from jax_rl.trainer import evaluate_only, train

    if args.eval_only:
        evaluate_only(cfg)
    else:
        train(cfg)


if __name__ == "__main__":
    sys.exit(main())
