"""Molecules as frames of a room, and back.

A frame is an :class:`ase.Atoms`. ZnDraw draws the bonds in ``info["connectivity"]``, rows of
(atom, atom, order); formal charges are an array of their own, so that they stay with their atoms
when atoms are deleted.
"""

from __future__ import annotations

from collections.abc import Mapping

import ase
import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from simgen.errors import InputError
from simgen.finishing.bonds import assign_bonds
from simgen.io import perceive_bonds
from simgen.validation import check_closed_shell

CONNECTIVITY = "connectivity"
"""Key of the bonds in the ``info`` of a frame."""
CHARGES = "formal_charges"
"""Key of the formal charges in the arrays of a frame."""

_ADDED_BY_ZNDRAW = ("colors", "radii")
_ORDERS = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}


def to_frame(mol: Chem.Mol, info: Mapping[str, object] | None = None) -> ase.Atoms:
    """Return a molecule with a conformer as a frame, with Kekulé bond orders.

    Parameters
    ----------
    mol : Chem.Mol
        Hydrogens that are no atoms are left out.
    info : mapping, optional
        What else the frame is to hold.
    """
    mol = Chem.Mol(mol)
    Chem.Kekulize(mol, clearAromaticFlags=True)
    atoms = ase.Atoms(
        [atom.GetAtomicNum() for atom in mol.GetAtoms()],
        mol.GetConformer().GetPositions(),
        info=dict(info or {}),
    )
    bonds = [
        (b.GetBeginAtomIdx(), b.GetEndAtomIdx(), int(b.GetBondTypeAsDouble()))
        for b in mol.GetBonds()
    ]
    atoms.info[CONNECTIVITY] = np.array(bonds, dtype=np.int32).reshape(-1, 3)
    charges = [atom.GetFormalCharge() for atom in mol.GetAtoms()]
    if any(charges):
        atoms.arrays[CHARGES] = np.array(charges, dtype=np.int32)
    return atoms


def lay_flat(mol: Chem.Mol) -> Chem.Mol:
    """Return a molecule about the origin, its long axes in the xz plane."""
    x = mol.GetConformer().GetPositions()
    centred = x - x.mean(0)
    _, _, axes = np.linalg.svd(centred)
    rotation = axes[[0, 2, 1]]
    rotation[1] *= np.linalg.det(rotation)  # a mirror image would be another molecule
    mol = Chem.Mol(mol)
    mol.GetConformer().SetPositions(centred @ rotation.T)
    return mol


def geometry(atoms: ase.Atoms) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return elements and positions of a frame."""
    return np.asarray(atoms.numbers, dtype=np.int64), np.asarray(atoms.positions, np.float64)


def clean(atoms: ase.Atoms) -> ase.Atoms:
    """Return a frame without what ZnDraw adds to draw it, so that atoms can be changed."""
    atoms = atoms.copy()  # type: ignore[no-untyped-call]
    for name in _ADDED_BY_ZNDRAW:
        atoms.arrays.pop(name, None)
    return atoms


def to_mol(atoms: ase.Atoms) -> Chem.Mol:
    """Return the molecule of a frame.

    The bonds drawn are taken if they make sense; where they do not, as after atoms were deleted or
    moved, bonds are found by the distances. Atoms with an open valence miss a hydrogen. Frames
    without any hydrogen are heavy atoms: they get the likeliest bonds and hydrogen counts.

    Raises
    ------
    InputError
        If there are no atoms, or no bonds fit.
    """
    numbers, positions = geometry(atoms)
    if not len(numbers):
        raise InputError("expected a molecule in this frame, got no atoms; go to another frame")
    if 1 not in numbers:
        assignment = assign_bonds(numbers, positions)
        if assignment.mol is None or len(assignment.kept) < len(numbers):
            raise InputError(f"no bonds fit the heavy atoms of this frame: {assignment.status}")
        return assignment.mol
    drawn = as_drawn(atoms)
    if drawn is not None and _is_sound(drawn):
        return drawn
    seen = perceive_bonds(numbers, positions, int(atoms.arrays.get(CHARGES, np.zeros(1)).sum()))
    if seen is None:
        raise InputError("no bonds fit the atoms of this frame; relax it, or load it again")
    for atom in seen.GetAtoms():
        atom.SetNumExplicitHs(atom.GetNumExplicitHs() + atom.GetNumRadicalElectrons())
        atom.SetNumRadicalElectrons(0)
    Chem.SanitizeMol(seen)
    return seen


def as_drawn(atoms: ase.Atoms) -> Chem.Mol | None:
    """Return the molecule with the bonds that are drawn, sense or not; None if there are none."""
    numbers, positions = geometry(atoms)
    bonds = np.asarray(atoms.info.get(CONNECTIVITY, ())).reshape(-1, 3)
    if not len(bonds) or bonds[:, :2].max() >= len(numbers):
        return None
    mol = Chem.RWMol()
    charges = atoms.arrays.get(CHARGES, np.zeros(len(numbers)))
    for z, charge in zip(numbers.tolist(), charges.tolist(), strict=True):
        atom = Chem.Atom(z)
        atom.SetNoImplicit(True)
        atom.SetFormalCharge(int(charge))
        mol.AddAtom(atom)
    for i, j, order in bonds.tolist():
        mol.AddBond(int(i), int(j), _ORDERS.get(order, Chem.BondType.SINGLE))
    conformer = Chem.Conformer(len(numbers))
    conformer.SetPositions(positions)
    mol.AddConformer(conformer)
    return mol.GetMol()


def _is_sound(mol: Chem.Mol) -> bool:
    """Sanitise a molecule in place; whether it has no open valence and keeps its distances."""
    if Chem.SanitizeMol(mol, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
        return False
    Chem.AssignStereochemistryFrom3D(mol)
    return check_closed_shell(mol).passed
