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

    Projections are Xavier-uniform, entries standard normal, both drawn from `seed` by a private generator. They are
    float32 buffers: saved and restored bit for bit, unseen by optimizers, and kept in float32 when the model around
    them is cast (a rounded codebook gives other labels).

    Args:
        input_dim: features of the vectors that get hard labels, I.
        codebook_size: entries per codebook, N.
        codebook_dim: features of an entry, D.
        num_codebooks: independent codebooks, C.
        seed: seed of all values.
        soft_input_dim: features of the vectors that get soft labels from the same codebooks, if any do.
    """

    def __init__(
        self,
        input_dim: int,
        codebook_size: int,
        codebook_dim: int,
        num_codebooks: int = 1,
        seed: int = 0,
        soft_input_dim: int | None = None,
    ):
        super().__init__()
        self.codebook_shape = (num_codebooks, codebook_size, codebook_dim)
        self.input_dims = {"projection": input_dim}
        if soft_input_dim is not None:
            self.input_dims["soft_projection"] = soft_input_dim
        self.seed = seed
        for name, values in self.draw().items():
            self.register_buffer(name, values)

    def draw(self) -> dict[str, torch.Tensor]:
        """The buffers' initial values, the same at every call."""
        num_codebooks, _, codebook_dim = self.codebook_shape
        with torch.device("cpu"):  # models are also built under the meta device, which draws nothing
            generator = torch.Generator().manual_seed(self.seed)
            values = {"codebook": torch.randn(self.codebook_shape, generator=generator, dtype=torch.float32)}
            for name, input_dim in self.input_dims.items():
                uniform = torch.rand(
                    (num_codebooks, input_dim, codebook_dim), generator=generator, dtype=torch.float32
                )
                values[name] = (2 * uniform - 1) * (6 / (input_dim + codebook_dim)) ** 0.5
        return values

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
        """Hard labels: the entry nearest (L2) to the projected vector, both L2-normalised: (n, I) -> (n, C) int64."""
        with torch.autocast(vectors.device.type, enabled=False):
            projected = F.normalize(torch.einsum("ni,cid->cnd", vectors.float(), self.projection), dim=-1)
            entries = F.normalize(self.codebook, dim=-1)
            return torch.stack([nearest_entry(*pair) for pair in zip(projected, entries, strict=True)], dim=-1)

    def soft_scores(self, vectors: torch.Tensor) -> torch.Tensor:
        """Minus the squared distances between projected vectors and entries, up to a constant per vector that no
        softmax over the entries sees: (n, soft_input_dim) -> (n, C, N), differentiable.

        Nothing is normalised here: between unit vectors all distances lie within 4 of each other, and Gumbel noise
        would pick entries almost at random (it kept the nearest of 8192 in 0.5 % of draws, against 50 % as it is).
        """
        with torch.autocast(vectors.device.type, enabled=False):
            projected = torch.einsum("ni,cid->cnd", vectors.float(), self.soft_projection)
            norms = self.codebook.square().sum(-1)[:, None]  # (C, 1, N)
            return torch.baddbmm(norms, projected, self.codebook.mT, beta=-1, alpha=2).transpose(0, 1)


def nearest_entry(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Index of the entry with the smallest L2 distance: (n, D), (N, D) -> (n,) int64.

    |v - c|^2 = |v|^2 - 2 v.c + |c|^2, and |v|^2 does not change the order: one matrix product, block by block.
    """
    norms = codebook.square().sum(-1)
    blocks = [torch.addmm(norms, rows, codebook.T, alpha=-2).argmin(-1) for rows in vectors.split(_ROWS_PER_BLOCK)]
    return torch.cat(blocks) if blocks else vectors.new_empty(0, dtype=torch.long)


def label_statistics(labels: torch.Tensor, codebook_size: int) -> dict[str, torch.Tensor]:
    """How much of the codebooks a set of labels uses: (n, C) int64 -> 0-dim scalars, means over C.

    `codebook_usage` is the share of entries that occur, `codebook_perplexity` the exponential of the entropy of their
    frequencies: 1 when all labels agree, `codebook_size` when all occur equally often. Few labels bound both.
    """
    num_codebooks = labels.shape[-1]
    offsets = torch.arange(num_codebooks, device=labels.device) * codebook_size
    counts = torch.zeros(num_codebooks * codebook_size, device=labels.device)
    counts = counts.index_add(0, (labels + offsets).flatten(), counts.new_ones(labels.numel()))
    counts = counts.view(num_codebooks, codebook_size)
    shares = counts / counts.sum(-1, keepdim=True).clamp_min(1)
    entropy = -torch.xlogy(shares, shares).sum(-1)
    return {"codebook_usage": (counts > 0).float().mean(), "codebook_perplexity": entropy.exp().mean()}
