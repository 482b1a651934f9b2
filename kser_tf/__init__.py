"""KSER for TensorFlow: knowledge from a large language model for click-through-rate models.

Three doors: `kser_tf.layers` (Keras layers to put into a model), `kser_tf` (what to call), `kser_tf.pipelines` (jobs to run, also as
verbs of the command `kser-tf`). Built from the published description of KSER.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from kser_tf.version import __version__

# Loaded at first use, so that importing the package, or its store, does not import TensorFlow.
_LAZY = {
    "Attachment": "kser_tf.attachment.place",
    "KnowledgeStore": "kser_tf.knowledge_store",
    "RankingModel": "kser_tf.models.ranking_model",
    "SavedModelBackbone": "kser_tf.attachment.saved_model_backbone",
    "Stage": "kser_tf.stages",
    "adapt_to_preferences": "kser_tf.attachment.preferences",
    "all_parameters": "kser_tf.strategies",
    "attach": "kser_tf.attachment.attach",
    "attachments": "kser_tf.attachment.attach",
    "check": "kser_tf.serving.check",
    "connect": "kser_tf.attachment.attach",
    "detach": "kser_tf.attachment.attach",
    "export": "kser_tf.serving.export",
    "extractor_only": "kser_tf.strategies",
    "find_layer": "kser_tf.layer_paths",
    "fit_in_stages": "kser_tf.stages",
    "learning_rates": "kser_tf.optimizers",
    "refresh": "kser_tf.serving.refresh",
    "trainable_report": "kser_tf.strategies",
    "warm_start": "kser_tf.weights.warm_start",
    "write_server_config": "kser_tf.serving.server_config",
    "write_warmup": "kser_tf.serving.warmup",
}

# RankingModel needs Keras 2, so `from kser_tf import *` leaves it out.
__all__ = ["__version__", *sorted(name for name in _LAZY if name != "RankingModel")]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'kser_tf' has no attribute {name!r}. It has: {', '.join(_LAZY)}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return ["__version__", *sorted(_LAZY)]


# `load_model` of Keras finds what is registered. A process that loads a model has TensorFlow; others are not made to wait
# for it.
if "tensorflow" in sys.modules:
    importlib.import_module("kser_tf.attachment.attach")
