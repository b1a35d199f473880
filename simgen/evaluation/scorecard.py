"""A set of attempts in figures: every attempt counts, and every figure has its uncertainty."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem.QED import qed

from simgen.evaluation import statistics
from simgen.evaluation.geometry import Comparison, Values, compare, measure
from simgen.evaluation.molecule import (
    CHECKS,
    MoleculeScore,
    count_cumulated,
    count_heteroatom_rows,
    ring_sizes,
)
from simgen.known import environments_of
from simgen.reference import ReferenceSet
from simgen.validation import molecule_key, sa_score

MAX_DIVERSITY = 2000
"""Most molecules that diversity is computed over; of more, so many at equal intervals are taken."""

MAX_SIZES = 12
"""Most rows of the table by size; of more sizes, neighbours share a row."""

STRAINED_RINGS = (3, 4)
"""Sizes of rings whose share is reported."""


class Kind(StrEnum):
    """What sort of number a figure is."""

    SHARE = "share"
    MEDIAN = "median"
    MEAN = "mean"
    FRACTION = "fraction"
    """A mean of fractions."""
    NUMBER = "number"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a set.

    Attributes
    ----------
    name, label : str
        For programs and for people.
    kind : Kind
        What sort of number it is.
    value : float
        Infinite for the median of an energy that more than half of the attempts do not have; NaN
        where nothing could be counted.
    low, high : float or None
        95 % interval; None for numbers that resampling would distort.
    n : int
        Attempts or molecules that it is about: all attempts, unless the label says otherwise.
    reference : float or None
        The same for the reference set, where that can be.
    """

    name: str
    label: str
    kind: Kind
    value: float
    low: float | None
    high: float | None
    n: int
    reference: float | None = None


@dataclass(frozen=True, eq=False)
class Reference:
    """What a set is compared with.

    Attributes
    ----------
    name : str
        Of the set, or its file.
    mols : tuple of Mol
        Molecules with bonds and coordinates, hydrogens included.
    """

    name: str
    mols: tuple[Chem.Mol, ...]

    @classmethod
    def of(cls, reference: ReferenceSet) -> Reference:
        """Take the molecules with bonds of a reference set."""
        mols = tuple(m.mol for m in reference.molecules if m.mol is not None)
        return cls(reference.name, mols)

    @cached_property
    def keys(self) -> frozenset[str]:
        """Bond graphs of its molecules."""
        return frozenset(molecule_key(mol) for mol in self.mols)

    @cached_property
    def geometry(self) -> tuple[Values, Values]:
        """Bond lengths and angles."""
        return measure(self.mols)

    @cached_property
    def bare(self) -> tuple[Chem.Mol, ...]:
        """Its molecules without hydrogen atoms."""
        return tuple(Chem.RemoveHs(mol) for mol in self.mols)

    @cached_property
    def sa_scores(self) -> NDArray[np.float64]:
        """Synthetic accessibility of each molecule."""
        scores = (sa_score(mol) for mol in self.bare)
        return np.array([s for s in scores if s is not None], dtype=np.float64)

    @cached_property
    def qeds(self) -> NDArray[np.float64]:
        """Drug-likeness of each molecule."""
        return np.array([qed(mol) for mol in self.bare], dtype=np.float64)  # type: ignore[no-untyped-call]

    @cached_property
    def environments(self) -> Counter[str]:
        """How often each environment occurs."""
        return Counter(word for mol in self.mols for word in environments_of(mol))


@dataclass(frozen=True, slots=True)
class SizeRow:
    """Attempts of one size, or of neighbouring sizes; shares are of these attempts."""

    heavy_atoms: str
    n_attempts: int
    valid: float
    valid_low: float
    valid_high: float
    posebusters: float
    relaxation_energy: float
    known_environments: float
    all_known: float


@dataclass(frozen=True, slots=True)
class FaultCount:
    """In how many attempts a fault occurs, and what was found in the first of them."""

    name: str
    n_attempts: int
    example: str


@dataclass(frozen=True, slots=True, eq=False)
class Scorecard:
    """A set of attempts in figures.

    Attributes
    ----------
    n_attempts : int
        All attempts, those without a molecule included.
    reference : str
        What it is compared with.
    figures : tuple of Figure
        In the order in which they are shown.
    by_size : tuple of SizeRow
        Ascending; attempts of unknown size last.
    faults : tuple of FaultCount
        The most frequent first.
    unknown_environments : dict of str to int
        The most frequent environments that are not known.
    lengths, angles : tuple of Comparison
        Bond lengths and angles beside those of the reference.
    """

    n_attempts: int
    reference: str
    figures: tuple[Figure, ...]
    by_size: tuple[SizeRow, ...]
    faults: tuple[FaultCount, ...]
    unknown_environments: dict[str, int]
    lengths: tuple[Comparison, ...]
    angles: tuple[Comparison, ...]

    def __getitem__(self, name: str) -> Figure:
        """Return the figure of that name."""
        return next(figure for figure in self.figures if figure.name == name)


def summarise(scores: Sequence[MoleculeScore], reference: Reference) -> Scorecard:
    """Put a set of attempts into figures.

    Parameters
    ----------
    scores : sequence of MoleculeScore
        At least one.
    reference : Reference
        What novelty, coverage and distributions refer to.
    """
    lengths, angles = measure(drawn(scores))
    unknown = Counter(
        word
        for score in scores
        if score.chemistry is not None
        for word in score.chemistry.unknown_environments
    )
    return Scorecard(
        n_attempts=len(scores),
        reference=reference.name,
        figures=tuple(_figures(scores, reference)),
        by_size=tuple(_by_size(scores)),
        faults=_faults(scores),
        unknown_environments=dict(unknown.most_common(10)),
        lengths=tuple(compare(lengths, reference.geometry[0])),
        angles=tuple(compare(angles, reference.geometry[1])),
    )


def drawn(scores: Iterable[MoleculeScore]) -> Iterator[Chem.Mol]:
    """Yield the molecules that have coordinates."""
    for score in scores:
        if score.chemistry is not None and score.passes("coordinates"):
            yield score.chemistry.mol


def _faults(scores: Iterable[MoleculeScore]) -> tuple[FaultCount, ...]:
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for score in scores:
        faults = {fault.name: fault.detail for fault in score.faults}
        counts.update(faults.keys())
        for name, detail in faults.items():
            examples.setdefault(name, detail)
    return tuple(FaultCount(name, n, examples[name]) for name, n in counts.most_common())


def _figures(scores: Sequence[MoleculeScore], reference: Reference) -> list[Figure]:
    molecules = [score.chemistry for score in scores if score.chemistry is not None]
    valid_keys = [
        score.chemistry.key if score.valid and score.chemistry is not None else None
        for score in scores
    ]
    first: set[str] = set()
    is_unique, is_novel = [], []
    for key in valid_keys:
        is_unique.append(key is not None and key not in first)
        is_novel.append(is_unique[-1] and key not in reference.keys)
        if key is not None:
            first.add(key)
    energies = [score.gfn2.energy for score in scores]
    rmsds = [score.gfn2.rmsd for score in scores]
    known = [0.0 if s.chemistry is None else s.chemistry.known_fraction for s in scores]

    def share(
        name: str, label: str, flags: Sequence[bool], reference: float | None = None
    ) -> Figure:
        n_passed, total = sum(flags), len(flags)
        if total == 0:
            return Figure(name, label, Kind.SHARE, math.nan, None, None, 0, reference)
        low, high = statistics.share_interval(n_passed, total)
        return Figure(name, label, Kind.SHARE, n_passed / total, low, high, total, reference)

    def number(
        name: str, label: str, kind: Kind, values: Sequence[float], reference: float | None = None
    ) -> Figure:
        if not values:
            return Figure(name, label, kind, math.nan, None, None, 0, reference)
        statistic = statistics.median if kind is Kind.MEDIAN else statistics.mean
        low, high = statistics.bootstrap_interval(values, statistic)
        return Figure(name, label, kind, statistic(values), low, high, len(values), reference)

    def of_reference(property_of: Callable[[Chem.Mol], bool]) -> float | None:
        flags = [property_of(mol) for mol in reference.bare]
        return float(np.mean(flags)) if flags else None

    def chemistry_share(name: str, label: str, of: Callable[[Chem.Mol], bool]) -> Figure:
        flags = [of(chemistry.mol) for chemistry in molecules if chemistry.key is not None]
        return share(name, f"{label} (of the molecules)", flags, of_reference(of))

    check_labels = {
        "known valences": "valences known",
        "coordinates": "3D coordinates",
        "hydrogens": "all hydrogens there",
        "bonds as drawn": "bonds as drawn seen in the geometry",
        "bonds re-perceived": "bonds re-perceived from coordinates agree",
    }
    sa_scores = [c.sa_score for c in molecules if c.sa_score is not None]
    qeds = [c.qed for c in molecules if c.qed is not None]
    figures = [
        share("valid", "valid", [score.valid for score in scores]),
        share("posebusters", "PoseBusters, all tests", [s.passes_posebusters for s in scores]),
        number("relaxation_energy", "GFN2 relaxation, kcal/mol", Kind.MEDIAN, energies),
        number("rmsd", "GFN2 relaxation, heavy-atom RMSD, Å", Kind.MEDIAN, rmsds),
        share("gfn2_converged", "GFN2 relaxation converged", [s.gfn2.converged for s in scores]),
        share("gfn2_graph_kept", "bonds kept by GFN2", [s.gfn2.graph_kept for s in scores]),
        number("known_environments", "environments known", Kind.FRACTION, known),
        share("all_known", "no unknown environment", [fraction == 1 for fraction in known]),
        share("readable", "readable, with bonds", [s.chemistry is not None for s in scores]),
    ]
    # Of a file without bonds the perceived ones cannot be compared with its own.
    asked = [
        name
        for name in CHECKS
        if name != "bonds re-perceived" or any(name in c.checks for c in molecules)
    ]
    figures += [
        share(
            name.replace(" ", "_"), check_labels.get(name, name), [s.passes(name) for s in scores]
        )
        for name in asked
    ]
    figures += [
        share(
            "unique",
            "unique (of the valid)",
            [u for u, k in zip(is_unique, valid_keys, strict=True) if k],
        ),
        share(
            "novel",
            "novel (of the unique)",
            [v for v, u in zip(is_novel, is_unique, strict=True) if u],
        ),
        share("valid_unique_novel", "valid, unique and novel", is_novel),
        *_diversity(scores),
        _coverage(scores, reference),
        number(
            "sa_score",
            "SA score (of the molecules)",
            Kind.MEAN,
            sa_scores,
            _mean(reference.sa_scores),
        ),
        number("qed", "QED (of the molecules)", Kind.MEAN, qeds, _mean(reference.qeds)),
        share(
            "charged_atoms",
            "charged atoms (of the molecules)",
            [c.n_charged_atoms > 0 for c in molecules],
            of_reference(lambda mol: any(a.GetFormalCharge() for a in mol.GetAtoms())),
        ),
        chemistry_share("cumulated", "cumulated double bonds", lambda m: count_cumulated(m) > 0),
        chemistry_share(
            "heteroatom_rows", "rows of heteroatoms", lambda m: count_heteroatom_rows(m) > 0
        ),
        chemistry_share("rings", "rings", lambda m: bool(ring_sizes(m))),
        chemistry_share(
            "aromatic", "aromatic rings", lambda m: any(a.GetIsAromatic() for a in m.GetAtoms())
        ),
        chemistry_share(
            "strained_rings",
            "rings of 3 or 4 atoms",
            lambda m: any(size in STRAINED_RINGS for size in ring_sizes(m)),
        ),
    ]
    return figures


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None


def _diversity(scores: Sequence[MoleculeScore]) -> list[Figure]:
    mols = [
        Chem.RemoveHs(score.chemistry.mol)
        for score in scores
        if score.valid and score.chemistry is not None
    ]
    if len(mols) > MAX_DIVERSITY:
        mols = [mols[i] for i in np.linspace(0, len(mols) - 1, MAX_DIVERSITY).astype(int)]
    labels = (
        ("diversity", "mean Tanimoto distance (of the valid)"),
        (
            "vendi",
            "Vendi score (of the valid)",
        ),
    )
    if len(mols) < 2:
        return [Figure(*label, Kind.NUMBER, math.nan, None, None, len(mols)) for label in labels]
    similarities = statistics.tanimoto_similarities(mols)
    low, high = statistics.mean_distance_interval(similarities)
    # No interval for the Vendi score: the copies that resampling makes lower it.
    return [
        Figure(
            *labels[0], Kind.NUMBER, statistics.mean_distance(similarities), low, high, len(mols)
        ),
        Figure(
            *labels[1], Kind.NUMBER, statistics.vendi_score(similarities), None, None, len(mols)
        ),
    ]


def _coverage(scores: Sequence[MoleculeScore], reference: Reference) -> Figure:
    """Share of the reference's atoms whose environment occurs in a valid molecule."""
    seen = {
        word
        for score in scores
        if score.valid and score.chemistry is not None
        for word in score.chemistry.environments
    }
    n_atoms = reference.environments.total()
    covered = sum(count for word, count in reference.environments.items() if word in seen)
    value = covered / n_atoms if n_atoms else math.nan
    label = "reference atoms whose environment is made"
    return Figure("coverage", label, Kind.FRACTION, value, None, None, n_atoms)


def _by_size(scores: Sequence[MoleculeScore]) -> list[SizeRow]:
    sizes = sorted({score.n_heavy for score in scores if score.n_heavy is not None})
    rows = []
    for group in _groups(sizes):
        label = str(group[0]) if group[0] == group[-1] else f"{group[0]}-{group[-1]}"
        rows.append(_size_row(label, [s for s in scores if s.n_heavy in group]))
    if unknown := [score for score in scores if score.n_heavy is None]:
        rows.append(_size_row("unknown", unknown))
    return rows


def _groups(sizes: Sequence[int]) -> list[list[int]]:
    """Put neighbouring sizes together, so that there are few enough groups."""
    if not sizes:
        return []
    width = math.ceil((sizes[-1] - sizes[0] + 1) / MAX_SIZES)
    groups: dict[int, list[int]] = {}
    for size in sizes:
        groups.setdefault((size - sizes[0]) // width, []).append(size)
    return list(groups.values())


def _size_row(label: str, scores: Sequence[MoleculeScore]) -> SizeRow:
    n = len(scores)
    n_valid = sum(score.valid for score in scores)
    known = [0.0 if s.chemistry is None else s.chemistry.known_fraction for s in scores]
    low, high = statistics.share_interval(n_valid, n)
    return SizeRow(
        heavy_atoms=label,
        n_attempts=n,
        valid=n_valid / n,
        valid_low=low,
        valid_high=high,
        posebusters=sum(score.passes_posebusters for score in scores) / n,
        relaxation_energy=statistics.median([score.gfn2.energy for score in scores]),
        known_environments=statistics.mean(known),
        all_known=sum(fraction == 1 for fraction in known) / n,
    )
