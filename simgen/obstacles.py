"""Fixed points in space that moving atoms keep away from: hydrogens of a scaffold, a host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from simgen.errors import InputError
from simgen.molecules import MoleculeBatch

STEP_PER_SIGMA = 0.4
"""A step of the sampler is about this long, in units of the noise level: what is stiffer than its
inverse would overshoot."""
SOFTEST_STEP = 0.05
"""Added to it, angstrom, so that obstacles do not become infinitely stiff as the noise fades."""
MAX_DISTANCES = 2**23
"""Distances that exist at once; bounds the memory."""


class Obstacles:
    """Log-density that falls where mobile atoms enter spheres about fixed points.

    log p = -k(sigma) / 2 sum_i sum_o max(0, R_o - |x_i - x_o|)^2 with
    k = 1 / (0.4 sigma + 0.05), in 1/angstrom^2.

    Parameters
    ----------
    positions : Tensor, shape (n_obstacles, 3)
        The x_o, angstrom.
    radii : Tensor, shape (n_obstacles,)
        The R_o, angstrom.

    Raises
    ------
    InputError
        If shapes do not fit together.
    """

    def __init__(self, positions: Tensor, radii: Tensor) -> None:
        if positions.ndim != 2 or positions.shape[1] != 3 or radii.shape != positions.shape[:1]:
            raise InputError(
                "expected positions of shape (n_obstacles, 3) and as many radii, got "
                f"{tuple(positions.shape)} and {tuple(radii.shape)}"
            )
        self.positions = positions
        self.radii = radii

    @classmethod
    def join(cls, parts: Sequence[Obstacles]) -> Obstacles:
        """Return all obstacles as one."""
        return cls(torch.cat([p.positions for p in parts]), torch.cat([p.radii for p in parts]))

    def log_prob(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Log-density of each molecule, shape (n_molecules,)."""
        depths = [depth.square().sum(1) for _, depth in self._meetings(batch)]
        energies = torch.where(batch.fixed, 0.0, 0.5 * self._stiffness(sigma) * torch.cat(depths))
        return -batch.sum_per_molecule(energies)

    def score(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Gradient of the log-density, shape (n_atoms, 3), 1/angstrom."""
        pushes = [(u * depth[..., None]).sum(1) for u, depth in self._meetings(batch)]
        pushed = self._stiffness(sigma) * torch.cat(pushes)
        return torch.where(batch.fixed[:, None], 0.0, pushed)

    @staticmethod
    def _stiffness(sigma: float) -> float:
        return 1.0 / (STEP_PER_SIGMA * sigma + SOFTEST_STEP)

    def _meetings(self, batch: MoleculeBatch) -> list[tuple[Tensor, Tensor]]:
        """Unit vectors from obstacles and depths within them, some atoms at a time."""
        places, radii = self.positions.to(batch.positions), self.radii.to(batch.positions)
        n_block = max(1, MAX_DISTANCES // max(1, len(radii)))
        found = []
        for x in torch.split(batch.positions, n_block):
            vectors = x[:, None] - places
            r = vectors.square().sum(2).clamp(min=1e-12).sqrt()
            found.append((vectors / r[..., None], (radii - r).clamp(min=0.0)))
        return found
