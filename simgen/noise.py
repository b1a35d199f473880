"""Counter-based random numbers: every draw is a pure function of what it is for.

There is no generator and no state. A number depends only on the seed, the global index of the
sample, its particle, what the number is for (:class:`Stream`), the step and the atom. So sample k
is the same sample in a batch of one or of a thousand, on any device, and when a run is resumed.

The generator is Philox4x32-10, in 64-bit integer tensor operations.

References
----------
J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3",
Proc. SC'11, doi 10.1145/2063384.2063405, section 3.3 and table 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from math import pi

import torch
from torch import Tensor

from simgen.errors import InputError

N_ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF


class Stream(IntEnum):
    """What a random number is for; different streams are independent."""

    START = 0
    START_POINT = 1
    CHURN = 2
    MUTATED_ATOMS = 3
    NEW_ELEMENTS = 4
    SURVIVORS = 5
    SIZE = 6
    ALTERNATIVE = 7
    THEME = 8
    MUTATED_SHARE = 9


def philox(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Philox4x32-10.

    Parameters
    ----------
    counter : Tensor, shape (n, 4), int64
        Four 32-bit words each.
    key : tuple of int
        Two 32-bit words.

    Returns
    -------
    Tensor, shape (n, 4), int64
        Four independent uniform 32-bit words for each counter.

    Examples
    --------
    >>> words = philox(torch.zeros(1, 4, dtype=torch.int64), (0, 0))
    >>> [f"{word:08x}" for word in words[0].tolist()]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    multipliers, keys = _constants(key, counter.device)
    # The words that are multiplied, the first and the third, and the others: both (2, n).
    factors, others = counter.T[0::2].contiguous(), counter.T[1::2]
    for k in keys:
        # The 64-bit products wrap around in int64; their bits are right all the same.
        products = (factors * multipliers).flip(0)
        factors, others = ((products >> 32) & MASK) ^ others ^ k, products & MASK
    return torch.stack([factors, others], dim=1).flatten(0, 1).T


@lru_cache(8)
def _constants(key: tuple[int, int], device: torch.device) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Multipliers, and the keys of all rounds: each (2, 1)."""
    keys = [
        [(k + i * increment) & MASK for k, increment in zip(key, KEY_INCREMENTS, strict=True)]
        for i in range(N_ROUNDS)
    ]
    rounds = torch.tensor(keys, device=device)[:, :, None].unbind(0)
    return torch.tensor(MULTIPLIERS, device=device)[:, None], rounds


@dataclass(frozen=True, slots=True, eq=False)
class Noise:
    """The random numbers of a batch of samples.

    Attributes
    ----------
    seed : int
        Seed of the run, in [0, 2^64).
    sample_idx : Tensor, shape (n_molecules,), int64
        Global index of each molecule of the batch among all samples of the run, in [0, 2^32).
    particle_idx : Tensor, shape (n_molecules,), int64
        Which of the parallel copies of its sample each molecule is, in [0, 2^24); 0 by default.

    Raises
    ------
    InputError
        If a number is out of range.
    """

    seed: int
    sample_idx: Tensor
    particle_idx: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.particle_idx is None:
            object.__setattr__(self, "particle_idx", torch.zeros_like(self.sample_idx))
        if not 0 <= self.seed < 2**64:
            raise InputError(f"expected a seed in [0, 2^64), got {self.seed}")
        for name, limit in (("sample_idx", 2**32), ("particle_idx", 2**24)):
            index = getattr(self, name)
            if index.shape != (len(self.sample_idx),) or index.dtype != torch.int64:
                raise InputError(
                    f"expected {name} of shape ({len(self.sample_idx)},) and dtype torch.int64, "
                    f"got {tuple(index.shape)} and {index.dtype}"
                )
            if len(index) and not 0 <= int(index.min()) <= int(index.max()) < limit:
                raise InputError(f"expected {name} in [0, {limit}), got {index.tolist()}")

    def __getitem__(self, rows: Tensor) -> Noise:
        """Return the noise of some of the molecules; ``rows`` as indices, (n_chosen,), int64."""
        return Noise(self.seed, self.sample_idx[rows], self.particle_idx[rows])

    def particles(self, n_particles: int) -> Noise:
        """Return the noise of ``n_particles`` copies of each molecule, copies adjacent.

        The first copy draws what the molecule itself draws.
        """
        n_molecules = len(self.sample_idx)
        copies = torch.arange(n_particles, device=self.sample_idx.device).repeat(n_molecules)
        return Noise(
            seed=self.seed,
            sample_idx=self.sample_idx.repeat_interleave(n_particles),
            particle_idx=self.particle_idx.repeat_interleave(n_particles) + copies,
        )

    def _uniforms(
        self, stream: Stream, step: int, molecule_idx: Tensor, element_idx: Tensor
    ) -> Tensor:
        """Four uniforms in (0, 1), float64, for each (molecule, element)."""
        counter = torch.stack(
            [
                element_idx,
                torch.full_like(element_idx, step),
                self.sample_idx[molecule_idx],
                (self.particle_idx[molecule_idx] << 8) | int(stream),
            ],
            dim=1,
        )
        words = philox(counter, (self.seed & MASK, self.seed >> 32))
        return (words.to(torch.float64) + 0.5) * 2.0**-32

    def _atom_uniforms(self, stream: Stream, step: int, molecule_idx: Tensor) -> Tensor:
        counts = torch.bincount(molecule_idx, minlength=len(self.sample_idx))
        first_atom = torch.cumsum(counts, 0) - counts
        atoms = torch.arange(len(molecule_idx), device=molecule_idx.device)
        return self._uniforms(stream, step, molecule_idx, atoms - first_atom[molecule_idx])

    def normal(self, stream: Stream, step: int, molecule_idx: Tensor) -> Tensor:
        """Standard normal vectors, one per atom.

        Parameters
        ----------
        stream, step
            What the numbers are for, and when.
        molecule_idx : Tensor, shape (n_atoms,), int64
            Molecule of each atom, sorted ascending.

        Returns
        -------
        Tensor, shape (n_atoms, 3), float64
            By the Box-Muller transform.
        """
        u = self._atom_uniforms(stream, step, molecule_idx)
        radius = torch.sqrt(-2.0 * torch.log(u[:, 0::2]))
        angle = 2.0 * pi * u[:, 1::2]
        pair = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=2)
        return pair.reshape(-1, 4)[:, :3]

    def uniform(self, stream: Stream, step: int, molecule_idx: Tensor) -> Tensor:
        """Uniform numbers in (0, 1), one per atom: shape (n_atoms,), float64."""
        return self._atom_uniforms(stream, step, molecule_idx)[:, 0]

    def uniform_per_molecule(self, stream: Stream, step: int) -> Tensor:
        """Uniform numbers in (0, 1), one per molecule: shape (n_molecules,), float64."""
        molecules = torch.arange(len(self.sample_idx), device=self.sample_idx.device)
        return self._uniforms(stream, step, molecules, torch.zeros_like(molecules))[:, 0]


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel numbers from uniform ones in (0, 1).

    The largest of ``log_weight + gumbel`` is a draw with probability proportional to the weights,
    the k largest are k draws without replacement.

    References
    ----------
    W. Kool, H. van Hoof, M. Welling, "Stochastic beams and where to find them", ICML 2019,
    section 2.3.
    """
    return -torch.log(-torch.log(uniform))
