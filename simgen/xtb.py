"""GFN2-xTB through the ``tblite`` package: the labels of our force field and its judge.

GFN2-xTB: C. Bannwarth, S. Ehlert, S. Grimme, J. Chem. Theory Comput. 15, 1652 (2019).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simgen.elements import COVALENT_RADII
from simgen.errors import MissingDependencyError, SimgenError

HARTREE = 27.211386245988
"""eV per hartree (CODATA 2018)."""
BOHR = 0.529177210903
"""Angstrom per bohr (CODATA 2018)."""

_MAX_STEP = 0.2  # angstrom, largest displacement of an atom in one relaxation step
_SHORTEST_STEP = 1e-5  # angstrom, below it a relaxation is stuck
_STIFFNESS = 50.0  # eV/A^2, spring of a pair at bonding distance
_DECAY = 2.5  # of the spring constant with distance, in units of the sum of covalent radii
_ENERGY_NOISE = 3e-4  # eV, what the self-consistent cycle leaves undecided
_FLOOR = 0.5  # eV/A^2, keeps the model Hessian positive definite


class XtbError(SimgenError):
    """GFN2-xTB gave no energy for a geometry (its self-consistent cycle did not converge)."""


class GFN2:
    """Energy and forces of one molecule; each call restarts from the last electron density.

    Parameters
    ----------
    numbers : array, shape (n_atoms,)
        Atomic numbers.
    charge : int
        Total charge in units of e.
    n_unpaired : int
        Number of unpaired electrons.
    """

    def __init__(self, numbers: NDArray[np.int64], charge: int = 0, n_unpaired: int = 0) -> None:
        try:
            from tblite.interface import Calculator
        except ImportError:
            raise MissingDependencyError(
                "GFN2-xTB needs the tblite package; install it with: pip install tblite"
            ) from None
        self.numbers = np.asarray(numbers, dtype=np.int64)
        make: Any = Calculator
        self._make: Callable[[NDArray[np.float64]], Any] = lambda positions: make(
            "GFN2-xTB", self.numbers, positions / BOHR, charge=float(charge), uhf=n_unpaired
        )
        self._calculator: Any = None
        self._result: Any = None

    def __call__(self, positions: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Energy in eV and forces in eV/A, shape (n_atoms, 3), of positions in angstrom.

        Raises
        ------
        XtbError
            If the self-consistent cycle does not converge.
        """
        try:
            if self._calculator is None:
                self._calculator = self._make(positions)
                self._calculator.set("verbosity", 0)
            else:
                self._calculator.update(positions / BOHR)
            self._result = self._calculator.singlepoint(self._result)
        except (RuntimeError, ValueError) as error:  # atoms on top of each other are a ValueError
            self._calculator = self._result = None
            raise XtbError(f"GFN2-xTB failed: {str(error).splitlines()[0]}") from None
        energy = float(self._result.get("energy")) * HARTREE
        gradient = np.asarray(self._result.get("gradient")) * (HARTREE / BOHR)
        return energy, -gradient


@dataclass(frozen=True, slots=True)
class Relaxation:
    """Path of a GFN2-xTB relaxation.

    Attributes
    ----------
    positions : array, shape (n_frames, n_atoms, 3)
        Geometries visited, in angstrom; the last one is the result.
    energies : array, shape (n_frames,)
        In eV.
    forces : array, shape (n_frames, n_atoms, 3)
        In eV/A.
    converged : bool
        Whether the largest force on an atom fell below the threshold.
    """

    positions: NDArray[np.float64]
    energies: NDArray[np.float64]
    forces: NDArray[np.float64]
    converged: bool


def relax(
    numbers: NDArray[np.int64],
    positions: NDArray[np.float64],
    *,
    charge: int = 0,
    f_max: float = 0.02,
    max_steps: int = 200,
) -> Relaxation:
    """Relax one molecule with GFN2-xTB.

    BFGS in Cartesian coordinates from a model Hessian of pair springs whose stiffness decays
    exponentially with distance (Packwood et al., J. Chem. Phys. 144, 164109 (2016), eq. 5), which
    needs about a third of the steps that a scaled unit Hessian does.

    Parameters
    ----------
    numbers : array, shape (n_atoms,)
        Atomic numbers.
    positions : array, shape (n_atoms, 3)
        Start in angstrom.
    charge : int
        Total charge in units of e.
    f_max : float
        Converged when no atom feels a larger force than this, in eV/A.
    max_steps : int
        Give up after as many steps.

    Raises
    ------
    XtbError
        If GFN2-xTB fails on the start geometry.
    """
    gfn2 = GFN2(numbers, charge)
    x = np.asarray(positions, dtype=np.float64)
    energy, forces = gfn2(x)
    path = [(x, energy, forces)]
    hessian = _model_hessian(gfn2.numbers, x)
    trust = _MAX_STEP
    converged = bool(np.linalg.norm(forces, axis=1).max() < f_max)
    for _ in range(max_steps):
        if converged:
            break
        values, vectors = np.linalg.eigh(hessian)
        step = vectors @ ((vectors.T @ forces.ravel()) / np.maximum(np.abs(values), 0.1 * _FLOOR))
        longest = np.linalg.norm(step.reshape(-1, 3), axis=1).max()
        step *= min(1.0, trust / longest)
        try:
            new_energy, new_forces = gfn2(x + step.reshape(-1, 3))
        except XtbError:
            break
        change = forces.ravel() - new_forces.ravel()
        curvature, product = step @ change, hessian @ step
        if curvature > 1e-3 * (step @ product):
            hessian = hessian + (
                np.outer(change, change) / curvature - np.outer(product, product) / (step @ product)
            )
        if new_energy > energy + _ENERGY_NOISE:
            trust = 0.3 * min(trust, longest)
            if trust < _SHORTEST_STEP:
                break
            continue
        trust = min(_MAX_STEP, 2.0 * trust)
        x, energy, forces = x + step.reshape(-1, 3), new_energy, new_forces
        path.append((x, energy, forces))
        converged = bool(np.linalg.norm(forces, axis=1).max() < f_max)
    xs, energies, all_forces = zip(*path, strict=True)
    return Relaxation(np.stack(xs), np.array(energies), np.stack(all_forces), converged)


def _model_hessian(
    numbers: NDArray[np.int64], positions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Hessian, shape (3 n_atoms, 3 n_atoms) in eV/A^2, of springs between all pairs."""
    n_atoms = len(numbers)
    radii = np.array([COVALENT_RADII.get(int(z), 1.2) for z in numbers])
    vectors = positions[:, None] - positions[None, :]
    lengths = np.linalg.norm(vectors, axis=-1)
    np.fill_diagonal(lengths, np.inf)
    stretch = lengths / (radii[:, None] + radii[None, :]) - 1.0
    springs = _STIFFNESS * np.exp(-_DECAY * np.maximum(stretch, 0.0))
    unit = vectors / lengths[..., None]
    blocks = -springs[..., None, None] * unit[..., :, None] * unit[..., None, :]
    diagonal = np.arange(n_atoms)
    blocks[diagonal, diagonal] = -blocks.sum(axis=1) + _FLOOR * np.eye(3)
    return np.asarray(blocks.transpose(0, 2, 1, 3).reshape(3 * n_atoms, 3 * n_atoms))
