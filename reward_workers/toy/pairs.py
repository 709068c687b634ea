"""The clean text that errors are made from: pairs of `jax_rl.toy.text`, alone or two joined into one.

Joining makes new clean translations out of seen ones, so that "clean" is learnt as "every part is translated", not as
"I have met this reference".
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from reward_workers.toy.errors import Pair

JOINTS = (", ", ". ", " - ", ": ", " ")


def read_pairs(path: Path) -> list[Pair]:
    """(source, reference) of each row."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [(row["src_text"], row["ref_text"]) for row in rows]


def draw_pair(pairs: Sequence[Pair], rng: random.Random, joined: float) -> Pair:
    """A random pair; with chance `joined` two short ones as one."""
    src, ref = rng.choice(pairs)
    if rng.random() >= joined:
        return src, ref
    other_src, other_ref = rng.choice(pairs)
    if len(src) + len(other_src) > 80:
        return src, ref
    joint = rng.choice(JOINTS)
    return src.rstrip(".,:") + joint + other_src, ref.rstrip(".,:") + joint + other_ref
