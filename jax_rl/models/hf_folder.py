"""What lies in a Hugging Face folder: which tensors, in which files, under which names."""

import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jax_rl.models.errors import ModelError
from jax_rl.models.registry import Family
from jax_rl.models.safetensors_file import StoredTensor, read_header

HEAD = "lm_head.weight"
INDEX = "model.safetensors.index.json"
DERIVED = "rotary_emb.inv_freq"  # stored in files of Llama 2's time

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """How a checkpoint names the text model's tensors.

    Text-only files say `model.layers.0...`, multimodal ones `language_model.model.layers.0...` or
    `model.language_model.layers.0...`, depending on the version that wrote them.
    """

    prefix: str = "model."
    head: str = HEAD

    def stored_name(self, hf_name: str) -> str:
        """The name in the file of a tensor of a `ParamSpec`."""
        return self.head if hf_name == HEAD else self.prefix + hf_name


def has_weights(folder: Path) -> bool:
    """Whether `list_tensors` would find files."""
    return (folder / INDEX).is_file() or (folder / "model.safetensors").is_file()


def list_tensors(folder: Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """All tensors of a folder, and what is wrong with its files. Without tables that follow from the config.

    Raises:
        ModelError: there are no safetensors files at all.
    """
    index, single = folder / INDEX, folder / "model.safetensors"
    if single.is_file():
        paths = [single]
        if index.is_file():
            log.warning("%s holds model.safetensors and %s; the former is read, as transformers does", folder, INDEX)
    elif index.is_file():
        paths = [folder / name for name in _indexed_files(index)]
    else:
        found = ", ".join(
            sorted(p.name for p in folder.glob("*") if p.suffix in (".safetensors", ".bin", ".pt", ".gguf"))
        )
        raise ModelError(f"{folder} has neither model.safetensors nor {INDEX} (weights found: {found or 'none'})")
    tensors: dict[str, StoredTensor] = {}
    problems = []
    for path in paths:
        try:
            in_file = read_header(path)
        except (ModelError, OSError) as error:
            problems.append(f"unreadable file: {error}")
            continue
        size = path.stat().st_size
        problems += group_by_layer(
            f"cut off ({path.name} ends at byte {size})", [n for n, t in in_file.items() if t.end > size]
        )
        problems += group_by_layer(f"twice (again in {path.name})", [name for name in in_file if name in tensors])
        tensors.update(in_file)
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(DERIVED)}, problems


def _indexed_files(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is not a safetensors index: {error!r}") from error


def find_layout(tensors: Iterable[str], family: Family) -> Layout:
    """Where the text model's tensors are.

    Raises:
        ModelError: nowhere, or at more than one place.
    """
    names = [name for name in tensors if not name.startswith(family.other_tensors)]
    matches = (re.match(r"(.*?)(embed_tokens\.weight$|layers\.\d+\.)", name) for name in names)
    prefixes = sorted({match[1] for match in matches if match})
    if len(prefixes) != 1:
        raise ModelError(
            f"cannot tell where the text model is: the prefixes of its tensors are {prefixes}, should be one, "
            "such as 'model.' or 'language_model.model.'"
        )
    heads = [name for name in names if name.endswith(HEAD)]
    default = "language_model." + HEAD if prefixes[0].startswith("language_model.") else HEAD
    return Layout(prefixes[0], heads[0] if len(heads) == 1 else default)


def group_by_layer(what: str, names: list[str]) -> list[str]:
    """One line per kind of tensor: `missing: model.layers.{3,4}.mlp.up_proj.weight`."""
    layers: dict[str, list[str]] = {}
    for name in names:
        match = re.search(r"\blayers\.(\d+)\.", name)
        pattern = name if match is None else f"{name[: match.start(1)]}{{}}{name[match.end(1) :]}"
        layers.setdefault(pattern, []).append("" if match is None else match[1])
    return [
        f"{what}: " + pattern.replace("{}", found[0] if len(found) == 1 else "{" + ",".join(found) + "}")
        for pattern, found in layers.items()
    ]
