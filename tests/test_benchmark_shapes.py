"""Benchmark of shapes: distances and overlaps with known answers, and the command."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from scipy.spatial.distance import cdist, directed_hausdorff

from simgen import cli
from simgen.benchmarks.shapes import (
    distances_to_shape,
    heavy_positions,
    hold_out,
    largest_ring,
    measure_densities,
    shape_tanimoto,
    whole_molecules,
)
from simgen.errors import InputError
from simgen.finishing.status import Status
from simgen.generation import Attempt, GenerationConfig, GenerationResult, Generator
from simgen.io import embed
from simgen.models import ForceField, NetworkConfig, save_model
from simgen.priors.base import ATOMS_PER_CUBIC_ANGSTROM, ATOMS_PER_SQUARE_ANGSTROM
from simgen.reference import ReferenceSet, load_reference
from simgen.validation import Report


@pytest.fixture(scope="module")
def organic() -> ReferenceSet:
    return load_reference("organic")


def test_distances_against_a_table_of_all() -> None:
    rng = np.random.default_rng(0)
    atoms, points = rng.normal(size=(7, 3)), rng.normal(size=(40, 3))
    table = cdist(atoms, points)
    chamfer, hausdorff = distances_to_shape(atoms, points)
    assert chamfer == pytest.approx((table.min(1).mean() + table.min(0).mean()) / 2)
    expected = max(directed_hausdorff(atoms, points)[0], directed_hausdorff(points, atoms)[0])
    assert hausdorff == pytest.approx(expected)
    assert distances_to_shape(points, points) == (0.0, 0.0)


def test_shape_tanimoto_does_not_depend_on_where_the_molecule_is() -> None:
    mol = embed(Chem.MolFromSmiles("CC(=O)Nc1ccc(O)cc1"))
    moved = Chem.Mol(mol)
    turn = np.array([[0.0, -1.0, 0.0], [0.6, 0.0, -0.8], [0.8, 0.0, 0.6]])
    moved.GetConformer().SetPositions(mol.GetConformer().GetPositions() @ turn.T + [5.0, 1.0, 0.0])
    assert shape_tanimoto(mol, mol) == 1.0
    assert shape_tanimoto(moved, mol) > 0.95
    assert shape_tanimoto(embed(Chem.MolFromSmiles("C1CCCCC1")), mol) < 0.75


def test_largest_rings() -> None:
    for smiles, size in (("CCO", 0), ("c1ccc2ccccc2c1", 6), ("C1CCCCCCCCCCCC1", 13)):
        assert largest_ring(Chem.MolFromSmiles(smiles)) == size


def test_what_is_left_of_a_molecule_that_fell_apart_does_not_count() -> None:
    mol = embed(Chem.MolFromSmiles("CC"))
    numbers = np.array([6, 6, 1, 1, 1, 1, 1, 1])
    attempts = tuple(
        Attempt(k, Report(str(k), status, n_dropped=n), numbers, np.zeros((8, 3)), mol)
        for k, (status, n) in enumerate([(Status.OK, 0), (Status.OK, 17), (Status.DISCONNECTED, 0)])
    )
    assert len(whole_molecules(GenerationResult(GenerationConfig(), attempts, {}, {}))) == 1


def test_densities_are_those_of_the_reference_molecules(organic: ReferenceSet) -> None:
    found = measure_densities(organic.molecules)
    assert found.surface == pytest.approx(ATOMS_PER_SQUARE_ANGSTROM, abs=0.005)
    assert found.solid == pytest.approx(ATOMS_PER_CUBIC_ANGSTROM, abs=0.005)
    assert found.n_planar >= 200
    assert found.n_compact >= 20
    with pytest.raises(InputError, match="one kind"):
        measure_densities(organic.molecules[:1])


def test_held_out_molecules_are_no_reference(organic: ReferenceSet) -> None:
    held_out, rest = hold_out(organic, 100)
    assert len(held_out) == 100
    assert len(rest) == len(organic) - 100
    assert not {m.digest for m in held_out} & {m.digest for m in rest.molecules}
    assert all(12 <= len(heavy_positions(m.mol)) <= 24 for m in held_out)
    with pytest.raises(InputError, match="expected at most"):
        hold_out(organic, 10**6)


def test_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With a random force field nothing is valid, and no share comes of that."""
    config = NetworkConfig(elements=(1, 6, 7, 8, 9, 16, 17), n_channels=2, l_max=1)
    save_model(ForceField(config, scale=0.0), tmp_path / "random.safetensors", {})
    (tmp_path / "short.json").write_text('{"kind": "line", "length": 3.0}')
    out, tiny = tmp_path / "out", tmp_path / "tiny.smi"
    tiny.write_text("CCO\nCCN\n")
    arguments = [
        "simgen", "benchmark", "shapes", "--model", str(tmp_path / "random.safetensors"),
        "--device", "cpu", "--only", str(tmp_path / "short.json"), "--count", "1",
        "--macrocycles", "0", "--molecules", "0", "--out", str(out),
    ]  # fmt: skip
    quick = {"n_steps": 4, "n_particles": 1, "n_refinements": 0, "n_repairs": 0, "reference": tiny}
    generate = Generator.generate
    monkeypatch.setattr(
        Generator, "generate", lambda self, *given, **named: generate(self, *given, **named | quick)
    )
    monkeypatch.setattr(sys, "argv", arguments)
    for _ in range(2):  # the second time, what is finished is not done again
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert not caught.value.code
    (shape,) = json.loads((out / "scores.json").read_text())["shapes"]
    assert (shape["n_heavy_atoms"], shape["n_attempts"]) == (4, 1)
    assert (shape["valid"] == 0.0) == (shape["chamfer"] is None)
    assert "| short | 4 | 1 |" in capsys.readouterr().out
