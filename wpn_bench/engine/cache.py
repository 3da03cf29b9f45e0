"""The key-value cache of the decoding loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from transformers.cache_utils import Cache, DynamicLayer

from wpn_bench.core import device_memory
from wpn_bench.engine.budget import Budget
from wpn_bench.engine.placement import device_of
from wpn_bench.models.sizes import TokenMemory

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

SPARE_COLUMNS = 64  # number of spare columns in the cache, so that it is not copied for every token
_CACHE_SHARE = 0.25  # share of the free memory for keys and values, which need twice their memory during a rebuild


class Layer(DynamicLayer):
    """Keys and values (R, H, T, D) of one layer, at the front of a larger buffer.

    New tokens are written into the buffer. A `DynamicLayer` would copy all earlier tokens for each new token, and would
    need memory for both copies.
    """

    keys: Any
    values: Any
    is_initialized: bool
    place: tuple[Any, ...]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.hold(key_states, value_states)
            return self.keys, self.values
        begin, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        if end > self.place[0].shape[-2]:
            self.hold(self.keys, self.values, end + SPARE_COLUMNS)
        for whole, states in zip(self.place, (key_states, value_states), strict=True):
            whole[:, :, begin:end] = states
        self.keys, self.values = (whole[:, :, :end] for whole in self.place)
        return self.keys, self.values

    def keep(self, n: int, to: list[int], rows: list[int]) -> None:
        """Keep the first rows, after some other rows have been copied to their places.

        Args:
            n: Number of rows that are kept.
            to: Places that are overwritten.
            rows: Rows that are copied there.
        """
        width = self.keys.shape[-2]
        for whole in self.place if to else ():
            whole[to, :, :width] = whole[rows, :, :width]
        self.place = tuple(whole[:n] for whole in self.place)
        self.keys, self.values = (whole[:, :, :width] for whole in self.place)

    def hold(self, keys: Tensor, values: Tensor, columns: int = 0) -> None:
        """Use these keys and values.

        Args:
            keys: Keys (R, H, T, D).
            values: Values (R, H, T, D).
            columns: Number of columns of the buffer. With 0, they are neither copied nor extended.
        """
        width = keys.shape[-2]
        if columns <= width:
            self.place = (keys, values)
        else:
            self.place = tuple(x.new_empty((*x.shape[:2], columns, x.shape[3])) for x in (keys, values))
            for whole, x in zip(self.place, (keys, values), strict=True):
                whole[:, :, :width] = x
        self.keys, self.values = (whole[:, :, :width] for whole in self.place)
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True


def new_cache() -> Cache:
    """Return an empty cache."""
    # Models with attention windows also get full layers. Masks limit their attention, and rows can be regrouped.
    return Cache(layer_class_to_replicate=Layer)


def cache_of(layers: Iterable[tuple[Tensor, Tensor]], columns: int = 0) -> Cache:
    """Return a cache of given keys and values.

    Args:
        layers: Keys and values of each layer.
        columns: Number of columns of the buffers; 0 means no more than these.

    Returns:
        The cache.
    """
    cache = new_cache()
    for keys, values in layers:
        layer = Layer()
        layer.hold(keys, values, columns)
        cache.layers.append(layer)
    return cache


def cache_budget(model: PreTrainedModel) -> Budget:
    """Return the number of tokens whose keys and values may be in memory at the same time."""
    free = device_memory.free_memory(device_of(model).type)
    return Budget(int(_CACHE_SHARE * free / max(1, TokenMemory.of(model.config, model.dtype).cache)))
