"""Whether two molecules have the same bonds, however they are drawn."""

from __future__ import annotations

from rdkit import Chem

from simgen.validation import molecule_key

MAX_RESONANCE_STRUCTURES = 50
"""Resonance structures that are looked at before two molecules are called different."""


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
