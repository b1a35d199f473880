"""What descriptors cost, and how fast tensor reduction converges."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from simgen.density import ReferenceEnvironments, SimilarityKernel
from simgen.descriptors import Descriptor, linearise
from simgen.descriptors.settings import DescriptorSettings
from simgen.descriptors.tensor_reduced import (
    CUTOFF_POWER,
    N_NEIGHBOURS,
    TensorReducedDescriptor,
    couplings,
)
from simgen.evaluation.report import table
from simgen.graph import edge_vectors, molecule_pairs
from simgen.io import atomic_path
from simgen.models import ForceField
from simgen.models.angular import spherical_harmonics, wigner_3j
from simgen.models.radial import RadialBasis
from simgen.molecules import MoleculeBatch
from simgen.reference import load_reference

_L_MAX, _R_MAX, _N_RADIAL = 2, 4.5, 8
"""The defaults of the descriptor."""

CHANNELS = tuple(2**i for i in range(2, 12))
"""Numbers of channels of the picture in the documentation."""

_SIGMA = 0.1
"""Noise level, angstrom, of the calls that are timed; their time does not depend on it."""


# --- convergence ---------------------------------------------------------------------------------


def unreduced_kernel(batch: MoleculeBatch) -> Tensor:
    """Scalar products of all products of degree 1 to 3 of the densities of the atoms.

    What sketches converge to: (n_atoms, n_atoms). Their number grows as the cube of that of the
    elements; distances may not be below the clamp of the descriptor.
    """
    elements, element = torch.unique(batch.atomic_numbers, return_inverse=True)
    pairs = molecule_pairs(batch)
    vectors = edge_vectors(batch.positions, pairs)
    distances = torch.linalg.vector_norm(vectors, dim=1)
    radial = RadialBasis(_R_MAX, _N_RADIAL, CUTOFF_POWER).to(batch.positions)(distances)
    harmonics = spherical_harmonics(vectors / distances[:, None], _L_MAX)
    terms = radial[:, :, None] * harmonics[:, None] / math.sqrt(N_NEIGHBOURS)
    density = terms.new_zeros(batch.n_atoms * len(elements), *terms.shape[1:])
    density.index_add_(0, pairs[1] * len(elements) + element[pairs[0]], terms)
    # Pairs of element and radial function u, by degree: (n_atoms, n_u, 2 l + 1).
    density = density.view(batch.n_atoms, len(elements) * _N_RADIAL, -1)
    a = torch.split(density, [2 * ell + 1 for ell in range(_L_MAX + 1)], 2)
    kernel = a[0][..., 0] @ a[0][..., 0].T
    for ell, _ in couplings(_L_MAX, 2):
        kernel += _gram(torch.einsum("ium,ivm->iuv", a[ell], a[ell]))
    for p, q, r in couplings(_L_MAX, 3):
        symbol = torch.from_numpy(wigner_3j(p, q, r).copy()).to(density)
        pair = torch.einsum("abc,iua,ivb->iuvc", symbol, a[p], a[q])
        kernel += _gram(torch.einsum("iuvc,iwc->iuvw", pair, a[r]))
    result: Tensor = kernel * (element[:, None] == element)
    return result


def _gram(products: Tensor) -> Tensor:
    flat = products.flatten(1)
    return flat @ flat.T


@dataclass(frozen=True, slots=True)
class Convergence:
    """How close reduced products come to all of them.

    Attributes
    ----------
    n_channels : int
    shared : bool
        As those of the descriptor.
    kernel_error : float
        Norm of the difference of the kernels, relative to the norm of the unreduced one.
    distance_correlation : float
        Correlation of the distances between atoms of the same element with the unreduced ones.
    """

    n_channels: int
    shared: bool
    kernel_error: float
    distance_correlation: float


def convergence(
    batch: MoleculeBatch, n_channels: Sequence[int] = CHANNELS, seeds: Sequence[int] = range(4)
) -> list[Convergence]:
    """Compare reduced with unreduced products, the mean over seeds, shared factors and not."""
    exact = unreduced_kernel(batch)
    same = batch.atomic_numbers[:, None] == batch.atomic_numbers
    chosen = same & torch.ones_like(same).triu(1)
    found = []
    for shared in (True, False):
        for n in n_channels:
            errors, correlations = [], []
            for seed in seeds:
                describe = TensorReducedDescriptor(
                    n, l_max=_L_MAX, r_max=_R_MAX, n_radial=_N_RADIAL, shared=shared, seed=seed
                )
                kernel = _gram(describe(batch))
                errors.append(float((kernel - exact).norm() / exact.norm()))
                both = torch.stack([_distances(k)[chosen] for k in (kernel, exact)])
                correlations.append(float(torch.corrcoef(both)[0, 1]))
            n_seeds = len(seeds)
            found.append(Convergence(n, shared, sum(errors) / n_seeds, sum(correlations) / n_seeds))
    return found


def _distances(kernel: Tensor) -> Tensor:
    diagonal = kernel.diagonal()
    return (diagonal[:, None] + diagonal - 2 * kernel).clamp(min=0.0).sqrt()


def reference_batch(
    n_heavy_atoms: int, elements: Sequence[int], n_molecules: int, dtype: torch.dtype
) -> MoleculeBatch:
    """Heavy atoms of reference molecules of one size."""
    sizes = (n_heavy_atoms, n_heavy_atoms)
    chosen = load_reference("organic").select(sizes, elements=elements, n_molecules=n_molecules)
    return MoleculeBatch.from_arrays(
        [(m.atomic_numbers[m.kept], m.positions[m.kept]) for m in chosen.molecules], dtype=dtype
    )


def plot_convergence(found: Sequence[Convergence], path: Path) -> None:
    """Draw what :func:`convergence` returns, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    error_axes, correlation_axes = figure.subplots(1, 2)
    for shared, name, colour in (
        (False, "sketching: factors of their own", "#1f77b4"),
        (True, "decomposition: shared factors", "#d62728"),
    ):
        points = [point for point in found if point.shared == shared]
        n_channels = [point.n_channels for point in points]
        if not shared:
            errors = [point.kernel_error for point in points]
            error_axes.loglog(n_channels, errors, "o-", color=colour, label=name)
            guide = [errors[-1] * math.sqrt(n_channels[-1] / n) for n in n_channels]
            error_axes.loglog(n_channels, guide, "--", color="0.6", label=r"$\propto K^{-1/2}$")
        correlations = [1 - point.distance_correlation for point in points]
        correlation_axes.loglog(n_channels, correlations, "o-", color=colour, label=name)
    error_axes.set_ylabel("relative error of the kernel")
    correlation_axes.set_ylabel("1 - correlation of distances")
    for axes in (error_axes, correlation_axes):
        axes.set_xlabel("channels K")
        axes.legend(frameon=False, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


# --- cost ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """What a descriptor costs.

    Attributes
    ----------
    name : str
    n_heavy_atoms : int
    n_features : int
    descriptor_ms, score_ms : float
        CPU time of the features with their derivatives, and of a whole similarity score, of ten
        molecules; the fastest of several calls, milliseconds.
    """

    name: str
    n_heavy_atoms: int
    n_features: int
    descriptor_ms: float
    score_ms: float


def costs(
    choices: Mapping[str, DescriptorSettings],
    force_field: ForceField,
    n_heavy_atoms: int,
    n_calls: int = 10,
) -> list[Cost]:
    """Measure descriptors with 256 reference molecules, on one CPU core."""
    dtype = force_field.embedding.dtype
    reference = reference_batch(n_heavy_atoms, force_field.elements, 256, dtype)
    molecules = reference[:10]
    found = []
    for name, settings in choices.items():
        descriptor = settings.build(settings.network(force_field), reference)
        with torch.no_grad():
            features = descriptor(reference)
        environments = ReferenceEnvironments(features, reference.atomic_numbers)
        kernel = SimilarityKernel(descriptor, environments)
        times = [_seconds(descriptor, kernel, molecules) for _ in range(n_calls)]
        descriptor_s, score_s = (min(column) for column in zip(*times, strict=True))
        found.append(
            Cost(name, n_heavy_atoms, features.shape[1], 1e3 * descriptor_s, 1e3 * score_s)
        )
    return found


def _seconds(
    descriptor: Descriptor, kernel: SimilarityKernel, batch: MoleculeBatch
) -> tuple[float, float]:
    start = time.process_time()
    features, pullback = linearise(descriptor, batch, molecule_pairs(batch))
    pullback(torch.ones_like(features))
    middle = time.process_time()
    kernel.evaluate(batch, _SIGMA)
    return middle - start, time.process_time() - middle


def costs_to_markdown(found: Sequence[Cost]) -> str:
    """Return the table of costs."""
    columns = ("descriptor", "heavy atoms", "features", "features and gradient", "score")
    rows = (
        (
            cost.name,
            str(cost.n_heavy_atoms),
            str(cost.n_features),
            f"{cost.descriptor_ms:.1f} ms",
            f"{cost.score_ms:.1f} ms",
        )
        for cost in found
    )
    return "\n".join(table(columns, rows)) + "\n"
