import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from simgen.data.build import SPLITS, Dataset
from simgen.errors import ConfigError, InputError
from simgen.models import NetworkConfig, load_model
from simgen.training import (
    TrainingConfig,
    batches_of_epoch,
    evaluate,
    fit_atomic_energies,
    initial_model,
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
