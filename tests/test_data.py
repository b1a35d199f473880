import gzip
import json

import numpy as np
import pytest
from rdkit import Chem

from simgen import xtb
from simgen.data import build, collections, recipe
from simgen.data.build import Dataset, build_dataset
from simgen.data.recipe import KINDS, Kind, Origin, Recipe, Task
from simgen.data.references import write_references
from simgen.errors import LoadError

TINY = Recipe(n_collection=6, n_fragments=4, n_mutants=3, n_dimers=1, max_heavy_atoms=4, n_tasks=5)


@pytest.fixture(scope="module")
def molecules() -> tuple[collections.CollectionMolecule, ...]:
    return collections.load_collections(2, 30)


def test_collections_hold_the_molecules_that_are_claimed(molecules) -> None:
    assert 14_000 < len(molecules) < 15_500
    assert len({m.smiles for m in molecules}) == len(molecules)
    assert {m.source for m in molecules} >= {"NCI", "WEHI", "CDK2", "c-Met", "EGFR"}
    for molecule in molecules[:200]:
        assert collections.is_supported(Chem.MolFromSmiles(molecule.smiles))


@pytest.mark.parametrize("smiles", ["C[N+](C)(C)C", "[CH3]", "[13CH4]", "C[Si](C)(C)C", "[Na+]"])
def test_unsupported_molecules_are_recognised(smiles: str) -> None:
    assert not collections.is_supported(Chem.MolFromSmiles(smiles))
    assert collections.is_supported(Chem.MolFromSmiles("C[N+](=O)[O-]"))


def test_one_scaffold_is_always_in_one_part(molecules) -> None:
    benzenes = ["Cc1ccccc1", "OCc1ccccc1", "Clc1ccccc1Br", "c1ccccc1"]
    assert len({collections.scaffold_split(Chem.MolFromSmiles(s)) for s in benzenes}) == 1
    parts = [collections.scaffold_split(Chem.MolFromSmiles(m.smiles)) for m in molecules[:2000]]
    shares = {part: parts.count(part) / len(parts) for part in ("train", "valid", "test")}
    assert shares["train"] > 0.8
    assert 0.01 < shares["valid"] < 0.12
    assert 0.01 < shares["test"] < 0.12


def test_the_list_of_tasks_is_fixed_and_a_shorter_one_is_its_beginning() -> None:
    tasks = recipe.make_tasks(TINY)
    assert tasks == recipe.make_tasks(TINY)
    longer = recipe.make_tasks(Recipe(6, 4, 3, 1, 4, n_tasks=None))
    assert longer[: len(tasks)] == tasks
    assert {task.origin for task in longer} == set(Origin)


def test_labels_are_those_of_gfn2_and_the_same_every_time() -> None:
    task = Task(Origin.COLLECTION, "CCO", "train")
    labelled = recipe.label_task(task)
    kinds = [g.kind for g in labelled]
    assert {Kind.RELAXED, Kind.DISPLACED_TO_50, Kind.STRETCHED, Kind.RAW} <= set(kinds)
    for geometry in labelled:
        energy, forces = xtb.GFN2(geometry.numbers)(geometry.positions)
        assert geometry.energy == pytest.approx(energy, abs=1e-3)
        np.testing.assert_allclose(geometry.forces, forces, atol=2e-2)
    relaxed = labelled[kinds.index(Kind.RELAXED)]
    assert np.linalg.norm(relaxed.forces, axis=1).max() < recipe.RELAXED_FORCE
    assert relaxed.energy == min(g.energy for g in labelled)
    again = recipe.label_task(task)
    assert [g.kind for g in again] == kinds
    for a, b in zip(labelled, again, strict=True):
        np.testing.assert_allclose(a.positions, b.positions, atol=1e-6)


def test_forces_are_the_gradient_of_the_energy() -> None:
    numbers = np.array([8, 1, 1])
    x = np.array([[0.0, 0.0, 0.1], [0.8, 0.0, -0.5], [-0.75, 0.1, -0.5]])
    _, forces = xtb.GFN2(numbers)(x)
    step = np.zeros_like(x)
    step[1, 0] = 1e-3
    difference = (xtb.GFN2(numbers)(x + step)[0] - xtb.GFN2(numbers)(x - step)[0]) / 2e-3
    assert -difference == pytest.approx(forces[1, 0], abs=1e-3)


def test_a_molecule_that_cannot_be_embedded_gives_nothing(monkeypatch) -> None:
    monkeypatch.setattr(recipe, "embed", lambda smiles, knowledge=True: None)
    assert recipe.label_task(Task(Origin.MUTANT, "CCO", "train")) == []


def test_a_build_is_resumed_where_it_stopped(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(build, "SHARD_SIZE", 3)
    whole = build_dataset(tmp_path, TINY, n_workers=1)
    shards = sorted((tmp_path / "shards").glob("*.npz"))
    kept = shards[0].stat().st_mtime_ns
    shards[1].unlink()
    calls: list[tuple[int, int]] = []
    again = build_dataset(tmp_path, TINY, n_workers=1, progress=lambda *c: calls.append(c))
    assert calls == [(1, 2), (2, 2)]
    assert shards[0].stat().st_mtime_ns == kept
    np.testing.assert_allclose(again.energies, whole.energies, atol=1e-3)
    summary = json.loads((tmp_path / "dataset.json").read_text())
    assert summary["n_geometries"] == len(again) == len(Dataset.load(tmp_path / "dataset.npz"))
    assert summary["checksum"] == again.checksum()
    with pytest.raises(LoadError, match="another recipe"):
        build_dataset(tmp_path, Recipe(n_collection=1), n_workers=1)


def test_the_checksum_notices_a_change() -> None:
    numbers = np.array([8, 1, 1], dtype=np.uint8)
    fields = {
        "counts": np.array([3]),
        "numbers": numbers,
        "positions": np.eye(3),
        "forces": np.zeros((3, 3), "f4"),
        "energies": np.array([-1.0]),
        "kind": np.array([0]),
        "split": np.array([0]),
        "task": np.array([0]),
        "keys": np.array(["O"]),
        "origins": np.array(["collection"]),
    }
    original = Dataset(**fields).checksum()
    assert Dataset(**fields).checksum() == original
    assert Dataset(**(fields | {"energies": np.array([-1.001])})).checksum() != original


def test_bad_dataset_files_are_explained(tmp_path) -> None:
    with pytest.raises(LoadError, match="simgen data build"):
        Dataset.load(tmp_path / "absent.npz")
    (tmp_path / "bad.npz").write_bytes(b"no data")
    with pytest.raises(LoadError, match="is not one"):
        Dataset.load(tmp_path / "bad.npz")


def test_references_are_relaxed_molecules_of_the_training_scaffolds(tmp_path) -> None:
    tasks = [
        Task(Origin.COLLECTION, "CCO", "train"),
        Task(Origin.COLLECTION, "CO", "test"),
        Task(Origin.FRAGMENT, "CN", "train"),
    ]
    (tmp_path / "shards").mkdir()
    build._build_shard(tasks, 0, tmp_path / "shards/00000.npz")
    dataset = build._join([tmp_path / "shards/00000.npz"], tasks)
    assert (dataset.kind == KINDS.index(Kind.RELAXED)).sum() == 3
    path = tmp_path / "set.sdf.gz"
    assert write_references(dataset, path) == 1
    first = path.read_bytes()
    write_references(dataset, path)
    assert path.read_bytes() == first
    with gzip.open(path) as file:
        mol = next(iter(Chem.ForwardSDMolSupplier(file, removeHs=False)))
    assert Chem.MolToSmiles(Chem.RemoveHs(mol)) == mol.GetProp("smiles") == "CCO"
