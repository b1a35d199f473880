"""Internal coordinates of molecules, and how stiff a molecule is along each of them.

Bonds are found from distances alone; with R the sum of two covalent radii and rho = r / R, atoms
are taken to be bonded if rho < 1.3. The stiffness is that of a simple force field, with the decay
over squared distances of [1]_, which also makes torsions about double bonds the stiffer ones:

=======================================  =========================================================
Coordinate                               Stiffness, d = exp(1 - max(rho^2, 1)) of each bond
=======================================  =========================================================
bond length r                            30 d eV/A^2
angle                                    4 d d' eV
unit vectors u + u' to two neighbours    the same, for each component: where atoms are in line, and
                                         the angle has no derivative
u . (u' x u'') to three neighbours       3 eV: how far an atom is out of their plane
torsion about a bond                     0.3 exp(9 (1 - max(rho^2, 0.75))) eV, of all torsions
                                         about the bond together
=======================================  =========================================================

References
----------
.. [1] R. Lindh et al., Chem. Phys. Lett. 241, 423 (1995), eq. 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from simgen.elements import COVALENT_RADII
from simgen.molecules import MoleculeBatch

BONDED = 1.3
"""rho below which two atoms are taken to be bonded."""
MAX_BONDS = 6
"""Bonds of an atom, those to the nearest; more occur only where atoms lie on top of each other."""
STRAIGHT = math.cos(math.radians(162.0))
"""Angles with a smaller cosine are taken to be straight, and have no torsions."""
STEEPEST = 10.0
"""In 1/A; larger derivatives are those of torsions and angles of atoms in line or on each other."""
WHOLE_REGISTERS = 64
"""A multiple of the numbers that any processor works on at a time."""
STRETCH, BEND, FOLD, TWIST, DOUBLE = 30.0, 4.0, 3.0, 0.3, 9.0
"""The numbers of the table above."""


def length(x: Tensor) -> Tensor:
    """Distance of two atoms: (n, 2, 3) -> (n,), angstrom."""
    return (x[:, 0] - x[:, 1]).square().sum(1).sqrt()


def angle(x: Tensor) -> Tensor:
    """Angle at the second of three atoms: (n, 3, 3) -> (n,), radian."""
    a, b = x[:, 0] - x[:, 1], x[:, 2] - x[:, 1]
    return _polar((a * b).sum(1), torch.linalg.vector_norm(torch.linalg.cross(a, b), dim=1))


def bow(x: Tensor) -> Tensor:
    """Sum of the unit vectors from the second of three atoms to the others: (n, 3, 3) -> (n, 3)."""
    return torch.nn.functional.normalize(x[:, [0, 2]] - x[:, 1:2], dim=2).sum(1)


def pyramid(x: Tensor) -> Tensor:
    """Triple product of the unit vectors from the first atom to three others: (n, 4, 3) -> (n,)."""
    u, v, w = torch.nn.functional.normalize(x[:, 1:] - x[:, :1], dim=2).unbind(1)
    normal: Tensor = torch.linalg.cross(v, w)
    return (u * normal).sum(1)


def torsion(x: Tensor) -> Tensor:
    """Torsion angle of four atoms (IUPAC's sign): (n, 4, 3) -> (n,), radian."""
    a, b, c = (x[:, 1:] - x[:, :-1]).unbind(1)
    n, m = torch.linalg.cross(a, b), torch.linalg.cross(b, c)
    return _polar((n * m).sum(1), torch.linalg.vector_norm(b, dim=1) * (a * m).sum(1))


def _polar(x: Tensor, y: Tensor) -> Tensor:
    """Angle of points of a plane, (n,): radian.

    Those that fill no vector register round differently: with zeros after them there are none, and
    a molecule is the same in any batch.
    """
    n, missing = len(x), -len(x) % WHOLE_REGISTERS
    x, y = (torch.nn.functional.pad(values, (0, missing)) for values in (x, y))
    return torch.atan2(y, x)[:n]


def _bow_along(axis: int) -> Callable[[Tensor], Tensor]:
    return lambda x: bow(x)[:, axis]


@dataclass(frozen=True, slots=True, eq=False)
class _Kind:
    """Coordinates of one kind: a function of the places of some atoms, (n, k, 3) -> (n,)."""

    function: Callable[[Tensor], Tensor]
    atoms: Tensor
    stiffness: Tensor


class InternalCoordinates:
    """Bond lengths, angles and torsions of all molecules of a batch.

    Parameters
    ----------
    batch : MoleculeBatch
        Decides what is bonded.

    Attributes
    ----------
    atoms : Tensor, shape (n, 4), int64
        What each coordinate depends on; the first atom again where there are fewer than four.
    stiffness : Tensor, shape (n,)
        In eV/A^2, or eV where the coordinate has no unit.
    """

    def __init__(self, batch: MoleculeBatch) -> None:
        lengths, *others = _kinds(batch)
        self._set([lengths, *(kind for kind in others if len(kind.atoms))])

    def _set(self, kinds: list[_Kind]) -> None:
        self._kinds = kinds
        self.atoms = torch.cat(
            [
                torch.cat([k.atoms, k.atoms[:, :1].expand(-1, 4 - k.atoms.shape[1])], 1)
                for k in kinds
            ]
        )
        self.stiffness = torch.cat([kind.stiffness for kind in kinds])
        self._periodic = torch.cat(
            [torch.full_like(k.stiffness, k.function is torsion, dtype=torch.bool) for k in kinds]
        )

    def of(self, kept: Tensor) -> InternalCoordinates:
        """Those of some of the molecules, whose atoms, (n_atoms,), are marked."""
        place = torch.cumsum(kept, 0) - 1
        part = object.__new__(InternalCoordinates)
        mine = [kept[kind.atoms[:, 0]] for kind in self._kinds]
        part._set(
            [
                replace(kind, atoms=place[kind.atoms[m]], stiffness=kind.stiffness[m])
                for kind, m in zip(self._kinds, mine, strict=True)
            ]
        )
        return part

    def values(self, positions: Tensor) -> Tensor:
        """Values at positions in angstrom, (n_atoms, 3): (n,), in angstrom or radian."""
        return torch.cat([kind.function(positions[kind.atoms]) for kind in self._kinds])

    def derivatives(self, positions: Tensor) -> Tensor:
        """With respect to the places of ``atoms``, (n, 4, 3); zero where there is none, nearly."""
        # A copy of the places for each coordinate: a sum has the derivatives of all of them.
        places = [positions[kind.atoms].requires_grad_() for kind in self._kinds]
        with torch.enable_grad():
            values = [kind.function(x) for kind, x in zip(self._kinds, places, strict=True)]
            gradients = torch.autograd.grad(torch.cat(values).sum(), places)
        derivatives = torch.cat(
            [torch.nn.functional.pad(g, (0, 0, 0, 4 - g.shape[1])) for g in gradients]
        )
        # written so that it is false for what is not a number, too
        defined = derivatives.abs().amax((1, 2)) < STEEPEST
        return torch.where(defined[:, None, None], derivatives, 0.0)

    def change(self, before: Tensor, after: Tensor) -> Tensor:
        """Difference of values, that of torsions the short way round."""
        difference = after - before
        turns = torch.round(difference / (2 * math.pi))
        return torch.where(self._periodic, difference - 2 * math.pi * turns, difference)


def _kinds(batch: MoleculeBatch) -> list[_Kind]:
    x = batch.positions
    neighbours, rho2 = _neighbours(batch)
    centre, slot = torch.nonzero(neighbours >= 0, as_tuple=True)
    other = neighbours[centre, slot]
    decay = torch.exp(1.0 - rho2.clamp_min(1.0))

    once = centre < other
    bonds = torch.stack([centre, other], 1)[once]
    lengths = _Kind(length, bonds, STRETCH * decay[centre, slot][once])

    width = neighbours.shape[1]
    i, j = torch.triu_indices(width, width, 1, device=x.device)
    centre, pair = torch.nonzero((neighbours[:, i] >= 0) & (neighbours[:, j] >= 0), as_tuple=True)
    i, j = i[pair], j[pair]
    triples = torch.stack([neighbours[centre, i], centre, neighbours[centre, j]], 1)
    stiffness = BEND * decay[centre, i] * decay[centre, j]
    straight = torch.cos(angle(x[triples])) < STRAIGHT
    bends = [_Kind(angle, triples[~straight], stiffness[~straight])]
    bends += [_Kind(_bow_along(k), triples[straight], stiffness[straight]) for k in range(3)]

    trigonal = torch.nonzero((neighbours >= 0).sum(1) == 3).squeeze(1)
    ends = neighbours[trigonal, :3]  # neighbours come first, then what is left over
    four = torch.cat([trigonal[:, None], ends.reshape(-1, 3)], 1)
    folds = _Kind(pyramid, four, x.new_full((len(four),), FOLD))

    rho2 = rho2[neighbours >= 0][once]
    bond, a, b = torch.nonzero(
        (neighbours[bonds[:, 0]] >= 0)[:, :, None] & (neighbours[bonds[:, 1]] >= 0)[:, None],
        as_tuple=True,
    )
    j, k = bonds[bond].unbind(1)
    chain = torch.stack([neighbours[j, a], j, k, neighbours[k, b]], 1)
    proper = (chain[:, 0] != k) & (chain[:, 3] != j) & (chain[:, 0] != chain[:, 3])
    proper &= torch.cos(angle(x[chain[:, :3]])) > STRAIGHT
    proper &= torch.cos(angle(x[chain[:, 1:]])) > STRAIGHT
    chain, bond = chain[proper], bond[proper]
    total = TWIST * torch.exp(DOUBLE * (1.0 - rho2.clamp_min(0.75)))
    shared = total / torch.bincount(bond, minlength=len(bonds))
    return [lengths, *bends, folds, _Kind(torsion, chain, shared[bond])]


def _neighbours(batch: MoleculeBatch) -> tuple[Tensor, Tensor]:
    """Atoms bonded to each atom, (n_atoms, n_slots), -1 in slots left over, and rho^2 of them."""
    x, device = batch.positions, batch.positions.device
    known = x.new_full((max(COVALENT_RADII) + 1,), 1.5)
    for z, radius in COVALENT_RADII.items():
        known[z] = radius
    counts = batch.counts
    first = torch.cumsum(counts, 0) - counts
    slots = torch.arange(int(counts.max()), device=device)
    mask = slots < counts[:, None]
    atoms = torch.where(mask, first[:, None] + slots, 0)
    radii = known[batch.atomic_numbers.clamp_max(len(known) - 1)][atoms]
    squares = (x[atoms][:, :, None] - x[atoms][:, None]).square().sum(3)
    rho2 = squares / (radii[:, :, None] + radii[:, None]).square()
    bonded = (rho2 < BONDED**2) & mask[:, None] & mask[:, :, None] & (slots != slots[:, None])
    rho2 = torch.where(bonded, rho2, torch.inf)
    nearest = rho2.topk(min(MAX_BONDS, len(slots)), dim=2, largest=False).indices
    listed = torch.zeros_like(bonded).scatter_(2, nearest, True)
    bonded &= listed & listed.mT
    rho2 = torch.where(bonded, rho2, torch.inf).gather(2, nearest)
    order = rho2.argsort(dim=2, stable=True)
    rho2, nearest = rho2.gather(2, order)[mask], nearest.gather(2, order)[mask]
    others = first[batch.molecule_idx][:, None] + nearest
    return torch.where(rho2.isfinite(), others, -1), rho2
