"""The networks that come with the package for descriptors, through the commands."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from command_line import Command

from simgen.descriptors.settings import NetworkInvariants
from simgen.models import PRESETS, load_model
from simgen.models.weights import PRETRAINED
from simgen.molecules import MoleculeBatch
from simgen.reference import load_reference

NAMES = ("ace", "botnet", "nequip")


def test_models_list_has_them(simgen: Command) -> None:
    outcome = simgen("models", "list")
    assert outcome.code == 0
    assert set(outcome.out.split()) >= {"small", *NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_info_says_what_they_are_and_how_far_off(simgen: Command, name: str) -> None:
    outcome = simgen("models", "info", name)
    assert outcome.code == 0
    card = json.loads(outcome.out)
    assert card["file_size_MB"] <= 2.0
    assert card["elements"] == "H C N O F P S Cl Br"
    for part in ("valid", "test"):
        errors = card["errors"]["errors"][part]
        assert {"energy_mae_meV_per_atom", "force_mae_meV_per_A"} <= set(errors)
        assert all(value > 0 for value in errors.values())
    # As its settings file, which is how to make it again, and otherwise as the preset.
    made = card["metadata"]["training"]
    settings = json.loads((PRETRAINED / f"{name}.settings.json").read_text())
    assert settings["training"].items() <= made["training"].items()
    expected = asdict(PRESETS[name](load_model(name).elements, **settings["network"]))
    expected["avg_n_neighbours"] = card["config"]["avg_n_neighbours"]  # from the data
    assert card["config"] == json.loads(json.dumps(expected))


@pytest.mark.parametrize("name", NAMES)
def test_generate_by_descriptor(simgen: Command, name: str, tmp_path: Path) -> None:
    reference = tmp_path / "reference.smi"
    reference.write_text("CCO\nCC(=O)N\nC1CCCC1\nCCN\n")
    out = tmp_path / "run"
    outcome = simgen(
        "generate", "--descriptor", name, "--reference", reference, "--heavy-atoms", "3-4",
        "--count", 2, "--steps", 4, "--particles", 2, "--repairs", 0, "--device", "cpu",
        "--out", out,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "2 attempts" in outcome.out
    config = json.loads((out / "run.json").read_text())["config"]
    assert config["descriptor"] == NetworkInvariants(name, n_layers=None).to_dict()


@pytest.mark.parametrize("name", NAMES)
def test_the_descriptor_is_that_of_the_network(name: str) -> None:
    field, network = load_model("small"), load_model(name)
    batch = MoleculeBatch.from_arrays(
        [([6, 8, 7], [[0.0, 0, 0], [1.4, 0, 0], [-0.7, 1.2, 0]])], dtype=torch.float32
    )
    settings = NetworkInvariants(name, n_layers=None)
    describe = settings.build(settings.network(field), batch)
    config = network.config
    assert describe(batch).shape == (3, config.n_layers * config.n_channels + 1)
    untrained = NetworkInvariants(name, n_layers=None, trained=False)
    other = untrained.build(untrained.network(field), batch)
    assert not torch.allclose(describe(batch), other(batch), atol=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_no_single_feature_is_all_that_tells_atoms_apart(name: str) -> None:
    """Similarity in one number is none: many different atoms would look alike."""
    reference = load_reference("organic")
    batch = reference.select((9, 9), elements=(6, 7, 8)).heavy_atoms(
        dtype=torch.float32, device=torch.device("cpu")
    )
    settings = NetworkInvariants(name, n_layers=None)
    features = settings.build(load_model(name), batch)(batch)
    variances = torch.linalg.svdvals(features - features.mean(0)).square()
    assert variances[0] < 0.7 * variances.sum()
