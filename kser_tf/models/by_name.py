"""ClassesByName: the classes of a package that are chosen by name in a configuration."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

from kser_tf.errors import ConfigError

T = TypeVar("T")


class ClassesByName(Generic[T]):
    """The classes of a package, one a module, found by the module's name: adding one is adding a file.

    Args:
        kind: str. What they are, as the configuration calls it: `"backbone"`.
        package: str. The package's name.
        path: Its `__path__`.
        base: What all of them are subclasses of.
    """

    def __init__(self, kind: str, package: str, path: Iterable[str], base: type[T]) -> None:
        self._kind = kind
        self._package = package
        self._path = path
        self._base = base

    def names(self) -> list[str]:
        """Returns the names of those that come with the package."""
        return sorted(module.name for module in pkgutil.iter_modules(self._path))

    def get(self, name: str) -> type[T]:
        """Returns a class.

        Args:
            name: A module of the package, or `"package.module:Class"` for one of your own.

        Raises:
            ConfigError: There is no such class.
        """
        if ":" in name:
            return self._imported(name)
        if name not in self.names():
            raise ConfigError(
                f"no {self._kind} is called {name!r}. There are: {', '.join(self.names())}; or give 'package.module:Class'."
            )
        module = importlib.import_module(f"{self._package}.{name}")
        return next(
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, self._base) and value.__module__ == module.__name__
        )

    def checked_options(self, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the options, keyword arguments of a class beside those of all its kind.

        Args:
            name: What `get` takes.
            options: The options' values by name.

        Raises:
            ConfigError: The class has no such option.
        """
        known = _keywords(self.get(name)) - _keywords(self._base)
        for option in options:
            if option not in known:
                near = difflib.get_close_matches(option, known, 1)
                meant = f" Did you mean {near[0]!r}?" if near else ""
                raise ConfigError(
                    f"{self._kind}_options: {name} has no option {option!r}.{meant} It has: "
                    f"{', '.join(sorted(known)) or 'none'}."
                )
        return dict(options)

    def _imported(self, name: str) -> type[T]:
        module_name, class_name = name.split(":", 1)
        try:
            found = getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{self._kind} {name!r} cannot be imported: {error}") from None
        if not (isinstance(found, type) and issubclass(found, self._base)):
            raise ConfigError(
                f"{self._kind} {name!r} is not a subclass of {self._base.__module__}.{self._base.__name__}."
            )
        return found


def _keywords(found: type) -> set[str]:
    parameters = inspect.signature(found.__init__).parameters.values()  # type: ignore[misc]
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
