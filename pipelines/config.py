"""Configurations: dataclasses, filled from YAML and from the command line, checked key by key."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from kser_tf.errors import ConfigError

T = TypeVar("T")

# For `__pydantic_config__` of every configuration dataclass: a key that is not a field is refused.
STRICT_KEYS = pydantic.ConfigDict(extra="forbid")

_ADAPTERS: dict[type, pydantic.TypeAdapter[Any]] = {}


def from_mapping(cls: type[T], values: Mapping[str, Any], *, source: str) -> T:
    """Makes a configuration dataclass from a mapping.

    Args:
        cls: The dataclass, with `__pydantic_config__ = STRICT_KEYS`.
        values: Keys are field names; nested dataclasses are nested mappings.
        source: Where the values come from, for messages.

    Raises:
        ConfigError: A key is unknown (the nearest known one is suggested), missing, or its value has the wrong type.
    """
    try:
        made: T = _adapter(cls).validate_python(dict(values))
        return made
    except pydantic.ValidationError as error:
        lines = [_describe(cls, problem) for problem in error.errors()]
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping; `ConfigError` if it cannot be read or is something else."""
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, got a {type(values).__name__}.")
    return values


def load_config(
    cls: type[T], path: str | Path, *, data: str | None = None, work: str | None = None, overrides: Sequence[str] = ()
) -> T:
    """Reads the configuration of several jobs together, which has the keys `name` and `work`.

    Args:
        cls: The dataclass.
        path: YAML file with its keys.
        data: What `${data}` in it stands for.
        work: Overrides its `work`, the folder that everything is written to, for which `${work}` stands. Without either it
            is `runs/<name>`.
        overrides: `key=value`, such as `train.seeds=[1, 2]`; the value is YAML.

    Raises:
        ConfigError: A key is unknown or missing, a value is of the wrong type, or `${data}` is used and not given.
    """
    values = read_yaml(path)
    for given in overrides:
        override(values, given)
    if work is not None:
        values["work"] = work
    folder = Path(values["work"]) if values.get("work") else Path("runs") / str(values.get("name"))
    return from_mapping(cls, filled_in(values, {"data": data, "work": str(folder)}, str(path)), source=str(path))


def override(values: dict[str, Any], given: str) -> None:
    """Sets a value in nested mappings by what `--set` was given, such as `train.seeds=[1]`; the value is YAML."""
    key, separator, text = given.partition("=")
    if not separator:
        raise ConfigError(f"--set takes KEY=VALUE, such as train.seeds=[1]. Received: {given!r}")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {given}: `{parent}` is not a mapping.")
    values[last] = yaml.safe_load(text)


def filled_in(value: Any, names: dict[str, str | None], source: str) -> Any:
    """Replaces `${name}` in all strings of nested mappings and lists; `ConfigError` for a name that is unknown or `None`."""
    if isinstance(value, dict):
        return {key: filled_in(item, names, source) for key, item in value.items()}
    if isinstance(value, list):
        return [filled_in(item, names, source) for item in value]
    if not isinstance(value, str):
        return value

    def replacement(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in names:
            raise ConfigError(
                f"{source}: ${{{name}}} is not known. Known: {', '.join('${' + known + '}' for known in names)}"
            )
        text = names[name]
        if text is None:
            raise ConfigError(f"{source}: ${{{name}}} is used, but not given. Pass --{name} FOLDER.")
        return text

    return re.sub(r"\$\{(\w+)\}", replacement, value)


def add_flags(parser: argparse.ArgumentParser, cls: type) -> None:
    """Adds `--config FILE` and one flag for each field of the dataclass `cls`, its help taken from the docstring's `Args:`."""
    parser.add_argument("--config", metavar="FILE", help="YAML file with the same keys as the flags; flags win")
    for field in dataclasses.fields(cls):
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            dest=field.name,
            metavar=_short_type(field.type),
            help=argument_help(cls).get(field.name, "").replace("%", "%%"),
        )


def from_flags(cls: type[T], arguments: argparse.Namespace) -> T:
    """Makes the dataclass from what `add_flags` parsed. A flag's value is read as YAML, so `[a, b]` is a list."""
    values = read_yaml(arguments.config) if arguments.config else {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        given = getattr(arguments, field.name)
        if given is not None:
            values[field.name] = yaml.safe_load(given)
    return from_mapping(cls, values, source=arguments.config or "command line")


def argument_help(cls: type) -> dict[str, str]:
    """Returns each argument's text from the `Args:` section of a docstring."""
    text = inspect.cleandoc(cls.__doc__ or "")
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    if not section:
        return {}
    entries = re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", section.group(1), re.MULTILINE | re.DOTALL)
    return {name: " ".join(body.split()) for name, body in entries}


def _adapter(cls: type) -> pydantic.TypeAdapter[Any]:
    """Making one takes some hundredths of a second, and a matrix fills the same class hundreds of times: so it is kept."""
    if cls not in _ADAPTERS:
        _ADAPTERS[cls] = pydantic.TypeAdapter(cls)
    return _ADAPTERS[cls]


def _describe(cls: type, problem: Any) -> str:
    location = problem["loc"]
    where = ".".join(str(part) for part in location)
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = difflib.get_close_matches(str(location[-1]), _known_keys(cls, location[:-1]), n=1)
        known = f"Did you mean `{near[0]}`?" if near else f"Known keys: {', '.join(_known_keys(cls, location[:-1]))}."
        return f"`{where}` is not a known key. {known}"
    if problem["type"] in ("missing", "missing_argument"):
        return f"`{where}` is missing."
    if problem["type"] == "value_error":  # raised by a dataclass that checks itself: the message says it all
        return f"`{where}`: {problem['ctx']['error']}" if where else str(problem["ctx"]["error"])
    return f"`{where}`: {problem['msg']}. Received: {problem['input']!r}"


def _known_keys(cls: Any, location: Sequence[Any]) -> list[str]:
    """Field names of the dataclass that `location` leads to, from `cls`, through lists, mappings and optional types."""
    candidates = [cls]
    for part in location:
        following: list[Any] = []
        for candidate in candidates:
            if dataclasses.is_dataclass(candidate):
                hints = typing.get_type_hints(candidate)
                if part in hints:
                    following += _dataclasses_in(hints[part])
                elif part == getattr(candidate, "__name__", None):
                    following.append(candidate)
            else:
                following.append(candidate)
        candidates = following or candidates
    return sorted(
        {
            f.name
            for candidate in candidates
            if dataclasses.is_dataclass(candidate)
            for f in dataclasses.fields(candidate)
        }
    )


def _dataclasses_in(hint: Any) -> list[Any]:
    if dataclasses.is_dataclass(hint):
        return [hint]
    return [found for argument in typing.get_args(hint) for found in _dataclasses_in(argument)]


def _short_type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return re.sub(r"[^A-Za-z]+", "_", text.replace("| None", "")).strip("_").upper() or "VALUE"
