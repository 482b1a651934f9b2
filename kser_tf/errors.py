"""The errors that this package raises on purpose.

Every message names the file, field, row or argument, says what came and what was expected, and how to mend it. The
command line prints the message alone and exits with status 2; a traceback is a bug.
"""


class KserError(Exception):
    """The parent of all errors that are raised on purpose."""


class ConfigError(KserError, ValueError):
    """A configuration has an unknown key, or a value of the wrong type or range."""


class DataError(KserError, ValueError):
    """An input file (log, text table, side table) is missing something or holds what it must not."""


class StoreError(KserError, ValueError):
    """A knowledge store is damaged, of another format version, locked, or does not fit what it is used for."""


class LayerPathError(KserError, LookupError):
    """A model has no sub-layer at the path that was given."""


class AttachError(KserError, ValueError):
    """An extractor cannot be attached to this model, or not there."""


class ExportError(KserError, ValueError):
    """A model cannot be exported, or an exported model does not do what it should."""


class WeightsError(KserError, ValueError):
    """The weights in a file are not those of the model that they are to be restored to."""


class MissingExtraError(KserError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"`{module}` is not installed. Install it with: pip install 'kser-tf[{extra}]'")


class KerasVersionError(KserError, RuntimeError):
    """The active Keras is not the one that the called part of the package needs."""


class FileError(KserError, OSError):
    """A file or directory cannot be written: no space, no permission, or another process is writing there."""


class PathExistsError(FileError, FileExistsError):
    """An output path exists already, and it was not said that it may be replaced."""


class PathLockedError(FileError):
    """Another process is writing to an output path."""
