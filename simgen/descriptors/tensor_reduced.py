"""Tensor-reduced density descriptors: many-body invariants whose number no element adds to.

The neighbours of an atom as a density, expanded in radial functions and harmonics, have one set of
coefficients for each element z and radial function n, and their products of degree nu as many as
there are tuples of nu such pairs. Here K random combinations stand for all pairs (z, n), and
products are taken channel by channel. There are no weights to train, and no list of elements.

==================================================================  ===============================
Equation, with i an atom, j its neighbours, z their elements         Variable
==================================================================  ===============================
A_znlm = sum_j delta_z,zj R_n(r_ij) Y_lm(ij)                        (never stored as such)
G_jk = sum_n W^k_zj,n R_n(r_ij)                                     ``radial``
A~_klm = sum_zn W^k_zn A_znlm = sum_j G_jk Y_lm(ij)                 ``density``
B_kc, c one way to couple nu of the A~_k to an invariant            ``products``
chi = s^k_zi B_kc / sqrt(K)                                         ``features``
==================================================================  ===============================

W are standard normal. With factors of their own for each of the nu places in a product (sketching)
the mean over W of chi chi' is the scalar product of the unreduced products, for environments of
equal elements, and the kernel converges to that of all of them, with errors that fall as 1/sqrt(K).
With the same W in all places (a random tensor decomposition) it converges to another kernel of the
same products: of degree 2, twice that scalar product plus that of the traces over (z, n).

The element of the atom itself is one more factor of the product, reduced by random signs s: without
it an atom would look the same whatever it is.

References
----------
J. P. Darby, D. P. Kovács, I. Batatia, M. A. Caro, G. L. W. Hart, C. Ortner, G. Csányi,
"Tensor-reduced atomic density representations", Phys. Rev. Lett. 131, 028001 (2023),
arXiv:2210.01705: the density, its tensor reduction, decomposition and sketching. R. Drautz, Phys.
Rev. B 99, 014104 (2019): the products. Random projections of tensor products: N. Pham, R. Pagh,
"Fast and scalable polynomial kernels via explicit feature maps", KDD 2013.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simgen.descriptors.force_field import MIN_DISTANCE
from simgen.errors import ConfigError
from simgen.graph import Layout
from simgen.models.angular import spherical_harmonics, wigner_3j
from simgen.models.network import DIRECTION_EPS
from simgen.models.product import SparsePolynomials
from simgen.models.radial import RadialBasis
from simgen.molecules import MoleculeBatch
from simgen.noise import MASK, philox

CUTOFF_POWER = 5
"""Exponent of the polynomial cutoff, as in the networks."""

N_NEIGHBOURS = 12.0
"""Typical number of neighbours; the density is divided by its root, so that products of degree 2
and 3 vary about equally in organic molecules."""

_CENTRE = 2**31
"""What the counter has in the place of a radial function where a random number is the sign of an
atom's own element."""


def couplings(l_max: int, degree: int) -> tuple[tuple[int, ...], ...]:
    """Degrees l_1 <= l_2 <= ... that couple to one invariant under rotations and inversion.

    There is one invariant for each of them: 1, l_max + 1, ... for one, two, ... factors.

    Examples
    --------
    >>> couplings(2, 3)
    ((0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 1, 2), (2, 2, 2))
    """
    if degree == 1:
        return ((0,),)
    degrees = range(l_max + 1)
    if degree == 2:
        return tuple((ell, ell) for ell in degrees)
    return tuple(
        (a, b, c)
        for a in degrees
        for b in degrees[a:]
        for c in degrees[b : a + b + 1]
        if (a + b + c) % 2 == 0
    )


@cache
def invariants(l_max: int, correlation: int, shared: bool) -> SparsePolynomials:
    """Contract one to ``correlation`` densities to all of :func:`couplings`, degree by degree.

    Variables are the components of the density, those of each factor one after the other unless
    they are shared. The coefficients of degree 2 are 1, the invariant sum_m A~_klm^2, and those of
    degree 3 are Wigner 3j symbols.
    """
    dim = (l_max + 1) ** 2
    polynomials: list[dict[tuple[int, ...], float]] = []
    for degree in range(1, correlation + 1):
        for degrees in couplings(l_max, degree):
            tensor: NDArray[np.float64] = np.ones(1)
            if degree == 2:
                tensor = np.eye(2 * degrees[0] + 1)
            elif degree == 3:
                tensor = wigner_3j(*degrees)
            polynomial: dict[tuple[int, ...], float] = {}
            for place, coefficient in np.ndenumerate(tensor):
                if abs(coefficient) > 1e-8:
                    variables = tuple(
                        sorted(
                            ell**2 + m + (0 if shared else factor * dim)
                            for factor, (ell, m) in enumerate(zip(degrees, place, strict=True))
                        )
                    )
                    total = polynomial.get(variables, 0.0) + float(coefficient)
                    polynomial[variables] = total
            polynomials.append(polynomial)
    return SparsePolynomials(dim if shared else correlation * dim, polynomials)


def _words(z: int, functions: Tensor, factor: int, n_channels: int, seed: int) -> Tensor:
    """Random words in (0, 1) for an element: (n_functions, n_channels, 4), float64."""
    channels = torch.arange(n_channels)
    n, k = torch.meshgrid(functions, channels, indexing="ij")
    counter = torch.stack([k, n, torch.full_like(k, z), torch.full_like(k, factor)], dim=2).flatten(
        0, 1
    )
    words = philox(counter, (seed & MASK, seed >> 32)).to(torch.float64)
    return ((words + 0.5) * 2.0**-32).view(len(functions), n_channels, 4)


def random_mixing(
    z: int, n_radial: int, n_channels: int, n_factors: int = 1, seed: int = 0
) -> Tensor:
    """The weights W^k_zn of an element, standard normal: (n_factors, n_radial, n_channels).

    Each number depends on its own indices and the seed alone: more channels, radial functions or
    elements leave the others what they are.
    """
    functions = torch.arange(n_radial)
    u = torch.stack([_words(z, functions, f, n_channels, seed) for f in range(n_factors)])
    return torch.sqrt(-2.0 * torch.log(u[..., 0])) * torch.cos(2.0 * math.pi * u[..., 1])


def random_signs(z: int, n_channels: int, seed: int = 0) -> Tensor:
    """The signs s^k_z of an atom's own element, 1 or -1: shape (n_channels,), float64."""
    u = _words(z, torch.tensor([_CENTRE]), 0, n_channels, seed)[0, :, 0]
    return torch.where(u < 0.5, -1.0, 1.0).to(torch.float64)


class TensorReducedDescriptor:
    """Products of random combinations of the density of neighbours.

    Parameters
    ----------
    n_channels : int
        Number K of combinations.
    l_max : int
        Highest degree of the harmonics, 0 to 3.
    correlation : int
        Highest number of factors nu of a product, 1 to 3.
    r_max : float
        Cutoff radius in angstrom.
    n_radial : int
        Number of radial functions.
    shared : bool
        Whether all factors of a product have the same random weights (decomposition), or each its
        own (sketching), which takes ``correlation`` times as many densities and about as long.
    seed : int
        Of the weights, in [0, 2^64).

    Raises
    ------
    ConfigError
        If a number is out of range.

    References
    ----------
    Darby et al., arXiv:2210.01705.
    """

    def __init__(
        self,
        n_channels: int = 32,
        *,
        l_max: int = 2,
        correlation: int = 3,
        r_max: float = 4.5,
        n_radial: int = 8,
        shared: bool = False,
        seed: int = 0,
    ) -> None:
        for name, value, low, high in (
            ("n_channels", n_channels, 1, 2**20),
            ("l_max", l_max, 0, 3),
            ("correlation", correlation, 1, 3),
            ("n_radial", n_radial, 1, 1000),
            ("seed", seed, 0, 2**64 - 1),
        ):
            if not low <= value <= high:
                raise ConfigError(f"expected {low} <= {name} <= {high}, got {value}")
        if not MIN_DISTANCE < r_max < math.inf:
            raise ConfigError(f"expected r_max > {MIN_DISTANCE} angstrom, got {r_max}")
        self.n_channels, self.l_max, self.n_radial = n_channels, l_max, n_radial
        self.r_max, self.seed = r_max, seed
        self.n_factors = 1 if shared else correlation
        self._polynomials = invariants(l_max, correlation, shared)
        self._radial_basis = RadialBasis(r_max, n_radial, CUTOFF_POWER)
        self._layout = Layout()
        self._random: dict[tuple[int, torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    @property
    def n_features(self) -> int:
        """Channels times couplings."""
        return self.n_channels * len(self._polynomials.values)

    def __call__(self, batch: MoleculeBatch, pairs: Tensor | None = None) -> Tensor:
        """Return the invariants, shape (n_atoms, n_features), channels of a coupling adjacent."""
        if not batch.n_atoms:
            return batch.positions.new_zeros(0, self.n_features)
        chunks = self._layout.chunks(batch)
        return torch.cat([self._evaluate(chunk.of(batch), chunk.senders) for chunk in chunks])

    def linearise(self, batch: MoleculeBatch) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the invariants and the transpose of their Jacobian."""
        positions = batch.positions.detach().requires_grad_()
        with torch.enable_grad():
            features = self(batch.replace(positions=positions))

        def pullback(gradient: Tensor) -> Tensor:
            # Atoms without neighbours do not depend on their positions at all.
            return torch.autograd.grad(features, positions, gradient, materialize_grads=True)[0]

        return features.detach(), pullback

    def _weights(self, z: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mixing, (n_radial, n_factors * n_channels), and signs, (n_channels,), of an element."""
        key = (z, dtype, device)
        if key not in self._random:
            mixing = random_mixing(z, self.n_radial, self.n_channels, self.n_factors, self.seed)
            mixing = mixing.transpose(0, 1).flatten(1) / math.sqrt(N_NEIGHBOURS)
            signs = random_signs(z, self.n_channels, self.seed) / math.sqrt(self.n_channels)
            self._random[key] = mixing.to(device, dtype), signs.to(device, dtype)
        return self._random[key]

    def _evaluate(self, batch: MoleculeBatch, senders: Tensor) -> Tensor:
        positions, n_atoms = batch.positions, batch.n_atoms
        senders, near = _neighbours(positions.detach(), senders, self.r_max)
        n_slots = senders.shape[1]
        senders = senders.flatten()

        sent = positions.index_select(0, senders).view(n_atoms, n_slots, 3)
        # Slots that are left over are beyond the cutoff, where nothing depends on the distance.
        beyond = positions.new_tensor([2 * self.r_max, 0.0, 0.0])
        vectors = torch.where(near[..., None], positions[:, None] - sent, beyond).flatten(0, 1)
        distances = torch.linalg.vector_norm(vectors, dim=1)
        unit = vectors / distances.clamp(min=DIRECTION_EPS)[:, None]
        harmonics = spherical_harmonics(unit, self.l_max)
        basis = self._radial_basis.to(positions)(distances.clamp(min=MIN_DISTANCE))

        # Neighbours of the same element have the same weights: one after the other.
        present, element = torch.unique(batch.atomic_numbers, return_inverse=True)
        mixing, signs = zip(
            *(self._weights(z, positions.dtype, positions.device) for z in present.tolist()),
            strict=True,
        )
        order = torch.argsort(element[senders], stable=True)
        counts = torch.bincount(element[senders], minlength=len(present)).tolist()
        blocks = torch.split(basis.index_select(0, order), counts)
        mixed = torch.cat([block @ w for block, w in zip(blocks, mixing, strict=True)])
        radial = mixed.index_select(0, torch.argsort(order))

        dim, n_combinations = (self.l_max + 1) ** 2, self.n_factors * self.n_channels
        density = torch.bmm(
            harmonics.view(n_atoms, n_slots, dim).transpose(1, 2),
            radial.view(n_atoms, n_slots, n_combinations),
        )
        # Variables: the components of each factor; columns: atoms and channels.
        density = density.view(n_atoms, dim, self.n_factors, self.n_channels)
        variables = density.permute(2, 1, 0, 3).flatten(0, 1).flatten(1)
        products = self._polynomials(variables)
        features = products.view(-1, n_atoms, self.n_channels) * torch.stack(signs)[element]
        return features.transpose(0, 1).flatten(1)


def _neighbours(positions: Tensor, senders: Tensor, r_max: float) -> tuple[Tensor, Tensor]:
    """Select the senders closer than ``r_max``, as many for each atom as any has.

    Returns
    -------
    senders, near : Tensor, shape (n_atoms, n_slots)
        Atoms, and whether they are neighbours at all.
    """
    vectors = positions[:, None] - positions[senders]
    atoms = torch.arange(len(positions), device=positions.device)[:, None]
    near = (vectors.square().sum(2) < r_max**2) & (senders != atoms)
    n_slots = int(near.sum(1).max()) if near.numel() else 0
    first = torch.argsort(near.to(torch.int8), dim=1, descending=True, stable=True)[:, :n_slots]
    return senders.gather(1, first), near.gather(1, first)
