"""Each check with a molecule that passes and one that fails."""

import sys

import numpy as np
import pytest
from chemistry import conformer
from rdkit import Chem
from rdkit.Chem import AllChem

from simgen import validation, xtb
from simgen.errors import MissingDependencyError
from simgen.validation import (
    Report,
    Status,
    check_charge,
    check_closed_shell,
    check_connected,
    check_contacts,
    check_extent,
    check_finite,
    check_gfn2,
    check_graph_kept,
    check_hydrogens,
    check_posebusters,
    check_sanitised,
    check_size,
    mark_duplicates,
    molecule_key,
    sa_score,
    validate,
)


def moved(mol: Chem.Mol, atom: int, shift: list[float]) -> Chem.Mol:
    copy = Chem.Mol(mol)
    x = copy.GetConformer().GetPositions()
    x[atom] += shift
    copy.GetConformer().SetPositions(x)
    return copy


ETHANOL = conformer("CCO")
GRAPH_CASES = [
    (check_size, "CC", "C", Status.TOO_FEW_ATOMS),
    (check_connected, "CCO", "CC.O", Status.DISCONNECTED),
    (check_charge, "C[N+](=O)[O-]", "C[NH3+]", Status.CHARGED),
    (check_closed_shell, "CCO", "C[CH2]", Status.RADICAL),
    (check_closed_shell, "CC", "C[CH]", Status.RADICAL),
]


def test_a_thiophene_that_states_its_hydrogens_is_no_radical() -> None:
    mol = Chem.MolFromSmiles("c1cc[s]c1")
    for atom in mol.GetAtoms():
        atom.SetNumExplicitHs(atom.GetTotalNumHs())
        atom.SetNoImplicit(True)
    assert check_closed_shell(mol).passed
    mol.GetAtomWithIdx(0).SetNumExplicitHs(0)
    assert not check_closed_shell(mol).passed


@pytest.mark.parametrize(("check", "good", "bad", "status"), GRAPH_CASES)
def test_checks_of_the_graph(check, good: str, bad: str, status: Status) -> None:
    passing, failing = (check(Chem.MolFromSmiles(s)) for s in (good, bad))
    assert passing.passed
    assert passing.status is Status.OK
    assert not failing.passed
    assert failing.status is status
    assert failing.detail


def test_sanitisation() -> None:
    assert check_sanitised(ETHANOL).passed
    bad = check_sanitised(Chem.MolFromSmiles("CC(C)(C)(C)C", sanitize=False))
    assert bad.status is Status.UNSANITISABLE
    assert "valence" in bad.detail


def test_finite() -> None:
    assert check_finite(ETHANOL).passed
    bad = check_finite(moved(ETHANOL, 1, [np.nan, 0, 0]))
    assert (bad.status, bad.value) == (Status.NONFINITE, 1)


def test_extent() -> None:
    assert check_extent(ETHANOL).passed
    assert check_extent(conformer("CCCCCCCCCC")).passed
    assert check_extent(moved(ETHANOL, 1, [50.0, 0, 0])).status is Status.EXPLODED


def test_hydrogens() -> None:
    assert check_hydrogens(ETHANOL).passed
    bad = check_hydrogens(Chem.RemoveHs(ETHANOL))
    assert (bad.status, bad.value) == (Status.NO_HYDROGENS, 6)


def test_contacts() -> None:
    mol = conformer("CCCCCC")
    good = check_contacts(mol)
    assert good.passed
    assert good.value is not None
    assert good.value > 0.7
    x = mol.GetConformer().GetPositions()
    bad = check_contacts(moved(mol, 5, (x[0] - x[5] + [0.8, 0, 0]).tolist()))
    assert bad.status is Status.CLASH
    assert bad.value < 0.6
    assert check_contacts(conformer("CC")).value is None


@pytest.mark.parametrize("smiles", ["CCO", "C1CC1", "C12CC1C2", "CS(=O)(=O)c1ccc(Br)cc1", "BrCP"])
def test_relaxed_geometries_show_their_graph(smiles: str) -> None:
    assert check_graph_kept(conformer(smiles)).passed


def test_graph_changes() -> None:
    x = ETHANOL.GetConformer().GetPositions()
    broken = check_graph_kept(moved(ETHANOL, 2, (0.7 * (x[2] - x[1])).tolist()))
    assert broken.status is Status.GRAPH_CHANGED
    assert "broken" in broken.detail
    # a hydrogen of the methyl group moves to the oxygen: one bond broken, one formed
    shifted = check_graph_kept(moved(ETHANOL, 3, (x[2] - x[3] + 0.9 * (x[2] - x[1])).tolist()))
    assert shifted.status is Status.GRAPH_CHANGED
    assert check_graph_kept(Chem.MolFromMolBlock(IRON)).status is Status.UNKNOWN_ELEMENT


IRON = """
     test          3D

  2  1  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 Fe  0  0  0  0  0  0  0  0  0  0  0  0
    1.5000    0.0000    0.0000 C   0  0  0  0  0  0  0  0  0  0  0  0
  1  2  1  0
M  END
"""


def test_the_report_of_a_good_molecule() -> None:
    report = validate(
        conformer("C[C@H](N)O"), name="a", relaxation_energy=3.25, n_dropped=1, similarity=-2.0
    )
    assert report.status is Status.OK
    assert report.smiles == "C[C@H](N)O"
    assert report.formula == "C2H7NO"
    assert (report.n_heavy, report.n_dropped) == (4, 1)
    assert report.connected
    assert report.closed_shell
    assert report.charge == 0
    assert report.sanitised
    assert report.graph_kept
    assert 1 <= report.sa_score <= 10
    assert 0 < report.qed < 1
    assert report.known_in_reference is None
    row = report.to_row()
    assert tuple(row) == Report.columns()
    assert row["status"] == "ok"
    assert row["relaxation_energy"] == "3.25"
    assert row["duplicate_of"] == ""


@pytest.mark.parametrize(
    ("mol", "status"),
    [
        (Chem.MolFromSmiles("CCO"), Status.NO_HYDROGENS),
        (Chem.RemoveHs(ETHANOL), Status.NO_HYDROGENS),
        (Chem.MolFromSmiles("CC(C)(C)(C)C", sanitize=False), Status.UNSANITISABLE),
        (Chem.Mol(), Status.TOO_FEW_ATOMS),
        (Chem.AddHs(Chem.MolFromSmiles("CC.O")), Status.DISCONNECTED),
        (Chem.AddHs(Chem.MolFromSmiles("C[CH2]")), Status.RADICAL),
        (Chem.AddHs(Chem.MolFromSmiles("CC[NH3+]")), Status.CHARGED),
        (moved(ETHANOL, 1, [np.inf, 0, 0]), Status.NONFINITE),
        (moved(ETHANOL, 1, [99.0, 0, 0]), Status.EXPLODED),
        (moved(ETHANOL, 3, [3.0, 0, 0]), Status.GRAPH_CHANGED),
    ],
)
def test_the_report_of_a_bad_molecule_has_its_reason(mol: Chem.Mol, status: Status) -> None:
    report = validate(mol, name="bad")
    assert report.status is status
    assert report.detail
    assert report.to_row()["status"] == str(status)


def test_keys_know_graphs_only() -> None:
    assert molecule_key("C/C=C/C") == molecule_key(conformer("C/C=C\\C")) == "CC=CC"
    assert molecule_key("c1ccccc1O") == molecule_key(conformer("Oc1ccccc1"))
    assert molecule_key("CCO") != molecule_key("COC")


def test_known_molecules() -> None:
    known = {molecule_key("OCC")}
    assert validate(ETHANOL, known=known).known_in_reference is True
    assert validate(conformer("COC"), known=known).known_in_reference is False


def test_duplicates_point_to_the_first_valid_one() -> None:
    reports = [
        Report("0", Status.CLASH, smiles="CCO"),
        Report("1", Status.OK, smiles="C[C@H](N)O"),
        Report("2", Status.OK, smiles="CCO"),
        Report("3", Status.OK, smiles="C[C@@H](N)O"),
        Report("4", Status.NONFINITE),
        Report("5", Status.OK, smiles="OCC"),
    ]
    found = [report.duplicate_of for report in mark_duplicates(reports)]
    assert found == [None, None, None, "1", None, "2"]


def test_the_sa_score_leaves_the_import_path_alone() -> None:
    before = list(sys.path)
    easy, hard = (sa_score(Chem.MolFromSmiles(s)) for s in ("CCO", "C1CC2C3CC4C1N4C23O"))
    assert 1 <= easy < hard <= 10
    assert sys.path == before
    assert "sascorer" not in sys.modules


def test_posebusters() -> None:
    pytest.importorskip("posebusters")
    good = check_posebusters(conformer("Oc1ccccc1"))
    assert all(good.values())
    assert "bond_lengths" in good
    bad = check_posebusters(moved(ETHANOL, 0, [0.9, 0.9, 0.0]))
    assert not all(bad.values())


def test_gfn2() -> None:
    pytest.importorskip("tblite")
    good = check_gfn2(ETHANOL)
    assert good.converged
    assert good.graph_kept
    assert 0 <= good.relaxation_energy < 5
    assert good.rmsd < 0.1
    x = ETHANOL.GetConformer().GetPositions()
    stretched = check_gfn2(moved(ETHANOL, 2, (0.25 * (x[2] - x[1])).tolist()))
    assert stretched.relaxation_energy > 5
    again = check_gfn2(good.mol)
    assert again.relaxation_energy == pytest.approx(0.0, abs=0.1)
    torn = check_gfn2(moved(ETHANOL, 2, (3.0 * (x[2] - x[1])).tolist()), max_steps=40)
    assert not torn.graph_kept


def test_gfn2_of_nonsense_is_a_failed_check() -> None:
    pytest.importorskip("tblite")
    with pytest.raises(xtb.XtbError):
        xtb.GFN2(np.array([6, 6]))(np.zeros((2, 3)))
    ruined = Chem.Mol(ETHANOL)
    ruined.GetConformer().SetPositions(np.zeros((ruined.GetNumAtoms(), 3)))
    check = check_gfn2(ruined)
    assert not check.graph_kept
    assert np.isnan(check.relaxation_energy)


@pytest.mark.parametrize("package", ["posebusters", "tblite"])
def test_a_missing_optional_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    validation._posebusters.cache_clear()
    for name in (package, f"{package}.interface"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=f"{package}.*pip install"):
        (check_posebusters if package == "posebusters" else check_gfn2)(ETHANOL)


def test_smiles_have_no_hydrogen_atoms() -> None:
    imine = Chem.AddHs(Chem.MolFromSmiles("CCC=N"))
    assert AllChem.EmbedMolecule(imine, randomSeed=1) == 0
    assert "[H]" not in str(validation.validate(imine).smiles)
