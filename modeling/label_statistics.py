"""Statistics of label use: how many entries of a codebook occur, how evenly, and whether they only say how loud it is.

Shape letters: n labels, C codebooks, N entries.
"""

import torch
from transformers import initialization as init

from .float32_buffers import Float32Buffers, sum_over_processes

WINDOW_FRAMES = 50_000  # a batch of some 300 frames bounds every statistic of a codebook of thousands of entries


class LabelUse(Float32Buffers):
    """Statistics of the labels of many updates, over the frames of all processes.

    Frames are counted until there are `WINDOW_FRAMES` of them; then their statistics are kept until the next window
    is full. Before the first is full, those of the frames so far are given.

    Args:
        num_codebooks: label columns, C.
        num_entries: entries of the largest column, N.
    """

    counts: torch.Tensor
    loudness: torch.Tensor
    squared_loudness: torch.Tensor
    last_window: torch.Tensor

    learns = True  # as a quantizer does whose state changes in training: no mean over checkpoints, no fixed values
    names = ("labels_used", "label_perplexity", "top_label_share", "label_loudness")

    def __init__(self, num_codebooks: int, num_entries: int):
        super().__init__()
        shape = (num_codebooks, num_entries)
        self.register_buffer("counts", torch.zeros(shape, dtype=torch.float32))
        self.register_buffer("loudness", torch.zeros(shape, dtype=torch.float32))  # sums over the frames of a label
        self.register_buffer("squared_loudness", torch.zeros((), dtype=torch.float32))
        self.register_buffer("last_window", torch.zeros(len(self.names), dtype=torch.float32))

    def reset(self) -> None:
        """Begin anew, as `_init_weights` must after a load that left a buffer out."""
        for buffer in self.buffers():
            init.zeros_(buffer)

    @torch.no_grad()
    def observe(self, labels: torch.Tensor, loudness: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """Count labels, and return the statistics of the last full window as 0-dim tensors, means over C.

        Args:
            labels: (n, C) int64.
            loudness: (n,), the mean log energy of each frame.
            weights: (n,), 1 where a frame counts and 0 where it does not.

        Returns:
            `labels_used`: entries that occurred; `label_perplexity`: exponential of the entropy of their frequencies;
            `top_label_share`: share of the commonest; `label_loudness`: share of the variance of the frames' loudness
            that the label explains (the correlation ratio).
        """
        loudness = loudness.float() * weights
        new = [
            label_counts(labels, self.counts.shape[1], weights),
            label_counts(labels, self.counts.shape[1], loudness),
            loudness.square().sum(),
        ]
        kept = (self.counts[0].sum() < WINDOW_FRAMES).float()  # 0 where the window is full: the next one begins
        for buffer, values in zip(
            (self.counts, self.loudness, self.squared_loudness), sum_over_processes(new), strict=True
        ):
            buffer.mul_(kept).add_(values)
        current = self.describe()
        is_full = self.counts[0].sum() >= WINDOW_FRAMES
        never_full = self.last_window[0] == 0
        self.last_window.copy_(torch.where(is_full, current, self.last_window))
        shown = torch.where(never_full, current, self.last_window)
        return dict(zip(self.names, shown.unbind(), strict=True))

    def describe(self) -> torch.Tensor:
        """The statistics of the frames so far, in the order of `names`."""
        count = self.counts.sum(-1).clamp_min(1)  # (C,)
        total = self.loudness.sum(-1)
        between = (self.loudness.square() / self.counts.clamp_min(1)).sum(-1) - total.square() / count
        variance = (self.squared_loudness - total.square() / count).clamp_min(1e-6)
        statistics = (
            (self.counts > 0).sum(-1).float(),
            perplexity(self.counts),
            self.counts.amax(-1) / count,
            (between / variance).clamp(0, 1),
        )
        return torch.stack([values.mean() for values in statistics])


def named(kind: str, statistics: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Statistics under the names that say of which kind of label they are."""
    return {f"{kind}_{name}": value for name, value in statistics.items()}


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
