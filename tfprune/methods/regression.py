"""Channel pruning by regression: He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks".

(ICCV 2017.) The next layer's outputs are a sum of one tensor per input channel. A LASSO on one factor per channel
chooses which stay; then the next layer's kernel is fitted anew, by least squares, to the outputs of the original
network.

Both need only X'X and X'Y of the patches X and outputs Y, so all outputs at all sampled positions count, however
many they are. As in the authors' code, a factor's penalty does not depend on the size of the channel's kernel.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np

from tfprune.methods.shared.reconstruction import RIDGE, Choice, Reconstruction, Site, least_squares


class Regression(Reconstruction):
    """Choice by LASSO, then a new kernel for the next layer."""

    name = "regression"
    most_columns = 16_384  # X'X takes 2 GB

    def choose(
        self,
        site: Site,
        kernel: np.ndarray,
        samples: Iterator[tuple[np.ndarray, np.ndarray]],
        keep: int,
        generator: np.random.Generator,
    ) -> Choice:
        """Chooses by all sampled outputs; draws nothing."""
        columns = len(kernel)
        gram, moment = np.zeros((columns, columns)), np.zeros(kernel.shape)
        for rows, outputs in samples:
            gram += rows.T @ rows
            moment += rows.T @ outputs
        # With Z_i the outputs that channel i makes alone, <Z_i, Z_j> and <Z_i, Y> are sums over its columns.
        of_factors = site.members.T @ (gram * (kernel @ kernel.T)) @ site.members
        kept = lasso_choice(of_factors, site.members.T @ (moment * kernel).sum(axis=1), keep)
        left = kept[site.channel_of]
        fitted = kernel.copy()
        fitted[left], ridge = least_squares(gram[np.ix_(left, left)], moment[left], kernel[left])
        note = f"{site.reader}: the samples do not determine its kernel, so a ridge of {RIDGE:g} holds it near the old"
        return Choice(kept, fitted, (note,) if ridge else ())


def lasso_choice(gram: np.ndarray, moment: np.ndarray, keep: int) -> np.ndarray:
    """The channels with a factor at the smallest LASSO penalty that leaves no more than asked.

    Where the path of penalties jumps over the number that is asked (channels that depend on each other linearly
    enter together or not at all), those that contribute most fill it up.

    Args:
        gram: float64 (channels, channels), the inner products of what the channels contribute.
        moment: float64 (channels,), their inner products with the outputs.
        keep: How many to keep.

    Returns:
        (channels,) bool, `keep` of them True.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lars_path_gram

    channels, strength = len(gram), np.diag(gram)
    factors = np.zeros(channels)
    if strength.any():
        unit = strength.max()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of degenerate channels, which are filled up below
            _, _, path = lars_path_gram(
                moment / unit, gram / unit, n_samples=1, method="lasso", max_iter=20 * channels, copy_X=True
            )
        counts = np.count_nonzero(path, axis=0)
        factors = path[:, np.flatnonzero(counts <= keep)[-1]]
    order = np.lexsort((np.arange(channels), -strength, factors == 0))
    kept = np.zeros(channels, bool)
    kept[order[:keep]] = True
    return kept


METHOD = Regression()
