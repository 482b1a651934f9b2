"""Adaptors, one class a module, found by the module's name: adding one is adding a file."""

from __future__ import annotations

from kser_tf.models.adaptor import Adaptor
from kser_tf.models.by_name import ClassesByName

_ADAPTORS = ClassesByName("adaptor", __name__, __path__, Adaptor)

names = _ADAPTORS.names
get = _ADAPTORS.get
checked_options = _ADAPTORS.checked_options
