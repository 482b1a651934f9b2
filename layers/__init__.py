"""Keras layers to put into a model: what the recommender gets from the knowledge of a language model.

They run under Keras 2 (`tf-keras`, which TFRS needs) and Keras 3, and import TensorFlow and each other, nothing else
of this package.
"""

from kser_tf.layers.alignment_attention import AlignmentAttention
from kser_tf.layers.esf_net import ESFNet
from kser_tf.layers.history_likeness import HistoryLikeness
from kser_tf.layers.knowledge_embedding import KnowledgeEmbedding
from kser_tf.layers.knowledge_extractor import KnowledgeExtractor
from kser_tf.layers.knowledge_lookup import KnowledgeLookup
from kser_tf.layers.knowledge_profile import KnowledgeProfile
from kser_tf.layers.output_correction import OutputCorrection
from kser_tf.layers.preferences import Past, adapt_to_preferences

__all__ = [
    "AlignmentAttention",
    "ESFNet",
    "HistoryLikeness",
    "KnowledgeEmbedding",
    "KnowledgeExtractor",
    "KnowledgeLookup",
    "KnowledgeProfile",
    "OutputCorrection",
    "Past",
    "adapt_to_preferences",
]
