"""Statistics of chunks that are known already, handed from the look-up to ESFNet beside the chunks themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# As Keras does with `_keras_mask`.
_ATTRIBUTE = "_kser_statistics"


def attach_statistics(chunks: Any, mask: Any, statistics_for: Callable[[Any], Any]) -> None:
    """Notes on a tensor of chunks how to get their statistics.

    Args:
        chunks: What a look-up returns.
        mask: The mask that it returns.
        statistics_for: From an `ESFNet` to the statistics of these chunks, or to `None` where they are not known.
    """
    setattr(chunks, _ATTRIBUTE, (mask, statistics_for))


def known_statistics(esf_net: Any, chunks: Any, mask: Any) -> Any:
    """Returns the statistics of chunks if they are known, else `None`.

    Only of the very tensors that a look-up returned: what was made of them since has other statistics.
    """
    known = getattr(chunks, _ATTRIBUTE, None)
    if known is None or known[0] is not mask:
        return None
    return known[1](esf_net)
