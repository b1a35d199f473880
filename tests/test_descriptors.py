import numpy as np
import pytest
import torch
from torch import Tensor

from simgen.descriptors import linearise
from simgen.descriptors.force_field import MIN_DISTANCE, ForceFieldDescriptor
from simgen.graph import molecule_pairs
from simgen.models import ForceField, NetworkConfig
from simgen.molecules import MoleculeBatch


@pytest.fixture(scope="module")
def model() -> ForceField:
    config = NetworkConfig(elements=(6, 7, 8), n_channels=4, l_max=2, correlation=2)
    return ForceField(config).double()


@pytest.fixture
def batch() -> MoleculeBatch:
    rng = np.random.default_rng(0)
    return MoleculeBatch.from_arrays(
        [(rng.integers(6, 9, n), 1.3 * rng.normal(size=(n, 3))) for n in (4, 1, 6)],
        dtype=torch.float64,
    )


def test_first_layer_invariants(model: ForceField, batch: MoleculeBatch) -> None:
    features = ForceFieldDescriptor(model)(batch)
    assert features.shape == (11, 4)
    expected = model.node_invariants(batch, n_layers=1, min_distance=MIN_DISTANCE)
    torch.testing.assert_close(features, expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(ForceFieldDescriptor(model)(batch, molecule_pairs(batch)), features)


def test_invariance(model: ForceField, batch: MoleculeBatch) -> None:
    describe = ForceFieldDescriptor(model)
    rotation = torch.linalg.qr(torch.as_tensor(np.random.default_rng(2).normal(size=(3, 3))))[0]
    moved = batch.replace(positions=batch.positions @ rotation.T - 2.0)
    torch.testing.assert_close(describe(moved), describe(batch), rtol=1e-9, atol=1e-9)


def test_linearise_is_the_transposed_jacobian(model: ForceField, batch: MoleculeBatch) -> None:
    describe, pairs = ForceFieldDescriptor(model), molecule_pairs(batch)
    with torch.no_grad():
        features, pullback = linearise(describe, batch, pairs)
        v = torch.as_tensor(np.random.default_rng(1).normal(size=features.shape))
        pulled = pullback(v)
    torch.testing.assert_close(features, describe(batch).detach())
    assert not features.requires_grad

    def projected(x: Tensor) -> Tensor:
        return (describe(batch.replace(positions=x), pairs) * v).sum()

    step = 1e-5
    for atom, axis in ((0, 0), (3, 1), (7, 2)):
        shift = torch.zeros_like(batch.positions)
        shift[atom, axis] = step
        with torch.no_grad():
            difference = projected(batch.positions + shift) - projected(batch.positions - shift)
        assert pulled[atom, axis].item() == pytest.approx(difference.item() / (2 * step), rel=1e-5)


@pytest.mark.parametrize("n_atoms", [1, 3])
def test_lonely_and_coinciding_atoms(model: ForceField, n_atoms: int) -> None:
    batch = MoleculeBatch.from_arrays(
        [([6] * n_atoms, np.zeros((n_atoms, 3)))], dtype=torch.float64
    )
    features, pullback = linearise(ForceFieldDescriptor(model), batch, molecule_pairs(batch))
    gradient = pullback(torch.ones_like(features))
    assert torch.isfinite(features).all()
    assert torch.isfinite(gradient).all()


def test_distances_are_clamped(model: ForceField) -> None:
    def features(distance: float) -> Tensor:
        positions = [[0.0, 0, 0], [distance, 0, 0]]
        batch = MoleculeBatch.from_arrays([([6, 7], positions)], dtype=torch.float64)
        return ForceFieldDescriptor(model)(batch)

    torch.testing.assert_close(features(0.3), features(0.75))
    assert not torch.allclose(features(0.9), features(0.75))
