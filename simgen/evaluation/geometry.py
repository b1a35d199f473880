"""Bond lengths and angles of a set of molecules, by kind, beside those of the reference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import rdMolTransforms
from scipy.stats import wasserstein_distance

from simgen.known import BOND_SYMBOLS

MIN_VALUES = 10
"""Kinds that occur less often, here or in the reference, are not compared."""

Values = dict[str, NDArray[np.float64]]


def _symbol(bond: Chem.Bond) -> str:
    return BOND_SYMBOLS.get(bond.GetBondType(), "~")


def _kind(*words: str) -> str:
    """Join atoms and bonds of a bond or angle, in whichever direction comes first."""
    return min("".join(words), "".join(reversed(words)))


def _atom(atom: Chem.Atom) -> str:
    # The number of neighbours tells an ester from an ether: else what differs is mostly how often
    # each occurs.
    return f"{atom.GetSymbol()}{atom.GetTotalDegree()}" if atom.GetAtomicNum() > 1 else "H"


def measure(mols: Iterable[Chem.Mol]) -> tuple[Values, Values]:
    """Bond lengths in angstrom and angles in degrees of molecules with coordinates.

    Returns
    -------
    tuple of dict
        Lengths by kind, such as ``C3=O1``, elements with their number of neighbours; angles between
        heavy atoms by kind, such as ``C-C3=O``.
    """
    lengths: dict[str, list[float]] = defaultdict(list)
    angles: dict[str, list[float]] = defaultdict(list)
    for mol in mols:
        conformer = mol.GetConformer()
        for bond in mol.GetBonds():
            a, b = bond.GetBeginAtom(), bond.GetEndAtom()
            length = rdMolTransforms.GetBondLength(conformer, a.GetIdx(), b.GetIdx())
            lengths[_kind(_atom(a), _symbol(bond), _atom(b))].append(length)
        for atom in mol.GetAtoms():
            arms = [(_symbol(bond), bond.GetOtherAtom(atom)) for bond in atom.GetBonds()]
            arms = [(symbol, end) for symbol, end in arms if end.GetAtomicNum() > 1]
            for (first, a), (second, b) in combinations(arms, 2):
                kind = _kind(a.GetSymbol(), first, _atom(atom), second, b.GetSymbol())
                places = a.GetIdx(), atom.GetIdx(), b.GetIdx()
                angles[kind].append(rdMolTransforms.GetAngleDeg(conformer, *places))
    return _arrays(lengths), _arrays(angles)


def _arrays(values: Mapping[str, list[float]]) -> Values:
    return {kind: np.array(numbers) for kind, numbers in sorted(values.items())}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One kind of bond or angle, here and in the reference; angstrom or degrees.

    ``distance`` is the first Wasserstein distance of the two distributions: how far values must be
    moved on average to turn one into the other.
    """

    kind: str
    n: int
    n_reference: int
    mean: float
    mean_reference: float
    distance: float


def compare(values: Values, reference: Values) -> list[Comparison]:
    """Compare the kinds that occur often enough in both, the most frequent first."""
    common = [
        kind
        for kind in values
        if len(values[kind]) >= MIN_VALUES and len(reference.get(kind, ())) >= MIN_VALUES
    ]
    return [
        Comparison(
            kind=kind,
            n=len(values[kind]),
            n_reference=len(reference[kind]),
            mean=float(values[kind].mean()),
            mean_reference=float(reference[kind].mean()),
            distance=float(wasserstein_distance(values[kind], reference[kind])),
        )
        for kind in sorted(common, key=lambda kind: (-len(values[kind]), kind))
    ]
