"""The cache of a batch of streams: keys, values and convolution inputs of earlier chunks.

Shape letters: B streams, S cached frames, C frames per chunk, H heads, d head dimension, D hidden size.
"""

from typing import Any

import torch
from torch.fx._pytree import register_pytree_flatten_spec
from torch.nn import functional as F
from torch.utils import _pytree as pytree


class ConformerCache:
    """Keys, values and convolution inputs of a batch of streams, kept from one streaming step to the next.

    Every stream has its own position and validity, so that streams of different ages share a batch. A step writes its
    chunk behind the frames kept so far, and its look-ahead behind the chunk. `advance` then keeps the chunk and drops
    the look-ahead. Tensors are written in place, so a cache serves inference only.

    Args:
        left_context_frames: encoder frames that stay visible, S at most; all, if absent.
    """

    def __init__(self, left_context_frames: int | None = None):
        self.left_context_frames = left_context_frames
        self.keys: dict[int, torch.Tensor] = {}  # by layer, (B, H, room, d)
        self.values: dict[int, torch.Tensor] = {}
        self.convolution_inputs: dict[int, torch.Tensor] = {}  # by layer, (B, context, D)
        self.first = 0  # where in the room the kept frames begin
        self.valid = torch.zeros(0, 0, dtype=torch.bool)  # (B, S): which kept frames are real
        self.padded = False  # whether some of them may be padding
        self.positions = torch.zeros(0, dtype=torch.long)  # (B,): position of each stream's next frame

    @property
    def num_streams(self) -> int:
        """Streams in the batch, B; 0 before the first step."""
        return self.valid.shape[0]

    @property
    def length(self) -> int:
        """Frames kept, S."""
        return self.valid.shape[1]

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors, room for coming frames included."""
        stores = (self.keys, self.values, self.convolution_inputs)
        return sum(tensor.nbytes for store in stores for tensor in store.values())

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Frames kept, by the name that transformers' caches give it."""
        return self.length

    def begin(self, batch_size: int, num_frames: int, device: torch.device) -> None:
        """Make the cache ready for a step that writes `num_frames` frames.

        Raises:
            ValueError: the cache holds another number of streams.
        """
        if self.num_streams == 0:
            self.valid = torch.zeros(batch_size, 0, dtype=torch.bool, device=device)
            self.positions = torch.zeros(batch_size, dtype=torch.long, device=device)
        if self.num_streams != batch_size:
            raise ValueError(
                f"past_key_values holds {self.num_streams} streams, input_features {batch_size}. Every stream keeps "
                f"its row; use ConformerCache.select and ConformerCache.stack when streams leave or join."
            )
        if torch.compiler.is_compiling():  # a graph copies what is written in place: `update` makes new tensors
            for store in (self.keys, self.values):
                store.update({layer_idx: self._kept(room) for layer_idx, room in store.items()})
            self.first = 0
        elif self.keys and self.first + self.length + num_frames > self.keys[0].shape[2]:
            for store in (self.keys, self.values):
                for layer_idx in store:
                    store[layer_idx] = self._with_room(self._kept(store[layer_idx]), num_frames)
            self.first = 0

    @staticmethod
    def _with_room(kept: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Copy frames into a room half as large again as the next step needs.

        Copying then costs O(1) a frame, whether the cache grows or drops as much as it takes in.
        """
        batch, heads, length, size = kept.shape
        room = kept.new_empty(batch, heads, (length + num_frames) * 3 // 2, size)
        room[:, :, :length] = kept
        return room

    def _kept(self, room: torch.Tensor) -> torch.Tensor:
        if self.first == 0 and self.length == room.shape[2]:
            return room  # the same tensor object, which torch.export marks where a dimension is open
        return room[:, :, self.first : self.first + self.length]

    def update(self, layer_idx: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a step's keys and values (B, H, n, d) behind those kept: both with S + n frames."""
        results = []
        for store, new in ((self.keys, key), (self.values, value)):
            if torch.compiler.is_compiling():
                store[layer_idx] = torch.cat([store[layer_idx], new], dim=2) if layer_idx in store else new
                results.append(store[layer_idx])
                continue
            if layer_idx not in store:
                store[layer_idx] = self._with_room(new[:, :, :0], new.shape[2])
            begin = self.first + self.length
            store[layer_idx][:, :, begin : begin + new.shape[2]] = new
            results.append(store[layer_idx][:, :, self.first : begin + new.shape[2]])
        return results[0], results[1]

    def extend_convolution_input(
        self, layer_idx: int, frames: torch.Tensor, chunk_size: int, context: int
    ) -> torch.Tensor:
        """Put a step's frames (B, L, D) between the `context` frames before them and as many zeros.

        The last `context` frames up to the end of the chunk, which is the first `chunk_size` frames, are kept for the
        next step.
        """
        zeros = frames.new_zeros(frames.shape[0], context, frames.shape[2])
        row = torch.cat([self.convolution_inputs.get(layer_idx, zeros), frames, zeros], dim=1)
        self.convolution_inputs[layer_idx] = row[:, chunk_size : chunk_size + context].clone()
        return row

    def advance(self, chunk_size: int, chunk_mask: torch.Tensor | None = None) -> None:
        """Keep the chunk of `chunk_size` frames that all layers have written, and forget what is too old.

        Args:
            chunk_mask: (B, chunk_size) bool, true where a frame is real; `None` if all are.
        """
        if chunk_mask is None:
            chunk_mask = self.valid.new_ones(self.num_streams, chunk_size)
        else:
            self.padded = True
        valid = torch.cat([self.valid, chunk_mask], dim=1)
        excess = 0 if self.left_context_frames is None else max(0, valid.shape[1] - self.left_context_frames)
        self.valid = valid[:, excess:]
        self.positions = self.positions + chunk_mask.sum(-1)
        self.first += excess

    def select(self, rows: torch.Tensor) -> "ConformerCache":
        """The streams `rows` (int64 indices) as a cache of their own."""
        chosen = ConformerCache(self.left_context_frames)
        for name in ("keys", "values"):
            setattr(chosen, name, {layer: self._kept(room)[rows] for layer, room in getattr(self, name).items()})
        chosen.convolution_inputs = {layer: tensor[rows] for layer, tensor in self.convolution_inputs.items()}
        chosen.valid, chosen.positions, chosen.padded = self.valid[rows], self.positions[rows], self.padded
        return chosen

    @classmethod
    def stack(cls, caches: list["ConformerCache"]) -> "ConformerCache":
        """Several caches as one batch. Shorter ones get invalid frames in front, so that all end at the same place."""
        length = max(cache.length for cache in caches)
        stacked = cls(caches[0].left_context_frames)
        for name in ("keys", "values"):
            store = getattr(stacked, name)
            for layer in caches[0].keys:
                rows = [cache._kept(getattr(cache, name)[layer]) for cache in caches]
                store[layer] = torch.cat([F.pad(row, (0, 0, length - row.shape[2], 0)) for row in rows])
        for layer in caches[0].convolution_inputs:
            stacked.convolution_inputs[layer] = torch.cat([cache.convolution_inputs[layer] for cache in caches])
        stacked.valid = torch.cat([F.pad(cache.valid, (length - cache.length, 0)) for cache in caches])
        stacked.positions = torch.cat([cache.positions for cache in caches])
        stacked.padded = any(cache.padded or cache.length < length for cache in caches)
        return stacked


# torch.export takes a model's inputs and outputs apart into tensors; this is how it does so with a cache.


def _flatten(cache: ConformerCache) -> tuple[list[torch.Tensor], list[Any]]:
    layers = list(cache.keys)
    rooms = [cache._kept(store[layer]) for store in (cache.keys, cache.values) for layer in layers]
    inputs = [cache.convolution_inputs[layer] for layer in layers]
    return [cache.valid, cache.positions, *rooms, *inputs], [layers, cache.left_context_frames, cache.padded]


def _flatten_with_keys(cache: ConformerCache) -> tuple[list[tuple[pytree.KeyEntry, torch.Tensor]], list[Any]]:
    tensors, context = _flatten(cache)
    return [(pytree.SequenceKey(index), tensor) for index, tensor in enumerate(tensors)], context


def _unflatten(tensors: Any, context: list[Any]) -> ConformerCache:
    layers, left_context_frames, padded = context
    cache, count = ConformerCache(left_context_frames), len(layers)
    cache.valid, cache.positions, *stores = tensors
    cache.padded = padded
    cache.keys = dict(zip(layers, stores[:count], strict=True))
    cache.values = dict(zip(layers, stores[count : 2 * count], strict=True))
    cache.convolution_inputs = dict(zip(layers, stores[2 * count :], strict=True))
    return cache


pytree.register_pytree_node(
    ConformerCache,
    _flatten,
    _unflatten,
    serialized_type_name=f"{ConformerCache.__module__}.ConformerCache",
    flatten_with_keys_fn=_flatten_with_keys,
)
register_pytree_flatten_spec(ConformerCache, lambda cache, spec: _flatten(cache)[0])
