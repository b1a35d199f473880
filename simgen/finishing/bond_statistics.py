"""How likely atom states, bonds and their geometries are: counted over known molecules.

Costs are negative log likelihoods; what they are costs of is in :mod:`simgen.finishing.bonds`.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rdkit import Chem

from simgen.elements import COVALENT_RADII
from simgen.errors import InputError, LoadError
from simgen.finishing.connectivity import relative_distances
from simgen.finishing.skeleton import MAX_RING, Array, Skeleton
from simgen.finishing.states import VALENCES, State, possible_orders, possible_states

REACH_FACTOR = 1.3
"""Pairs farther apart than this multiple of the covalent radii are not bonded."""

_LENGTH_RATIO = {1: 1.0, 2: 0.87, 3: 0.78}  # of the covalent radii, for pairs never seen
_PSEUDO_COUNT = 2.0  # weight of the coarser density in each step of the back-off
_PSEUDO_PAIRS = 3.0  # the same for pairs of states
_PSEUDO_STATE = 0.02  # count given to states never seen


@dataclass(frozen=True, slots=True)
class Axis:
    """Bins of one geometric feature and how positional noise widens it."""

    start: float
    stop: float
    width: float
    spread: float  # standard deviation of the feature per angstrom of noise
    floor: float  # its natural width

    @property
    def centres(self) -> Array:
        """Middle of each bin."""
        return np.arange(self.start + self.width / 2, self.stop, self.width)

    @property
    def n_bins(self) -> int:
        """Number of bins."""
        return round((self.stop - self.start) / self.width)

    def bins(self, values: ArrayLike) -> NDArray[np.int64]:
        """Bin of each value; those outside the axis are in the first or the last one."""
        places = (np.asarray(values) - self.start) / self.width
        return np.clip(places, 0, self.n_bins - 1).astype(np.int64)

    def kernel(self, noise: float) -> Array:
        """Smoothing matrix (n_bins, n_bins); each row is a density over the axis."""
        sigma = float(np.hypot(self.floor, self.spread * noise))
        x = self.centres
        weights = np.exp(-0.5 * ((x[:, None] - x[None]) / sigma) ** 2)
        return np.asarray(weights / (weights.sum(1, keepdims=True) * self.width))


# Spread: a distance of two noisy points sqrt(2); angles in degrees over bonds of about 1.4 A.
AXES = {
    "length": Axis(0.8, 3.2, 0.01, 1.41, 0.012),
    "angle": Axis(50.0, 180.0, 2.0, 85.0, 2.0),
    "height": Axis(0.0, 1.0, 0.02, 1.15, 0.03),
    "twist": Axis(0.0, 90.0, 3.0, 90.0, 4.0),
    "gap": Axis(0.8, REACH_FACTOR, 0.01, 0.9, 0.02),
}


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
                for state in possible_states(z, degree)
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
                [
                    [[order in possible_orders(a, b) for b in columns] for a in rows]
                    for order in (1, 2, 3)
                ]
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
        for ring in range(MAX_RING + 1):
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
        return -np.log(self._density(feature, 0, condition, noise))

    def rows(self, feature: str, conditions: Iterable[Key | None]) -> NDArray[np.int64]:
        """Where :meth:`cost_table` has what a feature costs under conditions.

        None: it costs nothing.
        """
        rows = self._rows(feature)
        return np.array([rows.setdefault(c, len(rows)) for c in conditions], dtype=np.int64)

    def cost_table(self, feature: str, noise: float) -> Array:
        """What a feature costs at a noise, shape (n_rows, n_bins)."""
        key, rows = ("table", feature, noise), self._rows(feature)
        table: Array = self._cache.get(key, np.zeros((1, AXES[feature].n_bins)))
        if len(rows) > len(table):
            missing = [condition for condition in rows if condition is not None][len(table) - 1 :]
            new = [self.feature_costs(feature, condition, noise) for condition in missing]
            table = self._cache[key] = np.concatenate([table, new])
        return table

    def _rows(self, feature: str) -> dict[Key | None, int]:
        rows: dict[Key | None, int] = self._cache.setdefault(("rows", feature), {None: 0})
        return rows

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
        axis, coarser = AXES[feature], _COARSER[feature]
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
            self._cache[key] = AXES[feature].kernel(noise)
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
    histograms: dict[str, dict[Key, Counter[int]]] = {n: defaultdict(Counter) for n in AXES}
    n_molecules = 0

    def count(feature: str, conditions: Iterable[Key], values: Array) -> None:
        bins = AXES[feature].bins(np.nan_to_num(values)).tolist()
        for condition, bin_, is_absent in zip(conditions, bins, np.isnan(values), strict=True):
            if not is_absent:
                histograms[feature][condition][bin_] += 1

    for molecule in molecules:
        described = _describe(molecule)
        if described is None:
            continue
        n_molecules += 1
        skeleton, states, orders = described
        atom_rings, bond_rings = skeleton.ring_sizes
        in_rings = list(zip(states, atom_rings, strict=True))
        for state, ring in in_rings:
            atoms[state.z, state.degree, ring][state] += 1
        count("angle", in_rings, skeleton.angles)
        count("height", in_rings, skeleton.heights)
        keys = [
            (*sorted((states[i], states[j])), order)
            for (i, j), order in zip(skeleton.pairs, orders, strict=True)
        ]
        bonds.update(keys)
        count("length", keys, skeleton.lengths)
        twisted = [(*key, ring) for key, ring in zip(keys, bond_rings, strict=True)]
        count("twist", twisted, skeleton.twists)
        relative = relative_distances(skeleton.atomic_numbers, skeleton.positions)
        relative[tuple(np.transpose(skeleton.pairs))] = np.inf
        gaps = relative[np.triu(relative < REACH_FACTOR)]
        count("gap", [()] * len(gaps), gaps)
    if n_molecules == 0:
        raise InputError(
            "expected molecules with 3D coordinates and known bonds, got none that can be used"
        )
    return BondStatistics(
        n_molecules, dict(atoms), bonds, {name: dict(table) for name, table in histograms.items()}
    )


def _describe(molecule: Chem.Mol) -> tuple[Skeleton, list[State], list[int]] | None:
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
        if z not in VALENCES or state not in possible_states(z, degree):
            return None
        states.append(state)
    positions = mol.GetConformer().GetPositions()
    skeleton = Skeleton.build([state.z for state in states], positions, order_of)
    return skeleton, states, [order_of[pair] for pair in skeleton.pairs]
