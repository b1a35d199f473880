"""Bond orders, hydrogen counts and formal charges of a bare heavy-atom skeleton.

The assignment is the most likely one that satisfies every valence, found exactly as an integer
linear programme. Each atom i is in one of the states s its element allows (formal charge, number
of hydrogens, of double, of triple bonds, degree), each bond b has an order o:

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

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rdkit import Chem
from rdkit.Geometry import Point3D
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from simgen.elements import COVALENT_RADII, SYMBOLS
from simgen.errors import InputError, LoadError
from simgen.finishing.connectivity import bonded_pairs, fragments, relative_distances
from simgen.finishing.status import Status

Array = NDArray[np.float64]

NEIGHBOUR_FACTOR = 1.2
"""An atom with nobody within this multiple of the covalent radii is dropped."""
FIRM_FACTORS = (1.1, 0.95)
"""Closer pairs must be bonded; the second is tried where the first leaves no valid assignment."""
REACH_FACTOR = 1.3
"""Pairs between firm and this one may be bonded, at a cost."""
NOISE_LEVELS = (0.01, 0.04, 0.09)
"""Positional noise, angstrom per coordinate, that are tried when none is given."""
MEAN_NOISE = 0.015
"""Noise is taken to be distributed exponentially with this mean, in angstrom."""

VALENCES: Mapping[int, tuple[tuple[int, int], ...]] = {
    6: ((0, 4), (-1, 3)),
    7: ((0, 3), (1, 4), (-1, 2)),
    8: ((0, 2), (-1, 1)),
    9: ((0, 1),),
    15: ((0, 3), (0, 5)),
    16: ((0, 2), (0, 4), (0, 6)),
    17: ((0, 1),),
    35: ((0, 1),),
}
"""(formal charge, valence) that the atoms of each element may have: all of them closed shell."""

_BOND_TYPES = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
_LENGTH_RATIO = {1: 1.0, 2: 0.87, 3: 0.78}  # of the covalent radii, for pairs never seen
_MAX_RING = 7  # larger rings count as this
_PSEUDO_COUNT = 2.0  # weight of the coarser density in each step of the back-off
_PSEUDO_PAIRS = 3.0  # the same for pairs of states
_PSEUDO_STATE = 0.02  # count given to states never seen


class State(NamedTuple):
    """What an atom is: the valences it satisfies and how."""

    z: int
    charge: int
    valence: int
    n_double: int
    n_triple: int
    degree: int

    @property
    def n_hydrogens(self) -> int:
        """What the heavy neighbours leave of the valence; negative if they take too much."""
        return self.valence - self.degree - self.n_double - 2 * self.n_triple

    @property
    def n_single(self) -> int:
        """Single bonds to heavy neighbours."""
        return self.degree - self.n_double - self.n_triple

    @property
    def is_possible(self) -> bool:
        """Whether the bonds fit; charged atoms and hypervalent sulfur carry no hydrogen."""
        bare = self.charge != 0 or (self.z == 16 and self.valence > 2)
        fits = 0 <= self.n_hydrogens <= (0 if bare else 4)
        return fits and self.n_double + self.n_triple <= self.degree


@lru_cache
def _states(z: int, degree: int) -> tuple[State, ...]:
    """States an element can be in at a number of heavy neighbours."""
    every = (
        State(z, charge, valence, n_double, n_triple, degree)
        for charge, valence in VALENCES[z]
        for n_double, n_triple in ((0, 0), (1, 0), (2, 0), (0, 1))
    )
    return tuple(state for state in every if state.is_possible)


# ---------------------------------------------------------------------------------------------
# Features of a skeleton
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KnownAtom:
    """An atom whose bonds to other known atoms are known.

    Attributes
    ----------
    charge : int
        Formal charge.
    n_hydrogens : int
        Hydrogens that it keeps.
    n_open : int
        Hydrogens that new bonds may take the place of.
    """

    charge: int
    n_hydrogens: int
    n_open: int


@dataclass(frozen=True, slots=True)
class KnownBonds:
    """What is known of the first atoms of a skeleton: nothing of it is changed by an assignment.

    Attributes
    ----------
    atoms : tuple of KnownAtom
        The first atoms, in order.
    orders : mapping of (int, int) to int
        Order of each bond among them, by the indices of its ends in ascending order.
    """

    atoms: tuple[KnownAtom, ...] = ()
    orders: Mapping[tuple[int, int], int] = field(default_factory=dict)

    def concerns(self, pair: tuple[int, int]) -> bool:
        """Whether both ends of a pair are known atoms."""
        return max(pair) < len(self.atoms)

    def filter(self, pairs: set[tuple[int, int]]) -> set[tuple[int, int]]:
        """Return the known bonds, and the pairs whose ends are free to be bonded."""
        free = {
            pair
            for pair in pairs
            if not self.concerns(pair)
            and all(end >= len(self.atoms) or self.atoms[end].n_open for end in pair)
        }
        return free | set(self.orders)

    def states(self, i: int, z: int, degree: int) -> list[State]:
        """States that a known atom may be in at a number of heavy neighbours."""
        atom = self.atoms[i]
        orders = [order for pair, order in self.orders.items() if i in pair]
        n_new = degree - len(orders)
        valence = sum(orders) + atom.n_hydrogens + atom.n_open
        found = []
        # What new bonds take beyond the first electron pair of each: nothing, one or two of them.
        for n_double, n_triple in ((0, 0), (1, 0), (2, 0), (0, 1)):
            used = n_new + n_double + 2 * n_triple
            if n_double + n_triple <= n_new and used <= atom.n_open:
                more = orders.count(2) + n_double, orders.count(3) + n_triple
                found.append(State(z, atom.charge, valence, *more, degree))
        return found


@dataclass(frozen=True, slots=True)
class _Axis:
    """Bins of one geometric feature and how positional noise widens it."""

    start: float
    stop: float
    width: float
    spread: float  # standard deviation of the feature per angstrom of noise
    floor: float  # its natural width

    @property
    def centres(self) -> Array:
        return np.arange(self.start + self.width / 2, self.stop, self.width)

    def bin(self, value: float) -> int:
        last = round((self.stop - self.start) / self.width) - 1
        return min(max(int((value - self.start) / self.width), 0), last)

    def kernel(self, noise: float) -> Array:
        """Smoothing matrix (n_bins, n_bins); each row is a density over the axis."""
        sigma = float(np.hypot(self.floor, self.spread * noise))
        x = self.centres
        weights = np.exp(-0.5 * ((x[:, None] - x[None]) / sigma) ** 2)
        return np.asarray(weights / (weights.sum(1, keepdims=True) * self.width))


# Spread: a distance of two noisy points sqrt(2); angles in degrees over bonds of about 1.4 A.
_AXES = {
    "length": _Axis(0.8, 3.2, 0.01, 1.41, 0.012),
    "angle": _Axis(50.0, 180.0, 2.0, 85.0, 2.0),
    "height": _Axis(0.0, 1.0, 0.02, 1.15, 0.03),
    "twist": _Axis(0.0, 90.0, 3.0, 90.0, 4.0),
    "gap": _Axis(0.8, REACH_FACTOR, 0.01, 0.9, 0.02),
}


@dataclass(frozen=True, slots=True)
class _Skeleton:
    """Heavy atoms, which of them are bonded, and the features the costs depend on.

    Features that an atom or bond does not have are absent from the dictionaries.
    """

    atomic_numbers: list[int]
    positions: Array
    pairs: list[tuple[int, int]]
    neighbours: list[list[int]]
    atom_ring: list[int]  # size of the smallest ring, 0 outside rings, at most 7
    bond_ring: list[int]
    shape: dict[int, tuple[str, float]]
    twist: dict[int, float]

    @classmethod
    def build(
        cls, atomic_numbers: Sequence[int], positions: Array, pairs: Iterable[tuple[int, int]]
    ) -> _Skeleton:
        n_atoms, bonds = len(atomic_numbers), sorted(pairs)
        graph = Chem.RWMol()
        for z in atomic_numbers:
            graph.AddAtom(Chem.Atom(int(z)))
        neighbours: list[list[int]] = [[] for _ in range(n_atoms)]
        for i, j in bonds:
            graph.AddBond(i, j, Chem.BondType.SINGLE)
            neighbours[i].append(j)
            neighbours[j].append(i)
        Chem.GetSymmSSSR(graph)
        rings = graph.GetRingInfo()
        shape = {}
        for i, around in enumerate(neighbours):
            vectors = positions[around] - positions[i]
            if len(around) == 2:
                shape[i] = ("angle", _angle(vectors[0], vectors[1]))
            elif len(around) == 3:
                shape[i] = ("height", _height(vectors))
        twist = {}
        for b, (i, j) in enumerate(bonds):
            left = [k for k in neighbours[i] if k != j]
            right = [k for k in neighbours[j] if k != i]
            if left and right:
                twist[b] = _twist(positions[i], positions[j], positions[left], positions[right])
        return cls(
            [int(z) for z in atomic_numbers],
            positions,
            bonds,
            neighbours,
            [min(rings.MinAtomRingSize(i), _MAX_RING) for i in range(n_atoms)],
            [min(rings.MinBondRingSize(b), _MAX_RING) for b in range(len(bonds))],
            shape,
            twist,
        )

    def length(self, b: int) -> float:
        i, j = self.pairs[b]
        return float(np.linalg.norm(self.positions[i] - self.positions[j]))


def _angle(u: Array, v: Array) -> float:
    cosine = u @ v / max(float(np.linalg.norm(u) * np.linalg.norm(v)), 1e-9)
    return float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))


def _height(vectors: Array) -> float:
    """Distance in angstrom of an atom from the plane of its three neighbours."""
    normal = np.cross(vectors[1] - vectors[0], vectors[2] - vectors[0])
    return float(abs(vectors[0] @ normal) / max(float(np.linalg.norm(normal)), 1e-9))


def _twist(x_i: Array, x_j: Array, left: Array, right: Array) -> float:
    """Angle in degrees, 0 to 90, between the planes at the ends of a bond.

    It is half the mean direction of the doubled dihedral angles, so that cis and trans agree and
    noise averages out.
    """
    axis = (x_j - x_i) / max(float(np.linalg.norm(x_j - x_i)), 1e-9)
    u, v = left - x_i, right - x_j
    u = u - np.outer(u @ axis, axis)
    v = v - np.outer(v @ axis, axis)
    cosine = u @ v.T
    sine = np.cross(u[:, None], v[None]) @ axis
    doubled = np.exp(2j * np.arctan2(sine, cosine)).sum()
    return float(abs(np.degrees(np.angle(doubled))) / 2)


# ---------------------------------------------------------------------------------------------
# Statistics
# ---------------------------------------------------------------------------------------------

Key = tuple[Any, ...]


def _hybridisation(state: State) -> tuple[int, int]:
    return state.n_double, state.n_triple


def _without_degree(state: State) -> Key:
    return state[:-1]


# How each feature's condition is coarsened, step by step, where data are few.
_COARSER: Mapping[str, tuple[Callable[[Key], Key], ...]] = {
    "length": (
        lambda key: (*map(_without_degree, key[:2]), key[2]),
        lambda key: (key[0][0], key[1][0], key[0][3:], key[1][3:], key[2]),
        lambda key: (key[0], key[1], key[4]),
    ),
    "angle": (lambda key: (_hybridisation(key[0]), key[1]), lambda key: (key[0],)),
    "height": (lambda key: (_hybridisation(key[0]), key[1]), lambda key: (key[0],)),
    "twist": (
        lambda key: (*sorted(map(_hybridisation, key[:2])), key[2], key[3]),
        lambda key: (key[2], key[3] > 0),
    ),
    "gap": (),
}


@dataclass(frozen=True, eq=False)
class BondStatistics:
    """Counts over molecules with known bonds, from which all costs follow.

    Attributes
    ----------
    n_molecules : int
        Molecules counted.
    atoms : dict
        ``(element, degree, ring size) -> {state: count}``.
    bonds : dict
        ``(state, state, order) -> count``, states in ascending order.
    histograms : dict
        ``feature -> {condition: {bin: count}}`` for the features length, angle, height, twist and
        gap (relative distance of pairs that are close but not bonded).
    """

    n_molecules: int
    atoms: dict[Key, Counter[State]]
    bonds: Counter[Key]
    histograms: dict[str, dict[Key, Counter[int]]]
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    # -- likelihoods --------------------------------------------------------------------------

    def state_costs(self, z: int, degree: int, ring: int | None) -> dict[State, float]:
        """Negative log probability of each state possible at a degree; ``ring=None``: any ring."""
        key = ("state", z, degree, ring)
        if key not in self._cache:
            anywhere = self._state_counts(z, degree)
            here = anywhere if ring is None else self.atoms.get((z, degree, ring), Counter())
            total = anywhere.total() + 1.0
            weights = {
                state: here[state] + _PSEUDO_COUNT * (anywhere[state] + _PSEUDO_STATE) / total
                for state in _states(z, degree)
            }
            norm = sum(weights.values())
            self._cache[key] = {state: -float(np.log(w / norm)) for state, w in weights.items()}
        costs: dict[State, float] = self._cache[key]
        return costs

    def pair_cost(self, a: State, b: State, order: int) -> float:
        """Negative log of P(order, a, b) / (P(a) P(b)), given elements and degrees of the ends."""
        a, b = sorted((a, b))
        key = ("pair", a, b, order)
        if key not in self._cache:
            ends = ((a.z, a.degree), (b.z, b.degree))
            if any(
                state not in self.state_costs(*end, None)
                for state, end in zip((a, b), ends, strict=True)
            ):
                # Only known atoms are in such states: nothing is known of their bonds.
                self._cache[key] = 0.0
                return 0.0
            total = self._bond_totals()[*sorted(ends)]
            n = float(self.bonds[a, b, order])
            if ends[0] == ends[1] and a != b:  # the two ways round are counted as one
                n /= 2
            chance = np.exp(
                -self.state_costs(*ends[0], None)[a] - self.state_costs(*ends[1], None)[b]
            )
            expected = _PSEUDO_PAIRS * self._expected_pairs(*ends)[a, b, order]
            self._cache[key] = -float(np.log((n + expected) / (total + _PSEUDO_PAIRS) / chance))
        cost: float = self._cache[key]
        return cost

    def _expected_pairs(self, first: tuple[int, int], second: tuple[int, int]) -> dict[Key, float]:
        """P(order, a, b) that only the states' frequencies and their valences imply.

        A double bond at one end is a double bond at the other, so that even rare states are no
        surprise next to each other. Possible pairs are scaled until both marginals fit (iterative
        proportional fitting).
        """
        key = ("expected", first, second)
        if key not in self._cache:
            rows, columns = self.state_costs(*first, None), self.state_costs(*second, None)
            orders = np.array(
                [[[order in _orders(a, b) for b in columns] for a in rows] for order in (1, 2, 3)]
            )
            joint = orders + 1e-9
            p_rows, p_columns = (np.exp(-np.array([*c.values()])) for c in (rows, columns))
            for _ in range(100):
                joint *= (p_rows / joint.sum((0, 2)))[None, :, None]
                joint *= (p_columns / joint.sum((0, 1)))[None, None, :]
            self._cache[key] = {
                (a, b, order): float(joint[order - 1, i, j])
                for (i, a), (j, b) in product(enumerate(rows), enumerate(columns))
                for order in (1, 2, 3)
            }
        expected: dict[Key, float] = self._cache[key]
        return expected

    def _state_counts(self, z: int, degree: int) -> Counter[State]:
        counts: Counter[State] = Counter()
        for ring in range(_MAX_RING + 1):
            counts.update(self.atoms.get((z, degree, ring), Counter()))
        return counts

    def _bond_totals(self) -> Counter[Key]:
        """Number of bonds by element and degree of the two ends."""
        if "totals" not in self._cache:
            totals: Counter[Key] = Counter()
            for (a, b, _), n in self.bonds.items():
                totals[*sorted(((a.z, a.degree), (b.z, b.degree)))] += n
            self._cache["totals"] = totals
        found: Counter[Key] = self._cache["totals"]
        return found

    def feature_costs(self, feature: str, condition: Key, noise: float) -> Array:
        """Negative log density of a feature in each bin, under a condition and at a noise."""
        key = (feature, 0, condition, noise)
        if key not in self._cache:
            self._cache[key] = -np.log(self._density(feature, 0, condition, noise))
        costs: Array = self._cache[key]
        return costs

    def gap_cost(self, radii: float) -> float:
        """Extra cost of leaving a close pair unbonded, over what bonding it costs on average.

        Without that of its distance; ``radii`` is the sum of the covalent radii, angstrom.
        """
        n_gaps = self.histograms["gap"].get((), Counter()).total() + 1.0
        odds = n_gaps / (self.bonds.total() + 1.0)
        return float(np.log(radii / odds))

    def _density(self, feature: str, level: int, condition: Key, noise: float) -> Array:
        key = ("density", feature, level, condition, noise)
        if key in self._cache:
            known: Array = self._cache[key]
            return known
        axis, coarser = _AXES[feature], _COARSER[feature]
        if level < len(coarser):
            parent = self._density(feature, level + 1, coarser[level](condition), noise)
        elif feature == "length":
            z_a, z_b, order = condition
            mean = (COVALENT_RADII[z_a] + COVALENT_RADII[z_b]) * _LENGTH_RATIO[order]
            sigma = float(np.hypot(0.06, axis.spread * noise))
            shape = np.exp(-0.5 * ((axis.centres - mean) / sigma) ** 2) + 1e-6
            parent = shape / (shape.sum() * axis.width)
        else:
            parent = np.full(len(axis.centres), 1.0 / (axis.stop - axis.start))
        counts = self._counts(feature, level).get(condition, Counter())
        kernel = self._kernel(feature, noise)
        density = _PSEUDO_COUNT * parent
        for bin_, n in counts.items():
            density = density + n * kernel[bin_]
        density = density / (counts.total() + _PSEUDO_COUNT)
        self._cache[key] = density
        return density

    def _kernel(self, feature: str, noise: float) -> Array:
        key = ("kernel", feature, noise)
        if key not in self._cache:
            self._cache[key] = _AXES[feature].kernel(noise)
        kernel: Array = self._cache[key]
        return kernel

    def _counts(self, feature: str, level: int) -> dict[Key, Counter[int]]:
        """Histograms of a feature with the condition coarsened ``level`` times."""
        if level == 0:
            return self.histograms[feature]
        key = ("counts", feature, level)
        if key not in self._cache:
            merged: dict[Key, Counter[int]] = defaultdict(Counter)
            for condition, counts in self._counts(feature, level - 1).items():
                merged[_COARSER[feature][level - 1](condition)].update(counts)
            self._cache[key] = dict(merged)
        counts_: dict[Key, Counter[int]] = self._cache[key]
        return counts_

    # -- storage ------------------------------------------------------------------------------

    def to_json(self) -> str:
        """Text from which :meth:`from_json` makes equal statistics."""
        return json.dumps(
            {
                "n_molecules": self.n_molecules,
                "atoms": [[k, sorted(c.items())] for k, c in sorted(self.atoms.items())],
                "bonds": sorted(self.bonds.items()),
                "histograms": {
                    name: [[k, sorted(c.items())] for k, c in sorted(table.items())]
                    for name, table in sorted(self.histograms.items())
                },
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> BondStatistics:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        LoadError
            If the text is something else.
        """

        def thaw(part: Any) -> Any:
            return State(*part) if len(part) == 6 else tuple(part)

        def condition(key: list[Any]) -> Key:
            return tuple(thaw(part) if isinstance(part, list) else part for part in key)

        try:
            data = json.loads(text)
            return cls(
                n_molecules=data["n_molecules"],
                atoms={
                    tuple(key): Counter({thaw(t): n for t, n in counts})
                    for key, counts in data["atoms"]
                },
                bonds=Counter({condition(key): n for key, n in data["bonds"]}),
                histograms={
                    name: {condition(key): Counter(dict(counts)) for key, counts in table}
                    for name, table in data["histograms"].items()
                },
            )
        except (KeyError, TypeError, ValueError) as error:
            raise LoadError(
                f"expected bond statistics as written by fit_bond_statistics, got {error!r}; "
                "fit them again"
            ) from error


@lru_cache(maxsize=4)
def load_bond_statistics(path: Path | None = None) -> BondStatistics:
    """Read statistics from a JSON file; by default the ones that come with the package."""
    source = files("simgen.finishing") / "statistics.json" if path is None else path
    try:
        return BondStatistics.from_json(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoadError(f"expected bond statistics at {source}, got {error}") from error


def fit_bond_statistics(molecules: Iterable[Chem.Mol]) -> BondStatistics:
    """Count atom states, bonds and their geometry over molecules with known bonds.

    Parameters
    ----------
    molecules : iterable of Mol
        Each with a relaxed 3D conformer; hydrogens may be there or not. Molecules with elements or
        valences outside :data:`VALENCES` are passed over.

    Raises
    ------
    InputError
        If no molecule could be used.
    """
    atoms: dict[Key, Counter[State]] = defaultdict(Counter)
    bonds: Counter[Key] = Counter()
    histograms: dict[str, dict[Key, Counter[int]]] = {n: defaultdict(Counter) for n in _AXES}
    n_molecules = 0

    def count(feature: str, condition: Key, value: float) -> None:
        histograms[feature][condition][_AXES[feature].bin(value)] += 1

    for molecule in molecules:
        described = _describe(molecule)
        if described is None:
            continue
        n_molecules += 1
        skeleton, states, orders = described
        for i, state in enumerate(states):
            ring = skeleton.atom_ring[i]
            atoms[state.z, state.degree, ring][state] += 1
            if i in skeleton.shape:
                feature, value = skeleton.shape[i]
                count(feature, (state, ring), value)
        for b, (i, j) in enumerate(skeleton.pairs):
            key = (*sorted((states[i], states[j])), orders[b])
            bonds[key] += 1
            count("length", key, skeleton.length(b))
            if b in skeleton.twist:
                count("twist", (*key, skeleton.bond_ring[b]), skeleton.twist[b])
        relative = relative_distances(skeleton.atomic_numbers, skeleton.positions)
        bonded = set(skeleton.pairs)
        for i, j in np.argwhere(np.triu(relative < REACH_FACTOR)).tolist():
            if (i, j) not in bonded:
                count("gap", (), relative[i, j])
    if n_molecules == 0:
        raise InputError(
            "expected molecules with 3D coordinates and known bonds, got none that can be used"
        )
    return BondStatistics(
        n_molecules, dict(atoms), bonds, {name: dict(table) for name, table in histograms.items()}
    )


def _describe(molecule: Chem.Mol) -> tuple[_Skeleton, list[State], list[int]] | None:
    """Skeleton, states and bond orders of a molecule; None if it has other valences."""
    mol = Chem.RemoveHs(molecule)
    Chem.Kekulize(mol, clearAromaticFlags=True)
    if mol.GetNumConformers() == 0 or mol.GetNumAtoms() < 2:
        return None
    order_of = {
        (min(i, j), max(i, j)): int(bond.GetBondTypeAsDouble())
        for bond in mol.GetBonds()
        for i, j in [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())]
    }
    states = []
    for atom in mol.GetAtoms():
        z, degree = atom.GetAtomicNum(), atom.GetDegree()
        orders = [int(bond.GetBondTypeAsDouble()) for bond in atom.GetBonds()]
        state = State(
            z,
            atom.GetFormalCharge(),
            sum(orders) + atom.GetTotalNumHs(),
            orders.count(2),
            orders.count(3),
            degree,
        )
        if z not in VALENCES or state not in _states(z, degree):
            return None
        states.append(state)
    positions = mol.GetConformer().GetPositions()
    skeleton = _Skeleton.build([state.z for state in states], positions, order_of)
    return skeleton, states, [order_of[pair] for pair in skeleton.pairs]


# ---------------------------------------------------------------------------------------------
# Assignment
# ---------------------------------------------------------------------------------------------


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
    numbers, x = numbers[kept], x[kept]
    table = load_bond_statistics() if statistics is None else statistics
    reach = known.filter(bonded_pairs(numbers, x, REACH_FACTOR))
    if fragments(len(numbers), reach).max() > 0:
        return BondAssignment(Status.DISCONNECTED, None, index)
    wanted = _Wanted(charge, formal_charges, n_hydrogens, known)
    levels = NOISE_LEVELS if noise is None else (noise,)
    solutions: list[_Solution] = []
    for factor in FIRM_FACTORS:
        solutions = _candidates(numbers.tolist(), x, reach, factor, wanted, levels, table)
        if solutions:
            break
    if not solutions:
        return BondAssignment(Status.UNASSIGNABLE, None, index)
    best = min(solutions, key=lambda solution: solution.cost)
    mol = _build(x, best)
    status = Status.UNSANITISABLE if mol is None else Status.OK
    return BondAssignment(status, mol, index, best.cost)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What an assignment must satisfy beside the valences."""

    charge: int
    formal_charges: bool
    n_hydrogens: int | None
    known: KnownBonds

    def state_costs(
        self, i: int, z: int, degree: int, ring: int | None, table: BondStatistics
    ) -> dict[State, float]:
        """Cost of each state that an atom may be in at a degree."""
        costs = table.state_costs(z, degree, ring)
        if i < len(self.known.atoms):
            return {s: costs.get(s, 0.0) for s in self.known.states(i, z, degree)}
        return {s: c for s, c in costs.items() if self.formal_charges or s.charge == 0}


def _candidates(
    numbers: list[int],
    x: Array,
    reach: set[tuple[int, int]],
    firm_factor: float,
    wanted: _Wanted,
    levels: Iterable[float],
    table: BondStatistics,
) -> list[_Solution]:
    """Best solution at each noise level that has one."""
    optional = reach - bonded_pairs(numbers, x, firm_factor) - set(wanted.known.orders)
    pairs = frozenset(reach)
    loose = _Problem(_Skeleton.build(numbers, x, pairs), optional, wanted, table)
    problems = {} if optional else {pairs: loose}
    solutions = []
    for level in levels:
        surprise = level / MEAN_NOISE
        if optional:
            bonded = loose.solve(level)
            if bonded is None:
                continue
            pairs = frozenset(pair for pair, order in bonded.orders.items() if order > 0)
        if pairs not in problems:
            problems[pairs] = _Problem(_Skeleton.build(numbers, x, pairs), set(), wanted, table)
        solution = problems[pairs].solve(level)
        if solution is not None:
            solutions.append(replace(solution, cost=solution.cost + surprise))
    return solutions


@dataclass(frozen=True, slots=True)
class _Solution:
    cost: float
    states: list[State]
    orders: dict[tuple[int, int], int]


class _Programme:
    """An integer linear programme in binary variables, built term by term."""

    def __init__(self) -> None:
        self.n_variables = 0
        self.rows: list[int] = []
        self.columns: list[int] = []
        self.values: list[float] = []
        self.lower: list[float] = []
        self.upper: list[float] = []

    def variable(self) -> int:
        self.n_variables += 1
        return self.n_variables - 1

    def constrain(self, terms: Iterable[tuple[int, float]], lower: float, upper: float) -> None:
        for column, value in terms:
            self.rows.append(len(self.lower))
            self.columns.append(column)
            self.values.append(value)
        self.lower.append(lower)
        self.upper.append(upper)

    def solve(self, costs: Array) -> tuple[float, NDArray[np.bool_]] | None:
        matrix = csr_array(
            (self.values, (self.rows, self.columns)), shape=(len(self.lower), self.n_variables)
        )
        for integral in (0, 1):  # the relaxation is nearly always integral, hence optimal
            result = milp(
                costs,
                integrality=np.full(self.n_variables, integral),
                bounds=Bounds(0, 1),
                constraints=LinearConstraint(matrix, self.lower, self.upper),
                options={"mip_rel_gap": 0.0, "presolve": bool(integral)},
            )
            if result.x is None:
                return None
            if np.abs(result.x - np.round(result.x)).max() < 1e-6:
                break
        return float(result.fun), result.x > 0.5


class _Problem:
    """The integer programme on a skeleton's pairs, of which some may stay unbonded.

    Where some may, angles and rings are not known yet, and only lengths speak. It is the same at
    all noise levels, but for the costs.
    """

    def __init__(
        self,
        skeleton: _Skeleton,
        optional: set[tuple[int, int]],
        wanted: _Wanted,
        table: BondStatistics,
    ) -> None:
        self._n_atoms = len(skeleton.atomic_numbers)
        self._table = table
        self._programme = _Programme()
        self._costs: list[float] = []
        # What the noise decides on: variable, feature, condition and bin.
        self._features: list[tuple[int, str, Key, int]] = []
        self._states: list[dict[State, int]] = []
        self._orders: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self._absent: dict[tuple[int, int], int] = {}
        self._add_states(skeleton, optional, wanted)
        self._is_possible = all(self._states)
        if self._is_possible:
            self._add_bonds(skeleton, optional, wanted)
            self._constrain_totals(wanted)

    def solve(self, noise: float) -> _Solution | None:
        """Return the likeliest assignment at a noise level, if there is one."""
        if not self._is_possible:
            return None
        costs = self._costs.copy()
        for variable, feature, condition, bin_ in self._features:
            costs[variable] += self._table.feature_costs(feature, condition, noise)[bin_]
        while True:
            solved = self._programme.solve(np.array(costs))
            if solved is None:
                return None
            cost, values = solved
            orders = {
                pair: next((order for v, order in variables if values[v]), 0)
                for pair, variables in self._orders.items()
            }
            labels = fragments(self._n_atoms, {pair for pair, order in orders.items() if order})
            if labels.max() == 0:
                break
            # fragments must not stay apart: one of the optional bonds leaving this one has to be
            leaving = [
                v for (i, j), v in self._absent.items() if (labels[i] == 0) != (labels[j] == 0)
            ]
            self._programme.constrain([(v, 1.0) for v in leaving], -np.inf, len(leaving) - 1.0)
        picked = [next(s for s, v in of_atom.items() if values[v]) for of_atom in self._states]
        return _Solution(cost, picked, orders)

    def _variable(self, cost: float, *features: tuple[str, Key, float]) -> int:
        """Add a variable that costs this and what the values of features say at a noise level."""
        variable = self._programme.variable()
        self._costs.append(cost)
        for feature, condition, value in features:
            self._features.append((variable, feature, condition, _AXES[feature].bin(value)))
        return variable

    def _add_states(
        self, skeleton: _Skeleton, optional: set[tuple[int, int]], wanted: _Wanted
    ) -> None:
        """Each atom is in one state."""
        for i, z in enumerate(skeleton.atomic_numbers):
            mine = [pair for pair in skeleton.pairs if i in pair]
            n_firm = sum(pair not in optional for pair in mine)
            of_atom: dict[State, int] = {}
            for degree in range(max(n_firm, 1), len(mine) + 1):
                ring = None if optional else skeleton.atom_ring[i]
                for state, cost in wanted.state_costs(i, z, degree, ring, self._table).items():
                    shape = []
                    if not optional and i in skeleton.shape:
                        feature, value = skeleton.shape[i]
                        shape = [(feature, (state, ring), value)]
                    of_atom[state] = self._variable(cost, *shape)
            self._programme.constrain([(v, 1.0) for v in of_atom.values()], 1.0, 1.0)
            self._states.append(of_atom)

    def _add_bonds(
        self, skeleton: _Skeleton, optional: set[tuple[int, int]], wanted: _Wanted
    ) -> None:
        """Each pair has an order, or none, that suits the states of its ends."""
        # Variables are (order, state of i, state of j); at_end[i, state][order] collects them.
        at_end: dict[tuple[int, State], dict[int, list[int]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for b, (i, j) in enumerate(skeleton.pairs):
            length = skeleton.length(b)
            variables: list[tuple[int, int]] = []
            ends: dict[tuple[int, State], list[int]] = defaultdict(list)
            for s, t in product(self._states[i], self._states[j]):
                first, second = sorted((s, t))
                for order in _orders(s, t):
                    if wanted.known.orders.get((i, j), order) != order:
                        continue
                    features: list[tuple[str, Key, float]] = [
                        ("length", (first, second, order), length)
                    ]
                    if not optional and b in skeleton.twist:
                        condition = (first, second, order, skeleton.bond_ring[b])
                        features.append(("twist", condition, skeleton.twist[b]))
                    v = self._variable(self._table.pair_cost(first, second, order), *features)
                    variables.append((v, order))
                    for end in ((i, s), (j, t)):
                        ends[end].append(v)
                        at_end[end][order].append(v)
            if (i, j) in optional:
                z_i, z_j = skeleton.atomic_numbers[i], skeleton.atomic_numbers[j]
                radii = COVALENT_RADII[z_i] + COVALENT_RADII[z_j]
                absent = self._variable(self._table.gap_cost(radii), ("gap", (), length / radii))
                self._absent[i, j] = absent
                everything = [(v, 1.0) for v, _ in variables]
                self._programme.constrain([*everything, (absent, 1.0)], 1.0, 1.0)
            for k in (i, j):
                for state, x_s in self._states[k].items():
                    terms = [*((v, 1.0) for v in ends[k, state]), (x_s, -1.0)]
                    lowest = -np.inf if (i, j) in optional else 0.0
                    self._programme.constrain(terms, lowest, 0.0)
            self._orders[i, j] = variables
        for i, of_atom in enumerate(self._states):
            for state, x_s in of_atom.items():
                by_order = at_end[i, state]
                for order, n in ((2, state.n_double), (3, state.n_triple)):
                    if n > 0:  # otherwise there are no such bonds to begin with
                        terms = [*((v, 1.0) for v in by_order[order]), (x_s, -float(n))]
                        self._programme.constrain(terms, 0.0, 0.0)
                if optional:
                    all_orders = [(v, 1.0) for group in by_order.values() for v in group]
                    terms = [*all_orders, (x_s, -float(state.degree))]
                    self._programme.constrain(terms, 0.0, 0.0)

    def _constrain_totals(self, wanted: _Wanted) -> None:
        """The charge of the molecule, and its number of hydrogens if that is given."""
        in_states = [(x_s, state) for of_atom in self._states for state, x_s in of_atom.items()]
        charges = [(x_s, float(state.charge)) for x_s, state in in_states if state.charge]
        self._programme.constrain(charges, wanted.charge, wanted.charge)
        if wanted.n_hydrogens is not None:
            hydrogens = [(x_s, float(s.n_hydrogens)) for x_s, s in in_states if s.n_hydrogens]
            self._programme.constrain(hydrogens, wanted.n_hydrogens, wanted.n_hydrogens)


@lru_cache(maxsize=4096)
def _orders(a: State, b: State) -> tuple[int, ...]:
    """Orders possible for a bond between two states."""
    n_double, n_triple = min(a.n_double, b.n_double), min(a.n_triple, b.n_triple)
    single = a.n_single and b.n_single
    possible = ((1, single), (2, n_double), (3, n_triple))
    return tuple(order for order, is_possible in possible if is_possible)


def _build(x: Array, solution: _Solution) -> Chem.Mol | None:
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
