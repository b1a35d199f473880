"""Reference sets: the real molecules whose local environments generation imitates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem

from simgen.density import ReferenceEnvironments
from simgen.descriptors import Descriptor
from simgen.errors import InputError, LoadError
from simgen.io import embed, read_molecules
from simgen.molecules import MoleculeBatch

N_REFERENCE_MOLECULES = 256
"""Molecules of a reference set that a run uses, as in the published experiments."""

REMOVED_ELEMENTS = (1, 9)
"""Hydrogen and fluorine: environments are those of the other atoms, as generation places heavy
atoms and hydrogens come at the end (Elijošius et al. 2025, doi 10.1038/s41467-025-60963-3)."""

_CHUNK_SIZE = 64
"""Molecules described at a time; bounds the memory."""

_SHIPPED_SUFFIX = ".sdf.gz"


@dataclass(frozen=True, slots=True, eq=False)
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
        return ~np.isin(self.atomic_numbers, REMOVED_ELEMENTS)

    @property
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
        n_molecules: int = N_REFERENCE_MOLECULES,
    ) -> ReferenceSet:
        """Return the molecules nearest in size to what is asked for.

        Parameters
        ----------
        n_heavy_atoms : tuple of int
            Smallest and largest number of atoms to be placed.
        elements : sequence of int
            Atomic numbers that the force field knows; molecules with others are left out.
        n_molecules : int
            How many to return at most. Of molecules equally near, those with the smallest checksum
            come first, which is as good as at random and the same on every machine.

        Raises
        ------
        InputError
            If no molecule is left.
        """
        low, high = n_heavy_atoms
        known = [
            molecule
            for molecule in self.molecules
            if np.isin(molecule.atomic_numbers[molecule.kept], elements).all()
        ]
        if not known:
            raise InputError(
                f"every molecule of the reference set {self.name} has an element that the force "
                "field lacks; choose another --reference or --model"
            )

        def distance(molecule: ReferenceMolecule) -> tuple[int, str]:
            size = int(molecule.kept.sum())
            return max(low - size, size - high, 0), molecule.digest

        chosen = sorted(known, key=distance)[:n_molecules]
        lacking = len(self.molecules) - len(known)
        note = (f"{lacking} molecules with an element that the force field lacks",)
        return ReferenceSet(self.name, tuple(chosen), self.skipped + (note if lacking else ()))

    def environments(
        self,
        descriptor: Descriptor,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> ReferenceEnvironments:
        """Describe the environment of every heavy atom, a few molecules at a time."""
        batch = MoleculeBatch.from_arrays(
            [(m.atomic_numbers[m.kept], m.positions[m.kept]) for m in self.molecules],
            dtype=dtype,
            device=device,
        )
        with torch.no_grad():
            features = [
                descriptor(batch[start : start + _CHUNK_SIZE])
                for start in range(0, len(batch), _CHUNK_SIZE)
            ]
        return ReferenceEnvironments(torch.cat(features), batch.atomic_numbers)


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
