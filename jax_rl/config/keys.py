"""Every dotted key of the schema, and the one that an unknown key most likely means."""

import difflib

from jax_rl.config.kinds import Role, role_of, walk
from jax_rl.config.schema import Config

LEAVES = {key: (hint, default) for key, hint, default in walk(Config())}
SECTIONS = tuple(dict.fromkeys(key.rpartition(".")[0] for key in LEAVES))
SECRETS = tuple(key for key, (hint, _) in LEAVES.items() if role_of(hint) is Role.SECRET)


def nearest_key(prefix: str, name: str) -> str:
    """The known key closest to `prefix + name`: similar and beside it, else the most similar of all."""
    known = (*LEAVES, *SECTIONS)
    beside = {key.removeprefix(prefix): key for key in known if key.startswith(prefix)}
    siblings = [rest for rest in beside if "." not in rest]
    near = difflib.get_close_matches(name, siblings, n=1, cutoff=0.6)
    if near:
        return beside[near[0]]
    anywhere = {key.rpartition(".")[2]: key for key in reversed(known)}
    return anywhere[difflib.get_close_matches(name, anywhere, n=1, cutoff=0.0)[0]]
