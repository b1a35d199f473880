"""The paired benchmark, with a stand-in for the published program where that is not installed."""

import json
from pathlib import Path

import pytest
from command_line import Command, assert_one_line
from rdkit import Chem
from rdkit.Chem import AllChem

from simgen.benchmarks import reference_program
from simgen.benchmarks.reference_program import REFERENCE_PYTHON, is_valid, to_markdown
from simgen.errors import SimgenError
from simgen.generation import Generator
from simgen.models import ForceField, NetworkConfig


def atoms_of(smiles: str) -> tuple[list[int], list[list[float]]]:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    AllChem.MMFFOptimizeMolecule(mol)
    return [a.GetAtomicNum() for a in mol.GetAtoms()], mol.GetConformer().GetPositions().tolist()


def test_validity_is_of_elements_and_positions_alone() -> None:
    numbers, positions = atoms_of("CCO")
    assert is_valid(numbers, positions, 3)
    assert not is_valid(numbers, positions, 4)  # smaller than asked for
    assert not is_valid(numbers[:-1], positions[:-1], 3)  # a radical
    apart = [[x + 5.0 * (i == 0), y, z] for i, (x, y, z) in enumerate(positions)]
    assert not is_valid(numbers, apart, 3)


def test_skipped_without_the_program(
    simgen: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(REFERENCE_PYTHON, raising=False)
    done = simgen("benchmark", "reference-program", "--out", tmp_path / "out")
    assert done.code == 0
    assert done.out.startswith("skipped: SIMGEN_REFERENCE_PYTHON")
    assert not (tmp_path / "out").exists()


def test_figures_of_both_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the program prints is timed and judged; every attempt counts, failed ones too."""
    good, cut = atoms_of("CCO"), atoms_of("CCO")
    lines = [
        {"sampling": 10.0, "sampling_cpu": 15.0, "finishing": 2.0, "finishing_cpu": 4.0},
        {"sampling": 10.0, "sampling_cpu": 15.0, "finishing": 2.0, "finishing_cpu": 4.0},
        {"failing": 6.0, "failing_cpu": 7.0, "error": "ValueError: Atoms exploded"},
    ]
    for line, (numbers, positions), n in zip(lines, (good, cut), (9, 8), strict=False):
        line.update(numbers=numbers[:n], positions=positions[:n])  # type: ignore[arg-type]
    printed = "\n".join(["a library says hello", *map(json.dumps, lines)])
    calls: list[list[str]] = []

    def call(command: list[str], variables: dict[str, str]) -> str:
        calls.append(command)
        return printed if "-P" in command else ""

    monkeypatch.setattr(reference_program, "_call", call)
    config = NetworkConfig(elements=(1, 6, 7, 8), n_channels=4, l_max=1)
    generator = Generator(ForceField(config))
    theirs = reference_program._run_theirs("python", generator, 3, 3, 2, 0)
    assert len(calls) == 2
    assert (theirs.n_attempts, theirs.n_valid) == (3, 1)
    assert (theirs.sampling, theirs.total, theirs.cpu_seconds) == (20.0, 30.0, 45.0)
    with pytest.raises(SimgenError, match="expected 4 attempts"):
        reference_program._run_theirs("python", generator, 3, 4, 2, 0)

    ours = {"n_attempts": 8, "n_valid": 8, "sampling": 0.4, "total": 2.4, "cpu_seconds": 4.8}
    slow = {"n_attempts": 3, "n_valid": 1, "sampling": 20.0, "total": 30.0, "cpu_seconds": 45.0}
    results = {"n_heavy_atoms": 3, "n_cores": 2, "model": "m", "ours": ours, "simgen 0.3.1": slow}
    last = to_markdown(results).strip().splitlines()[-1]
    # 20 a second beside 3 in 20 seconds, 8 in 2.4 beside 1 in 30, 8 in 4.8 beside 1 in 45.
    assert [cell.strip() for cell in last.split("|")[4:8]] == ["133", "33", "100", "75"]


def test_a_program_that_does_not_run_is_one_line(
    simgen: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(REFERENCE_PYTHON, "/bin/false")
    done = simgen("benchmark", "reference-program", "--out", tmp_path)
    assert_one_line(done, 1, "the published program did not run in /bin/false")
