"""Vectors -> labels: the random-projection quantizer of BEST-RQ and BiRQ, and statistics of label use.

Shape letters: n vectors, I input features, D codebook dimension, C codebooks, N entries.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

_ROWS_PER_BLOCK = 512  # distances are compared in blocks of rows that stay in the cache


class RandomProjectionQuantizer(nn.Module):
    """Fixed random projections and codebooks (Chiu et al., arXiv 2202.01855, section 3.1), never trained.

    A projection is Xavier-uniform, an entry is standard normal and then L2-normalised, both drawn from `seed` by a
    private generator. They are float32 buffers: saved and restored bit for bit, unseen by optimizers, and kept in
    float32 when the model around them is cast (a rounded codebook gives other labels).

    Args:
        input_dim: features of the vectors to label, I.
        codebook_size: entries per codebook, N.
        codebook_dim: features of an entry, D.
        num_codebooks: independent codebooks, C.
        seed: seed of all values.
    """

    def __init__(self, input_dim: int, codebook_size: int, codebook_dim: int, num_codebooks: int = 1, seed: int = 0):
        super().__init__()
        self.shapes = {
            "projection": (num_codebooks, input_dim, codebook_dim),
            "codebook": (num_codebooks, codebook_size, codebook_dim),
        }
        self.seed = seed
        for name, values in self.draw().items():
            self.register_buffer(name, values)

    def draw(self) -> dict[str, torch.Tensor]:
        """The buffers' initial values on the CPU, the same at every call."""
        generator = torch.Generator().manual_seed(self.seed)
        with torch.device("cpu"):
            _, input_dim, codebook_dim = self.shapes["projection"]
            bound = (6 / (input_dim + codebook_dim)) ** 0.5
            uniform = torch.rand(self.shapes["projection"], generator=generator, dtype=torch.float32)
            entries = torch.randn(self.shapes["codebook"], generator=generator, dtype=torch.float32)
        return {"projection": (2 * uniform - 1) * bound, "codebook": F.normalize(entries, dim=-1)}

    def reset(self) -> None:
        """Write the initial values again, as `_init_weights` must after a load that left a buffer out."""
        for name, values in self.draw().items():
            init.copy_(getattr(self, name), values)

    def _apply(self, fn, recurse: bool = True):
        """Follow moves between devices, not casts between types."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            if self._buffers[name].dtype != buffer.dtype:
                self._buffers[name] = buffer.to(self._buffers[name].device)
        return self

    @torch.no_grad()
    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Index of the entry nearest (L2) to each L2-normalised projected vector: (n, I) -> (n, C) int64."""
        with torch.autocast(vectors.device.type, enabled=False):
            projected = F.normalize(torch.einsum("ni,cid->cnd", vectors.float(), self.projection), dim=-1)
            return torch.stack([nearest_entry(*pair) for pair in zip(projected, self.codebook, strict=True)], dim=-1)


def nearest_entry(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Index of the entry with the smallest L2 distance: (n, D), (N, D) -> (n,) int64.

    |v - c|^2 = |v|^2 - 2 v.c + |c|^2, and |v|^2 does not change the order: one matrix product, block by block.
    """
    norms = codebook.square().sum(-1)
    blocks = [torch.addmm(norms, rows, codebook.T, alpha=-2).argmin(-1) for rows in vectors.split(_ROWS_PER_BLOCK)]
    return torch.cat(blocks) if blocks else vectors.new_empty(0, dtype=torch.long)


def label_statistics(labels: torch.Tensor, codebook_size: int) -> dict[str, torch.Tensor]:
    """How much of the codebooks a set of labels uses: (n, C) int64 -> 0-dim `usage` and `perplexity`, mean over C.

    `usage` is the share of entries that occur, `perplexity` the exponential of the entropy of their frequencies: 1 when
    all labels agree, `codebook_size` when all occur equally often. Both are bounded by n as well.
    """
    num_codebooks = labels.shape[-1]
    offsets = torch.arange(num_codebooks, device=labels.device) * codebook_size
    counts = torch.zeros(num_codebooks * codebook_size, device=labels.device)
    counts = counts.index_add(0, (labels + offsets).flatten(), counts.new_ones(labels.numel()))
    counts = counts.view(num_codebooks, codebook_size)
    shares = counts / counts.sum(-1, keepdim=True).clamp_min(1)
    entropy = -torch.xlogy(shares, shares).sum(-1)
    return {"usage": (counts > 0).float().mean(), "perplexity": entropy.exp().mean()}
