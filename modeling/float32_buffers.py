"""State of training that is neither a parameter nor private to a process: float32 buffers, equal on all processes."""

from collections.abc import Callable

import torch
from torch import distributed, nn


class Float32Buffers(nn.Module):
    """A module whose buffers, and those of its parts, follow moves between devices but no casts between types."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Float32Buffers":
        before = [(part, dict(part._buffers)) for part in self.modules()]
        super()._apply(fn, recurse)
        for part, buffers in before:
            for name, buffer in buffers.items():
                moved = part._buffers[name]
                if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                    part._buffers[name] = buffer.to(moved.device)
        return self


class UpdateCounter:
    """Counts the updates of a model in a buffer of the module that inherits from this."""

    num_updates: torch.Tensor

    @torch.compiler.disable
    def completed_updates(self) -> int:
        """`num_updates` as a number: read from the device only after it has been loaded or moved."""
        tensor, version, number = getattr(self, "_known_updates", (None, 0, 0))
        if tensor is not self.num_updates or version != self.num_updates._version:
            number = int(self.num_updates)
            self._known_updates = (self.num_updates, self.num_updates._version, number)
        return number

    def count_update(self) -> None:
        """Count one more, without waiting for the device."""
        completed = self.completed_updates()
        self.num_updates.add_(1)
        self._known_updates = (self.num_updates, self.num_updates._version, completed + 1)


def sum_over_processes(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Sums of float32 tensors over all processes, on all processes, in one reduction."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return tensors
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def share_from_first_process(*buffers: torch.Tensor) -> None:
    """Give every process the first one's values: decompositions may differ in the last bit between machines."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        for buffer in buffers:
            distributed.broadcast(buffer, src=0)
