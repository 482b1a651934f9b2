"""What is computed ahead where an extractor's output depends on more than the entity: its chunks' statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from kser_tf.layers import ESFNet, KnowledgeLookup
from kser_tf.layers.statistics_at_hand import statistics_of_store


@contextlib.contextmanager
def statistics_ahead(
    lookups: Sequence[KnowledgeLookup], try_out: Callable[[], Any]
) -> Iterator[dict[str, tf.Variable]]:
    """Computes ESFNet's statistics of all chunks of a store, and has the model use them for the block.

    Query, context and gate change from request to request, the statistics (a third of a prediction's time) depend on
    the chunks alone. They are known of chunks that go from a `KnowledgeLookup` straight to a `KnowledgeExtractor` or an
    `ESFNet`, with the mask that came with them; of others, the model computes them as before.

    Args:
        lookups: What the model looks up its knowledge by.
        try_out: Calls the model, so that it is seen which look-up feeds which ESFNet.

    Yields:
        For each look-up that feeds one the statistics, float32 `(store rows, fields, chunks, 3)`, by its name; with
        several behind one look-up, numbered.
    """
    pairs: list[tuple[KnowledgeLookup, ESFNet]] = []

    def watching(lookup: KnowledgeLookup) -> Callable[[Any, Any], None]:
        def note(esf_net: ESFNet, rows: Any) -> None:
            if not any(lookup is known and esf_net is other for known, other in pairs):
                pairs.append((lookup, esf_net))

        return note

    try:
        for lookup in lookups:
            lookup.know_statistics(watching(lookup))
        if lookups:
            try_out()
        found: dict[str, tf.Variable] = {}
        for lookup in lookups:
            by_net = {id(net): _statistics(lookup, net) for known, net in pairs if known is lookup}
            lookup.know_statistics(_reading(by_net) if by_net else None)
            for number, statistics in enumerate(by_net.values()):
                found[lookup.name if number == 0 else f"{lookup.name} {number + 1}"] = statistics
        yield found
    finally:
        for lookup in lookups:
            lookup.know_statistics(None)


def _reading(by_net: dict[int, tf.Variable]) -> Callable[[Any, Any], Any]:
    def read(esf_net: ESFNet, rows: Any) -> Any:
        statistics = by_net.get(id(esf_net))
        return None if statistics is None else tf.gather(statistics, tf.maximum(rows, 0))

    return read


def _statistics(lookup: KnowledgeLookup, esf_net: ESFNet) -> tf.Variable:
    return tf.Variable(statistics_of_store(lookup, esf_net), trainable=False, name=f"kser_tf_statistics/{lookup.name}")
