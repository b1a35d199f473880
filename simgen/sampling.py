"""Samplers: pure functions that move atoms along a score while the noise falls.

References
----------
T. Karras, M. Aittala, T. Aila, S. Laine, "Elucidating the design space of diffusion-based
generative models", NeurIPS 2022, arXiv:2206.00364, algorithm 2.

R. Elijošius et al., "Zero shot molecular generation via similarity kernels", Nat. Commun. 16
(2025), doi 10.1038/s41467-025-60963-3: constants, and the noise as a multiplier.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from simgen.errors import ConfigError, InputError
from simgen.molecules import MoleculeBatch
from simgen.noise import Noise, Stream
from simgen.priors import Prior
from simgen.priors.base import START_SPREAD

GRID = 2.0**-18
"""Positions are rounded to multiples of this, angstrom, before each score. Sampling is chaotic: it
would blow rounding errors, which depend on the size of a batch, up to different molecules."""

Score = Callable[[MoleculeBatch, float], Tensor]
"""Score of each atom, shape (n_atoms, 3), 1/angstrom, at a noise level in angstrom."""


class Progress(NamedTuple):
    """What a callback gets to see."""

    step: int
    """Steps done."""
    sigma: float
    """Noise level reached, angstrom."""
    molecules: MoleculeBatch
    """The molecules as they are now."""


Callback = Callable[[Progress], None]
"""Called as the sampling goes on; whatever it raises ends the sampling."""


class Samples(NamedTuple):
    """What a sampler returns."""

    molecules: MoleculeBatch
    """Positions at the last noise level."""
    finite: Tensor
    """Shape (n_molecules,), bool; False for a molecule whose score or positions ceased to be
    finite. It stays where it was last."""


@dataclass(frozen=True, slots=True)
class HeunSettings:
    """Constants of the stochastic Heun sampler (Elijošius et al. 2025).

    Attributes
    ----------
    churn : float
        Factor by which a step first raises the noise level; 1 for no churn.
    s_min : float
        Noise level, angstrom, below which it is not raised.
    s_noise : float
        Factor on the noise that is added for it.
    min_noise : float
        Least noise that is added in each step, angstrom.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    churn: float = 1.3
    s_min: float = 2e-3
    s_noise: float = 0.5
    min_noise: float = 0.01

    def __post_init__(self) -> None:
        if not 1.0 <= self.churn < math.inf:
            raise ConfigError(f"expected churn >= 1 (1 is no churn), got {self.churn}")
        for name in ("s_min", "s_noise", "min_noise"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"expected {name} >= 0, got {getattr(self, name)}")


def start_molecules(
    prior: Prior,
    elements: Sequence[Sequence[int]],
    noise: Noise,
    *,
    frame: tuple[ArrayLike, ArrayLike] | None = None,
    dtype: torch.dtype = torch.float32,
) -> MoleculeBatch:
    """Atoms where the prior wants them, to start from.

    Parameters
    ----------
    prior : Prior
        Where to start.
    elements : sequence of sequence of int
        Elements of the atoms of each molecule.
    noise : Noise
        Random numbers of the molecules.
    frame : (array_like, array_like), optional
        Atomic numbers, shape (n_frame,), and positions, shape (n_frame, 3), in angstrom, of fixed
        atoms, which are the first ones of every molecule.
    dtype : torch.dtype
        Of the positions.
    """
    device = noise.sample_idx.device
    counts = torch.tensor([len(numbers) for numbers in elements], device=device)
    positions = prior.sample(counts, noise, spread=START_SPREAD).to(dtype)
    frame_numbers = torch.as_tensor([] if frame is None else frame[0], dtype=torch.int64)
    frame_positions = torch.as_tensor([] if frame is None else frame[1], dtype=dtype)
    n_frame = len(frame_numbers)
    new_numbers = [torch.tensor(list(numbers), dtype=torch.int64) for numbers in elements]
    molecules = torch.arange(len(counts), device=device)
    whole_idx = torch.repeat_interleave(molecules, counts + n_frame)
    is_frame = [torch.arange(n_frame + len(numbers)) < n_frame for numbers in elements]
    fixed = torch.cat([torch.zeros(0, dtype=torch.bool), *is_frame]).to(device)
    numbers = torch.zeros_like(whole_idx)
    x = torch.zeros(len(whole_idx), 3, dtype=dtype, device=device)
    numbers[fixed] = frame_numbers.to(device).repeat(len(counts))
    x[fixed] = frame_positions.reshape(-1, 3).to(device).repeat(len(counts), 1)
    numbers[~fixed] = torch.cat([torch.zeros(0, dtype=torch.int64), *new_numbers]).to(device)
    x[~fixed] = positions
    return MoleculeBatch(x, numbers, whole_idx, fixed, n_molecules=len(counts))


def heun(
    score: Score,
    batch: MoleculeBatch,
    sigmas: Sequence[float],
    *,
    noise: Noise,
    settings: HeunSettings | None = None,
    first_step: int = 0,
    finite: Tensor | None = None,
    held: Tensor | None = None,
    callback: Callback | None = None,
) -> Samples:
    """Sample by the stochastic Heun method.

    =============================================  ================
    Equation                                       Variable
    =============================================  ================
    sigma^ = churn sigma if sigma >= S_min         ``raised``
    x^ = x + xi max(S_noise sqrt(sigma^^2          ``noisy``
    - sigma^2), min_noise)
    F1 = F(x^, sigma^)                             ``first``
    x' = x^ + (sigma^ - sigma_next) F1             ``predicted``
    F2 = F(x', sigma_next)                         ``second``
    x = x^ + (sigma^ - sigma_next)(F1 + F2) / 2    ``corrected``
    =============================================  ================

    Parameters
    ----------
    score : callable
        The score F.
    batch : MoleculeBatch
        Molecules to start from; their fixed atoms do not move.
    sigmas : sequence of float
        Falling noise levels, angstrom; there is one step less than levels.
    noise : Noise
        Random numbers of the molecules.
    settings : HeunSettings, optional
        Constants of the method.
    first_step : int
        Index of the first step, if these levels are part of a longer run.
    finite : Tensor, shape (n_molecules,), bool, optional
        False for molecules that are not to move at all.
    held : Tensor, shape (n_atoms,), bool, optional
        Atoms that stay where they are, as fixed ones do, but only this time.
    callback : callable, optional
        Called after each step.

    Returns
    -------
    Samples
        Molecules, and which of them stayed finite.

    Raises
    ------
    InputError
        If the noise is for another number of molecules.
    """
    if len(noise.sample_idx) != batch.n_molecules:
        raise InputError(
            f"expected noise for {batch.n_molecules} molecules, got {len(noise.sample_idx)}"
        )
    settings = settings or HeunSettings()
    if finite is None:
        finite = torch.ones(batch.n_molecules, dtype=torch.bool, device=batch.positions.device)
    still = batch.fixed if held is None else batch.fixed | held
    x = batch.positions.detach()
    levels = [float(sigma) for sigma in sigmas]
    for step, (sigma, sigma_next) in enumerate(itertools.pairwise(levels), start=first_step):
        raised = settings.churn * sigma if sigma >= settings.s_min else sigma
        added = settings.s_noise * math.sqrt(max(raised**2 - sigma**2, 0.0))
        xi = noise.normal(Stream.CHURN, step, batch.molecule_idx).to(x)
        mobile = (finite[batch.molecule_idx] & ~still)[:, None]
        noisy = torch.where(mobile, _on_grid(x + max(added, settings.min_noise) * xi), x)

        # A score that is not finite stops its molecule before it meets the network again.
        first = score(batch.replace(positions=noisy), raised)
        finite = finite & _all_finite(batch, first)
        mobile = (finite[batch.molecule_idx] & ~still)[:, None]
        predicted = torch.where(mobile, _on_grid(noisy + (raised - sigma_next) * first), x)

        second = score(batch.replace(positions=predicted), sigma_next)
        corrected = noisy + (raised - sigma_next) * (first + second) / 2
        finite = finite & _all_finite(batch, corrected)
        mobile = (finite[batch.molecule_idx] & ~still)[:, None]
        x = torch.where(mobile, corrected, x)
        if callback is not None:
            callback(Progress(step + 1, sigma_next, batch.replace(positions=x)))
    return Samples(batch.replace(positions=x), finite)


def _on_grid(positions: Tensor) -> Tensor:
    return torch.round(positions / GRID) * GRID


def _all_finite(batch: MoleculeBatch, values: Tensor) -> Tensor:
    """Whether all values of a molecule's atoms, shape (n_atoms, 3), are: (n_molecules,)."""
    wrong = (~torch.isfinite(values)).any(1)
    return batch.sum_per_molecule(wrong.to(torch.int64)) == 0
