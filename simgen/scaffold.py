"""Scaffolds: atoms that are there already, and that molecules grow from or are linked through."""

from __future__ import annotations

import base64
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import rdFMCS

from simgen.elements import SYMBOLS
from simgen.errors import InputError
from simgen.finishing.bonds import VALENCES, KnownAtom, KnownBonds, assign_bonds
from simgen.finishing.connectivity import BOND_FACTOR, bonded_pairs
from simgen.io import Record, perceive_bonds, read_molecules
from simgen.obstacles import Obstacles
from simgen.priors import Alternatives, AtomPrior, Gaussian, PointCloud, Transformed, Union
from simgen.schedules import DIAMETER_PER_SQRT_ATOM

SCAFFOLD_INDEX = "scaffold_index"
"""Property of the atoms of finished molecules that come from a scaffold: their index in it."""

BOND_LENGTH = 1.5
"""Length of a new bond between heavy atoms, angstrom, as far as one can say beforehand."""
CONTACT_TO_HYDROGEN = 1.9
"""New heavy atoms stay farther than this from hydrogens that stay, angstrom: those of a common
neighbour are at 2.1."""
CONTACT_TO_CLOSED = 2.2
"""New heavy atoms stay farther than this from heavy atoms that they cannot bond to, angstrom:
those of a common neighbour are at 2.4 to 2.5."""
REACH_PER_ATOM = 1.4
"""How far an atom carries a chain, angstrom: more than 1.28, as in a chain of all-trans carbon,
since the ends can lean towards each other."""
EXTRA_LINKER_ATOMS = 3
"""Linkers of unknown size have up to this many atoms more than the shortest that can reach."""

_POINTS_PER_ANGSTROM = 4
_OVERLAP = 0.7
"""Two fragments overlap where atoms are closer than this multiple of the covalent radii."""


@dataclass(frozen=True, eq=False)
class Scaffold:
    """Atoms that stay where they are, in one fragment or several, and where they may grow.

    Use :meth:`from_mol` or :meth:`from_file`.

    Attributes
    ----------
    mol : Chem.Mol
        All atoms, with hydrogens and a 3D conformer, Kekulé structure.
    removable : mapping of int to tuple of int
        By the heavy atom that may grow: its hydrogens and placeholders (R groups) that new atoms
        can take the place of.
    alternatives : bool
        Whether each molecule grows at one of these atoms, and not at all of them.
    """

    mol: Chem.Mol
    removable: Mapping[int, tuple[int, ...]]
    alternatives: bool

    @classmethod
    def from_mol(
        cls, mol: Chem.Mol, grow_at: Sequence[int] | str | None = None, *, name: str = "scaffold"
    ) -> Scaffold:
        """Make a scaffold of a molecule or of several fragments.

        Parameters
        ----------
        mol : Chem.Mol
            With a 3D conformer. Hydrogens that are missing are added; placeholders, ``*``, mark
            atoms to grow at.
        grow_at : sequence of int or str, optional
            Indices of the atoms to grow at, from 0: a heavy atom with hydrogens, or one of its
            hydrogens, which is then the one to be replaced. Or a SMARTS pattern, whose first atom
            counts, in all its matches. By default the atoms with placeholders; where there are
            none, the facing ends of the fragments to be linked; of a single fragment any atom with
            hydrogens, one for each molecule.
        name : str
            What to call it in error messages.

        Raises
        ------
        InputError
            If it has no 3D coordinates, elements of unknown valence, overlapping fragments, bonds
            other than its distances show, or nowhere to grow.

        Examples
        --------
        >>> from simgen.io import embed
        >>> benzene = Scaffold.from_mol(embed(Chem.MolFromSmiles("c1ccccc1")), grow_at=[0, 3])
        >>> dict(benzene.removable)
        {0: (6,), 3: (9,)}
        """
        if mol.GetNumConformers() == 0 or not mol.GetConformer().Is3D():
            raise InputError(
                f"expected 3D coordinates of the {name}, got none; embed it and place it first"
            )
        mol = Chem.Mol(mol)
        if Chem.SanitizeMol(mol, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
            raise InputError(f"expected a {name} with possible valences; RDKit rejects it")
        if any(a.GetTotalNumHs() and a.GetAtomicNum() for a in mol.GetAtoms()):
            mol = Chem.AddHs(mol, addCoords=True)
        sites = _sites(mol, grow_at, name)
        Chem.Kekulize(mol, clearAromaticFlags=True)
        for atom in mol.GetAtoms():
            atom.SetIntProp(SCAFFOLD_INDEX, atom.GetIdx())
        _check(mol, sites, name)
        fragments = Chem.GetMolFrags(mol)
        linking = len(fragments) > 1
        if grow_at is None and linking:
            pairs = _facing(mol, sites, fragments, name)
            ends = set(itertools.chain.from_iterable(pairs))
            sites = {i: removable for i, removable in sites.items() if i in ends}
        elif linking:
            _facing(mol, sites, fragments, name)  # every fragment has somewhere to be linked
        alternatives = (
            grow_at is None and not linking and not any(map(_is_placeholder, mol.GetAtoms()))
        )
        return cls(mol, sites, alternatives)

    @classmethod
    def from_file(cls, path: str | Path, grow_at: Sequence[int] | str | None = None) -> Scaffold:
        """Read a scaffold from an SDF or XYZ file: all its entries are fragments of one scaffold.

        Bonds of an XYZ file are found by its distances.

        Raises
        ------
        LoadError
            If the file cannot be read.
        InputError
            As :meth:`from_mol`.
        """
        return cls.from_files([path], grow_at)

    @classmethod
    def from_files(
        cls, paths: Sequence[str | Path], grow_at: Sequence[int] | str | None = None
    ) -> Scaffold:
        """Read a scaffold from several files (:meth:`from_file`), atoms counted through."""
        whole = Chem.Mol()
        for path in paths:
            for record in read_molecules(path):
                if record.error is not None:
                    raise InputError(f"line {record.line} of {path}: {record.error}")
                whole = Chem.CombineMols(whole, _with_bonds(record))
        names = ", ".join(str(path) for path in paths)
        return cls.from_mol(whole, grow_at, name=f"scaffold {names}")

    # -- what it is -------------------------------------------------------------------------------

    @cached_property
    def heavy(self) -> tuple[int, ...]:
        """Indices of the heavy atoms: the first atoms of every molecule that is sampled."""
        return tuple(a.GetIdx() for a in self.mol.GetAtoms() if a.GetAtomicNum() > 1)

    @property
    def n_fragments(self) -> int:
        """Number of fragments; they are linked if there are several."""
        return len(Chem.GetMolFrags(self.mol))

    @property
    def charge(self) -> int:
        """Total charge."""
        return Chem.GetFormalCharge(self.mol)

    @property
    def element_counts(self) -> Counter[str]:
        """Heavy atoms of each element."""
        return Counter(self.mol.GetAtomWithIdx(i).GetSymbol() for i in self.heavy)

    @property
    def atomic_numbers(self) -> NDArray[np.int64]:
        """Elements of the heavy atoms, shape (n_heavy,)."""
        return np.array([self.mol.GetAtomWithIdx(i).GetAtomicNum() for i in self.heavy])

    @property
    def positions(self) -> NDArray[np.float64]:
        """Coordinates of the heavy atoms, shape (n_heavy, 3), angstrom."""
        return self._all_positions[list(self.heavy)]

    @property
    def closed(self) -> tuple[int, ...]:
        """Places among the heavy atoms of those that nothing is bonded to."""
        return tuple(k for k, i in enumerate(self.heavy) if i not in self.removable)

    @cached_property
    def _all_positions(self) -> NDArray[np.float64]:
        positions: NDArray[np.float64] = self.mol.GetConformer().GetPositions()
        return positions

    @cached_property
    def _loose(self) -> frozenset[int]:
        return frozenset(itertools.chain.from_iterable(self.removable.values()))

    @cached_property
    def known_bonds(self) -> KnownBonds:
        """What bond assignment takes as given of the heavy atoms."""
        place = {i: k for k, i in enumerate(self.heavy)}
        atoms = []
        for i in self.heavy:
            atom = self.mol.GetAtomWithIdx(i)
            hydrogens = [a.GetIdx() for a in atom.GetNeighbors() if a.GetIdx() not in place]
            n_open = len(self.removable.get(i, ()))
            atoms.append(KnownAtom(atom.GetFormalCharge(), len(hydrogens) - n_open, n_open))
        orders = {}
        for bond in self.mol.GetBonds():
            ends = [place.get(k, -1) for k in (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())]
            if min(ends) >= 0:
                orders[min(ends), max(ends)] = int(bond.GetBondTypeAsDouble())
        return KnownBonds(tuple(atoms), orders)

    def obstacles(self) -> Obstacles:
        """Where new heavy atoms must not be: near hydrogens that stay and atoms that are closed."""
        kept = [
            a.GetIdx()
            for a in self.mol.GetAtoms()
            if a.GetAtomicNum() == 1 and a.GetIdx() not in self._loose
        ]
        closed = [self.heavy[k] for k in self.closed]
        radii = [CONTACT_TO_HYDROGEN] * len(kept) + [CONTACT_TO_CLOSED] * len(closed)
        places = self._all_positions[kept + closed]
        return Obstacles(
            torch.tensor(places).reshape(-1, 3), torch.tensor(radii, dtype=torch.float64)
        )

    # -- where new atoms go -----------------------------------------------------------------------

    def prior(self, n_atoms: int) -> AtomPrior:
        """Where ``n_atoms`` new atoms are wanted: at the sites, or between the fragments."""
        sites = list(self.removable)
        if self.n_fragments > 1:
            pairs = _facing(self.mol, self.removable, Chem.GetMolFrags(self.mol), "scaffold")
            return PointCloud(torch.cat([self._path(i, j) for i, j in pairs]))
        shares = n_atoms if self.alternatives else n_atoms / len(sites)
        # About half of the diameter of what grows there, and half of the bond to it.
        distance = 0.5 * (BOND_LENGTH + DIAMETER_PER_SQRT_ATOM * max(shares, 1.0) ** 0.5)
        parts = tuple(
            Transformed(Gaussian((1.0, 1.0, 1.0)), translation=torch.tensor(centre))
            for centre in (self._ahead(i, distance) for i in sites)
        )
        return Alternatives(parts) if self.alternatives else Union(parts)

    def _ahead(self, i: int, distance: float) -> NDArray[np.float64]:
        return _ahead(self.mol, i, self.removable[i], distance)

    def _path(self, i: int, j: int) -> torch.Tensor:
        """Points on the straight line between the places of the first and last atom of a link."""
        start, stop = self._ahead(i, BOND_LENGTH), self._ahead(j, BOND_LENGTH)
        n_points = 1 + round(_POINTS_PER_ANGSTROM * float(np.linalg.norm(stop - start)))
        return torch.tensor(np.linspace(start, stop, max(n_points, 2)))

    def linker_sizes(self) -> tuple[int, int]:
        """Smallest and largest sensible number of atoms that link the fragments.

        Raises
        ------
        InputError
            If there is one fragment only.
        """
        if self.n_fragments < 2:
            raise InputError(
                "expected fragments to link, to take the number of heavy atoms from, got a "
                "scaffold of one fragment; give the number"
            )
        pairs = _facing(self.mol, self.removable, Chem.GetMolFrags(self.mol), "scaffold")
        gaps = [np.linalg.norm(self._all_positions[i] - self._all_positions[j]) for i, j in pairs]
        least = sum(max(1, int(np.ceil(gap / REACH_PER_ATOM)) - 1) for gap in gaps)
        return least, least + EXTRA_LINKER_ATOMS * len(pairs)

    # -- what becomes of it -----------------------------------------------------------------------

    def graft(self, mol: Chem.Mol) -> Chem.Mol:
        """Return the scaffold with the new atoms and bonds of an assignment.

        Parameters
        ----------
        mol : Chem.Mol
            Heavy atoms with conformer, bonds and hydrogen counts; the first ones are those of the
            scaffold, bonded as :attr:`known_bonds` says.

        Returns
        -------
        Chem.Mol
            Scaffold atoms first, bit for bit, but for hydrogens whose place was taken; then the new
            atoms. Hydrogens of new atoms and of atoms that grew are counted, not placed.
        """
        mol = Chem.Mol(mol)
        Chem.Kekulize(mol, clearAromaticFlags=True)
        n_known, n_whole = len(self.heavy), self.mol.GetNumAtoms()
        whole = Chem.RWMol(self.mol)
        conformer = whole.GetConformer()
        new_places = range(n_known, mol.GetNumAtoms())
        index = dict(enumerate(self.heavy)) | {k: n_whole + k - n_known for k in new_places}
        for k in new_places:
            whole.AddAtom(mol.GetAtomWithIdx(k))
            conformer.SetAtomPosition(index[k], mol.GetConformer().GetAtomPosition(k))
        grown = set()
        for bond in mol.GetBonds():
            ends = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            if max(ends) >= n_known:
                whole.AddBond(index[ends[0]], index[ends[1]], bond.GetBondType())
                grown |= {index[k] for k in ends if k < n_known}
        for k, i in enumerate(self.heavy):
            atom = whole.GetAtomWithIdx(i)
            atom.SetNoImplicit(True)
            # Placeholders go wherever they are: what they stand for is a hydrogen by now.
            if i in grown:
                n_kept = self.known_bonds.atoms[k].n_hydrogens
                atom.SetNumExplicitHs(mol.GetAtomWithIdx(k).GetTotalNumHs() - n_kept)
            else:
                atom.SetNumExplicitHs(len(_placeholders(self.mol, i)))
        taken = {h for i in grown for h in self.removable[i]}
        taken |= {a.GetIdx() for a in self.mol.GetAtoms() if _is_placeholder(a)}
        for i in sorted(taken, reverse=True):
            whole.RemoveAtom(i)
        Chem.SanitizeMol(whole)
        return whole.GetMol()

    def fixed_atoms(self, mol: Chem.Mol) -> list[int]:
        """Atoms of a molecule that come from the scaffold and do not move.

        Hydrogens that a new atom could have taken the place of do move.
        """
        return [
            atom.GetIdx()
            for atom in mol.GetAtoms()
            if atom.HasProp(SCAFFOLD_INDEX) and atom.GetIntProp(SCAFFOLD_INDEX) not in self._loose
        ]

    def in_original_order(self, mol: Chem.Mol) -> Chem.Mol:
        """Return a molecule with the atoms of the scaffold at their indices in it.

        New atoms fill the places of hydrogens that are gone, and follow. Where there are fewer new
        atoms than such places, the last scaffold atoms move up; the property ``scaffold_index`` of
        the atoms tells in any case.
        """
        old = {
            atom.GetIntProp(SCAFFOLD_INDEX): atom.GetIdx()
            for atom in mol.GetAtoms()
            if atom.HasProp(SCAFFOLD_INDEX)
        }
        new = iter([a.GetIdx() for a in mol.GetAtoms() if not a.HasProp(SCAFFOLD_INDEX)])
        order = []
        for i in range(self.mol.GetNumAtoms()):
            place = old[i] if i in old else next(new, None)
            if place is not None:
                order.append(place)
        return Chem.RenumberAtoms(mol, [*order, *new])

    # -- storage ----------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the scaffold as what JSON can hold; :meth:`from_dict` undoes it."""
        everything = Chem.PropertyPickleOptions.AllProps | Chem.PropertyPickleOptions.CoordsAsDouble
        return {
            "smiles": Chem.MolToSmiles(Chem.RemoveHs(self.mol)),
            "mol": base64.b64encode(self.mol.ToBinary(int(everything))).decode(),
            "removable": [[i, list(hydrogens)] for i, hydrogens in self.removable.items()],
            "alternatives": self.alternatives,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scaffold:
        """Make a scaffold of what :meth:`to_dict` returns."""
        mol = Chem.Mol(base64.b64decode(values["mol"]))  # type: ignore[call-overload]
        removable = {int(i): tuple(hydrogens) for i, hydrogens in values["removable"]}
        return cls(mol, removable, bool(values["alternatives"]))

    def __reduce__(self) -> tuple[Any, ...]:
        # RDKit pickles coordinates in single precision and leaves properties out.
        return Scaffold.from_dict, (self.to_dict(),)


def common_core(mols: Sequence[Chem.Mol], *, pattern: str | None = None) -> Scaffold:
    """Cut the common core out of a series: a scaffold that grows where the series varies.

    Parameters
    ----------
    mols : sequence of Chem.Mol
        Molecules of the series, hydrogens as atoms and a 3D conformer; the core has the coordinates
        of the first.
    pattern : str, optional
        SMARTS of the core; by default the largest common substructure, whole rings only.

    Raises
    ------
    InputError
        If there is no common core, or all of the molecules are nothing but core.
    """
    bare = [Chem.RemoveHs(mol) for mol in mols]
    if pattern is not None:
        query = Chem.MolFromSmarts(pattern)
        if query is None:
            raise InputError(f"expected a SMARTS pattern for the core, got {pattern!r}")
    elif len(bare) < 2:
        raise InputError("expected at least two molecules to find a common core of, got one")
    else:
        found = rdFMCS.FindMCS(bare, ringMatchesRingOnly=True, completeRingsOnly=True, timeout=20)
        query = Chem.MolFromSmarts(found.smartsString)
    matches = [mol.GetSubstructMatch(query) for mol in bare]
    if query.GetNumAtoms() < 2 or not all(matches):
        lacking = [k for k, match in enumerate(matches, 1) if not match]
        reason = f": molecule {lacking[0]} lacks {pattern}" if pattern and lacking else ""
        raise InputError(
            f"the molecules have no core in common{reason}; leave some out, or give the core as a "
            "scaffold"
        )
    varied = set()
    for mol, match in zip(bare, matches, strict=True):
        inside = set(match)
        for k, i in enumerate(match):
            if any(a.GetIdx() not in inside for a in mol.GetAtomWithIdx(i).GetNeighbors()):
                varied.add(k)
    if not varied:
        raise InputError("the molecules do not vary about their core; give --grow-at instead")
    whole = Chem.AddHs(Chem.Mol(mols[0]), addCoords=True)
    # Heavy atoms of the hydrogen-free copy are those of the molecule in the same order.
    heavy = [a.GetIdx() for a in whole.GetAtoms() if a.GetAtomicNum() > 1]
    core = [heavy[i] for i in matches[0]]
    editable = Chem.RWMol(whole)
    Chem.Kekulize(editable, clearAromaticFlags=True)
    kept = set(core) | {
        a.GetIdx()
        for i in core
        for a in whole.GetAtomWithIdx(i).GetNeighbors()
        if a.GetAtomicNum() == 1
    }
    for bond in whole.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        if (i in core) != (j in core) and not {i, j} <= kept:
            atom = editable.GetAtomWithIdx(i if i in core else j)
            order = int(editable.GetBondBetweenAtoms(i, j).GetBondTypeAsDouble())
            atom.SetNumExplicitHs(atom.GetNumExplicitHs() + order)
            atom.SetNoImplicit(True)
    for i in reversed(range(whole.GetNumAtoms())):
        if i not in kept:
            editable.RemoveAtom(i)
    new_index = {old: new for new, old in enumerate(sorted(kept))}
    cut = editable.GetMol()
    Chem.SanitizeMol(cut)
    cut = Chem.AddHs(cut, addCoords=True)
    # A nitrogen that others have something on may have no hydrogen here: nothing grows there.
    sites = [i for k in sorted(varied) if _hydrogens(cut, i := new_index[core[k]])]
    return Scaffold.from_mol(cut, sites, name="core")


def added_atoms(mols: Sequence[Chem.Mol], core: Scaffold) -> tuple[int, int]:
    """Fewest and most heavy atoms that the molecules of a series have beside their core."""
    added = [mol.GetNumHeavyAtoms() - len(core.heavy) for mol in mols]
    return max(1, min(added)), max(1, *added)


# --- reading what is given ---------------------------------------------------------------------


def _with_bonds(record: Record) -> Chem.Mol:
    """Molecule of a record; that of an XYZ frame by its distances."""
    if record.mol is not None:
        return record.mol
    numbers, positions = record.geometry
    if 1 in numbers:
        mol = perceive_bonds(numbers, positions)
        if mol is None:
            raise InputError(f"cannot tell the bonds of {record.name}; bring it as SDF")
        return mol
    assignment = assign_bonds(numbers, positions)
    if assignment.mol is None or len(assignment.kept) < len(numbers):
        raise InputError(
            f"cannot tell the bonds of {record.name}: {assignment.status}; bring it as SDF"
        )
    return assignment.mol


def _is_placeholder(atom: Chem.Atom) -> bool:
    return atom.GetAtomicNum() == 0


def _placeholders(mol: Chem.Mol, i: int) -> tuple[int, ...]:
    around = mol.GetAtomWithIdx(i).GetNeighbors()
    return tuple(a.GetIdx() for a in around if _is_placeholder(a))


def _hydrogens(mol: Chem.Mol, i: int) -> tuple[int, ...]:
    """Hydrogens and placeholders of an atom."""
    around = mol.GetAtomWithIdx(i).GetNeighbors()
    return tuple(a.GetIdx() for a in around if a.GetAtomicNum() <= 1)


def _sites(
    mol: Chem.Mol, grow_at: Sequence[int] | str | None, name: str
) -> dict[int, tuple[int, ...]]:
    """Atoms to grow at, each with the hydrogens and placeholders that can be replaced."""
    if isinstance(grow_at, str):
        pattern = Chem.MolFromSmarts(grow_at)
        if pattern is None:
            raise InputError(f"expected atoms to grow at as indices or SMARTS, got {grow_at!r}")
        # Also those of the same atoms in another order, as in a ring that is its own mirror image.
        matches = mol.GetSubstructMatches(pattern, uniquify=False)
        chosen: Iterable[int] = sorted({match[0] for match in matches})
        if not chosen:
            raise InputError(f"{grow_at} matches nothing in the {name}; choose another pattern")
    elif grow_at is not None:
        chosen = grow_at
    else:
        heavy = [a.GetIdx() for a in mol.GetAtoms() if a.GetAtomicNum() > 1]
        chosen = [i for i in heavy if _placeholders(mol, i)]
        chosen = chosen or [i for i in heavy if _hydrogens(mol, i)]
    sites: dict[int, tuple[int, ...]] = {}
    for i in chosen:
        if not 0 <= i < mol.GetNumAtoms():
            raise InputError(
                f"expected atoms to grow at from 0 to {mol.GetNumAtoms() - 1}, as the {name} has "
                f"{mol.GetNumAtoms()} atoms, got {i}"
            )
        atom = mol.GetAtomWithIdx(i)
        if atom.GetAtomicNum() > 1:
            # Placeholders say where to grow, hydrogens beside them stay.
            parent, removable = i, _placeholders(mol, i) or _hydrogens(mol, i)
        else:
            parent, removable = atom.GetNeighbors()[0].GetIdx(), (i,)
        if not removable:
            raise InputError(
                f"atom {i} ({atom.GetSymbol()}) of the {name} has no hydrogen that a new atom "
                "could replace; choose another atom to grow at"
            )
        sites[parent] = tuple(sorted({*sites.get(parent, ()), *removable}))
    if not sites:
        raise InputError(f"no atom of the {name} has a hydrogen that a new atom could replace")
    return sites


def _check(mol: Chem.Mol, sites: Mapping[int, tuple[int, ...]], name: str) -> None:
    """Raise an InputError if a scaffold cannot be worked with.

    Hydrogens that new atoms can take the place of may be in each other's way, as those of two
    fragments are that one atom is to link.
    """
    loose = {h for removable in sites.values() for h in removable}
    atoms = [a for a in mol.GetAtoms() if a.GetAtomicNum() > 0 and a.GetIdx() not in loose]
    unknown = {a.GetSymbol() for a in atoms if a.GetAtomicNum() not in (1, *VALENCES)}
    if unknown:
        known = ", ".join(SYMBOLS[z] for z in (1, *VALENCES))
        raise InputError(f"expected a {name} of {known} only, got {', '.join(sorted(unknown))}")
    numbers = [a.GetAtomicNum() for a in atoms]
    index = [a.GetIdx() for a in atoms]
    x = mol.GetConformer().GetPositions()[index]
    fragment = np.zeros(mol.GetNumAtoms(), dtype=int)
    for k, members in enumerate(Chem.GetMolFrags(mol)):
        fragment[list(members)] = k
    for a, b in sorted(bonded_pairs(numbers, x, _OVERLAP)):
        if fragment[index[a]] != fragment[index[b]]:
            raise InputError(
                f"fragments of the {name} overlap: atoms {index[a]} and {index[b]} are "
                f"{np.linalg.norm(x[a] - x[b]):.2f} angstrom apart; move them apart"
            )
    seen = {tuple(sorted((index[a], index[b]))) for a, b in bonded_pairs(numbers, x, BOND_FACTOR)}
    drawn = {
        tuple(sorted((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())))
        for bond in mol.GetBonds()
        if {bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()} <= {*index}
    }
    if seen != drawn:
        i, j = min(seen ^ drawn)
        distance = np.linalg.norm(np.subtract(*mol.GetConformer().GetPositions()[[i, j]]))
        raise InputError(
            f"the coordinates of the {name} do not fit its bonds: atoms {i} and {j} are "
            f"{'not ' if (i, j) in seen else ''}bonded and {distance:.2f} angstrom apart; relax it"
        )


def _ahead(mol: Chem.Mol, i: int, removable: Sequence[int], distance: float) -> NDArray[np.float64]:
    """Point at a distance from an atom, where its removable hydrogens are."""
    x = mol.GetConformer().GetPositions()
    direction = (x[list(removable)] - x[i]).sum(0)
    norm = float(np.linalg.norm(direction))
    if norm < 1e-3:  # hydrogens on opposite sides: either will do
        direction = x[removable[0]] - x[i]
        norm = float(np.linalg.norm(direction))
    ahead: NDArray[np.float64] = x[i] + direction * (distance / norm)
    return ahead


def _facing(
    mol: Chem.Mol,
    sites: Mapping[int, tuple[int, ...]],
    fragments: Sequence[Sequence[int]],
    name: str,
) -> list[tuple[int, int]]:
    """Pairs of sites that link all fragments: a minimum spanning tree over the gaps.

    A gap is measured between the places where the first and the last atom of a link would be, so
    that sites that look at each other are preferred.
    """
    fragment_of = {i: k for k, members in enumerate(fragments) for i in members}
    used = {fragment_of[i] for i in sites}
    if lacking := sorted(set(range(len(fragments))) - used):
        raise InputError(
            f"fragment {lacking[0] + 1} of the {name} has nowhere to be linked; choose atoms with "
            "hydrogens on every fragment"
        )
    tips = {i: _ahead(mol, i, removable, BOND_LENGTH) for i, removable in sites.items()}
    gaps = sorted(
        (float(np.linalg.norm(tips[i] - tips[j])), i, j)
        for i, j in itertools.combinations(sites, 2)
        if fragment_of[i] != fragment_of[j]
    )
    tree = list(range(len(fragments)))
    pairs = []
    for _, i, j in gaps:
        a, b = tree[fragment_of[i]], tree[fragment_of[j]]
        if a != b:
            pairs.append((i, j))
            tree = [a if k == b else k for k in tree]
    return pairs
