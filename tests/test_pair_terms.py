"""Terms of pairs of atoms: against formulas written down once more, and as parts of a network."""

import math

import numpy as np
import pytest
import torch

from simgen.errors import ConfigError, InputError
from simgen.models import ForceField, FrozenForceField, NetworkConfig, evaluator, load_model
from simgen.models import save_model as save
from simgen.models.pair_terms import AgnesiTransform, PairRepulsion
from simgen.molecules import MoleculeBatch

ELEMENTS = (1, 6, 8)
RADII = torch.tensor([0.31, 0.76, 0.66], dtype=torch.float64)


def with_radii(model: ForceField) -> ForceField:
    for part in (model.distance_transform, model.repulsion):
        if part is not None:
            part.radii.copy_(RADII)
    return model


@pytest.fixture
def model() -> ForceField:
    config = NetworkConfig(
        ELEMENTS, n_channels=3, l_max=2, hidden_l_max=1, r_max=3.0, distance_transform="agnesi",
        pair_repulsion=True,
    )  # fmt: skip
    return with_radii(ForceField(config, scale=1.7).double())


@pytest.fixture
def batch() -> MoleculeBatch:
    rng = np.random.default_rng(0)
    return MoleculeBatch.from_arrays(
        [(rng.choice(ELEMENTS, n), 1.2 * rng.normal(size=(n, 3))) for n in (3, 1, 6)],
        dtype=torch.float64,
    )


def test_repulsion_of_carbon_and_oxygen() -> None:
    repulsion = PairRepulsion(ELEMENTS, 5).double()
    repulsion.radii.copy_(RADII)
    r, edges = 0.9, torch.tensor([[1], [2]])
    energy = float(repulsion(torch.tensor([r], dtype=torch.float64), edges))
    a = 0.4543 * 0.529 / (6**0.3 + 8**0.3)
    phi = (
        0.1818 * math.exp(-3.2 * r / a) + 0.5099 * math.exp(-0.9423 * r / a)
        + 0.2802 * math.exp(-0.4028 * r / a) + 0.02817 * math.exp(-0.2016 * r / a)
    )  # fmt: skip
    u = r / (0.76 + 0.66)
    envelope = 1 - 21 * u**5 + 35 * u**6 - 15 * u**7
    assert energy == pytest.approx(14.3996 * 48 / r * phi * envelope, rel=1e-12)
    assert float(repulsion(torch.tensor([r], dtype=torch.float64), edges.flip(0))) == energy
    assert float(repulsion(torch.tensor([1.43], dtype=torch.float64), edges)) == 0


def test_scaled_distances_of_carbon_and_hydrogen() -> None:
    transform = AgnesiTransform(3).double()
    transform.radii.copy_(RADII)
    distances = torch.tensor([1e-6, 0.535, 1.1, 3.0], dtype=torch.float64)
    scaled = transform(distances, torch.tensor([[1] * 4, [0] * 4]))
    x = 1.1 / 0.535
    expected = 1 / (1 + 1.0805 * x**0.9183 / (1 + x ** (0.9183 - 4.5791)))
    assert scaled[2].item() == pytest.approx(expected, rel=1e-12)
    assert scaled[1].item() == pytest.approx(1 / (1 + 1.0805 / 2), rel=1e-12)  # x = 1
    assert scaled[0].item() == pytest.approx(1.0, abs=1e-12)
    assert (scaled.diff() < 0).all()


def test_two_atoms_repel_in_units_of_the_scale(model: ForceField) -> None:
    assert model.repulsion is not None
    silent = ForceField(model.config, scale=1.7).double()
    silent.load_state_dict(model.state_dict())
    assert silent.repulsion is not None
    silent.repulsion.screening.zero_()
    pair = MoleculeBatch.from_arrays([([6, 8], [[0.0, 0, 0], [0, 0, 0.9]])], dtype=torch.float64)
    edge = torch.tensor([[1], [2]])
    expected = 1.7 * model.repulsion(torch.tensor([0.9], dtype=torch.float64), edge)
    torch.testing.assert_close(model(pair) - silent(pair), expected)


def test_forces_are_the_gradient_and_nothing_changes_abruptly(
    model: ForceField, batch: MoleculeBatch
) -> None:
    _, forces = model.energy_and_forces(batch)
    step, direction = 1e-5, torch.randn(10, 3, generator=torch.Generator().manual_seed(1)).double()
    ahead, behind = (
        model(batch.replace(positions=batch.positions + sign * step * direction)).sum()
        for sign in (1, -1)
    )
    assert ((behind - ahead) / (2 * step)).item() == pytest.approx(
        (forces * direction).sum().item(), rel=1e-6
    )
    for reach in (0.76 + 0.66, 3.0):  # of the repulsion, of the network
        near, far = (
            model.energy_and_forces(
                MoleculeBatch.from_arrays(
                    [([6, 8], [[0.0, 0, 0], [0, 0, reach + shift]])], dtype=torch.float64
                )
            )
            for shift in (-1e-6, 1e-6)
        )
        torch.testing.assert_close(near, far, rtol=0, atol=1e-4)


def test_the_evaluator_is_the_network(model: ForceField, batch: MoleculeBatch) -> None:
    with pytest.raises(InputError, match="evaluator"):
        FrozenForceField(model)
    torch.testing.assert_close(
        evaluator(model).energy_and_forces(batch), model.energy_and_forces(batch)
    )


def test_weights_keep_the_terms(model: ForceField, batch: MoleculeBatch, tmp_path: object) -> None:
    path = f"{tmp_path}/model.safetensors"
    save(model, path, {})
    again = load_model(path, dtype=torch.float64)
    assert again.config == model.config
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    # How products round depends on where in memory the weights are.
    torch.testing.assert_close(again(batch), model(batch), rtol=1e-12, atol=1e-15)


def test_unknown_transform() -> None:
    with pytest.raises(ConfigError, match="distance_transform"):
        NetworkConfig(ELEMENTS, distance_transform="soft")
