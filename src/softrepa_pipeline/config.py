"""YAML mappings into frozen dataclasses, with errors that name the parameter and the nearest known one."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Make a dataclass of a mapping; nested dataclasses and tuples are built from nested mappings and lists.

    Raises:
        ValueError: a key is unknown or missing, or a value has the wrong type; the message names `where.key`.
    """
    assert is_dataclass(cls)
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in fields(cls)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise ValueError(
                f"unknown parameter {where}.{key}; did you mean {where}.{near[0]}? Known: {', '.join(known)}"
            )
    arguments = {}
    for name, field in known.items():
        if name in values:
            arguments[name] = _convert(values[name], hints[name], f"{where}.{name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"parameter {where}.{name} is missing")
    return typing.cast(T, cls(**arguments))


def _convert_to_one_of(value: Any, hints: list[Any], where: str) -> Any:
    for hint in hints[:-1]:
        try:
            return _convert(value, hint, where)
        except ValueError:
            continue
    return _convert(value, hints[-1], where)


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _convert_to_one_of(value, [option for option in options if option is not type(None)], where)
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be a mapping, not {value!r}")
        return build(typing.cast(type[Any], hint), value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where} must be a list, not {value!r}")
        return tuple(_convert(item, options[0], where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, origin or hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{where} must be of type {hint.__name__}, not {value!r}")
    return value
