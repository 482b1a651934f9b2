"""Rules over the columns of a log, such as `rating > 3`: parsed, never executed as code."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kser_tf.errors import ConfigError

GRAMMAR = (
    "A rule compares columns with numbers or quoted strings by ==, !=, <, <=, > or >=, joined with `and`, `or` and "
    "parentheses, such as: rating > 3 and source == 'web'. A name with other signs than letters, digits and "
    "underscores goes in backticks: `my column` > 3."
)

_OPERATORS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
# What a name in backticks is called while Python's parser looks at the rule.
_QUOTED_NAME = "_quoted_name_{}"


@dataclass(frozen=True)
class _Comparison:
    column: str
    compare: Callable[[Any, Any], Any]
    literal: float | str


@dataclass(frozen=True)
class _Joined:
    conjunction: bool
    parts: tuple[_Comparison | _Joined, ...]


class Rule:
    """A condition on the rows of a log.

    Args:
        text: str. The rule, such as `"rating > 3 and (source == 'web' or clicks >= 2)"`.

    Raises:
        ConfigError: `text` is not a rule.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        names: list[str] = []

        def unquote(match: re.Match[str]) -> str:
            names.append(match.group(1))
            return _QUOTED_NAME.format(len(names) - 1)

        try:
            tree = ast.parse(re.sub(r"`([^`]+)`", unquote, text).strip(), mode="eval").body
        except (SyntaxError, ValueError):
            raise self._refusal() from None
        self._quoted = {_QUOTED_NAME.format(number): name for number, name in enumerate(names)}
        self._root = self._parse(tree)

    @property
    def columns(self) -> dict[str, type]:
        """The columns that the rule reads, each with the type it is compared as: `float` or `str`."""
        found: dict[str, type] = {}

        def visit(node: _Comparison | _Joined) -> None:
            if isinstance(node, _Joined):
                for part in node.parts:
                    visit(part)
            elif found.setdefault(node.column, type(node.literal)) is not type(node.literal):
                raise ConfigError(
                    f"the rule {self.text!r} compares `{node.column}` with a number and with a string. Choose one."
                )

        visit(self._root)
        return found

    def __call__(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        """Returns for each row whether it satisfies the rule.

        Args:
            columns: For each of the rule's columns an array of floats (missing: NaN) or of strings (missing: `None`). A
                comparison with a missing value is false.
        """

        def evaluate(node: _Comparison | _Joined) -> np.ndarray:
            if isinstance(node, _Joined):
                join = np.logical_and if node.conjunction else np.logical_or
                return join.reduce([evaluate(part) for part in node.parts])
            values = columns[node.column]
            there = ~is_missing(values)
            result = np.zeros(len(values), dtype=bool)
            result[there] = node.compare(values[there], node.literal)
            return result

        return evaluate(self._root)

    def _parse(self, node: ast.AST) -> _Comparison | _Joined:
        if isinstance(node, ast.BoolOp):
            return _Joined(isinstance(node.op, ast.And), tuple(self._parse(value) for value in node.values))
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.left, ast.Name):
            compare = _OPERATORS.get(type(node.ops[0]))
            literal = _literal(node.comparators[0])
            if compare is not None and literal is not None:
                return _Comparison(self._quoted.get(node.left.id, node.left.id), compare, literal)
        raise self._refusal()

    def _refusal(self) -> ConfigError:
        return ConfigError(f"{self.text!r} is not a rule. {GRAMMAR}")


def is_missing(values: np.ndarray) -> np.ndarray:
    """Says for each value whether it is missing: NaN among floats, `None` among strings."""
    return np.asarray(pd.isna(values))


def _literal(node: ast.AST) -> float | str | None:
    sign = 1.0
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node, sign = node.operand, -1.0
        if not (isinstance(node, ast.Constant) and isinstance(node.value, int | float)):
            return None
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return sign * float(node.value)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return None
