"""Reference sets: the real molecules whose local environments generation imitates."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem, DataStructs
from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator
from torch import Tensor

from simgen.density import ReferenceEnvironments
from simgen.descriptors import Descriptor
from simgen.errors import InputError, LoadError
from simgen.io import embed, read_molecules
from simgen.molecules import MoleculeBatch

N_REFERENCE_MOLECULES = 256
"""Molecules of a reference set that a run uses, as in the published experiments."""

THEME_MOLECULES_PER_SQUARE = 0.4
"""Molecules of a theme over the square of the number of heavy atoms: 32 at 9 atoms, 102 at 16.
Larger molecules need more of them: at 16 atoms, 32 leave more unknown environments than all 256
do, and 128 fewer (docs/experiments.md)."""
MIN_THEME_MOLECULES = 16
"""Fewer molecules than this, of whatever size, are no theme."""
MAX_THEME_MOLECULES = 102
"""At 30 and 40 atoms, molecules made with all 256 are no better than with so many."""

REMOVED_ELEMENTS = (1, 9)
"""Hydrogen and fluorine: environments are those of the other atoms, as generation places heavy
atoms and hydrogens come at the end (Elijošius et al. 2025, doi 10.1038/s41467-025-60963-3)."""

_CHUNK_SIZE = 64
"""Molecules described at a time; bounds the memory."""

_SHIPPED_SUFFIX = ".sdf.gz"


@dataclass(frozen=True, eq=False)
class ReferenceMolecule:
    """One molecule of a reference set.

    Attributes
    ----------
    name : str
        Title in its file.
    atomic_numbers : ndarray, shape (n_atoms,), int64
        Nuclear charges, hydrogens included.
    positions : ndarray, shape (n_atoms, 3), float64
        Coordinates in angstrom.
    mol : Chem.Mol or None
        The molecule with its bonds; None if it came from an XYZ file.
    """

    name: str
    atomic_numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    mol: Chem.Mol | None = None

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Which atoms take part in environments, shape (n_atoms,)."""
        kept: NDArray[np.bool_] = (self.atomic_numbers[:, None] != REMOVED_ELEMENTS).all(1)
        return kept

    def consists_of(self, elements: Collection[int]) -> bool:
        """Whether all atoms that take part in environments are of these elements."""
        return set(self.atomic_numbers[self.kept].tolist()).issubset(elements)

    @cached_property
    def digest(self) -> str:
        """Checksum of elements and coordinates (to 1e-4 angstrom, what an SDF file holds)."""
        checksum = hashlib.sha256(np.ascontiguousarray(self.atomic_numbers, dtype="<i8").tobytes())
        # Adding zero turns -0.0 into 0.0, which has other bytes.
        checksum.update((np.round(self.positions, 4) + 0.0).astype("<f8").tobytes())
        return checksum.hexdigest()


@dataclass(frozen=True, eq=False)
class ReferenceSet:
    """Molecules with their provenance.

    Attributes
    ----------
    name : str
        Name of the shipped set, or the path of the file.
    molecules : tuple of ReferenceMolecule
        In the order of the file.
    skipped : tuple of str
        Why entries of the file were left out, one line each.
    """

    name: str
    molecules: tuple[ReferenceMolecule, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.molecules)

    @cached_property
    def digest(self) -> str:
        """Checksum of all molecules in their order, in hexadecimal."""
        return hashlib.sha256("".join(m.digest for m in self.molecules).encode()).hexdigest()

    def select(
        self,
        n_heavy_atoms: tuple[int, int],
        *,
        elements: Sequence[int],
        wanted: Sequence[int] | None = None,
        n_molecules: int = N_REFERENCE_MOLECULES,
    ) -> ReferenceSet:
        """Return the molecules nearest in size to what is asked for.

        Parameters
        ----------
        n_heavy_atoms : tuple of int
            Smallest and largest number of atoms to be placed.
        elements : sequence of int
            Atomic numbers that the force field knows; molecules with others are left out.
        wanted : sequence of int, optional
            Atomic numbers of what is made. Molecules with others are left out as well, since
            atoms would be drawn to neighbours that cannot be; not if that leaves too few for a
            theme (:func:`themes`).
        n_molecules : int
            How many to return at most. Of molecules equally near, those with the smallest checksum
            come first, which is as good as at random and the same on every machine.

        Raises
        ------
        InputError
            If no molecule is left.
        """
        low, high = n_heavy_atoms
        known = [molecule for molecule in self.molecules if molecule.consists_of(elements)]
        if not known:
            raise InputError(
                f"every molecule of the reference set {self.name} has an element that the force "
                "field lacks; choose another --reference or --model"
            )

        lacking, unwanted = len(self.molecules) - len(known), 0
        if wanted is not None:
            fitting = [molecule for molecule in known if molecule.consists_of(wanted)]
            if len(fitting) >= theme_size(high):
                unwanted, known = len(known) - len(fitting), fitting

        def distance(molecule: ReferenceMolecule) -> tuple[int, str]:
            size = int(molecule.kept.sum())
            return max(low - size, size - high, 0), molecule.digest

        chosen = sorted(known, key=distance)[:n_molecules]
        reasons = ((lacking, "that the force field lacks"), (unwanted, "that is not wanted"))
        notes = tuple(f"{n} molecules with an element {reason}" for n, reason in reasons if n)
        return ReferenceSet(self.name, tuple(chosen), self.skipped + notes)

    def heavy_atoms(
        self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> MoleculeBatch:
        """Return the atoms that take part in environments, as a batch."""
        return MoleculeBatch.from_arrays(
            [(m.atomic_numbers[m.kept], m.positions[m.kept]) for m in self.molecules],
            dtype=dtype,
            device=device,
        )

    def environments(
        self,
        descriptor: Descriptor,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> ReferenceEnvironments:
        """Describe the environment of every heavy atom, a few molecules at a time."""
        batch = self.heavy_atoms(dtype=dtype, device=device)
        with torch.no_grad():
            features = [
                descriptor(batch[start : start + _CHUNK_SIZE])
                for start in range(0, len(batch), _CHUNK_SIZE)
            ]
        return ReferenceEnvironments(torch.cat(features), batch.atomic_numbers)


def theme_size(n_heavy_atoms: int) -> int:
    """Molecules of a theme for molecules of so many heavy atoms.

    Examples
    --------
    >>> theme_size(9), theme_size(16), theme_size(40)
    (32, 102, 102)
    """
    suited = round(THEME_MOLECULES_PER_SQUARE * n_heavy_atoms**2)
    return min(max(MIN_THEME_MOLECULES, suited), MAX_THEME_MOLECULES)


def themes(
    reference: ReferenceSet, environments: ReferenceEnvironments, n_molecules: int
) -> tuple[Tensor, ...]:
    """Divide a reference set into parts of molecules that are alike, one about each molecule.

    A molecule all of whose atoms are to look like those of one part is more of one piece, and more
    like something real, than one each of whose atoms may look like any molecule of the set. How
    alike two molecules are is the Tanimoto similarity of the counts of their circular substructures
    of radius 2; where bonds are not known, it is by how little the environments of each differ
    from the nearest ones of the other.

    Parameters
    ----------
    reference : ReferenceSet
        Molecules.
    environments : ReferenceEnvironments
        Their environments (:meth:`ReferenceSet.environments`).
    n_molecules : int
        Molecules of a part; if there are no more, the set is not divided.

    Returns
    -------
    tuple of Tensor, shape (n_members,), int64
        Indices of the environments of each part, ascending; empty where the set is not divided.

    References
    ----------
    D. Rogers, M. Hahn, J. Chem. Inf. Model. 50, 742 (2010): circular substructures. H. G. Barrow
    et al., "Parametric correspondence and chamfer matching", IJCAI 1977: the distance of two sets
    of points.
    """
    device = environments.features.device
    counts = [int(molecule.kept.sum()) for molecule in reference.molecules]
    if len(counts) <= n_molecules:
        return ()
    mols = [molecule.mol for molecule in reference.molecules if molecule.mol is not None]
    with_bonds = len(mols) == len(counts)
    distances = (
        _topological_distances(mols) if with_bonds else _chamfer_distances(environments, counts)
    )
    order = torch.argsort(distances, dim=1, stable=True)[:, :n_molecules].to(device)
    owner = torch.repeat_interleave(torch.tensor(counts, device=device))
    return tuple(torch.nonzero(torch.isin(owner, members)).squeeze(1) for members in order)


def _topological_distances(mols: Sequence[Chem.Mol]) -> Tensor:
    """One minus the Tanimoto similarity of Morgan fingerprints, (n_molecules, n_molecules)."""
    generator = GetMorganGenerator(radius=2)
    prints = [generator.GetCountFingerprint(Chem.RemoveHs(mol)) for mol in mols]
    rows = [DataStructs.BulkTanimotoSimilarity(own, prints) for own in prints]
    return 1.0 - torch.tensor(rows, dtype=torch.float64)


def _chamfer_distances(environments: ReferenceEnvironments, counts: Sequence[int]) -> Tensor:
    """How far the environments of molecules with so many atoms are apart, both ways, (n, n)."""
    features = environments.features.to(torch.float64)
    owner = torch.repeat_interleave(torch.tensor(counts, device=features.device))
    # Mean over the atoms of a molecule (row) of the distance to the nearest atom of another.
    one_way = []
    for own in torch.split(features, list(counts)):
        squares = torch.cdist(own, features).square()
        nearest = squares.new_full((len(own), len(counts)), math.inf)
        nearest = nearest.scatter_reduce(1, owner.expand_as(squares), squares, "amin")
        one_way.append(nearest.mean(0))
    distances = torch.stack(one_way)
    return distances + distances.T


def list_references() -> tuple[str, ...]:
    """Names of the reference sets that come with the package."""
    files = (resources.files("simgen") / "references").iterdir()
    return tuple(
        sorted(f.name.removesuffix(_SHIPPED_SUFFIX) for f in files if f.name.endswith("sdf.gz"))
    )


def load_reference(name_or_path: str | Path) -> ReferenceSet:
    """Load a shipped reference set by name, or one of the user's own from a file.

    Parameters
    ----------
    name_or_path : str or Path
        ``"organic"``, or an SDF, SMILES or XYZ file; where it has no 3D coordinates, or a molecule
        with bonds lacks its hydrogens, RDKit makes a conformer.

    Raises
    ------
    LoadError
        If there is no such set or file, or not one usable molecule in it.

    Examples
    --------
    >>> load_reference("organic").name
    'organic'
    """
    name = str(name_or_path)
    path = Path(name_or_path)
    if name in list_references():
        path = Path(str(resources.files("simgen") / "references" / f"{name}{_SHIPPED_SUFFIX}"))
    elif not path.exists() and not path.suffix:
        raise LoadError(
            f"no reference set {name!r}: expected one of {', '.join(list_references())} or an SDF, "
            "SMILES or XYZ file"
        )
    molecules, skipped = [], []
    for record in read_molecules(path):
        numbers, positions, mol, error = (
            record.atomic_numbers,
            record.positions,
            record.mol,
            record.error,
        )
        if mol is not None and (numbers is None or record.n_missing_hydrogens):
            mol = embed(Chem.RemoveHs(mol))
            if mol is None:
                error = "no conformer found"
            else:
                positions = np.asarray(mol.GetConformer().GetPositions(), dtype=np.float64)
                numbers = np.array([a.GetAtomicNum() for a in mol.GetAtoms()], dtype=np.int64)
        if error is None and numbers is not None and positions is not None:
            molecule = ReferenceMolecule(record.name, numbers, positions, mol)
            if molecule.kept.any():
                molecules.append(molecule)
                continue
            error = "no atom other than hydrogen and fluorine"
        skipped.append(f"line {record.line} ({record.name}): {error}")
    if not molecules:
        raise LoadError(f"no usable molecule in the reference set {name}; first: {skipped[0]}")
    return ReferenceSet(name, tuple(molecules), tuple(skipped))
