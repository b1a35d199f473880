"""Hydrogens with coordinates for a molecule that knows how many it needs."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from rdkit import Chem

from simgen.errors import InputError
from simgen.finishing.classical import minimise_classically


def add_hydrogens(mol: Chem.Mol, *, fixed: Collection[int] = ()) -> Chem.Mol:
    """Return the molecule with its hydrogens as atoms, at ideal positions.

    Heavy atoms keep their positions and their order; hydrogens follow them. They begin where bond
    lengths and the directions that the heavy neighbours leave free put them, and are then settled
    in MMFF94 (UFF where that lacks parameters), which knows the bonds, so that hydrogens that
    were placed on top of each other part instead of bonding.

    Parameters
    ----------
    mol : Mol
        Heavy atoms with a 3D conformer and hydrogen counts, as from
        :func:`simgen.finishing.bonds.assign_bonds`. Some hydrogens may be there as atoms already.
    fixed : collection of int
        Atoms that stay where they are, hydrogens among them.

    Raises
    ------
    InputError
        If the molecule has no 3D conformer.

    Examples
    --------
    >>> from simgen.finishing.bonds import assign_bonds
    >>> methanol = assign_bonds([6, 8], [[0.0, 0.0, 0.0], [1.42, 0.0, 0.0]]).mol
    >>> [atom.GetSymbol() for atom in add_hydrogens(methanol).GetAtoms()]
    ['C', 'O', 'H', 'H', 'H', 'H']
    """
    if mol.GetNumConformers() == 0 or not mol.GetConformer().Is3D():
        raise InputError(
            "expected a molecule with 3D coordinates, got none; assign bonds or embed it first"
        )
    complete = Chem.AddHs(mol, addCoords=True)
    _separate(complete, fixed)
    minimise_classically(complete, hydrogens_only=True, fixed=fixed)
    return complete


def _separate(mol: Chem.Mol, fixed: Collection[int]) -> None:
    """Move atoms that share one point apart, in place: RDKit may leave hydrogens so."""
    conformer = mol.GetConformer()
    x = conformer.GetPositions()
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() != 1 or atom.GetIdx() in fixed:
            continue
        i, parent = atom.GetIdx(), atom.GetNeighbors()[0].GetIdx()
        others = np.delete(x, i, axis=0)
        if np.isfinite(x[i]).all() and np.linalg.norm(others - x[i], axis=1).min() > 0.4:
            continue
        # the free direction: away from everything else
        away = x[parent] - np.delete(x, [i, parent], axis=0)
        r = np.linalg.norm(away, axis=1, keepdims=True)
        direction = (away / np.maximum(r, 0.1) ** 3).sum(0) + 1e-3
        x[i] = x[parent] + direction / np.linalg.norm(direction)
        conformer.SetAtomPosition(i, x[i])
