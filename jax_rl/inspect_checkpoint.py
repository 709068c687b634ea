"""python -m jax_rl.inspect_checkpoint DIR: what a checkpoint holds, and what changed between two."""

import argparse
import fnmatch
import json
import logging
import math
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from jax_rl.cli import main_guard
from jax_rl.errors import UserError

if TYPE_CHECKING:
    from jax_rl.checkpoint_view import CheckpointView, StoredArray

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jax_rl.inspect_checkpoint", description=__doc__)
    parser.add_argument("dir", type=Path, metavar="DIR", help="a checkpoint-N, resume_latest, best or final folder")
    parser.add_argument("--diff", type=Path, metavar="OTHER", help="relative change of each array from DIR to OTHER")
    parser.add_argument(
        "--param", metavar="PATTERN", help="only paths that match: *glob* of the whole, or a regex in it"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)

    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # an accelerator may be busy with the run itself
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax's warnings; what matters comes as an error
    from jax_rl.checkpoint_view import open_view  # here, so that --help is quick

    view = open_view(args.dir)
    report: Row = {"folder": str(args.dir), "kind": view.kind}
    if args.diff:
        report |= {"other": str(args.diff), **_compare(view, open_view(args.diff), args.param)}
    else:
        report |= _describe(view, args.param)
    if args.json:
        print(json.dumps(_without_nan(report), ensure_ascii=False, indent=1))
    else:
        lines = _diff_lines(report) if args.diff else _lines(report)
        print("\n".join(lines))
    return 0


def _describe(view: "CheckpointView", pattern: str | None) -> Row:
    from jax_rl.checkpoint_view import count_nonfinite, norm

    rows: list[Row] = []
    for stored in _matching(view.arrays, pattern):
        array = stored.read()
        row: Row = {"path": stored.path, "group": stored.group, "shape": list(stored.shape)}
        row |= {"dtype": stored.dtype.name, "bytes": stored.nbytes, "norm": norm(array)}
        if not math.isfinite(row["norm"]):
            row["nonfinite"] = count_nonfinite(array)
        rows.append(row)
    steps = [stored for stored in view.arrays if stored.path == "step" and stored.shape == ()]
    step = int(steps[0].read()) if steps else None
    groups = [
        {"group": name, "arrays": len(members), "elements": sum(math.prod(row["shape"]) for row in members),
         "bytes": sum(row["bytes"] for row in members), "norm": math.hypot(*(row["norm"] for row in members))}
        for name, members in _by_group(rows).items()
    ]  # fmt: skip
    return {"step": step, "facts": view.facts, "config": view.config, "arrays": rows, "groups": groups}


def _compare(view: "CheckpointView", other: "CheckpointView", pattern: str | None) -> Row:
    from jax_rl.checkpoint_view import change

    before = {stored.path: stored for stored in _matching(view.arrays, pattern)}
    after = {stored.path: stored for stored in other.arrays if pattern is None or _matches(pattern, stored.path)}
    both = [path for path in before if path in after]
    if not both:
        raise UserError(f"the two have no array in common: {_some(before)} here, {_some(after)} there")
    rows: list[Row] = []
    reshaped = []
    for path in both:
        a, b = before[path], after[path]
        if a.shape != b.shape:
            reshaped.append({"path": path, "before": list(a.shape), "after": list(b.shape)})
            continue
        moved = change(a.read(), b.read())
        rows.append({"path": path, "group": a.group, "relative": moved.relative, "difference": moved.difference,
                     "norm": moved.before})  # fmt: skip
    groups = []
    for name, members in _by_group(rows).items():
        difference, size = (math.hypot(*(row[key] for row in members)) for key in ("difference", "norm"))
        relative = difference / size if size else (math.inf if difference else 0.0)
        groups.append({"group": name, "relative": relative, "changed": sum(row["difference"] != 0 for row in members),
                       "arrays": len(members)})  # fmt: skip
    return {"changes": rows, "groups": groups, "reshaped": reshaped,
            "only_here": [path for path in before if path not in after],
            "only_there": [path for path in after if path not in before]}  # fmt: skip


def _matching(arrays: Sequence["StoredArray"], pattern: str | None) -> list["StoredArray"]:
    chosen = [stored for stored in arrays if pattern is None or _matches(pattern, stored.path)]
    if not chosen:
        raise UserError(f"--param {pattern}: no array's path matches; there are {_some(s.path for s in arrays)}")
    return chosen


def _matches(pattern: str, path: str) -> bool:
    if fnmatch.fnmatchcase(path, pattern):
        return True
    try:
        return re.search(pattern, path) is not None
    except re.error:  # *.weight is a glob and no regex
        return False


def _some(paths: Iterable[str]) -> str:
    paths = list(paths)
    return ", ".join(paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "") if paths else "nothing"


def _by_group(rows: list[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["group"]].append(row)
    return groups


def _lines(report: Row) -> list[str]:
    lines = [f"{report['folder']}: {report['kind']}"]
    if report["step"] is not None:
        lines.append(f"step: {report['step']}")
    lines += [f"{name}: {_short(value)}" for name, value in report["facts"].items()]
    if report["config"] is not None:
        config = report["config"]
        text = config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        lines += ["config:", *(f"  {line}" for line in text.rstrip().splitlines())]
    arrays = [
        (row["path"], _shape(row["shape"]), row["dtype"], f"{row['bytes']:,}",
         f"{row['norm']:.6g}" + (f"  ({row['nonfinite']} not finite)" if "nonfinite" in row else ""))
        for row in report["arrays"]
    ]  # fmt: skip
    lines += ["", *_table(("path", "shape", "dtype", "bytes", "norm"), arrays, "<<<>>")]
    groups = [
        (row["group"], str(row["arrays"]), f"{row['elements']:,}", f"{row['bytes']:,}", f"{row['norm']:.6g}")
        for row in report["groups"]
    ]
    total = (
        "total",
        *(f"{sum(row[key] for row in report['groups']):,}" for key in ("arrays", "elements", "bytes")),
        "",
    )
    return [*lines, "", *_table(("group", "arrays", "elements", "bytes", "norm"), [*groups, total], "<>>>>")]


def _diff_lines(report: Row) -> list[str]:
    lines = [f"from {report['folder']} to {report['other']}"]
    changes = [
        (row["path"], f"{row['relative']:.3e}", f"{row['difference']:.6g}", f"{row['norm']:.6g}")
        for row in report["changes"]
    ]
    lines += ["", *_table(("path", "relative", "norm of change", "norm before"), changes, "<>>>")]
    groups = [
        (row["group"], f"{row['relative']:.3e}", f"{row['changed']} of {row['arrays']}") for row in report["groups"]
    ]
    lines += ["", *_table(("group", "relative", "changed"), groups, "<>>")]
    lines += [f"shape changed: {r['path']} {_shape(r['before'])} -> {_shape(r['after'])}" for r in report["reshaped"]]
    lines += [f"only in {report['folder']}: {path}" for path in report["only_here"]]
    return lines + [f"only in {report['other']}: {path}" for path in report["only_there"]]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> list[str]:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return [
        "  ".join(f"{c:{a}{w}}" for c, a, w in zip(row, align, widths, strict=True)).rstrip() for row in (header, *rows)
    ]


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else f"{text[:160]}... ({len(text):,} characters)"


def _without_nan(value: Any) -> Any:
    """JSON has no nan and no infinity: null instead."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main_guard(main))
