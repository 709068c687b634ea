"""What a config takes on a machine that need not be there: memory, FLOPs, seconds at the least, and whether it fits."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from jax_rl.cli import main_guard


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jax_rl.plan", description=__doc__)
    parser.add_argument("--config", required=True, type=Path, help="YAML file; of the model only config.json is read")
    parser.add_argument(
        "--target", help="h100:8, h100:2x8 (hosts x GPUs), v5e:4x4, v5p:4x4x4, v6e:4x4, cpu:64; default: this machine"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the file's")
    args = parser.parse_intermixed_args(argv)
    logging.basicConfig(format="%(levelname).1s %(message)s", level=logging.WARNING)
    return main_guard(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    from jax_rl.config import load_config

    cfg = load_config(args.config, args.overrides, files=False)
    from jax_rl.planning.build import make_plan
    from jax_rl.planning.published import planned_model
    from jax_rl.planning.report import describe
    from jax_rl.planning.targets import open_target

    model = planned_model(cfg)
    plan = make_plan(cfg, model, open_target(args.target))
    print(json.dumps(plan.to_json(), indent=1) if args.json else describe(plan))


if __name__ == "__main__":
    sys.exit(main_guard(main))
