import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from physics import random_batch, random_rotation
from torch import Tensor

from simgen.benchmarks import descriptors as benchmark
from simgen.density import ReferenceEnvironments, SimilarityKernel, score_of
from simgen.descriptors import linearise
from simgen.descriptors.calibrated import STIFFNESS, Calibrated, mean_stiffness
from simgen.descriptors.force_field import MIN_DISTANCE, ForceFieldDescriptor
from simgen.descriptors.settings import DescriptorSettings, NetworkInvariants, TensorReduced
from simgen.descriptors.tensor_reduced import (
    N_NEIGHBOURS,
    TensorReducedDescriptor,
    couplings,
    random_mixing,
    random_signs,
)
from simgen.errors import ConfigError, LoadError
from simgen.graph import molecule_pairs
from simgen.models import ForceField, NetworkConfig, load_model, save_model
from simgen.molecules import MoleculeBatch
from simgen.reference import load_reference

R_MAX, N_RADIAL = 4.5, 8
VARIANTS = [{}, {"l_max": 3, "shared": True}]


@pytest.fixture
def batch() -> MoleculeBatch:
    return random_batch((6, 7, 8))


# --- an oracle that shares no code with the descriptor -------------------------------------------


def radial_functions(r: float) -> NDArray[np.float64]:
    """Bessel functions times the polynomial cutoff (Gasteiger et al., arXiv:2003.03123)."""
    u = r / R_MAX
    cutoff = 1 - 21 * u**5 + 35 * u**6 - 15 * u**7 if u < 1 else 0.0
    n = np.arange(1, N_RADIAL + 1)
    return math.sqrt(2 / R_MAX) * np.sin(n * math.pi * u) / r * cutoff


def densities(batch: MoleculeBatch, l_max: int) -> NDArray[np.float64]:
    """The unreduced A_znlm of every atom, (n_atoms, elements 6 to 8, n_radial, lm)."""
    from e3nn import o3

    result = np.zeros((batch.n_atoms, 3, N_RADIAL, (l_max + 1) ** 2))
    for j, i in molecule_pairs(batch).T.tolist():
        vector = batch.positions[i] - batch.positions[j]
        r = float(vector.norm())
        if r < R_MAX:
            y = o3.spherical_harmonics(
                list(range(l_max + 1)), vector, normalize=True, normalization="component"
            )
            radial = radial_functions(max(r, MIN_DISTANCE)) / math.sqrt(N_NEIGHBOURS)
            z = int(batch.atomic_numbers[j]) - 6
            result[i, z] += radial[:, None] * y.numpy()[None]
    return result


def blocks(density: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The density by degree l; the last axis is lm."""
    l_max = math.isqrt(density.shape[-1]) - 1
    return [density[..., ell**2 : (ell + 1) ** 2] for ell in range(l_max + 1)]


def mixing(n_channels: int, n_factors: int) -> NDArray[np.float64]:
    """W of elements 6 to 8, (n_factors, 3, n_radial, n_channels)."""
    weights = [random_mixing(z, N_RADIAL, n_channels, n_factors) for z in (6, 7, 8)]
    return torch.stack(weights, 1).numpy()


def oracle(batch: MoleculeBatch, l_max: int, shared: bool, n_channels: int) -> Tensor:
    """All features by explicit sums over densities, weights and e3nn's 3j symbols."""
    from e3nn import o3

    w = mixing(n_channels, 1 if shared else 3)
    density = densities(batch, l_max)
    reduced = [
        blocks(np.einsum("iznm,znk->ikm", density, w[0 if shared else factor]))
        for factor in range(3)
    ]
    products = [reduced[0][0][..., 0]]
    products += [(a * b).sum(-1) for a, b in zip(reduced[0], reduced[1], strict=True)]
    for a, b, c in couplings(l_max, 3):
        tensor = o3.wigner_3j(a, b, c, dtype=torch.float64).numpy()
        product = np.einsum(
            "abc,ika,ikb,ikc->ik", tensor, reduced[0][a], reduced[1][b], reduced[2][c]
        )
        products.append(product)
    signs = torch.stack([random_signs(z, n_channels) for z in batch.atomic_numbers.tolist()])
    values = np.stack(products, 1) * signs.numpy()[:, None] / math.sqrt(n_channels)
    return torch.from_numpy(values).flatten(1)


@pytest.mark.parametrize("l_max", [2, 3])
@pytest.mark.parametrize("shared", [True, False])
def test_products_are_explicit_sums(batch: MoleculeBatch, l_max: int, shared: bool) -> None:
    features = TensorReducedDescriptor(3, l_max=l_max, shared=shared)(batch)
    expected = oracle(batch, l_max, shared, 3)
    for index, (found, exact) in enumerate(
        zip(features.split(3, 1), expected.split(3, 1), strict=True)
    ):
        # A 3j symbol is defined up to its sign.
        sign = 1.0 if index < 2 + l_max else (found * exact).sum().sign()
        torch.testing.assert_close(found, sign * exact)
        assert exact.abs().max() > 1e-3


def test_degree_two_is_the_norm_of_the_reduced_density(batch: MoleculeBatch) -> None:
    n_channels, l_max = 5, 2
    features = TensorReducedDescriptor(n_channels, correlation=2, shared=True)(batch)
    density, w = densities(batch, l_max), mixing(n_channels, 1)[0]
    for i, z in enumerate(batch.atomic_numbers.tolist()):
        signs = random_signs(z, n_channels).numpy()
        for ell, k in itertools.product(range(l_max + 1), range(n_channels)):
            p = 0.0
            for m in range(ell**2, (ell + 1) ** 2):
                p += (
                    sum(
                        w[e, n, k] * density[i, e, n, m]
                        for e, n in itertools.product(range(3), range(N_RADIAL))
                    )
                    ** 2
                )
            found = float(features[i, (1 + ell) * n_channels + k])
            assert found == pytest.approx(signs[k] * p / math.sqrt(n_channels), rel=1e-10)


@pytest.mark.parametrize(("l_max", "numbers"), [(0, (1, 1, 1)), (2, (1, 3, 5)), (3, (1, 4, 8))])
def test_couplings_are_all_independent_invariants(l_max: int, numbers: tuple[int, ...]) -> None:
    """As many as the product basis of the networks finds by orthogonalisation."""
    from simgen.models.product import symmetric_basis

    for degree, number in enumerate(numbers, 1):
        assert len(couplings(l_max, degree)) == number
        assert len(symmetric_basis(l_max, 0, degree)[0]) == number


# --- convergence to the unreduced products -------------------------------------------------------


def unreduced_kernel(batch: MoleculeBatch, l_max: int) -> NDArray[np.float64]:
    """Scalar products of all products of degree 1 to 3 of the unreduced densities."""
    from e3nn import o3

    density = densities(batch, l_max)
    a = [block.reshape(len(density), -1, block.shape[-1]) for block in blocks(density)]
    products = [a[0][..., 0]]
    products += [np.einsum("ium,ivm->iuv", x, x) for x in a]
    for p, q, r in couplings(l_max, 3):
        tensor = o3.wigner_3j(p, q, r, dtype=torch.float64).numpy()
        products.append(np.einsum("abc,iua,ivb,iwc->iuvw", tensor, a[p], a[q], a[r], optimize=True))
    flat = np.concatenate([x.reshape(len(density), -1) for x in products], 1)
    same = batch.atomic_numbers[:, None] == batch.atomic_numbers
    return flat @ flat.T * same.numpy()


def test_sketches_converge_to_the_unreduced_kernel() -> None:
    batch = random_batch((6, 7, 8), counts=(6, 5))
    expected = unreduced_kernel(batch, l_max=2)

    def error(n_channels: int) -> float:
        features = TensorReducedDescriptor(n_channels)(batch).numpy()
        return float(np.linalg.norm(features @ features.T - expected) / np.linalg.norm(expected))

    errors = [error(n) for n in (2**6, 2**10, 2**14)]
    assert errors[2] < 0.05
    # Sixteen times smaller for 256 times as many channels, within what chance makes of it.
    assert errors[0] > errors[1] > errors[2]
    assert 8 < errors[0] / errors[2] < 32


def test_unreduced_kernel_of_the_benchmark() -> None:
    batch = random_batch((6, 7, 8), counts=(6, 5))
    expected = torch.from_numpy(unreduced_kernel(batch, l_max=2))
    torch.testing.assert_close(benchmark.unreduced_kernel(batch), expected)


def test_picture_of_the_convergence(tmp_path: Path) -> None:
    batch = random_batch((6, 7, 8), counts=(6, 5))
    found = benchmark.convergence(batch, (8, 512), seeds=(0,))
    few, many = (point for point in found if not point.shared)
    assert (few.n_channels, many.n_channels) == (8, 512)
    assert few.kernel_error > 2 * many.kernel_error
    assert few.distance_correlation < many.distance_correlation
    assert many.distance_correlation > 0.95
    benchmark.plot_convergence(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_decompositions_converge_to_their_own_kernel() -> None:
    """Of degree 2 that of Gaussian moments: 2 <P, P'> + tr P tr P' for each l."""
    batch = random_batch((6,), counts=(6,))
    n_channels = 2**14
    describe = TensorReducedDescriptor(n_channels, correlation=2, shared=True)
    features = describe(batch)[:, n_channels:].numpy()
    expected = np.zeros((6, 6))
    for block in blocks(densities(batch, 2)):
        flat = block.reshape(6, -1, block.shape[-1])
        p = np.einsum("ium,ivm->iuv", flat, flat)
        trace = np.trace(p, axis1=1, axis2=2)
        expected += 2 * np.einsum("iuv,juv->ij", p, p) + np.outer(trace, trace)
    np.testing.assert_allclose(features @ features.T, expected, rtol=0.05)


# --- symmetry ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_rigid_motions_and_mirror_images(batch: MoleculeBatch, variant: dict[str, Any]) -> None:
    describe = TensorReducedDescriptor(4, **variant)
    features = describe(batch)
    for determinant in (1, -1):
        turned = batch.positions @ random_rotation(1, determinant).T + 3.0
        torch.testing.assert_close(
            describe(batch.replace(positions=turned)), features, rtol=1e-9, atol=1e-11
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_order_of_atoms(batch: MoleculeBatch, variant: dict[str, Any]) -> None:
    describe = TensorReducedDescriptor(4, **variant)
    order = torch.tensor([4, 2, 0, 6, 1, 5, 3, 7, 10, 8, 11, 9])
    permuted = batch.replace(
        positions=batch.positions[order], atomic_numbers=batch.atomic_numbers[order]
    )
    torch.testing.assert_close(describe(permuted), describe(batch)[order], rtol=1e-9, atol=1e-11)


def test_molecules_of_a_batch_do_not_feel_each_other(batch: MoleculeBatch) -> None:
    describe = TensorReducedDescriptor(4)
    alone = torch.cat([describe(molecule) for molecule in batch.split()])
    torch.testing.assert_close(describe(batch), alone, rtol=1e-12, atol=1e-14)
    assert describe(batch[:0]).shape == (0, describe.n_features)


def test_elements_matter_where_they_are() -> None:
    """What is exchanged are the elements of an atom, of its neighbour, or of both."""
    positions = [[0.0, 0.0, 0.0], [1.4, 0.0, 0.0], [0.0, 1.2, 0.3]]

    def first(*numbers: int) -> Tensor:
        batch = MoleculeBatch.from_arrays([(numbers, positions)], dtype=torch.float64)
        return TensorReducedDescriptor(64)(batch)[0]

    carbon = first(6, 6, 8)
    norm = float(carbon.norm())
    for other in (first(7, 6, 8), first(6, 7, 8), first(6, 8, 6), first(16, 6, 8)):
        assert float((carbon - other).norm()) > 0.2 * norm
    # Another element of the atom itself: all the same but for signs.
    torch.testing.assert_close(first(7, 6, 8).abs(), carbon.abs())


# --- derivatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients(variant: dict[str, Any]) -> None:
    batch = random_batch((6, 7, 8), counts=(3, 1))
    describe = TensorReducedDescriptor(2, **variant)

    def features(positions: Tensor) -> Tensor:
        return describe(batch.replace(positions=positions))

    positions = batch.positions.clone().requires_grad_()
    assert torch.autograd.gradcheck(features, positions)
    weight = torch.from_numpy(np.random.default_rng(0).normal(size=(4, describe.n_features)))
    found, pullback = linearise(describe, batch, molecule_pairs(batch))
    (expected,) = torch.autograd.grad(features(positions), positions, weight)
    torch.testing.assert_close(pullback(weight), expected)
    assert not found.requires_grad
    assert torch.all(expected[3] == 0)


def pair_features(distance: Tensor) -> Tensor:
    zero = torch.zeros((), dtype=torch.float64)
    positions = torch.stack([torch.zeros(3).double(), torch.stack([distance, zero, zero])])
    batch = MoleculeBatch(positions, torch.tensor([6, 8]), torch.zeros(2, dtype=torch.int64))
    return TensorReducedDescriptor(2)(batch).sum()


def test_smooth_at_the_cutoff() -> None:
    def derivatives(distance: float) -> list[float]:
        x = torch.tensor(distance, dtype=torch.float64, requires_grad=True)
        value = pair_features(x)
        first, *_ = torch.autograd.grad(value, x, create_graph=True, materialize_grads=True)
        second = torch.zeros_like(first)
        if first.requires_grad:
            second, *_ = torch.autograd.grad(first, x, materialize_grads=True)
        return [value.item(), first.item(), second.item()]

    far, near, beyond = (np.abs(derivatives(r)) for r in (2.5, R_MAX - 1e-4, R_MAX + 1e-4))
    assert np.all(near <= 1e-2 * far)
    assert np.all(far > 1e-3)
    assert np.all(beyond == 0.0)


def test_distances_are_clamped_and_coinciding_atoms_finite() -> None:
    at = [pair_features(torch.tensor(r, dtype=torch.float64)).item() for r in (0.3, 0.75, 0.9)]
    assert at[0] == pytest.approx(at[1], rel=1e-12)
    assert at[2] != pytest.approx(at[1], rel=1e-3)
    batch = MoleculeBatch.from_arrays([([6] * 3, np.zeros((3, 3)))], dtype=torch.float64)
    features, pullback = TensorReducedDescriptor(2).linearise(batch)
    assert torch.isfinite(features).all()
    assert torch.isfinite(pullback(torch.ones_like(features))).all()


# --- size, weights, errors -----------------------------------------------------------------------


def test_random_numbers_depend_on_their_own_indices_alone() -> None:
    small, large = random_mixing(6, 4, 8), random_mixing(6, 8, 64, 3)
    assert torch.equal(small[0], large[0, :4, :8])
    assert torch.equal(random_signs(6, 8), random_signs(6, 64)[:8])
    assert not torch.equal(random_mixing(7, 4, 8), small)
    assert not torch.equal(random_mixing(6, 4, 8, seed=1), small)
    numbers = random_mixing(6, 64, 256, 3)
    correlations = torch.corrcoef(numbers.flatten(1)) - torch.eye(3)
    assert float(correlations.abs().max()) < 0.03
    assert abs(float(numbers.mean())) < 0.02
    assert float(numbers.square().mean()) == pytest.approx(1.0, abs=0.03)
    assert float(numbers.pow(4).mean()) == pytest.approx(3.0, abs=0.15)
    assert abs(float(random_signs(6, 4096).mean())) < 0.06


def test_size_and_time_do_not_depend_on_the_number_of_elements() -> None:
    rng = np.random.default_rng(0)
    describe = TensorReducedDescriptor(32)
    grid = 1.4 * np.stack(np.meshgrid(*[np.arange(3.0)] * 3), axis=-1).reshape(-1, 3)[:12]

    def molecules(elements: list[int]) -> MoleculeBatch:
        return MoleculeBatch.from_arrays(
            [(rng.choice(elements, 12), grid + rng.uniform(-0.2, 0.2, (12, 3))) for _ in range(60)]
        )

    def seconds(batch: MoleculeBatch) -> float:
        describe(batch)
        times = []
        for _ in range(5):
            start = time.process_time()
            describe(batch)
            times.append(time.process_time() - start)
        return min(times)

    few, many = molecules([6, 7]), molecules(list(range(5, 45)))
    assert describe(few).shape == describe(many).shape == (720, 32 * 9)
    # Twenty times as many elements; the unreduced products would be 400 times and more as many.
    assert seconds(many) < 3 * seconds(few)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_channels": 0}, "n_channels"),
        ({"l_max": 4}, "l_max"),
        ({"correlation": 4}, "correlation"),
        ({"r_max": 0.5}, "r_max > 0.75"),
        ({"seed": -1}, "seed"),
    ],
)
def test_numbers_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TensorReduced(**changes)


# --- calibration ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def organic() -> MoleculeBatch:
    """Heavy atoms of some reference molecules."""
    chosen = load_reference("organic").select((9, 9), elements=(1, 6, 7, 8), n_molecules=24)
    return MoleculeBatch.from_arrays(
        [(m.atomic_numbers[m.kept], m.positions[m.kept]) for m in chosen.molecules]
    )


def environments(descriptor: Any, batch: MoleculeBatch) -> ReferenceEnvironments:
    with torch.no_grad():
        return ReferenceEnvironments(descriptor(batch), batch.atomic_numbers)


def test_stiffness_is_the_squared_norm_of_the_jacobian() -> None:
    batch = random_batch((6, 8), counts=(5,))
    describe = TensorReducedDescriptor(4)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: describe(batch.replace(positions=x)), batch.positions
    )
    expected = float(jacobian.square().sum()) / 5
    assert mean_stiffness(describe, batch) == pytest.approx(expected, rel=0.1)


def test_the_force_field_has_the_stiffness_that_others_get(organic: MoleculeBatch) -> None:
    field = ForceFieldDescriptor(load_model("small"))
    unit = float(environments(field, organic).length_scale)
    assert mean_stiffness(field, organic) / unit == pytest.approx(STIFFNESS, rel=0.2)
    reduced = Calibrated(TensorReducedDescriptor(16), organic)
    unit = float(environments(reduced, organic).length_scale)
    assert mean_stiffness(reduced, organic) / unit == pytest.approx(STIFFNESS, rel=0.1)


def test_energies_of_real_atoms_are_like_those_of_the_force_field(organic: MoleculeBatch) -> None:
    """Sharpness means the same: not adjusted to, but a consequence."""
    quartiles = []
    for descriptor in (
        ForceFieldDescriptor(load_model("small")),
        Calibrated(TensorReducedDescriptor(16), organic),
        Calibrated(TensorReducedDescriptor(16, shared=True), organic),
    ):
        kernel = SimilarityKernel(descriptor, environments(descriptor, organic))
        energies = kernel.reference_energies(1e-3)
        quartiles.append(energies.quantile(torch.tensor([0.25, 0.5, 0.75])))
    for found in quartiles[1:]:
        torch.testing.assert_close(found, quartiles[0], rtol=0.0, atol=1.0)


class Scaled:
    """Another descriptor times a number, with an offset."""

    def __init__(self, descriptor: Any, factor: float, offset: float) -> None:
        self.descriptor, self.factor, self.offset = descriptor, factor, offset

    def __call__(self, batch: MoleculeBatch, pairs: Tensor | None = None) -> Tensor:
        return self.factor * self.descriptor(batch, pairs) + self.offset

    def linearise(self, batch: MoleculeBatch) -> Any:
        features, pullback = self.descriptor.linearise(batch)
        return self.factor * features + self.offset, lambda g: self.factor * pullback(g)


def test_neither_scale_nor_offset_of_a_descriptor_matters(organic: MoleculeBatch) -> None:
    plain = TensorReducedDescriptor(8)
    molecule = organic[[0]]
    results = []
    for descriptor in (plain, Scaled(plain, 100.0, 30.0)):
        calibrated = Calibrated(descriptor, organic)
        kernel = SimilarityKernel(calibrated, environments(calibrated, organic))
        results.append(kernel.evaluate(molecule, 0.1))
    torch.testing.assert_close(
        results[0].atom_energies, results[1].atom_energies, atol=1e-3, rtol=0
    )
    torch.testing.assert_close(results[0].score, results[1].score, atol=1e-2, rtol=1e-3)


def test_calibrated_gradients() -> None:
    batch = random_batch((6, 7), counts=(5, 4))
    calibrated = Calibrated(TensorReducedDescriptor(4), batch)
    kernel = SimilarityKernel(calibrated, environments(calibrated, batch))

    class ByAutograd:
        def log_prob(self, batch: MoleculeBatch, sigma: float) -> Tensor:
            return kernel.log_prob(batch, sigma)

    jittered = batch.replace(positions=batch.positions + 0.05 * batch.positions.sin())
    expected = score_of(ByAutograd())(jittered, 0.3)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(kernel.score(jittered, 0.3), expected)


def test_a_reference_of_one_atom() -> None:
    batch = MoleculeBatch.from_arrays([([6], [[0.0, 0.0, 0.0]])])
    calibrated = Calibrated(TensorReducedDescriptor(4), batch)
    kernel = SimilarityKernel(calibrated, environments(calibrated, batch))
    assert torch.isfinite(kernel.evaluate(batch, 0.1).atom_energies).all()


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        NetworkInvariants(),
        NetworkInvariants("other", n_layers=None, trained=False),
        TensorReduced(n_channels=8, shared=True, seed=2**64 - 1),
    ],
)
def test_settings_survive_json(settings: DescriptorSettings) -> None:
    text = json.dumps(settings.to_dict())
    assert DescriptorSettings.from_dict(json.loads(text)) == settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "kind network or tensor_reduced, got None"),
        ({"kind": "tensor_reduced", "size": 3}, "unexpected keyword argument 'size'"),
        ({"kind": "tensor_reduced", "l_max": 9}, "l_max"),
        ({"kind": "network", "n_layers": 0}, "n_layers >= 1"),
    ],
)
def test_settings_that_are_none(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DescriptorSettings.from_dict(values)


@pytest.fixture(scope="module")
def field() -> ForceField:
    config = NetworkConfig(elements=(6, 7, 8), n_channels=4, l_max=1, correlation=2)
    return ForceField(config, seed=3).requires_grad_(False)


def test_networks_of_settings(field: ForceField, tmp_path: Path) -> None:
    batch = random_batch((6, 7, 8), dtype=torch.float32)

    def describe(settings: DescriptorSettings) -> Tensor:
        with torch.no_grad():
            return settings.build(settings.network(field), batch)(batch)

    def calibrated(invariants: Tensor) -> Tensor:
        return invariants - invariants.mean(0)

    first, both = (field.node_invariants(batch, n_layers=n) for n in (1, 2))
    torch.testing.assert_close(describe(NetworkInvariants()), first, rtol=1e-4, atol=1e-5)
    found = describe(NetworkInvariants(n_layers=None))
    assert found.shape == (batch.n_atoms, 2 * 4 + 1)
    torch.testing.assert_close(found[:, :-1], calibrated(both), rtol=1e-4, atol=1e-5)

    fresh = ForceField(field.config).node_invariants(batch).detach()
    found = describe(NetworkInvariants(trained=False))[:, :-1]
    torch.testing.assert_close(found, calibrated(fresh), rtol=1e-4, atol=1e-5)

    path = tmp_path / "other.safetensors"
    other = ForceField(field.config, seed=4)
    save_model(other, path, {})
    found = describe(NetworkInvariants(str(path)))[:, :-1]
    expected = calibrated(other.node_invariants(batch).detach())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    assert TensorReduced().network(field) is None
    assert describe(TensorReduced(n_channels=2)).shape == (batch.n_atoms, 2 * 9 + 1)
    with pytest.raises(ConfigError, match="n_layers <= 2"):
        NetworkInvariants(n_layers=3).network(field)
    with pytest.raises(LoadError):
        NetworkInvariants("no such model").network(field)
