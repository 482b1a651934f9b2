"""Backbones, one class a module, found by the module's name: adding one is adding a file."""

from __future__ import annotations

from kser_tf.models.backbone import Backbone
from kser_tf.models.by_name import ClassesByName

_BACKBONES = ClassesByName("backbone", __name__, __path__, Backbone)

names = _BACKBONES.names
get = _BACKBONES.get
checked_options = _BACKBONES.checked_options
