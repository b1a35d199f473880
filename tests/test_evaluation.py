"""The scorecard: each check with a molecule that passes and one that fails, then the command."""

import csv
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
from chemistry import conformer
from rdkit import Chem
from rdkit.Chem import AllChem, rdFingerprintGenerator, rdMolTransforms
from typer.testing import CliRunner

from simgen import io, validation
from simgen.cli import app
from simgen.data.known import write_known
from simgen.errors import InputError, LoadError, MissingDependencyError
from simgen.evaluation import judges, statistics
from simgen.evaluation.geometry import compare, measure
from simgen.evaluation.judges import Entry, judge
from simgen.evaluation.molecule import (
    Fault,
    MoleculeScore,
    Relaxation,
    check_perceived_bonds,
    check_valences,
    count_cumulated,
    count_heteroatom_rows,
    failed_posebusters,
    relax_gfn2,
    ring_sizes,
    study,
)
from simgen.evaluation.perception import same_bonds
from simgen.evaluation.plots import PLOTS
from simgen.evaluation.report import figure_from_json, show, to_json, to_markdown
from simgen.evaluation.scorecard import Reference, Scorecard, summarise
from simgen.evaluation.sources import has_more_attempts, read_entries
from simgen.io import Record, perceive_bonds
from simgen.known import collect, environments_of, load_known, ring_systems_of, valence_of
from simgen.reference import load_reference
from simgen.validation import check_posebusters


def moved(mol: Chem.Mol, shifts: dict[int, list[float]]) -> Chem.Mol:
    copy = Chem.Mol(mol)
    x = copy.GetConformer().GetPositions()
    for atom, shift in shifts.items():
        x[atom] += shift
    copy.GetConformer().SetPositions(x)
    return copy


def record_of(mol: Chem.Mol, name: str = "m") -> Record:
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    return Record(1, 1, name, mol, numbers, mol.GetConformer().GetPositions())


def from_smiles(smiles: str) -> Chem.Mol:
    return Chem.MolFromSmiles(smiles)


def sdf_of_the_reference() -> list[Chem.Mol]:
    return [molecule.mol for molecule in load_reference("organic").molecules]


ETHANOL = conformer("CCO")


# --- what is known -----------------------------------------------------------------------------


def test_the_shipped_table_holds_what_molecules_of_the_collections_show() -> None:
    # The reference set is a part of them, which runs rely on; all of them take a minute, in the
    # slow test.
    mols = sdf_of_the_reference()
    known, sample = load_known(), collect(mols)
    assert sample.n_molecules == len(mols) > 100
    assert sample.valences <= known.valences
    assert sample.environments < known.environments
    assert sample.ring_systems < known.ring_systems


@pytest.mark.slow
def test_the_shipped_table_can_be_made_again(tmp_path: Path) -> None:
    assert write_known(tmp_path / "known.json.gz") == load_known()


def test_environments_tell_apart_what_morgan_fingerprints_of_radius_1_do() -> None:
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=1)
    ours, theirs = {}, {}
    for smiles in ("CC(=O)Nc1ccc(O)cc1", "C1CC1C#N", "C[N+](C)(C)CC(=O)[O-]", "CC(C)C(N)=O"):
        mol = from_smiles(smiles)
        output = rdFingerprintGenerator.AdditionalOutput()
        output.AllocateBitInfoMap()
        generator.GetSparseFingerprint(mol, additionalOutput=output)
        words = environments_of(mol)
        for bit, places in output.GetBitInfoMap().items():
            for atom, radius in places:
                if radius == 1:
                    ours.setdefault(words[atom], set()).add(bit)
                    theirs.setdefault(bit, set()).add(words[atom])
    assert len(ours) > 15
    assert all(len(bits) == 1 for bits in ours.values())
    assert all(len(words) == 1 for words in theirs.values())


def test_ring_systems_are_rings_that_share_atoms() -> None:
    def words(smiles: str) -> list[str]:
        return [word for word, _ in ring_systems_of(from_smiles(smiles))]

    benzene, naphthalene = words("c1ccccc1"), words("c1ccc2ccccc2c1")
    assert words("C1CCNCC1") == words("O1CCOCC1") == benzene
    assert words("C1CCC2CNCCC2C1") == naphthalene
    assert words("c1ccccc1-c1ccccc1") == benzene * 2
    assert len(words("C1CCC2(CC1)CCCCC2")) == 1  # spiro
    assert words("CCO") == []
    # A macrocycle is a chain as far as strain goes; what is fused to it counts alone.
    assert words("C1CCCCCCCCCCC1") == []
    assert words("C1CCCCCCCCCCc2ccccc2C1") == benzene
    (system,) = ring_systems_of(from_smiles("CC1CC1"))
    assert system[1] == {1, 2, 3}


def test_unknown_atoms_are_those_in_strange_surroundings() -> None:
    known = load_known()

    def unknown(smiles: str) -> set[int]:
        return known.unknown_atoms(from_smiles(smiles))

    assert unknown("CC(=O)Nc1ccc(O)cc1") == set()
    assert unknown("C1CCCCCCCCCCCCC1") == set()
    assert unknown("COOOC") == {1, 2, 3}
    # A cage whose atoms look harmless one by one.
    cage = "C1C2CC3C1C1CC2CC31"
    assert unknown(cage) == set(range(from_smiles(cage).GetNumAtoms()))
    # Of iodine nothing is known, so that nothing is said of what it is bonded to.
    assert "I" not in known.elements
    assert unknown("CCI") == set()
    silent = collect([from_smiles("CC")])
    assert silent.unknown_atoms(from_smiles("CCC")) == {0, 1, 2}
    assert (silent | collect([from_smiles("CCC")])).unknown_atoms(from_smiles("CCC")) == set()


def test_environments_do_not_depend_on_how_hydrogens_are_written() -> None:
    mol = from_smiles("CC(=O)Nc1ccc(O)cc1")
    assert environments_of(mol) == environments_of(Chem.AddHs(mol))


@pytest.mark.parametrize(
    ("smiles", "passes"),
    [
        ("CCO", True),
        ("c1ccc2[nH]ccc2c1", True),
        ("C[N+](=O)[O-]", True),
        ("CS(C)(=O)=O", True),
        ("IC", True),  # no iodine in the collections: RDKit's periodic table answers
        ("C[O+](C)C", False),
        ("[CH2-]C", False),
        ("C[I+]C", False),
    ],
)
def test_valences(smiles: str, passes: bool) -> None:
    found = check_valences(Chem.AddHs(from_smiles(smiles)))
    assert found.passed is passes
    assert bool(found.detail) is not passes


def test_a_wrong_valence_is_named() -> None:
    assert (
        "O+1 with 0 aromatic bonds and other bonds of valence 3"
        in check_valences(from_smiles("C[O+](C)C")).detail
    )


def test_aromatic_valences_count_bonds_not_halves() -> None:
    assert valence_of(from_smiles("c1ccccc1C").GetAtomWithIdx(5)) == ("C", 0, 2, 1)
    assert valence_of(from_smiles("c1ccc2ccccc2c1").GetAtomWithIdx(3)) == ("C", 0, 3, 0)


# --- what a graph shows ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("smiles", "n"),
    [
        ("C=C=C", 1),
        ("C=C=O", 1),
        ("CN=[N+]=[N-]", 1),
        ("C=CC=C", 0),
        ("CS(C)(=O)=O", 0),
        ("CC#N", 0),
    ],
)
def test_cumulated_double_bonds(smiles: str, n: int) -> None:
    assert count_cumulated(from_smiles(smiles)) == n


@pytest.mark.parametrize(
    ("smiles", "has_row"),
    [
        ("NNN", True),
        ("COOOC", True),
        ("CN(C)N=O", True),
        ("NN", False),
        ("CN[N+](=O)[O-]", False),
        ("CNS(=O)(=O)NC", False),
        ("COP(=O)(OC)OC", False),
        ("c1c[nH]nn1", False),
        ("CCO", False),
    ],
)
def test_rows_of_heteroatoms(smiles: str, has_row: bool) -> None:
    mol = from_smiles(smiles)
    assert (count_heteroatom_rows(mol) > 0) is has_row
    assert (count_heteroatom_rows(Chem.AddHs(mol)) > 0) is has_row


def test_ring_sizes() -> None:
    assert ring_sizes(from_smiles("C1CC1C1CCCC1")) == (3, 5)
    assert ring_sizes(from_smiles("CCO")) == ()


# --- bonds from coordinates --------------------------------------------------------------------


@pytest.mark.parametrize("smiles", ["CCO", "c1ccccc1", "CC(=O)[O-]", "C[N+](=O)[O-]", "C#N"])
def test_bonds_are_found_again_from_the_coordinates(smiles: str) -> None:
    assert check_perceived_bonds(conformer(smiles)).passed


def test_a_drawing_that_the_geometry_contradicts_is_found() -> None:
    ethene = conformer("C=C")
    wrong = Chem.RWMol(ETHANOL)
    wrong.RemoveBond(1, 2)
    assert not check_perceived_bonds(wrong.GetMol()).passed
    stretched = moved(ethene, {0: [0, 0, 3.0]})
    assert not check_perceived_bonds(stretched).passed


def test_resonance_structures_are_the_same_bonds() -> None:
    assert same_bonds(from_smiles("C[N-][N+]#N"), from_smiles("CN=[N+]=[N-]"))
    assert not same_bonds(from_smiles("CC=O"), from_smiles("C=CO"))


def test_unpaired_electrons_where_nothing_else_fits() -> None:
    methyl = Chem.AddHs(from_smiles("[CH3]"))
    AllChem.EmbedMolecule(methyl, randomSeed=1)
    numbers, x = record_of(methyl).geometry
    seen = perceive_bonds(numbers, x)
    assert seen is not None
    assert sum(atom.GetNumRadicalElectrons() for atom in seen.GetAtoms()) == 1


def test_an_entry_without_bonds_is_not_compared_with_itself() -> None:
    full = record_of(ETHANOL)
    bare = Record(1, 1, "x", None, full.atomic_numbers, full.positions)
    assert "bonds re-perceived" in study(full).checks
    chemistry = study(bare)
    assert "bonds re-perceived" not in chemistry.checks
    assert chemistry.smiles == "CCO"
    apart = Record(1, 1, "x", None, np.array([6, 9]), np.array([[0.0, 0, 0], [9, 0, 0]]))
    assert not study(apart).checks["one fragment"].passed


# --- statistics --------------------------------------------------------------------------------


def test_share_interval_against_wilsons_formula() -> None:
    n, p, z = 40, 0.7, 1.959963984540054
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert statistics.share_interval(28, 40) == pytest.approx((centre - half, centre + half))


def test_bootstrap_against_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    low, high = statistics.bootstrap_interval(values, statistics.mean)
    half = 1.96 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)
    assert (low, high) == statistics.bootstrap_interval(values, statistics.mean)


def test_medians_and_their_intervals_stand_infinite_energies() -> None:
    values = [1.0, 2.0, 3.0, math.inf, math.inf]
    assert statistics.median(values) == 3.0
    low, high = statistics.bootstrap_interval(values, statistics.median)
    assert low in (1.0, 2.0)
    assert high == math.inf


def test_vendi_score_against_exact_answers() -> None:
    # Two groups of like molecules, of p and 1 - p: exp of the entropy of (p, 1 - p).
    groups = np.array([0, 0, 0, 1])
    block = (groups[:, None] == groups[None]).astype(float)
    exact = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert statistics.vendi_score(block) == pytest.approx(exact)
    # Of two molecules with similarity s the eigenvalues are (1 + s) / 2 and (1 - s) / 2.
    s = 0.3
    exact = math.exp(-sum(x * math.log(x) for x in ((1 + s) / 2, (1 - s) / 2)))
    assert statistics.vendi_score(np.array([[1, s], [s, 1]])) == pytest.approx(exact)


def test_mean_distance_and_its_interval() -> None:
    k = statistics.tanimoto_similarities([from_smiles(s) for s in ("CCO", "CCO", "c1ccccc1")])
    assert k[0, 1] == 1.0
    assert statistics.mean_distance(k) == pytest.approx((0 + 2 * (1 - k[0, 2])) / 3)
    alike = np.full((5, 5), 0.4)
    np.fill_diagonal(alike, 1.0)
    # Whatever is drawn, every two different molecules are 0.6 apart; copies do not count.
    assert statistics.mean_distance_interval(alike) == pytest.approx((0.6, 0.6))
    assert statistics.mean_distance_interval(alike[:2, :2]) == pytest.approx((0.6, 0.6))
    low, high = statistics.mean_distance_interval(k)
    assert low < statistics.mean_distance(k) < high


# --- geometry ----------------------------------------------------------------------------------


def test_lengths_and_angles_of_a_known_geometry() -> None:
    difluoride = Chem.AddHs(from_smiles("FOF"))
    conformer = Chem.Conformer(3)
    angle = math.radians(103)
    conformer.SetPositions(
        np.array([[1.4, 0, 0], [0, 0, 0], [1.4 * math.cos(angle), 1.4 * math.sin(angle), 0]])
    )
    difluoride.AddConformer(conformer)
    lengths, angles = measure([difluoride])
    assert lengths["F1-O2"] == pytest.approx([1.4, 1.4])
    assert angles["F-O2-F"] == pytest.approx([103.0])


def test_comparison_of_distributions() -> None:
    here = {"C4-C4": np.full(10, 1.50), "rare": np.full(9, 1.0)}
    reference = {"C4-C4": np.full(20, 1.53), "rare": np.full(50, 1.0)}
    (only,) = compare(here, reference)
    assert (only.kind, only.n, only.n_reference) == ("C4-C4", 10, 20)
    assert only.distance == pytest.approx(0.03)


# --- a set -------------------------------------------------------------------------------------


def scored(smiles: str | None, *, valid: bool = True, energy: float = 1.0) -> MoleculeScore:
    if smiles is None:
        return MoleculeScore("f.sdf", "bad", 7, (Fault("no molecule", "cannot be read"),))
    chemistry = study(record_of(conformer(smiles)))
    return MoleculeScore(
        "f.sdf",
        smiles,
        1,
        chemistry=chemistry,
        posebusters=() if valid else ("bond_lengths",),
        relaxation=Relaxation(energy, 0.1, True, valid),
        n_heavy=chemistry.n_heavy,
    )


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference("here", (conformer("CCO"), conformer("CCN")))


@pytest.fixture(scope="module")
def card(reference: Reference) -> Scorecard:
    scores = [
        scored("CCO"),
        scored("OCC", energy=3.0),
        scored("CCF", energy=9.0),
        scored("CCC", valid=False),
        scored(None),
    ]
    return summarise(scores, reference)


def test_every_attempt_is_in_every_denominator(card: Scorecard) -> None:
    assert card.n_attempts == 5
    assert card["valid"].value == pytest.approx(3 / 5)
    assert card["posebusters"].value == pytest.approx(3 / 5)
    assert card["readable"].value == pytest.approx(4 / 5)
    assert card["relaxation_energy"].value == 3.0  # of 1, 1, 3, 9 and infinity
    assert card["all_known"].n == 5
    assert sum(row.n_attempts for row in card.by_size) == 5


def test_uniqueness_and_novelty(card: Scorecard) -> None:
    assert (card["unique"].value, card["unique"].n) == (pytest.approx(2 / 3), 3)
    assert (card["novel"].value, card["novel"].n) == (pytest.approx(1 / 2), 2)  # CCO is known
    assert card["valid_unique_novel"].value == pytest.approx(1 / 5)


def test_coverage_counts_atoms_of_the_reference(card: Scorecard) -> None:
    # Of the six heavy atoms of CCO and CCN, ethanol has three; CH3-CH2 is the same in both.
    assert card["coverage"].value == pytest.approx(4 / 6)


def test_faults_are_counted_with_an_example(card: Scorecard) -> None:
    found = {fault.name: (fault.n_attempts, fault.example) for fault in card.faults}
    assert found["no molecule"] == (1, "cannot be read")
    assert found["PoseBusters: bond_lengths"] == (1, "")
    assert found["GFN2-xTB: bonds change"] == (1, "")


def test_rows_by_size(card: Scorecard) -> None:
    assert [row.heavy_atoms for row in card.by_size] == ["3", "unknown"]
    assert card.by_size[0].valid == pytest.approx(3 / 4)
    assert card.by_size[1].valid == 0
    assert card.by_size[1].relaxation_energy == math.inf


def test_a_scorecard_of_failures_only(reference: Reference) -> None:
    card = summarise([scored(None), scored(None)], reference)
    assert card["valid"].value == 0
    assert card["relaxation_energy"].value == math.inf
    assert math.isnan(card["unique"].value)
    values = json.loads(json.dumps(to_json(card), allow_nan=False))
    assert values["figures"]["relaxation_energy"]["value"] is None
    assert "| GFN2 relaxation, kcal/mol | none" in to_markdown(card)


def test_figures_survive_json(card: Scorecard, reference: Reference) -> None:
    for one in (card, summarise([scored(None)], reference)):
        values = to_json(one)["figures"]
        for figure in one.figures:
            assert show(figure_from_json(values[figure.name])) == show(figure)


# --- judges ------------------------------------------------------------------------------------


def test_a_judge_that_hangs_or_crashes_costs_one_answer() -> None:
    tasks = [
        (0, "hangs", time.sleep, 600),
        (1, "crashes", os._exit, 3),
        (2, "complains", float, "no\nnumber"),
        (3, "answers", str, 7),
    ]
    start = time.perf_counter()
    with judges._pool(2) as pool:
        answers = [(answer, error) for _, _, answer, error in judges._ask(pool, tasks, 3.0)]
    assert (
        time.perf_counter() - start < 100
    )  # a few seconds; far from the 600 of the one that hangs
    assert answers == [
        (None, Fault("hangs: stopped", "after 3 s")),
        (None, Fault("crashes: crashed", "exit code 3")),
        (None, Fault("complains: failed", "could not convert string to float: 'no\\nnumber'")),
        ("7", None),
    ]


def test_a_molecule_that_takes_too_long_is_a_failure_with_its_reason() -> None:
    (score,) = judge([Entry("f.sdf", record_of(ETHANOL))], timeout=1e-3)
    assert not score.valid
    assert [str(fault) for fault in score.faults] == ["RDKit: stopped: after 0.001 s"]


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "find_spec", lambda name: None if name == "pebble" else name)
    with pytest.raises(MissingDependencyError, match=r"needs pebble.*simgen-toolkit\[eval\]"):
        judge([])


def test_gfn2_tells_a_molecule_from_a_wreck() -> None:
    good = relax_gfn2(ETHANOL)
    assert good.graph_kept
    assert 0 <= good.energy < 10
    wreck = relax_gfn2(moved(ETHANOL, {2: [0, 0, 3.0]}))
    assert not (wreck.graph_kept and wreck.energy < 50)
    on_top = Chem.Mol(ETHANOL)
    on_top.GetConformer().SetPositions(np.zeros((9, 3)))
    assert relax_gfn2(on_top) == Relaxation()


# --- reading -----------------------------------------------------------------------------------


def test_missing_attempts_count_as_failures(tmp_path: Path) -> None:
    io.write_sdf(tmp_path / "m.sdf", [ETHANOL])
    entries = read_entries([tmp_path / "m.sdf"], 3)
    assert [entry.record.error is None for entry in entries] == [True, False, False]
    with pytest.raises(InputError, match="got --attempts 1"):
        read_entries([tmp_path / "m.sdf", tmp_path / "m.sdf"], 1)


def test_every_attempt_of_a_run_counts(tmp_path: Path) -> None:
    attempt = {
        "index": 1,
        "report": {"name": "simgen-00001", "status": "disconnected"},
        "atomic_numbers": [6, 6],
        "positions": [[0, 0, 0], [9, 0, 0]],
    }
    lines = [{"config": {"n_molecules": 3}}, {"timings": {}, "attempts": [attempt]}]
    (tmp_path / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    entries = read_entries([tmp_path])
    assert [entry.record.error for entry in entries] == [
        "interrupted: the run is not finished",
        "disconnected",
        "interrupted: the run is not finished",
    ]
    assert entries[1].n_heavy == 2
    (tmp_path / "molecules.sdf").touch()
    assert has_more_attempts(tmp_path / "molecules.sdf")
    assert not has_more_attempts(tmp_path / "attempts.jsonl")


def test_what_is_no_set_of_molecules_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.sdf").touch()
    with pytest.raises(LoadError, match="is empty"):
        read_entries([tmp_path / "empty.sdf"])
    with pytest.raises(LoadError, match=r"folder with attempts\.jsonl"):
        read_entries([tmp_path])


# --- the command -------------------------------------------------------------------------------


def planted(mol: Chem.Mol, name: str) -> str:
    mol = Chem.Mol(mol)
    mol.SetProp("_Name", name)
    return Chem.MolToMolBlock(mol, kekulize=True) + "$$$$\n"


def radical() -> Chem.Mol:
    mol = Chem.RWMol(ETHANOL)
    mol.RemoveAtom(3)
    carbon = mol.GetAtomWithIdx(0)
    carbon.SetNoImplicit(True)
    carbon.SetNumRadicalElectrons(1)
    Chem.SanitizeMol(mol)
    return mol.GetMol()


def twisted() -> Chem.Mol:
    mol = conformer("CC=CC")
    rdMolTransforms.SetDihedralDeg(mol.GetConformer(), 0, 1, 2, 3, 90.0)
    return mol


def folded() -> Chem.Mol:
    """Return pentane with hydrogens of its two ends 0.9 angstrom apart."""
    mol = conformer("CCCCC")
    x = mol.GetConformer().GetPositions()
    ends = [a.GetIdx() for a in mol.GetAtomWithIdx(4).GetNeighbors()]
    hydrogen = next(i for i in ends if mol.GetAtomWithIdx(i).GetAtomicNum() == 1)
    other = next(a.GetIdx() for a in mol.GetAtomWithIdx(0).GetNeighbors() if a.GetAtomicNum() == 1)
    return moved(mol, {hydrogen: list(x[other] + [0.9, 0.0, 0.0] - x[hydrogen])})


@pytest.fixture(scope="module")
def corrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    folder = tmp_path_factory.mktemp("corrupted")
    two = Chem.CombineMols(ETHANOL, moved(conformer("C"), {k: [9.0, 0, 0] for k in range(5)}))
    blocks = [
        planted(ETHANOL, "good"),
        planted(moved(ETHANOL, {2: [2.0, 2.0, 2.0], 8: [2.0, 2.0, 2.0]}), "broken"),
        planted(folded(), "clash"),
        planted(radical(), "radical"),
        planted(ETHANOL, "valence").replace("  1  2  1  0", "  1  2  3  0"),
        planted(two, "fragments"),
        planted(twisted(), "twisted"),
        "unreadable\n\n\nthis is no molecule\n$$$$\n",
    ]
    (folder / "set.sdf").write_text("".join(blocks))
    frame = Chem.MolToXYZBlock(ETHANOL)
    (folder / "set.xyz").write_text(frame + "\n".join(frame.splitlines()[:5]) + "\n")
    (folder / "reference.smi").write_text("CCO\nCCN\nCCCC\n")
    command = (
        f"evaluate {folder}/set.sdf {folder}/set.xyz --out {folder}/out "
        f"--reference {folder}/reference.smi --attempts 11 --workers 2"
    )
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, result.output
    assert "27 % (" in result.stdout  # three valid attempts of eleven
    with (folder / "out" / "molecules.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    names = {"scorecard.json", "scorecard.md", "molecules.csv", *(f"{p}.png" for p in PLOTS)}
    assert {path.name for path in (folder / "out").iterdir()} == names
    assert json.loads((folder / "out" / "scorecard.json").read_text())["n_attempts"] == 11
    return rows


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("broken", "bonds broken or formed: 1 bonds broken"),
        ("clash", "clash: 2 clashes"),
        ("radical", "radical: 1 unpaired electrons"),
        ("valence", "no molecule: Explicit valence for atom # 0 C, 6"),
        ("fragments", "several fragments: 2 fragments"),
        ("twisted", "PoseBusters: double_bond_flatness"),
        ("unreadable", "no molecule: not a V2000 or V3000 molecule block"),
        ("set-2", "no molecule: expected 9 lines of atoms, got 3"),
        ("attempt-11", "no molecule: no entry in the file"),
    ],
)
def test_planted_faults_are_found_and_named(
    corrupted: dict[str, dict[str, str]], name: str, fault: str
) -> None:
    assert fault in corrupted[name]["faults"]
    assert "PoseBusters: double_bond_flatness" not in corrupted["good"]["faults"]


def test_the_good_one_among_them_has_no_fault(corrupted: dict[str, dict[str, str]]) -> None:
    good = corrupted["good"]
    assert good["faults"] == ""
    assert (good["valid"], good["posebusters"], good["smiles"]) == ("True", "True", "CCO")
    # A twisted double bond untwists and keeps its bonds: that is what the energy is there for.
    assert [n for n, row in corrupted.items() if row["valid"] == "True"] == [
        "good",
        "twisted",
        "set-1",
    ]
    assert corrupted["set-1"]["smiles"] == "CCO"  # its bonds come from its coordinates
    assert float(good["gfn2_relaxation_energy_kcal_mol"]) < 10
    assert float(corrupted["twisted"]["gfn2_relaxation_energy_kcal_mol"]) > 30


def test_an_unreadable_entry_has_its_line(corrupted: dict[str, dict[str, str]]) -> None:
    rows = [row for row in corrupted.values() if row["source"].endswith(".sdf")]
    lines = [int(row["line"]) for row in rows]
    assert lines[0] == 1
    assert lines == sorted(lines)
    assert int(corrupted["unreadable"]["line"]) == lines[-1]
    assert int(corrupted["set-2"]["line"]) == 12  # after a frame of nine atoms


def test_a_posebusters_test_without_an_answer_is_not_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import pandas

    class StandIn:
        def bust(self, mols: list[Chem.Mol]) -> pandas.DataFrame:
            return pandas.DataFrame({"a": [np.True_], "b": [math.nan], "c": [False]}, dtype=object)

    monkeypatch.setattr(validation, "_posebusters", StandIn)
    assert check_posebusters(ETHANOL) == {"a": True, "b": False, "c": False}


def test_posebusters_energy_and_radicals_are_asked() -> None:
    assert {"internal_energy", "no_radicals"} <= set(check_posebusters(ETHANOL))
    assert "no_radicals" in failed_posebusters(radical())


def test_errors_are_one_line_with_an_exit_code(tmp_path: Path) -> None:
    (tmp_path / "empty.sdf").touch()
    result = CliRunner().invoke(
        app, ["evaluate", f"{tmp_path}/empty.sdf", "--out", f"{tmp_path}/o"]
    )
    assert isinstance(result.exception, LoadError)
    assert result.exception.exit_code == 3
