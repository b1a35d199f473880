import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

from simgen.density import (
    MAX_SCORE,
    ReferenceEnvironments,
    Repulsion,
    SimilarityKernel,
    SimilarityScore,
    clip_score,
    score_of,
)
from simgen.errors import InputError
from simgen.graph import Layout, molecule_pairs
from simgen.kernel import extend, log_kernel
from simgen.molecules import MoleculeBatch
from simgen.priors import Gaussian, PointCloud, PriorForm
from simgen.schedules import kernel_sharpness


class ShellDescriptor:
    """Toy: neighbours of each element in soft shells about an atom, and the atom's own element."""

    calls = 0

    def __call__(self, batch: MoleculeBatch, pairs: Tensor | None = None) -> Tensor:
        self.calls += 1
        sender, receiver = molecule_pairs(batch) if pairs is None else pairs
        x, z = batch.positions, batch.atomic_numbers
        squares = (x[sender] - x[receiver]).square().sum(1, keepdim=True)
        widths = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=x.dtype)
        shells = torch.exp(-squares / widths)
        charge = z[sender].to(x.dtype)[:, None] / 6
        features = torch.cat([shells, charge * shells], dim=1)
        neighbours = x.new_zeros(len(x), 8).index_add(0, receiver, features)
        return torch.cat([neighbours, z.to(x.dtype)[:, None] / 6], dim=1)


def random_batch(counts: list[int], seed: int = 0, scale: float = 1.5) -> MoleculeBatch:
    rng = np.random.default_rng(seed)
    return MoleculeBatch.from_arrays(
        [(rng.integers(6, 9, n), scale * rng.normal(size=(n, 3))) for n in counts],
        dtype=torch.float64,
    )


def environments() -> ReferenceEnvironments:
    reference = random_batch([5, 6, 7], seed=1)
    return ReferenceEnvironments(ShellDescriptor()(reference), reference.atomic_numbers)


def make_kernel(**options: object) -> SimilarityKernel:
    return SimilarityKernel(ShellDescriptor(), environments(), **options)  # type: ignore[arg-type]


def slow_log_k(
    features: Tensor, reference: Tensor, sigma: float, widths: np.ndarray | None = None
) -> np.ndarray:
    a, b = features.double().numpy(), reference.double().numpy()
    ell = np.mean([np.dot(row, row) for row in b])
    widths = np.ones(len(a)) if widths is None else widths
    m = 119 * (1 - (sigma / 10) ** 0.25) + 1
    return np.array(
        [
            logsumexp([-m * np.sum((row - other) ** 2) / (ell * s) / 2 for other in b])
            for row, s in zip(a, widths, strict=True)
        ]
    )


# --- similarity


@pytest.mark.parametrize("sigma", [1.0, 0.1, 1e-3])
def test_kernel_against_a_loop(sigma: float) -> None:
    batch, kernel = random_batch([4, 6]), make_kernel()
    expected = slow_log_k(ShellDescriptor()(batch), environments().features, sigma)
    np.testing.assert_allclose(-kernel.atom_energies(batch, sigma).numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(
        kernel.log_prob(batch, sigma).detach().numpy(),
        [expected[:4].sum(), expected[4:].sum()],
        rtol=1e-10,
    )


def test_widths_of_elements() -> None:
    batch = random_batch([4, 6])
    widths = np.where(batch.atomic_numbers == 7, 2.5, np.where(batch.atomic_numbers == 8, 0.5, 1.0))
    expected = slow_log_k(ShellDescriptor()(batch), environments().features, 0.3, widths)
    energies = make_kernel(widths={7: 2.5, 8: 0.5}).atom_energies(batch, 0.3)
    np.testing.assert_allclose(-energies.numpy(), expected, rtol=1e-10)
    # An element beyond those with a width has width 1.
    torch.testing.assert_close(
        make_kernel(widths={1: 3.0}).atom_energies(batch, 0.3),
        make_kernel().atom_energies(batch, 0.3),
    )


def test_themes_are_kernels_of_their_own() -> None:
    """Each molecule gets what a kernel of its part of the reference, of the same scale, gives."""
    themes = [torch.arange(3, 9), torch.tensor([0, 2, 17])]
    kernel = make_kernel(themes=themes)
    batch = random_batch([4, 3, 5]).replace(theme=torch.tensor([1, 0, 1]))
    together = kernel.evaluate(batch, 0.1)
    log_probs = kernel.log_prob(batch, 0.1)
    first = 0
    for k, part in enumerate(batch.split()):
        reference = environments()
        members = themes[int(part.theme)]
        own = ReferenceEnvironments(reference.features[members], reference.atomic_numbers[members])
        scale = float(reference.length_scale / own.length_scale)
        expected = make_alone(own, scale).evaluate(part.replace(theme=torch.tensor([0])), 0.1)
        atoms = slice(first, first + part.n_atoms)
        torch.testing.assert_close(together.atom_energies[atoms], expected.atom_energies)
        torch.testing.assert_close(together.score[atoms], expected.score)
        torch.testing.assert_close(kernel.atom_energies(part, 0.1), expected.atom_energies)
        torch.testing.assert_close(log_probs[k], -expected.atom_energies.sum())
        first += part.n_atoms
    energies = kernel.reference_energies(0.1, theme=1)
    reference = environments()
    features = reference.features[themes[1]]
    precision = kernel_sharpness(0.1) / float(reference.length_scale)
    squares = torch.cdist(features, features).square().fill_diagonal_(math.inf)
    torch.testing.assert_close(energies, -torch.logsumexp(-0.5 * precision * squares, 1))


def make_alone(own: ReferenceEnvironments, scale: float) -> SimilarityKernel:
    """A kernel whose widths are those of a larger reference."""
    widths = dict.fromkeys(range(1, 10), scale)
    return SimilarityKernel(ShellDescriptor(), own, widths=widths)


def test_single_precision_survives_a_large_common_offset() -> None:
    batch, reference = random_batch([40]), environments()
    offset = 20 * torch.ones(9, dtype=torch.float64)
    features = ShellDescriptor()(batch) + offset
    shifted = ReferenceEnvironments(reference.features + offset, reference.atomic_numbers)

    def shifted_descriptor(batch: MoleculeBatch, pairs: Tensor | None = None) -> Tensor:
        return features.to(batch.positions.dtype)

    kernel = SimilarityKernel(shifted_descriptor, shifted.to(dtype=torch.float32))
    expected = slow_log_k(features, shifted.features, 1e-3)
    energies = kernel.atom_energies(batch.to(dtype=torch.float32), 1e-3)
    np.testing.assert_allclose(-energies.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a = torch.as_tensor(rng.normal(size=(23, 4)))
    b = extend(torch.as_tensor(rng.normal(size=(11, 4))))
    precision = torch.as_tensor(rng.random(23))
    whole = log_kernel(a, b, precision, with_gradient=True)
    monkeypatch.setattr("simgen.kernel.MAX_KERNEL_ELEMENTS", 50)
    parts = log_kernel(a, b, precision, with_gradient=True)
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-12)
    assert log_kernel(a, b, precision, with_gradient=False)[1] is None


def test_kernel_far_from_everything_is_finite() -> None:
    a, b = torch.full((1, 3), 1e4), extend(torch.zeros(2, 3))
    log_k, gradient = log_kernel(a, b, torch.full((1,), 100.0), with_gradient=True)
    assert log_k.item() == pytest.approx(-1.5e10 + math.log(2), rel=1e-5)
    assert gradient is not None
    torch.testing.assert_close(gradient, torch.full((1, 3), -1e6))


@pytest.mark.parametrize("sigma", [1.0, 0.05])
def test_similarity_score_is_the_gradient(sigma: float) -> None:
    batch, kernel = random_batch([4, 6]), make_kernel()
    positions = batch.positions.clone().requires_grad_()

    def log_prob(x: Tensor) -> Tensor:
        return kernel.log_prob(batch.replace(positions=x), sigma)

    assert torch.autograd.gradcheck(log_prob, (positions,))
    (gradient,) = torch.autograd.grad(log_prob(positions).sum(), positions)
    evaluation = kernel.evaluate(batch, sigma)
    torch.testing.assert_close(evaluation.score, gradient, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(evaluation.atom_energies, kernel.atom_energies(batch, sigma))
    assert not evaluation.score.requires_grad


def test_score_works_without_gradients_enabled() -> None:
    batch = random_batch([4])
    expected = make_kernel().score(batch, 0.5)
    with torch.no_grad():
        torch.testing.assert_close(make_kernel().score(batch, 0.5), expected)
        assert score_of(Repulsion())(batch, 0.5).abs().max() > 0


def test_chunks_change_nothing() -> None:
    batch = random_batch([4, 1, 6, 2, 1])
    for max_pairs in (1, 40):
        cut = make_kernel(max_pairs=max_pairs)
        whole = make_kernel().evaluate(batch, 0.5)
        torch.testing.assert_close(cut.evaluate(batch, 0.5), whole, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(cut.atom_energies(batch, 0.5), whole.atom_energies)


def test_molecules_do_not_see_each_other() -> None:
    kernel, batch = make_kernel(), random_batch([4, 6])
    together = kernel.evaluate(batch, 0.5)
    for part, own in zip(batch.split(), (slice(0, 4), slice(4, 10)), strict=True):
        alone = make_kernel().evaluate(part, 0.5)
        torch.testing.assert_close(together.score[own], alone.score, rtol=1e-10, atol=1e-12)
    moved = batch.positions.clone()
    moved[4:] = torch.nan
    poisoned = kernel.evaluate(batch.replace(positions=moved), 0.5)
    torch.testing.assert_close(poisoned.score[:4], together.score[:4])
    assert torch.isnan(poisoned.score[4:]).all()


def test_score_turns_with_the_molecule() -> None:
    batch = random_batch([6])
    rotation = torch.linalg.qr(torch.as_tensor(np.random.default_rng(2).normal(size=(3, 3))))[0]
    total = SimilarityScore(make_kernel(), [Repulsion()])
    turned = batch.replace(positions=batch.positions @ rotation.T + 3.0)
    torch.testing.assert_close(total(turned, 0.5), total(batch, 0.5) @ rotation.T)


@pytest.mark.parametrize(
    ("features", "numbers", "words"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "at least one"),
        (torch.zeros(2, 3), torch.zeros(1, dtype=torch.int64), "atomic numbers"),
        (torch.full((2, 3), torch.inf), torch.zeros(2, dtype=torch.int64), "finite"),
    ],
)
def test_unusable_references_are_refused(features: Tensor, numbers: Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        ReferenceEnvironments(features, numbers)


def test_impossible_options_are_refused() -> None:
    with pytest.raises(InputError, match="widths"):
        make_kernel(widths={6: 0.0})
    with pytest.raises(InputError, match="max_pairs"):
        make_kernel(max_pairs=0)


# --- layout


def test_layout_is_computed_once_and_covers_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    n_calls = 0

    def counting(batch: MoleculeBatch) -> Tensor:
        nonlocal n_calls
        n_calls += 1
        return molecule_pairs(batch)

    monkeypatch.setattr("simgen.graph.molecule_pairs", counting)
    batch, layout = random_batch([3, 5, 1, 4]), Layout(max_pairs=25)
    chunks = layout.chunks(batch)
    assert [chunk.n_molecules for chunk in chunks] == [1, 2, 1]
    parts = [chunk.of(batch) for chunk in chunks]
    assert torch.equal(MoleculeBatch.cat(parts).positions, batch.positions)
    assert torch.equal(MoleculeBatch.cat(parts).molecule_idx, batch.molecule_idx)
    for chunk, part in zip(chunks, parts, strict=True):
        assert torch.equal(chunk.pairs, molecule_pairs(part))
    assert layout.chunks(batch.replace(positions=batch.positions + 1)) is chunks
    assert n_calls == 3
    assert len(layout.chunks(random_batch([2]))) == 1
    assert n_calls == 4


def test_layouts_are_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simgen.graph.MAX_LAYOUTS", 2)
    layout, batches = Layout(), [random_batch([n]) for n in (2, 3, 4)]
    first, second, third = (layout.chunks(batch) for batch in batches)
    assert layout.chunks(batches[1]) is second
    assert layout.chunks(batches[2]) is third
    assert layout.chunks(batches[0]) is not first


def test_no_more_pairs_are_remembered_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simgen.graph.MAX_REMEMBERED_PAIRS", 20)
    layout, batches = Layout(), [random_batch([n]) for n in (3, 4, 5, 3)]  # 6, 12, 20, 6 pairs
    first, second = (layout.chunks(batch) for batch in batches[:2])
    assert layout.chunks(batches[0]) is first
    third = layout.chunks(batches[2])
    assert layout.chunks(batches[2]) is third
    layout.chunks(batches[3])
    assert layout.chunks(batches[1]) is not second


# --- the rest


def test_repulsion_against_a_loop() -> None:
    batch = random_batch([4, 5], scale=0.3)
    expected = [0.0, 0.0]
    for molecule, part in enumerate(batch.split()):
        x = part.positions.numpy()
        for i in range(len(x)):
            for j in range(i):
                expected[molecule] -= np.exp(-8 * np.linalg.norm(x[i] - x[j])) / 3
    for sigma in (1.0, 0.01):
        np.testing.assert_allclose(Repulsion().log_prob(batch, sigma).numpy(), expected, rtol=1e-12)


def test_repulsion_gradient() -> None:
    batch = random_batch([3, 2], scale=0.3)
    positions = batch.positions.clone().requires_grad_()
    repulsion = Repulsion()
    assert torch.autograd.gradcheck(
        lambda x: repulsion.log_prob(batch.replace(positions=x), 1.0), (positions,)
    )
    (gradient,) = torch.autograd.grad(
        repulsion.log_prob(batch.replace(positions=positions), 1.0).sum(), positions
    )
    torch.testing.assert_close(score_of(repulsion)(batch, 1.0), gradient)
    near = MoleculeBatch.from_arrays([([6, 6], [[0, 0, 0], [0.1, 0, 0]])])
    closest = score_of(repulsion)(near, 1.0)
    assert closest[0, 0] == pytest.approx(-8 / 3 * math.exp(-0.8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coinciding_atoms_have_no_repulsion_but_a_finite_score(dtype: torch.dtype) -> None:
    batch = MoleculeBatch.from_arrays([([6, 6, 6], np.zeros((3, 3)))], dtype=dtype)
    assert torch.equal(score_of(Repulsion())(batch, 1.0), torch.zeros(3, 3, dtype=dtype))
    assert Repulsion().log_prob(batch, 1.0).item() == pytest.approx(-1.0)


def test_clip() -> None:
    long, short = [3.0, 4.0, 0.0], [0.1, 0.2, 0.0]
    clipped = clip_score(torch.tensor([long, short, [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(clipped[0], torch.tensor(long) * (math.sqrt(3) / 5))
    assert clipped[1:].tolist() == torch.tensor([short, [0.0, 0.0, 0.0]]).tolist()


def test_only_similarity_is_clipped_and_everything_adds_up() -> None:
    batch = random_batch([5, 7], scale=0.7)
    kernel, prior = make_kernel(), Gaussian()
    total = SimilarityScore(kernel, [Repulsion(), prior])
    similarity = kernel.score(batch, 0.5)
    assert similarity.norm(dim=1).max() > MAX_SCORE
    expected = clip_score(similarity) + score_of(Repulsion())(batch, 0.5) + prior.score(batch, 0.5)
    torch.testing.assert_close(total(batch, 0.5), expected)
    torch.testing.assert_close(total.atom_energies(batch, 0.5), kernel.atom_energies(batch, 0.5))


def test_a_score_of_its_own_goes_before_automatic_differentiation() -> None:
    batch = random_batch([5])
    points = torch.tensor([[0.0, 0, 0], [2.0, 0, 0]])
    published = PointCloud(points, form=PriorForm.PUBLISHED)
    torch.testing.assert_close(score_of(published)(batch, 0.5), published.score(batch, 0.5))
    assert not torch.allclose(
        score_of(published)(batch, 0.5), score_of(PointCloud(points))(batch, 0.5), atol=1e-3
    )


def test_sharpness_is_that_of_the_noise_level() -> None:
    batch = random_batch([1])
    one = ReferenceEnvironments(environments().features[:1], environments().atomic_numbers[:1])
    kernel = SimilarityKernel(ShellDescriptor(), one)
    ratio = kernel.atom_energies(batch, 0.5) / kernel.atom_energies(batch, 1e-3)
    assert ratio.item() == pytest.approx(kernel_sharpness(0.5) / kernel_sharpness(1e-3))
