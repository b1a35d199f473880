"""What is found out about one molecule: a question each, and a row with the answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from simgen import validation
from simgen.evaluation.perception import same_bonds
from simgen.io import Record, perceive_bonds
from simgen.known import KnownChemistry, environments_of, load_known, valence_of
from simgen.validation import Check

CUMULATED = Chem.MolFromSmarts("*=[#6X2,#7X2]=*")
"""Two double bonds at one carbon or nitrogen: allenes, ketenes, isocyanates, azides."""

HETEROATOM_ROW = Chem.MolFromSmarts(
    "[{0}]~[{0}]~[{0}]".format(
        "!#6;!#1;!$([#7+,#15,#16,#17,#35,#53]~[OX1]);!$([OX1]~[#7+,#15,#16])"
    )
)
"""Three bonded atoms that are neither carbon nor hydrogen. Nitro, sulfonyl, phosphoryl and their
like are groups of their own: neither their centre nor its terminal oxygens count."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to a yes-or-no question, and what is wrong in words."""

    passed: bool
    detail: str = ""


def check_valences(mol: Chem.Mol, known: KnownChemistry | None = None) -> Finding:
    """Every atom has a valence that occurs in the bundled collections."""
    known = load_known() if known is None else known
    found = Counter(valence_of(atom) for atom in mol.GetAtoms())
    odd = [valence for valence in found if not known.allows(valence)]
    detail = "; ".join(
        f"{symbol}{charge:+d} with {n_aromatic} aromatic bonds and other bonds of valence {other}"
        for symbol, charge, n_aromatic, other in sorted(odd)
    )
    return Finding(not odd, detail)


def check_perceived_bonds(mol: Chem.Mol) -> Finding:
    """The coordinates alone lead to the same bonds, up to resonance."""
    atomic_numbers, positions = _geometry(mol)
    seen = perceive_bonds(atomic_numbers, positions, Chem.GetFormalCharge(mol))
    if seen is None:
        return Finding(False, "no bonds fit the geometry")
    if same_bonds(mol, seen):
        return Finding(True)
    return Finding(False, f"the geometry looks like {validation.molecule_key(seen)}")


def count_cumulated(mol: Chem.Mol) -> int:
    """Atoms with two double bonds (allenes, ketenes, azides ...)."""
    return len(mol.GetSubstructMatches(CUMULATED))


def count_heteroatom_rows(mol: Chem.Mol) -> int:
    """Rows of three heteroatoms that are not all aromatic (as those of a triazole are)."""
    rows = mol.GetSubstructMatches(HETEROATOM_ROW)
    return sum(not all(mol.GetAtomWithIdx(i).GetIsAromatic() for i in row) for row in rows)


def ring_sizes(mol: Chem.Mol) -> tuple[int, ...]:
    """Sizes of the smallest rings, ascending."""
    return tuple(sorted(len(ring) for ring in mol.GetRingInfo().AtomRings()))


def _geometry(mol: Chem.Mol) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.int64)
    return numbers, np.asarray(mol.GetConformer().GetPositions(), dtype=np.float64)


_GRAPH_CHECKS: dict[str, Callable[[Chem.Mol], Check]] = {
    "sanitised": validation.check_sanitised,
    "one fragment": validation.check_connected,
    "closed shell": validation.check_closed_shell,
    "neutral": validation.check_charge,
}
_GEOMETRY_CHECKS: dict[str, Callable[[Chem.Mol], Check]] = {
    "hydrogens": validation.check_hydrogens,
    "no clash": validation.check_contacts,
    "bonds as drawn": validation.check_graph_kept,
}
CHECKS = {
    "sanitised": "not sanitised",
    "one fragment": "several fragments",
    "closed shell": "radical",
    "neutral": "charged",
    "known valences": "unusual valence",
    "coordinates": "no coordinates",
    "hydrogens": "hydrogens missing",
    "no clash": "clash",
    "bonds as drawn": "bonds broken or formed",
    "bonds re-perceived": "other bonds perceived",
}
"""Names of the checks of :class:`Chemistry`, in order, and what failing each of them is called."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is wrong: its name, the same for every molecule, and what was found."""

    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}" if self.detail else self.name


@dataclass(frozen=True, slots=True, eq=False)
class Chemistry:
    """What the molecule itself tells, without another program.

    Attributes
    ----------
    mol : Mol
        The molecule; of an entry without bonds, with those that its geometry suggests.
    checks : dict of str to Finding
        By the names in :data:`CHECKS`; those that make no sense for this entry are missing.
    charge, n_charged_atoms : int
        Total charge, and atoms with a formal charge.
    smiles, formula : str or None
        None where the molecule cannot be sanitised.
    key : str or None
        :func:`simgen.validation.molecule_key`, which is what makes molecules the same.
    sa_score, qed : float or None
        Synthetic accessibility and drug-likeness, as in :class:`simgen.validation.Report`.
    rings : tuple of int
        Sizes of the smallest rings.
    n_cumulated, n_heteroatom_rows : int
        :func:`count_cumulated`, :func:`count_heteroatom_rows`.
    environments : tuple of str
        :func:`simgen.known.environment` of each heavy atom.
    """

    mol: Chem.Mol
    checks: dict[str, Finding]
    charge: int
    n_charged_atoms: int
    smiles: str | None = None
    formula: str | None = None
    key: str | None = None
    sa_score: float | None = None
    qed: float | None = None
    rings: tuple[int, ...] = ()
    n_cumulated: int = 0
    n_heteroatom_rows: int = 0
    environments: tuple[str, ...] = ()

    @property
    def n_heavy(self) -> int:
        """Number of heavy atoms."""
        return int(self.mol.GetNumHeavyAtoms())

    @property
    def unknown_environments(self) -> tuple[str, ...]:
        """Those of its environments that no molecule of the bundled collections has."""
        known = load_known().environments
        return tuple(word for word in self.environments if word not in known)

    @property
    def known_fraction(self) -> float:
        """Share of its heavy atoms whose environment is known; 0 for a molecule without any."""
        n_atoms = len(self.environments)
        return 1 - len(self.unknown_environments) / n_atoms if n_atoms else 0.0


def study(record: Record) -> Chemistry:
    """Find out what needs no other program about a readable entry.

    Raises
    ------
    ValueError
        If the entry has no bonds, and none fit its geometry.
    """
    mol = record.mol
    if mol is None:
        mol = perceive_bonds(*record.geometry)
        if mol is None:
            raise ValueError("no bonds fit the geometry")
    found = {name: check(mol) for name, check in _GRAPH_CHECKS.items()}
    checks = {name: Finding(check.passed, check.detail) for name, check in found.items()}
    is_3d = mol.GetNumConformers() > 0 and mol.GetConformer().Is3D()
    report = validation.validate(mol)
    if report.sanitised:
        mol = Chem.Mol(mol)
        Chem.SanitizeMol(mol)
        checks["known valences"] = check_valences(mol)
    if not is_3d:
        checks["coordinates"] = Finding(False, "no 3D coordinates")
    else:
        finite = validation.check_finite(mol)
        checks["coordinates"] = Finding(finite.passed, finite.detail)
        if finite.passed:
            for name, check in _GEOMETRY_CHECKS.items():
                answer = check(mol)
                checks[name] = Finding(answer.passed, answer.detail)
            # Of an entry without bonds they would be compared with themselves.
            if record.mol is not None and report.sanitised and checks["hydrogens"].passed:
                checks["bonds re-perceived"] = check_perceived_bonds(mol)
    charges = [atom.GetFormalCharge() for atom in mol.GetAtoms()]
    chemistry = Chemistry(
        mol=mol,
        checks={name: checks[name] for name in CHECKS if name in checks},
        charge=sum(charges),
        n_charged_atoms=sum(charge != 0 for charge in charges),
    )
    if not report.sanitised:
        return chemistry
    return replace(
        chemistry,
        smiles=report.smiles,
        formula=report.formula,
        key=None if report.smiles is None else validation.molecule_key(report.smiles),
        sa_score=report.sa_score,
        qed=report.qed,
        rings=ring_sizes(mol),
        n_cumulated=count_cumulated(mol),
        n_heteroatom_rows=count_heteroatom_rows(mol),
        environments=environments_of(mol),
    )


@dataclass(frozen=True, slots=True)
class Relaxation:
    """What GFN2-xTB makes of a molecule; see :class:`simgen.validation.Gfn2Check`.

    Attributes
    ----------
    energy : float
        Released in the relaxation, kcal/mol; infinite where GFN2-xTB has no energy.
    rmsd : float
        Of the heavy atoms, in angstrom; infinite likewise.
    converged, graph_kept : bool
        Whether it reached a minimum, and whether that still shows the bonds of the molecule.
    """

    energy: float = math.inf
    rmsd: float = math.inf
    converged: bool = False
    graph_kept: bool = False


def relax_gfn2(mol: Chem.Mol) -> Relaxation:
    """Relax a molecule, all hydrogens included, in GFN2-xTB."""
    found = validation.check_gfn2(mol)
    if not math.isfinite(found.relaxation_energy):
        return Relaxation()
    return Relaxation(found.relaxation_energy, found.rmsd, found.converged, found.graph_kept)


def failed_posebusters(mol: Chem.Mol) -> tuple[str, ...]:
    """Names of the tests of the stock ``mol`` configuration of PoseBusters that a molecule fails.

    Internal energy (the energy ratio) and radicals are among them.
    """
    return tuple(name for name, ok in validation.check_posebusters(mol).items() if not ok)


@dataclass(frozen=True, slots=True, eq=False)
class MoleculeScore:
    """All that is known about one attempt.

    Attributes
    ----------
    source, name : str
        File, and title of the entry in it.
    line : int or None
        Line of the file on which the entry starts; None where there is no such line.
    errors : tuple of Fault
        Why the attempt, or a judge, came to nothing: not readable, timed out, crashed.
    chemistry : Chemistry or None
        None if there is no molecule.
    posebusters : tuple of str or None
        Tests that it fails; None if it was not judged.
    relaxation : Relaxation or None
        What GFN2-xTB says; None if it was not judged.
    n_heavy : int or None
        Heavy atoms, if that is known.
    """

    source: str
    name: str
    line: int | None = None
    errors: tuple[Fault, ...] = ()
    chemistry: Chemistry | None = None
    posebusters: tuple[str, ...] | None = None
    relaxation: Relaxation | None = None
    n_heavy: int | None = None

    def passes(self, check: str) -> bool:
        """Whether it passes the check of this name; what could not be checked does not."""
        finding = None if self.chemistry is None else self.chemistry.checks.get(check)
        return finding is not None and finding.passed

    @property
    def valid(self) -> bool:
        """One fragment, closed shell, neutral, sanitised, bonds kept in GFN2-xTB.

        The hydrogens have to be there: without them the geometry is not that of the molecule.
        """
        sound = all(self.passes(name) for name in (*_GRAPH_CHECKS, "hydrogens"))
        return sound and self.gfn2.graph_kept

    @property
    def gfn2(self) -> Relaxation:
        """What GFN2-xTB says; the worst there is if it was not judged."""
        return self.relaxation or Relaxation()

    @property
    def passes_posebusters(self) -> bool:
        """Whether it passes every test of PoseBusters."""
        return self.posebusters == ()

    @property
    def faults(self) -> tuple[Fault, ...]:
        """All that is wrong: errors, then the checks and tests that it fails."""
        found = list(self.errors)
        checks = {} if self.chemistry is None else self.chemistry.checks
        found += [Fault(CHECKS[name], f.detail) for name, f in checks.items() if not f.passed]
        found += [Fault(f"PoseBusters: {name}") for name in self.posebusters or ()]
        if self.relaxation is not None and not self.relaxation.graph_kept:
            has_energy = math.isfinite(self.relaxation.energy)
            found.append(Fault("GFN2-xTB: " + ("bonds change" if has_energy else "no energy")))
        return tuple(found)

    def to_row(self) -> dict[str, str]:
        """Return what is known as text by column; empty where there is nothing."""
        c, relaxation = self.chemistry, self.gfn2
        row: dict[str, object] = {
            "source": self.source,
            "line": self.line,
            "name": self.name,
            "valid": self.valid,
            "posebusters": self.passes_posebusters,
            "faults": "; ".join(map(str, self.faults)),
            "smiles": c and c.smiles,
            "formula": c and c.formula,
            "heavy_atoms": self.n_heavy,
            "charge": None if c is None else c.charge,
            "charged_atoms": None if c is None else c.n_charged_atoms,
        }
        for name in CHECKS:
            finding = None if c is None else c.checks.get(name)
            row[name.replace(" ", "_")] = None if finding is None else finding.passed
        row |= {
            "gfn2_relaxation_energy_kcal_mol": relaxation.energy,
            "gfn2_rmsd_A": relaxation.rmsd,
            "gfn2_converged": relaxation.converged,
            "gfn2_graph_kept": relaxation.graph_kept,
            "sa_score": c and c.sa_score,
            "qed": c and c.qed,
            "ring_sizes": c and " ".join(map(str, c.rings)),
            "cumulated_double_bonds": None if c is None else c.n_cumulated,
            "heteroatom_rows": None if c is None else c.n_heteroatom_rows,
            "known_environments": None if c is None else c.known_fraction,
            "unknown_environments": c and " ".join(c.unknown_environments),
        }

        def text(value: object) -> str:
            if value is None or value == math.inf:
                return ""
            return f"{value:.4g}" if isinstance(value, float) else str(value)

        return {name: text(value) for name, value in row.items()}
