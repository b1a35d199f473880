"""The loops of a frozen force field, and of a score, in C, where the machine has a compiler.

Between its matrix products a network of the usual kind does little with much data, in hundreds of
calls of torch. ``fused.c`` does the same in a few loops. It is compiled when it is needed first and
kept in the user's cache; without a compiler, on a GPU, and for other kinds of networks, nothing of
this is used.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate, pairwise, starmap
from pathlib import Path

import torch
from torch import Tensor

from simgen.models.product import SparsePolynomials
from simgen.models.spline import RadialTable

SOURCE = Path(__file__).with_name("fused.c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-std=gnu11", "-w", "-shared", "-fPIC")
REAL = {torch.float32: "float", torch.float64: "double"}
LANES = {torch.float32: 8, torch.float64: 4}
"""Numbers of a vector register; rows that C reads are padded to a multiple."""
MAPS_AT_HAND = 64
"""Sets of elements that occur together whose maps are kept, those used last."""
MAX_L = 3
"""Highest degree of harmonics that ``fused.c`` has room for."""

_INT, _REAL, _ARRAY = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
_SIGNATURES = {
    # i: integer, r: real number, everything else: array
    "find_edges": "iii aaaa rr ii aa aaaaaa aaaa a",
    "splines": "i a rrr ii aa aa",
    "first_layer": "iiiiiii aaaaa aaa aa aaa",
    "first_layer_pullback": "iiiiiii aaaaa aaa aaa aaa aa",
    "first_layer_workspace": "iii",
    "messages": "iiii aa aaaa aa",
    "messages_pullback": "iiii aa aaaaa aa aaa aaa",
    "geometry_pullback": "iii aa rr aaa aaaa aa a",
    "products": "iiii aa i aa a",
    "products_pullback": "iiii aa i aa a i a",
    "matrix_products": "iiii aii a aii",
    "log_kernel": "iiii r aaaa aaa",
    "near_moving": "ii aaa r a",
    "repulsion": "ii aa rrr a",
    "cohesion": "ii aaaa rr aa aa",
    "panel_width": "",
    "kernel_workspace": "iii",
}
_RETURNS_INTEGER = ("find_edges", "panel_width", "first_layer_workspace", "kernel_workspace")


@cache
def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Compile and load the loops for a dtype; None where that cannot be done."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None or dtype not in REAL or os.name != "posix":
        return None
    try:
        path = _cache() / f"{_digest(compiler, dtype)}.so"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Several processes may do this at the same time.
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                built = Path(folder) / path.name
                real, files = f"-DREAL={REAL[dtype]}", ("-o", str(built), str(SOURCE), "-lm")
                subprocess.run(
                    [compiler, *FLAGS, real, *files], check=True, capture_output=True, timeout=120
                )
                built.replace(path)
        loaded = ctypes.CDLL(str(path))
        for name, signature in _SIGNATURES.items():
            function = getattr(loaded, name)
            kinds = signature.replace(" ", "")
            function.argtypes = [{"i": _INT, "r": _REAL}.get(kind, _ARRAY) for kind in kinds]
            function.restype = _INT if name in _RETURNS_INTEGER else None
    except (OSError, subprocess.SubprocessError, AttributeError):
        return None
    return loaded


def library_for(tensor: Tensor) -> ctypes.CDLL | None:
    """Return the loops for the dtype of a tensor, if it is where they can reach it."""
    return library(tensor.dtype) if tensor.device.type == "cpu" else None


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "simgen"


def _digest(compiler: str, dtype: torch.dtype) -> str:
    """Checksum of everything that the machine code depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        processor = platform.processor()
    parts = (SOURCE.read_text(), *FLAGS, REAL[dtype], compiler, platform.machine(), processor)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


class Matrices:
    """Matrices that rows are multiplied with.

    A row of a product is the same, bit for bit, whatever other rows there are; that cannot be said
    of ``torch.matmul``.

    Parameters
    ----------
    code : ctypes.CDLL
        What :func:`library` returns.
    matrices : Tensor, shape (n_matrices, n_in, n_out)

    Attributes
    ----------
    panels : Tensor, shape (n_matrices, n_panels, n_in, panel)
        Their columns in panels as wide as ``panel_width()`` of ``fused.c`` says, padded with zeros.
    """

    def __init__(self, code: ctypes.CDLL, matrices: Tensor) -> None:
        self._code = code
        n_matrices, self._n_in, self._n_out = matrices.shape
        panel = code.panel_width()
        n_panels = -(-self._n_out // panel)
        padded = torch.nn.functional.pad(matrices, (0, n_panels * panel - self._n_out))
        self.panels = padded.view(n_matrices, self._n_in, n_panels, panel).transpose(1, 2)
        self.panels = self.panels.contiguous()

    def __call__(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Multiply rows, (n_rows, n_in), or such rows for each matrix, (n_matrices, n_rows, n_in).

        Rows, and those of ``out``, may be parts of larger tensors, but not transposed ones.
        """
        if out is None:
            out = rows.new_empty(*rows.shape[:-1], self._n_out)
        several = rows.ndim == 3
        self._code.matrix_products(
            *(len(self.panels), rows.shape[-2], self._n_in, self._n_out),
            *(rows.data_ptr(), rows.stride(0) if several else 0, rows.stride(-2)),
            *(self.panels.data_ptr(), out.data_ptr()),
            *(out.stride(0) if several else 0, out.stride(-2)),
        )
        return out


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """Atoms sorted by element, and their neighbours; edges of an atom are adjacent.

    Attributes
    ----------
    order, element : Tensor, shape (n_atoms,), int64
        Place in the batch of each sorted atom, and the place of its element among the network's.
    present : tuple of int
        The elements that occur.
    n_of_present, n_wanted : list of int
        How many atoms of each, and how many of these, the first ones, have edges.
    column : Tensor, shape (n_atoms,), int64
        Place of the element of each sorted atom among those that occur.
    first : Tensor, shape (n_atoms + 1,), int64
        First edge of each atom.
    sender : Tensor, shape (n_edges,), int32
        The sorted atom that it comes from.
    distance, inverse : Tensor, shape (n_edges,)
        Length, and what directions were multiplied by.
    direction : Tensor, shape (n_edges, 3)
    harmonics : Tensor, shape (n_edges, d)
    """

    order: Tensor
    element: Tensor
    present: tuple[int, ...]
    n_of_present: list[int]
    n_wanted: list[int]
    column: Tensor
    first: Tensor
    sender: Tensor
    distance: Tensor
    inverse: Tensor
    direction: Tensor
    harmonics: Tensor

    def parts(self) -> Iterator[tuple[int, slice]]:
        """Each element that occurs, and where its atoms are."""
        bounds = pairwise([0, *accumulate(self.n_of_present)])
        return zip(self.present, starmap(slice, bounds), strict=True)


Gradients = tuple[Tensor, Tensor]
"""With respect to distances, (n_edges,), and harmonics, (n_edges, d); pullbacks add to them."""


class Geometry:
    """Finds edges and takes gradients back to positions.

    Parameters
    ----------
    code : ctypes.CDLL
        What :func:`library` returns.
    slopes : Tensor, shape (d, 3 d)
        Of the harmonics (:func:`simgen.models.frozen.harmonic_slopes`).
    n_elements : int
        Elements of the network.
    r_max, smallest, floor : float
        Cutoff; distances below ``smallest`` count as that in radial functions, and directions are
        not divided by less than ``floor``; angstrom.
    """

    def __init__(
        self,
        code: ctypes.CDLL,
        slopes: Tensor,
        n_elements: int,
        r_max: float,
        smallest: float,
        floor: float,
    ) -> None:
        self._code = code
        self._n_elements = n_elements
        self._r_max, self._smallest, self._floor = r_max, smallest, floor
        self._n_harmonics = len(slopes)
        # Terms of the derivatives: harmonic, axis, the harmonic it is a multiple of.
        table = slopes.view(len(slopes), 3, len(slopes)).permute(2, 1, 0)
        found = torch.nonzero(table)
        degree = found[:, 0].double().sqrt().floor()
        self._terms = found.to(torch.int32).contiguous()
        self._values = table[tuple(found.T)].contiguous()
        self._shares = (self._values / degree).to(slopes)

    def __call__(
        self, positions: Tensor, element: Tensor, senders: Tensor, wanted: Tensor | None = None
    ) -> Edges:
        """Find the neighbours among ``senders``, (n_atoms, n_slots), of atoms, or of those wanted.

        The latter are marked, (n_atoms,), bool.
        """
        (n_atoms, n_slots), d = senders.shape, self._n_harmonics
        positions = positions.contiguous()
        place, order, sorted_element = element.new_empty(3, n_atoms).unbind(0)
        counts, n_wanted = element.new_empty(2, self._n_elements).unbind(0)
        first = element.new_empty(n_atoms + 1)
        sender = element.new_empty(n_atoms * n_slots, dtype=torch.int32)
        distance, inverse = positions.new_empty(2, n_atoms * n_slots).unbind(0)
        direction = positions.new_empty(n_atoms * n_slots, 3)
        harmonics = positions.new_empty(n_atoms * n_slots, d)
        n_edges = self._code.find_edges(
            *(n_atoms, n_slots, self._n_elements),
            *(positions.data_ptr(), senders.data_ptr(), element.data_ptr()),
            *(None if wanted is None else wanted.data_ptr(),),
            *(self._r_max, self._floor),
            *(d, len(self._terms), self._terms.data_ptr(), self._shares.data_ptr()),
            *(place.data_ptr(), order.data_ptr(), sorted_element.data_ptr()),
            *(counts.data_ptr(), n_wanted.data_ptr(), first.data_ptr(), sender.data_ptr()),
            *(distance.data_ptr(), inverse.data_ptr()),
            *(direction.data_ptr(), harmonics.data_ptr()),
        )
        n_of_element = counts.tolist()
        present = tuple(e for e, n in enumerate(n_of_element) if n)
        rank = element.new_zeros(self._n_elements)
        rank[list(present)] = torch.arange(len(present))
        return Edges(
            order=order,
            element=sorted_element,
            present=present,
            n_of_present=[n for n in n_of_element if n],
            n_wanted=n_wanted[list(present)].tolist(),
            column=rank[sorted_element],
            first=first,
            sender=sender[:n_edges],
            distance=distance[:n_edges],
            inverse=inverse[:n_edges],
            direction=direction[:n_edges],
            harmonics=harmonics[:n_edges],
        )

    def pullback(self, gradients: Gradients, edges: Edges) -> Tensor:
        """Gradient with respect to the positions, (n_atoms, 3), in the order of the batch."""
        by_distance, by_harmonics = gradients
        gradient = by_distance.new_empty(len(edges.order), 3)
        self._code.geometry_pullback(
            *(len(edges.order), self._n_harmonics, len(self._terms)),
            *(self._terms.data_ptr(), self._values.data_ptr()),
            *(self._smallest, self._floor),
            *(edges.order.data_ptr(), edges.first.data_ptr(), edges.sender.data_ptr()),
            *(edges.distance.data_ptr(), edges.inverse.data_ptr()),
            *(edges.direction.data_ptr(), edges.harmonics.data_ptr()),
            *(by_distance.data_ptr(), by_harmonics.data_ptr(), gradient.data_ptr()),
        )
        return gradient


class Splines:
    """A :class:`~simgen.models.spline.RadialTable`, its functions padded with zeros to ``width``.

    Parameters
    ----------
    code : ctypes.CDLL
        What :func:`library` returns.
    table : RadialTable
        The table.
    smallest : float
        Shorter distances count as this one, angstrom.
    """

    def __init__(self, code: ctypes.CDLL, table: RadialTable, smallest: float) -> None:
        self._code, self._table, self._smallest = code, table, smallest
        lanes = LANES[table.coefficients.dtype]
        self.width = -(-table.n_basis // lanes) * lanes
        missing = self.width - table.n_basis
        self._coefficients = torch.nn.functional.pad(table.coefficients, (0, missing)).contiguous()
        self._pieces = table.pieces.contiguous()

    def __call__(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Values and derivatives of the basis functions, both (n_edges, width)."""
        phi, slope = distances.new_empty(2, len(distances), self.width).unbind(0)
        table = self._table
        self._code.splines(
            *(len(distances), distances.data_ptr(), self._smallest, table.r_min, table.r_max),
            *(table.n_intervals, self.width),
            *(self._coefficients.data_ptr(), self._pieces.data_ptr()),
            *(phi.data_ptr(), slope.data_ptr()),
        )
        return phi, slope


class Products:
    """Combinations of invariant polynomials of the atomic basis, weighted for each element.

    Parameters
    ----------
    code : ctypes.CDLL
        What :func:`library` returns.
    polynomials : SparsePolynomials
        The polynomials.
    weights : Tensor, shape (n_elements, n_polynomials, n_channels)

    Attributes
    ----------
    weights : list of Tensor, shape (n_polynomials, n_channels)
        Those of each element.
    values, gradients : tuple of int
        Addresses of the programmes of the polynomials and of their derivatives.
    """

    def __init__(self, code: ctypes.CDLL, polynomials: SparsePolynomials, weights: Tensor) -> None:
        self._code = code
        _, self.n_polynomials, self.n_channels = weights.shape
        self.weights: list[Tensor] = list(weights.contiguous())
        self._programs = _program(polynomials.values), _program(polynomials.gradients)
        self.values, self.gradients = (
            (terms.data_ptr(), coefficients.data_ptr()) for terms, coefficients in self._programs
        )

    def __call__(self, basis: Tensor, element: int, out: Tensor) -> None:
        """Evaluate atoms of one element: basis (d, n_atoms, n_channels), out (n_atoms, ...)."""
        d, n_atoms, n_channels = basis.shape
        self._code.products(
            *(n_atoms, n_channels, d, self.n_polynomials, *self.values, basis.stride(0)),
            *(basis.data_ptr(), self.weights[element].data_ptr(), out.data_ptr()),
        )

    def pullback(self, basis: Tensor, element: int, by_out: Tensor, by_basis: Tensor) -> None:
        """From the gradient with respect to the results to that with respect to the basis."""
        d, n_atoms, n_channels = basis.shape
        self._code.products_pullback(
            *(n_atoms, n_channels, d, self.n_polynomials, *self.gradients, basis.stride(0)),
            *(basis.data_ptr(), self.weights[element].data_ptr(), by_out.data_ptr()),
            *(by_basis.stride(0), by_basis.data_ptr()),
        )


def _program(polynomials: list[dict[int, list[tuple[int, int, float]]]]) -> tuple[Tensor, Tensor]:
    """Polynomials as ``fused.c`` reads them: integers, and coefficients."""
    integers: list[int] = []
    coefficients: list[float] = []
    for groups in polynomials:
        integers.append(len(groups))
        for variable, terms in groups.items():
            integers += [variable, len(terms)]
            integers += [place for j, k, _ in terms for place in (j, k)]
            coefficients += [coefficient for _, _, coefficient in terms]
    return torch.tensor(integers, dtype=torch.int32), torch.tensor(
        coefficients, dtype=torch.float64
    )


LayerPullback = Callable[[Tensor, Gradients], Tensor | None]
"""From the gradient with respect to a layer's scalars to that with respect to the scalars it got,
adding to those of the edges; the first layer got none."""


class CompiledLayer:
    """A layer that gets and gives scalars; the first gets none.

    Parameters
    ----------
    code : ctypes.CDLL
        What :func:`library` returns.
    splines : Splines
        Its radial functions.
    products : Products
        Its product basis.
    linear : Tensor, shape (n_channels, n_channels)
        What follows the products.
    """

    def __init__(
        self, code: ctypes.CDLL, splines: Splines, products: Products, linear: Tensor
    ) -> None:
        self._code, self._splines, self._products = code, splines, products
        self._linear, self._back = Matrices(code, linear[None]), Matrices(code, linear.T[None])

    def _scalars(self, basis: Tensor, edges: Edges) -> Tensor:
        """Products and linear map of the atomic basis, (d, n_atoms, n_channels)."""
        products = basis.new_empty(basis.shape[1:])
        for element, atoms in edges.parts():
            self._products(basis[:, atoms], element, products[atoms])
        return self._linear(products)

    def _by_basis(self, by_scalars: Tensor, basis: Tensor, edges: Edges) -> Tensor:
        """Gradient with respect to the atomic basis."""
        by_products, by_basis = self._back(by_scalars), torch.empty_like(basis)
        for element, atoms in edges.parts():
            self._products.pullback(
                basis[:, atoms], element, by_products[atoms], by_basis[:, atoms]
            )
        return by_basis


class _Maps:
    """Maps of the first layer for some elements, where ``fused.c`` finds them.

    Attributes
    ----------
    addresses : Tensor, shape (n_present, 3), int64
        For each element those of the panels of its maps, of their transposes, and of the weights
        of its products.
    """

    def __init__(
        self,
        code: ctypes.CDLL,
        present: tuple[int, ...],
        weights: list[Tensor],
        products: Products,
    ) -> None:
        self._kept = [(Matrices(code, v).panels, Matrices(code, v.mT).panels) for v in weights]
        self.addresses = torch.tensor(
            [
                (into.data_ptr(), back.data_ptr(), products.weights[element].data_ptr())
                for element, (into, back) in zip(present, self._kept, strict=True)
            ]
        )


class FirstLayer(CompiledLayer):
    """The first layer, with moments; see :mod:`simgen.models.frozen`.

    Parameters
    ----------
    weights : callable
        The V of each element that is present, each (d, n_present * n_basis, n_channels).
    n_basis : int
        Radial basis functions.
    kept : Tensor, shape (n_elements, n_channels), optional
        What is added to the scalars of an element.
    """

    def __init__(
        self,
        code: ctypes.CDLL,
        splines: Splines,
        products: Products,
        linear: Tensor,
        weights: Callable[[tuple[int, ...]], list[Tensor]],
        n_basis: int,
        kept: Tensor | None,
    ) -> None:
        super().__init__(code, splines, products, linear)
        self._n_basis, self._kept = n_basis, kept
        self._maps = lru_cache(MAPS_AT_HAND)(
            lambda present: _Maps(code, present, weights(present), products)
        )

    def __call__(self, scalars: Tensor | None, edges: Edges) -> tuple[Tensor, LayerPullback]:
        """Evaluate the layer; returns the scalars, (n_atoms, n_channels), of sorted atoms."""
        (phi, slope), d = self._splines(edges.distance), edges.harmonics.shape[1]
        n_atoms, n_present = len(edges.order), len(edges.present)
        n_channels, maps = self._products.n_channels, self._maps(edges.present)
        numbers = torch.tensor([edges.n_of_present, edges.n_wanted])
        n_of_present, n_wanted = numbers.unbind(0)
        sizes = (n_atoms, d, n_present, self._n_basis, self._splines.width, n_channels)
        graph = (edges.first.data_ptr(), edges.sender.data_ptr(), edges.column.data_ptr())
        values = (edges.harmonics.data_ptr(), phi.data_ptr())
        n_workspace = self._code.first_layer_workspace(d, n_present * self._n_basis, n_channels)
        workspace = phi.new_empty(n_workspace)
        basis, products = phi.new_empty(d, n_atoms, n_channels), phi.new_zeros(n_atoms, n_channels)
        self._code.first_layer(
            *(*sizes, self._products.n_polynomials),
            *(n_of_present.data_ptr(), n_wanted.data_ptr(), maps.addresses.data_ptr()),
            *(*self._products.values, *graph, *values),
            *(workspace.data_ptr(), basis.data_ptr(), products.data_ptr()),
        )
        new = self._linear(products)
        if self._kept is not None:
            new += self._kept[edges.element]

        def pullback(by_new: Tensor, gradients: Gradients) -> None:
            by_products = self._back(by_new)
            by_distance, by_harmonics = gradients
            self._code.first_layer_pullback(
                *(*sizes, self._products.n_polynomials),
                *(n_of_present.data_ptr(), n_wanted.data_ptr(), maps.addresses.data_ptr()),
                *(*self._products.gradients, *graph, *values, slope.data_ptr()),
                *(workspace.data_ptr(), basis.data_ptr(), by_products.data_ptr()),
                *(by_distance.data_ptr(), by_harmonics.data_ptr()),
            )

        return new, pullback


class ScalarLayer(CompiledLayer):
    """Any other layer, with messages made of scalars; see :mod:`simgen.models.frozen`.

    Parameters
    ----------
    up : Tensor, shape (n_channels, n_channels)
        Maps what is sent.
    mixing : Tensor, shape (n_basis, (l_max + 1) * n_channels)
        Makes the radial functions of the basis functions.
    mix : list of Tensor, shape (n_channels, n_channels)
        Maps the messages of each degree.
    skip : Tensor, shape (n_elements, n_channels, n_channels)
        Maps the scalars that are kept.
    """

    def __init__(
        self,
        code: ctypes.CDLL,
        splines: Splines,
        products: Products,
        linear: Tensor,
        up: Tensor,
        mixing: Tensor,
        mix: list[Tensor],
        skip: Tensor,
    ) -> None:
        super().__init__(code, splines, products, linear)
        mixing = torch.nn.functional.pad(mixing, (0, 0, 0, splines.width - len(mixing)))
        of_harmonics = torch.stack([w for ell, w in enumerate(mix) for _ in range(2 * ell + 1)])

        def both_ways(matrices: Tensor) -> tuple[Matrices, Matrices]:
            return Matrices(code, matrices), Matrices(code, matrices.mT)

        self._up, self._by_up = both_ways(up[None])
        self._mixing, self._by_mixing = both_ways(mixing[None])
        self._mix, self._by_mix = both_ways(of_harmonics)
        self._skips = [both_ways(w[None]) for w in skip]
        self._n_degrees = len(mix)

    def __call__(self, scalars: Tensor | None, edges: Edges) -> tuple[Tensor, LayerPullback]:
        """Evaluate the layer; takes and returns scalars, (n_atoms, n_channels), of sorted atoms."""
        assert scalars is not None
        (phi, slope), d = self._splines(edges.distance), edges.harmonics.shape[1]
        n_atoms, n_channels = scalars.shape
        sent, width = self._up(scalars), self._splines.width
        # Radial functions of the edges of an atom, as many as the atom that has most has.
        n_most = int(edges.first.diff().max())
        radial = phi.new_empty(n_most, self._n_degrees * n_channels)
        sizes = (n_atoms, n_channels, self._n_degrees, width)
        graph = (edges.first.data_ptr(), edges.sender.data_ptr(), edges.harmonics.data_ptr())
        messages = scalars.new_empty(d, n_atoms, n_channels)
        self._code.messages(
            *(*sizes, *graph, phi.data_ptr(), self._mixing.panels.data_ptr()),
            *(sent.data_ptr(), radial.data_ptr(), messages.data_ptr()),
        )
        basis = self._mix(messages)
        kept = torch.empty_like(scalars)
        for element, atoms in edges.parts():
            self._skips[element][0](scalars[atoms], kept[atoms])
        new = self._scalars(basis, edges) + kept

        def pullback(by_new: Tensor, gradients: Gradients) -> Tensor:
            by_messages = self._by_mix(self._by_basis(by_new, basis, edges))
            by_radial, by_phi = torch.empty_like(radial), phi.new_empty(n_most, width)
            by_sent, (by_distance, by_harmonics) = torch.zeros_like(sent), gradients
            self._code.messages_pullback(
                *(*sizes, *graph, phi.data_ptr(), slope.data_ptr()),
                *(self._mixing.panels.data_ptr(), self._by_mixing.panels.data_ptr()),
                *(sent.data_ptr(), by_messages.data_ptr()),
                *(radial.data_ptr(), by_radial.data_ptr(), by_phi.data_ptr()),
                *(by_distance.data_ptr(), by_sent.data_ptr(), by_harmonics.data_ptr()),
            )
            by_kept = torch.empty_like(by_new)
            for element, atoms in edges.parts():
                self._skips[element][1](by_new[atoms], by_kept[atoms])
            return by_kept + self._by_up(by_sent)

        return new, pullback


class CompiledNetwork:
    """Invariants of all layers with the transpose of their Jacobian.

    Parameters
    ----------
    geometry : Geometry
        Finds the edges.
    layers : sequence of CompiledLayer
        The layers in order, the first a :class:`FirstLayer`.
    """

    def __init__(self, geometry: Geometry, layers: Sequence[FirstLayer | ScalarLayer]) -> None:
        self._geometry, self._layers = geometry, layers

    def __call__(
        self, positions: Tensor, element: Tensor, senders: Tensor, wanted: Tensor | None = None
    ) -> tuple[Edges, list[Tensor], Callable[[list[Tensor]], Tensor]]:
        """Evaluate: invariants of each layer, (n_atoms, n_channels), sorted, and their pullback.

        Parameters
        ----------
        positions : Tensor, shape (n_atoms, 3)
            In angstrom.
        element : Tensor, shape (n_atoms,), int64
            Place of the element of each atom among those of the network.
        senders : Tensor, shape (n_atoms, n_slots), int64
            As :class:`simgen.graph.Chunk` has them.
        wanted : Tensor, shape (n_atoms,), bool, optional
            Atoms whose invariants are wanted, of a network of one layer. Those of the others are
            finite, and their gradients count for nothing.
        """
        edges = self._geometry(positions, element, senders, wanted)
        invariants: list[Tensor] = []
        pullbacks: list[LayerPullback] = []
        scalars: Tensor | None = None
        for layer in self._layers:
            scalars, layer_pullback = layer(scalars, edges)
            invariants.append(scalars)
            pullbacks.append(layer_pullback)

        def pullback(by_invariants: list[Tensor]) -> Tensor:
            gradients = (torch.zeros_like(edges.distance), torch.zeros_like(edges.harmonics))
            by_scalars: Tensor | None = None
            for layer_pullback, by_invariant in zip(
                reversed(pullbacks), reversed(by_invariants), strict=True
            ):
                total = by_invariant if by_scalars is None else by_scalars + by_invariant
                by_scalars = layer_pullback(total.contiguous(), gradients)
            return self._geometry.pullback(gradients, edges)

        return edges, invariants, pullback


class Readout:
    """Energy of each atom before scale and shift, with its derivatives.

    Parameters
    ----------
    code : ctypes.CDLL
        What :func:`library` returns.
    linear : mapping of int to Tensor, shape (n_channels,)
        Weights of the layers that are read as they are.
    gated : (Tensor, Tensor), optional
        Weights of hidden units, (n_channels, width), that read the last layer, and of what they
        say, (width,).
    """

    def __init__(
        self,
        code: ctypes.CDLL,
        linear: Mapping[int, Tensor],
        gated: tuple[Tensor, Tensor] | None,
    ) -> None:
        self._linear = [(layer, Matrices(code, w[None, :, None]), w) for layer, w in linear.items()]
        self._gated: tuple[Matrices, Matrices, Matrices, Tensor] | None = None
        if gated is not None:
            hidden, out = gated
            into, map_out, back = (
                Matrices(code, w[None]) for w in (hidden, out[:, None], hidden.T)
            )
            self._gated = into, map_out, back, out

    def __call__(self, invariants: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Evaluate invariants of each layer, (n_atoms, n_channels): (n_atoms,), and derivatives."""
        readout = invariants[0].new_zeros(len(invariants[0]))
        gradients = [torch.zeros_like(x) for x in invariants]
        for layer, map_out, weights in self._linear:
            readout += map_out(invariants[layer]).squeeze(1)
            gradients[layer] += weights
        if self._gated is not None:
            into, map_out, back, out = self._gated
            x = into(invariants[-1])
            # Not torch.sigmoid, which rounds what is at the end of a batch differently.
            gate = 1 / (1 + torch.exp(-x))
            readout += map_out(x * gate).squeeze(1)
            gradients[-1] += back(out * gate * (1 + x * (1 - gate)))
        return readout, gradients
