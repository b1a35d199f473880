"""Scaffolds: what is given stays, and what grows is joined to it."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from chemistry import conformer
from rdkit import Chem
from rdkit.Chem import rdMolTransforms

from simgen.benchmarks.constraints import cut
from simgen.composition import Composition
from simgen.errors import ConfigError, InputError
from simgen.finishing.status import Status
from simgen.generation import Attempt, Generator
from simgen.generation import maker as maker_module
from simgen.io import write_sdf
from simgen.models import ForceField, NetworkConfig
from simgen.molecules import MoleculeBatch
from simgen.noise import Noise
from simgen.priors import Alternatives, PointCloud, Union
from simgen.reference import ReferenceSet, load_reference
from simgen.sampling import Samples
from simgen.scaffold import BOND_LENGTH, SCAFFOLD_INDEX, Scaffold, common_core

Assemble = Callable[..., Attempt]


@pytest.fixture(scope="module")
def generator() -> Generator:
    # Scale zero: all forces vanish, so that what a sampler finds is what is finished.
    config = NetworkConfig(elements=(1, 6, 7, 8, 9, 16, 17), n_channels=4, l_max=1)
    return Generator(ForceField(config, scale=0.0), name="random")


@pytest.fixture(scope="module")
def reference() -> ReferenceSet:
    return ReferenceSet("some", load_reference("organic").molecules[:8])


@pytest.fixture
def assemble(
    monkeypatch: pytest.MonkeyPatch, generator: Generator, reference: ReferenceSet
) -> Assemble:
    """Finish a scaffold with new atoms, at places where a sampler could have put them."""

    def finish(scaffold: Scaffold, atoms: list[tuple[int, np.ndarray]], **wishes) -> Attempt:
        def sample(score, batch: MoleculeBatch, sigmas, *, noise: Noise, **options) -> Samples:
            numbers, positions = batch.atomic_numbers.clone(), batch.positions.clone()
            numbers[~batch.fixed] = torch.tensor([z for z, _ in atoms])
            places = torch.tensor(np.array([x for _, x in atoms]))
            positions[~batch.fixed] = places.to(positions.dtype)
            moved = batch.replace(atomic_numbers=numbers, positions=positions)
            return Samples(moved, torch.tensor([True]))

        monkeypatch.setattr(maker_module, "evolve", sample)
        result = generator.generate(
            1, len(atoms), scaffold=scaffold, reference=reference, seed=0,
            n_steps=4, n_particles=1, n_refinements=0, n_repairs=0, **wishes,
        )  # fmt: skip
        return result.attempts[0]

    return finish


def take(mol: Chem.Mol, *bonds: tuple[int, int]) -> tuple[Chem.Mol, list[tuple[int, np.ndarray]]]:
    """Cut bonds: what stays, hydrogens in the places of what goes, and the heavy atoms that go."""
    left = Chem.RWMol(cut(mol, bonds))
    conformer = left.GetConformer()
    for atom in left.GetAtoms():
        if atom.GetAtomicNum() == 0:
            parent = atom.GetNeighbors()[0].GetIdx()
            atom.SetAtomicNum(1)
            rdMolTransforms.SetBondLength(conformer, parent, atom.GetIdx(), 1.09)
    Chem.SanitizeMol(left)
    stays = {tuple(x) for x in left.GetConformer().GetPositions()}
    gone = [
        (atom.GetAtomicNum(), x)
        for atom, x in zip(mol.GetAtoms(), mol.GetConformer().GetPositions(), strict=True)
        if atom.GetAtomicNum() > 1 and tuple(x) not in stays
    ]
    return left.GetMol(), gone


def assert_kept(scaffold: Scaffold, mol: Chem.Mol, *, in_place: bool = True) -> None:
    """Check atoms, coordinates, bonds and indices of a scaffold, but for what may be replaced."""
    loose = {h for removable in scaffold.removable.values() for h in removable}
    place = {
        atom.GetIntProp(SCAFFOLD_INDEX): atom.GetIdx()
        for atom in mol.GetAtoms()
        if atom.HasProp(SCAFFOLD_INDEX)
    }
    given = Chem.Mol(scaffold.mol)
    Chem.SanitizeMol(given)
    kept = [a.GetIdx() for a in given.GetAtoms() if a.GetIdx() not in loose]
    x, now = given.GetConformer().GetPositions(), mol.GetConformer().GetPositions()
    for i in kept:
        assert not in_place or place[i] == i
        there, here = given.GetAtomWithIdx(i), mol.GetAtomWithIdx(place[i])
        assert here.GetAtomicNum() == there.GetAtomicNum()
        assert here.GetFormalCharge() == there.GetFormalCharge()
        assert now[place[i]].tobytes() == x[i].tobytes()
    for bond in given.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        if {i, j} <= {*kept}:
            assert mol.GetBondBetweenAtoms(place[i], place[j]).GetBondType() == bond.GetBondType()


# --- decorating --------------------------------------------------------------------------------

CRESOL = "Cc1ccc(O)cc1"


@pytest.mark.parametrize("grow_at", [[0], "hydrogen", "c1ccc(O)cc1", "placeholder"])
def test_a_ring_grows_where_it_is_told_to(
    assemble: Assemble, grow_at: list[int] | str, tmp_path: Path
) -> None:
    """By heavy atom, by hydrogen, by SMARTS (its first atom), by placeholder."""
    mol = conformer(CRESOL)
    phenol, methyl = take(mol, (1, 0))
    if grow_at == "placeholder":
        scaffold = Scaffold.from_mol(cut(mol, ((1, 0),)))
    elif grow_at == "hydrogen":
        scaffold = Scaffold.from_mol(phenol, grow_at=[phenol.GetNumAtoms() - 1])
    else:
        scaffold = Scaffold.from_mol(phenol, grow_at=grow_at)
    assert dict(scaffold.removable) == {0: (12,)}
    attempt = assemble(scaffold, methyl)
    assert attempt.report.status is Status.OK
    assert attempt.report.smiles == CRESOL
    assert_kept(scaffold, attempt.mol)
    # The new carbon is where the hydrogen was.
    assert attempt.mol.GetAtomWithIdx(12).GetSymbol() == "C"
    assert not attempt.mol.GetAtomWithIdx(12).HasProp(SCAFFOLD_INDEX)
    # The file has the indices as well.
    write_sdf(tmp_path / "x.sdf", [attempt.mol])
    assert attempt.positions.dtype == np.float64


def test_a_pattern_counts_in_all_its_matches() -> None:
    """Both meta positions, although the matches are of the same atoms."""
    scaffold = Scaffold.from_mol(conformer("Oc1ccccc1"), grow_at="[cH]1cccc(O)c1")
    assert sorted(scaffold.removable) == [3, 5]


def test_the_properties_of_a_file_tell_which_atoms_were_given(
    generator: Generator, assemble: Assemble, tmp_path: Path, reference: ReferenceSet
) -> None:
    phenol, methyl = take(conformer(CRESOL), (1, 0))
    scaffold = Scaffold.from_mol(phenol, grow_at=[0])
    assert assemble(scaffold, methyl).report.status is Status.OK  # the sampler stays replaced
    generator.generate(
        1, 1, scaffold=scaffold, reference=reference, seed=0, out=tmp_path,
        n_steps=4, n_particles=1, n_refinements=0, n_repairs=0,
    )  # fmt: skip
    (mol,) = Chem.SDMolSupplier(str(tmp_path / "molecules.sdf"), removeHs=False)
    listed = mol.GetProp(f"atom.iprop.{SCAFFOLD_INDEX}").split()
    assert listed[:12] == [str(i) for i in range(12)]
    assert listed[12:] == ["n/a"] * 4


def test_hydrogens_are_gone_only_where_something_grew(assemble: Assemble) -> None:
    phenol, methyl = take(conformer(CRESOL), (1, 0))
    scaffold = Scaffold.from_mol(phenol, grow_at=[0, 1])
    assert len(scaffold.removable) == 2
    attempt = assemble(scaffold, methyl)
    assert attempt.report.status is Status.OK
    assert attempt.report.smiles == CRESOL
    assert attempt.report.formula == "C7H8O"
    assert_kept(scaffold, attempt.mol)


def test_all_hydrogens_of_an_atom_may_be_replaced(assemble: Assemble) -> None:
    """A carbonyl instead of a methylene group: both of its hydrogens make room."""
    mol = conformer("O=C1CCCC1")
    x = mol.GetConformer().GetPositions()
    ring = Chem.RWMol(mol)
    ring.RemoveAtom(0)
    cyclopentane = Chem.AddHs(ring.GetMol(), addCoords=True)
    scaffold = Scaffold.from_mol(cyclopentane, grow_at=[0])
    assert len(scaffold.removable[0]) == 2
    attempt = assemble(scaffold, [(8, x[0])])
    assert attempt.report.status is Status.OK
    assert attempt.report.smiles == "O=C1CCCC1"
    assert np.array_equal(attempt.mol.GetConformer().GetPositions()[0], x[1])
    # One new atom for two places: a hydrogen moves up, and the property tells.
    assert_kept(scaffold, attempt.mol, in_place=False)


@pytest.mark.parametrize("smiles", ["C[C@H](O)c1ccccc1", "C[C@@H](O)c1ccccc1"])
def test_stereocentres_stay(assemble: Assemble, smiles: str) -> None:
    phenyl, methyl = take(conformer(smiles.replace("ccccc1", "ccc(C)cc1")), (6, 7))
    scaffold = Scaffold.from_mol(phenyl, grow_at=[6])
    mol = Chem.RemoveHs(assemble(scaffold, methyl).mol)
    (before,) = Chem.FindMolChiralCenters(Chem.MolFromSmiles(smiles))
    (after,) = Chem.FindMolChiralCenters(mol)
    assert after == before
    assert np.sign(_volume(mol, 1, (0, 2, 3))) == np.sign(_volume(scaffold.mol, 1, (0, 2, 3)))


def _volume(mol: Chem.Mol, centre: int, around: tuple[int, int, int]) -> float:
    x = mol.GetConformer().GetPositions()
    return float(np.linalg.det(x[list(around)] - x[centre]))


@pytest.mark.parametrize("smiles", ["C/C=C/c1ccc(C)cc1", "C/C=C\\c1ccc(C)cc1"])
def test_double_bonds_keep_their_sides(assemble: Assemble, smiles: str) -> None:
    propenyl, methyl = take(conformer(smiles), (6, 7))
    scaffold = Scaffold.from_mol(propenyl, grow_at=[6])
    attempt = assemble(scaffold, methyl)
    assert attempt.report.smiles == Chem.CanonSmiles(smiles)
    assert_kept(scaffold, attempt.mol)


def test_charges_stay(assemble: Assemble) -> None:
    """The whole has the charge of the scaffold, unless another is wanted."""
    left, methyl = take(conformer("Cc1ccc(C[NH3+])cc1"), (1, 0))
    scaffold = Scaffold.from_mol(left, grow_at=[0])
    assert scaffold.charge == 1
    attempt = assemble(scaffold, methyl)
    assert (attempt.report.status, attempt.report.charge) == (Status.OK, 1)
    assert_kept(scaffold, attempt.mol)
    neutral = assemble(scaffold, methyl, elements=Composition(charge=0))
    assert neutral.report.status is not Status.OK


def test_new_atoms_may_be_bonded_to_no_other_atom(assemble: Assemble) -> None:
    """A carbon next to a closed atom: the bond that distances show is not made."""
    phenol, methyl = take(conformer(CRESOL), (1, 0))
    attempt = assemble(Scaffold.from_mol(phenol, grow_at=[1]), methyl)
    assert attempt.report.status is not Status.OK


def test_sampling_leaves_every_bit_of_the_scaffold(
    generator: Generator, reference: ReferenceSet
) -> None:
    """With a random force field what grows is nonsense, and what is given stays."""
    scaffold = Scaffold.from_mol(conformer("NC(=O)c1ccccc1"), grow_at=[5, 6])
    result = generator.generate(
        4, (1, 3), scaffold=scaffold, reference=reference, seed=0,
        n_steps=6, n_particles=2, n_refinements=1, n_repairs=1,
    )  # fmt: skip
    for attempt in result.attempts:
        if attempt.mol is not None:
            assert_kept(scaffold, attempt.mol, in_place=False)
        assert attempt.positions[: len(scaffold.heavy)].tobytes() == scaffold.positions.tobytes()


def test_exact_formulas_count_the_scaffold(assemble: Assemble) -> None:
    phenol, methyl = take(conformer(CRESOL), (1, 0))
    scaffold = Scaffold.from_mol(phenol, grow_at=[0])
    attempt = assemble(scaffold, methyl, elements=Composition.from_formula("C7H8O"))
    assert attempt.report.status is Status.OK
    # Two hydrogens fewer cannot be.
    attempt = assemble(scaffold, methyl, elements=Composition.from_formula("C7H6O"))
    assert attempt.report.status is Status.UNASSIGNABLE
    with pytest.raises(ConfigError, match="at most 3 are wanted"):
        assemble(scaffold, methyl, elements=Composition.from_formula("C3O"))


# --- linking -----------------------------------------------------------------------------------

BENZYL_ETHER = "c1ccccc1COc1ccccn1"


@pytest.mark.parametrize("anchors", ["given", "found", "placeholders"])
def test_fragments_are_linked(assemble: Assemble, anchors: str) -> None:
    mol = conformer(BENZYL_ETHER)
    bonds = ((5, 6), (8, 7))
    fragments, linker = take(mol, *bonds)
    if anchors == "placeholders":
        scaffold = Scaffold.from_mol(cut(mol, bonds))
    else:
        # Without the first two atoms of the linker the rings have the indices 0-5 and 6-11.
        scaffold = Scaffold.from_mol(fragments, grow_at=[5, 6] if anchors == "given" else None)
    assert scaffold.n_fragments == 2
    assert sorted(scaffold.removable) == [5, 6]
    low, high = scaffold.linker_sizes()
    assert low <= 2 <= high
    attempt = assemble(scaffold, linker)
    assert attempt.report.status is Status.OK
    assert attempt.report.smiles == Chem.CanonSmiles(BENZYL_ETHER)
    assert_kept(scaffold, attempt.mol)


def test_one_atom_links_where_hydrogens_are_in_each_others_way(assemble: Assemble) -> None:
    mol = conformer("c1ccccc1Cc1ccccn1")
    fragments, linker = take(mol, (5, 6), (7, 6))
    x = fragments.GetConformer().GetPositions()[-2:]
    assert np.linalg.norm(x[0] - x[1]) < 0.75
    scaffold = Scaffold.from_mol(fragments, grow_at=[5, 6])
    assert scaffold.linker_sizes()[0] == 1
    attempt = assemble(scaffold, linker)
    assert attempt.report.smiles == Chem.CanonSmiles("c1ccccc1Cc1ccccn1")
    assert_kept(scaffold, attempt.mol)


def test_fragments_that_stay_apart_are_disconnected(assemble: Assemble) -> None:
    mol = conformer(BENZYL_ETHER)
    fragments, linker = take(mol, (5, 6), (8, 7))
    attempt = assemble(Scaffold.from_mol(fragments), linker[:1])
    assert attempt.report.status is Status.DISCONNECTED


def test_sizes_of_links_grow_with_the_gap() -> None:
    ring = conformer("c1ccccc1")
    axis = ring.GetConformer().GetPositions()[0]
    axis /= np.linalg.norm(axis - ring.GetConformer().GetPositions().mean(0))
    sizes = []
    for gap in (2.6, 4.0, 8.0):
        other = Chem.Mol(ring)
        # A mirror image would do; the same ring, turned half way about z, is near enough.
        x = ring.GetConformer().GetPositions()
        other.GetConformer().SetPositions(-x + 2 * x[0] + gap * axis)
        scaffold = Scaffold.from_mol(Chem.CombineMols(ring, other))
        assert sorted(scaffold.removable) == [0, 12]
        sizes.append(scaffold.linker_sizes())
    assert sizes == [(1, 4), (2, 5), (5, 8)]
    with pytest.raises(InputError, match="one fragment; give the number"):
        Scaffold.from_mol(ring).linker_sizes()


# --- where new atoms are wanted ----------------------------------------------------------------


def test_the_prior_says_where_to_grow() -> None:
    ring = conformer("c1ccccc1")
    x = ring.GetConformer().GetPositions()
    out = x[0] - x[:6].mean(0)
    out /= np.linalg.norm(out)
    some = Scaffold.from_mol(ring, grow_at=[0, 3]).prior(4)
    assert isinstance(some, Union)
    assert not isinstance(some, Alternatives)
    centre = some.parts[0].translation.numpy()
    assert (centre - x[0]) @ out == pytest.approx(np.linalg.norm(centre - x[0]), abs=0.01)
    anywhere = Scaffold.from_mol(ring).prior(4)
    assert isinstance(anywhere, Alternatives)
    assert len(anywhere.parts) == 6


def test_each_molecule_gets_one_of_the_alternatives() -> None:
    prior = Scaffold.from_mol(conformer("c1ccccc1")).prior(6)
    assert isinstance(prior, Alternatives)
    centres = torch.stack([part.translation for part in prior.parts])
    counts = torch.full((60,), 6)
    positions = prior.sample(counts, Noise(0, torch.arange(60)), spread=0.01)
    nearest = torch.cdist(positions.double(), centres).argmin(1).view(60, 6)
    assert (nearest == nearest[:, :1]).all()
    assert len(nearest[:, 0].unique()) == 6


def test_links_are_wanted_on_the_line_between_their_ends() -> None:
    mol = conformer(BENZYL_ETHER)
    scaffold = Scaffold.from_mol(cut(mol, ((5, 6), (8, 7))))
    x = mol.GetConformer().GetPositions()
    prior = scaffold.prior(2)
    assert isinstance(prior, PointCloud)
    path = prior.outline().numpy()
    for k, (stays, goes) in zip((0, -1), ((5, 6), (8, 7)), strict=True):
        bond = (x[goes] - x[stays]) / np.linalg.norm(x[goes] - x[stays])
        np.testing.assert_allclose(path[k], x[stays] + BOND_LENGTH * bond, atol=1e-6)
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    assert steps == pytest.approx(steps[0])


def test_obstacles_are_what_nothing_is_bonded_to() -> None:
    scaffold = Scaffold.from_mol(conformer("c1ccccc1"), grow_at=[0])
    assert scaffold.closed == (1, 2, 3, 4, 5)
    obstacles = scaffold.obstacles()
    assert sorted(obstacles.radii.tolist()) == [1.9] * 5 + [2.2] * 5


# --- files and storage -------------------------------------------------------------------------


def _xyz(mols: list[Chem.Mol], *, frames: bool, heavy: bool = False) -> str:
    parts = []
    for mol in mols:
        rows = [
            f"{atom.GetSymbol()} {x:.8f} {y:.8f} {z:.8f}"
            for atom, (x, y, z) in zip(
                mol.GetAtoms(), mol.GetConformer().GetPositions(), strict=True
            )
            if not heavy or atom.GetAtomicNum() > 1
        ]
        parts.append(rows)
    if not frames:
        parts = [[row for rows in parts for row in rows]]
    return "".join(f"{len(rows)}\n\n" + "\n".join(rows) + "\n" for rows in parts)


@pytest.mark.parametrize("kind", ["sdf", "frames", "one frame", "heavy atoms"])
def test_files_of_several_fragments(kind: str, tmp_path: Path) -> None:
    mol = conformer(BENZYL_ETHER)
    both, _ = take(mol, (5, 6), (8, 7))
    parts = list(Chem.GetMolFrags(both, asMols=True))
    path = tmp_path / ("x.sdf" if kind == "sdf" else "x.xyz")
    if kind == "sdf":
        write_sdf(path, parts)
    else:
        text = _xyz(parts, frames=kind != "one frame", heavy=kind == "heavy atoms")
        path.write_text(text)
    scaffold = Scaffold.from_file(path)
    assert scaffold.n_fragments == 2
    assert len(scaffold.heavy) == 12
    bare = Chem.RemoveHs(scaffold.mol)
    Chem.SanitizeMol(bare)
    assert Chem.MolToSmiles(bare) == "c1ccccc1.c1ccncc1"
    np.testing.assert_allclose(
        np.sort(scaffold.positions, 0), np.sort(mol.GetConformer().GetPositions()[
            [*range(6), *range(8, 14)]
        ], 0), atol=1e-4,
    )  # fmt: skip


def test_descriptions_and_pickles_keep_every_bit() -> None:
    scaffold = Scaffold.from_mol(conformer("C[C@H](N)c1ccccc1"), grow_at=[2])
    for again in (
        Scaffold.from_dict(scaffold.to_dict()),
        pickle.loads(pickle.dumps(scaffold)),
    ):
        assert again.positions.tobytes() == scaffold.positions.tobytes()
        assert again.removable == scaffold.removable
        assert again.known_bonds == scaffold.known_bonds
        assert Chem.MolToSmiles(again.mol) == Chem.MolToSmiles(scaffold.mol)
        assert again.mol.GetAtomWithIdx(5).GetIntProp(SCAFFOLD_INDEX) == 5


def flat(smiles: str) -> Chem.Mol:
    return Chem.MolFromSmiles(smiles)


def moved(smiles: str, by: float) -> Chem.Mol:
    mol = conformer(smiles)
    mol.GetConformer().SetPositions(mol.GetConformer().GetPositions() + np.array([0, 0, by]))
    return mol


def stretched(smiles: str) -> Chem.Mol:
    mol = conformer(smiles)
    mol.GetConformer().SetPositions(1.4 * mol.GetConformer().GetPositions())
    return mol


@pytest.mark.parametrize(
    ("make", "grow_at", "words"),
    [
        (lambda: flat("c1ccccc1"), None, "expected 3D coordinates of the scaffold, got none"),
        (
            lambda: Chem.CombineMols(moved("c1ccccc1", 0.0), moved("c1ccccc1", 0.5)),
            None,
            "fragments of the scaffold overlap: atoms 0 and 12 are 0.50 angstrom apart",
        ),
        (lambda: conformer("C[SiH3]"), None, "expected a scaffold of H, C, .* got Si"),
        (lambda: stretched("CC"), None, "do not fit its bonds: atoms 0 and 1 are bonded"),
        (lambda: conformer("CCO"), [9], "from 0 to 8, as the scaffold has 9 atoms, got 9"),
        (lambda: conformer("CCO"), [-1], "got -1"),
        (lambda: conformer("CCO"), "[N]", r"\[N\] matches nothing in the scaffold"),
        (lambda: conformer("CCO"), "[C", r"as indices or SMARTS, got '\[C'"),
        (lambda: conformer("CC(=O)C"), [2], r"atom 2 \(O\) of the scaffold has no hydrogen"),
        (lambda: conformer("ClC(Cl)(Cl)Cl"), None, "no atom of the scaffold has a hydrogen"),
        (
            lambda: Chem.CombineMols(moved("CC", 0.0), moved("CC", 6.0)),
            [0],
            "fragment 2 of the scaffold has nowhere to be linked",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_a_scaffold_is_one_line(
    make: Callable[[], Chem.Mol], grow_at: list[int] | str | None, words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        Scaffold.from_mol(make(), grow_at)
    assert "\n" not in str(caught.value)


def test_elements_that_the_model_lacks_are_named(
    generator: Generator, reference: ReferenceSet
) -> None:
    scaffold = Scaffold.from_mol(conformer("Brc1ccccc1"), grow_at=[4])
    with pytest.raises(InputError, match="lacks Br"):
        generator.generate(1, 2, scaffold=scaffold, reference=reference, seed=0)


# --- cores -------------------------------------------------------------------------------------


def test_the_core_of_a_series_grows_where_it_varies() -> None:
    core = common_core([conformer(s) for s in ("Cc1ccccc1O", "CCc1ccccc1O", "Nc1ccccc1O")])
    bare = Chem.RemoveHs(core.mol)
    Chem.SanitizeMol(bare)
    assert Chem.MolToSmiles(bare) == "Oc1ccccc1"
    (site,) = core.removable
    oxygen = next(a for a in core.mol.GetAtoms() if a.GetSymbol() == "O")
    ring = oxygen.GetNeighbors()
    assert site in {b.GetIdx() for a in ring for b in a.GetNeighbors()}  # ortho to it
    assert not core.alternatives


def test_the_core_has_the_coordinates_of_the_first_molecule() -> None:
    mols = [conformer(s) for s in ("Cc1ccccn1", "Oc1ccccn1")]
    core = common_core(mols, pattern="c1ccccn1")
    first = {x.tobytes() for x in mols[0].GetConformer().GetPositions()}
    assert len(core.heavy) == 6
    assert all(x.tobytes() in first for x in core.positions)


def test_a_core_grows_only_where_it_has_hydrogens() -> None:
    """Nitrogens of imidazoles, of which one has a hydrogen, match each other's."""
    series = ("Cc1nc(C)c[nH]1", "Cc1ncc(C)n1C", "CCc1ncc(C)n1C")
    core = common_core([conformer(s) for s in series])
    for site, removable in core.removable.items():
        assert removable
        assert core.mol.GetAtomWithIdx(site).GetAtomicNum() > 1


@pytest.mark.parametrize(
    ("smiles", "pattern", "words"),
    [
        (["Cc1ccccc1"], None, "at least two molecules"),
        (["CCO", "c1ccccc1"], None, "no core in common"),
        (["Cc1ccccc1", "CCO"], "c1ccccc1", "in common: molecule 2 lacks c1ccccc1"),
        (["c1ccccc1", "c1ccccc1"], None, "do not vary"),
        (["CCO", "CCN"], "C(", "SMARTS pattern for the core"),
    ],
)
def test_series_without_a_core(smiles: list[str], pattern: str | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        common_core([conformer(s) for s in smiles], pattern=pattern)


# --- the shipped force field -------------------------------------------------------------------


@pytest.mark.slow
def test_real_fragments_are_decorated_and_linked() -> None:
    generator = Generator.from_pretrained(device="cpu")
    benzamide = Scaffold.from_mol(conformer("NC(=O)c1ccccc1"), grow_at=[5, 6])
    pair = Scaffold.from_mol(cut(conformer(BENZYL_ETHER), ((5, 6), (8, 7))))
    for scaffold, size in ((benzamide, 4), (pair, "auto")):
        result = generator.generate(2, size, scaffold=scaffold, seed=0)
        assert result.best is not None
        for mol in (a.mol for a in result.attempts if a.report.status is Status.OK):
            assert_kept(scaffold, mol, in_place=False)
