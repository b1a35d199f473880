"""Benchmarks of linkers, scaffolds and analogues: how molecules are cut, what counts, commands."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from chemistry import conformer
from command_line import Command
from rdkit import Chem

from simgen.benchmarks import constraints
from simgen.benchmarks.constraints import (
    SERIES_LENGTH,
    Share,
    core_pattern,
    cut,
    is_valid,
    keeps,
    linker_cuts,
    series,
    similarities_to_nearest,
    substituent_cuts,
    suite,
)
from simgen.errors import InputError
from simgen.evaluation.statistics import share_interval, tanimoto_similarities
from simgen.finishing.status import Status
from simgen.generation import Attempt, Generator
from simgen.models import ForceField, NetworkConfig, save_model
from simgen.reference import ReferenceSet, load_reference
from simgen.scaffold import SCAFFOLD_INDEX, Scaffold, common_core
from simgen.validation import Report, molecule_key


@pytest.fixture(scope="module")
def organic() -> ReferenceSet:
    return load_reference("organic")


# --- cutting -----------------------------------------------------------------------------------


def test_linkers_are_cut_between_rings() -> None:
    mol = conformer("c1ccccc1COc1ccccn1")
    cuts = linker_cuts(mol)
    parts = {
        tuple(sorted(Chem.MolToSmiles(Chem.RemoveHs(cut(mol, way))).split("."))) for way in cuts
    }
    assert parts == {
        ("*c1ccccc1", "*c1ccccn1"),
        ("*Cc1ccccc1", "*c1ccccn1"),
        ("*Oc1ccccn1", "*c1ccccc1"),
    }
    assert len(cuts) == len(parts)


@pytest.mark.parametrize("smiles", ["c1ccccc1-c1ccccc1", "CCCCCCCC", "c1ccccc1Sc1ccccc1"])
def test_molecules_without_a_linker(smiles: str) -> None:
    """No linker, no rings, and a linker of an element that is not placed."""
    assert linker_cuts(conformer(smiles)) == []


def test_substituents_are_cut_off_rings() -> None:
    mol = conformer("CC(=O)Nc1ccc(O)cc1")
    left = {Chem.MolToSmiles(Chem.RemoveHs(cut(mol, way))) for way in substituent_cuts(mol)}
    assert left == {"*c1ccc(O)cc1", "*c1ccc(NC(C)=O)cc1"}


def test_what_is_left_stays_where_it_is() -> None:
    mol = conformer("c1ccccc1COc1ccccn1")
    left = cut(mol, ((5, 6), (8, 7)))
    before = {x.tobytes() for x in mol.GetConformer().GetPositions()}
    assert {x.tobytes() for x in left.GetConformer().GetPositions()} <= before
    places = [a for a in left.GetAtoms() if a.GetAtomicNum() == 0]
    assert len(places) == 2


def test_suites_are_held_out_and_always_the_same(organic: ReferenceSet) -> None:
    tasks, rest = suite(organic, 15, linker_cuts)
    assert len({task.key for task in tasks}) == 15
    assert all(task.scaffold.n_fragments == 2 for task in tasks)
    assert all(1 <= task.n_removed <= 6 for task in tasks)
    assert not {task.key for task in tasks} & {molecule_key(m.mol) for m in rest.molecules}
    again, _ = suite(organic, 5, linker_cuts)
    assert [task.key for task in again] == [task.key for task in tasks[:5]]
    for task in again:
        low, high = task.scaffold.linker_sizes()
        assert 1 <= low < high
    with pytest.raises(InputError, match="expected at most"):
        suite(ReferenceSet("few", organic.molecules[:3]), 10, linker_cuts)


@pytest.mark.slow
@pytest.mark.parametrize("name", constraints.SERIES)
def test_series_have_a_core(name: str) -> None:
    mols = series(name)
    assert len(mols) == SERIES_LENGTH >= 10
    core = common_core(mols)
    assert len(core.heavy) >= 5
    assert all(mol.HasSubstructMatch(core_pattern(core)) for mol in mols)


# --- counting ----------------------------------------------------------------------------------


def test_shares_have_wilson_intervals() -> None:
    share = Share.of([True, True, False])
    assert (share.n_passed, share.n) == (2, 3)
    assert (share.low, share.high) == share_interval(2, 3)
    assert str(share) == "67 % (21 to 94)"
    assert str(Share.of([])) == "-"


def grown() -> tuple[Scaffold, Chem.Mol]:
    mol = conformer("Cc1ccccc1")
    scaffold = Scaffold.from_mol(cut(mol, ((1, 0),)))
    # Heavy atoms of the ring are 1 to 6 in the whole, 0 to 5 in the scaffold.
    for i in range(6):
        mol.GetAtomWithIdx(i + 1).SetIntProp(SCAFFOLD_INDEX, i)
    return scaffold, mol


def test_scaffolds_are_kept_to_the_last_bit() -> None:
    scaffold, mol = grown()
    assert keeps(scaffold, mol)
    x = mol.GetConformer().GetPositions()
    x[3, 0] = np.nextafter(x[3, 0], 10.0)
    mol.GetConformer().SetPositions(x)
    assert not keeps(scaffold, mol)


def test_scaffolds_keep_elements_bonds_and_all_atoms() -> None:
    scaffold, mol = grown()
    other = Chem.RWMol(mol)
    other.GetAtomWithIdx(2).SetAtomicNum(7)
    assert not keeps(scaffold, other)
    other = Chem.RWMol(mol)
    other.RemoveBond(1, 2)
    assert not keeps(scaffold, other)
    mol.GetAtomWithIdx(4).ClearProp(SCAFFOLD_INDEX)
    assert not keeps(scaffold, mol)


def test_what_counts_as_valid() -> None:
    scaffold, mol = grown()
    numbers = np.zeros(0, dtype=np.int64)

    def attempt(status: Status, n_dropped: int, mol: Chem.Mol | None) -> Attempt:
        report = Report("x", status, n_dropped=n_dropped)
        return Attempt(0, report, numbers, np.zeros((0, 3)), mol)

    assert is_valid(attempt(Status.OK, 0, mol), scaffold)
    assert not is_valid(attempt(Status.OK, 1, mol), scaffold)
    assert not is_valid(attempt(Status.CLASH, 0, mol), scaffold)
    assert not is_valid(attempt(Status.DISCONNECTED, 0, None), scaffold)
    moved = Chem.Mol(mol)
    moved.GetConformer().SetPositions(mol.GetConformer().GetPositions() + 1e-6)
    assert not is_valid(attempt(Status.OK, 0, moved), scaffold)
    assert is_valid(attempt(Status.OK, 0, moved), None)


def test_similarities_are_to_the_nearest() -> None:
    mols = [Chem.MolFromSmiles(s) for s in ("CCO", "CCN", "c1ccccc1O", "CCCO")]
    table = tanimoto_similarities(mols)
    assert similarities_to_nearest(mols[:2], mols[2:]) == pytest.approx(table[:2, 2:].max(1))
    assert similarities_to_nearest(mols[:1], mols) == [1.0]


# --- commands ----------------------------------------------------------------------------------


@pytest.fixture
def quick(
    monkeypatch: pytest.MonkeyPatch, organic: ReferenceSet, tmp_path: Path
) -> tuple[str | Path, ...]:
    """Options of a benchmark with a random force field, a small reference and few steps."""
    config = NetworkConfig(elements=(1, 6, 7, 8, 9, 16, 17, 35), n_channels=2, l_max=1)
    save_model(ForceField(config, scale=0.0), tmp_path / "random.safetensors", {})
    generate = Generator.generate
    settings = {"n_steps": 4, "n_particles": 1, "n_refinements": 0, "n_repairs": 0}
    monkeypatch.setattr(
        Generator,
        "generate",
        lambda self, *given, **named: generate(self, *given, **named | settings),
    )
    small = [conformer(s) for s in ("Cc1ccccc1O", "CCc1ccccc1O", "Nc1ccccc1O")]
    monkeypatch.setattr(constraints, "series", lambda name: small)
    monkeypatch.setattr(constraints, "SERIES", {"phenols": ("", "")})
    some = ReferenceSet("some", organic.molecules[:60])
    monkeypatch.setattr(constraints, "load_reference", lambda name: some)
    model = ("--model", tmp_path / "random.safetensors", "--device", "cpu", "--workers", 1)
    return (*model, "--attempts", 1, "--out", tmp_path / "out")


def test_linkers(simgen: Command, quick: tuple, tmp_path: Path) -> None:
    for _ in range(2):  # the second time, what is finished is not done again
        outcome = simgen("benchmark", "linkers", *quick, "--pairs", 2)
        assert outcome.code == 0
    given, auto = json.loads((tmp_path / "out" / "linkers.json").read_text())
    for scores, size in ((given, "given"), (auto, "auto")):
        assert scores["size"] == size
        assert scores["valid"]["n"] == scores["solved"]["n"] == 2
        assert sum(scores["statuses"].values()) == 2
        assert scores["valid"]["n_passed"] <= scores["statuses"].get("ok", 0)
    assert "| given | 2 | 2 |" in outcome.out
    with (tmp_path / "out" / "linkers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["size"] for row in rows] == ["given"] * 2 + ["auto"] * 2
    assert all("." in row["fragments"] for row in rows)


def test_scaffolds(simgen: Command, quick: tuple, tmp_path: Path) -> None:
    outcome = simgen("benchmark", "scaffolds", *quick, "--count", 2)
    assert outcome.code == 0
    scores = json.loads((tmp_path / "out" / "scaffolds.json").read_text())
    assert scores["valid"]["n"] == 2
    assert scores["kept"]["n_passed"] == scores["kept"]["n"]
    assert "| 2 | 2 |" in outcome.out


def test_analogues(simgen: Command, quick: tuple, tmp_path: Path) -> None:
    outcome = simgen("benchmark", "analogues", *quick)
    assert outcome.code == 0
    fixed, free = json.loads((tmp_path / "out" / "analogues.json").read_text())
    assert (fixed["core"], free["core"]) == ("fixed", "free")
    assert fixed["n_core_atoms"] == 7
    assert fixed["with_core"]["n_passed"] == fixed["with_core"]["n"] == fixed["valid"]["n_passed"]
    assert (fixed["similarity"] is None) == (fixed["valid"]["n_passed"] == 0)
    assert "| phenols | free |" in outcome.out
