"""BakeablePlace: what an embedding layer's knowledge adds to each id, for a table that is computed ahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from kser_tf.attachment.place import Place
from kser_tf.layer_paths import is_stack
from kser_tf.layers.bakeable_vectors import BakeableVectors
from kser_tf.layers.knowledge_embedding import RESIDUAL, KnowledgeEmbedding


class BakeablePlace(BakeableVectors):
    """The aligned knowledge of every id of one place: a `kser_tf.serving.baking.Bakeable`.

    The embedding itself stays where it is, in the backbone: a baked model looks up one row more than the backbone does.

    Args:
        name: str. Of the table.
        place: The embedding layer.
        knowledge: What is called after it.
        backbone_call: The layer's own `call`.
    """

    def __init__(
        self, name: str, place: Place, knowledge: KnowledgeEmbedding, backbone_call: Callable[..., Any] | None
    ) -> None:
        assert backbone_call is not None
        self._place = place
        self._knowledge = knowledge
        self._backbone_call = backbone_call
        super().__init__(
            name,
            knowledge.lookup,
            knowledge.known_ids(),
            place.width,
            compute=lambda ids: knowledge.aligned(self._embedded(ids), ids),
            use=knowledge.use_baked,
            describe=self._described,
        )

    def _embedded(self, ids: Any) -> Any:
        """The backbone's embeddings, `(n, width)`, of ids `(n,)`."""
        layer = self._place.layer
        # A stack may have been built for several ids a row: it is called with one of them as often.
        sizes = tuple(layer.inputs[0].shape)[1:] if is_stack(layer) and layer.inputs else ()
        sizes = tuple(size or 1 for size in sizes)
        if sizes:
            ids = tf.broadcast_to(tf.reshape(ids, (-1, *(1 for _ in sizes))), (tf.size(ids), *sizes))
        embedded = self._backbone_call(ids)
        return tf.reshape(embedded, (tf.shape(embedded)[0], -1, self._place.width))[:, 0]

    def _described(self, ids: Any) -> dict[str, Any]:
        embedded = self._embedded(ids)
        aligned = tf.cast(self._knowledge.aligned(embedded, ids), embedded.dtype)
        both = embedded + aligned if self._knowledge.mode == RESIDUAL else tf.concat([embedded, aligned], -1)
        return {"embedding": tf.cast(both, tf.float32), "aligned": tf.cast(aligned, tf.float32)}
