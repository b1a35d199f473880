import json
import math
import multiprocessing
from dataclasses import replace
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from command_line import Command

from simgen.data.build import SPLITS, Dataset
from simgen.errors import ConfigError, InputError, LoadError
from simgen.models import NetworkConfig, load_model, read_metadata
from simgen.molecules import MoleculeBatch
from simgen.training import (
    TrainingConfig,
    batches_of_epoch,
    evaluate,
    fit_atomic_energies,
    initial_model,
    read_structures,
    schedule,
    train,
)
from simgen.training.optimiser import Muon, make_optimisers, orthogonalise

NETWORK = NetworkConfig(
    elements=(1, 6, 8), n_channels=4, l_max=1, correlation=2, n_radial=4, radial_widths=(8,)
)
CONFIG = TrainingConfig(
    n_steps=8, batch_atoms=24, n_warmup=2, validate_every=4, learning_rate=0.01, seed=3
)
ATOMIC_ENERGIES = {1: -13.0, 6: -40.0, 8: -70.0}


def toy_dataset(n_geometries: int = 40) -> Dataset:
    """Clusters of atoms that repel as exp(-r^2), with exact labels."""
    rng = np.random.default_rng(0)
    counts, numbers, positions, forces, energies = [], [], [], [], []
    for _ in range(n_geometries):
        n = int(rng.integers(2, 6))
        z = rng.choice([1, 6, 8], n)
        x = rng.normal(size=(n, 3))
        d = x[:, None] - x[None]
        counts.append(n)
        numbers.append(z)
        positions.append(x)
        gaussians = np.exp(-(d**2).sum(-1))
        np.fill_diagonal(gaussians, 0.0)
        forces.append(2.0 * (gaussians[..., None] * d).sum(1))
        pair_energy = 0.5 * float(gaussians.sum())
        energies.append(sum(ATOMIC_ENERGIES[int(a)] for a in z) + pair_energy)
    split = np.array([0] * (n_geometries - 8) + [1] * 4 + [2] * 4)
    return Dataset(
        counts=np.array(counts),
        numbers=np.concatenate(numbers).astype(np.uint8),
        positions=np.concatenate(positions),
        forces=np.concatenate(forces).astype(np.float32),
        energies=np.array(energies),
        kind=np.zeros(n_geometries, dtype=np.int64),
        split=split,
        task=np.arange(n_geometries),
        keys=np.array(["C"] * n_geometries),
        origins=np.array(["collection"] * n_geometries),
    )


def test_atomic_energies_are_recovered_when_nothing_else_contributes() -> None:
    dataset = toy_dataset()
    sums = np.array(
        [
            sum(ATOMIC_ENERGIES[int(z)] for z in dataset.numbers[first : first + n])
            for first, n in zip(dataset.first_atom, dataset.counts, strict=True)
        ]
    )
    fields = {name: getattr(dataset, name) for name in Dataset.__slots__}
    bare = Dataset(**(fields | {"energies": sums}))
    np.testing.assert_allclose(
        fit_atomic_energies(bare, (1, 6, 8)), [-13.0, -40.0, -70.0], atol=1e-8
    )


def test_an_epoch_has_every_geometry_once_and_no_batch_is_too_large() -> None:
    dataset = toy_dataset()
    indices = np.flatnonzero(dataset.split == SPLITS.index("train"))
    batches = batches_of_epoch(indices, dataset.counts, 24, 0, 0)
    assert sorted(np.concatenate(batches)) == sorted(indices)
    assert all(dataset.counts[batch].sum() <= 24 for batch in batches)
    again = batches_of_epoch(indices, dataset.counts, 24, 0, 0)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    other = batches_of_epoch(indices, dataset.counts, 24, 0, 1)
    assert not np.array_equal(np.concatenate(batches), np.concatenate(other))


def test_a_geometry_larger_than_a_batch_gets_a_batch_of_its_own() -> None:
    batches = batches_of_epoch(np.arange(3), np.array([5, 50, 5]), 10, 0, 0)
    assert sorted(map(len, batches)) == [1, 1, 1] or sorted(map(len, batches)) == [1, 2]


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    config = TrainingConfig(n_steps=100, n_warmup=10)
    rates = [schedule(step, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] or max(rates) == rates[10]
    assert rates[100] == 0.0


def test_training_lowers_the_error(tmp_path) -> None:
    dataset = toy_dataset()
    config = TrainingConfig(n_steps=80, batch_atoms=64, n_warmup=5, validate_every=40)
    before = evaluate(initial_model(dataset, NETWORK, 0), dataset, "valid")
    weights = train(dataset, NETWORK, config, tmp_path / "run")
    after = evaluate(load_model(weights), dataset, "valid")
    assert after.force < 0.7 * before.force
    assert (tmp_path / "run/training.png").stat().st_size > 1000


@pytest.mark.parametrize("shape", [(20, 20), (3, 16, 40), (2, 2, 50, 20)])
def test_orthogonalised_matrices_have_singular_values_near_one_and_the_same_directions(
    shape,
) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    found = u.mT @ orthogonalise(matrices) @ v.mT
    values = torch.diagonal(found, dim1=-2, dim2=-1)
    torch.testing.assert_close(found, torch.diag_embed(values), rtol=0, atol=1e-8)
    well_conditioned = values[..., : values.shape[-1] // 2]
    assert float(well_conditioned.min()) > 0.6 and float(values.max()) < 1.3


def test_muon_steps_have_the_size_of_the_learning_rate() -> None:
    weight = torch.nn.Parameter(torch.zeros(3, 32, 32))
    optimiser = Muon([weight], lr=0.01)
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    optimiser.step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.01, rel=0.2)


def test_weights_without_a_gradient_decay_at_the_given_rate() -> None:
    weight = torch.nn.Parameter(torch.ones(32, 32))
    optimiser = Muon([weight], lr=0.1, weight_decay=0.5)
    weight.grad = torch.zeros(32, 32)
    optimiser.step()
    optimiser.step()
    torch.testing.assert_close(weight.detach(), torch.full((32, 32), 0.95**2))


def test_large_matrices_are_trained_by_muon_and_everything_else_by_adam() -> None:
    model = initial_model(toy_dataset(), replace(NETWORK, n_channels=16), 0)
    muon, adam = make_optimisers(model, 0.1, 0.2)
    shapes = {tuple(p.shape) for p in muon.param_groups[0]["params"]}
    assert {shape[-2:] for shape in shapes} <= {(16, 16), (32, 16), (16, 32)}
    n_weights = sum(len(o.param_groups[0]["params"]) for o in (muon, adam))
    assert n_weights == len(list(model.parameters()))
    assert (muon.param_groups[0]["lr"], adam.param_groups[0]["lr"]) == (0.1, 0.2)


class KilledError(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_result(tmp_path) -> None:
    dataset = toy_dataset()
    network = replace(NETWORK, n_channels=16)  # wide enough for Muon
    whole = load_model(train(dataset, network, CONFIG, tmp_path / "whole"))

    def kill(step: int, n_steps: int, metrics: dict[str, float]) -> None:
        if step == 6:
            raise KilledError

    with pytest.raises(KilledError):
        train(dataset, network, CONFIG, tmp_path / "killed", progress=kill)
    resumed = load_model(train(dataset, network, CONFIG, tmp_path / "killed"))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    lines = [
        (tmp_path / run / "metrics.csv").read_text().splitlines() for run in ("whole", "killed")
    ]
    assert [row.split(",")[0] for row in lines[0]] == [row.split(",")[0] for row in lines[1]]


def test_two_processes_train_the_same_model_as_one(tmp_path) -> None:
    dataset = toy_dataset()
    one = load_model(train(dataset, NETWORK, CONFIG, tmp_path / "one"))
    two = load_model(train(dataset, NETWORK, CONFIG, tmp_path / "two", n_processes=2))
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_helping_processes_end_when_the_run_fails(tmp_path) -> None:
    def kill(step: int, n_steps: int, metrics: dict[str, float]) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        train(toy_dataset(), NETWORK, CONFIG, tmp_path, n_processes=2, progress=kill)
    assert not multiprocessing.active_children()


def test_training_stops_early_when_nothing_improves(tmp_path) -> None:
    config = TrainingConfig(
        n_steps=50,
        batch_atoms=64,
        validate_every=1,
        patience=3,
        learning_rate=0.0,
        adam_learning_rate=0.0,
    )
    train(toy_dataset(), NETWORK, config, tmp_path)
    n_validations = len((tmp_path / "metrics.csv").read_text().splitlines()) - 1
    assert n_validations == 4


def test_a_run_with_other_settings_is_not_overwritten(tmp_path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"training": "other"}))
    with pytest.raises(ConfigError, match="choose another folder"):
        train(toy_dataset(), NETWORK, CONFIG, tmp_path)


def test_bad_settings_and_empty_parts_are_refused() -> None:
    with pytest.raises(ConfigError, match="learning_rate"):
        TrainingConfig(learning_rate=math.nan)
    dataset = toy_dataset()
    fields = {name: getattr(dataset, name) for name in Dataset.__slots__}
    train_only = Dataset(**(fields | {"split": np.zeros(len(dataset), dtype=np.int64)}))
    with pytest.raises(InputError, match="valid"):
        evaluate(initial_model(dataset, NETWORK, 0), train_only, "valid")


# --- the time as the limit -------------------------------------------------------------------


def test_the_learning_rate_falls_with_the_time_if_that_is_faster() -> None:
    config = TrainingConfig(n_steps=100, n_warmup=0, max_seconds=50.0)
    assert schedule(20, config, seconds=0.0) == pytest.approx(0.8)
    assert schedule(20, config, seconds=40.0) == pytest.approx(0.2)
    assert schedule(20, config, seconds=60.0) == 0.0


def test_a_run_ends_when_its_time_is_over_and_stays_over(tmp_path) -> None:
    config = replace(CONFIG, n_steps=100_000, max_seconds=1.0, validate_every=100_000)
    train(toy_dataset(), NETWORK, config, tmp_path)
    before = (tmp_path / "metrics.csv").read_text()
    assert 1 <= int(before.splitlines()[-1].split(",")[0]) < 100_000
    train(toy_dataset(), NETWORK, config, tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == before


def test_a_run_from_before_a_setting_existed_goes_on(tmp_path) -> None:
    train(toy_dataset(), NETWORK, CONFIG, tmp_path)
    settings = json.loads((tmp_path / "settings.json").read_text())
    del settings["training"]["max_seconds"], settings["network"]["nonlinearity"]
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    train(toy_dataset(), NETWORK, CONFIG, tmp_path)
    with pytest.raises(ConfigError, match="choose another folder"):
        train(toy_dataset(), replace(NETWORK, nonlinearity="gate"), CONFIG, tmp_path)


# --- energies of atoms -----------------------------------------------------------------------


def test_large_energies_of_atoms_do_not_spoil_the_training(tmp_path) -> None:
    dataset = toy_dataset()
    fields = {name: getattr(dataset, name) for name in Dataset.__slots__}
    offset = 3e4 * dataset.counts
    weights = [
        train(dataset, NETWORK, CONFIG, tmp_path / "small"),
        train(
            Dataset(**(fields | {"energies": dataset.energies - offset})),
            NETWORK,
            CONFIG,
            tmp_path / "large",
        ),
    ]
    small, large = (load_model(path, dtype=torch.float64) for path in weights)
    for name, value in small.named_parameters():
        torch.testing.assert_close(large.get_parameter(name), value, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        small.atomic_energies - large.atomic_energies,
        torch.full((3,), 3e4, dtype=torch.float64),
        rtol=0,
        atol=1e-6,
    )


def test_given_energies_of_atoms_are_kept(tmp_path) -> None:
    path = train(
        toy_dataset(), NETWORK, CONFIG, tmp_path, atomic_energies={1: -13.6, 6: -1000.1, 8: -2000.2}
    )
    model = load_model(path, dtype=torch.float64)
    atoms = MoleculeBatch.from_arrays(
        [([z], [[0.0, 0.0, 0.0]]) for z in (1, 6, 8)], dtype=torch.float64
    )
    assert model(atoms).tolist() == [-13.6, -1000.1, -2000.2]
    with pytest.raises(InputError, match="C O"):
        train(toy_dataset(), NETWORK, CONFIG, tmp_path / "some", atomic_energies={1: -13.6})


# --- files of the user's own -----------------------------------------------------------------


def write_frames(path: Path, n: int, *, energy: str = "energy", forces: str = "forces") -> None:
    """Water-like molecules in random places with labels under the given names."""
    rng = np.random.default_rng(7)
    frames = []
    for i in range(n):
        atoms = ase.Atoms("OHH", rng.normal(size=(3, 3)))
        labels = {"energy": -5.0 - i, "forces": rng.normal(size=(3, 3))}
        if (energy, forces) == ("energy", "forces"):
            atoms.calc = SinglePointCalculator(atoms, **labels)
        else:
            atoms.info[energy] = labels["energy"]
            atoms.arrays[forces] = labels["forces"]
        atoms.info["config_type"] = "hot" if i % 2 else "cold"
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")


def write_atoms(path: Path) -> None:
    frames = []
    for symbol, energy in (("H", -1.0), ("O", -3.0)):
        atoms = ase.Atoms(symbol, [[0.0, 0.0, 0.0]])
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")


def test_structures_are_those_of_the_files(tmp_path) -> None:
    write_frames(tmp_path / "a.xyz", 20)
    write_atoms(tmp_path / "atoms.xyz")
    data = read_structures([tmp_path / "atoms.xyz", tmp_path / "a.xyz"], valid_fraction=0.2)
    frames = ase.io.read(tmp_path / "a.xyz", ":")
    assert data.atomic_energies == {1: -1.0, 8: -3.0}
    assert (data.split == 1).sum() == 4 and (data.split == 2).sum() == 0
    assert data.kinds == ("cold", "hot") and data.kind.tolist() == [0, 1] * 10
    np.testing.assert_array_equal(data.energies, [atoms.get_potential_energy() for atoms in frames])
    np.testing.assert_allclose(
        data.forces.reshape(20, 3, 3), [atoms.get_forces() for atoms in frames], rtol=1e-6
    )
    again = read_structures([tmp_path / "a.xyz"], valid_fraction=0.2)
    other = read_structures([tmp_path / "a.xyz"], valid_fraction=0.2, seed=1)
    assert again.split.tolist() == data.split.tolist() != other.split.tolist()
    assert again.checksum() != data.checksum()


def test_files_given_for_a_part_are_that_part(tmp_path) -> None:
    for name, n in (("train", 3), ("valid", 4), ("test", 5)):
        write_frames(tmp_path / f"{name}.xyz", n)
    paths = [[tmp_path / f"{name}.xyz"] for name in ("train", "valid", "test")]
    data = read_structures(*paths)
    assert np.bincount(data.split).tolist() == [3, 4, 5]
    assert evaluate(initial_model(data, replace(NETWORK, elements=(1, 8)), 0), data, "test").force


def test_labels_of_other_names(tmp_path) -> None:
    path = tmp_path / "a.xyz"
    write_frames(path, 4, energy="REF_energy", forces="REF_forces")
    data = read_structures([path], energy_key="REF_energy", forces_key="REF_forces")
    assert data.energies.tolist() == [-5.0, -6.0, -7.0, -8.0]
    with pytest.raises(InputError, match=r"REF_energy.*--energy-key"):
        read_structures([path])
    with pytest.raises(InputError, match=r"REF_forces.*--forces-key"):
        read_structures([path], energy_key="REF_energy")


def test_files_that_cannot_be_trained_on_are_refused(tmp_path) -> None:
    path = tmp_path / "a.xyz"
    with pytest.raises(LoadError, match="does not exist"):
        read_structures([path])
    path.write_text("nonsense")
    with pytest.raises(LoadError, match="extended XYZ"):
        read_structures([path])
    write_atoms(path)
    with pytest.raises(InputError, match="geometries to train on"):
        read_structures([path])
    write_frames(path, 1)
    with pytest.raises(InputError, match="geometries to train on"):
        read_structures([path])
    with pytest.raises(InputError, match="between 0 and 1"):
        read_structures([path], valid_fraction=1.5)
    text = path.read_text()
    path.write_text(text.replace('pbc="F F F"', 'pbc="T F F" Lattice="9 0 0 0 9 0 0 0 9"'))
    with pytest.raises(InputError, match="periodic"):
        read_structures([path])
    path.write_text(text.replace("energy=-5.0", "energy=nan"))
    with pytest.raises(InputError, match="finite"):
        read_structures([path])


def test_the_command_trains_a_preset_on_files_and_goes_on(simgen: Command, tmp_path: Path) -> None:
    write_frames(tmp_path / "train.xyz", 12)
    write_atoms(tmp_path / "atoms.xyz")
    write_frames(tmp_path / "test.xyz", 3)
    settings = {
        "network": {"n_layers": 2, "n_channels": 4, "l_max": 1, "hidden_l_max": 1},
        "training": {"n_steps": 4, "batch_atoms": 12, "validate_every": 2},
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    command = (
        "train", "--train", tmp_path / "train.xyz", "--train", tmp_path / "atoms.xyz",
        "--test", tmp_path / "test.xyz", "--preset", "nequip", "--out", tmp_path / "run",
        "--settings", tmp_path / "settings.json", "--device", "cpu", "--processes", 1,
    )  # fmt: skip
    outcome = simgen(*command)
    assert outcome.code == 0, outcome.err
    assert "test: energy_mae_meV_per_atom" in outcome.out
    weights = tmp_path / "run" / "model.safetensors"
    model = load_model(weights, dtype=torch.float64)
    assert model.config.nonlinearity == "gate" and model.elements == (1, 8)
    assert model.atomic_energies.tolist() == [-1.0, -3.0]
    errors = read_metadata(weights)["errors"]
    assert set(errors) == {"valid", "test"}
    data = read_structures(
        [tmp_path / "train.xyz", tmp_path / "atoms.xyz"], test=[tmp_path / "test.xyz"]
    )
    found = evaluate(model, data, "test")
    assert errors["test"]["force_rmse_meV_per_A"] == pytest.approx(1e3 * found.force_rmse, abs=1e-3)
    before = (tmp_path / "run" / "metrics.csv").read_text()
    assert simgen(*command).code == 0
    assert (tmp_path / "run" / "metrics.csv").read_text() == before
    card = json.loads(simgen("models", "info", weights).out)
    assert card["errors"]["errors"] == errors
    assert card["elements"] == "H O" and card["r_max_A"] == 4.5
    assert card["milliseconds_per_molecule"] > 0


def test_the_command_wants_one_kind_of_data(simgen: Command, tmp_path: Path) -> None:
    for data in ((), ("--data", "a.npz", "--train", "b.xyz")):
        outcome = simgen("train", *data, "--out", tmp_path)
        assert outcome.code == 2
        assert "--data or --train" in outcome.err


def test_root_mean_squared_errors_are_what_they_say(tmp_path) -> None:
    dataset = toy_dataset()
    model = initial_model(dataset, NETWORK, 0).to(torch.float64)
    errors = evaluate(model, dataset, "valid", batch_atoms=10)
    energies, forces = [], []
    for i in np.flatnonzero(dataset.split == 1):
        atoms = slice(dataset.first_atom[i], dataset.first_atom[i] + dataset.counts[i])
        batch = MoleculeBatch.from_arrays(
            [(dataset.numbers[atoms], dataset.positions[atoms])], dtype=torch.float64
        )
        energy, force = model.energy_and_forces(batch)
        energies.append(float(energy[0]) - dataset.energies[i])
        forces.append(force.numpy() - dataset.forces[atoms])
    assert errors.energy_rmse == pytest.approx(np.sqrt(np.mean(np.square(energies))))
    assert errors.force_rmse == pytest.approx(np.sqrt(np.mean(np.square(np.concatenate(forces)))))
