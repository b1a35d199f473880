"""Bond orders, hydrogen counts and formal charges of a bare heavy-atom skeleton.

The assignment is the most likely one that satisfies every valence, found exactly: by variable
elimination, or by integer linear programming where that would take too long. Each atom i is in one
of the states s its element allows (formal charge, number of hydrogens, of double, of triple bonds,
degree), each bond b has an order o:

    minimise    sum_i a_i(s_i) + sum_b c_b(o_b, s_i, s_j)
    subject to  the double and triple bonds at i are those of s_i,  total charge = Q

Costs are negative log likelihoods in the Bethe form of a pairwise model [1]_, fitted by counting:

=============================  ============================================================
a_i(s)                         -log P(s | element, degree, ring size) - log p(geometry_i | s)
geometry_i                     bond angle (two neighbours), height over its neighbours' plane
                               (three neighbours)
c_b(o, s, t)                   -log P(o, s, t) / (P(s) P(t)) - log p(length | o, s, t)
                               - log p(twist | o, s, t)
twist                          angle between the planes of the two ends, 0 to 90 degrees
=============================  ============================================================

Densities are histograms of clean geometries convolved with a Gaussian as wide as the positional
noise makes the feature. That noise is unknown, so several are tried and the likeliest wins.

References
----------
.. [1] J. S. Yedidia, W. T. Freeman, Y. Weiss, IEEE Trans. Inf. Theory 51, 2282 (2005), eq. 37.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from rdkit import Chem
from rdkit.Geometry import Point3D

from simgen.elements import SYMBOLS
from simgen.errors import InputError
from simgen.finishing.bond_field import BondField, Undecided
from simgen.finishing.bond_problem import BondProblem, Pair, Solution
from simgen.finishing.bond_programme import BondProgramme
from simgen.finishing.bond_statistics import (
    REACH_FACTOR,
    BondStatistics,
    fit_bond_statistics,
    load_bond_statistics,
)
from simgen.finishing.connectivity import fragments, pairs_within, relative_distances
from simgen.finishing.skeleton import Array, Skeleton
from simgen.finishing.states import VALENCES, KnownAtom, KnownBonds, Wanted
from simgen.finishing.status import Status

__all__ = [
    "VALENCES",
    "BondAssignment",
    "BondStatistics",
    "KnownAtom",
    "KnownBonds",
    "assign_bonds",
    "fit_bond_statistics",
    "load_bond_statistics",
]

NEIGHBOUR_FACTOR = 1.2
"""An atom with nobody within this multiple of the covalent radii is dropped."""
FIRM_FACTORS = (1.1, 0.95)
"""Closer pairs must be bonded; the second is tried where the first leaves no valid assignment.
Pairs between firm and :data:`REACH_FACTOR` may be bonded, at a cost."""
NOISE_LEVELS = (0.01, 0.04, 0.09)
"""Positional noise, angstrom per coordinate, that are tried when none is given."""
MEAN_NOISE = 0.015
"""Noise is taken to be distributed exponentially with this mean, in angstrom."""

_BOND_TYPES = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}


@dataclass(frozen=True, slots=True)
class BondAssignment:
    """Result of :func:`assign_bonds`.

    Attributes
    ----------
    status : Status
        ``OK``, or why there is no molecule.
    mol : Mol or None
        Heavy atoms in the order of the input, with conformer, bonds, formal charges and explicit
        hydrogen counts, sanitised.
    kept : tuple of int
        Index in the input of each atom of ``mol``; the others had no neighbour and were dropped.
    cost : float
        Negative log likelihood of the assignment; infinite without one.
    """

    status: Status
    mol: Chem.Mol | None
    kept: tuple[int, ...]
    cost: float = np.inf


def assign_bonds(
    atomic_numbers: ArrayLike,
    positions: ArrayLike,
    *,
    charge: int = 0,
    formal_charges: bool = True,
    n_hydrogens: int | None = None,
    known: KnownBonds | None = None,
    noise: float | None = None,
    statistics: BondStatistics | None = None,
) -> BondAssignment:
    """Turn heavy-atom positions into a molecule: the likeliest one without impossible valences.

    Parameters
    ----------
    atomic_numbers : array_like, shape (n_atoms,)
        Elements of the heavy atoms.
    positions : array_like, shape (n_atoms, 3)
        Coordinates in angstrom.
    charge : int, optional
        Total charge.
    formal_charges : bool, optional
        Whether atoms of unknown bonds may have charges.
    n_hydrogens : int, optional
        Hydrogens of the molecule; by default as many as make it likeliest.
    known : KnownBonds, optional
        Bonds among the first atoms, which stay; these atoms are never dropped.
    noise : float, optional
        Error of the positions in angstrom per coordinate. By default the likeliest of
        :data:`NOISE_LEVELS`.
    statistics : BondStatistics, optional
        Likelihoods; by default those that come with the package.

    Returns
    -------
    BondAssignment
        Molecule or reason for its absence. Chemistry never raises.

    Examples
    --------
    >>> result = assign_bonds([6, 8], [[0.0, 0.0, 0.0], [1.42, 0.0, 0.0]])
    >>> Chem.MolToSmiles(result.mol)
    'CO'
    """
    numbers = np.asarray(atomic_numbers, dtype=np.int64)
    x = np.asarray(positions, dtype=np.float64)
    if x.shape != (len(numbers), 3):
        raise InputError(f"expected positions of shape ({len(numbers)}, 3), got {x.shape}")
    everyone = tuple(range(len(numbers)))
    if not np.isfinite(x).all():
        return BondAssignment(Status.NONFINITE, None, everyone)
    if not all(int(z) in VALENCES for z in numbers):
        return BondAssignment(Status.UNKNOWN_ELEMENT, None, everyone)
    known = known or KnownBonds()
    relative = relative_distances(numbers, x)
    is_known = np.arange(len(numbers)) < len(known.atoms)
    kept = np.flatnonzero((relative < NEIGHBOUR_FACTOR).any(1) | is_known)
    index = tuple(kept.tolist())
    if len(kept) < 2:
        return BondAssignment(Status.TOO_FEW_ATOMS, None, index)
    numbers, x, relative = numbers[kept], x[kept], relative[np.ix_(kept, kept)]
    table = load_bond_statistics() if statistics is None else statistics
    reach = known.filter(pairs_within(relative, REACH_FACTOR))
    if fragments(len(numbers), reach).max() > 0:
        return BondAssignment(Status.DISCONNECTED, None, index)
    wanted = Wanted(charge, formal_charges, n_hydrogens, known)
    levels = NOISE_LEVELS if noise is None else (noise,)
    solutions: list[Solution] = []
    for factor in FIRM_FACTORS:
        optional = reach - pairs_within(relative, factor) - set(known.orders)
        solutions = _candidates(numbers.tolist(), x, reach, optional, wanted, levels, table)
        if solutions:
            break
    if not solutions:
        return BondAssignment(Status.UNASSIGNABLE, None, index)
    best = min(solutions, key=lambda solution: solution.cost)
    mol = _build(x, best)
    status = Status.UNSANITISABLE if mol is None else Status.OK
    return BondAssignment(status, mol, index, best.cost)


def _candidates(
    numbers: list[int],
    x: Array,
    reach: set[Pair],
    optional: set[Pair],
    wanted: Wanted,
    levels: Sequence[float],
    table: BondStatistics,
) -> list[Solution]:
    """Best solution at each noise level that has one; only the optional pairs may be left out."""

    def solve(
        pairs: Iterable[Pair], optional: set[Pair], levels: Sequence[float]
    ) -> list[Solution | None]:
        skeleton = Skeleton.build(numbers, x, pairs)
        return _likeliest(BondProblem(skeleton, optional, wanted, levels, table))

    levels_of: dict[frozenset[Pair], list[float]] = {}
    if optional:
        for level, solution in zip(levels, solve(reach, optional, levels), strict=True):
            if solution is not None:
                levels_of.setdefault(solution.bonded, []).append(level)
    else:
        levels_of[frozenset(reach)] = list(levels)
    return [
        replace(solution, cost=solution.cost + level / MEAN_NOISE)
        for pairs, group in levels_of.items()
        for level, solution in zip(group, solve(pairs, set(), group), strict=True)
        if solution is not None
    ]


def _likeliest(problem: BondProblem) -> list[Solution | None]:
    """Best solution at each noise level of a problem, if there is one."""
    try:
        return BondField(problem).solve()
    except Undecided:
        programme = BondProgramme(problem)
        return [programme.solve(level) for level in range(len(problem.levels))]


def _build(x: Array, solution: Solution) -> Chem.Mol | None:
    """RDKit molecule of a solution; None if RDKit rejects it."""
    mol = Chem.RWMol()
    for state in solution.states:
        atom = Chem.Atom(SYMBOLS[state.z])
        atom.SetFormalCharge(state.charge)
        atom.SetNumExplicitHs(state.n_hydrogens)
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    for (i, j), order in solution.orders.items():
        if order:
            mol.AddBond(i, j, _BOND_TYPES[order])
    conformer = Chem.Conformer(len(x))
    for i, position in enumerate(x.tolist()):
        conformer.SetAtomPosition(i, Point3D(*position))
    mol.AddConformer(conformer, assignId=True)
    if Chem.SanitizeMol(mol, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
        return None
    return mol.GetMol()
