"""First aid: tight contacts are found and parted, bonds and fixed atoms stay."""

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem

from simgen.finishing.classical import has_tight_contacts, minimise_classically
from simgen.validation import check_graph_kept


def embedded(smiles: str) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=1) == 0
    return mol


def folded(mol: Chem.Mol) -> Chem.Mol:
    """Bring the two ends of a chain within each other's reach."""
    ends = [a.GetIdx() for a in mol.GetAtoms() if a.GetAtomicNum() > 1]
    moved = Chem.Mol(mol)
    x = moved.GetConformer().GetPositions()
    hydrogen = next(
        n.GetIdx() for n in mol.GetAtomWithIdx(ends[0]).GetNeighbors() if n.GetAtomicNum() == 1
    )
    x[hydrogen] = x[ends[-1]] + [0.9, 0.0, 0.0]
    moved.GetConformer().SetPositions(x)
    return moved


def test_ordinary_molecules_have_no_tight_contacts() -> None:
    for smiles in ("CCCCO", "c1ccccc1C", "C1CC2CCC1C2", "CC(=O)NC"):
        assert not has_tight_contacts(embedded(smiles))


def test_a_hydrogen_between_two_heavy_atoms_is_found_and_moved_away() -> None:
    tight = folded(embedded("CCCCO"))
    assert has_tight_contacts(tight)
    assert not check_graph_kept(tight).passed
    minimise_classically(tight, hydrogens_only=False)
    assert not has_tight_contacts(tight)
    assert check_graph_kept(tight).passed


def test_heavy_atoms_stay_where_only_hydrogens_move() -> None:
    mol = folded(embedded("CCCCO"))
    before = mol.GetConformer().GetPositions()
    minimise_classically(mol, hydrogens_only=True)
    after = mol.GetConformer().GetPositions()
    heavy = np.array([a.GetAtomicNum() > 1 for a in mol.GetAtoms()])
    assert np.array_equal(after[heavy], before[heavy])
    assert not np.allclose(after[~heavy], before[~heavy])


@pytest.mark.parametrize("smiles", ["CP(C)(C)=O", "[H][H]"])
def test_unusual_molecules_do_not_break_it(smiles: str) -> None:
    mol = embedded(smiles)
    minimise_classically(mol, hydrogens_only=False)
    assert np.isfinite(mol.GetConformer().GetPositions()).all()


def test_a_hopeless_geometry_is_left_as_it_is() -> None:
    mol = embedded("CCO")
    mol.GetConformer().SetPositions(np.zeros((mol.GetNumAtoms(), 3)))
    minimise_classically(mol, hydrogens_only=False)
    assert np.isfinite(mol.GetConformer().GetPositions()).all()


def test_fixed_atoms_stay_where_all_others_move() -> None:
    mol = folded(embedded("CCCCO"))
    before = mol.GetConformer().GetPositions()
    minimise_classically(mol, hydrogens_only=False, fixed=[1, 2])
    after = mol.GetConformer().GetPositions()
    assert after[1:3].tobytes() == before[1:3].tobytes()
    moved = np.abs(after - before).max(1) > 1e-3
    assert moved.sum() > 5


def test_without_electrostatics_there_are_no_hydrogen_bonds() -> None:
    """Salicylic acid: its hydroxyl group points at the carboxyl oxygen, more or less closely."""

    def distance(electrostatics: bool) -> float:
        mol = Chem.AddHs(Chem.MolFromSmiles("O=C(O)c1ccccc1O"))
        AllChem.EmbedMolecule(mol, randomSeed=3)
        minimise_classically(mol, hydrogens_only=False, electrostatics=electrostatics)
        (pair,) = mol.GetSubstructMatches(Chem.MolFromSmarts("O=C(O)cc[OX2][#1]"))
        x = mol.GetConformer().GetPositions()
        near = [np.linalg.norm(x[pair[-1]] - x[oxygen]) for oxygen in (pair[0], pair[2])]
        return float(min(near))

    assert distance(False) > distance(True) + 0.1
