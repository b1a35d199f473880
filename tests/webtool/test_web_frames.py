"""Molecules as frames of a room, and back."""

import ase
import numpy as np
import pytest
from rdkit import Chem

from simgen.errors import InputError
from simgen.io import embed
from simgen_webtool.frames import CHARGES, CONNECTIVITY, as_drawn, lay_flat, to_frame, to_mol


def molecule(smiles: str) -> Chem.Mol:
    mol = embed(Chem.MolFromSmiles(smiles))
    assert mol is not None
    return mol


def smiles_of(mol: Chem.Mol) -> str:
    mol = Chem.Mol(mol)
    Chem.AssignStereochemistryFrom3D(mol)
    return Chem.MolToSmiles(Chem.RemoveHs(mol))


@pytest.mark.parametrize(
    "smiles",
    [
        "c1ccccc1",
        "C[C@H](N)C(=O)O",
        "C/C=C/C#N",
        "C[N+](C)(C)CC(=O)[O-]",
        "O=[N+]([O-])c1ccncc1",
        "O=C=O",
        "CC(=O)O.Cc1ccccc1",
    ],
)
def test_a_molecule_survives_the_way_through_a_frame(smiles: str) -> None:
    mol = molecule(smiles)
    frame = to_frame(mol, {"name": "x"})
    back = to_mol(frame)
    assert smiles_of(back) == smiles_of(mol)
    np.testing.assert_allclose(back.GetConformer().GetPositions(), frame.positions)
    assert frame.info["name"] == "x"


def test_bonds_are_drawn_as_a_kekule_structure() -> None:
    orders = to_frame(molecule("c1ccccc1")).info[CONNECTIVITY][:, 2]
    assert sorted(orders) == [1] * 9 + [2] * 3


def test_a_hydrogen_that_was_deleted_is_counted_as_missing() -> None:
    frame = to_frame(molecule("CCO"))
    del frame[[-1]]
    del frame.info[CONNECTIVITY]  # as ZnDraw does
    back = to_mol(frame)
    assert back.GetNumAtoms() == 8
    assert smiles_of(back) == "CCO"
    assert sum(atom.GetTotalNumHs() for atom in back.GetAtoms()) == 1


def test_orders_that_are_lost_are_found_again() -> None:
    frame = to_frame(molecule("CC(=O)C#N"))
    frame.info[CONNECTIVITY][:, 2] = 1
    assert smiles_of(to_mol(frame)) == "CC(=O)C#N"
    drawn = as_drawn(frame)
    assert drawn is not None
    assert {b.GetBondTypeAsDouble() for b in drawn.GetBonds()} == {1.0}


def test_bare_heavy_atoms_get_bonds_and_hydrogen_counts() -> None:
    mol = molecule("CC(N)=O")
    frame = to_frame(mol)[:4]
    del frame.info[CONNECTIVITY]
    assert smiles_of(to_mol(frame)) == "CC(N)=O"


def test_what_is_no_molecule_is_refused() -> None:
    with pytest.raises(InputError, match="no atoms"):
        to_mol(ase.Atoms())
    with pytest.raises(InputError, match="no bonds fit"):
        to_mol(ase.Atoms("CC", [[0, 0, 0], [9, 0, 0]]))


def test_charges_stay_with_their_atoms() -> None:
    frame = to_frame(molecule("C[NH3+]"))
    charged = int(np.flatnonzero(frame.arrays[CHARGES])[0])
    assert frame.symbols[charged] == "N"
    del frame[[0]]
    assert frame.arrays[CHARGES][charged - 1] == 1


def test_a_molecule_laid_flat_keeps_its_handedness() -> None:
    mol = molecule("C[C@H](N)c1ccccc1")
    flat = lay_flat(mol)
    assert smiles_of(flat) == smiles_of(mol)
    widths = np.ptp(flat.GetConformer().GetPositions(), axis=0)
    assert widths[1] == min(widths)
