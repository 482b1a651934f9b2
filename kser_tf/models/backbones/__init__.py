"""Backbones, one class a module, found by the module's name: adding one is adding a file."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

from kser_tf.errors import ConfigError
from kser_tf.models.backbone import Backbone


def names() -> list[str]:
    """Returns the names of the backbones that come with the package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> type[Backbone]:
    """Returns a backbone's class.

    Args:
        name: A module of this package (`"din"`), or `"package.module:Class"` for one of your own.

    Raises:
        ConfigError: There is no such backbone.
    """
    if ":" in name:
        module_name, class_name = name.split(":", 1)
        try:
            found = getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"backbone {name!r} cannot be imported: {error}") from None
        if not (isinstance(found, type) and issubclass(found, Backbone)):
            raise ConfigError(f"backbone {name!r} is not a subclass of kser_tf.models.backbone.Backbone.")
        return found
    if name not in names():
        raise ConfigError(
            f"no backbone is called {name!r}. There are: {', '.join(names())}; or give 'package.module:Class'."
        )
    module = importlib.import_module(f"{__name__}.{name}")
    return next(
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Backbone) and value.__module__ == module.__name__
    )


def checked_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options, keyword arguments of a backbone's class beside those of all backbones.

    Args:
        name: What `get` takes.
        options: The options' values by name.

    Raises:
        ConfigError: The backbone has no such option.
    """
    known = _keywords(get(name)) - _keywords(Backbone)
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, 1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"backbone_options: {name} has no option {option!r}.{meant} It has: {', '.join(sorted(known)) or 'none'}."
            )
    return dict(options)


def _keywords(backbone: type[Backbone]) -> set[str]:
    parameters = inspect.signature(backbone.__init__).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
