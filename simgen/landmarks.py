"""Places that want an atom each: what makes a molecule fill the shape of another one.

Under a prior all that an atom wants is to be somewhere on the shape, and parts of it stay empty.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

from simgen.molecules import MoleculeBatch
from simgen.schedules import landmark_stiffness


class Landmarks:
    """Log-density that falls with the distances of atoms from the landmarks they belong to.

    log p = -k(sigma)/2 min_pi sum_p |x_pi(p) - y_p|^2: each landmark has an atom of its own, chosen
    such that the sum is least. Fixed atoms take landmarks as well. Molecules that have fewer atoms
    than there are landmarks feel nothing: spread over all of them they would fall apart. The
    stiffness k is that of :func:`simgen.schedules.landmark_stiffness`. Where pairs change the score
    jumps; everywhere else it is the gradient.

    Parameters
    ----------
    points : Tensor, shape (n_landmarks, 3)
        The y_p, angstrom.
    """

    def __init__(self, points: Tensor) -> None:
        self.points = points.to("cpu", torch.float64)

    def log_prob(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Log-density of each molecule, shape (n_molecules,)."""
        energies = 0.5 * self._ways(batch).square().sum(1)
        return -landmark_stiffness(sigma) * batch.sum_per_molecule(energies)

    def score(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Gradient of the log-density, shape (n_atoms, 3), 1/angstrom."""
        return landmark_stiffness(sigma) * self._ways(batch)

    def _ways(self, batch: MoleculeBatch) -> Tensor:
        """From each atom to its landmark, shape (n_atoms, 3), angstrom; zero without one."""
        # Molecule by molecule, so that rounding does not depend on the batch.
        x = batch.positions.detach().to("cpu", torch.float64).numpy()
        y = self.points.numpy()
        goals = x.copy()
        for atoms in np.split(np.arange(batch.n_atoms), np.cumsum(batch.counts.tolist())[:-1]):
            if len(atoms) >= len(y):
                chosen, landmarks = linear_sum_assignment(cdist(x[atoms], y, "sqeuclidean"))
                goals[atoms[chosen]] = y[landmarks]
        return torch.from_numpy(goals).to(batch.positions) - batch.positions
