"""Whitening with running statistics, for labels of vectors that change while the model learns.

Shape letters: n vectors, C codebooks, D dimension.
"""

import torch
from transformers import initialization as init

from .float32_buffers import Float32Buffers, sum_over_processes

_DECAY = 0.99  # of the statistics from one update to the next: they reach back over about 100 updates


class RunningWhitening(Float32Buffers):
    """Vectors to mean 0 and covariance 1, by the statistics of the updates before.

    A direction in which the vectors hardly vary is stretched until they do, so that labels of their neighborhoods
    cannot fall together because the vectors go flat. The statistics are sums over the frames of all processes and
    accumulation steps. They change at the beginning of an update, without waiting for the device; during the first
    update nothing is whitened.

    Args:
        num_codebooks: C.
        dim: D.
    """

    center: torch.Tensor
    matrix: torch.Tensor
    count: torch.Tensor
    total: torch.Tensor
    products: torch.Tensor

    learns = True

    def __init__(self, num_codebooks: int, dim: int):
        super().__init__()
        self.register_buffer("center", torch.zeros(num_codebooks, dim, dtype=torch.float32))
        self.register_buffer("matrix", torch.eye(dim, dtype=torch.float32).repeat(num_codebooks, 1, 1))
        self.register_buffer("count", torch.zeros((), dtype=torch.float32))
        self.register_buffer("total", torch.zeros(num_codebooks, dim, dtype=torch.float32))
        self.register_buffer("products", torch.zeros(num_codebooks, dim, dim, dtype=torch.float32))

    def reset(self) -> None:
        """Begin anew, as `_init_weights` must after a load that left a buffer out."""
        for name, buffer in self.named_buffers():
            init.zeros_(buffer)
            if name == "matrix":
                init.copy_(buffer, torch.eye(buffer.shape[-1], device=buffer.device).expand_as(buffer))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Whitened vectors: (C, n, D) -> (C, n, D), differentiable; the statistics are constants."""
        # Clones, since the buffers change in place while a backward pass may still need these.
        return (vectors - self.center[:, None]) @ self.matrix.clone()

    @torch.no_grad()
    def observe(self, vectors: torch.Tensor, weights: torch.Tensor) -> None:
        """Add vectors of the current update: (C, n, D), (n,) of 1 where a vector counts and 0 where it does not."""
        real = vectors.float() * weights[:, None]
        new = [weights.sum(), real.sum(1), real.mT @ real]
        for buffer, values in zip((self.count, self.total, self.products), sum_over_processes(new), strict=True):
            buffer.add_(values)

    @torch.no_grad()
    def update(self) -> None:
        """Take over the statistics so far, as an update begins."""
        count = self.count.clamp_min(1)
        mean = self.total / count
        covariance = self.products / count - mean[..., None] * mean[:, None]
        dim = covariance.shape[-1]
        variance = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
        identity = torch.eye(dim, device=covariance.device)
        # A share of the mean variance keeps the factorization safe, and bounds how far flat directions are stretched.
        factor, _ = torch.linalg.cholesky_ex(covariance + (1e-3 * variance + 1e-6) * identity)
        matrix = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False).mT
        enough = self.count > 2 * dim
        self.center.copy_(torch.where(enough, mean, self.center))
        self.matrix.copy_(torch.where(enough, matrix, self.matrix))
        for buffer in (self.count, self.total, self.products):
            buffer.mul_(_DECAY)
