"""Batched geometry optimisation: all molecules together, each with its own step and history.

Limited-memory BFGS, started from a model Hessian instead of a multiple of the identity. With x the
positions, g = -F the gradient and B the model Hessian, each molecule repeats

===========================================  ================================================
p = -H g, two-loop recursion, H_0 = B^-1     [1]_ algorithm 7.4
x' = x + min(1, trust / max_i |p_i|) p       atom i moves by at most ``trust``
s = x' - x,  y = g(x') - g(x)                kept if s.y > 0
x <- x' unless the energy rose               else back to x with a quarter of the step
===========================================  ================================================

B is a pair model in the spirit of the exponential preconditioner [2]_, with the direction
dependence of a force field [3]_ and a range taken over squared distances as in [4]_:

    B = sum_{i<j} k_ij [(1 - eps) u u^T + eps 1],  k_ij = k exp(-alpha (r_ij^2 / R_ij^2 - 1))

u the unit vector along r_ij, R_ij the sum of the covalent radii.

References
----------
.. [1] J. Nocedal, S. J. Wright, Numerical Optimization, 2nd ed., Springer 2006.
.. [2] D. Packwood et al., J. Chem. Phys. 144, 164109 (2016), eq. 9.
.. [3] L. Mones, C. Ortner, G. Csányi, Sci. Rep. 8, 13991 (2018).
.. [4] R. Lindh et al., Chem. Phys. Lett. 241, 423 (1995), eq. 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from simgen.elements import COVALENT_RADII
from simgen.errors import InputError
from simgen.molecules import MoleculeBatch

EnergyAndForces = Callable[[MoleculeBatch], tuple[Tensor, Tensor]]
"""``batch -> energies (n_molecules,) in eV, forces (n_atoms, 3) in eV/angstrom``."""

STIFFNESS = 30.0
"""k in eV/A^2: a C-C stretch has about 28, a C-H stretch about 30."""
DECAY = 1.0
"""alpha: a pair over an angle, at about 1.7 R, keeps an eighth of the stiffness."""
TRANSVERSE = 0.2
"""eps: stiffness across a pair relative to along it, as in bending out of a plane."""
FLOOR = 0.1
"""eV/A^2 added to the diagonal, so that translations have a finite step."""


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
    max_step: float = 0.1,
    n_history: int = 20,
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
        Evaluations of the forces after which a molecule is given up.
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
    initial = energies.clone()
    n_steps = torch.zeros(n_molecules, dtype=torch.int64, device=device)
    converged = torch.zeros(n_molecules, dtype=torch.bool, device=device)
    finite = torch.ones_like(converged)
    active = torch.arange(n_molecules, device=device)
    if n_molecules == 0:
        return RelaxationResult(batch, energies, initial, n_steps, converged, finite)

    pad = _Padding(batch)
    e, f = _evaluate(energy_and_forces, batch, pad)
    x = pad.pad(batch.positions)
    solver = _ModelHessian(batch, pad)
    history = _History(x, n_history)
    trust = x.new_full((n_molecules,), max_step)
    initial.copy_(e)
    n_steps += 1
    ok = e.isfinite() & f.isfinite().all(dim=(1, 2))
    while True:
        energies[active] = e
        atoms = batch.molecule_idx.new_full((n_molecules,), -1)
        atoms[active] = torch.arange(len(active), device=device)
        mine = atoms[batch.molecule_idx] >= 0
        moving = mine & ~batch.fixed
        final[moving] = x[pad.mask][~pad.fixed[pad.mask]]
        small = f.norm(dim=-1).amax(dim=-1) < f_max
        finite[active] = ok
        converged[active] = ok & small
        keep = ok & ~small & (n_steps[active] < max_steps)
        if not keep.any():
            break
        if not keep.all():
            chosen = keep.nonzero().squeeze(1)
            active = active[chosen]
            pad = _Padding(batch[active])
            width = pad.mask.shape[1]
            x, f = x[chosen, :width], f[chosen, :width]
            e, trust = e[chosen], trust[chosen]
            solver, history = solver.select(chosen, width), history.select(chosen, width)

        step = history.direction(f, solver)
        uphill = (step * f).sum(dim=(1, 2)) <= 0
        if uphill.any():
            history.forget(uphill)
            step = torch.where(uphill[:, None, None], solver(f), step)
        longest = step.norm(dim=-1).amax(dim=-1).clamp_min(1e-12)
        step = step * (trust / longest).clamp_max(1.0)[:, None, None]
        trial = pad.batch.replace(positions=(x + step)[pad.mask])
        e_new, f_new = _evaluate(energy_and_forces, trial, pad)
        n_steps[active] += 1
        ok = e_new.isfinite() & f_new.isfinite().all(dim=(1, 2))
        e_new = torch.where(ok, e_new, torch.inf)
        f_new = torch.where(ok[:, None, None], f_new, f)
        history.append(step, f - f_new)
        # rounding: an energy of thousands of eV has few digits left in single precision
        tolerance = 4 * torch.finfo(e.dtype).eps * e.abs()
        rose = e_new > e + tolerance
        taken = step.norm(dim=-1).amax(dim=-1)
        trust = torch.where(rose, 0.25 * taken, (2.0 * trust).clamp_max(max_step))
        back = rose[:, None, None]
        x, f, e = (
            torch.where(back, x, x + step),
            torch.where(back, f, f_new),
            torch.where(rose, e, e_new),
        )
    return RelaxationResult(
        batch.replace(positions=final), energies, initial, n_steps, converged, finite
    )


class _Padding:
    """Between flat atoms and one row per molecule, (n_molecules, n_slots, 3)."""

    def __init__(self, batch: MoleculeBatch) -> None:
        self.batch = batch
        counts = batch.counts
        slots = torch.arange(int(counts.max()), device=counts.device)
        self.mask = slots < counts[:, None]
        self.fixed = torch.ones_like(self.mask)
        self.fixed[self.mask] = batch.fixed

    def pad(self, values: Tensor) -> Tensor:
        padded = values.new_zeros(*self.mask.shape, *values.shape[1:])
        padded[self.mask] = values
        return padded


def _evaluate(
    energy_and_forces: EnergyAndForces, batch: MoleculeBatch, pad: _Padding
) -> tuple[Tensor, Tensor]:
    """Energies and padded forces, those on fixed atoms set to zero."""
    energies, forces = energy_and_forces(batch)
    padded = pad.pad(forces.detach().to(batch.positions.dtype))
    return energies.detach().to(batch.positions.dtype), padded.masked_fill(
        pad.fixed[..., None], 0.0
    )


class _ModelHessian:
    """The model Hessian of each molecule at the start, factorised; called, it divides by it."""

    def __init__(self, batch: MoleculeBatch, pad: _Padding) -> None:
        x = pad.pad(batch.positions)
        n_molecules, n_slots = pad.mask.shape
        known = x.new_full((max(COVALENT_RADII) + 1,), 1.5)
        for z, radius in COVALENT_RADII.items():
            known[z] = radius
        radii = known[pad.pad(batch.atomic_numbers).clamp_max(len(known) - 1)]
        vectors = x[:, :, None] - x[:, None]
        squares = vectors.square().sum(-1)
        pairs = pad.mask[:, :, None] & pad.mask[:, None]
        pairs = pairs & ~torch.eye(n_slots, dtype=torch.bool, device=x.device)
        relative = squares / (radii[:, :, None] + radii[:, None]).square()
        # pairs closer than the covalent radii are not taken to be stiffer still
        stiffness = STIFFNESS * torch.exp(-DECAY * (relative.clamp_min(1.0) - 1.0)) * pairs
        unit = vectors / squares.clamp_min(1e-6).sqrt()[..., None]
        identity = torch.eye(3, dtype=x.dtype, device=x.device)
        blocks = (1.0 - TRANSVERSE) * unit[..., None] * unit[..., None, :] + TRANSVERSE * identity
        blocks = stiffness[..., None, None] * blocks
        hessian = -blocks
        diagonal = blocks.sum(2) + FLOOR * identity
        free = (~pad.fixed)[:, :, None] & (~pad.fixed)[:, None]
        hessian = hessian * free[..., None, None]
        slots = torch.arange(n_slots, device=x.device)
        hessian[:, slots, slots] = torch.where(pad.fixed[..., None, None], identity, diagonal)
        matrix = hessian.transpose(2, 3).reshape(n_molecules, 3 * n_slots, 3 * n_slots)
        # a non-finite start fails its first check anyway; it must not spoil the others
        matrix = torch.where(
            matrix.isfinite().all(dim=(1, 2), keepdim=True),
            matrix,
            torch.eye(3 * n_slots, dtype=x.dtype, device=x.device),
        )
        self.factor = torch.linalg.cholesky(matrix)

    def select(self, chosen: Tensor, n_slots: int) -> _ModelHessian:
        part = object.__new__(_ModelHessian)
        part.factor = self.factor[chosen, : 3 * n_slots, : 3 * n_slots]
        return part

    def __call__(self, forces: Tensor) -> Tensor:
        flat = forces.flatten(1)[..., None]
        return torch.cholesky_solve(flat, self.factor).reshape(forces.shape)


class _History:
    """Curvature pairs (s, y) of each molecule, the newest last; an unused pair has rho = 0."""

    def __init__(self, x: Tensor, n_history: int) -> None:
        self.s = x.new_zeros(n_history, *x.shape)
        self.y = torch.zeros_like(self.s)
        self.rho = x.new_zeros(n_history, len(x))

    def select(self, chosen: Tensor, n_slots: int) -> _History:
        part = object.__new__(_History)
        part.s, part.y = self.s[:, chosen, :n_slots], self.y[:, chosen, :n_slots]
        part.rho = self.rho[:, chosen]
        return part

    def forget(self, who: Tensor) -> None:
        self.rho = self.rho.masked_fill(who, 0.0)

    def append(self, s: Tensor, y: Tensor) -> None:
        """Remember a pair where the curvature along it is positive, else keep the old ones."""
        product = (s * y).sum(dim=(1, 2))
        length = s.square().sum(dim=(1, 2))
        good = product > 1e-3 * length  # eV/A^2
        rho = torch.where(good, 1.0 / product.where(good, torch.ones_like(product)), 0.0)

        def push(kept: Tensor, new: Tensor, mask: Tensor) -> Tensor:
            return torch.where(mask, torch.cat([kept[1:], new[None]]), kept)

        wide = good[None, :, None, None]
        self.s, self.y = push(self.s, s, wide), push(self.y, y, wide)
        self.rho = push(self.rho, rho, good[None])

    def direction(self, forces: Tensor, solver: _ModelHessian) -> Tensor:
        """Two-loop recursion, Nocedal and Wright algorithm 7.4."""
        q, alphas = forces, []
        for k in reversed(range(len(self.rho))):
            alpha = self.rho[k] * (self.s[k] * q).sum(dim=(1, 2))
            q = q - alpha[:, None, None] * self.y[k]
            alphas.append(alpha)
        r = solver(q)
        for k, alpha in enumerate(reversed(alphas)):
            beta = self.rho[k] * (self.y[k] * r).sum(dim=(1, 2))
            r = r + (alpha - beta)[:, None, None] * self.s[k]
        return r
