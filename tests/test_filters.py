"""Filters: what is found, and what becomes of molecules in which something is."""

import csv
from pathlib import Path

import pytest
import torch
from rdkit import Chem

from simgen.errors import ConfigError
from simgen.filters import CATALOGS, Filters
from simgen.finishing.status import Status
from simgen.generation import GenerationResult, Generator
from simgen.generation import maker as maker_module
from simgen.models import ForceField, NetworkConfig
from simgen.molecules import MoleculeBatch
from simgen.reference import ReferenceSet, load_reference
from simgen.sampling import Samples

QUINONE = "O=C1C=CC(=O)C=C1"


def test_patterns_and_collections_are_found() -> None:
    mol = Chem.MolFromSmiles(QUINONE)
    everything = Filters(("C=O", "[#7]"), CATALOGS)
    found = everything.alerts(mol)
    assert found[0] == "C=O"
    assert "[#7]" not in found
    assert any(alert.startswith("pains: quinone") for alert in found)
    assert {alert.split(":")[0] for alert in found[1:]} >= {"pains", "brenk"}
    assert everything.alerts(Chem.MolFromSmiles("CCC")) == []


def test_no_filters_find_nothing() -> None:
    assert Filters().is_empty
    assert not Filters(catalogs=("nih",)).is_empty
    assert Filters().alerts(Chem.MolFromSmiles(QUINONE)) == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Filters(("C((",)), r"a SMARTS pattern to forbid, got 'C\(\('"),
        (lambda: Filters(catalogs=("best",)), "a filter of pains, brenk, nih, zinc, got 'best'"),
        (lambda: Filters.from_dict({"forbid": ()}), "cannot make filters"),
    ],
)
def test_bad_filters_are_one_line(make, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_descriptions_say_it_all() -> None:
    filters = Filters(("[#8]-[#8]",), ("pains",), reject=False)
    assert Filters.from_dict(filters.to_dict()).to_dict() == filters.to_dict()


def test_the_atoms_of_what_is_found() -> None:
    mol = Chem.MolFromSmiles("COOCCC(=O)OC")
    assert Filters(("[#8]-[#8]",)).atoms(mol) == {1, 2}
    assert Filters(("[#8]-[#8]", "C(=O)O")).atoms(mol) == {1, 2, 5, 6, 7}
    brenk = Filters(catalogs=("brenk",))
    assert brenk.alerts(mol) and {1, 2} <= brenk.atoms(mol) < set(range(mol.GetNumAtoms()))
    assert Filters(("S",), ("pains",)).atoms(mol) == set()


@pytest.mark.parametrize("reject", [True, False])
def test_rejected_molecules_are_kept_and_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reject: bool
) -> None:
    """Methanol and dimethyl ether, of which the second has what is forbidden."""
    skeletons = [
        ([6, 8], [[0.0, 0.0, 0.0], [1.42, 0.0, 0.0]]),
        ([6, 8, 6], [[0.0, 0.0, 0.0], [1.41, 0.0, 0.0], [1.88, 1.33, 0.0]]),
    ]

    def sample(score, batch, sigmas, *, noise, **options) -> Samples:
        chosen = [skeletons[k] for k in noise.sample_idx.tolist()]
        return Samples(MoleculeBatch.from_arrays(chosen), torch.ones(len(chosen), dtype=torch.bool))

    monkeypatch.setattr(maker_module, "evolve", sample)
    config = NetworkConfig(elements=(1, 6, 7, 8, 9, 16, 17), n_channels=4, l_max=1)
    reference = ReferenceSet("some", load_reference("organic").molecules[:4])
    result: GenerationResult = Generator(ForceField(config, scale=0.0)).generate(
        2, 2, reference=reference, seed=0, filters=Filters(("COC",), reject=reject),
        n_steps=4, n_particles=1, n_refinements=0, n_repairs=0, out=tmp_path,
    )  # fmt: skip
    first, second = result.reports
    assert (first.status, first.alerts) == (Status.OK, "")
    assert second.alerts == "COC"
    assert result.attempts[1].mol is not None
    if reject:
        assert (second.status, second.detail) == (Status.REJECTED, "COC")
        assert result.counts == {"ok": 1, "rejected": 1}
        assert len(result.molecules) == 1
    else:
        assert second.status is Status.OK
        assert len(result.molecules) == 2
    with (tmp_path / "report.csv").open() as file:
        assert [row["alerts"] for row in csv.DictReader(file)] == ["", "COC"]
