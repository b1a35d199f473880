"""Chemistry that real molecules show: valences, environments of radius one, and ring systems.

The bundled collections (:mod:`simgen.data.collections`) are where what is *known* comes from. The
result is shipped with the package, so that judging needs neither their files nor the minutes that
reading them takes; :func:`simgen.data.known.write_known` makes the file again.

References
----------
I. Nikitin et al., "GEOM-Drugs revisited", arXiv:2505.00169 (2025): valences as tuples, since a
single number per atom hides errors of aromatic atoms. D. Rogers, M. Hahn, J. Chem. Inf. Model. 50,
742 (2010): the circular environments. The words for them are ours, and exact, where a fingerprint
is a hash that may change with the version of RDKit.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files

from rdkit import Chem

Valence = tuple[str, int, int, int]
"""Element, formal charge, number of aromatic bonds, valence of the other bonds."""

FILE = "known.json.gz"
LARGEST_RING = 11
"""Larger rings, macrocycles, are no part of a ring system: they may have any size."""
COMMON_SHARE = 0.02
"""Share of molecules that have something from which on it is common among them."""

BOND_SYMBOLS = {
    Chem.BondType.SINGLE: "-",
    Chem.BondType.DOUBLE: "=",
    Chem.BondType.TRIPLE: "#",
    Chem.BondType.AROMATIC: ":",
}
"""As SMILES has them."""


@dataclass(frozen=True)
class KnownChemistry:
    """What a collection of molecules shows.

    Attributes
    ----------
    valences : frozenset of tuple
        See :data:`Valence`.
    environments : frozenset of str
        See :func:`environment`.
    ring_systems : frozenset of str
        See :func:`ring_systems_of`.
    n_molecules : int
        How many molecules were looked at.
    """

    valences: frozenset[Valence]
    environments: frozenset[str]
    ring_systems: frozenset[str]
    n_molecules: int

    def allows(self, valence: Valence) -> bool:
        """Whether an atom with this valence is known.

        Elements that no molecule of the collections has, such as iodine, are judged by the neutral
        valences of RDKit's periodic table.
        """
        symbol, charge, n_aromatic, other = valence
        if symbol in self.elements:
            return valence in self.valences
        allowed = list(Chem.GetPeriodicTable().GetValenceList(symbol))
        return charge == 0 and n_aromatic == 0 and (other in allowed or -1 in allowed)

    def __or__(self, other: KnownChemistry) -> KnownChemistry:
        """What one collection or the other shows."""
        return KnownChemistry(
            self.valences | other.valences,
            self.environments | other.environments,
            self.ring_systems | other.ring_systems,
            self.n_molecules + other.n_molecules,
        )

    @cached_property
    def elements(self) -> frozenset[str]:
        """Symbols of the elements that occur."""
        return frozenset(symbol for symbol, *_ in self.valences)

    def unknown_atoms(self, mol: Chem.Mol) -> set[int]:
        """Heavy atoms of a sanitised molecule whose environment or ring system is not known.

        Nothing is said about the surroundings of elements that no molecule of the collections has.
        """
        foreign = {a.GetIdx() for a in mol.GetAtoms() if a.GetSymbol() not in self.elements}
        unknown = {
            atom.GetIdx()
            for atom in mol.GetAtoms()
            if atom.GetAtomicNum() > 1
            and environment(atom) not in self.environments
            and not foreign.intersection({atom.GetIdx(), *_neighbours(atom)})
        }
        for word, atoms in ring_systems_of(mol):
            if word not in self.ring_systems:
                unknown |= atoms
        return unknown


def valence_of(atom: Chem.Atom) -> Valence:
    """Valence of an atom of a sanitised molecule; hydrogens count, as atoms or implied.

    Examples
    --------
    >>> valence_of(Chem.MolFromSmiles("c1cc[nH]c1").GetAtomWithIdx(3))
    ('N', 0, 2, 1)
    """
    bonds = atom.GetBonds()
    other = sum(bond.GetBondTypeAsDouble() for bond in bonds if not bond.GetIsAromatic())
    n_aromatic = sum(bond.GetIsAromatic() for bond in bonds)
    return atom.GetSymbol(), atom.GetFormalCharge(), n_aromatic, int(other) + atom.GetTotalNumHs()


def _word(atom: Chem.Atom) -> str:
    """Element, number of neighbours, hydrogens, charge, and whether it is in a ring."""
    n_hydrogens = atom.GetTotalNumHs(includeNeighbors=True)
    charge = atom.GetFormalCharge()
    return (
        f"{atom.GetSymbol()}{atom.GetTotalDegree()}"
        + (f"h{n_hydrogens}" if n_hydrogens else "")
        + (f"{charge:+d}" if charge else "")
        + ("r" if atom.IsInRing() else "")
    )


def environment(atom: Chem.Atom) -> str:
    """Describe a heavy atom and its heavy neighbours, as a Morgan fingerprint of radius 1 does.

    Each atom is its element and number of neighbours, ``h`` and the number of hydrogens, the
    charge, and ``r`` in a ring; before a neighbour stands its bond (``-``, ``=``, ``#``, ``:`` for
    aromatic).

    Examples
    --------
    >>> environment(Chem.MolFromSmiles("CC=O").GetAtomWithIdx(1))
    'C3h1(-C4h3)(=O1)'
    """
    neighbours = []
    for bond in atom.GetBonds():
        other = bond.GetOtherAtom(atom)
        if other.GetAtomicNum() > 1:
            symbol = BOND_SYMBOLS.get(bond.GetBondType(), str(bond.GetBondType()))
            neighbours.append(f"({symbol}{_word(other)})")
    return _word(atom) + "".join(sorted(neighbours))


def environments_of(mol: Chem.Mol) -> tuple[str, ...]:
    """:func:`environment` of each heavy atom of a sanitised molecule."""
    return tuple(environment(atom) for atom in mol.GetAtoms() if atom.GetAtomicNum() > 1)


def _neighbours(atom: Chem.Atom) -> list[int]:
    return [other.GetIdx() for other in atom.GetNeighbors()]


def ring_systems_of(mol: Chem.Mol) -> list[tuple[str, set[int]]]:
    """Rings that share atoms, of up to :data:`LARGEST_RING` atoms each, as one system.

    Each is its skeleton, whatever the elements and bond orders, as a SMILES of carbons, and its
    atoms.

    Examples
    --------
    >>> [word for word, _ in ring_systems_of(Chem.MolFromSmiles("c1ccc2occc2c1CC1CN1"))]
    ['C1CC1', 'C1CCC2CCCC2C1']
    """
    systems: list[set[int]] = []
    for ring in _rings(mol):
        if len(ring) > LARGEST_RING:
            continue
        apart = [system for system in systems if system.isdisjoint(ring)]
        joined = [system for system in systems if not system.isdisjoint(ring)]
        systems = [*apart, set(ring).union(*joined)]
    return sorted((_skeleton(mol, system), system) for system in systems)


def _skeleton(mol: Chem.Mol, atoms: set[int]) -> str:
    """SMILES of the ring bonds among some atoms, all of them single bonds of carbon."""
    skeleton = Chem.RWMol()
    place = {atom: skeleton.AddAtom(Chem.Atom(6)) for atom in sorted(atoms)}
    for bond in mol.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        if i in atoms and j in atoms and bond.IsInRing():
            skeleton.AddBond(place[i], place[j], Chem.BondType.SINGLE)
    return Chem.MolToSmiles(skeleton)


@dataclass(frozen=True)
class CommonFeatures:
    """What is common among molecules; the rest is known, but rare. By default all is common.

    Attributes
    ----------
    ring_sizes : frozenset of int, optional
        Sizes of rings; None for any.
    crowded_bonds : bool
        Whether double bonds are (:func:`crowded_bonds`).
    """

    ring_sizes: frozenset[int] | None = None
    crowded_bonds: bool = True

    @classmethod
    def of(cls, mols: Sequence[Chem.Mol]) -> CommonFeatures:
        """What at least one in fifty of these molecules has.

        Examples
        --------
        >>> mols = [Chem.MolFromSmiles(smiles) for smiles in ("c1ccccc1C1CC1", "CCO")]
        >>> common = CommonFeatures.of(mols)
        >>> sorted(common.ring_sizes), common.crowded_bonds
        ([3, 6], False)
        """
        n_needed = COMMON_SHARE * len(mols)
        sizes = Counter(size for mol in mols for size in set(map(len, _rings(mol))))
        n_crowded = sum(bool(crowded_bonds(mol)) for mol in mols)
        return cls(
            frozenset(size for size, n in sizes.items() if n >= n_needed), n_crowded >= n_needed
        )

    def rare_atoms(self, mol: Chem.Mol, given: Set[int] = frozenset()) -> set[int]:
        """Atoms of a molecule in what is not common; rings of ``given`` atoms are what they are."""
        rare: set[int] = set()
        if self.ring_sizes is not None:
            for ring in _rings(mol):
                if len(ring) not in self.ring_sizes and not given >= set(ring):
                    rare.update(ring)
        if not self.crowded_bonds:
            rare.update(*crowded_bonds(mol))
        return rare


def crowded_bonds(mol: Chem.Mol) -> list[tuple[int, int]]:
    """Double bonds both of whose atoms have two more heavy neighbours: few can stay flat.

    Bonds of aromatic rings are none.

    Examples
    --------
    >>> crowded_bonds(Chem.MolFromSmiles("CC(C)=C(C)C")), crowded_bonds(Chem.MolFromSmiles("CC=O"))
    ([(1, 3)], [])
    """
    return [
        (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())
        for bond in mol.GetBonds()
        if bond.GetBondType() == Chem.BondType.DOUBLE
        and _n_heavy_neighbours(bond.GetBeginAtom()) > 2
        and _n_heavy_neighbours(bond.GetEndAtom()) > 2
    ]


def _n_heavy_neighbours(atom: Chem.Atom) -> int:
    return sum(other.GetAtomicNum() > 1 for other in atom.GetNeighbors())


def _rings(mol: Chem.Mol) -> tuple[tuple[int, ...], ...]:
    rings: tuple[tuple[int, ...], ...] = mol.GetRingInfo().AtomRings()
    return rings


def collect(mols: Iterable[Chem.Mol]) -> KnownChemistry:
    """Look at sanitised molecules."""
    valences: set[Valence] = set()
    environments: set[str] = set()
    ring_systems: set[str] = set()
    n_molecules = 0
    for mol in mols:
        n_molecules += 1
        environments.update(environments_of(mol))
        ring_systems.update(word for word, _ in ring_systems_of(mol))
        valences.update(valence_of(atom) for atom in mol.GetAtoms())
        if any(atom.GetTotalNumHs() for atom in mol.GetAtoms()):
            valences.add(("H", 0, 0, 1))
    return KnownChemistry(
        frozenset(valences), frozenset(environments), frozenset(ring_systems), n_molecules
    )


@lru_cache(maxsize=1)
def load_known() -> KnownChemistry:
    """Read the shipped file: what the bundled collections show, molecules of any size."""
    data = json.loads(gzip.decompress((files("simgen") / FILE).read_bytes()))
    return KnownChemistry(
        valences=frozenset((str(s), int(q), int(a), int(v)) for s, q, a, v in data["valences"]),
        environments=frozenset(data["environments"]),
        ring_systems=frozenset(data["ring_systems"]),
        n_molecules=int(data["n_molecules"]),
    )
