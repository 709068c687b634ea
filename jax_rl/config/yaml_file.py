"""YAML text -> nested dicts, with the line of each key, and duplicate keys refused."""

from dataclasses import dataclass, field
from typing import Any

import yaml


class YamlError(Exception):
    """The text is not YAML. The message says where and why, and quotes no line (it could hold a secret)."""


@dataclass(frozen=True)
class YamlTree:
    values: dict[Any, Any]
    lines: dict[str, int] = field(default_factory=dict)  # dotted key -> line, from 1
    duplicates: dict[str, int] = field(default_factory=dict)  # dotted key given twice -> line of the second


class _Loader(yaml.SafeLoader):
    """SafeLoader that leaves dates as the text they were written as."""

    yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def parse_yaml(text: str) -> YamlTree:
    """Read one document that is a mapping (or empty)."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return YamlTree({})
        lines: dict[str, int] = {}
        duplicates: dict[str, int] = {}
        _note_keys(node, "", lines, duplicates, inside=())
        values = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        where = (
            f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: "
            if error.problem_mark
            else ""
        )
        # of a tab PyYAML says only that it cannot start a token
        hint = "; indent with spaces, not tabs" if "'\\t'" in (error.problem or "") else ""
        raise YamlError(f"{where}not valid YAML: {error.problem or error.context}{hint}") from None
    except yaml.YAMLError as error:
        raise YamlError(f"not valid YAML: {error}") from None
    except (ValueError, TypeError) as error:  # of PyYAML's constructors, e.g. the number 0b_ or a list as a key
        raise YamlError(f"not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise YamlError("holds no sections; write `section:` lines with indented `key: value` lines under them")
    return YamlTree(values, lines, duplicates)


def parse_value(text: str) -> Any:
    """Read what stands behind the `=` of an override."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise YamlError(f"the value is not valid YAML: {error.problem or error.context}; quote it") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise YamlError(f"the value is not valid YAML: {error}; quote it") from None


def _note_keys(
    node: yaml.Node, prefix: str, lines: dict[str, int], duplicates: dict[str, int], inside: tuple[int, ...]
) -> None:
    """Walk the mappings below `node`. An alias to a mapping that holds it (`&a {b: *a}`) is refused."""
    if id(node) in inside:
        raise YamlError(f"line {node.start_mark.line + 1}: {prefix.rstrip('.')} contains itself")
    inside = (*inside, id(node))
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _note_keys(child, prefix, {}, duplicates, inside)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key_node, value_node in node.value:
            name, line = str(key_node.value), key_node.start_mark.line + 1
            key = prefix + name
            if name in seen and name != "<<":
                duplicates[key] = line
            seen.add(name)
            lines[key] = line
            _note_keys(value_node, key + ".", lines, duplicates, inside)
