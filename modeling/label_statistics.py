"""Statistics of label use: how many entries of a codebook occur, and how evenly.

Shape letters: n labels, C codebooks, N entries.
"""

import torch


def label_statistics(labels: torch.Tensor, codebook_size: int, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """How much of the codebooks a set of labels uses: (n, C) int64, weights (n,) -> 0-dim scalars, means over C.

    `codebook_usage` is the share of entries that occur, `codebook_perplexity` the exponential of the entropy of their
    frequencies: 1 when all labels agree, `codebook_size` when all occur equally often. Few labels bound both.
    """
    counts = label_counts(labels, codebook_size, weights)
    return {"codebook_usage": (counts > 0).float().mean(), "codebook_perplexity": perplexity(counts).mean()}


def label_counts(labels: torch.Tensor, codebook_size: int, weights: torch.Tensor) -> torch.Tensor:
    """Sum of the weights of each label: (n, C) int64, (n,) -> (C, N)."""
    num_codebooks = labels.shape[-1]
    offsets = torch.arange(num_codebooks, device=labels.device) * codebook_size
    counts = torch.zeros(num_codebooks * codebook_size, dtype=weights.dtype, device=labels.device)
    counts = counts.index_add(0, (labels + offsets).flatten(), weights[:, None].expand_as(labels).flatten())
    return counts.view(num_codebooks, codebook_size)


def distinct_counts(labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """How often each different row of labels occurs, whatever the number of possible rows.

    Args:
        labels: (n, C) int64.
        weights: (n,), 1 where a row counts and 0 where it does not.

    Returns:
        (n,) float32: one count for each different row, and zeros behind them.
    """
    rows = torch.zeros_like(labels[:, 0])
    for column in labels.unbind(-1):
        rows = rows * 6364136223846793005 + column  # a hash in 64 bits; the factor is Knuth's
    rows, order = rows.masked_fill(weights == 0, 2**63 - 1).sort()
    starts = torch.ones_like(rows)
    starts[1:] = rows[1:] != rows[:-1]
    return torch.zeros_like(weights).index_add(0, starts.cumsum(0) - 1, weights[order])


def perplexity(counts: torch.Tensor) -> torch.Tensor:
    """Exponential of the entropy of frequencies: counts (..., N) -> (...); 1 where nothing was counted."""
    shares = counts / counts.sum(-1, keepdim=True).clamp_min(1)
    return torch.xlogy(shares, shares).sum(-1).neg().exp()
