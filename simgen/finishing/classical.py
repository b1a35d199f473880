"""First aid by a classical force field, which knows the bonds and so cannot make new ones.

A machine-learned field sees only positions: a hydrogen that was placed half way between two heavy
atoms is bonded to both of them, and may well stay so. MMFF94 (UFF where that lacks parameters)
pushes such atoms apart; what it leaves is then relaxed in the field proper.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdForceFieldHelpers

from simgen.finishing.connectivity import relative_distances

TIGHT_CONTACT = 1.5
"""Closest approach of atoms three or more bonds apart that a field can be trusted with, in units
of the sum of their covalent radii: 0.93 A for two hydrogens, 1.6 A for carbon and hydrogen."""

_MAX_STEPS = 200
"""Steps of a classical relaxation; more change nothing that matters."""


def has_tight_contacts(mol: Chem.Mol) -> bool:
    """Whether atoms that are three or more bonds apart are closer than a field can sort out."""
    numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    distances = relative_distances(numbers, mol.GetConformer().GetPositions())
    far_in_graph = Chem.GetDistanceMatrix(mol) >= 3
    return bool((distances[far_in_graph] < TIGHT_CONTACT).any())


def minimise_classically(
    mol: Chem.Mol,
    *,
    hydrogens_only: bool,
    fixed: Collection[int] = (),
    electrostatics: bool = True,
) -> None:
    """Relax a molecule in place in MMFF94 or UFF; left as it is where neither of them can.

    Parameters
    ----------
    mol : Mol
        Hydrogens as atoms and a 3D conformer.
    hydrogens_only : bool
        Whether heavy atoms stay where they are, bit for bit.
    fixed : collection of int
        Atoms that stay where they are in any case.
    electrostatics : bool
        Whether MMFF94 has its electrostatic term, which makes hydrogen bonds, and in a vacuum
        rather short ones; UFF as RDKit has it knows none.
    """
    before = Chem.Conformer(mol.GetConformer())
    with rdBase.BlockLogs():
        Chem.SanitizeMol(mol)
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
            properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
            properties.SetMMFFEleTerm(electrostatics)
            field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties)
        elif rdForceFieldHelpers.UFFHasAllMoleculeParams(mol):
            field = rdForceFieldHelpers.UFFGetMoleculeForceField(mol)
        else:
            return
    if field is None:
        return
    field.Initialize()
    for atom in mol.GetAtoms():
        if atom.GetIdx() in fixed or (hydrogens_only and atom.GetAtomicNum() > 1):
            field.AddFixedPoint(atom.GetIdx())
    try:
        with rdBase.BlockLogs():
            field.Minimize(maxIts=_MAX_STEPS)
        minimised = bool(np.isfinite(mol.GetConformer().GetPositions()).all())
    except RuntimeError:  # RDKit's line search gives up on geometries that are bad enough
        minimised = False
    if not minimised:
        mol.RemoveAllConformers()
        mol.AddConformer(before)
