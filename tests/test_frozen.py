"""The frozen force field and its radial tables, against the network and exact formulas."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from physics import random_batch
from scipy.interpolate import BSpline
from torch import Tensor

from simgen.errors import InputError
from simgen.graph import edge_vectors, molecule_pairs
from simgen.models import ForceField, FrozenForceField, NetworkConfig, load_model
from simgen.models.angular import spherical_harmonics
from simgen.models.frozen import harmonic_slopes
from simgen.models.spline import DEGREE, RadialTable, bspline_pieces
from simgen.molecules import MoleculeBatch

MIN_DISTANCE = 0.75
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
SMALL = {"elements": (1, 6, 8), "n_channels": 4, "radial_widths": (8,), "r_max": 3.0}
CONFIGS = {
    "shipped": None,
    "invariant": NetworkConfig(**SMALL),
    "one_linear_layer": NetworkConfig(
        **SMALL, l_max=1, n_layers=1, readout_width=0, first_residual=True
    ),
    "vectors": NetworkConfig(**SMALL, hidden_l_max=1, n_layers=3, l_max=2, correlation=2),
    "tensors": NetworkConfig(**SMALL, hidden_l_max=2, correlation=2, first_residual=True),
    "density": NetworkConfig(**SMALL, density_normalised=True, hidden_l_max=1, l_max=2),
}


@cache
def network(name: str, dtype: torch.dtype) -> ForceField:
    config = CONFIGS[name]
    if config is None:
        model = load_model("small")
    else:
        energies = [-0.5 * z for z in config.elements]
        model = ForceField(config, atomic_energies=energies, scale=3.0, shift=0.25, seed=1)
    return copy.deepcopy(model).to(dtype).requires_grad_(False)


@cache
def frozen(name: str, dtype: torch.dtype, n_layers: int, near: bool) -> FrozenForceField:
    return FrozenForceField(
        network(name, dtype), n_layers=n_layers, min_distance=MIN_DISTANCE if near else None
    )


@cache
def typical(name: str, n_layers: int) -> float:
    """Root mean square of the invariants of a molecule."""
    batch = random_batch((1, 6, 8), counts=(12,))
    invariants = network(name, torch.float64).node_invariants(batch, n_layers=n_layers)
    return float(invariants.square().mean().sqrt())


def distance(actual: Tensor, expected: Tensor) -> float:
    """Relative, in the norm of all values."""
    return float((actual - expected).norm() / expected.norm())


@st.composite
def batches(draw: st.DrawFn, elements: tuple[int, ...] = (1, 6, 8)) -> MoleculeBatch:
    """Molecules dense and loose, with lonely and with coinciding atoms."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([0.3, 1.0, 2.0, 6.0]))
    molecules = []
    for count in draw(st.lists(st.integers(1, 8), min_size=1, max_size=4)):
        positions = spread * rng.normal(size=(count, 3))
        if count > 1 and draw(st.booleans()):
            positions[1] = positions[0] + draw(st.sampled_from([0.0, 1e-3, 0.5]))
        molecules.append((rng.choice(elements, count), positions))
    return MoleculeBatch.from_arrays(molecules, dtype=torch.float64)


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(name=st.sampled_from(list(CONFIGS)), batch=batches(), seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_invariants_and_their_gradients(
    dtype: torch.dtype, name: str, batch: MoleculeBatch, seed: int
) -> None:
    model, batch = network(name, dtype), batch.to(dtype=dtype)
    if dtype == torch.float32:
        # Functions vanish at the cutoff, and with them the digits of the distances they are of.
        r = edge_vectors(batch.positions, molecule_pairs(batch)).norm(dim=1)
        assume(not ((r > 0.85 * model.config.r_max) & (r < model.config.r_max)).any())
    for n_layers in {1, model.config.n_layers}:
        positions = batch.positions.clone().requires_grad_()
        expected = model.node_invariants(
            batch.replace(positions=positions), n_layers=n_layers, min_distance=MIN_DISTANCE
        )
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(expected.shape, dtype=dtype, generator=generator)
        (gradient,) = torch.autograd.grad(
            (weight * expected).sum(), positions, materialize_grads=True
        )
        expected = expected.detach()
        features, pullback = frozen(name, dtype, n_layers, True).linearise(batch)
        # Where atoms hardly touch, or parts of a force cancel, the parts give the scale.
        scale = max(expected.norm(), 0.03 * typical(name, n_layers) * expected.numel() ** 0.5)
        assert float((features - expected).norm()) <= TOLERANCE[dtype] * scale
        scale = max(gradient.norm(), 0.1 * weight.norm() * scale)
        assert float((pullback(weight) - gradient).norm()) <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CONFIGS)
def test_energies_and_forces(name: str, dtype: torch.dtype) -> None:
    model = network(name, dtype)
    batch = random_batch((1, 6, 8), counts=(7, 1, 12, 4), dtype=dtype)
    expected, expected_forces = model.energy_and_forces(batch)
    energies, forces = frozen(name, dtype, model.config.n_layers, False).energy_and_forces(batch)
    assert distance(energies, expected) < TOLERANCE[dtype]
    assert distance(forces, expected_forces) < TOLERANCE[dtype]
    assert expected_forces.norm() > 0.1


def test_forces_are_the_slope_of_the_energy() -> None:
    field = frozen("shipped", torch.float64, 2, False)
    batch = random_batch((1, 6, 8), counts=(9,))
    _, forces = field.energy_and_forces(batch)
    direction = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = 1e-4
    ahead, behind = (
        field.energy_and_forces(batch.replace(positions=batch.positions + sign * step * direction))
        for sign in (1, -1)
    )
    slope = (ahead[0] - behind[0]) / (2 * step)
    assert -slope.item() == pytest.approx((forces * direction).sum().item(), rel=1e-6)


def test_energy_is_smooth_at_the_cutoff() -> None:
    field = frozen("invariant", torch.float64, 2, False)

    def force(r: float) -> float:
        batch = MoleculeBatch.from_arrays([([6, 8], [[0, 0, 0], [r, 0, 0]])], dtype=torch.float64)
        return field.energy_and_forces(batch)[1][1, 0].item()

    assert force(3.0) == 0.0
    assert abs(force(3.0 - 1e-5)) < 1e-6 < abs(force(2.5))


def test_molecules_do_not_see_each_other() -> None:
    field = frozen("vectors", torch.float64, 3, False)
    batch = random_batch((1, 6, 8), counts=(7, 1, 5))
    energies, forces = field.energy_and_forces(batch)
    alone = [field.energy_and_forces(part) for part in batch.split()]
    torch.testing.assert_close(torch.cat([e for e, _ in alone]), energies)
    torch.testing.assert_close(torch.cat([f for _, f in alone]), forces)


def test_nothing_and_single_atoms() -> None:
    model, field = network("shipped", torch.float64), frozen("shipped", torch.float64, 2, False)
    nothing = MoleculeBatch.from_arrays([], dtype=torch.float64)
    features, pullback = field.linearise(nothing)
    assert features.shape == (0, 192)
    assert pullback(features).shape == (0, 3)
    assert [len(part) for part in field.energy_and_forces(nothing)] == [0, 0]
    atoms = MoleculeBatch.from_arrays([([z], [[0, 0, 0]]) for z in (1, 8)], dtype=torch.float64)
    energies, forces = field.energy_and_forces(atoms)
    torch.testing.assert_close(energies, model.energy_and_forces(atoms)[0])
    assert (forces == 0).all()


def test_unknown_elements_are_refused() -> None:
    with pytest.raises(InputError, match="got Fe"):
        frozen("invariant", torch.float64, 2, False).energy_and_forces(random_batch((26,)))


def test_atoms_that_are_not_finite_harm_no_other_molecule() -> None:
    field = frozen("shipped", torch.float32, 1, True)
    batch = random_batch((1, 6, 8), counts=(4, 4), dtype=torch.float32)
    positions = batch.positions.clone()
    positions[:4] = torch.nan
    features, pullback = field.linearise(batch.replace(positions=positions))
    whole, _ = field.linearise(batch)
    torch.testing.assert_close(features[4:], whole[4:])
    assert torch.isfinite(pullback(torch.ones_like(features))[4:]).all()


def test_later_weights_are_not_seen() -> None:
    model = copy.deepcopy(network("invariant", torch.float64))
    field, batch = FrozenForceField(model), random_batch((1, 6, 8))
    before, _ = field.energy_and_forces(batch)
    with torch.no_grad():
        model.embedding.mul_(2.0)
    torch.testing.assert_close(field.energy_and_forces(batch)[0], before)


# --- pieces ------------------------------------------------------------------------------------


@pytest.mark.parametrize("l_max", [0, 1, 2, 3])
def test_slopes_of_harmonics(l_max: int) -> None:
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for place in x:
        jacobian = torch.autograd.functional.jacobian(
            lambda v: spherical_harmonics(v[None], l_max)[0], place
        )
        values = spherical_harmonics(place[None], l_max)
        slopes = (values @ harmonic_slopes(l_max)).view(3, -1).T
        torch.testing.assert_close(slopes, jacobian, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("degree", [1, 3, DEGREE])
def test_pieces_of_a_spline(degree: int) -> None:
    spline = BSpline.basis_element(np.arange(degree + 2.0))
    t = np.linspace(0.05, 0.95, 7)
    values = t[:, None] ** np.arange(degree + 1) @ bspline_pieces(degree)
    # The copy that began last is in its first piece.
    expected = np.stack([spline(t + degree - j) for j in range(degree + 1)], 1)
    np.testing.assert_allclose(values, expected, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-6)])
def test_table_of_known_functions(dtype: torch.dtype, tolerance: float) -> None:
    def functions(r: Tensor) -> Tensor:
        fade = (3.0 - r) ** 3
        return torch.stack([fade * torch.sin(3 * r), fade * torch.exp(-r), fade], 1)

    table = RadialTable(functions, 0.5, 3.0, dtype, "cpu")
    assert table.n_basis == 3
    r = torch.linspace(0.5, 2.999, 501, dtype=torch.float64)
    phi, slope = table.basis(r.to(dtype))
    mixing = table.mixing.to(dtype)
    leaf = r.clone().requires_grad_()
    columns = functions(leaf).sum(0)
    expected = torch.stack(
        [torch.autograd.grad(column, leaf, retain_graph=True)[0] for column in columns], 1
    )
    assert distance((phi @ mixing).double(), functions(r)) < tolerance
    assert distance((slope @ mixing).double(), expected) < 10 * tolerance
    beyond, _ = table.basis(torch.tensor([3.0, 5.0], dtype=dtype))
    assert (beyond == 0).all()


def test_rough_functions_cannot_be_tabulated() -> None:
    with pytest.raises(InputError, match="smooth"):
        RadialTable(lambda r: (r > 1.1).double()[:, None], 0.0, 3.0, torch.float32, "cpu")
