"""Chemistry that real molecules show: valences, and environments of radius one.

The bundled collections (:mod:`simgen.data.collections`) are where what is *known* comes from. The
result is shipped with the package, so that judging needs neither their files nor the minutes that
reading them takes; :func:`write_known` makes the file again.

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
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from rdkit import Chem, rdBase

from simgen.data.collections import load_collections
from simgen.io import atomic_path

Valence = tuple[str, int, int, int]
"""Element, formal charge, number of aromatic bonds, valence of the other bonds."""

_FILE = "known.json.gz"

_BONDS = {
    Chem.BondType.SINGLE: "-",
    Chem.BondType.DOUBLE: "=",
    Chem.BondType.TRIPLE: "#",
    Chem.BondType.AROMATIC: ":",
}


@dataclass(frozen=True, slots=True)
class KnownChemistry:
    """What a collection of molecules shows.

    Attributes
    ----------
    valences : frozenset of tuple
        See :data:`Valence`.
    environments : frozenset of str
        See :func:`environment`.
    n_molecules : int
        How many molecules were looked at.
    """

    valences: frozenset[Valence]
    environments: frozenset[str]
    n_molecules: int

    def allows(self, valence: Valence) -> bool:
        """Whether an atom with this valence is known.

        Elements that no molecule of the collections has, such as iodine, are judged by the neutral
        valences of RDKit's periodic table.
        """
        symbol, charge, n_aromatic, other = valence
        if any(symbol == known for known, *_ in self.valences):
            return valence in self.valences
        allowed = list(Chem.GetPeriodicTable().GetValenceList(symbol))
        return charge == 0 and n_aromatic == 0 and (other in allowed or -1 in allowed)


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
            symbol = _BONDS.get(bond.GetBondType(), str(bond.GetBondType()))
            neighbours.append(f"({symbol}{_word(other)})")
    return _word(atom) + "".join(sorted(neighbours))


def environments_of(mol: Chem.Mol) -> tuple[str, ...]:
    """:func:`environment` of each heavy atom of a sanitised molecule."""
    return tuple(environment(atom) for atom in mol.GetAtoms() if atom.GetAtomicNum() > 1)


def collect(smiles: Iterable[str]) -> KnownChemistry:
    """Look at molecules given as SMILES; what RDKit cannot read is passed over."""
    valences: set[Valence] = set()
    environments: set[str] = set()
    n_molecules = 0
    with rdBase.BlockLogs():
        mols = (Chem.MolFromSmiles(text) for text in smiles)
        for mol in mols:
            if mol is None:
                continue
            n_molecules += 1
            environments.update(environments_of(mol))
            valences.update(valence_of(atom) for atom in mol.GetAtoms())
            if any(atom.GetTotalNumHs() for atom in mol.GetAtoms()):
                valences.add(("H", 0, 0, 1))
    return KnownChemistry(frozenset(valences), frozenset(environments), n_molecules)


@lru_cache(maxsize=1)
def load_known() -> KnownChemistry:
    """Read the shipped file: what the bundled collections show, molecules of any size."""
    data = json.loads(gzip.decompress((files("simgen.evaluation") / _FILE).read_bytes()))
    return KnownChemistry(
        valences=frozenset((str(s), int(q), int(a), int(v)) for s, q, a, v in data["valences"]),
        environments=frozenset(data["environments"]),
        n_molecules=int(data["n_molecules"]),
    )


def write_known(path: Path) -> KnownChemistry:
    """Make the shipped file: all molecules of the collections, of 1 to 1,000 heavy atoms."""
    known = collect(molecule.smiles for molecule in load_collections(1, 1000))
    data = {
        "n_molecules": known.n_molecules,
        "valences": sorted(known.valences),
        "environments": sorted(known.environments),
    }
    # mtime=0: the same molecules give the same bytes.
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(json.dumps(data).encode(), 9, mtime=0))
    return known
