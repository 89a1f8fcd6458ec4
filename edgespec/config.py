"""Settings files: YAML whose keys are the command's long flags. Command line > file > defaults."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from edgespec.errors import ConfigError


class Assignments(argparse.Action):
    """A flag of ``NAME=VALUE,...``; settings files may give it as a mapping."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)

    @staticmethod
    def joined(mapping: Mapping[str, Any]) -> str:
        return ",".join(f"{name}={value}" for name, value in mapping.items())


def read_settings(path: str | Path) -> dict[str, Any]:
    """A YAML mapping from a file. Raises ConfigError for anything else."""
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"settings file '{path}' cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"settings file '{path}' is no YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"settings file '{path}' must hold 'flag: value' lines")
    return values


def apply_settings(parser: argparse.ArgumentParser, values: Mapping[str, Any], path: str) -> None:
    """Makes ``values`` the parser's defaults, so that flags given on the command line win.

    Keys are long flags without their dashes. Raises ConfigError for an unknown key (with near
    names) and for a value its flag would refuse.
    """
    actions = {
        option[2:]: action
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--") and option not in ("--help", "--config")
    }
    for key, value in values.items():
        name = str(key).replace("_", "-")
        action = actions.get(name)
        if action is None:
            near = get_close_matches(name, actions, n=2)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ConfigError(f"{path}: unknown key '{key}'{hint}")
        parser.set_defaults(**{action.dest: _checked(parser, action, value, f"{path}: {key}")})
        action.required = False


def _checked(
    parser: argparse.ArgumentParser, action: argparse.Action, value: Any, where: str
) -> Any:
    if action.nargs == 0:  # a switch
        if not isinstance(value, bool):
            raise ConfigError(f"{where} is {value!r}; it must be true or false")
        return value
    if isinstance(action, argparse._AppendAction):
        items = value if isinstance(value, list) else [value]
        return [_converted(action, item, where) for item in items]
    if isinstance(value, dict) and isinstance(action, Assignments):
        value = action.joined(value)
    return _converted(action, value, where)


def _converted(action: argparse.Action, value: Any, where: str) -> Any:
    if isinstance(value, (dict, list)) or value is None:
        raise ConfigError(f"{where} is {value!r}; a single value is expected")
    try:
        converted = action.type(str(value)) if callable(action.type) else str(value)
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise ConfigError(f"{where} is {value!r}: {error}") from None
    if action.choices is not None and converted not in action.choices:
        raise ConfigError(f"{where} is {value!r}; there are: {', '.join(map(str, action.choices))}")
    return converted
