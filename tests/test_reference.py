"""Reference sets: provenance, choice by size, environments, conformers made where missing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rdkit import Chem

from simgen.errors import InputError, LoadError
from simgen.io import write_sdf
from simgen.molecules import MoleculeBatch
from simgen.reference import (
    ReferenceMolecule,
    ReferenceSet,
    list_references,
    load_reference,
    themes,
)

ORGANIC_ELEMENTS = (1, 6, 7, 8, 9, 15, 16, 17, 35)


def chain(n_carbons: int, *, element: int = 6, shift: float = 0.0) -> ReferenceMolecule:
    """A row of carbons that ends in another atom, with one hydrogen and one fluorine."""
    numbers = np.array([6] * (n_carbons - 1) + [element, 1, 9])
    positions = np.zeros((n_carbons + 2, 3))
    positions[:, 0] = 1.5 * np.arange(n_carbons + 2) + shift
    return ReferenceMolecule(f"chain-{n_carbons}", numbers, positions)


@pytest.fixture(scope="module")
def organic() -> ReferenceSet:
    return load_reference("organic")


def test_the_shipped_set_is_complete_and_sane(organic: ReferenceSet) -> None:
    assert "organic" in list_references()
    assert organic.skipped == ()
    assert len(organic) >= 300
    for molecule in organic.molecules:
        distances = np.linalg.norm(molecule.positions[:, None] - molecule.positions, axis=-1)
        np.fill_diagonal(distances, np.inf)
        assert distances.min() > 0.7, molecule.name
        assert molecule.mol is not None
        assert Chem.GetFormalCharge(molecule.mol) == 0


def test_the_digest_tells_molecules_apart_and_nothing_else() -> None:
    reference = ReferenceSet("a", (chain(3), chain(4)))
    assert reference.digest == ReferenceSet("b", (chain(3), chain(4))).digest
    # Below the precision of an SDF file, and minus zero, are the same molecule.
    assert chain(3).digest == chain(3, shift=-1e-9).digest
    different = [
        ReferenceSet("a", (chain(4), chain(3))),
        ReferenceSet("a", (chain(3, shift=1e-3), chain(4))),
        ReferenceSet("a", (chain(3, element=7), chain(4))),
        ReferenceSet("a", (chain(3),)),
    ]
    assert len({reference.digest, *(r.digest for r in different)}) == 5


def test_selection_takes_the_nearest_sizes_whatever_the_order() -> None:
    molecules = tuple(chain(n, shift=s) for n in (2, 9, 4, 6, 5) for s in (0.0, 1.0))
    reference = ReferenceSet("chains", molecules)
    chosen = reference.select((5, 5), elements=ORGANIC_ELEMENTS, n_molecules=6)
    # Fluorine and hydrogen do not count.
    assert sorted(int(m.kept.sum()) for m in chosen.molecules) == [4, 4, 5, 5, 6, 6]
    chosen = reference.select((4, 6), elements=ORGANIC_ELEMENTS, n_molecules=3)
    reverse = ReferenceSet("chains", molecules[::-1])
    assert chosen.digest == reverse.select((4, 6), elements=ORGANIC_ELEMENTS, n_molecules=3).digest


def test_molecules_with_elements_the_model_lacks_are_left_out_and_counted() -> None:
    reference = ReferenceSet("mixed", (chain(3), chain(3, element=14)))
    # Fluorine is removed before the network sees the molecule, so it need not be known.
    chosen = reference.select((3, 3), elements=(1, 6))
    assert [m.atomic_numbers.max() for m in chosen.molecules] == [9]
    assert chosen.skipped == ("1 molecules with an element that the force field lacks",)
    assert reference.select((3, 3), elements=(6, 14)).skipped == ()
    with pytest.raises(InputError, match="every molecule of the reference set mixed"):
        reference.select((3, 3), elements=(7,))


def test_environments_are_those_of_the_heavy_atoms() -> None:
    reference = ReferenceSet("chains", tuple(chain(n, element=7) for n in (2, 5, 3)))

    def descriptor(batch: MoleculeBatch, pairs: torch.Tensor | None = None) -> torch.Tensor:
        sizes = batch.counts[batch.molecule_idx]
        return torch.stack([sizes.to(batch.positions.dtype), batch.positions[:, 0]], dim=1)

    environments = reference.environments(descriptor, dtype=torch.float64)
    assert environments.features.dtype == torch.float64
    assert environments.features[:, 0].tolist() == [2] * 2 + [5] * 5 + [3] * 3
    assert environments.atomic_numbers.tolist() == [6, 7, 6, 6, 6, 6, 7, 6, 6, 7]


def test_smiles_get_conformers_that_are_the_same_every_time(tmp_path: Path) -> None:
    path = tmp_path / "mine.smi"
    path.write_text("CCO ethanol\nnonsense\nF fluoride\nC1CC1\n")
    reference = load_reference(path)
    assert [m.name for m in reference.molecules] == ["ethanol", "mine-4"]
    assert sorted(reference.molecules[0].atomic_numbers.tolist()) == [1] * 6 + [6, 6, 8]
    smiles = [Chem.MolToSmiles(Chem.RemoveHs(m.mol)) for m in reference.molecules]
    assert smiles == ["CCO", "C1CC1"]
    assert reference.skipped == (
        "line 2 (mine-2): not a SMILES string: nonsense",
        "line 3 (fluoride): no atom other than hydrogen and fluorine",
    )
    assert load_reference(path).digest == reference.digest


def test_sdf_coordinates_are_kept_unless_hydrogens_are_missing(
    tmp_path: Path, organic: ReferenceSet
) -> None:
    mol = organic.molecules[0].mol
    write_sdf(tmp_path / "full.sdf", [mol])
    (full,) = load_reference(tmp_path / "full.sdf").molecules
    assert full.digest == organic.molecules[0].digest
    write_sdf(tmp_path / "bare.sdf", [Chem.RemoveHs(mol)])
    (bare,) = load_reference(tmp_path / "bare.sdf").molecules
    assert len(bare.atomic_numbers) == len(full.atomic_numbers)


def test_xyz_references_have_environments_but_no_bonds(tmp_path: Path) -> None:
    path = tmp_path / "water.xyz"
    path.write_text("3\n\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n")
    reference = load_reference(path)
    assert [m.mol for m in reference.molecules] == [None]
    assert [m.kept.tolist() for m in reference.molecules] == [[True, False, False]]


def test_unknown_names_and_useless_files_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no reference set 'inorganic': expected one of organic"):
        load_reference("inorganic")
    with pytest.raises(LoadError, match="does not exist"):
        load_reference(tmp_path / "none.sdf")
    path = tmp_path / "hydrogen.smi"
    path.write_text("[H][H]\n")
    with pytest.raises(LoadError, match="no usable molecule"):
        load_reference(path)


class Elements:
    """Describes an atom by its element and the one beside it."""

    def __call__(self, batch: MoleculeBatch, pairs: torch.Tensor | None = None) -> torch.Tensor:
        z = batch.atomic_numbers.to(batch.positions.dtype)
        return torch.stack([z, batch.positions[:, 0] % 1.0], 1)


def test_a_theme_is_a_molecule_with_those_most_like_it() -> None:
    molecules = tuple(
        chain(3 + k % 2, element=element, shift=0.01 * k) for k in range(3) for element in (7, 16)
    )
    reference = ReferenceSet("two kinds", molecules)
    environments = reference.environments(Elements(), dtype=torch.float64)
    parts = themes(reference, environments, 3)
    owner = torch.repeat_interleave(torch.tensor([int(m.kept.sum()) for m in molecules]))
    assert len(parts) == len(molecules)
    for k, part in enumerate(parts):
        members = sorted(set(owner[part].tolist()))
        # Of its own kind, all atoms of each, itself among them.
        assert members == [i for i in range(6) if i % 2 == k % 2]
        assert torch.equal(part, torch.nonzero(torch.isin(owner, torch.tensor(members)))[:, 0])
    assert themes(reference, environments, 6) == ()


def test_molecules_of_a_theme_share_what_they_are_made_of(organic: ReferenceSet) -> None:
    chosen = organic.select((9, 9), elements=ORGANIC_ELEMENTS, n_molecules=100)
    counts = torch.tensor([int(m.kept.sum()) for m in chosen.molecules])
    owner = torch.repeat_interleave(counts)
    mols = [m.mol for m in chosen.molecules if m.mol is not None]
    aromatic = torch.tensor([any(a.GetIsAromatic() for a in mol.GetAtoms()) for mol in mols])
    parts = themes(chosen, chosen.environments(Elements()), 8)
    members = [torch.unique(owner[part]) for part in parts]
    assert all(len(part) == 8 and k in part for k, part in enumerate(members))
    shares = torch.stack([aromatic[part].double().mean() for part in members])
    assert shares[aromatic].mean() > 0.9
    assert shares[~aromatic].mean() < 0.1


def test_molecules_of_other_elements_than_wanted_are_left_out_if_enough_remain() -> None:
    carbons = tuple(chain(4, shift=float(k)) for k in range(40))
    others = tuple(chain(3, element=16, shift=float(k)) for k in range(9))
    many = ReferenceSet("many", carbons + others)
    chosen = many.select((3, 3), elements=ORGANIC_ELEMENTS, wanted=(6, 7))
    assert len(chosen) == 40
    assert chosen.skipped == ("9 molecules with an element that is not wanted",)
    assert len(many.select((3, 3), elements=ORGANIC_ELEMENTS, wanted=(6, 16))) == 49
    few = ReferenceSet("few", carbons[:5] + others)
    assert len(few.select((3, 3), elements=ORGANIC_ELEMENTS, wanted=(6, 7))) == 14
