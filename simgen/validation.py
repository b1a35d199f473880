"""Is it a molecule? One check per question, and a report that puts the answers in a row.

A check takes a molecule and returns a :class:`Check`: passed or not, the status of a molecule that
fails it, and what was found. Nothing here raises for bad chemistry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, RDConfig
from rdkit.Chem import rdMolAlign
from rdkit.Chem.QED import qed
from rdkit.Chem.rdMolDescriptors import CalcMolFormula

from simgen import xtb
from simgen.elements import COVALENT_RADII
from simgen.errors import MissingDependencyError
from simgen.finishing.connectivity import BOND_FACTOR, bonded_pairs
from simgen.finishing.status import Status

__all__ = [
    "EV_TO_KCAL",
    "Check",
    "Gfn2Check",
    "Report",
    "Status",
    "check_charge",
    "check_closed_shell",
    "check_connected",
    "check_contacts",
    "check_extent",
    "check_finite",
    "check_gfn2",
    "check_graph_kept",
    "check_hydrogens",
    "check_posebusters",
    "check_sanitised",
    "check_size",
    "mark_duplicates",
    "molecule_key",
    "sa_score",
    "validate",
]

EV_TO_KCAL = 23.0605478
"""kcal/mol per eV (CODATA 2018)."""
LONGEST_BOND = 2.5
"""Angstrom. No molecule is longer than its number of atoms times this."""
CLASH_FACTOR = 0.6
"""Atoms more than three bonds apart clash below this multiple of the sum of their van der Waals
radii; strong hydrogen bonds reach down to 0.62."""


@dataclass(frozen=True, slots=True)
class Check:
    """Answer to one question about a molecule.

    Attributes
    ----------
    passed : bool
        Whether all is well.
    status : Status
        ``OK`` if passed, else what a molecule that fails is called.
    detail : str
        What was found, in words; empty if there is nothing to say.
    value : float or None
        The number behind the answer, where there is one.
    """

    passed: bool
    status: Status
    detail: str = ""
    value: float | None = None


def _check(passed: bool, failure: Status, detail: str = "", value: float | None = None) -> Check:
    return Check(passed, Status.OK if passed else failure, detail, value)


def _positions(mol: Chem.Mol) -> NDArray[np.float64]:
    positions: NDArray[np.float64] = mol.GetConformer().GetPositions()
    return positions


def _bonds(mol: Chem.Mol) -> set[tuple[int, int]]:
    ends = ((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds())
    return {(min(i, j), max(i, j)) for i, j in ends}


def check_size(mol: Chem.Mol) -> Check:
    """There are at least two heavy atoms."""
    n_heavy = mol.GetNumHeavyAtoms()
    return _check(n_heavy >= 2, Status.TOO_FEW_ATOMS, f"{n_heavy} heavy atoms", n_heavy)


def check_finite(mol: Chem.Mol) -> Check:
    """All coordinates are finite numbers."""
    n_bad = int((~np.isfinite(_positions(mol))).any(1).sum())
    return _check(n_bad == 0, Status.NONFINITE, f"{n_bad} atoms without coordinates", n_bad)


def check_extent(mol: Chem.Mol) -> Check:
    """The molecule is no longer than a chain of its atoms could be. Value: length in angstrom."""
    x = _positions(mol)
    extent = float(np.ptp(x, axis=0).max())
    limit = LONGEST_BOND * len(x)
    return _check(extent <= limit, Status.EXPLODED, f"{extent:.1f} A long", extent)


def check_connected(mol: Chem.Mol) -> Check:
    """It is one molecule. Value: number of fragments."""
    n_fragments = len(Chem.GetMolFrags(mol))
    detail = f"{n_fragments} fragments"
    return _check(n_fragments == 1, Status.DISCONNECTED, detail, n_fragments)


def check_sanitised(mol: Chem.Mol) -> Check:
    """RDKit accepts valences, aromaticity and conjugation."""
    problems = Chem.DetectChemistryProblems(mol)
    detail = "; ".join(problem.Message() for problem in problems)
    return _check(not problems, Status.UNSANITISABLE, detail)


def check_charge(mol: Chem.Mol, expected: int = 0) -> Check:
    """The total charge is the one that is expected. Value: the charge."""
    charge = Chem.GetFormalCharge(mol)
    return _check(charge == expected, Status.CHARGED, f"charge {charge:+d}", charge)


def check_closed_shell(mol: Chem.Mol) -> Check:
    """All electrons are paired. Value: number of unpaired electrons, at least."""
    copy = Chem.Mol(mol)
    copy.UpdatePropertyCache(strict=False)
    # An aromatic sulfur without implicit hydrogens would count as a radical.
    Chem.SanitizeMol(copy, Chem.SanitizeFlags.SANITIZE_KEKULIZE, catchErrors=True)
    Chem.AssignRadicals(copy)
    n_unpaired = sum(atom.GetNumRadicalElectrons() for atom in copy.GetAtoms())
    n_protons = sum(atom.GetAtomicNum() + atom.GetTotalNumHs() for atom in copy.GetAtoms())
    n_unpaired = max(n_unpaired, (n_protons - Chem.GetFormalCharge(copy)) % 2)
    return _check(n_unpaired == 0, Status.RADICAL, f"{n_unpaired} unpaired electrons", n_unpaired)


def check_hydrogens(mol: Chem.Mol) -> Check:
    """All hydrogens are there as atoms. Value: number of missing ones."""
    copy = Chem.Mol(mol)
    copy.UpdatePropertyCache(strict=False)
    n_missing = sum(atom.GetTotalNumHs() for atom in copy.GetAtoms())
    return _check(n_missing == 0, Status.NO_HYDROGENS, f"{n_missing} hydrogens missing", n_missing)


def check_contacts(mol: Chem.Mol) -> Check:
    """Atoms more than three bonds apart keep their distance.

    Value: the closest such contact in units of the sum of the van der Waals radii; None if there
    is no such pair.
    """
    table = Chem.GetPeriodicTable()
    radii = np.array([table.GetRvdw(atom.GetAtomicNum()) for atom in mol.GetAtoms()])
    x = _positions(mol)
    relative = np.linalg.norm(x[:, None] - x[None], axis=-1) / (radii[:, None] + radii[None])
    far = np.triu(Chem.GetDistanceMatrix(mol) > 3)
    if not far.any():
        return _check(True, Status.CLASH)
    n_clashes = int((relative[far] < CLASH_FACTOR).sum())
    return _check(n_clashes == 0, Status.CLASH, f"{n_clashes} clashes", float(relative[far].min()))


def check_graph_kept(mol: Chem.Mol) -> Check:
    """The bonds that the distances show, hydrogens included, are those of the molecule.

    Atoms are bonded below :data:`simgen.finishing.connectivity.BOND_FACTOR` times the sum of their
    covalent radii. Value: number of bonds that differ.
    """
    numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    if unknown := set(numbers) - set(COVALENT_RADII):
        return _check(False, Status.UNKNOWN_ELEMENT, f"no covalent radius of {sorted(unknown)}")
    seen, drawn = bonded_pairs(numbers, _positions(mol), BOND_FACTOR), _bonds(mol)
    detail = f"{len(drawn - seen)} bonds broken, {len(seen - drawn)} formed"
    return _check(seen == drawn, Status.GRAPH_CHANGED, detail, len(seen ^ drawn))


# ---------------------------------------------------------------------------------------------
# Report
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Report:
    """What is known about one attempt. None stands for what could not be found out.

    Attributes
    ----------
    name : str
        Name of the attempt.
    status : Status
        ``OK``, or the first thing that is wrong.
    detail : str
        What is wrong, in words.
    n_heavy, n_dropped : int or None
        Heavy atoms of the molecule; atoms left out because they had no neighbour.
    smiles : str or None
        Canonical, with stereochemistry as in the geometry.
    formula : str or None
        Sum formula, Hill order.
    connected, closed_shell, sanitised, graph_kept : bool or None
        Answers of the checks of the same names.
    charge : int or None
        Total charge.
    relaxation_energy : float or None
        Energy that the relaxation released, kcal/mol.
    min_contact : float or None
        Closest contact of atoms more than three bonds apart, in units of the sum of their van der
        Waals radii.
    sa_score : float or None
        Synthetic accessibility, 1 (easy) to 10 (hard) [1]_.
    qed : float or None
        Quantitative estimate of drug-likeness, 0 to 1 [2]_.
    similarity : float or None
        Mean over the heavy atoms of the log similarity to the reference environments.
    duplicate_of : str or None
        Name of the first valid attempt with the same bond graph.
    known_in_reference : bool or None
        Whether the bond graph is in the reference set.
    n_unknown : int or None
        Heavy atoms in surroundings or ring systems that no known molecule shows
        (:meth:`simgen.known.KnownChemistry.unknown_atoms`).
    alerts : str or None
        Unwanted substructures that were searched for and found.

    References
    ----------
    .. [1] P. Ertl, A. Schuffenhauer, J. Cheminform. 1, 8 (2009).
    .. [2] G. R. Bickerton et al., Nat. Chem. 4, 90 (2012).
    """

    name: str
    status: Status
    detail: str = ""
    n_heavy: int | None = None
    n_dropped: int | None = None
    smiles: str | None = None
    formula: str | None = None
    connected: bool | None = None
    closed_shell: bool | None = None
    charge: int | None = None
    sanitised: bool | None = None
    graph_kept: bool | None = None
    relaxation_energy: float | None = None
    min_contact: float | None = None
    sa_score: float | None = None
    qed: float | None = None
    similarity: float | None = None
    duplicate_of: str | None = None
    known_in_reference: bool | None = None
    n_unknown: int | None = None
    alerts: str | None = None

    @property
    def believability(self) -> tuple[float, float]:
        """The higher, the better: few atoms in unknown surroundings, then similarity."""
        return (
            -math.inf if self.n_unknown is None else -self.n_unknown,
            -math.inf if self.similarity is None else self.similarity,
        )

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """Names of the columns of :meth:`to_row`, in order."""
        return tuple(field.name for field in fields(cls))

    def to_row(self) -> dict[str, str]:
        """Return the report as text by column: empty for None, four significant digits."""

        def text(value: Any) -> str:
            if value is None:
                return ""
            return f"{value:.4g}" if isinstance(value, float) else str(value)

        return {name: text(getattr(self, name)) for name in self.columns()}


_GRAPH_CHECKS: dict[str, Callable[[Chem.Mol], Check]] = {
    "size": check_size,
    "sanitised": check_sanitised,
    "connected": check_connected,
    "closed_shell": check_closed_shell,
}
_GEOMETRY_CHECKS: dict[str, Callable[[Chem.Mol], Check]] = {
    "extent": check_extent,
    "hydrogens": check_hydrogens,
    "graph_kept": check_graph_kept,
    "contacts": check_contacts,
}


def validate(
    mol: Chem.Mol,
    *,
    name: str = "",
    charge: int = 0,
    relaxation_energy: float | None = None,
    n_dropped: int | None = None,
    similarity: float | None = None,
    known: Collection[str] | None = None,
) -> Report:
    """Run every check on a finished molecule.

    Parameters
    ----------
    mol : Mol
        Hydrogens as atoms and a 3D conformer; what lacks them fails the checks that need them.
    name : str, optional
        Name for the report.
    charge : int, optional
        Total charge that is expected.
    relaxation_energy, n_dropped, similarity : optional
        Facts about the making of the molecule, passed on to the report.
    known : collection of str, optional
        :func:`molecule_key` of each reference molecule.
    """
    checks = {key: check(mol) for key, check in _GRAPH_CHECKS.items()}
    checks["charge"] = check_charge(mol, charge)
    if mol.GetNumConformers() == 0:
        checks["hydrogens"] = Check(False, Status.NO_HYDROGENS, "no coordinates")
    else:
        checks["finite"] = check_finite(mol)
        if checks["finite"].passed:
            checks.update((key, check(mol)) for key, check in _GEOMETRY_CHECKS.items())
    worst = next((check for check in checks.values() if not check.passed), None)

    def passed(key: str) -> bool | None:
        return checks[key].passed if key in checks else None

    report = Report(
        name=name,
        status=Status.OK if worst is None else worst.status,
        detail="" if worst is None else worst.detail,
        n_heavy=mol.GetNumHeavyAtoms(),
        n_dropped=n_dropped,
        connected=passed("connected"),
        closed_shell=passed("closed_shell"),
        charge=Chem.GetFormalCharge(mol),
        sanitised=passed("sanitised"),
        graph_kept=passed("graph_kept"),
        relaxation_energy=relaxation_energy,
        min_contact=checks["contacts"].value if "contacts" in checks else None,
        similarity=similarity,
    )
    if not (checks["size"].passed and checks["sanitised"].passed):
        return report
    stereo = Chem.Mol(mol)
    Chem.SanitizeMol(stereo)
    if passed("finite") and mol.GetConformer().Is3D():
        Chem.AssignStereochemistryFrom3D(stereo)
    bare = _without_hydrogens(stereo)
    return replace(
        report,
        smiles=Chem.MolToSmiles(bare),
        formula=CalcMolFormula(bare),
        sa_score=sa_score(bare),
        qed=float(qed(bare)),  # type: ignore[no-untyped-call]
        known_in_reference=None if known is None else molecule_key(bare) in known,
    )


def _without_hydrogens(mol: Chem.Mol) -> Chem.Mol:
    """Remove all hydrogens, also the one that tells the two sides of an imine apart."""
    parameters: Any = Chem.RemoveHsParameters()
    parameters.removeDefiningBondStereo = True
    return Chem.RemoveHs(mol, parameters)


def molecule_key(mol: Chem.Mol | str) -> str:
    """Canonical SMILES of the bond graph, stereochemistry and hydrogens aside.

    Parameters
    ----------
    mol : Mol or str
        A sanitised molecule, or its SMILES.

    Examples
    --------
    >>> molecule_key("C[C@H](N)O") == molecule_key("O[C@H](N)C")
    True
    """
    smiles = mol if isinstance(mol, str) else Chem.MolToSmiles(Chem.RemoveHs(mol))
    plain = Chem.MolFromSmiles(smiles)
    if plain is None:  # RDKit cannot read what it wrote; the text still tells molecules apart
        return smiles
    Chem.RemoveStereochemistry(plain)
    # once more through the parser: without stereo the ranking of the atoms may change
    return Chem.MolToSmiles(Chem.MolFromSmiles(Chem.MolToSmiles(plain)))


def mark_duplicates(reports: Iterable[Report]) -> list[Report]:
    """Return the reports with ``duplicate_of`` set to the first valid one of the same graph."""
    first: dict[str, str] = {}
    marked = []
    for report in reports:
        original = None
        if report.status is Status.OK and report.smiles is not None:
            original = first.setdefault(molecule_key(report.smiles), report.name)
        marked.append(replace(report, duplicate_of=None if original == report.name else original))
    return marked


@lru_cache(maxsize=1)
def _sascorer() -> Any:
    """RDKit's contributed module for the SA score; None where RDKit came without it."""
    path = Path(RDConfig.RDContribDir) / "SA_Score" / "sascorer.py"
    spec = spec_from_file_location("simgen._sascorer", path)
    if spec is None or spec.loader is None or not path.exists():
        return None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sa_score(mol: Chem.Mol) -> float | None:
    """Synthetic accessibility, 1 (easy) to 10 (hard); None where RDKit came without it.

    References
    ----------
    P. Ertl, A. Schuffenhauer, J. Cheminform. 1, 8 (2009).
    """
    scorer = _sascorer()
    return None if scorer is None else float(scorer.calculateScore(mol))


# ---------------------------------------------------------------------------------------------
# Independent judges, optional packages
# ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _posebusters() -> Any:
    try:
        from posebusters import PoseBusters
    except ImportError as error:
        raise MissingDependencyError(
            "expected the package posebusters, which is not installed; "
            "pip install 'simgen-toolkit[eval]'"
        ) from error
    return PoseBusters(config="mol")


def check_posebusters(mol: Chem.Mol) -> dict[str, bool]:
    """Answers of the stock ``mol`` configuration of PoseBusters, by the name of the test.

    A test that PoseBusters could not carry out (its answer is NaN) is not passed.

    Raises
    ------
    MissingDependencyError
        If posebusters is not installed.

    References
    ----------
    M. Buttenschoen, G. M. Morris, C. M. Deane, Chem. Sci. 15, 3130 (2024).
    """
    table = _posebusters().bust([mol])
    # NaN is true to Python, but not equal to True.
    return {str(name): bool(value == True) for name, value in table.iloc[0].items()}  # noqa: E712


@dataclass(frozen=True, slots=True)
class Gfn2Check:
    """What relaxing a molecule in GFN2-xTB does to it.

    Attributes
    ----------
    converged : bool
        Whether the relaxation reached a minimum.
    relaxation_energy : float
        Energy released, kcal/mol; NaN if GFN2-xTB has none for this geometry.
    rmsd : float
        Of the heavy atoms before and after, superposed, in angstrom.
    graph_kept : bool
        Whether the relaxed geometry shows the bonds of the molecule.
    mol : Mol
        The molecule at its relaxed geometry.
    """

    converged: bool
    relaxation_energy: float
    rmsd: float
    graph_kept: bool
    mol: Chem.Mol


def check_gfn2(mol: Chem.Mol, *, f_max: float = 0.03, max_steps: int = 300) -> Gfn2Check:
    """Relax a molecule, hydrogens included, in GFN2-xTB and see what changes.

    Parameters
    ----------
    mol : Mol
        Hydrogens as atoms and a 3D conformer.
    f_max : float, optional
        Largest force left, eV/angstrom.
    max_steps : int, optional
        Evaluations after which the relaxation gives up.

    Raises
    ------
    MissingDependencyError
        If tblite is not installed.
    """
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    try:
        path = xtb.relax(
            numbers,
            _positions(mol),
            f_max=f_max,
            max_steps=max_steps,
            charge=Chem.GetFormalCharge(mol),
        )
    except xtb.XtbError:
        return Gfn2Check(False, math.nan, math.nan, False, Chem.Mol(mol))
    relaxed = Chem.Mol(mol)
    relaxed.GetConformer().SetPositions(path.positions[-1])
    heavy = [(i, i) for i, z in enumerate(numbers.tolist()) if z > 1]
    return Gfn2Check(
        converged=path.converged,
        relaxation_energy=float(path.energies[0] - path.energies[-1]) * EV_TO_KCAL,
        rmsd=float(rdMolAlign.AlignMol(Chem.Mol(relaxed), mol, atomMap=heavy)),
        graph_kept=check_graph_kept(relaxed).passed,
        mol=relaxed,
    )
