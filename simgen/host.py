"""Hosts: fixed surroundings, a cage or a pocket, that molecules are made in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem
from scipy.spatial import cKDTree
from torch import Tensor

from simgen.elements import SYMBOLS
from simgen.errors import InputError, LoadError
from simgen.finishing.connectivity import fragments
from simgen.molecules import MoleculeBatch
from simgen.obstacles import Obstacles
from simgen.priors import PointCloud, Size, spread_evenly

CONTACT = 0.85
"""New heavy atoms stay farther from a host's atoms than this multiple of the sum of their van der
Waals radii, that of carbon standing for the new one's: 2.9 angstrom from carbon."""
CLASH = 0.75
"""Closer than this multiple of the sum of the van der Waals radii two atoms clash: what PoseBusters
asks of a ligand and a protein (M. Buttenschoen et al., Chem. Sci. 15, 3130 (2024))."""
WALL = 2.0
"""Stiffness, eV/angstrom^2, of the walls that keep a molecule in its host while it relaxes."""

CAVITY_RADIUS = 3.0
"""Points of a cavity are farther than this from every atom of the host, angstrom."""
_REACH = 6.0
"""Atoms of a host farther than this from the shape, angstrom, are no partners."""
_SPACING = 0.75
_N_DIRECTIONS = 32
_BURIED = 0.6
"""A point is in a cavity, and not outside, if so many directions from it meet the host."""
_SIGHT = 12.0
_MAX_CAVITY_POINTS = 300


@dataclass(frozen=True, eq=False)
class Host:
    """Atoms that stay, bonded to nothing that is made.

    Attributes
    ----------
    atomic_numbers : ndarray, shape (n_atoms,), int64
        Elements.
    positions : ndarray, shape (n_atoms, 3), float64
        Coordinates in angstrom.
    partners : bool
        Whether its heavy atoms are part of the environments of the new atoms, or only in the way.
    """

    atomic_numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    partners: bool = False

    def __post_init__(self) -> None:
        if self.positions.shape != (len(self.atomic_numbers), 3) or not len(self.positions):
            raise InputError(
                f"expected a host of some atoms with a position each, got "
                f"{len(self.atomic_numbers)} atoms and positions {self.positions.shape}"
            )

    @classmethod
    def from_file(cls, path: str | Path, *, partners: bool = False) -> Host:
        """Read a host from an XYZ, PDB or any other file that ASE reads.

        Raises
        ------
        LoadError
            If it cannot be read.
        """
        import ase.io  # a second of imports, for those who have a host

        try:
            atoms = ase.io.read(path, index=0)
            assert isinstance(atoms, ase.Atoms)
        except FileNotFoundError:
            raise LoadError(f"{path} does not exist; check the path") from None
        except Exception as error:
            # ASE's readers raise whatever their parts raise.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise LoadError(f"cannot read the host {path}: {reason}; bring XYZ or PDB") from None
        numbers = np.asarray(atoms.numbers, dtype=np.int64)
        return cls(numbers, np.asarray(atoms.positions, dtype=np.float64), partners)

    @property
    def radii(self) -> NDArray[np.float64]:
        """Van der Waals radii, shape (n_atoms,), angstrom."""
        return _radii(self.atomic_numbers)

    def obstacles(self) -> Obstacles:
        """Where new heavy atoms must not be."""
        reach = CONTACT * (self.radii + _radii(np.array([6])))
        return Obstacles(torch.tensor(self.positions), torch.tensor(reach))

    def cavity(self) -> PointCloud:
        """Where there is room inside: a prior made of points.

        Grid points farther than :data:`CAVITY_RADIUS` from all atoms, from which most directions
        meet the host; the largest connected set of them.

        Raises
        ------
        InputError
            If there is no such point.
        """
        low, high = self.positions.min(0), self.positions.max(0)
        axes = [np.arange(a, b + _SPACING, _SPACING) for a, b in zip(low, high, strict=True)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        free = grid[cKDTree(self.positions).query(grid)[0] > CAVITY_RADIUS]
        inside = free[self._buried(free)] if len(free) else free
        if not len(inside):
            raise InputError(
                f"found no room in the host: no point inside is farther than {CAVITY_RADIUS:g} "
                "angstrom from all of its atoms; give the shape, or known guests as the shape"
            )
        points = _largest_set(inside)
        size = Size(volume=len(points) * _SPACING**3)
        chosen = spread_evenly(torch.tensor(points), min(len(points), _MAX_CAVITY_POINTS))
        return PointCloud(chosen, size=size)

    def _buried(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether most directions from a point pass near an atom, shape (n_points,)."""
        k = np.arange(_N_DIRECTIONS) + 0.5
        z = 1.0 - 2.0 * k / _N_DIRECTIONS
        phi = np.pi * (1.0 + 5.0**0.5) * k
        rho = np.sqrt(1.0 - z**2)
        directions = np.stack([rho * np.cos(phi), rho * np.sin(phi), z], 1)
        tree = cKDTree(self.positions)
        met = np.zeros((len(points), _N_DIRECTIONS), dtype=bool)
        for distance in np.arange(CAVITY_RADIUS, _SIGHT, 1.0):
            probes = points[:, None] + distance * directions
            met |= tree.query(probes)[0] < 2.0
        return np.asarray(met.mean(1) > _BURIED)

    def near(self, points: NDArray[np.float64]) -> NDArray[np.int64]:
        """Indices of the heavy atoms that environments about some points can reach."""
        close = cKDTree(points).query(self.positions)[0] < _REACH
        return np.flatnonzero(close & (self.atomic_numbers > 1))

    def closest_contact(self, mol: Chem.Mol) -> float:
        """Smallest distance to a molecule's atoms, in units of the sum of van der Waals radii."""
        numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
        x = mol.GetConformer().GetPositions()
        distances = np.linalg.norm(x[:, None] - self.positions, axis=-1)
        return float((distances / (_radii(numbers)[:, None] + self.radii)).min())

    def walled(
        self, energy_and_forces: Callable[[MoleculeBatch], tuple[Tensor, Tensor]]
    ) -> Callable[[MoleculeBatch], tuple[Tensor, Tensor]]:
        """Add walls to a force field: E = k/2 sum max(0, c (R_i + R_o) - r)^2, c of a contact.

        Hydrogen's own radius is used, so that hydrogen bonds to the host stay possible.
        """
        table = torch.tensor(_radii(np.arange(len(SYMBOLS))))
        positions, radii = torch.tensor(self.positions), torch.tensor(self.radii)

        def with_walls(batch: MoleculeBatch) -> tuple[Tensor, Tensor]:
            energies, forces = energy_and_forces(batch)
            places = positions.to(batch.positions)
            sums = table.to(batch.positions)[batch.atomic_numbers][:, None] + radii.to(places)
            vectors = batch.positions[:, None] - places
            r = vectors.square().sum(2).clamp(min=1e-12).sqrt()
            depth = (CONTACT * sums - r).clamp(min=0.0)
            depth = torch.where(batch.fixed[:, None], 0.0, depth)
            walls = batch.sum_per_molecule(0.5 * WALL * depth.square().sum(1))
            pushes = WALL * (vectors * (depth / r)[..., None]).sum(1)
            return energies + walls.to(energies), forces + pushes.to(forces)

        return with_walls

    def to_dict(self) -> dict[str, Any]:
        """Return the host as what JSON can hold; :meth:`from_dict` undoes it."""
        return {
            "atomic_numbers": self.atomic_numbers.tolist(),
            "positions": self.positions.tolist(),
            "partners": self.partners,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Host:
        """Make a host of what :meth:`to_dict` returns."""
        numbers = np.array(values["atomic_numbers"], dtype=np.int64)
        positions = np.array(values["positions"], dtype=np.float64).reshape(-1, 3)
        return cls(numbers, positions, bool(values["partners"]))


def _radii(atomic_numbers: NDArray[np.int64]) -> NDArray[np.float64]:
    table = Chem.GetPeriodicTable()
    return np.array([table.GetRvdw(int(z)) for z in atomic_numbers])


def _largest_set(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest set of grid points that hang together."""
    near = cKDTree(points).query_pairs(1.1 * _SPACING, output_type="ndarray")
    labels = fragments(len(points), {(int(i), int(j)) for i, j in near})
    largest: NDArray[np.float64] = points[labels == np.bincount(labels).argmax()]
    return largest
