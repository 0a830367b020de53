"""ThiNet: Luo, Wu and Lin, "ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression" (ICCV 2017).

An output of the next layer is a sum of one number per input channel. The channels go whose numbers add up to the
least, squared and summed over sampled outputs; those that stay are scaled by least squares, and the scales folded
into the next layer's kernel. Layers are pruned in order, each one in the network pruned so far.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tfprune.methods.shared.reconstruction import Choice, Reconstruction, Site, least_squares


class ThiNet(Reconstruction):
    """Greedy choice by the outputs of the next layer, then one scale per channel."""

    name = "thinet"

    def choose(
        self,
        site: Site,
        kernel: np.ndarray,
        samples: Iterator[tuple[np.ndarray, np.ndarray]],
        keep: int,
        generator: np.random.Generator,
    ) -> Choice:
        """Judges one output entry, drawn at random, at every sampled position."""
        channels = len(site.labels)
        gram, moment = np.zeros((channels, channels)), np.zeros(channels)
        for rows, outputs in samples:
            drawn = generator.integers(outputs.shape[1], size=len(rows))
            parts = (rows * kernel.T[drawn]) @ site.members
            gram += parts.T @ parts
            moment += parts.T @ outputs[np.arange(len(rows)), drawn]
        kept = np.ones(channels, bool)
        kept[least_contributing(gram, channels - keep)] = False
        scales = np.ones(channels)
        scales[kept], ridge = least_squares(gram[np.ix_(kept, kept)], moment[kept], scales[kept])
        note = f"{site.layer}: the samples do not determine all scales, so a ridge holds them near 1"
        return Choice(kept, kernel * scales[site.channel_of, None], (note,) if ridge else ())


def least_contributing(gram: np.ndarray, count: int) -> list[int]:
    """The channels to remove, greedily: each keeps the squared sum of all removed contributions smallest.

    Args:
        gram: float64 (channels, channels), X'X of the contributions X (samples, channels). With i, the squared sum
            over the removed set T grows by gram[i, i] + 2 * sum of gram[i, j] over j in T, which is updated in
            O(channels) a step.
        count: How many to remove.

    Returns:
        Indices in the order of removal; the first of equals goes first.
    """
    growth = np.diag(gram).copy()
    removed = []
    for _ in range(count):
        removed.append(int(np.argmin(growth)))
        growth += 2 * gram[removed[-1]]
        growth[removed[-1]] = np.inf
    return removed


METHOD = ThiNet()
