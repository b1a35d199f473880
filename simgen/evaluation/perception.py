"""Bonds from coordinates alone, by RDKit: independent of how the molecules were made.

Y. Kim, W. Y. Kim, Bull. Korean Chem. Soc. 36, 1769 (2015) (xyz2mol, which RDKit implements).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds

from simgen.validation import molecule_key

MAX_RESONANCE_STRUCTURES = 50
"""Resonance structures that are looked at before two molecules are called different."""


def perceive_bonds(
    atomic_numbers: NDArray[np.int64], positions: NDArray[np.float64], charge: int = 0
) -> Chem.Mol | None:
    """Return the molecule that distances and valences suggest, or None if there is none.

    Charges are given to atoms where that completes all valences; failing that, electrons are left
    unpaired.

    Parameters
    ----------
    atomic_numbers : ndarray, shape (n_atoms,)
        Elements, hydrogens included.
    positions : ndarray, shape (n_atoms, 3)
        Coordinates in angstrom.
    charge : int
        Of the whole molecule.
    """
    bare = Chem.RWMol()
    for z in atomic_numbers.tolist():
        atom = Chem.Atom(z)
        atom.SetNoImplicit(True)
        bare.AddAtom(atom)
    conformer = Chem.Conformer(len(atomic_numbers))
    conformer.SetPositions(np.asarray(positions, dtype=np.float64))
    bare.AddConformer(conformer)
    for allow_charges in (True, False):
        mol = Chem.RWMol(bare)
        try:
            with rdBase.BlockLogs():
                rdDetermineBonds.DetermineBonds(
                    mol, charge=charge, allowChargedFragments=allow_charges
                )
                Chem.SanitizeMol(mol)
        except (ValueError, RuntimeError):
            # What RDKit raises if no bond orders fit the charge, or the atoms make no sense.
            continue
        return mol.GetMol()
    return None


def same_bonds(mol: Chem.Mol, other: Chem.Mol) -> bool:
    """Whether two molecules have the same bonds, up to resonance; stereochemistry aside."""
    key = molecule_key(other)
    if molecule_key(mol) == key:
        return True
    flags = Chem.ALLOW_CHARGE_SEPARATION | Chem.ALLOW_INCOMPLETE_OCTETS
    structures = Chem.ResonanceMolSupplier(mol, flags, MAX_RESONANCE_STRUCTURES)
    return any(
        structure is not None and molecule_key(_aromatic(structure)) == key
        for structure in structures
    )


def _aromatic(mol: Chem.Mol) -> Chem.Mol:
    mol = Chem.Mol(mol)
    Chem.SanitizeMol(mol)
    return mol
