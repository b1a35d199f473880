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
from simgen.models.config import Irrep, NetworkConfig, natural_irreps
from simgen.models.constants import ConstantsModule
from simgen.models.edges import Neighbourhoods
from simgen.models.pair_terms import AgnesiTransform, PairRepulsion
from simgen.models.product import SymmetricProduct, has_polynomials
from simgen.models.radial import SILU_NORM, TANH_NORM, RadialBasis, RadialNetwork
from simgen.molecules import MoleculeBatch

DIRECTION_EPS = 0.01
"""Below this distance (angstrom) directions fade, so that coinciding atoms have a gradient."""

_MIN_BLOCK, _MAX_BLOCKS = 48, 16
"""Smaller blocks waste fewer empty slots, but more calls."""

_SLOTS_PER_BLOCK = 256
"""What the calls for one more block cost, in slots."""


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
    edges : Tensor, shape (2, n_edges), int64
        Sorted atoms at both ends of each edge, which is there once.
    distances : Tensor, shape (n_edges,)
        In angstrom, as radial functions see them.
    hoods : Neighbourhoods
    radial : Tensor, shape (n_edges, n_radial_inputs)
    harmonics : list of Tensor, shape (n_slots, 2 l + 1), one for each degree l
    """

    order: Tensor
    element: Tensor
    n_of_element: list[int]
    one_hot: Tensor
    edges: Tensor
    distances: Tensor
    hoods: Neighbourhoods
    radial: Tensor
    harmonics: list[Tensor]

    def per_element(self, x: Tensor, weight: Tensor) -> Tensor:
        """Multiply x, (..., n_atoms, n_in), by each element's weight, (n_elements, n_in, n_out)."""
        parts = zip(torch.split(x, self.n_of_element, dim=-2), weight, strict=True)
        return torch.cat([rows @ w for rows, w in parts], dim=-2)


Features = list[Tensor]
"""For each degree l and parity a tensor of shape (2 l + 1, n_atoms, n_channels), scalars first."""


class ElementLinear(nn.Module):
    """A linear map of the channels for each of several irreps and, if wanted, each element."""

    def __init__(
        self, config: NetworkConfig, n_maps: int, by_element: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.n_elements, n_channels = len(config.elements), config.n_channels
        n_sets = self.n_elements if by_element else 1
        self.weight = nn.Parameter(
            torch.randn(n_maps, n_sets, n_channels, n_channels, generator=generator)
        )

    def scaled(self) -> Tensor:
        """Weights times their normalisation, shape (n_maps, n_elements, n_channels, n_channels)."""
        _, n_sets, n_channels, _ = self.weight.shape
        scaled = self.weight * (1 / math.sqrt(n_sets * n_channels))
        return scaled.expand(-1, self.n_elements, -1, -1)


class Interaction(ConstantsModule):
    """Atomic basis of one layer: what the neighbours send, summed and mixed.

    For each path p, from an irrep of the features h by a degree l of the harmonics Y to an irrep of
    the atomic basis A, with coupling C:

    ==================================================  ==========================================
    Equation                                            Variable
    ==================================================  ==========================================
    W h_j                                               ``up``
    R_p(r_ij)                                           ``weight_of_path``
    sum_j R_p(r_ij) C (Y_l(ij), W h_j)                  ``messages``
    A_i = gain * sum_p W_p (message of p)               ``basis``
    ==================================================  ==========================================

    Parameters
    ----------
    config : NetworkConfig
    inputs : tuple of (int, int)
        Degree and parity of the features that it gets.
    outputs : tuple of (int, int)
        Degree and parity of its atomic basis. A path leads to each of them, and the first one is
        the scalar.
    n_gates : int
        Scalars that follow them.
    generator : torch.Generator
        Of the initial weights.

    References
    ----------
    Batatia et al., arXiv:2206.07697, eq. 8 and 9. The same for any parity and without product
    basis: Batatia et al., arXiv:2205.06643; S. Batzner et al., Nat. Commun. 13, 2453 (2022),
    arXiv:2101.03164, section "Network architecture".
    """

    def __init__(
        self,
        config: NetworkConfig,
        inputs: tuple[Irrep, ...],
        outputs: tuple[Irrep, ...],
        n_gates: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        n_channels = config.n_channels
        # Gates want arguments of order one, as the sum over the root of the number of its terms is
        # (arXiv:2101.03164); MACE has the mean.
        n_terms = config.avg_n_neighbours
        self.gain = 1 / (math.sqrt(n_terms) if config.nonlinearity == "gate" else n_terms)
        self.paths = _paths(inputs, config.l_max, outputs)
        """Place among the inputs, degree of the harmonics, place among the outputs."""
        self.sources = [*range(len(outputs)), *[0] * n_gates]
        for i, (place, l_2, k) in enumerate(self.paths):
            l_1, l_3 = inputs[place][0], outputs[k][0]
            coupling = math.sqrt(2 * l_3 + 1) * torch.from_numpy(wigner_3j(l_1, l_2, l_3).copy())
            self.register_constant(f"coupling_{i}", coupling)
        self.linear_up = nn.Parameter(
            torch.randn(len(inputs), n_channels, n_channels, generator=generator)
        )
        self.radial = RadialNetwork(
            (config.n_radial_inputs, *config.radial_widths, n_channels * len(self.paths)), generator
        )
        n_paths = [sum(k == source for _, _, k in self.paths) for source in self.sources]
        self.linear = nn.ParameterList(
            torch.randn(n_channels * n, n_channels, generator=generator) for n in n_paths
        )
        self.density: RadialNetwork | None = None
        if config.density_normalised:
            self.density = RadialNetwork((config.n_radial_inputs, 1), generator)

    def forward(self, features: Features, graph: _Graph, element_weight: Tensor | None) -> Features:
        """Return the atomic basis.

        With ``element_weight``, shape (n_outputs, n_elements, n_channels, n_channels), its
        channels are mixed once more for each element.
        """
        n_channels = self.linear_up.shape[-1]
        scale = 1 / math.sqrt(n_channels)
        up = [x @ (weight * scale) for x, weight in zip(features, self.linear_up, strict=True)]
        n_components = [len(x) for x in up]
        sent = graph.hoods.from_senders(torch.cat(up).transpose(0, 1))
        sent_of_input = torch.split(sent, n_components, dim=1)
        weights = graph.hoods.from_edges(self.radial(graph.radial))
        weight_of_path = torch.split(weights, n_channels, dim=1)
        messages: list[list[Tensor]] = [[] for _ in self.linear]
        for i, (place, l_2, k) in enumerate(self.paths):
            y = graph.harmonics[l_2][:, None]
            if n_components[place] > 1:
                y = torch.einsum("sj,ijk->sik", y[:, 0], self.get_buffer(f"coupling_{i}"))
            rows = weight_of_path[i][:, None] * sent_of_input[place]
            messages[k].append(
                torch.cat(
                    [
                        y_block.flatten(1, 2).transpose(1, 2) @ rows_block.flatten(1, 2)
                        for y_block, rows_block in zip(
                            graph.hoods.split(y), graph.hoods.split(rows), strict=True
                        )
                    ]
                )
            )
        gain, divisor = self.gain, None
        if self.density is not None:
            slots = graph.hoods.from_edges(torch.tanh(self.density(graph.radial) ** 2))
            blocks = graph.hoods.split(slots * graph.hoods.sign.abs())
            gain, divisor = 1.0, 1 + torch.cat([block.sum(1) for block in blocks])
        basis = []
        for i, (source, weight) in enumerate(zip(self.sources, self.linear, strict=True)):
            message = torch.cat(messages[source], dim=-1).transpose(0, 1)
            weight = weight * (gain / math.sqrt(len(weight)))
            if element_weight is None:
                basis.append(message @ weight)
            else:
                basis.append(graph.per_element(message, weight @ element_weight[i]))
        return basis if divisor is None else [x / divisor for x in basis]


def _paths(
    inputs: tuple[Irrep, ...], l_max: int, outputs: tuple[Irrep, ...]
) -> list[tuple[int, int, int]]:
    """All couplings of an input with harmonics to an output, as places and degrees."""
    return [
        (place, l_2, k)
        for k, (l_3, parity) in enumerate(outputs)
        for place, (l_1, parity_in) in enumerate(inputs)
        for l_2 in range(l_max + 1)
        if abs(l_1 - l_2) <= l_3 <= l_1 + l_2 and parity_in * (-1) ** l_2 == parity
    ]


class Layer(nn.Module):
    """Interaction, product basis, update of the features, and a gate if wanted.

    Parameters
    ----------
    config : NetworkConfig
    layer : int
        Its place.
    inputs : tuple of (int, int)
        Degree and parity of the features that it gets. ``irreps`` has those that it returns.
    generator : torch.Generator
        Of the initial weights.

    References
    ----------
    Batatia et al., arXiv:2206.07697, eq. 10 and 11 (product basis and update); arXiv:2205.06643
    (update without a product basis, of BOTNet); the gate: M. Weiler et al., "3D steerable CNNs",
    arXiv:1807.02547, and Batzner et al., arXiv:2101.03164, with silu and tanh.
    """

    def __init__(
        self,
        config: NetworkConfig,
        layer: int,
        inputs: tuple[Irrep, ...],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        n_channels, l_max = config.n_channels, config.l_max
        wanted = natural_irreps(0) if layer == config.n_layers - 1 else config.feature_irreps
        self.irreps = wanted = tuple(irrep for irrep in wanted if _reachable(config, inputs, irrep))
        self.is_gated = config.nonlinearity == "gate"
        n_gates = sum(ell > 0 for ell, _ in wanted) if self.is_gated else 0
        # What is updated: the features, then the scalars that will be their gates.
        updated = wanted + ((0, 1),) * n_gates
        self.residual = layer > 0 or config.first_residual
        if config.has_product:
            self.interaction = Interaction(config, inputs, natural_irreps(l_max), 0, generator)
        else:
            self.interaction = Interaction(config, inputs, wanted, n_gates, generator)
        self.kept = [(k, inputs.index(i)) for k, i in enumerate(updated) if i in inputs]
        """Places of updated features, and of the same among the inputs."""
        n_maps = len(self.kept) if self.residual else len(self.interaction.linear)
        by_element = config.residual_by_element or not self.residual
        self.skip = ElementLinear(config, n_maps, by_element, generator)
        self.product: SymmetricProduct  # only if there is one
        self.has_product = config.has_product
        if config.has_product:
            n_weights = len(config.elements) if config.product_by_element else 1
            self.product = SymmetricProduct(
                l_max, wanted, config.correlation, n_weights, n_channels, generator
            )
            self.sources = [wanted.index(irrep) for irrep in updated]
            self.is_mixed = config.product_mixed
            if self.is_mixed:
                self.linear = nn.Parameter(
                    torch.randn(len(updated), n_channels, n_channels, generator=generator)
                )

    def forward(self, features: Features, graph: _Graph) -> Features:
        """Return the new features."""
        skip = self.skip.scaled()
        out = self.interaction(features, graph, None if self.residual else skip)
        if self.has_product:
            products = self.product(torch.cat(out), graph.one_hot)
            out = [products[k] for k in self.sources]
            if self.is_mixed:
                linear = self.linear * (1 / math.sqrt(self.linear.shape[-1]))
                out = [x @ weight for x, weight in zip(out, linear, strict=True)]
        if self.residual:
            for (k, place), weight in zip(self.kept, skip, strict=True):
                out[k] = out[k] + graph.per_element(features[place], weight)
        return self._gate(out) if self.is_gated else out

    def _gate(self, updated: Features) -> Features:
        """Apply activations to scalars, and multiply everything else by activated scalars."""
        gates = iter(updated[len(self.irreps) :])
        out = []
        for (ell, parity), x in zip(self.irreps, updated, strict=False):
            if ell > 0:
                out.append(x * (SILU_NORM * F.silu(next(gates))))
            else:
                out.append(SILU_NORM * F.silu(x) if parity > 0 else TANH_NORM * torch.tanh(x))
        return out


def _reachable(config: NetworkConfig, inputs: tuple[Irrep, ...], irrep: Irrep) -> bool:
    """Whether a layer can make features of a degree and parity."""
    if config.has_product:
        return has_polynomials(config.l_max, irrep, config.correlation)
    return bool(_paths(inputs, config.l_max, (irrep,)))


class ForceField(nn.Module):
    """Energy of molecules as a sum over atoms; forces are its negative gradient.

    One network for all: what its configuration says makes it MACE, NequIP, BOTNet, ACE or something
    between them.

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
    Batatia et al., arXiv:2206.07697, eq. 12 and 13 (readouts); arXiv:2205.06643.
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
        self.radial_basis = RadialBasis(
            config.r_max, config.n_radial, config.cutoff_power, config.radial_basis
        )
        self.distance_transform: AgnesiTransform | None = None
        if config.distance_transform == "agnesi":
            self.distance_transform = AgnesiTransform(n_elements)
        self.repulsion: PairRepulsion | None = None
        if config.pair_repulsion:
            self.repulsion = PairRepulsion(config.elements, config.cutoff_power)
        self.layers = nn.ModuleList()
        irreps = natural_irreps(0)
        for i in range(config.n_layers):
            layer = Layer(config, i, irreps, generator)
            self.layers.append(layer)
            irreps = layer.irreps
        width = config.readout_width
        n_linear = (config.n_layers if config.readouts == "all" else 1) - (1 if width else 0)
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
        n_molecules = batch.n_molecules
        readout = self.readout(invariants)
        energies = self.sum_energies(readout, graph.element, molecule_idx, n_molecules)
        if self.repulsion is None:
            return energies
        repulsion = self.repulsion(graph.distances, graph.element[graph.edges])
        # Like what layers predict, it is in units of the scale.
        return energies.index_add(0, molecule_idx[graph.edges[0]], self.scale * repulsion)

    def sum_energies(
        self, readout: Tensor, element: Tensor, molecule_idx: Tensor, n_molecules: int
    ) -> Tensor:
        """Energies in eV, (n_molecules,), from the readout of each atom, (n_atoms,).

        ``element`` is the place of each atom's element among those of the network. Pairs add
        theirs to these.
        """
        per_atom = self.scale * readout + self.shift
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

    def readout(self, invariants: list[Tensor]) -> Tensor:
        """Energy of each atom before scale and shift, (n_atoms,), from invariants of each layer."""
        scale = 1 / math.sqrt(self.config.n_channels)
        if self.config.readouts == "last":
            invariants = invariants[-1:]
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
        places = place[edges]
        hoods = Neighbourhoods.build(
            places, _blocks(n_of_element, n_neighbours[order]), batch.positions.dtype
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
            edges=places,
            distances=distances,
            hoods=hoods,
            radial=self._radial_inputs(distances, element[places]),
            harmonics=[
                y * (hoods.sign if ell % 2 else hoods.sign.abs())
                for ell, y in enumerate(torch.split(harmonics, widths, dim=1))
            ],
        )

    def _radial_inputs(self, distances: Tensor, elements: Tensor) -> Tensor:
        """What the radial networks see of each edge; ``elements`` of its ends, (2, n_edges)."""
        scaled = None
        if self.distance_transform is not None:
            scaled = self.distance_transform(distances, elements)
        radial: Tensor = self.radial_basis(distances, scaled)
        if not self.config.radial_by_element:
            return radial
        n_pairs = self.config.n_radial_inputs // self.config.n_radial
        low, high = elements.amin(0), elements.amax(0)
        one_hot = F.one_hot(high * (high + 1) // 2 + low, n_pairs).to(radial.dtype)
        # As large, on the whole, as the basis of which one set of weights sees all.
        return (one_hot[:, :, None] * (math.sqrt(n_pairs) * radial[:, None])).flatten(1)


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
    merged: list[tuple[int, int]] = []
    for n, width in zip(sizes, n_neighbours[last].tolist(), strict=True):
        if merged:
            m, previous = merged[-1]
            widest = max(previous, width)
            if (m + n) * widest <= m * previous + n * width + _SLOTS_PER_BLOCK:
                merged[-1] = m + n, widest
                continue
        merged.append((n, width))
    return tuple(merged) or ((0, 0),)
