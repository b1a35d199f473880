"""Batched geometry optimisation: all molecules together, each with its own step and history.

The path to a minimum is curved: atoms turn about bonds. So molecules move in internal coordinates,
more of them than needed [1]_ [2]_, and the Cartesian ones, weakly, which fix what those leave open.
With x the positions, g = -F the gradient, q the internal coordinates
(:mod:`simgen.finishing.internal`) and K their stiffness,

===========================================  ================================================
z = (K^1/2 q, lambda^1/2 x),  W = dz/dx      coordinates along all of which a molecule is about
                                             as stiff; W^T W is a model of the Hessian
G = W (W^T W)^-1 g                           gradient in z, the shortest with W^T G = g
P = -H G, two-loop recursion, H_0 = 1        limited-memory BFGS, [3]_ algorithm 7.4
p = (W^T W)^-1 W^T P                         the same step in x
x' = x + p + (W^T W)^-1 W^T (W p - dz)       what bending adds; dz = z(x + p) - z(x)
s = z(x') - z(x),  y = G(x') - G(x)          kept if s.y > 0
x <- x' unless the energy rose               else back to x with a quarter of the step
===========================================  ================================================

p, and the step as a whole, are scaled so that no atom moves by more than a trust radius.

References
----------
.. [1] P. Pulay, G. Fogarasi, J. Chem. Phys. 96, 2856 (1992).
.. [2] C. Peng, P. Y. Ayala, H. B. Schlegel, M. J. Frisch, J. Comput. Chem. 17, 49 (1996).
.. [3] J. Nocedal, S. J. Wright, Numerical Optimization, 2nd ed., Springer 2006.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from simgen.errors import InputError
from simgen.finishing.internal import InternalCoordinates
from simgen.molecules import MoleculeBatch

EnergyAndForces = Callable[[MoleculeBatch], tuple[Tensor, Tensor]]
"""``batch -> energies (n_molecules,) in eV, forces (n_atoms, 3) in eV/angstrom``."""

WEAK = 0.1
"""lambda in eV/A^2: how much an atom resists a shift. The larger, the nearer to where it started a
molecule remains."""
STRONGEST = 50.0
"""In eV/A; a C-C bond breaks at about 10. Larger forces, twice those at the start, are met on the
way down only in a hole of the potential, as fields have where atoms are too close."""
FLATTEST = 1e-3
"""Smallest curvature, in units of the model's, that is remembered."""


@dataclass(frozen=True, slots=True, eq=False)
class RelaxationResult:
    """What became of each molecule.

    Attributes
    ----------
    batch : MoleculeBatch
        The input at its relaxed positions; a molecule that became non-finite stays where its
        energy and forces were finite last.
    energies, initial_energies : Tensor, shape (n_molecules,)
        In eV, after and before.
    n_steps : Tensor, shape (n_molecules,), int64
        Evaluations of the forces each molecule took, the first included.
    converged, finite : Tensor, shape (n_molecules,), bool
        Whether the forces fell below the criterion, and whether all values were finite.
    """

    batch: MoleculeBatch
    energies: Tensor
    initial_energies: Tensor
    n_steps: Tensor
    converged: Tensor
    finite: Tensor


def relax(
    energy_and_forces: EnergyAndForces,
    batch: MoleculeBatch,
    *,
    f_max: float = 0.03,
    max_steps: int = 200,
    max_step: float = 0.3,
    n_history: int = 40,
) -> RelaxationResult:
    """Move the atoms of every molecule downhill until their forces vanish.

    Parameters
    ----------
    energy_and_forces : callable
        The potential; called with the molecules that are not finished yet.
    batch : MoleculeBatch
        Start. Atoms with ``fixed`` never move, and their forces do not count.
    f_max : float, optional
        Converged when the largest force on an atom, in eV/angstrom, is below this.
    max_steps : int, optional
        Evaluations of the forces after which a molecule is given up. One that falls into a hole of
        the potential is given up there.
    max_step : float, optional
        Largest displacement of an atom in a step, in angstrom.
    n_history : int, optional
        Curvature pairs remembered for each molecule.

    Returns
    -------
    RelaxationResult
        Nothing is raised for a molecule that fails; see ``converged`` and ``finite``.
    """
    if f_max <= 0 or max_step <= 0 or max_steps < 1 or n_history < 1:
        raise InputError(
            f"expected positive f_max, max_step, max_steps and n_history, got {f_max}, "
            f"{max_step}, {max_steps} and {n_history}"
        )
    n_molecules, device = batch.n_molecules, batch.positions.device
    final = batch.positions.clone()
    energies = batch.positions.new_full((n_molecules,), torch.nan)
    n_steps = torch.zeros(n_molecules, dtype=torch.int64, device=device)
    converged = torch.zeros(n_molecules, dtype=torch.bool, device=device)
    finite = torch.ones_like(converged)
    if n_molecules == 0:
        return RelaxationResult(batch, energies, energies, n_steps, converged, finite)

    here, atoms = batch, torch.arange(batch.n_atoms, device=device)
    active = torch.arange(n_molecules, device=device)
    space, history = _Space(InternalCoordinates(batch), batch), _History(n_history)
    e, f, ok = _evaluate(energy_and_forces, here)
    initial = e.clone()
    trust = torch.full_like(e, max_step)
    n_steps += 1
    most = (2.0 * _longest(f, here)).clamp_min(STRONGEST)
    while True:
        energies[active] = e
        final[atoms] = here.positions
        strongest = _longest(f, here)
        small, fell = strongest < f_max, strongest > most
        finite[active] = ok
        converged[active] = ok & small
        keep = ok & ~small & ~fell & (n_steps[active] < max_steps)
        if not keep.any():
            break
        if not keep.all():
            kept = keep[here.molecule_idx]
            history.select(keep)
            here, atoms, f = here[keep.nonzero().squeeze(1)], atoms[kept], f[kept]
            space = _Space(space.coordinates.of(kept), here)
            active, e, trust, most = active[keep], e[keep], trust[keep], most[keep]

        chart = _Chart(space, here.positions)
        history.append(chart, f)
        step = chart.solve(chart.back(history.direction()))
        uphill = here.sum_per_molecule((step * f).sum(1)) <= 0
        if uphill.any():
            history.forget(uphill)
            step = torch.where(uphill[here.molecule_idx, None], chart.solve(f), step)
        step = _shortened(step, trust, here)
        step = _shortened(step + chart.bending(step), trust, here)
        trial = here.replace(positions=here.positions + step)
        e_new, f_new, ok = _evaluate(energy_and_forces, trial)
        n_steps[active] += 1
        # rounding: an energy of thousands of eV has few digits left in single precision
        tolerance = 4 * torch.finfo(e.dtype).eps * e.abs()
        rose = ~(ok & (e_new <= e + tolerance))
        trust = torch.where(rose, 0.25 * _longest(step, here), (2.0 * trust).clamp_max(max_step))
        back = rose[here.molecule_idx, None]
        here = here.replace(positions=torch.where(back, here.positions, trial.positions))
        e, f = torch.where(rose, e, e_new), torch.where(back, f, f_new)
    return RelaxationResult(
        batch.replace(positions=final), energies, initial, n_steps, converged, finite
    )


def _evaluate(
    energy_and_forces: EnergyAndForces, batch: MoleculeBatch
) -> tuple[Tensor, Tensor, Tensor]:
    """Energies, forces, zero on fixed atoms, and which molecules have finite ones."""
    energies, forces = energy_and_forces(batch)
    energies = energies.detach().to(batch.positions.dtype)
    forces = forces.detach().to(batch.positions.dtype).masked_fill(batch.fixed[:, None], 0.0)
    return energies, forces, (energies + batch.sum_per_molecule(forces.abs().sum(1))).isfinite()


def _longest(vectors: Tensor, batch: MoleculeBatch) -> Tensor:
    """Length of the longest vector of each molecule, (n_molecules,)."""
    lengths = vectors.square().sum(1).sqrt()
    longest = lengths.new_zeros(len(batch))
    return longest.scatter_reduce_(0, batch.molecule_idx, lengths, "amax")


def _shortened(step: Tensor, trust: Tensor, batch: MoleculeBatch) -> Tensor:
    """Scale the steps of molecules so that no atom moves by more than is trusted."""
    scale = (trust / _longest(step, batch).clamp_min(1e-12)).clamp_max(1.0)
    return step * scale[batch.molecule_idx, None]


class _Space:
    """The coordinates z of some molecules.

    Attributes
    ----------
    n_molecules : int
    molecule_idx : Tensor, shape (n_z,), int64
        Molecule of each coordinate, internal ones first.
    """

    def __init__(self, coordinates: InternalCoordinates, batch: MoleculeBatch) -> None:
        self.coordinates, self.n_molecules = coordinates, len(batch)
        atoms, idx = coordinates.atoms, batch.molecule_idx
        self.molecule_idx = torch.cat([idx[atoms[:, 0]], idx.repeat_interleave(3)])
        free = (~batch.fixed).to(batch.positions.dtype)
        self.roots = coordinates.stiffness.sqrt()
        self.free = free[atoms][..., None]
        self.weak = math.sqrt(WEAK) * free[:, None].expand(-1, 3)
        # One matrix for each molecule, with three rows and columns for each atom. Only those of a
        # size go together: to fill up smaller ones would change their rounding.
        counts, axes = batch.counts, torch.arange(3, device=idx.device)
        order = torch.argsort(counts, stable=True)
        sizes, numbers = torch.unique(counts, return_counts=True)
        self.groups = list(zip(numbers.tolist(), (3 * sizes).tolist(), strict=True))
        widths = 3 * counts
        column = 3 * batch.local_idx[:, None] + axes
        self.rows = _offsets(widths, order)[idx][:, None] + column
        first_place = _offsets(widths**2, order)[idx]
        row_place = first_place[:, None] + column * widths[idx][:, None]
        self.diagonal_places = row_place + column
        self.diagonal = torch.where(batch.fixed, 1.0, WEAK).to(free)[:, None].expand(-1, 3)
        self.row_place_of, self.column_of = (x[atoms].flatten(1) for x in (row_place, column))
        self.places = 3 * atoms[..., None] + axes

    def at(self, positions: Tensor) -> Tensor:
        """All coordinates of atoms at some positions, not scaled: (n_z,)."""
        return torch.cat([self.coordinates.values(positions), positions.flatten()])

    def change(self, before: Tensor, after: Tensor) -> Tensor:
        """Change of z between what :meth:`at` returned."""
        n = len(self.roots)
        turned = self.coordinates.change(before[:n], after[:n])
        return torch.cat([self.roots * turned, self.weak.flatten() * (after[n:] - before[n:])])


def _offsets(lengths: Tensor, order: Tensor) -> Tensor:
    """Where pieces of some lengths begin that follow each other in an order."""
    begin = torch.empty_like(lengths)
    begin[order] = torch.cumsum(lengths[order], 0) - lengths[order]
    return begin


class _Chart:
    """The coordinates z about some positions: their derivatives W, and W^T W factorised."""

    def __init__(self, space: _Space, positions: Tensor) -> None:
        self.space, self._positions = space, positions
        self.point = space.at(positions)
        derivatives = space.coordinates.derivatives(positions)
        self._rows = space.roots[:, None, None] * space.free * derivatives
        flat = self._rows.flatten(1)
        places = space.row_place_of[:, :, None] + space.column_of[:, None]
        matrices = flat.new_zeros(sum(n * width**2 for n, width in space.groups))
        matrices.index_add_(0, places.flatten(), (flat[:, :, None] * flat[:, None]).flatten())
        matrices[space.diagonal_places] += space.diagonal
        parts = torch.split(matrices, [n * width**2 for n, width in space.groups])
        self._factors = [
            torch.linalg.cholesky(part.view(n, width, width))
            for part, (n, width) in zip(parts, space.groups, strict=True)
        ]

    def along(self, step: Tensor) -> Tensor:
        """W times a step of the atoms, (n_atoms, 3): (n_z,)."""
        internal = (self._rows * step[self.space.coordinates.atoms]).sum((1, 2))
        return torch.cat([internal, (self.space.weak * step).flatten()])

    def back(self, z: Tensor) -> Tensor:
        """W^T times z: (n_atoms, 3)."""
        n = len(self._rows)
        parts = (self._rows * z[:n, None, None]).flatten()
        weak = self.space.weak.flatten() * z[n:]
        return weak.index_add_(0, self.space.places.flatten(), parts).view(-1, 3)

    def solve(self, vectors: Tensor) -> Tensor:
        """Divide (n_atoms, 3) by W^T W."""
        ordered = vectors.new_empty(vectors.numel())
        ordered[self.space.rows] = vectors
        parts = torch.split(ordered, [n * width for n, width in self.space.groups])
        solved = [
            torch.cholesky_solve(part.view(n, width, 1), factor).flatten()
            for part, factor, (n, width) in zip(
                parts, self._factors, self.space.groups, strict=True
            )
        ]
        return torch.cat(solved)[self.space.rows]

    def gradient(self, forces: Tensor) -> Tensor:
        """Gradient of the energy with respect to z, (n_z,)."""
        return -self.along(self.solve(forces))

    def bending(self, step: Tensor) -> Tensor:
        """What to add to a step, (n_atoms, 3), so that z changes by what W says, nearly."""
        change = self.space.change(self.point, self.space.at(self._positions + step))
        return self.solve(self.back(self.along(step) - change))


class _History:
    """Curvature pairs (s, y) of the molecules, the newest last; an unused pair has rho = 0."""

    def __init__(self, n_pairs: int) -> None:
        self._pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=n_pairs)
        self._space: _Space | None = None
        self._point: Tensor
        self._gradient: Tensor

    def _dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Scalar product for each molecule."""
        assert self._space is not None
        products = a.new_zeros(self._space.n_molecules)
        return products.index_add_(0, self._space.molecule_idx, a * b)

    def select(self, kept: Tensor) -> None:
        """Forget all molecules but those marked."""
        if self._space is None:
            return
        mine = kept[self._space.molecule_idx]
        self._point, self._gradient = self._point[mine], self._gradient[mine]
        for k, (s, y, rho) in enumerate(self._pairs):
            self._pairs[k] = (s[mine], y[mine], rho[kept])

    def forget(self, who: Tensor) -> None:
        """Forget the pairs of some molecules."""
        for k, (s, y, rho) in enumerate(self._pairs):
            self._pairs[k] = (s, y, rho.masked_fill(who, 0.0))

    def append(self, chart: _Chart, forces: Tensor) -> None:
        """Remember how the gradient changed since the last call, if it rose along the way."""
        first, self._space = self._space is None, chart.space
        gradient = chart.gradient(forces)
        if not first:
            s, y = chart.space.change(self._point, chart.point), gradient - self._gradient
            product = self._dot(s, y)
            good = product > FLATTEST * self._dot(s, s)
            rho = torch.where(good, 1.0 / product.where(good, torch.ones_like(product)), 0.0)
            self._pairs.append((s, y, rho))
        self._point, self._gradient = chart.point, gradient

    def direction(self) -> Tensor:
        """Two-loop recursion, Nocedal and Wright algorithm 7.4: a step in z, (n_z,)."""
        assert self._space is not None
        idx, q, alphas = self._space.molecule_idx, self._gradient, []
        for s, y, rho in reversed(self._pairs):
            alphas.append(rho * self._dot(s, q))
            q = q - alphas[-1][idx] * y
        for (s, y, rho), alpha in zip(self._pairs, reversed(alphas), strict=True):
            beta = rho * self._dot(y, q)
            q = q + (alpha - beta)[idx] * s
        return -q
