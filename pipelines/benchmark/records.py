"""What cells found, apart from their models: small files that outlast the work folder and the machine."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kser_tf.errors import DataError
from kser_tf.files import read_json, write_json

# Of an AUC that was drawn: four digits are shown, and 1 is 50,000 steps, so that two bytes hold one.
_STEP = 2e-5
_NOT_DEFINED = np.iinfo(np.uint16).max
_DIGITS = 6
# Times tell of a machine and of what else it did; speeds are measured by the cells that are there.
_TIMES = ("seconds", "training_seconds", "rows_per_second")


class Records:
    """One JSON file a cell: what it found, what made it, and an identity that tells whether it is that of the cell as configured.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    def read(self, cell: str, identity: str) -> dict[str, Any] | None:
        """Returns what was written for a cell under the same identity, else `None`.

        Raises:
            DataError: The file is damaged.
        """
        path = self._folder / f"{cell}.json"
        if not path.is_file():
            return None
        content = read_json(path)
        if not isinstance(content, dict) or not {"identity", "training", "made_by"} <= set(content):
            raise DataError(
                f"{path}: expected a mapping with identity, training and made_by. Remove it: its cell is trained again."
            )
        return content if content["identity"] == identity else None

    def write(self, cell: str, identity: str, content: Mapping[str, Any]) -> None:
        """Keeps what a cell found, with `training` and `made_by`, and `metrics` and `drawn` where it was evaluated."""
        plain = {key: _without_times(value) for key, value in content.items()}
        write_json(self._folder / f"{cell}.json", {"cell": cell, "identity": identity, **plain})


def packed(drawn: np.ndarray) -> str:
    """Returns AUCs, `(slices, draws)`, as text, to the nearest 0.00002; what is not defined (NaN) stays so."""
    steps = np.where(np.isnan(drawn), _NOT_DEFINED, np.rint(drawn / _STEP)).astype("<u2")
    return base64.b64encode(zlib.compress(steps.tobytes(), 9)).decode()


def unpacked(text: str, slices: int) -> np.ndarray:
    """Returns what `packed` made text of, float64 `(slices, draws)`.

    Raises:
        DataError: The text is not of that kind.
    """
    try:
        steps = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), "<u2").reshape(slices, -1)
    except (ValueError, zlib.error) as error:
        raise DataError(
            f"the draws of a record cannot be read ({error}). Remove the record: its cell is trained again."
        ) from error
    return np.where(steps == _NOT_DEFINED, np.nan, steps * _STEP)


def _without_times(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_times(each) for key, each in value.items() if key not in _TIMES}
    if isinstance(value, list | tuple):
        return [_without_times(each) for each in value]
    return round(value, _DIGITS) if isinstance(value, float) else value
