"""The equivariant force field."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simgen.elements import SYMBOLS
from simgen.errors import InputError
from simgen.graph import edge_vectors, molecule_pairs, neighbour_list
from simgen.models.angular import spherical_harmonics, wigner_3j
from simgen.models.config import NetworkConfig
from simgen.models.constants import ConstantsModule
from simgen.models.edges import Neighbourhoods
from simgen.models.product import SymmetricProduct
from simgen.models.radial import SILU_NORM, RadialBasis, RadialNetwork
from simgen.molecules import MoleculeBatch

DIRECTION_EPS = 0.01
"""Below this distance (angstrom) directions fade, so that coinciding atoms have a gradient."""

_MIN_BLOCK, _MAX_BLOCKS = 48, 16
"""Smaller blocks waste fewer empty slots, but more calls."""


@dataclass(frozen=True, slots=True, eq=False)
class _Graph:
    """What the layers share; atoms are sorted by element, then by number of neighbours.

    Attributes
    ----------
    order : Tensor, shape (n_atoms,), int64
        Place in the batch of each sorted atom.
    element : Tensor, shape (n_atoms,), int64
        Place of its element among those of the network.
    n_of_element : list of int
    one_hot : Tensor, shape (n_atoms, n_elements)
    hoods : Neighbourhoods
    radial : Tensor, shape (n_edges, n_radial)
    harmonics : list of Tensor, shape (n_slots, 2 l + 1), one for each degree l
    """

    order: Tensor
    element: Tensor
    n_of_element: list[int]
    one_hot: Tensor
    hoods: Neighbourhoods
    radial: Tensor
    harmonics: list[Tensor]

    def per_element(self, x: Tensor, weight: Tensor) -> Tensor:
        """Multiply x, (..., n_atoms, n_in), by each element's weight, (n_elements, n_in, n_out)."""
        parts = zip(torch.split(x, self.n_of_element, dim=-2), weight, strict=True)
        return torch.cat([rows @ w for rows, w in parts], dim=-2)


Features = list[Tensor]
"""For each degree l a tensor of shape (2 l + 1, n_atoms, n_channels)."""


class ElementLinear(nn.Module):
    """A linear map of the channels for each degree and element."""

    def __init__(
        self, l_max: int, n_elements: int, n_in: int, n_out: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(l_max + 1, n_elements, n_in, n_out, generator=generator)
        )

    def scaled(self) -> Tensor:
        """Weights times their normalisation, shape (l_max + 1, n_elements, n_in, n_out)."""
        _, n_elements, n_in, _ = self.weight.shape
        return self.weight * (1 / math.sqrt(n_elements * n_in))


class Interaction(ConstantsModule):
    """Atomic basis of one layer: what the neighbours send, summed and mixed.

    References
    ----------
    Batatia et al., arXiv:2206.07697, eq. 8 and 9.
    """

    def __init__(self, config: NetworkConfig, layer: int, generator: torch.Generator) -> None:
        super().__init__()
        n_channels = config.n_channels
        self.avg_n_neighbours = config.avg_n_neighbours
        l_in = config.hidden_l_max if layer > 0 else 0
        self.paths = [
            (l_1, l_2, l_3)
            for l_3 in range(config.l_max + 1)
            for l_1 in range(l_in + 1)
            for l_2 in range(config.l_max + 1)
            if abs(l_1 - l_2) <= l_3 <= l_1 + l_2 and (l_1 + l_2 + l_3) % 2 == 0
        ]
        for i, (l_1, l_2, l_3) in enumerate(self.paths):
            coupling = math.sqrt(2 * l_3 + 1) * torch.from_numpy(wigner_3j(l_1, l_2, l_3).copy())
            self.register_constant(f"coupling_{i}", coupling)
        self.linear_up = nn.Parameter(
            torch.randn(l_in + 1, n_channels, n_channels, generator=generator)
        )
        self.radial = RadialNetwork(
            (config.n_radial, *config.radial_widths, n_channels * len(self.paths)), generator
        )
        n_paths = [sum(l_3 == ell for _, _, l_3 in self.paths) for ell in range(config.l_max + 1)]
        self.linear = nn.ParameterList(
            torch.randn(n_channels * n, n_channels, generator=generator) for n in n_paths
        )
        self.density: RadialNetwork | None = None
        if config.density_normalised:
            self.density = RadialNetwork((config.n_radial, 1), generator)

    def forward(self, features: Features, graph: _Graph, element_weight: Tensor | None) -> Features:
        """Return the atomic basis.

        With ``element_weight``, shape (l_max + 1, n_elements, n_channels, n_channels), its
        channels are mixed once more for each element.
        """
        n_channels = self.linear_up.shape[-1]
        scale = 1 / math.sqrt(n_channels)
        up = [x @ (weight * scale) for x, weight in zip(features, self.linear_up, strict=True)]
        degrees = [len(x) for x in up]
        sent = graph.hoods.from_senders(torch.cat(up).transpose(0, 1))
        sent_of_degree = torch.split(sent, degrees, dim=1)
        weights = graph.hoods.from_edges(self.radial(graph.radial))
        weight_of_path = torch.split(weights, n_channels, dim=1)
        messages: list[list[Tensor]] = [[] for _ in self.linear]
        for i, (l_1, l_2, l_3) in enumerate(self.paths):
            y = graph.harmonics[l_2][:, None]
            if l_1 > 0:
                y = torch.einsum("sj,ijk->sik", y[:, 0], self.get_buffer(f"coupling_{i}"))
            rows = weight_of_path[i][:, None] * sent_of_degree[l_1]
            messages[l_3].append(
                torch.cat(
                    [
                        y_block.flatten(1, 2).transpose(1, 2) @ rows_block.flatten(1, 2)
                        for y_block, rows_block in zip(
                            graph.hoods.split(y), graph.hoods.split(rows), strict=True
                        )
                    ]
                )
            )
        gain, divisor = 1 / self.avg_n_neighbours, None
        if self.density is not None:
            slots = graph.hoods.from_edges(torch.tanh(self.density(graph.radial) ** 2))
            blocks = graph.hoods.split(slots * graph.hoods.sign.abs())
            gain, divisor = 1.0, 1 + torch.cat([block.sum(1) for block in blocks])
        basis = []
        for ell, weight in enumerate(self.linear):
            message = torch.cat(messages[ell], dim=-1).transpose(0, 1)
            weight = weight * (gain / math.sqrt(len(weight)))
            if element_weight is None:
                basis.append(message @ weight)
            else:
                basis.append(graph.per_element(message, weight @ element_weight[ell]))
        return basis if divisor is None else [x / divisor for x in basis]


class Layer(nn.Module):
    """Interaction, product basis and update of the features.

    References
    ----------
    Batatia et al., arXiv:2206.07697, eq. 10 and 11.
    """

    def __init__(self, config: NetworkConfig, layer: int, generator: torch.Generator) -> None:
        super().__init__()
        n_elements, n_channels = len(config.elements), config.n_channels
        l_out = 0 if layer == config.n_layers - 1 else config.hidden_l_max
        l_in = config.hidden_l_max if layer > 0 else 0
        self.residual = layer > 0 or config.first_residual
        self.interaction = Interaction(config, layer, generator)
        l_skip = min(l_in, l_out) if self.residual else config.l_max
        self.skip = ElementLinear(l_skip, n_elements, n_channels, n_channels, generator)
        self.product = SymmetricProduct(
            config.l_max, l_out, config.correlation, n_elements, n_channels, generator
        )
        self.linear = nn.Parameter(
            torch.randn(l_out + 1, n_channels, n_channels, generator=generator)
        )

    def forward(self, features: Features, graph: _Graph) -> Features:
        """Return the new features."""
        skip = self.skip.scaled()
        basis = self.interaction(features, graph, None if self.residual else skip)
        products = self.product(torch.cat(basis), graph.one_hot)
        scale = 1 / math.sqrt(self.linear.shape[-1])
        out = [x @ (weight * scale) for x, weight in zip(products, self.linear, strict=True)]
        if self.residual:
            kept = [graph.per_element(x, w) for x, w in zip(features, skip, strict=False)]
            out[: len(kept)] = [x + y for x, y in zip(out, kept, strict=False)]
        return out


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
                f"expected {n_elements} atomic energies, one for each element, "
                f"got {len(atomic_energies)}"
            )
        self.atomic_energies: Tensor
        self.scale: Tensor
        self.shift: Tensor
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
        graph = self._graph(batch, pairs, None)
        invariants = self._invariants(graph, self.config.n_layers)
        molecule_idx = batch.molecule_idx[graph.order]
        return self.sum_energies(invariants, graph.element, molecule_idx, batch.n_molecules)

    def sum_energies(
        self, invariants: list[Tensor], element: Tensor, molecule_idx: Tensor, n_molecules: int
    ) -> Tensor:
        """Energies in eV, (n_molecules,), from the invariants of each layer.

        ``element`` is the place of each atom's element among those of the network.
        """
        per_atom = self.scale * self._readout(invariants) + self.shift
        zeros = per_atom.new_zeros(n_molecules)
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
        graph = self._graph(batch, pairs, min_distance)
        invariants = torch.cat(self._invariants(graph, n_layers), dim=-1)
        return torch.empty_like(invariants).index_copy(0, graph.order, invariants)

    def _invariants(self, graph: _Graph, n_layers: int) -> list[Tensor]:
        """Features of degree 0 after each of the first layers, (n_atoms, n_channels)."""
        n_elements = len(self.elements)
        features = [(graph.one_hot @ (self.embedding / math.sqrt(n_elements)))[None]]
        invariants = []
        for layer in list(self.layers)[:n_layers]:
            features = layer(features, graph)
            invariants.append(features[0][0])
        return invariants

    def _readout(self, invariants: list[Tensor]) -> Tensor:
        """Energy of each atom before scale and shift, shape (n_atoms,)."""
        scale = 1 / math.sqrt(self.config.n_channels)
        out = [x @ (w * scale) for w, x in zip(self.readouts, invariants, strict=False)]
        if width := self.config.readout_width:
            hidden = F.silu(invariants[-1] @ (self.readout_hidden * scale))
            out.append(hidden @ (self.readout_out * (SILU_NORM / math.sqrt(width))))
        return torch.stack(out).sum(0)

    def elements_of(self, batch: MoleculeBatch) -> Tensor:
        """Place of each atom's element among those of the network, shape (n_atoms,)."""
        element = self.lookup[batch.atomic_numbers.clamp(0, len(SYMBOLS) - 1)]
        if bool((element < 0).any()):
            unknown = sorted(set(batch.atomic_numbers[element < 0].tolist()))
            names = [SYMBOLS[z] if 0 < z < len(SYMBOLS) else str(z) for z in unknown]
            known = " ".join(SYMBOLS[z] for z in self.elements)
            raise InputError(
                f"expected only the elements that the model knows, {known}; got {' '.join(names)}"
            )
        return element

    def _graph(
        self, batch: MoleculeBatch, pairs: Tensor | None, min_distance: float | None
    ) -> _Graph:
        if batch.positions.dtype != self.embedding.dtype:
            raise InputError(
                f"expected positions of the model's dtype {self.embedding.dtype}, "
                f"got {batch.positions.dtype}; convert one of them with .to()"
            )
        element = self.elements_of(batch)
        if pairs is None:
            pairs = molecule_pairs(batch)
        edges = neighbour_list(batch.positions, pairs[:, pairs[0] < pairs[1]], self.r_max)
        n_neighbours = torch.bincount(edges.reshape(-1), minlength=batch.n_atoms)
        order = torch.argsort(element * (batch.n_atoms + 1) + n_neighbours, stable=True)
        element = element[order]
        n_of_element = torch.bincount(element, minlength=len(self.elements)).tolist()
        place = torch.empty_like(order)
        place[order] = torch.arange(batch.n_atoms, device=order.device)
        hoods = Neighbourhoods.build(
            place[edges], _blocks(n_of_element, n_neighbours[order]), batch.positions.dtype
        )
        vectors = edge_vectors(batch.positions, edges)
        distances = torch.linalg.vector_norm(vectors, dim=1)
        if min_distance is None:
            unit = vectors / distances[:, None]
        else:
            unit = vectors / distances.clamp(min=DIRECTION_EPS)[:, None]
            distances = distances.clamp(min=min_distance)
        widths = [2 * ell + 1 for ell in range(self.config.l_max + 1)]
        harmonics = hoods.from_edges(spherical_harmonics(unit, self.config.l_max))
        return _Graph(
            order=order,
            element=element,
            n_of_element=n_of_element,
            one_hot=F.one_hot(element, len(self.elements)).to(batch.positions.dtype),
            hoods=hoods,
            radial=self.radial_basis(distances),
            harmonics=[
                y * (hoods.sign if ell % 2 else hoods.sign.abs())
                for ell, y in enumerate(torch.split(harmonics, widths, dim=1))
            ],
        )


def _blocks(n_of_element: list[int], n_neighbours: Tensor) -> tuple[tuple[int, int], ...]:
    """Blocks of atoms with similar numbers of neighbours, given atoms sorted by element.

    Returns
    -------
    tuple of (int, int)
        Number of atoms of each block, and the highest number of neighbours there.
    """
    size = max(_MIN_BLOCK, -(-sum(n_of_element) // _MAX_BLOCKS))
    sizes = []
    for n in n_of_element:
        n_blocks = -(-n // size)
        sizes += [n * (i + 1) // n_blocks - n * i // n_blocks for i in range(n_blocks)]
    last = torch.tensor(sizes, dtype=torch.int64, device=n_neighbours.device).cumsum(0) - 1
    return tuple(zip(sizes, n_neighbours[last].tolist(), strict=True)) or ((0, 0),)
