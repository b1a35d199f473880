"""GFN2-xTB energies, forces and relaxation through the optional package tblite.

References
----------
C. Bannwarth, S. Ehlert, S. Grimme, J. Chem. Theory Comput. 15, 1652 (2019).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from simgen.errors import MissingDependencyError
from simgen.finishing.relaxation import RelaxationResult
from simgen.finishing.relaxation import relax as relax_batch
from simgen.molecules import MoleculeBatch

BOHR = 0.529177210903
"""Angstrom; CODATA 2018."""
HARTREE = 27.211386245988
"""eV; CODATA 2018."""


class GFN2:
    """GFN2-xTB of one molecule; each evaluation starts from the density of the last one.

    Parameters
    ----------
    atomic_numbers : array_like, shape (n_atoms,)
        Elements, hydrogens included.
    charge : int, optional
        Total charge. The molecule is closed shell.

    Raises
    ------
    MissingDependencyError
        If tblite is not installed.
    """

    def __init__(self, atomic_numbers: ArrayLike, charge: int = 0) -> None:
        try:
            from tblite.interface import Calculator
        except ImportError as error:
            raise MissingDependencyError(
                "expected the package tblite for GFN2-xTB, which is not installed; "
                "pip install tblite"
            ) from error
        self._numbers = np.asarray(atomic_numbers, dtype=np.int64)
        self._charge = charge
        self._new_calculator = Calculator
        self._calculator: Any = None
        self._result: Any = None

    def energy_and_forces(self, positions: ArrayLike) -> tuple[float, NDArray[np.float64]]:
        """Energy in eV and forces (n_atoms, 3) in eV/A; NaN where no density is found.

        Parameters
        ----------
        positions : array_like, shape (n_atoms, 3)
            Coordinates in angstrom.
        """
        x = np.asarray(positions, dtype=np.float64) / BOHR
        try:
            if self._calculator is None:
                self._calculator = self._new_calculator(
                    "GFN2-xTB", self._numbers, x, charge=float(self._charge)
                )
                self._calculator.set("verbosity", 0)
            else:
                self._calculator.update(x)
            self._result = self._calculator.singlepoint(self._result)
        except (RuntimeError, ValueError):  # no convergence, or atoms on top of each other
            self._calculator = self._result = None
            return np.nan, np.full_like(x, np.nan)
        energy = float(self._result.get("energy")) * HARTREE
        return energy, -np.asarray(self._result.get("gradient")) * (HARTREE / BOHR)


def relax(
    atomic_numbers: ArrayLike,
    positions: ArrayLike,
    *,
    f_max: float = 0.03,
    max_steps: int = 300,
    charge: int = 0,
) -> RelaxationResult:
    """Relax one molecule in GFN2-xTB with :func:`simgen.finishing.relaxation.relax`.

    Parameters
    ----------
    atomic_numbers : array_like, shape (n_atoms,)
        Elements, hydrogens included.
    positions : array_like, shape (n_atoms, 3)
        Coordinates in angstrom.
    f_max : float, optional
        Largest force left, eV/angstrom.
    max_steps : int, optional
        Evaluations after which it gives up.
    charge : int, optional
        Total charge.
    """
    potential = GFN2(atomic_numbers, charge)

    def energy_and_forces(batch: MoleculeBatch) -> tuple[Tensor, Tensor]:
        energy, forces = potential.energy_and_forces(batch.positions.numpy())
        return torch.tensor([energy], dtype=torch.float64), torch.from_numpy(forces)

    batch = MoleculeBatch.from_arrays([(atomic_numbers, positions)], dtype=torch.float64)
    return relax_batch(energy_and_forces, batch, f_max=f_max, max_steps=max_steps)
