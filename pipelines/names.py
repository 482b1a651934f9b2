"""The names of entities, for pages that people read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kser_tf.errors import DataError
from kser_tf.pipelines.config import STRICT_KEYS


@dataclass(frozen=True, kw_only=True)
class NameTable:
    """Where the names of entities are, for a page's examples.

    Args:
        table: Parquet or CSV file.
        id_column: The column that holds the ids.
        name_column: The column that holds the names.
    """

    __pydantic_config__ = STRICT_KEYS

    table: str
    id_column: str
    name_column: str

    def read(self) -> dict[str, str]:
        """Returns the name of each id, the id as text.

        Raises:
            DataError: The table or a column is not there.
        """
        path, columns = Path(self.table), [self.id_column, self.name_column]
        if not path.is_file():
            raise DataError(f"{path}: no such file. It is to hold the names of entities.")
        # As text from the beginning: of "007" a number would be left.
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=str)
        missing = [column for column in columns if column not in frame]
        if missing:
            raise DataError(f"{path} has no column {missing[0]!r}. There are: {', '.join(map(str, frame.columns))}.")
        frame = frame[columns].dropna()
        return dict(zip(frame[self.id_column].astype(str), frame[self.name_column].astype(str), strict=True))
