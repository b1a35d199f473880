"""Internal coordinates: values of known molecules, their derivatives, and what is found in them."""

import math

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import AllChem, rdMolTransforms
from torch import Tensor

from simgen.finishing.internal import (
    MAX_BONDS,
    InternalCoordinates,
    angle,
    bow,
    length,
    pyramid,
    torsion,
)
from simgen.molecules import MoleculeBatch


def embedded(smiles: str) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    AllChem.MMFFOptimizeMolecule(mol)
    return mol


def batch_of(*mols: Chem.Mol) -> MoleculeBatch:
    return MoleculeBatch.from_arrays(
        [
            ([a.GetAtomicNum() for a in mol.GetAtoms()], mol.GetConformer().GetPositions())
            for mol in mols
        ],
        dtype=torch.float64,
    )


def kinds(coordinates: InternalCoordinates) -> dict[str, Tensor]:
    """Atoms of the coordinates of each kind."""
    return {kind.function.__name__: kind.atoms for kind in coordinates._kinds}


def test_lengths_angles_and_torsions_are_those_of_rdkit() -> None:
    mol = embedded("CC(=O)NC1CC1O")
    conformer, batch = mol.GetConformer(), batch_of(mol)
    found = kinds(InternalCoordinates(batch))
    for name, function, oracle in (
        ("length", length, rdMolTransforms.GetBondLength),
        ("angle", angle, rdMolTransforms.GetAngleRad),
        ("torsion", torsion, rdMolTransforms.GetDihedralRad),
    ):
        atoms = found[name]
        expected = [oracle(conformer, *row) for row in atoms.tolist()]
        assert function(batch.positions[atoms]).tolist() == pytest.approx(expected, abs=1e-9)
    bonds = {tuple(sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx()))) for b in mol.GetBonds()}
    assert {tuple(row) for row in found["length"].tolist()} == bonds
    assert len(found["length"]) == len(bonds)
    degrees = [a.GetDegree() for a in mol.GetAtoms()]
    assert len(found["angle"]) == sum(math.comb(d, 2) for d in degrees)
    assert sorted(found["pyramid"][:, 0].tolist()) == [i for i, d in enumerate(degrees) if d == 3]


def test_how_far_an_atom_is_out_of_a_plane() -> None:
    corners = [[math.cos(t), math.sin(t), 0] for t in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
    flat = torch.tensor([[[0.0, 0, 0], *corners]], dtype=torch.float64)
    assert float(pyramid(flat)) == pytest.approx(0, abs=1e-12)
    cube = torch.tensor([[[0.0, 0, 0], [2, 0, 0], [0, 3, 0], [0, 0, 4]]], dtype=torch.float64)
    assert float(pyramid(cube)) == pytest.approx(1)


def test_how_far_atoms_are_from_being_in_line() -> None:
    c, s = math.cos(0.1), math.sin(0.1)
    bent = torch.tensor([[[-2.0, 0, 0], [0, 0, 0], [3 * c, 3 * s, 0]]], dtype=torch.float64)
    assert bow(bent)[0].tolist() == pytest.approx([c - 1, s, 0])


def test_derivatives_are_those_of_the_values() -> None:
    """Turning angles of a chain, a plane and a straight piece among them."""
    batch = batch_of(embedded("C#CC(C)=CCO"), embedded("C"))
    coordinates = InternalCoordinates(batch)
    rng = np.random.default_rng(0)
    x = batch.positions + 0.02 * torch.tensor(rng.standard_normal((batch.n_atoms, 3)))
    shift = torch.tensor(rng.standard_normal((batch.n_atoms, 3)))
    slopes = (coordinates.derivatives(x) * shift[coordinates.atoms]).sum((1, 2))
    h = 1e-5
    values = [coordinates.values(x + sign * h * shift) for sign in (-1, 1)]
    torch.testing.assert_close(slopes, coordinates.change(*values) / (2 * h), rtol=0, atol=1e-7)


def test_nothing_changes_when_a_molecule_moves_as_a_whole() -> None:
    """But the components of what is nearly zero, where atoms are in line."""
    batch = batch_of(embedded("CC(=O)NC1CC1O"))
    coordinates = InternalCoordinates(batch)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=_generator()))
    turn = turn * torch.linalg.det(turn)
    before = coordinates.values(batch.positions)
    after = coordinates.values(batch.positions @ turn.T + 5.0)
    assert float(coordinates.change(before, after).abs().max()) < 1e-9


def test_torsions_change_the_short_way_round() -> None:
    coordinates = InternalCoordinates(batch_of(embedded("CC")))
    nearly = coordinates.values(batch_of(embedded("CC")).positions).clone()
    is_torsion = torch.tensor([row[0] != row[3] for row in coordinates.atoms.tolist()])
    nearly[is_torsion] = math.pi - 0.1
    beyond = torch.where(is_torsion, -math.pi + 0.1, nearly)
    change = coordinates.change(nearly, beyond)
    assert change[is_torsion].tolist() == pytest.approx([0.2] * 9)
    assert not change[~is_torsion].any()


def test_atoms_in_line_have_no_torsions_and_bend_both_ways() -> None:
    r = 1.06
    x = [[-r, 0, 0], [0, 0, 0], [1.2, 0, 0], [1.2 + r, 0, 0]]  # ethyne
    batch = MoleculeBatch.from_arrays([([1, 6, 6, 1], x)], dtype=torch.float64)
    coordinates = InternalCoordinates(batch)
    assert not {"torsion", "angle"} & kinds(coordinates).keys()
    derivatives = coordinates.derivatives(batch.positions)
    for axis in (1, 2):
        sideways = torch.zeros(4, 3, dtype=torch.float64)
        sideways[0, axis] = 1.0
        slopes = (derivatives * sideways[coordinates.atoms]).sum((1, 2))
        assert slopes[slopes != 0].tolist() == pytest.approx([1 / r])


def test_atoms_on_top_of_each_other_have_few_bonds_and_finite_derivatives() -> None:
    places = np.concatenate([np.zeros((4, 3)), 0.05 * np.random.default_rng(0).random((20, 3))])
    batch = MoleculeBatch.from_arrays([([6] * 24, places)], dtype=torch.float64)
    coordinates = InternalCoordinates(batch)
    bonds = kinds(coordinates)["length"]
    assert int(torch.bincount(bonds.flatten()).max()) <= MAX_BONDS
    assert coordinates.derivatives(batch.positions).isfinite().all()


def test_molecules_of_a_batch_are_those_alone() -> None:
    mols = [embedded(smiles) for smiles in ("CCO", "C#CC(C)=CCO", "O")]
    batch = batch_of(*mols)
    together = InternalCoordinates(batch)
    for k, mol in enumerate(mols):
        alone = InternalCoordinates(batch_of(mol))
        part = together.of(batch.molecule_idx == k)
        assert torch.equal(part.atoms, alone.atoms)
        torch.testing.assert_close(part.stiffness, alone.stiffness)
        x = batch[k].positions
        torch.testing.assert_close(part.values(x), alone.values(x))


def test_stiffness_is_that_of_the_table() -> None:
    """Ethene with stretched C-H bonds, of rho = 1.1; radii are 0.76 and 0.31 A."""
    h, c, s = 1.1 * 1.07, math.cos(2 * math.pi / 3), math.sin(2 * math.pi / 3)
    x = [[0, 0, 0], [1.4, 0, 0], [h * c, h * s, 0], [h * c, -h * s, 0]]
    x += [[1.4 - h * c, h * s, 0], [1.4 - h * c, -h * s, 0]]
    batch = MoleculeBatch.from_arrays([([6, 6, 1, 1, 1, 1], x)], dtype=torch.float64)
    lengths, angles, folds, torsions = InternalCoordinates(batch)._kinds
    d = math.exp(1 - 1.1**2)
    assert sorted(lengths.stiffness.tolist()) == pytest.approx([30 * d] * 4 + [30])
    assert sorted(angles.stiffness.tolist()) == pytest.approx([4 * d * d] * 2 + [4 * d] * 4)
    assert folds.stiffness.tolist() == [3, 3]
    twist = 0.3 * math.exp(9 * (1 - (1.4 / 1.52) ** 2))
    assert torsions.stiffness.tolist() == pytest.approx([twist / 4] * 4)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
