"""Hydrogens: as many as counted, at sensible distances, heavy atoms untouched."""

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem
from rdkit.Geometry import Point3D

from simgen.errors import InputError
from simgen.finishing.bonds import assign_bonds
from simgen.finishing.hydrogens import add_hydrogens


def heavy(smiles: str) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=1) == 0
    return Chem.RemoveHs(mol)


@pytest.mark.parametrize("smiles", ["CCO", "c1ccccc1", "C#C", "C[NH3+]", "CC(C)(C)C", "OO"])
def test_hydrogens_complete_the_molecule(smiles: str) -> None:
    mol = heavy(smiles)
    complete = add_hydrogens(mol)
    n_heavy = mol.GetNumAtoms()
    assert Chem.MolToSmiles(Chem.RemoveHs(complete)) == Chem.MolToSmiles(mol)
    positions = complete.GetConformer().GetPositions()
    assert np.array_equal(positions[:n_heavy], mol.GetConformer().GetPositions())
    for atom in list(complete.GetAtoms())[n_heavy:]:
        assert atom.GetAtomicNum() == 1
        parent = atom.GetNeighbors()[0].GetIdx()
        assert 0.9 < np.linalg.norm(positions[atom.GetIdx()] - positions[parent]) < 1.2
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    assert (distances + np.eye(len(distances)) * 9).min() > 0.9


def test_hydrogens_of_an_assigned_skeleton() -> None:
    mol = assign_bonds([6, 8], [[0.0, 0.0, 0.0], [1.42, 0.0, 0.0]]).mol
    assert add_hydrogens(mol).GetNumAtoms() == 6


def test_hydrogens_never_share_a_point_with_another_atom() -> None:
    """A flat methine carbon: its three neighbours leave no side for the hydrogen free."""
    mol = heavy("CC(C)C")
    angles = np.radians([0, 120, 240])
    flat = 1.5 * np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    for i, position in zip([0, 2, 3], flat.tolist(), strict=True):
        mol.GetConformer().SetAtomPosition(i, Point3D(*position))
    mol.GetConformer().SetAtomPosition(1, Point3D(0.0, 0.0, 0.0))
    positions = add_hydrogens(mol).GetConformer().GetPositions()
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    assert np.isfinite(positions).all()
    assert (distances + np.eye(len(distances)) * 9).min() > 0.4


def test_coinciding_heavy_atoms_still_give_numbers() -> None:
    mol = heavy("CCO")
    for i in range(3):
        mol.GetConformer().SetAtomPosition(i, Point3D(0.0, 0.0, 0.0))
    assert np.isfinite(add_hydrogens(mol).GetConformer().GetPositions()).all()


def test_no_coordinates_are_an_error() -> None:
    with pytest.raises(InputError, match="3D coordinates"):
        add_hydrogens(Chem.MolFromSmiles("CCO"))


def test_fixed_hydrogens_stay_bit_for_bit() -> None:
    """Some hydrogens are there as atoms, one of them fixed where nobody would put it."""
    mol = Chem.AddHs(heavy("CCO"), addCoords=True, onlyOnAtoms=[0])
    x = mol.GetConformer().GetPositions()
    x[3] += [0.3, 0.2, -0.1]
    mol.GetConformer().SetPositions(x)
    complete = add_hydrogens(mol, fixed=[0, 1, 2, 3])
    after = complete.GetConformer().GetPositions()
    assert complete.GetNumAtoms() == 9
    assert after[:4].tobytes() == x[:4].tobytes()
    assert not np.array_equal(after[4], x[4])
