"""What molecules must be like, through the command and through job files."""

import json
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import yaml
from chemistry import conformer
from command_line import Command, assert_one_line
from rdkit import Chem
from rdkit.Chem.rdMolTransforms import TransformConformer

from simgen.cli.generate import parse_counts, parse_elements, parse_sites
from simgen.generation import GenerationConfig
from simgen.io import write_sdf
from simgen.models import ForceField, NetworkConfig, save_model

CONFIG = NetworkConfig(elements=(1, 6, 7, 8), n_channels=4, l_max=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random force field and molecules to bring."""
    folder = tmp_path_factory.mktemp("inputs")
    save_model(ForceField(CONFIG, scale=0.0), folder / "random.safetensors", {"note": "random"})
    (folder / "reference.smi").write_text("CCO\nCC(=O)N\nC1CCCC1\nCCN\n")
    (folder / "series.smi").write_text("Cc1ccccc1O\nCCc1ccccc1O\nNc1ccccc1O\n")
    benzene = conformer("c1ccccc1")
    write_sdf(folder / "benzene.sdf", [benzene])
    write_sdf(folder / "bromine.sdf", [conformer("BrC1CC1")])
    far = Chem.Mol(conformer("CO"))
    move = np.eye(4)
    move[2, 3] = 6.0
    TransformConformer(far.GetConformer(), move)
    write_sdf(folder / "methanol.sdf", [far])
    write_sdf(folder / "overlap.sdf", [benzene, conformer("CO")])
    ring = [
        [6.0 * np.cos(t), 6.0 * np.sin(t), z] for t in np.arange(0, 6.2, 0.3) for z in (-3, 0, 3)
    ]
    lines = [f"C {x:.3f} {y:.3f} {z:.3f}" for x, y, z in ring]
    lines += [f"C {x} {y} {z}" for x in (-3, 0, 3) for y in (-3, 0, 3) for z in (-6, 6)]
    (folder / "host.xyz").write_text(f"{len(lines)}\n\n" + "\n".join(lines) + "\n")
    return folder


@pytest.fixture
def tiny(folder: Path) -> tuple[object, ...]:
    """Options of a run that takes no time."""
    return (
        "generate", "--model", folder / "random.safetensors", "--count", 2, "--steps", 4,
        "--particles", 2, "--refinements", 0, "--repairs", 0, "--device", "cpu",
        "--workers", 1, "--seed", 1,
    )  # fmt: skip


def config_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "run.json").read_text())["config"]


def test_a_scaffold_stays(simgen: Command, tiny: tuple, folder: Path, tmp_path: Path) -> None:
    scaffold = ("--scaffold", folder / "benzene.sdf", "--grow-at", "0,8")
    assert simgen(*tiny, *scaffold, "--heavy-atoms", "1-2", "--out", tmp_path).code == 0
    frames = ase.io.read(tmp_path / "molecules.xyz", index=":")
    given = Chem.SDMolSupplier(str(folder / "benzene.sdf"), removeHs=False)[0]
    for atoms in frames:
        assert atoms.numbers[:6].tolist() == [6] * 6
        # The file has eight digits.
        np.testing.assert_allclose(
            atoms.positions[:6], given.GetConformer().GetPositions()[:6], atol=1e-7
        )
    removable = dict(map(tuple, [[i, h] for i, h in config_of(tmp_path)["scaffold"]["removable"]]))
    assert removable == {0: [6], 2: [8]}  # atom 8 is the hydrogen of atom 2


def test_fragments_are_linked(simgen: Command, tiny: tuple, folder: Path, tmp_path: Path) -> None:
    link = ("--link", folder / "benzene.sdf", "--link", folder / "methanol.sdf")
    outcome = simgen(*tiny, *link, "--out", tmp_path)
    assert outcome.code == 0
    config = config_of(tmp_path)
    low, high = config["n_heavy_atoms"]
    assert 1 <= low < high
    assert len(config["scaffold"]["removable"]) == 2
    assert config["prior"]["kind"] == "point_cloud"


def test_a_core_is_kept(simgen: Command, tiny: tuple, folder: Path, tmp_path: Path) -> None:
    core = ("--reference", folder / "series.smi", "--core", "auto")
    assert simgen(*tiny, *core, "--out", tmp_path).code == 0
    config = config_of(tmp_path)
    assert config["scaffold"]["smiles"] == "Oc1ccccc1"
    assert config["n_heavy_atoms"] == [1, 2]


def test_molecules_are_made_in_a_host(
    simgen: Command, tiny: tuple, folder: Path, tmp_path: Path
) -> None:
    host = ("--host", folder / "host.xyz", "--host-partners")
    assert simgen(*tiny, *host, "--heavy-atoms", 3, "--out", tmp_path).code == 0
    config = config_of(tmp_path)
    assert config["host"]["partners"]
    points = np.array(config["prior"]["points"])
    assert np.linalg.norm(points, axis=1).max() < 5.0


def test_the_composition_is_what_was_asked_for(
    simgen: Command, tiny: tuple, folder: Path, tmp_path: Path
) -> None:
    assert simgen(*tiny, "--formula", "C2N2O", "--out", tmp_path / "a").code == 0
    for atoms in ase.io.read(tmp_path / "a" / "molecules.xyz", index=":"):
        heavy = sorted(z for z in atoms.numbers.tolist() if z > 1)
        # An atom without a neighbour is dropped.
        assert not heavy or set(heavy) <= {6, 7, 8}
    bounds = ("--elements", "C=3,N", "--at-least", "N=2", "--at-most", "C=1")
    outcome = simgen(*tiny, *bounds, "--heavy-atoms", 3, "--out", tmp_path / "b")
    assert outcome.code == 0
    composition = config_of(tmp_path / "b")["composition"]
    assert composition["weights"] == {"C": 3.0}
    assert (composition["at_least"], composition["at_most"]) == ({"N": 2}, {"C": 1})


def test_filters_and_charge_reach_the_run(simgen: Command, tiny: tuple, tmp_path: Path) -> None:
    wishes = (
        "--forbid", "C=C", "--forbid", "[#8]-[#8]", "--filter", "pains", "--flag-only",
        "--charge", 1, "--no-formal-charges", "--heavy-atoms", 3,
    )  # fmt: skip
    assert simgen(*tiny, *wishes, "--out", tmp_path).code == 0
    config = GenerationConfig.from_dict(config_of(tmp_path))
    assert config.filters.forbidden == ("C=C", "[#8]-[#8]")
    assert config.filters.catalogs == ("pains",)
    assert not config.filters.reject
    assert config.charge == 1
    assert not config.composition.formal_charges


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scaffold", "bromine.sdf"], ["lacks Br"]),
        (["--scaffold", "overlap.sdf"], ["overlap", "move them apart"]),
        (["--scaffold", "benzene.sdf", "--grow-at", "99"], ["from 0 to 11", "got 99"]),
        (["--scaffold", "benzene.sdf", "--grow-at", "[N]"], ["matches nothing"]),
        (["--scaffold", "benzene.sdf", "--grow-at", "[C"], ["SMARTS"]),
        (["--scaffold", "benzene.sdf", "--link", "methanol.sdf"], ["one of --scaffold, --link"]),
        (["--grow-at", "1"], ["--scaffold or --link"]),
        (["--link", "benzene.sdf"], ["at least two fragments"]),
        (["--formula", "C6Q2"], ["expected a chemical symbol"]),
        (["--formula", "6C"], ["sum formula such as"]),
        (["--formula", "C2N2O", "--heavy-atoms", "9"], ["no 9 heavy atoms", "from 5 to 5"]),
        (["--formula", "C2N2O", "--at-most", "N=1"], ["--formula or --at-least"]),
        (["--at-most", "N:2"], ["--at-most", "N=2,O=1"]),
        (["--at-least", "N=3", "--at-most", "N=2"], ["at_least <= at_most for N"]),
        (["--forbid", "C(("], ["SMARTS pattern to forbid"]),
        (["--filter", "good"], ["pains, brenk"]),
        (["--host", "host.txt"], ["does not exist"]),
        (["--host-partners"], ["--host with --host-partners"]),
        (["--shape", "cavity"], ["--host for the shape"]),
    ],
)  # fmt: skip
def test_bad_wishes_get_one_line(
    simgen: Command,
    tiny: tuple,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(folder)
    outcome = simgen(*tiny, *options, "--out", tmp_path / "run")
    assert_one_line(outcome, outcome.code, *words)
    assert outcome.code in (2, 3)
    assert not (tmp_path / "run" / "report.csv").exists()


def test_readers_of_options() -> None:
    assert parse_counts("", "--at-most", int) == {}
    assert parse_elements(" C = 2 ,N") == (("C", "N"), {"C": 2.0})
    assert parse_sites("3") == [3]
    assert parse_sites("c1ccccc1") == "c1ccccc1"


# --- job files ---------------------------------------------------------------------------------


def job_file(folder: Path, **changes: Any) -> Path:
    job = {
        "count": 2,
        "heavy_atoms": "1-2",
        "model": "random.safetensors",
        "scaffold": "benzene.sdf",
        "grow_at": [0, 3],
        "elements": {"C": 2, "O": 1},
        "forbid": ["C=C", "C#C"],
        "flag_only": True,
        "formal_charges": False,
        "steps": 4,
        "particles": 2,
        "refinements": 0,
        "repairs": 0,
        "workers": 1,
        "seed": 3,
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job | changes))
    return path


def test_a_job_file_says_it_all(simgen: Command, folder: Path, tmp_path: Path) -> None:
    outcome = simgen("run", job_file(folder), "--out", tmp_path / "run")
    assert outcome.code == 0
    assert "2 attempts with seed 3" in outcome.out
    config = GenerationConfig.from_dict(config_of(tmp_path / "run"))
    assert config.n_heavy_atoms == (1, 2)
    assert config.scaffold is not None
    assert sorted(config.scaffold.removable) == [0, 3]
    assert config.composition.elements == ("C", "O")
    assert config.composition.weights == {"C": 2.0, "O": 1.0}
    assert not config.composition.formal_charges
    assert config.filters.forbidden == ("C=C", "C#C")
    again = simgen("run", job_file(folder), "--out", tmp_path / "run", "--resume")
    assert again.code == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heavy_atom": 3}, ["unknown key 'heavy_atom'", "heavy-atoms"]),
        ({"count": "many"}, ["--count", "valid integer"]),
        ({"count": True}, ["'count'", "True"]),
        ({"flag_only": "yes"}, ["true or false for 'flag_only'"]),
        ({"steps": 1}, ["--steps"]),
        ({"elements": {"C": {"N": 1}}}, ["--elements"]),
        ({"seed": None}, ["'seed'"]),
    ],
)
def test_a_bad_job_names_the_key(
    simgen: Command, folder: Path, tmp_path: Path, changes: dict, words: list[str]
) -> None:
    outcome = simgen("run", job_file(folder, **changes), "--out", tmp_path / "run")
    assert_one_line(outcome, 2, *words)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [("- 1\n", 2, ["options and their values"]), ("a: [", 3, ["cannot read"])],
)
def test_what_is_no_job(
    simgen: Command, tmp_path: Path, text: str, code: int, words: list[str]
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    assert_one_line(simgen("run", path, "--out", tmp_path / "run"), code, *words)
    assert_one_line(simgen("run", tmp_path / "none.yaml"), 3, "does not exist")
