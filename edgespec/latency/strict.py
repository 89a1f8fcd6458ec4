"""Plain containers to frozen dataclasses and back, by their annotations, forgiving nothing.

Every field without a default has to be there and no other key may be; numbers are finite and not
negative, as costs, sizes and rates are.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

from edgespec.errors import ConfigError

T = TypeVar("T")


def read(cls: type[T], data: Any, where: str) -> T:
    """``data`` as an instance of the dataclass ``cls``; ``where`` names it in errors.

    Raises ConfigError for unknown and missing keys, for values of another type, and for what the
    class itself refuses with a ValueError.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} is {_shown(data)}; 'key: value' lines are expected")
    known = {item.name: item for item in fields(cast(Any, cls))}
    for key in data:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it may have {', '.join(known)}"
            raise ConfigError(f"{where} has the unknown key '{key}'; {hint}")
    missing = [name for name, item in known.items() if name not in data and _required(item)]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}; write the file anew or add them")
    hints = get_type_hints(cls)
    values = {key: _value(hints[key], item, f"{where}.{key}") for key, item in data.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}; measure again or correct the file") from None


def plain(value: Any) -> Any:
    """A dataclass as dictionaries, lists, numbers and strings; fields in their order."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _required(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _value(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} is {_shown(value)}; a list is expected")
        return tuple(_value(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is {_shown(value)}; 'key: value' lines are expected")
        return {str(key): _value(arguments[1], v, f"{where}.{key}") for key, v in value.items()}
    if is_dataclass(hint):
        return read(cast(type[Any], hint), value, where)
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is str or hint is bool:
        if not isinstance(value, hint):
            wanted = "text" if hint is str else "true or false"
            raise ConfigError(f"{where} is {_shown(value)}; it must be {wanted}")
        return value
    wanted = "a whole number" if hint is int else "a number"
    kinds = (int,) if hint is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ConfigError(f"{where} is {_shown(value)}; it must be {wanted}, as in 12 or 0.001")
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{where} is {value}; it must be {wanted}, finite and not negative")
    return hint(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
