"""A force field whose weights are fixed: the same numbers as the network's, several times faster.

What weights, elements and distances alone determine is worked out beforehand, and derivatives are
written out, so that there is no autograd tape. With i a receiver and j its neighbours, z their
elements, and the channels of degree l mixed by L_l (times the skip S_l,zi in some networks):

======================================================  ==========================================
Equation                                                Variable
======================================================  ==========================================
R(r) = sum_q phi_q(r) W_q                               :class:`~simgen.models.spline.RadialTable`
first layer:
T_i,lm,zq = sum_{j of element z} Y_lm(ij) phi_q(r_ij)   ``moments``
V_l,zi,zq = W_q,l * (embedding of z) L_l [S_l,zi]       ``folded``
A_i,lm = sum_zq T_i,lm,zq V_l,zi,zq                     ``basis``
other layers, paths p = (l1, l2, l):
M_i,lm = sum_j (C Y_l2)_m,m1(ij) R_p(r_ij) h_j,l1m1     ``messages``
A_i,lm = M_i,lm L_l [S_l,zi]                            ``basis``
all layers:
B_i = sum_nu w_zi,nu P_nu(A_i)                          ``products``
======================================================  ==========================================

In the first layer all features of an atom of one element are equal, so that its neighbours need no
channels: the sum over them, T, has as many columns as there are elements times radial functions.

:class:`~simgen.models.ForceField` stays what this is tested against.

References
----------
Batatia et al., arXiv:2206.07697, eq. 8 to 11.
"""

from __future__ import annotations

import copy
import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from simgen.errors import InputError
from simgen.graph import Chunk, Layout
from simgen.models.angular import spherical_harmonics
from simgen.models.compiled import (
    MAPS_AT_HAND,
    CompiledNetwork,
    Edges,
    FirstLayer,
    Geometry,
    Products,
    Readout,
    ScalarLayer,
    Splines,
    library_for,
)
from simgen.models.network import DIRECTION_EPS, Features, ForceField, Layer
from simgen.models.product import symmetric_polynomials
from simgen.models.radial import SILU_NORM
from simgen.models.spline import RadialTable
from simgen.molecules import MoleculeBatch

FEW = 0.8
"""Slots are rearranged if no atom has more neighbours than this share of them."""

EdgeGradients = tuple[Tensor, Tensor]
"""With respect to distances, (n_atoms, n_slots), and harmonics, (n_atoms, n_slots, d)."""


@cache
def harmonic_slopes(l_max: int) -> Tensor:
    """Constants G with d Y_i / d x_a = sum_j Y_j G_j,ai: (d, 3 d), d = (l_max + 1)^2, float64.

    Harmonics are polynomials; the derivatives of those of degree l are harmonics of degree l - 1.
    """
    dim = (l_max + 1) ** 2
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(4 * dim, 3, dtype=torch.float64, generator=generator)
    with torch.enable_grad():
        values = spherical_harmonics(places.requires_grad_(), l_max)
        columns = [torch.zeros_like(places)]  # degree 0 is constant
        columns += [
            torch.autograd.grad(column.sum(), places, retain_graph=True)[0]
            for column in values.unbind(1)[1:]
        ]
    jacobian = torch.stack(columns, 2).flatten(1)  # columns: direction, then harmonic
    slopes = torch.linalg.lstsq(values.detach(), jacobian).solution
    return torch.where(slopes.abs() < 1e-9, 0.0, slopes)


@dataclass(frozen=True, slots=True, eq=False)
class _Geometry:
    """Atoms sorted by element, each with as many slots for neighbours as any has neighbours.

    Attributes
    ----------
    order : Tensor, shape (n_atoms,), int64
        Place in the batch of each sorted atom.
    element : Tensor, shape (n_atoms,), int64
        Place of its element among those of the network.
    present : tuple of int
        The elements that occur.
    n_of_present : list of int
        How many atoms of each.
    senders : Tensor, shape (n_atoms, n_slots), int64
        The neighbour in each slot; the atom itself in slots that are left over.
    slots : Tensor, shape (n_atoms, n_slots), int64
        All slots that an atom is in, counted through.
    distances : Tensor, shape (n_atoms, n_slots)
        As the radial functions see them; ``r_max`` in slots that are left over.
    directions : Tensor, shape (n_atoms, n_slots, 3)
        From neighbour to atom; of length 1, but shorter for atoms that nearly coincide.
    inverse : Tensor, shape (n_atoms, n_slots)
        Inverse of the distance that directions were divided by, 1/angstrom.
    normalised, stretched : Tensor, shape (n_atoms, n_slots), bool
        Whether directions were divided by the true distance, and whether the radial functions see
        it.
    harmonics : Tensor, shape (n_atoms, n_slots, d)
    """

    order: Tensor
    element: Tensor
    present: tuple[int, ...]
    n_of_present: list[int]
    senders: Tensor
    slots: Tensor
    distances: Tensor
    directions: Tensor
    inverse: Tensor
    normalised: Tensor
    stretched: Tensor
    harmonics: Tensor

    def per_element(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        """Multiply x, (m, n_atoms, n_in), by weights of each present element, (m, n_in, n_out)."""
        parts = torch.split(x, self.n_of_present, 1)
        return torch.cat([torch.bmm(rows, w) for rows, w in zip(parts, weights, strict=True)], 1)

    def to_senders(self, values: Tensor) -> Tensor:
        """Sum values of the slots, (n_atoms, n_slots, n), over those that an atom is in."""
        if not self.slots.numel():
            return values.sum(1)
        return F.embedding_bag(self.slots, values.flatten(0, 1).contiguous(), mode="sum")

    def pullback(self, gradients: EdgeGradients, slopes: Tensor) -> Tensor:
        """Gradient with respect to the positions, (n_atoms, 3), in the order of the batch."""
        by_distance, by_harmonics = gradients
        turned = (self.harmonics @ slopes).view(*self.directions.shape, len(slopes))
        by_direction = (turned * by_harmonics[:, :, None]).sum(3)
        along = (by_direction * self.directions).sum(2) * self.inverse * self.normalised
        radial = by_distance * self.stretched - along
        by_vector = by_direction * self.inverse[..., None] + self.directions * radial[..., None]
        gradient = by_vector.sum(1) - self.to_senders(by_vector)
        return torch.empty_like(gradient).index_copy_(0, self.order, gradient)


BasisPullback = Callable[[Tensor], tuple[Features, Tensor, Tensor]]
"""From the gradient with respect to the atomic basis, (d, n_atoms, n_channels), to those with
respect to features, radial basis functions, (n_atoms, n_slots, n_basis), and harmonics."""


class _FirstBasis:
    """Atomic basis of the first layer; see the equations above."""

    def __init__(
        self, exact: ForceField, mixing: Tensor, linear: list[Tensor], dtype: torch.dtype
    ) -> None:
        layer, n_channels = cast(Layer, exact.layers[0]), exact.config.n_channels
        embedded = exact.embedding / math.sqrt(len(exact.elements))
        sent = embedded @ (layer.interaction.linear_up[0] / math.sqrt(n_channels))
        radial = mixing.view(-1, len(linear), n_channels)
        folded = torch.einsum("qlc,zc,lcd->lzqd", radial, sent, torch.stack(linear))
        if layer.residual:
            folded = folded.expand(len(sent), *folded.shape)
        else:
            folded = torch.einsum("lzqd,lrde->rlzqe", folded, layer.skip.scaled())
        self._folded = folded.to(dtype)
        self._degrees = [ell for ell in range(len(linear)) for _ in range(2 * ell + 1)]
        self._weights_at_hand = lru_cache(MAPS_AT_HAND)(self.weights)

    def weights(self, present: tuple[int, ...]) -> list[Tensor]:
        """V of each element that is present, (d, n_present * n_basis, n_channels)."""
        folded = self._folded[list(present)][:, self._degrees][:, :, list(present)]
        return list(folded.flatten(2, 3).contiguous())

    def __call__(
        self, features: Features, phi: Tensor, geometry: _Geometry
    ) -> tuple[Tensor, BasisPullback]:
        weights = self._weights_at_hand(geometry.present)
        place = geometry.element.new_tensor(geometry.present)
        of_sender = (geometry.element[geometry.senders][..., None] == place).to(phi.dtype)
        separate = (of_sender[..., None] * phi[:, :, None]).flatten(2)
        moments = torch.bmm(geometry.harmonics.transpose(1, 2), separate)
        basis = geometry.per_element(moments.transpose(0, 1), weights)

        def pullback(by_basis: Tensor) -> tuple[Features, Tensor, Tensor]:
            by_moments = geometry.per_element(by_basis, [w.mT for w in weights]).transpose(0, 1)
            by_harmonics = torch.bmm(separate, by_moments.transpose(1, 2))
            by_separate = torch.bmm(geometry.harmonics, by_moments)
            by_phi = (by_separate.view(*of_sender.shape, phi.shape[2]) * of_sender[..., None]).sum(
                2
            )
            return [], by_phi, by_harmonics

        return basis, pullback


class _MessageBasis:
    """Atomic basis of any other layer; see the equations above."""

    def __init__(
        self,
        exact: ForceField,
        layer: Layer,
        mixing: Tensor,
        linear: list[Tensor],
        dtype: torch.dtype,
    ) -> None:
        n_channels, interaction = exact.config.n_channels, layer.interaction
        self._paths = interaction.paths
        self._couplings = [
            interaction.get_buffer(f"coupling_{i}").to(dtype) for i in range(len(self._paths))
        ]
        self._up = [(w / math.sqrt(n_channels)).to(dtype) for w in interaction.linear_up]
        self._mixing = mixing.to(dtype)
        self._by_element = not layer.residual
        self._linear: list[list[Tensor]] = [[w.to(dtype)[None]] for w in linear]
        if not layer.residual:
            skip = layer.skip.scaled()
            self._linear = [
                list((w @ s).to(dtype)[:, None]) for w, s in zip(linear, skip, strict=True)
            ]

    def __call__(
        self, features: Features, phi: Tensor, geometry: _Geometry
    ) -> tuple[Tensor, BasisPullback]:
        n_channels, degrees = self._up[0].shape[-1], [len(x) for x in features]
        up = torch.cat([x @ w for x, w in zip(features, self._up, strict=True)])
        sent = torch.split(up.transpose(0, 1)[geometry.senders], degrees, 2)
        radial = torch.split(phi @ self._mixing, n_channels, 2)
        widths = [2 * ell + 1 for ell in range(len(self._linear))]
        harmonics = torch.split(geometry.harmonics, widths, 2)
        messages: list[list[Tensor]] = [[] for _ in self._linear]
        parts = []
        for (l_1, l_2, l_3), coupling, weight in zip(
            self._paths, self._couplings, radial, strict=True
        ):
            if l_1 == 0:  # the coupling is the identity
                coupled = harmonics[l_2][:, :, None]
            else:
                coupled = torch.einsum("nkj,ijm->nkim", harmonics[l_2], coupling)
            rows = (weight[:, :, None] * sent[l_1]).flatten(1, 2)
            coupled = coupled.flatten(1, 2)
            messages[l_3].append(torch.bmm(coupled.transpose(1, 2), rows))
            parts.append((coupled, rows))
        weights = [[w[min(e, len(w) - 1)] for e in geometry.present] for w in self._linear]
        basis = torch.cat(
            [
                self._mix(torch.cat(message, 2).transpose(0, 1), w, geometry)
                for message, w in zip(messages, weights, strict=True)
            ]
        )

        def pullback(by_basis: Tensor) -> tuple[Features, Tensor, Tensor]:
            by_message = [
                torch.split(self._mix(part, [m.mT for m in w], geometry), n_channels, 2)
                for part, w in zip(torch.split(by_basis, widths), weights, strict=True)
            ]
            taken = [0] * len(weights)
            by_sent = [torch.zeros_like(x) for x in sent]
            by_harmonics = [torch.zeros_like(y) for y in harmonics]
            by_radial = []
            for i, (l_1, l_2, l_3) in enumerate(self._paths):
                coupled, rows = parts[i]
                by_this = by_message[l_3][taken[l_3]].transpose(0, 1)
                taken[l_3] += 1
                by_rows = torch.bmm(coupled, by_this).view_as(sent[l_1])
                by_coupled = torch.bmm(rows, by_this.transpose(1, 2))
                by_coupled = by_coupled.view(*sent[l_1].shape[:3], 2 * l_3 + 1)
                if l_1 == 0:
                    by_harmonics[l_2] += by_coupled[:, :, 0]
                else:
                    by_harmonics[l_2] += torch.einsum(
                        "nkim,ijm->nkj", by_coupled, self._couplings[i]
                    )
                by_radial.append((by_rows * sent[l_1]).sum(2))
                by_sent[l_1].addcmul_(by_rows, radial[i][:, :, None])
            by_phi = torch.cat(by_radial, 2) @ self._mixing.T
            by_up = geometry.to_senders(torch.cat(by_sent, 2).flatten(2))
            by_up = by_up.view(len(by_up), sum(degrees), n_channels).transpose(0, 1)
            by_features = [
                part @ w.T for part, w in zip(torch.split(by_up, degrees), self._up, strict=True)
            ]
            return by_features, by_phi, torch.cat(by_harmonics, 2)

        return basis, pullback

    def of_scalars(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Weights where features are scalars: of what is sent, of the radial basis, of messages."""
        return self._up[0], self._mixing, [w[0][0] for w in self._linear]

    def _mix(self, x: Tensor, weights: list[Tensor], geometry: _Geometry) -> Tensor:
        if not self._by_element:
            return x @ weights[0][0]
        return geometry.per_element(x, [w.expand(len(x), -1, -1) for w in weights])


ReadoutFunction = Callable[[list[Tensor]], tuple[Tensor, list[Tensor]]]
"""From invariants of each layer to what they say of an atom's energy, and its derivatives."""

LayerPullback = Callable[[Features], tuple[Features, EdgeGradients]]
"""From gradients with respect to new features to those with respect to the old, and of edges."""


class _FrozenLayer:
    """A layer; new features up to degree ``l_out``."""

    def __init__(
        self, exact: ForceField, index: int, l_out: int, min_distance: float, dtype: torch.dtype
    ) -> None:
        config, layer = exact.config, cast(Layer, exact.layers[index])
        interaction, device = layer.interaction, exact.embedding.device
        n_functions = config.n_channels * len(interaction.paths)

        def functions(distances: Tensor) -> Tensor:
            radial = exact.radial_basis(distances.to(device))
            values = [interaction.radial(radial)]
            if interaction.density is not None:
                values.append(torch.tanh(interaction.density(radial) ** 2))
            return torch.cat(values, 1).cpu()

        self._table = RadialTable(functions, min_distance, config.r_max, dtype, device)
        mixing = self._table.mixing[:, :n_functions]
        gain, self._density = 1 / config.avg_n_neighbours, None
        if interaction.density is not None:
            gain, self._density = 1.0, self._table.mixing[:, n_functions].to(dtype)
        linear = [w * (gain / math.sqrt(len(w))) for w in interaction.linear]
        self._by_vectors = len(interaction.linear_up) > 1
        self._basis: _FirstBasis | _MessageBasis
        if index == 0:
            self._basis = _FirstBasis(exact, mixing, linear, dtype)
        else:
            self._basis = _MessageBasis(exact, layer, mixing, linear, dtype)

        self._polynomials = symmetric_polynomials(config.l_max, l_out, config.correlation)
        self._blocks = layer.product.blocks[: l_out + 1]
        self._weights = [w.to(dtype) for w in list(layer.product.weights)[: l_out + 1]]
        scale = 1 / math.sqrt(config.n_channels)
        self._linear = [(w * scale).to(dtype) for w in layer.linear[: l_out + 1]]
        self._kept: Tensor | None = None
        self._skip: list[Tensor] = []
        if layer.residual and index == 0:
            embedded = exact.embedding / math.sqrt(len(exact.elements))
            self._kept = torch.einsum("zc,zcd->zd", embedded, layer.skip.scaled()[0]).to(dtype)
        elif layer.residual:
            self._skip = list(layer.skip.scaled()[: l_out + 1].to(dtype))

    @property
    def is_plain(self) -> bool:
        """Whether features and messages are scalars, as those of most networks are."""
        return self._density is None and len(self._linear) == 1 and not self._by_vectors

    def compiled(self, code: ctypes.CDLL, smallest: float) -> FirstLayer | ScalarLayer:
        """Return the layer for compiled loops; shorter distances than ``smallest`` are that."""
        splines = Splines(code, self._table, smallest)
        products = Products(code, self._polynomials, self._weights[0])
        common = (code, splines, products, self._linear[0])
        if isinstance(self._basis, _FirstBasis):
            return FirstLayer(*common, self._basis.weights, self._table.n_basis, self._kept)
        return ScalarLayer(*common, *self._basis.of_scalars(), self._skip[0])

    def __call__(self, features: Features, geometry: _Geometry) -> tuple[Features, LayerPullback]:
        phi, slope = self._table.basis(geometry.distances.flatten())
        phi = phi.view(*geometry.distances.shape, self._table.n_basis)
        slope = slope.view(*geometry.distances.shape, self._table.n_basis)
        basis, basis_pullback = self._basis(features, phi, geometry)
        if self._density is not None:
            divisor = (1 + (phi @ self._density).sum(1))[:, None]
            basis = basis / divisor

        # The product basis, with atoms and channels as one axis.
        columns = basis.flatten(1)
        values = torch.split(self._polynomials(columns), [n * m for n, m in self._blocks])
        weights = [w[geometry.element].transpose(0, 1) for w in self._weights]
        products = [
            (part.reshape(n, m, *w.shape[1:]) * w[:, None]).sum(0)
            for part, w, (n, m) in zip(values, weights, self._blocks, strict=True)
        ]
        new = [x @ w for x, w in zip(products, self._linear, strict=True)]
        if self._kept is not None:
            new[0] = new[0] + self._kept[geometry.element]
        skips = [
            [w[e].expand(len(x), -1, -1) for e in geometry.present]
            for x, w in zip(features, self._skip, strict=False)
        ]
        for ell, skip in enumerate(skips):
            new[ell] = new[ell] + geometry.per_element(features[ell], skip)

        def pullback(by_new: Features) -> tuple[Features, EdgeGradients]:
            by_products = [g @ w.T for g, w in zip(by_new, self._linear, strict=True)]
            by_values = [
                (g * w[:, None]).flatten(0, 1).flatten(1)
                for g, w in zip(by_products, weights, strict=True)
            ]
            by_basis = self._polynomials.pullback(columns, torch.cat(by_values))
            by_basis = by_basis.view_as(basis)
            if self._density is not None:
                by_basis = by_basis / divisor
                by_divisor = -(by_basis * basis).sum((0, 2))
            by_features, by_phi, by_harmonics = basis_pullback(by_basis)
            if self._density is not None:
                by_phi = by_phi + by_divisor[:, None, None] * self._density
            for ell, skip in enumerate(skips):
                kept = geometry.per_element(by_new[ell], [w.mT for w in skip])
                by_features[ell] = by_features[ell] + kept
            return by_features, ((by_phi * slope).sum(2), by_harmonics)

        return new, pullback


class FrozenForceField:
    """A force field as it is now; later changes of its weights are not seen.

    Parameters
    ----------
    model : ForceField
        The network.
    n_layers : int, optional
        How many of its layers are needed; by default all. Energies need all.
    min_distance : float, optional
        As that of :meth:`ForceField.node_invariants`, angstrom.

    Raises
    ------
    InputError
        If its radial functions are too rough to be tabulated, or are none of the distance alone.
    """

    def __init__(
        self, model: ForceField, *, n_layers: int | None = None, min_distance: float | None = None
    ) -> None:
        self.model = model
        self.dtype, self.device = model.embedding.dtype, model.embedding.device
        config = model.config
        if not config.is_tabulated:
            raise InputError(
                "expected a MACE whose radial functions are the same for all elements, got another "
                "network; use simgen.models.evaluator"
            )
        n_layers = config.n_layers if n_layers is None else n_layers
        self._min_distance = min_distance
        self._layout = Layout()
        with torch.no_grad():
            exact = copy.deepcopy(model).to(torch.float64)
            self._layers = [
                # The last layer that is evaluated passes on invariants only.
                _FrozenLayer(
                    exact,
                    i,
                    0 if i == n_layers - 1 else config.hidden_l_max,
                    min_distance or 0.0,
                    self.dtype,
                )
                for i in range(n_layers)
            ]
        self._slopes = harmonic_slopes(config.l_max).to(self.device, self.dtype)
        self._compiled: CompiledNetwork | None = None
        self._readout: ReadoutFunction = self._differentiated_readout
        code = library_for(self._slopes)
        if code is not None and all(layer.is_plain for layer in self._layers):
            self._compile(code)

    @property
    def _floor(self) -> float:
        """What directions are at least divided by, angstrom."""
        return torch.finfo(self.dtype).tiny if self._min_distance is None else DIRECTION_EPS

    def is_batch_invariant(self, batch: MoleculeBatch) -> bool:
        """Whether its invariants are the same, bit for bit, in any batch: with compiled loops."""
        return self._compiled is not None

    def _compile(self, code: ctypes.CDLL) -> None:
        """Hand the weights over to compiled loops."""
        smallest, model, config = self._min_distance or 0.0, self.model, self.model.config
        geometry = Geometry(
            code, self._slopes, len(model.elements), model.r_max, smallest, self._floor
        )
        layers = [layer.compiled(code, smallest) for layer in self._layers]
        self._compiled = CompiledNetwork(geometry, layers)
        if len(layers) < config.n_layers:
            return  # no energies
        scale, gated = 1 / math.sqrt(config.n_channels), None
        first = 0 if config.readouts == "all" else config.n_layers - 1
        with torch.no_grad():
            linear = {first + k: w * scale for k, w in enumerate(model.readouts)}
            if width := config.readout_width:
                units = model.readout_out * (SILU_NORM / math.sqrt(width))
                gated = (model.readout_hidden * scale, units)
        self._readout = Readout(code, linear, gated)

    @property
    def reach(self) -> float | None:
        """Cutoff of the environments, angstrom, where :meth:`linearise` evaluates only some."""
        return self.model.r_max if self._compiled is not None and len(self._layers) == 1 else None

    def linearise(
        self, batch: MoleculeBatch, wanted: Tensor | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Evaluate the invariants together with the transpose of their Jacobian.

        Parameters
        ----------
        batch : MoleculeBatch
            Molecules.
        wanted : Tensor, shape (n_atoms,), bool, optional
            Atoms whose invariants are wanted, if there is a ``reach``. Those of the others are
            finite, and their gradients count for nothing.

        Returns
        -------
        features : Tensor, shape (n_atoms, n_layers * n_channels)
            As :meth:`ForceField.node_invariants` returns them.
        pullback : callable
            Takes a gradient with respect to the features to one with respect to the positions,
            (n_atoms, 3).
        """
        if not batch.n_atoms:
            n_features = len(self._layers) * self.model.config.n_channels
            return batch.positions.new_zeros(0, n_features), lambda _: batch.positions
        chunks = self._layout.chunks(batch)
        with torch.no_grad():
            parts = [
                self._evaluate(
                    chunk.of(batch), chunk, None if wanted is None else wanted[chunk.atoms]
                )
                for chunk in chunks
            ]
        features = [
            _unsorted(torch.cat(invariants, 1), geometry) for geometry, invariants, _ in parts
        ]

        def pullback(gradient: Tensor) -> Tensor:
            n_channels = self.model.config.n_channels
            result = []
            with torch.no_grad():
                for chunk, (geometry, _, pull) in zip(chunks, parts, strict=True):
                    by_invariants = torch.split(
                        gradient[chunk.atoms][geometry.order], n_channels, 1
                    )
                    result.append(pull(list(by_invariants)))
            return torch.cat(result)

        return torch.cat(features), pullback

    def energy_and_forces(self, batch: MoleculeBatch) -> tuple[Tensor, Tensor]:
        """Energies in eV, (n_molecules,), and forces in eV/angstrom, (n_atoms, 3)."""
        if not batch.n_atoms:
            return batch.positions.new_zeros(batch.n_molecules), batch.positions
        energies, forces = [], []
        for chunk in self._layout.chunks(batch):
            with torch.no_grad():
                geometry, invariants, pullback = self._evaluate(chunk.of(batch), chunk)
                readout, gradients = self._readout(invariants)
                molecule_idx = chunk.molecule_idx[geometry.order]
                energy = self.model.sum_energies(
                    readout, geometry.element, molecule_idx, chunk.n_molecules
                )
                energies.append(energy)
                forces.append(-pullback([self.model.scale * g for g in gradients]))
        return torch.cat(energies), torch.cat(forces)

    def _differentiated_readout(self, invariants: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Readout of each atom, and its derivatives with respect to the invariants."""
        leaves = [x.requires_grad_() for x in invariants]
        with torch.enable_grad():
            readout = self.model.readout(leaves)
            gradients = torch.autograd.grad(readout.sum(), leaves, materialize_grads=True)
        return readout.detach(), list(gradients)

    def _evaluate(
        self, batch: MoleculeBatch, chunk: Chunk, wanted: Tensor | None = None
    ) -> tuple[_Geometry | Edges, list[Tensor], Callable[[list[Tensor]], Tensor]]:
        """Invariants of each layer, (n_atoms, n_channels), of sorted atoms, and their pullback."""
        if self._compiled is not None:
            elements = self.model.elements_of(batch)
            return self._compiled(batch.positions, elements, chunk.senders, wanted)
        geometry = self._geometry(batch, chunk.senders)
        features: Features = []
        invariants, pullbacks = [], []
        for layer in self._layers:
            features, layer_pullback = layer(features, geometry)
            invariants.append(features[0][0])
            pullbacks.append(layer_pullback)

        def pullback(by_invariants: list[Tensor]) -> Tensor:
            by_features: Features = []
            total: EdgeGradients | None = None
            for layer_pullback, by_invariant in zip(
                reversed(pullbacks), reversed(by_invariants), strict=True
            ):
                if by_features:
                    by_features[0] = by_features[0] + by_invariant
                else:
                    by_features = [by_invariant[None]]
                by_features, edges = layer_pullback(by_features)
                total = edges if total is None else (total[0] + edges[0], total[1] + edges[1])
            assert total is not None
            return geometry.pullback(total, self._slopes)

        return geometry, invariants, pullback

    def _geometry(self, batch: MoleculeBatch, senders: Tensor) -> _Geometry:
        r_max = self.model.r_max
        element = self.model.elements_of(batch)
        order = torch.argsort(element, stable=True)
        place = torch.empty_like(order)
        atoms = torch.arange(len(order), device=order.device)
        place[order] = atoms
        element = element[order]
        n_of_element = torch.bincount(element, minlength=len(self.model.elements)).tolist()
        senders = place[senders[order]]
        positions = batch.positions[order]
        vectors = positions[:, None] - positions[senders]
        distances = torch.linalg.vector_norm(vectors, dim=2)
        near = (distances < r_max) & (senders != atoms[:, None])
        n_slots = int(near.sum(1).max()) if near.numel() else 0
        if n_slots < FEW * senders.shape[1]:
            first = torch.argsort(near.to(torch.int8), dim=1, descending=True, stable=True)
            first = first[:, :n_slots]
            senders, near = senders.gather(1, first), near.gather(1, first)
            distances = distances.gather(1, first)
            vectors = vectors.gather(1, first[..., None].expand(-1, -1, 3))
        # Slots that are left over: nothing there counts, but all of it is finite.
        senders = torch.where(near, senders, atoms[:, None])
        distances = torch.where(near, distances, r_max)
        vectors = torch.where(near[..., None], vectors, 0.0)
        smallest = 0.0 if self._min_distance is None else self._min_distance
        inverse = 1 / distances.clamp(min=self._floor)
        directions = vectors * inverse[..., None]
        harmonics = spherical_harmonics(directions.flatten(0, 1), self.model.config.l_max)
        return _Geometry(
            order=order,
            element=element,
            present=tuple(e for e, n in enumerate(n_of_element) if n),
            n_of_present=[n for n in n_of_element if n],
            senders=senders,
            # Neighbours are mutual, and what is left over is its own: as many slots as senders.
            slots=torch.argsort(senders.flatten(), stable=True).view_as(senders),
            distances=distances.clamp(min=smallest),
            directions=directions,
            inverse=inverse,
            normalised=distances >= self._floor,
            stretched=distances >= smallest,
            harmonics=harmonics.view(*senders.shape, harmonics.shape[1]),
        )


def _unsorted(values: Tensor, geometry: _Geometry | Edges) -> Tensor:
    return torch.empty_like(values).index_copy_(0, geometry.order, values)
