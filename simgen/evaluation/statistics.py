"""Figures of a set with their uncertainty, and measures of diversity."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator
from scipy.stats import binomtest

CONFIDENCE = 0.95
"""Probability of all intervals."""

N_RESAMPLES = 1000
"""Resamples of a bootstrap."""

Interval = tuple[float, float]


def share_interval(n_passed: int, n_attempts: int) -> Interval:
    """Wilson score interval of a share.

    A bootstrap of 100 passes in 100 attempts gives 100 to 100 %, which claims too much; Wilson's
    interval, E. B. Wilson, J. Am. Stat. Assoc. 22, 209 (1927), gives 96 to 100 %.

    Examples
    --------
    >>> [round(x, 3) for x in share_interval(100, 100)]
    [0.963, 1.0]
    """
    interval = binomtest(n_passed, n_attempts).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_interval(
    values: ArrayLike, statistic: Callable[[NDArray[np.float64]], float], *, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of a statistic of independent values, which may be infinite.

    B. Efron, Ann. Stat. 7, 1 (1979).
    """
    data = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    draws = [statistic(data[rng.integers(len(data), size=len(data))]) for _ in range(N_RESAMPLES)]
    return _percentiles(draws)


def _percentiles(draws: Sequence[float]) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    # No interpolation: between a number and infinity there is nothing.
    low, high = np.quantile(draws, [tail, 1 - tail], method="closest_observation")
    return float(low), float(high)


def median(values: ArrayLike) -> float:
    """Median of values, some of which may be infinite."""
    return float(np.median(np.asarray(values, dtype=np.float64)))


def mean(values: ArrayLike) -> float:
    """Mean, as a float."""
    return float(np.mean(np.asarray(values, dtype=np.float64)))


def tanimoto_similarities(mols: Sequence[Chem.Mol]) -> NDArray[np.float64]:
    """Tanimoto similarity of Morgan fingerprints (radius 2, 2,048 bits) of all pairs.

    Parameters
    ----------
    mols : sequence of Mol
        Sanitised molecules.

    Returns
    -------
    ndarray, shape (n_mols, n_mols)
        1 on the diagonal.
    """
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    prints = [generator.GetFingerprint(mol) for mol in mols]
    return np.array(
        [DataStructs.BulkTanimotoSimilarity(one, prints) for one in prints], dtype=np.float64
    ).reshape(len(prints), len(prints))


def mean_distance(similarities: NDArray[np.float64]) -> float:
    """Mean of one minus similarity over all pairs of two different molecules."""
    n = len(similarities)
    return float((1 - similarities).sum() / (n * (n - 1)))


def mean_distance_interval(similarities: NDArray[np.float64], *, seed: int = 0) -> Interval:
    """Bootstrap interval of :func:`mean_distance`.

    Molecules are resampled. Pairs of a molecule with itself, which only resampling makes, do not
    count.
    """
    n = len(similarities)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES).astype(np.float64)
    distances = 1 - similarities
    np.fill_diagonal(distances, 0.0)
    n_pairs = counts.sum(1) ** 2 - (counts**2).sum(1)
    totals = np.einsum("ri,ri->r", counts @ distances, counts)
    # A draw of one molecule only, which happens with few of them, has no pairs.
    return _percentiles((totals[n_pairs > 0] / n_pairs[n_pairs > 0]).tolist())


def vendi_score(similarities: NDArray[np.float64]) -> float:
    """Effective number of different molecules, from 1 (all alike) to n (nothing in common).

    exp of the von Neumann entropy of K / n, with K the matrix of similarities: D. Friedman,
    A. B. Dieng, "The Vendi Score", arXiv:2210.02410, definition 3.1.

    Examples
    --------
    >>> round(vendi_score(np.eye(5)), 6), round(vendi_score(np.ones((5, 5))), 6)
    (5.0, 1.0)
    """
    weights = np.linalg.eigvalsh(similarities / len(similarities))
    weights = weights[weights > 1e-12]
    return float(np.exp(-(weights * np.log(weights)).sum()))
