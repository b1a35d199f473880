"""Compiled loops against the same in torch, and what happens without a compiler."""

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from physics import random_batch

from simgen.cohesion import Cohesion
from simgen.density import Repulsion
from simgen.kernel import References, extend, log_kernel
from simgen.models import ForceField, FrozenForceField, NetworkConfig, compiled
from simgen.models.compiled import Matrices, library
from simgen.molecules import MoleculeBatch

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
SMALL = {"elements": (1, 6, 8), "n_channels": 11, "radial_widths": (8,), "r_max": 3.0}
CONFIGS = {
    "three_layers": NetworkConfig(**SMALL, n_layers=3, l_max=2),
    "residual": NetworkConfig(**SMALL, first_residual=True, l_max=3, correlation=2),
    "scalars": NetworkConfig(**SMALL, l_max=0, correlation=3, readout_width=0),
}

pytestmark = pytest.mark.skipif(library(torch.float64) is None, reason="no C compiler here")


@cache
def fields(name: str, dtype: torch.dtype) -> tuple[FrozenForceField, FrozenForceField]:
    """The same weights, with and without compiled loops."""
    model = ForceField(CONFIGS[name], scale=3.0, seed=1).to(dtype).requires_grad_(False)
    with patch("simgen.models.frozen.library_for", return_value=None):
        plain = FrozenForceField(model, min_distance=0.75)
    return FrozenForceField(model, min_distance=0.75), plain


@st.composite
def batches(draw: st.DrawFn) -> MoleculeBatch:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([0.3, 1.0, 4.0]))
    counts = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    return MoleculeBatch.from_arrays(
        [(rng.choice([1, 6, 8], n), spread * rng.normal(size=(n, 3))) for n in counts],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(name=st.sampled_from(list(CONFIGS)), batch=batches(), seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_loops_agree_with_torch(
    dtype: torch.dtype, name: str, batch: MoleculeBatch, seed: int
) -> None:
    fast, plain = fields(name, dtype)
    batch = batch.to(dtype=dtype)
    expected, expected_pullback = plain.linearise(batch)
    features, pullback = fast.linearise(batch)
    weight = torch.randn(expected.shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    gradient = expected_pullback(weight)
    scale = float(expected.norm())
    assert float((features - expected).norm()) <= TOLERANCE[dtype] * scale
    scale = max(float(gradient.norm()), 0.1 * float(weight.norm()) * scale)
    assert float((pullback(weight) - gradient).norm()) <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(batch=batches(), closed=st.sets(st.integers(0, 8), max_size=3))
@settings(max_examples=60, deadline=None)
def test_cohesion_and_repulsion_agree_with_torch(
    dtype: torch.dtype, batch: MoleculeBatch, closed: set[int]
) -> None:
    batch = batch.to(dtype=dtype)
    for term, module in ((Cohesion(closed=sorted(closed)), "cohesion"), (Repulsion(), "density")):
        with patch(f"simgen.{module}.library_for", return_value=None):
            expected = term.score(batch, 0.3)
        tolerance = TOLERANCE[dtype] * max(1.0, float(expected.norm()))
        assert float((term.score(batch, 0.3) - expected).norm()) <= tolerance


def test_fragments_share_equal_gaps() -> None:
    """An atom between two others at the same distance is drawn to neither, both are drawn to it."""
    line = 2.5 * torch.tensor([[-1.0, 0, 0], [0.0, 0, 0], [1.0, 0, 0], [9.0, 0, 0], [9.1, 0, 0]])
    batch = MoleculeBatch.from_arrays([([6] * 5, line)] * 2, dtype=torch.float64)
    with patch("simgen.cohesion.library_for", return_value=None):
        expected = Cohesion().score(batch, 0.1)
    torch.testing.assert_close(Cohesion().score(batch, 0.1), expected)
    assert float(expected[1].norm()) < float(expected[0].norm())


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(
    n_rows=st.integers(1, 40),
    n_inner=st.sampled_from([1, 2, 35, 96]),
    n_columns=st.sampled_from([1, 11, 48, 50, 175]),
    n_matrices=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_rows_of_products_do_not_depend_on_one_another(
    dtype: torch.dtype, n_rows: int, n_inner: int, n_columns: int, n_matrices: int, seed: int
) -> None:
    code = library(dtype)
    assert code is not None
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n_matrices, n_rows, n_inner, dtype=dtype, generator=generator)
    b = torch.randn(n_matrices, n_inner, n_columns, dtype=dtype, generator=generator)
    matrices = Matrices(code, b)
    product = matrices(a)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    assert torch.allclose(product, torch.bmm(a, b), rtol=tolerance, atol=tolerance * n_inner)
    chosen = slice(seed % n_rows, n_rows)
    # A part of a larger tensor, into a part of another one.
    wide = torch.zeros(n_matrices, n_rows, n_columns + 1, dtype=dtype)
    matrices(a[:, chosen], wide[:, chosen, 1:])
    assert torch.equal(wide[:, chosen, 1:], product[:, chosen])
    assert not wide[:, : chosen.start].any() and not wide[..., 0].any()


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(name=st.sampled_from(list(CONFIGS)), batch=batches(), seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_a_molecule_is_the_same_beside_any_other(
    dtype: torch.dtype, name: str, batch: MoleculeBatch, seed: int
) -> None:
    """Bit for bit, even if another one is not finite."""
    fast, _ = fields(name, dtype)
    batch = batch.to(dtype=dtype)
    assert fast.is_batch_invariant(batch)
    features, pullback = fast.linearise(batch)
    weight = torch.randn(features.shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    gradient = pullback(weight)
    for k in range(batch.n_molecules):
        own = batch.molecule_idx == k
        alone, pullback = fast.linearise(batch[k])
        assert torch.equal(alone, features[own])
        assert torch.equal(pullback(weight[own].contiguous()), gradient[own])
    weight[batch.molecule_idx == 0] = torch.nan
    others = batch.molecule_idx > 0
    _, pullback = fast.linearise(batch)
    assert torch.equal(pullback(weight)[others], gradient[others])


# --- terms that matter ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(
    n_features=st.sampled_from([3, 31, 33, 96]),
    n_references=st.sampled_from([1, 5, 64, 700]),
    decay=st.floats(0.0, 3.0),
    distance=st.sampled_from([0.3, 1.0, 30.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_few_references_are_as_good_as_all(
    dtype: torch.dtype,
    n_features: int,
    n_references: int,
    decay: float,
    distance: float,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    scales = np.logspace(0, -decay, n_features)
    references = rng.normal(size=(n_references, n_features)) * scales
    references -= references.mean(0)
    features = distance * references[rng.integers(n_references, size=7)]
    a = torch.as_tensor(features + 0.1 * rng.normal(size=features.shape))
    b, precision = torch.as_tensor(references), torch.as_tensor(50 * rng.random(7))
    expected, gradient = log_kernel(a, extend(b), precision, with_gradient=True)
    near = partial(References(b.to(dtype)).log_kernel, a.to(dtype), precision.to(dtype))
    log_k, found = near(with_gradient=True)
    assert gradient is not None and found is not None
    # The square of a feature is taken off what the sum has.
    scale = 1.0 + float((precision * a.square().sum(1)).max())
    assert float((log_k - expected).abs().max()) <= TOLERANCE[dtype] * scale
    # Where parts of the gradient cancel, the parts give the scale.
    scale = max(float(gradient.norm()), float((precision[:, None] * a).norm()))
    assert float((found - gradient).norm()) <= TOLERANCE[dtype] * scale
    without, nothing = near(with_gradient=False)
    assert torch.equal(without, log_k) and nothing is None
    # The same, bit for bit, without the other atoms.
    alone = References(b.to(dtype)).log_kernel(a[5:].to(dtype), precision[5:].to(dtype))
    assert torch.equal(alone[0], log_k[5:])
    assert alone[1] is not None and torch.equal(alone[1], found[5:])


def test_references_are_left_out() -> None:
    """Whatever is far is not even looked at: not a number in it would show."""
    rng = np.random.default_rng(0)
    b = torch.as_tensor(rng.normal(size=(101, 41)))
    b[64:] += 100.0
    a, precision = b[:3] + 0.1, torch.full((3,), 0.1, dtype=torch.float64)
    expected, gradient = log_kernel(a, extend(b), precision, with_gradient=True)
    references = References(b)
    references._rows[64:101] = torch.nan
    log_k, found = references.log_kernel(a, precision)
    assert gradient is not None and found is not None
    assert torch.allclose(log_k, expected, rtol=1e-12)
    assert torch.allclose(found, gradient, rtol=1e-10)


def test_what_is_not_finite_stays_so() -> None:
    references = References(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
    features = torch.zeros(3, 4)
    features[1] = torch.nan
    log_k, gradient = references.log_kernel(features, torch.ones(3))
    assert gradient is not None
    assert torch.isfinite(log_k).tolist() == [True, False, True]
    assert torch.isfinite(gradient).all(1).tolist() == [True, False, True]


# --- the compiler --------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.cache_clear()
    yield tmp_path / "simgen"
    library.cache_clear()


def test_it_is_compiled_once(fresh: Path) -> None:
    assert library(torch.float32) is not None
    (built,) = fresh.iterdir()
    before = built.stat().st_mtime_ns
    library.cache_clear()
    assert library(torch.float32) is not None
    assert built.stat().st_mtime_ns == before


def test_processors_with_narrow_registers(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "FLAGS", (*compiled.FLAGS, "-mno-avx512f"))
    code = library(torch.float32)
    if code is None:
        pytest.skip("another kind of processor")
    assert code.panel_width() == 24
    model = ForceField(CONFIGS["residual"], scale=3.0, seed=1).requires_grad_(False)
    batch = random_batch((1, 6, 8), dtype=torch.float32)
    energies, forces = FrozenForceField(model).energy_and_forces(batch)
    expected, expected_forces = model.energy_and_forces(batch)
    torch.testing.assert_close(energies, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(forces, expected_forces, rtol=1e-4, atol=1e-4)
    a, b = torch.randn(2, 50, 41, generator=torch.Generator().manual_seed(0)).unbind(0)
    precision = torch.full((50,), 0.1)
    log_k, gradient = References(b).log_kernel(a, precision)
    expected, slopes = log_kernel(a, extend(b), precision, with_gradient=True)
    torch.testing.assert_close(log_k, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, slopes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compiler", [None, "/bin/false", "/nowhere/cc"])
def test_without_a_compiler_torch_does_it(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, compiler: str | None
) -> None:
    monkeypatch.setattr(compiled.shutil, "which", lambda name: compiler)
    assert library(torch.float64) is None
    model = ForceField(CONFIGS["scalars"], seed=1).requires_grad_(False).double()
    batch = random_batch((1, 6, 8))
    energies, _ = FrozenForceField(model).energy_and_forces(batch)
    torch.testing.assert_close(energies, model.energy_and_forces(batch)[0])


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    library.cache_clear()
    assert library(torch.float32) is None
    library.cache_clear()
