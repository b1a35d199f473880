"""The equivariant force field."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simgen.errors import InputError
from simgen.elements import SYMBOLS
from simgen.graph import edge_vectors, molecule_pairs, neighbour_list
from simgen.models.angular import degree_slices, spherical_harmonics, wigner_3j
from simgen.models.config import NetworkConfig
from simgen.models.constants import ConstantsModule
from simgen.models.edges import Neighbourhoods
from simgen.models.product import SymmetricProduct
from simgen.models.radial import SILU_NORM, RadialBasis, RadialNetwork
from simgen.molecules import MoleculeBatch

_DIRECTION_EPS = 0.01
"""Below this distance (angstrom) directions fade, so that coinciding atoms have a gradient."""


class ElementLinear(nn.Module):
    """A linear map of the channels for each degree and element."""

    def __init__(
        self, l_max: int, n_elements: int, n_in: int, n_out: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.l_max = l_max
        self.weight = nn.Parameter(
            torch.randn(l_max + 1, n_elements, n_in, n_out, generator=generator)
        )

    @property
    def scaled(self) -> Tensor:
        """Weights times their normalisation, shape (l_max + 1, n_elements, n_in, n_out)."""
        _, n_elements, n_in, _ = self.weight.shape
        return self.weight * (1 / math.sqrt(n_elements * n_in))


def per_element(x: Tensor, weight: Tensor, n_of_element: Sequence[int], l_max: int) -> Tensor:
    """Multiply (d, n_atoms, n_in) by (l_max + 1, n_elements, n_in, n_out), atoms sorted."""
    parts = []
    for z, rows in enumerate(x.split(list(n_of_element), dim=1)):
        if rows.shape[1]:
            parts.append(
                torch.cat([rows[s] @ weight[l, z] for l, s in enumerate(degree_slices(l_max))])
            )
    return torch.cat(parts, dim=1)


class Interaction(ConstantsModule):
    """Atomic basis of one layer: what the neighbours send, summed and mixed.

    References
    ----------
    Batatia et al., arXiv:2206.07697, eq. 8 and 9.
    """

    def __init__(self, config: NetworkConfig, layer: int, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        n_channels = config.n_channels
        self.l_in = config.hidden_l_max if layer > 0 else 0
        self.paths = [
            (l_1, l_2, l_3)
            for l_3 in range(config.l_max + 1)
            for l_1 in range(self.l_in + 1)
            for l_2 in range(config.l_max + 1)
            if abs(l_1 - l_2) <= l_3 <= l_1 + l_2 and (l_1 + l_2 + l_3) % 2 == 0
        ]
        for i, (l_1, l_2, l_3) in enumerate(self.paths):
            coupling = math.sqrt(2 * l_3 + 1) * torch.from_numpy(wigner_3j(l_1, l_2, l_3).copy())
            self.register_constant(f"coupling_{i}", coupling)
        self.linear_up = nn.Parameter(
            torch.randn(self.l_in + 1, n_channels, n_channels, generator=generator)
        )
        self.radial = RadialNetwork(
            (config.n_radial, *config.radial_widths, n_channels * len(self.paths)), generator
        )
        self.linear = nn.ParameterList(
            torch.randn(
                n_channels * sum(path[2] == l for path in self.paths),
                n_channels,
                generator=generator,
            )
            for l in range(config.l_max + 1)
        )
        self.density: RadialNetwork | None = None
        if config.density_normalised:
            self.density = RadialNetwork((config.n_radial, 1), generator)

    def forward(
        self,
        features: Tensor,
        radial: Tensor,
        harmonics: Tensor,
        hoods: Neighbourhoods,
        element_weight: Tensor | None,
        n_of_element: Sequence[int],
    ) -> Tensor:
        """Return the atomic basis, shape (d, n_atoms, n_channels).

        Parameters
        ----------
        features : Tensor, shape (d_in, n_atoms, n_channels)
        radial : Tensor, shape (n_edges, n_radial)
        harmonics : Tensor, shape (n_atoms, width, d)
        """
        n_channels, l_max = self.config.n_channels, self.config.l_max
        n_atoms, width = harmonics.shape[:2]
        scale = 1 / math.sqrt(n_channels)
        slices = degree_slices(l_max)
        up = [
            features[s] @ (self.linear_up[l] * scale)
            for l, s in enumerate(degree_slices(self.l_in))
        ]
        sent = hoods.from_senders(torch.cat(up).transpose(0, 1))
        weights = hoods.from_edges(self.radial(radial))
        weights = weights.reshape(-1, len(self.paths), 1, n_channels)
        messages: list[list[Tensor]] = [[] for _ in range(l_max + 1)]
        for i, (l_1, l_2, l_3) in enumerate(self.paths):
            y = harmonics[..., slices[l_2]]
            if l_1 > 0:
                y = torch.einsum("nwj,ijk->nwik", y, self.get_buffer(f"coupling_{i}")).flatten(1, 2)
            rows = weights[:, i] * sent[:, slices[l_1]]
            rows = rows.reshape(n_atoms, width * (2 * l_1 + 1), n_channels)
            messages[l_3].append(y.transpose(1, 2) @ rows)
        divisor: float | Tensor = self.config.avg_n_neighbours
        if self.density is not None:
            edge_density = torch.tanh(self.density(radial) ** 2)
            slots = hoods.from_edges(edge_density) * hoods.sign.abs()
            divisor = 1 + slots.reshape(n_atoms, width, 1).sum(1)
        out = []
        for l in range(l_max + 1):
            message = torch.cat(messages[l], dim=-1).transpose(0, 1)
            weight = self.linear[l] * (1 / math.sqrt(len(self.linear[l])))
            if element_weight is not None:
                mixed = weight @ element_weight[l]
                parts = [
                    rows @ mixed[z]
                    for z, rows in enumerate(message.split(list(n_of_element), dim=1))
                    if rows.shape[1]
                ]
                out.append(torch.cat(parts, dim=1))
            else:
                out.append(message @ weight)
        return torch.cat(out) / divisor


class Layer(nn.Module):
    """Interaction, product basis and update of the features."""

    def __init__(self, config: NetworkConfig, layer: int, generator: torch.Generator) -> None:
        super().__init__()
        n_elements, n_channels = len(config.elements), config.n_channels
        last = layer == config.n_layers - 1
        self.l_out = 0 if last else config.hidden_l_max
        l_in = config.hidden_l_max if layer > 0 else 0
        self.residual = layer > 0 or config.first_residual
        self.interaction = Interaction(config, layer, generator)
        self.l_skip = min(l_in, self.l_out) if self.residual else config.l_max
        self.skip = ElementLinear(self.l_skip, n_elements, n_channels, n_channels, generator)
        self.product = SymmetricProduct(
            config.l_max, self.l_out, config.correlation, n_elements, n_channels, generator
        )
        self.linear = nn.Parameter(
            torch.randn(self.l_out + 1, n_channels, n_channels, generator=generator)
        )

    def forward(
        self,
        features: Tensor,
        radial: Tensor,
        harmonics: Tensor,
        hoods: Neighbourhoods,
        one_hot: Tensor,
        n_of_element: Sequence[int],
    ) -> Tensor:
        """Return the new features, shape (d_out, n_atoms, n_channels)."""
        skip = self.skip.scaled
        basis = self.interaction(
            features, radial, harmonics, hoods, None if self.residual else skip, n_of_element
        )
        product = self.product(basis, one_hot)
        scale = 1 / math.sqrt(product.shape[-1])
        out = [
            product[s] @ (self.linear[l] * scale) for l, s in enumerate(degree_slices(self.l_out))
        ]
        if self.residual:
            slices = degree_slices(self.l_skip)
            kept = per_element(features[: slices[-1].stop], skip, n_of_element, self.l_skip)
            for l, s in enumerate(slices):
                out[l] = out[l] + kept[s]
        return torch.cat(out)


class ForceField(nn.Module):
    """Energy of molecules as a sum over atoms; forces are its negative gradient.

    Parameters
    ----------
    config : NetworkConfig
    atomic_energies : sequence of float, optional
        Energy in eV of an isolated atom of each element of ``config.elements``; default 0.
    scale, shift : float
        The network's output per atom is multiplied by ``scale``, and ``shift`` is added (eV).
    seed : int
        Of the initial weights.

    References
    ----------
    Batatia et al., arXiv:2206.07697.
    """

    def __init__(
        self,
        config: NetworkConfig,
        *,
        atomic_energies: Sequence[float] | None = None,
        scale: float = 1.0,
        shift: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        n_elements, n_channels = len(config.elements), config.n_channels
        if atomic_energies is None:
            atomic_energies = [0.0] * n_elements
        if len(atomic_energies) != n_elements:
            raise InputError(
                f"expected {n_elements} atomic energies, one per element, got {len(atomic_energies)}"
            )
        self.atomic_energies: Tensor
        self.register_buffer("atomic_energies", torch.tensor(atomic_energies, dtype=torch.float64))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float64))
        lookup = torch.full((len(SYMBOLS),), -1, dtype=torch.int64)
        lookup[list(config.elements)] = torch.arange(n_elements)
        self.lookup: Tensor
        self.register_buffer("lookup", lookup, persistent=False)
        self.embedding = nn.Parameter(torch.randn(n_elements, n_channels, generator=generator))
        self.radial_basis = RadialBasis(config.r_max, config.n_radial, config.cutoff_power)
        self.layers = nn.ModuleList(Layer(config, i, generator) for i in range(config.n_layers))
        width = config.readout_width
        n_linear = config.n_layers - 1 if width else config.n_layers
        self.readouts = nn.ParameterList(
            torch.randn(n_channels, generator=generator) for _ in range(n_linear)
        )
        self.readout_hidden = nn.Parameter(torch.randn(n_channels, width, generator=generator))
        self.readout_out = nn.Parameter(torch.randn(width, generator=generator))
        self.to(torch.float32)

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that the network knows."""
        return self.config.elements

    @property
    def r_max(self) -> float:
        """Cutoff radius in angstrom."""
        return self.config.r_max

    def forward(self, batch: MoleculeBatch, pairs: Tensor | None = None) -> Tensor:
        """Energies of the molecules in eV, shape (n_molecules,)."""
        features, order, element = self._features(batch, pairs, self.config.n_layers, None)
        per_atom = self._readout(features)
        per_atom = self.scale * per_atom + self.shift
        molecule_idx = batch.molecule_idx[order]
        zeros = per_atom.new_zeros(batch.n_molecules)
        interaction = zeros.index_add(0, molecule_idx, per_atom)
        return interaction + zeros.index_add(0, molecule_idx, self.atomic_energies[element])

    def energy_and_forces(
        self, batch: MoleculeBatch, pairs: Tensor | None = None, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Energies in eV, (n_molecules,), and forces in eV/angstrom, (n_atoms, 3).

        ``create_graph`` keeps what is needed to differentiate both with respect to the weights.
        """
        with torch.enable_grad():
            positions = batch.positions.detach().requires_grad_()
            energies = self(batch.replace(positions=positions), pairs)
            (gradient,) = torch.autograd.grad(
                energies.sum(), positions, create_graph=create_graph, allow_unused=True
            )
        if gradient is None:
            gradient = torch.zeros_like(positions)
        return (energies if create_graph else energies.detach()), -gradient

    def node_invariants(
        self,
        batch: MoleculeBatch,
        pairs: Tensor | None = None,
        n_layers: int = 1,
        min_distance: float | None = None,
    ) -> Tensor:
        """Invariant features after the first layers, shape (n_atoms, n_layers * n_channels).

        Layers after those are not evaluated. With ``min_distance`` (angstrom), shorter distances
        count as that one in the radial basis, and coinciding atoms have finite gradients.
        """
        features, order, _ = self._features(batch, pairs, n_layers, min_distance)
        invariants = torch.cat([layer[0] for layer in features], dim=-1)
        return torch.empty_like(invariants).index_copy(0, order, invariants)

    def _readout(self, features: list[Tensor]) -> Tensor:
        scale = 1 / math.sqrt(self.config.n_channels)
        out = [x[0] @ (w * scale) for w, x in zip(self.readouts, features, strict=False)]
        if width := self.config.readout_width:
            hidden = F.silu(features[-1][0] @ (self.readout_hidden * scale))
            out.append(hidden @ (self.readout_out * (SILU_NORM / math.sqrt(width))))
        return torch.stack(out).sum(0)

    def _features(
        self, batch: MoleculeBatch, pairs: Tensor | None, n_layers: int, min_distance: float | None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Features of each layer with the atoms sorted by element, their order and elements."""
        if batch.positions.dtype != self.embedding.dtype:
            raise InputError(
                f"expected positions of the model's dtype {self.embedding.dtype}, "
                f"got {batch.positions.dtype}; convert one of them with .to()"
            )
        element = self.lookup[batch.atomic_numbers.clamp(0, len(SYMBOLS) - 1)]
        if bool((element < 0).any()):
            unknown = sorted(set(batch.atomic_numbers[element < 0].tolist()))
            names = [SYMBOLS[z] if 0 < z < len(SYMBOLS) else str(z) for z in unknown]
            known = " ".join(SYMBOLS[z] for z in self.elements)
            raise InputError(f"expected elements among {known}, got {' '.join(names)}")
        element, order = torch.sort(element, stable=True)
        n_of_element = torch.bincount(element, minlength=len(self.elements)).tolist()
        if pairs is None:
            pairs = molecule_pairs(batch)
        edges = neighbour_list(batch.positions, pairs[:, pairs[0] < pairs[1]], self.r_max)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        hoods = Neighbourhoods.build(place[edges], batch.n_atoms, batch.positions.dtype)
        vectors = edge_vectors(batch.positions, edges)
        distances = torch.linalg.vector_norm(vectors, dim=1)
        if min_distance is None:
            unit = vectors / distances[:, None]
        else:
            unit = vectors / distances.clamp(min=_DIRECTION_EPS)[:, None]
            distances = distances.clamp(min=min_distance)
        radial = self.radial_basis(distances)
        signs = torch.cat(
            [
                (hoods.sign if l % 2 else hoods.sign.abs()).expand(-1, 2 * l + 1)
                for l in range(self.config.l_max + 1)
            ],
            dim=1,
        )
        harmonics = hoods.from_edges(spherical_harmonics(unit, self.config.l_max)) * signs
        harmonics = harmonics.reshape(batch.n_atoms, hoods.width, (self.config.l_max + 1) ** 2)
        one_hot = F.one_hot(element, len(self.elements)).to(radial.dtype)
        current = (one_hot @ (self.embedding / math.sqrt(len(self.elements))))[None]
        features = []
        for layer in list(self.layers)[:n_layers]:
            current = layer(current, radial, harmonics, hoods, one_hot, n_of_element)
            features.append(current)
        return features, order, element
