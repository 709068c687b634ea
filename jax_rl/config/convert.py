"""Plain YAML values -> the types of the schema. A value that does not fit names what would be right."""

import json
import math
import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from jax_rl.config.kinds import Range, Role, role_of

SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")  # YAML 1.1 reads 1e-6, without a dot, as text


class Mismatch(Exception):
    """A value that its key cannot take; the message is the reason and what would be right."""


class _WrongType(Exception):
    pass


class _OutOfRange(Exception):
    pass


def convert(hint: Any, value: Any) -> Any:
    """`value` as the type `hint`, or `Mismatch`."""
    try:
        return _convert(hint, value)
    except _WrongType:
        right = describe(hint) + _advice(hint, value)
        raise Mismatch(f"{_shown(hint, value)} is {_kind(value)}; it must be {right}") from None
    except _OutOfRange:
        raise Mismatch(f"{_shown(hint, value)} is out of range; it must be {describe(hint)}") from None


def describe(hint: Any) -> str:
    """What a key takes, in words: `a whole number >= 1 or null`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return f"{describe(_not_none(hint))} or null"
    if origin is Annotated:
        return " ".join([describe(arguments[0]), *(str(mark) for mark in hint.__metadata__ if isinstance(mark, Range))])
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        return f"a list, each item {describe(arguments[0])}"
    if origin is dict:
        return "a mapping" if arguments[1] is Any else f"a mapping from names, each to {describe(arguments[1])}"
    return SCALARS[hint]


def _convert(hint: Any, value: Any) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else _convert(_not_none(hint), value)
    if origin is Annotated:
        result = _convert(get_args(hint)[0], value)
        if any(isinstance(mark, Range) and result not in mark for mark in hint.__metadata__):
            raise _OutOfRange
        return result
    if origin is Literal:
        fits = isinstance(value, str) and value in get_args(hint)
    elif origin is tuple:
        return _items(get_args(hint)[0], value)
    elif origin is dict:
        return _mapping(get_args(hint)[1], value)
    elif hint is float:
        return _number(value)
    else:
        fits = type(value) is hint  # not isinstance: true is an int to Python
    if not fits:
        raise _WrongType
    return value


def _items(hint: Any, value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _WrongType
    return tuple(_at(f"item {i + 1}", hint, item) for i, item in enumerate(value))


def _mapping(hint: Any, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _WrongType
    for name in value:
        if not isinstance(name, str):
            raise Mismatch(f"the name {name!r} is {_kind(name)}, not text; write it in quotes")
    if hint is Any:
        return {name: _json(item) for name, item in value.items()}
    return {name: _at(name, hint, item) for name, item in value.items()}


def _number(value: Any) -> float:
    if isinstance(value, str) and EXPONENT.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _WrongType
    if not abs(value) <= 1e300:  # nan and infinity too
        raise Mismatch(f"{str(value)[:40]} is not an ordinary number")
    return float(value)


def _json(value: Any) -> Any:
    """`value` if JSON can carry it: such mappings go to chat templates and to judges as they are."""
    if isinstance(value, dict):
        return _mapping(Any, value)
    if isinstance(value, list):
        return [_json(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise Mismatch(f"{value!r} cannot be written as JSON; use text, numbers, true, false, null, lists and mappings")


def _at(place: str, hint: Any, value: Any) -> Any:
    try:
        return convert(hint, value)
    except Mismatch as mismatch:
        raise Mismatch(f"{place}: {mismatch}") from None


def _not_none(union: Any) -> Any:
    (inner,) = [argument for argument in get_args(union) if argument is not types.NoneType]
    return inner


def _shown(hint: Any, value: Any) -> str:
    if role_of(hint) is Role.SECRET:
        return "the value (a secret, not shown)"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _kind(value: Any) -> str:
    if value is None:
        return "empty"
    kinds = {**SCALARS, float: "a number with a fraction", list: "a list", dict: "a mapping"}
    return kinds.get(type(value), type(value).__name__)


def _advice(hint: Any, value: Any) -> str:
    """The likeliest slip behind a value of the wrong type."""
    if value is None:
        return "; or leave the key out for its default"
    if isinstance(value, (bool, int, float)) and "text" in describe(hint):
        return ", in quotes (without them YAML reads no, off and 123 as other things)"
    if isinstance(value, str) and value.lower() in ("none", "~") and describe(hint).endswith("or null"):
        return ", without quotes"
    if isinstance(value, str) and describe(hint).startswith(("a whole number", "a number")) and _looks_numeric(value):
        return ", without quotes"
    return ""


def _looks_numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
