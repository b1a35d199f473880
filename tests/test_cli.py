"""Every command: what it writes, what it says when it cannot, and its exit code."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import ase.io
import pytest
import torch
from command_line import Command, assert_one_line
from rdkit import Chem

from simgen.finishing import relaxation
from simgen.generation import Generator
from simgen.io import embed, read_molecules, write_sdf
from simgen.models import ForceField, NetworkConfig, save_model

CONFIG = NetworkConfig(elements=(1, 6, 7, 8), n_channels=4, l_max=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    save_model(ForceField(CONFIG, scale=0.0), path, {"note": "random"})
    return path


@pytest.fixture
def small(weights: Path, tmp_path: Path) -> tuple[object, ...]:
    """Options of a run that takes no time."""
    reference = tmp_path / "reference.smi"
    reference.write_text("CCO\nCC(=O)N\nC1CCCC1\nCCN\n")
    return (
        "generate", "--model", weights, "--reference", reference, "--heavy-atoms", "3-4",
        "--count", 3, "--steps", 4, "--particles", 2, "--repairs", 1, "--device", "cpu",
    )  # fmt: skip


# --- generate ----------------------------------------------------------------------------------


def test_generate_writes_everything(simgen: Command, small: tuple, tmp_path: Path) -> None:
    out = tmp_path / "run"
    outcome = simgen(*small, "--seed", 1, "--trajectory", "--out", out)
    assert outcome.code == 0
    assert "3 attempts with seed 1" in outcome.out
    names = {path.name for path in out.iterdir()}
    assert names == {
        "molecules.sdf", "molecules.xyz", "report.csv", "run.json", "grid.png", "attempts.jsonl",
        "trajectories",
    }  # fmt: skip
    config = json.loads((out / "run.json").read_text())["config"]
    assert config["n_heavy_atoms"] == [3, 4]
    assert (config["n_steps"], config["n_particles"], config["n_molecules"]) == (4, 2, 3)
    assert len(ase.io.read(out / "molecules.xyz", index=":")) == 3


def test_another_descriptor(simgen: Command, small: tuple, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert simgen(*small, "--descriptor", "tensor-reduced", "--out", out).code == 0
    config = json.loads((out / "run.json").read_text())["config"]
    assert config["descriptor"]["kind"] == "tensor_reduced"
    outcome = simgen(*small, "--descriptor", "mace", "--out", out, "--resume")
    assert_one_line(outcome, 2, "kind is tensor_reduced there and network")
    for name in ("mace-all-layers", "untrained"):
        assert simgen(*small, "--descriptor", name, "--out", tmp_path / name).code == 0
    assert_one_line(simgen(*small, "--descriptor", "mine", "--out", out), 2, "--descriptor")


def test_generate_again_needs_resume(simgen: Command, small: tuple, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert simgen(*small, "--out", out).code == 0
    before = (out / "report.csv").read_text()
    assert_one_line(simgen(*small, "--out", out), 2, "already holds a run", "--resume")
    assert simgen(*small, "--out", out, "--resume").code == 0
    assert (out / "report.csv").read_text() == before
    outcome = simgen(*small, "--out", out, "--resume", "--elements", "C")
    assert_one_line(outcome, 2, "elements is")


def test_the_seed_decides_and_the_batch_size_does_not(
    simgen: Command, small: tuple, tmp_path: Path
) -> None:
    for name, *options in (("a", 7), ("b", 7, "--batch-size", 1), ("c", 8)):
        assert simgen(*small, "--out", tmp_path / name, "--seed", *options).code == 0
    positions = {
        name: ase.io.read(tmp_path / name / "molecules.xyz", index=0).positions for name in "abc"
    }
    assert positions["a"] == pytest.approx(positions["b"], abs=1e-3)
    assert positions["a"].shape != positions["c"].shape or positions["a"] != pytest.approx(
        positions["c"], abs=1e-3
    )


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("gaussian", {"kind": "gaussian", "strength": 0.7}),
        # 3 to 4 heavy atoms: 3.5 / 1.5 angstrom of line or circumference.
        ("line", {"kind": "line", "length": pytest.approx(2.3333, abs=1e-4)}),
        ("circle", {"kind": "circle", "radius": pytest.approx(0.3714, abs=1e-4)}),
        ("macrocycle", {"kind": "circle", "radius": 4.0}),
    ],
)
def test_shapes(
    simgen: Command, small: tuple, tmp_path: Path, shape: str, expected: dict[str, object]
) -> None:
    assert simgen(*small, "--shape", shape, "--out", tmp_path / "run").code == 0
    prior = json.loads((tmp_path / "run" / "run.json").read_text())["config"]["prior"]
    assert {key: prior[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--elements", "C,Qq"], 2, ["chemical symbol", "Qq"]),
        (["--elements", "C,Si"], 2, ["lacks Si", "H, C, N, O"]),
        (["--elements", ","], 2, ["elements"]),
        (["--shape", "pretzel"], 2, ["--shape", "pretzel"]),
        (["--heavy-atoms", "many"], 2, ["--heavy-atoms", "'many'"]),
        (["--heavy-atoms", "9-5"], 2, ["ascending pair"]),
        (["--heavy-atoms", "1"], 2, ["from 2 to"]),
        (["--count", "0"], 2, ["--count"]),
        (["--count", "x"], 2, ["--count"]),
        (["--steps", "2"], 2, ["--steps"]),
        (["--seed", "-1"], 2, ["seed"]),
        (["--reference", "nothing"], 3, ["no reference set 'nothing'"]),
        (["--reference", "missing.sdf"], 3, ["missing.sdf does not exist"]),
        (["--model", "nothing"], 3, ["nothing"]),
        (["--device", "abacus"], 2, ["abacus"]),
        (["--resume"], 3, ["no run to resume"]),
        (["--frobnicate"], 2, ["frobnicate"]),
    ],
)
def test_bad_input_is_one_clear_line(
    simgen: Command, small: tuple, tmp_path: Path, options: list, code: int, words: list
) -> None:
    outcome = simgen(*small, "--out", tmp_path / "run", *options)
    assert_one_line(outcome, code, *words)
    assert not (tmp_path / "run" / "molecules.sdf").exists()


def test_files_that_are_no_reference_or_model(
    simgen: Command, small: tuple, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.sdf"
    empty.write_text("")
    outcome = simgen(*small, "--out", tmp_path / "run", "--reference", empty)
    assert_one_line(outcome, 3, "is empty")
    outcome = simgen(*small, "--out", tmp_path / "run", "--model", empty)
    assert_one_line(outcome, 3, "safetensors")


def test_an_absent_gpu(
    simgen: Command, small: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = simgen(*small, "--out", tmp_path / "run", "--device", "cuda")
    assert_one_line(outcome, 4, "cuda was asked for", "--device cpu")


def test_a_folder_that_cannot_be_made(simgen: Command, small: tuple, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = simgen(*small, "--out", tmp_path / "file" / "run")
    assert_one_line(outcome, 1, "cannot write", "choose another folder")


def interrupted(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_says_how_to_go_on(
    simgen: Command, small: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Generator, "generate", interrupted)
    outcome = simgen(*small, "--out", tmp_path / "run")
    assert_one_line(outcome, 130, "interrupted", "--resume")


def test_ctrl_c_of_a_command_without_results_says_so(
    simgen: Command, ethanol: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaxation, "relax", interrupted)
    outcome = simgen("relax", ethanol, "--out", tmp_path / "relaxed.sdf")
    assert_one_line(outcome, 130, "interrupted")
    assert not (tmp_path / "relaxed.sdf").exists()


@pytest.fixture
def running(small: tuple, tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A command with several processes that has finished a few attempts in ``tmp_path / "run"``."""
    out = tmp_path / "run"
    program = "from simgen.cli import main; main()"
    command = [sys.executable, "-c", program, *map(str, small), "--count", "500", "--workers", "2"]
    command += ["--out", str(out)]
    options = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    journal = out / "attempts.jsonl"
    with subprocess.Popen(command, **options) as process:
        for _ in range(600):
            if journal.exists() and len(journal.read_text().splitlines()) > 2:
                break
            time.sleep(0.1)
        yield process
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def leaves_no_process(process: subprocess.Popen) -> bool:
    """Whether all processes of a command end within ten seconds."""
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_who_is_asked_to_end_leaves_results_and_no_process(
    running: subprocess.Popen, tmp_path: Path
) -> None:
    running.terminate()
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert (tmp_path / "run" / "molecules.xyz").exists()
    assert leaves_no_process(running)


def test_who_is_killed_leaves_no_process(running: subprocess.Popen) -> None:
    running.kill()
    running.wait(timeout=60)
    assert leaves_no_process(running)


# --- files -------------------------------------------------------------------------------------


@pytest.fixture
def ethanol(tmp_path: Path) -> Path:
    mol = embed(Chem.MolFromSmiles("CCO"))
    assert mol is not None
    mol.SetProp("_Name", "ethanol")
    write_sdf(tmp_path / "ethanol.sdf", [mol])
    return tmp_path / "ethanol.sdf"


def test_hydrogenate_completes_whatever_it_is_given(
    simgen: Command, ethanol: Path, tmp_path: Path
) -> None:
    (record,) = read_molecules(ethanol)
    write_sdf(tmp_path / "bare.sdf", [Chem.RemoveHs(record.mol)])
    heavy = ase.Atoms(record.atomic_numbers[:3], record.positions[:3])
    ase.io.write(tmp_path / "bare.xyz", heavy, format="extxyz")
    (tmp_path / "flat.smi").write_text("CCO ethanol\n")
    for name in ("bare.sdf", "bare.xyz", "flat.smi"):
        outcome = simgen("hydrogenate", tmp_path / name, "--out", tmp_path / "full.sdf")
        assert outcome.code == 0, outcome.err
        (full,) = read_molecules(tmp_path / "full.sdf")
        assert sorted(full.atomic_numbers.tolist()) == [1] * 6 + [6, 6, 8], name
        assert Chem.MolToSmiles(Chem.RemoveHs(full.mol)) == "CCO"
        if name != "flat.smi":
            assert full.positions[:3] == pytest.approx(record.positions[:3], abs=1e-3)


def test_hydrogenate_says_what_it_leaves_out(
    simgen: Command, ethanol: Path, tmp_path: Path
) -> None:
    (record,) = read_molecules(ethanol)
    path = tmp_path / "mixed.xyz"
    path.write_text("2\n\nC 0 0 0\nC 0 0 9\n2\n\nC 0 0 0\nO 0 0 1.4\nnonsense\n")
    outcome = simgen("hydrogenate", path, "--out", tmp_path / "full.sdf")
    assert outcome.code == 0
    assert "wrote 1 of 3" in outcome.out
    assert "left out: mixed-1 (line 1): too_few_atoms" in outcome.err
    assert "left out: mixed-3 (line 9)" in outcome.err
    complete = ase.Atoms(record.atomic_numbers, record.positions)
    ase.io.write(path, complete, format="extxyz")
    outcome = simgen("hydrogenate", path, "--out", tmp_path / "full.sdf")
    assert_one_line(outcome, 2, "no molecule could be hydrogenated")
    assert "it has hydrogens, but no bonds" in outcome.err


@pytest.fixture(scope="module")
def springs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random force field whose forces do not vanish."""
    path = tmp_path_factory.mktemp("model") / "springs.safetensors"
    save_model(ForceField(CONFIG, scale=30.0), path, {})
    return path


@pytest.mark.parametrize("suffix", [".sdf", ".xyz"])
def test_relax_goes_downhill(
    simgen: Command, springs: Path, ethanol: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"relaxed{suffix}"
    outcome = simgen(
        "relax", ethanol, "--out", out, "--model", springs, "--max-steps", 20, "--device", "cpu"
    )
    assert outcome.code == 0, outcome.err
    (before,), (after,) = read_molecules(ethanol), read_molecules(out)
    assert after.name == "ethanol"
    assert after.atomic_numbers.tolist() == before.atomic_numbers.tolist()
    assert abs(after.positions - before.positions).max() > 1e-3
    if suffix == ".sdf":
        properties = after.mol.GetPropsAsDict()
        assert Chem.MolToSmiles(Chem.RemoveHs(after.mol)) == "CCO"
    else:
        properties = ase.io.read(out).info
    assert float(properties["released_eV"]) > 0


def test_relax_says_what_it_leaves_out(simgen: Command, weights: Path, tmp_path: Path) -> None:
    bare = Chem.RemoveHs(embed(Chem.MolFromSmiles("CCO")))
    foreign = embed(Chem.MolFromSmiles("CCS"))
    write_sdf(tmp_path / "some.sdf", [bare, foreign, embed(Chem.MolFromSmiles("CO"))])
    arguments = ("--model", weights, "--device", "cpu")
    outcome = simgen("relax", tmp_path / "some.sdf", "--out", tmp_path / "out.sdf", *arguments)
    assert "wrote 1 of 3" in outcome.out
    assert "some-1 (line 1): 6 hydrogens missing" in outcome.err
    assert "the model lacks S" in outcome.err
    outcome = simgen("relax", tmp_path / "out.sdf", "--out", tmp_path / "out.pdb", *arguments)
    assert_one_line(outcome, 2, "--out to end in .sdf or .xyz")
    (tmp_path / "flat.smi").write_text("CCO\n")
    outcome = simgen("relax", tmp_path / "flat.smi", "--out", tmp_path / "out.sdf", *arguments)
    assert_one_line(outcome, 2, "no molecule could be relaxed")
    assert "no 3D coordinates" in outcome.err
    frame = tmp_path / "water.xyz"
    frame.write_text("3\n\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n")
    outcome = simgen("relax", frame, "--out", tmp_path / "out.sdf", *arguments)
    assert_one_line(outcome, 2, "no molecule could be relaxed")
    assert "no bonds; write to an .xyz file" in outcome.err


def test_validate_has_a_row_for_every_entry(simgen: Command, tmp_path: Path) -> None:
    good = embed(Chem.MolFromSmiles("CCO"))
    clashing = Chem.Mol(good)
    positions = good.GetConformer().GetPositions()
    clashing.GetConformer().SetPositions(positions * 0.5)
    write_sdf(tmp_path / "some.sdf", [good, clashing, Chem.RemoveHs(good)])
    with (tmp_path / "some.sdf").open("a") as file:
        file.write("broken\n$$$$\n")
    outcome = simgen("validate", tmp_path / "some.sdf", "--out", tmp_path / "report.csv")
    assert outcome.code == 0, outcome.err
    assert "1 of 4 molecules are valid" in outcome.out
    with (tmp_path / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["status"] == "ok"
    assert rows[0]["smiles"] == "CCO"
    assert [row["status"] for row in rows[1:]] == [
        "graph_changed", "no_hydrogens", "unsanitisable",
    ]  # fmt: skip
    assert "V2000" in rows[3]["detail"]


def test_validate_finds_the_bonds_of_xyz_files(
    simgen: Command, ethanol: Path, tmp_path: Path
) -> None:
    (record,) = read_molecules(ethanol)
    frames = [
        ase.Atoms(record.atomic_numbers, record.positions),
        ase.Atoms(record.atomic_numbers[:-1], record.positions[:-1]),  # a radical
    ]
    ase.io.write(tmp_path / "some.xyz", frames, format="extxyz")
    simgen("validate", tmp_path / "some.xyz", "--out", tmp_path / "report.csv")
    with (tmp_path / "report.csv").open(newline="") as file:
        whole, radical = csv.DictReader(file)
    assert (whole["status"], whole["smiles"]) == ("ok", "CCO")
    assert radical["status"] != "ok"


@pytest.mark.slow
def test_validate_asks_the_independent_judges(
    simgen: Command, ethanol: Path, tmp_path: Path
) -> None:
    outcome = simgen(
        "validate", ethanol, "--out", tmp_path / "report.csv", "--posebusters", "--gfn2"
    )
    assert outcome.code == 0, outcome.err
    with (tmp_path / "report.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["posebusters_passed"] == row["gfn2_graph_kept"] == row["gfn2_converged"] == "True"
    assert 0 < float(row["gfn2_relaxation_energy"]) < 10
    assert 0 <= float(row["gfn2_rmsd"]) < 0.3


@pytest.mark.parametrize("command", ["validate", "hydrogenate", "relax"])
def test_missing_and_empty_files(
    simgen: Command, weights: Path, tmp_path: Path, command: str
) -> None:
    out = tmp_path / ("out.csv" if command == "validate" else "out.sdf")
    options = ("--model", weights, "--device", "cpu") if command == "relax" else ()
    outcome = simgen(command, tmp_path / "none.sdf", "--out", out, *options)
    assert_one_line(outcome, 3, "none.sdf does not exist")
    (tmp_path / "empty.xyz").write_text("")
    outcome = simgen(command, tmp_path / "empty.xyz", "--out", out, *options)
    assert_one_line(outcome, 3, "empty.xyz is empty")
    assert not out.exists()


# --- models, training, the rest ----------------------------------------------------------------


def test_models_info(simgen: Command, weights: Path) -> None:
    outcome = simgen("models", "info", weights)
    assert outcome.code == 0
    card = json.loads(outcome.out)
    assert card["config"]["elements"] == [1, 6, 7, 8]
    assert card["metadata"] == {"note": "random"}
    assert card["n_parameters"] == sum(p.numel() for p in ForceField(CONFIG).parameters())
    assert simgen("models", "list").code == 0
    assert_one_line(simgen("models", "info", "nothing"), 3, "nothing")


def test_mace_conversion_needs_mace(
    simgen: Command, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mace", None)
    outcome = simgen("models", "export", weights, tmp_path / "mace.model")
    assert_one_line(outcome, 5, "mace-torch")
    outcome = simgen("models", "import", tmp_path / "mace.model", tmp_path / "out.safetensors")
    assert_one_line(outcome, 5, "mace-torch")


def test_train_settings(simgen: Command, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run", "--device", "cpu")
    assert_one_line(simgen("train", "--data", tmp_path / "none.npz", *out), 3, "simgen data build")


@pytest.mark.parametrize(
    "command",
    [
        [], ["generate"], ["relax"], ["hydrogenate"], ["validate"], ["train"], ["data"],
        ["data", "build"], ["models"], ["models", "list"], ["models", "info"],
        ["models", "import"], ["models", "export"], ["priors"], ["priors", "list"],
        ["priors", "show"],
    ],
)  # fmt: skip
def test_every_command_has_help(simgen: Command, command: list[str]) -> None:
    outcome = simgen(*command, "--help")
    assert outcome.code == 0
    assert "Usage: simgen" in outcome.out


def test_no_command_shows_the_help(simgen: Command) -> None:
    outcome = simgen()
    assert outcome.code == 2
    assert "Usage: simgen" in outcome.out + outcome.err
    assert "error:" not in outcome.err
    assert simgen("--version").out.startswith("simgen ")
    assert_one_line(simgen("fly"), 2, "fly")


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    program = (
        "import sys, simgen.cli; sys.argv = ['simgen', '--help']\n"
        "try: simgen.cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'rdkit', 'ase', 'numpy', 'scipy', 'e3nn'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )

    def seconds() -> float:
        # Processor time: on a busy machine the clock on the wall tells of the others.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5
