"""Means to look into a forward: a cache of keys and values that is none, and a way out."""

from typing import Any

from torch import Tensor
from transformers import DynamicCache


class Captured(Exception):  # noqa: N818 - a way out of a forward, no error
    """Raised inside a forward once all that is wanted of it has been seen."""


class FixedKeys(DynamicCache):
    """Stands where a key/value cache would: hands out what was cached, or takes what was computed and stops."""

    def __init__(self, layer: int, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        super().__init__()
        self.layer, self.keys, self.values = layer, keys, values

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, as that layer's attention asks for them; raises `Captured` where they were wanted."""
        if layer_idx != self.layer:
            return key_states, value_states
        if self.keys is None or self.values is None:
            self.keys, self.values = key_states, value_states
            raise Captured
        return self.keys, self.values
