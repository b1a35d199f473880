"""How well molecules are made about atoms that are there already.

Three suites, all from molecules that ship with the package or with RDKit: fragments to link, ring
systems to decorate, and series to make analogues of. What is cut apart is held out of the
reference. Every attempt is in every denominator of *valid*: all checks of the program's own report
passed, no atom lay apart, and the atoms of the scaffold are where they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator
from rdkit.Chem.Scaffolds import MurckoScaffold

from simgen import io
from simgen.benchmarks.quality import ProgressBar
from simgen.data.collections import load_collections
from simgen.errors import InputError
from simgen.evaluation.report import table
from simgen.evaluation.statistics import bootstrap_interval, mean, median, share_interval
from simgen.finishing.status import Status
from simgen.generation import JOURNAL, Attempt, GenerationResult, Generator
from simgen.io import embed
from simgen.reference import ReferenceMolecule, ReferenceSet, load_reference
from simgen.scaffold import SCAFFOLD_INDEX, Scaffold, common_core
from simgen.validation import molecule_key

LINKER_SIZES = (1, 6)
"""Heavy atoms of the linkers that are cut out."""
SUBSTITUENT_SIZES = (1, 8)
"""Heavy atoms of the substituents that are cut off."""
FRAGMENT_SIZE = 4
"""What is left of a molecule, each part of it, has at least so many heavy atoms and a ring."""
PLACED = ("C", "N", "O")
"""Elements of what is cut out or off, and of what is put in its place."""

SERIES = {
    "anilinoquinazolines": ("EGFR", "c1ccc(Nc2ncnc3ccccc23)cc1"),
    "pyrazolopyrimidines": ("NCI", "c1ncc2cn[nH]c2n1"),
    "benzimidazoles": ("WEHI", "c1ccc2[nH]cnc2c1"),
}
"""Series of analogues: collection, and Murcko scaffold that all of them have."""
SERIES_LENGTH = 12
MAX_SERIES_ATOMS = 24
"""Heavy atoms of the largest members of a series."""

Cut = tuple[tuple[int, int], ...]
"""Bonds that are cut: the end that stays, and the one that goes."""


# --- suites ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A molecule that a part was taken out of.

    Attributes
    ----------
    parent : ReferenceMolecule
        The molecule.
    scaffold : Scaffold
        What is left of it, where it was.
    n_removed : int
        Heavy atoms that were taken out.
    """

    parent: ReferenceMolecule
    scaffold: Scaffold
    n_removed: int

    @property
    def key(self) -> str:
        """Bond graph of the molecule."""
        assert self.parent.mol is not None
        return molecule_key(self.parent.mol)


def cut(mol: Chem.Mol, bonds: Cut) -> Chem.Mol:
    """Take away what hangs on the second ends of bonds; placeholders mark where it was.

    Examples
    --------
    >>> toluene = io.embed(Chem.MolFromSmiles("Cc1ccccc1"))
    >>> Chem.MolToSmiles(Chem.RemoveHs(cut(toluene, ((1, 0),))))
    '*c1ccccc1'
    """
    positions = mol.GetConformer().GetPositions()
    whole = Chem.RWMol(mol)
    for stays, goes in bonds:
        whole.RemoveBond(stays, goes)
    removed = {goes for _, goes in bonds}
    gone = {i for part in Chem.GetMolFrags(whole) if removed & set(part) for i in part}
    for stays, goes in bonds:
        place = whole.AddAtom(Chem.Atom(0))
        whole.AddBond(stays, place, Chem.BondType.SINGLE)
        whole.GetConformer().SetAtomPosition(place, positions[goes])
    for i in sorted(gone, reverse=True):
        whole.RemoveAtom(i)
    Chem.SanitizeMol(whole)
    return whole.GetMol()


def linker_cuts(mol: Chem.Mol) -> list[Cut]:
    """Pairs of acyclic single bonds that leave two fragments with rings and a short linker."""
    sides = _sides(mol)
    everyone = _heavy(mol)
    found: list[Cut] = []
    for one, other in combinations(sides, 2):
        linker = sides[one] & sides[other]
        fragments = everyone - sides[one], everyone - sides[other]
        if (
            not fragments[0] & fragments[1]
            and {one[1], other[1]} <= linker
            and _is_replaceable(mol, linker, LINKER_SIZES)
            and all(_is_fragment(mol, part) for part in fragments)
        ):
            found.append((one, other))
    return found


def substituent_cuts(mol: Chem.Mol) -> list[Cut]:
    """Acyclic single bonds that leave a ring without one of its substituents."""
    return [
        (bond,)
        for bond, beyond in _sides(mol).items()
        if mol.GetAtomWithIdx(bond[0]).IsInRing()
        and _is_replaceable(mol, beyond, SUBSTITUENT_SIZES)
        and _is_fragment(mol, _heavy(mol) - beyond)
    ]


def _heavy(mol: Chem.Mol) -> set[int]:
    return {atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum() > 1}


def _sides(mol: Chem.Mol) -> dict[tuple[int, int], set[int]]:
    """By acyclic single bond, in both directions: the heavy atoms from its second end on."""
    heavy = _heavy(mol)
    sides = {}
    for bond in mol.GetBonds():
        ends = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        if bond.IsInRing() or bond.GetBondType() != Chem.BondType.SINGLE or not {*ends} <= heavy:
            continue
        opened = Chem.RWMol(mol)
        opened.RemoveBond(*ends)
        parts = Chem.GetMolFrags(opened)
        for i, j in (ends, ends[::-1]):
            sides[i, j] = heavy & set(next(part for part in parts if j in part))
    return sides


def _is_replaceable(mol: Chem.Mol, atoms: set[int], sizes: tuple[int, int]) -> bool:
    symbols = {mol.GetAtomWithIdx(i).GetSymbol() for i in atoms}
    return sizes[0] <= len(atoms) <= sizes[1] and symbols <= {*PLACED}


def _is_fragment(mol: Chem.Mol, atoms: set[int]) -> bool:
    return len(atoms) >= FRAGMENT_SIZE and any(mol.GetAtomWithIdx(i).IsInRing() for i in atoms)


def suite(
    reference: ReferenceSet, n_tasks: int, cuts: Callable[[Chem.Mol], list[Cut]]
) -> tuple[list[Task], ReferenceSet]:
    """Cut molecules of a reference set, one way each, and leave them out of it.

    Molecules are those with the smallest checksums: as good as at random, and the same on every
    machine. Of several ways to cut one, that which removes most counts.

    Raises
    ------
    InputError
        If there are too few that can be cut.
    """
    tasks: list[Task] = []
    for molecule in sorted(reference.molecules, key=lambda m: m.digest):
        if len(tasks) == n_tasks:
            break
        if molecule.mol is None or not (ways := cuts(molecule.mol)):
            continue
        scaffolds = [Scaffold.from_mol(cut(molecule.mol, way)) for way in ways]
        smallest = min(scaffolds, key=lambda scaffold: len(scaffold.heavy))
        n_removed = molecule.mol.GetNumHeavyAtoms() - len(smallest.heavy)
        tasks.append(Task(molecule, smallest, n_removed))
    if len(tasks) < n_tasks:
        raise InputError(
            f"expected at most {len(tasks)} molecules, which is how many of the reference set can "
            f"be cut, got {n_tasks}"
        )
    held_out = {task.key for task in tasks}
    rest = tuple(
        m for m in reference.molecules if m.mol is None or molecule_key(m.mol) not in held_out
    )
    return tasks, ReferenceSet(f"{reference.name} without {n_tasks}", rest)


def series(name: str) -> list[Chem.Mol]:
    """Molecules of one of the :data:`SERIES`, with hydrogens and a conformer."""
    source, scaffold = SERIES[name]
    members: list[Chem.Mol] = []
    for molecule in load_collections(max_heavy_atoms=MAX_SERIES_ATOMS):
        if molecule.source != source or len(members) == SERIES_LENGTH:
            continue
        mol = Chem.MolFromSmiles(molecule.smiles)
        if MurckoScaffold.MurckoScaffoldSmiles(mol=mol) == scaffold:  # type: ignore[no-untyped-call]
            whole = embed(mol)
            if whole is not None:
                members.append(whole)
    return members


# --- figures -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Share:
    """How many of how many, with its Wilson interval; without one where there were none."""

    n_passed: int
    n: int
    low: float | None
    high: float | None

    @classmethod
    def of(cls, flags: Iterable[bool]) -> Share:
        """Count flags."""
        values = list(flags)
        low, high = share_interval(sum(values), len(values)) if values else (None, None)
        return cls(sum(values), len(values), low, high)

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return "-"
        share = self.n_passed / self.n
        return f"{share:.0%} ({100 * self.low:.0f} to {100 * self.high:.0f})".replace("%", " %")


def keeps(scaffold: Scaffold, mol: Chem.Mol) -> bool:
    """Whether a molecule has the heavy atoms and bonds of a scaffold, where they were bit for bit.

    Bonds are compared without their orders, which depend on how a ring is drawn.
    """
    place = {
        atom.GetIntProp(SCAFFOLD_INDEX): atom.GetIdx()
        for atom in mol.GetAtoms()
        if atom.HasProp(SCAFFOLD_INDEX)
    }
    if not {*scaffold.heavy} <= {*place}:
        return False
    now = [place[i] for i in scaffold.heavy]
    numbers = [mol.GetAtomWithIdx(i).GetAtomicNum() for i in now]
    bonded, before = (
        Chem.GetAdjacencyMatrix(m)[np.ix_(atoms, atoms)]
        for m, atoms in ((mol, now), (scaffold.mol, list(scaffold.heavy)))
    )
    return (
        np.array_equal(numbers, scaffold.atomic_numbers)
        and np.array_equal(mol.GetConformer().GetPositions()[now], scaffold.positions)
        and np.array_equal(bonded, before)
    )


def is_valid(attempt: Attempt, scaffold: Scaffold | None) -> bool:
    """Whether an attempt passed all checks, has all its atoms, and keeps the scaffold."""
    return (
        attempt.mol is not None
        and attempt.report.status is Status.OK
        and not attempt.report.n_dropped
        and (scaffold is None or keeps(scaffold, attempt.mol))
    )


@dataclass(frozen=True, slots=True)
class LinkerScores:
    """What became of the pairs of fragments, for one way to choose the size.

    Attributes
    ----------
    size : str
        ``given``, that of the linker which was cut out, or ``auto``.
    valid : Share
        Attempts that are valid, all fragments connected.
    solved : Share
        Pairs of which the best attempt, which is what a user would take, is valid.
    recovered, recovered_by_best : Share
        Pairs of which a valid attempt, or the best one, is the molecule that was cut.
    statuses : mapping of str to int
        What became of the attempts.
    seconds : float
        Time an attempt.
    """

    size: str
    valid: Share
    solved: Share
    recovered: Share
    recovered_by_best: Share
    statuses: Mapping[str, int]
    seconds: float


@dataclass(frozen=True, slots=True)
class ScaffoldScores:
    """What became of ring systems: ``kept`` is of the attempts that became a molecule at all.

    ``relaxation`` is the median energy, kcal/mol, that the relaxation of the valid ones released.
    """

    valid: Share
    kept: Share
    recovered: Share
    relaxation: float | None
    statuses: Mapping[str, int]
    seconds: float


@dataclass(frozen=True, slots=True)
class AnalogueScores:
    """What became of one series.

    Attributes
    ----------
    series : str
        Its name.
    core : str
        ``fixed``, or ``free`` where only the reference tells of it.
    n_members, n_core_atoms : int
        Molecules of the series, heavy atoms of their core.
    valid : Share
        Attempts that are valid.
    with_core, novel, unique : Share
        Valid ones that have the core, are not in the series, are the first of their kind.
    similarity : float or None
        Tanimoto similarity of Morgan fingerprints to the nearest of the series, mean over the valid
        ones.
    similarity_interval : (float, float) or None
        Its bootstrap interval.
    """

    series: str
    core: str
    n_members: int
    n_core_atoms: int
    valid: Share
    with_core: Share
    novel: Share
    unique: Share
    similarity: float | None
    similarity_interval: tuple[float, float] | None
    statuses: Mapping[str, int]
    seconds: float


# --- benchmarks --------------------------------------------------------------------------------


def benchmark_linkers(
    generator: Generator,
    out: Path,
    *,
    n_pairs: int,
    n_attempts: int,
    seed: int,
    progress: ProgressBar,
    n_workers: int = 1,
) -> list[LinkerScores]:
    """Link fragments cut from reference molecules, the size given and not; writes ``linkers.json``.

    Each pair has folders of its own in ``out``, and goes on where there are some already.
    """
    tasks, rest = suite(load_reference("organic"), n_pairs, linker_cuts)
    sizes: tuple[Literal["given", "auto"], ...] = ("given", "auto")
    results: dict[str, list[GenerationResult]] = {size: [] for size in sizes}
    with progress("linkers", "attempts") as update:
        for number, (task, size) in enumerate(product(tasks, sizes)):
            result = _run(
                generator, out / f"{size}-{task.parent.digest[:12]}", n_attempts,
                task.n_removed if size == "given" else "auto", seed + number, rest, n_workers,
                scaffold=task.scaffold,
                callback=_part_of(update, number, len(sizes) * n_pairs, n_attempts),
            )  # fmt: skip
            results[size].append(result)
    rows = [
        {"size": size, **_row(task, result)}
        for size in sizes
        for task, result in zip(tasks, results[size], strict=True)
    ]
    scores = [_judge_linkers(size, tasks, results[size]) for size in sizes]
    io.write_csv(out / "linkers.csv", rows, list(rows[0]))
    io.write_json(out / "linkers.json", [asdict(one) for one in scores])
    return scores


def _judge_linkers(
    size: str, tasks: Sequence[Task], results: Sequence[GenerationResult]
) -> LinkerScores:
    pairs = list(zip(tasks, results, strict=True))
    recovered = [_recovers(task, result) for task, result in pairs]
    return LinkerScores(
        size=size,
        valid=Share.of(is_valid(a, task.scaffold) for task, r in pairs for a in r.attempts),
        solved=Share.of(r.best is not None and is_valid(r.best, t.scaffold) for t, r in pairs),
        recovered=Share.of(any(found) for found in recovered),
        recovered_by_best=Share.of(
            r.best is not None and found[r.best.index]
            for r, found in zip(results, recovered, strict=True)
        ),
        statuses=_statuses(results),
        seconds=_seconds(results),
    )


def benchmark_scaffolds(
    generator: Generator,
    out: Path,
    *,
    n_scaffolds: int,
    n_attempts: int,
    seed: int,
    progress: ProgressBar,
    n_workers: int = 1,
) -> ScaffoldScores:
    """Decorate ring systems where a substituent was cut off; writes ``scaffolds.json``."""
    tasks, rest = suite(load_reference("organic"), n_scaffolds, substituent_cuts)
    results = []
    with progress("scaffolds", "attempts") as update:
        for number, task in enumerate(tasks):
            result = _run(
                generator, out / task.parent.digest[:12], n_attempts, task.n_removed,
                seed + number, rest, n_workers, scaffold=task.scaffold,
                callback=_part_of(update, number, n_scaffolds, n_attempts),
            )  # fmt: skip
            results.append(result)
    pairs = [(task, a) for task, r in zip(tasks, results, strict=True) for a in r.attempts]
    energies = [
        a.report.relaxation_energy
        for task, a in pairs
        if is_valid(a, task.scaffold) and a.report.relaxation_energy is not None
    ]
    scores = ScaffoldScores(
        valid=Share.of(is_valid(a, task.scaffold) for task, a in pairs),
        kept=Share.of(keeps(task.scaffold, a.mol) for task, a in pairs if a.mol is not None),
        recovered=Share.of(any(_recovers(t, r)) for t, r in zip(tasks, results, strict=True)),
        relaxation=median(energies) if energies else None,
        statuses=_statuses(results),
        seconds=_seconds(results),
    )
    rows = [_row(task, result) for task, result in zip(tasks, results, strict=True)]
    io.write_csv(out / "scaffolds.csv", rows, list(rows[0]))
    io.write_json(out / "scaffolds.json", asdict(scores))
    return scores


def benchmark_analogues(
    generator: Generator,
    out: Path,
    *,
    n_attempts: int,
    seed: int,
    progress: ProgressBar,
    n_workers: int = 1,
) -> list[AnalogueScores]:
    """Make analogues of three series, their core fixed and not; writes ``analogues.json``."""
    scores = []
    for name in SERIES:
        mols = series(name)
        core = common_core(mols)
        reference = ReferenceSet(name, tuple(_reference_molecule(mol) for mol in mols))
        elements = {a.GetSymbol() for mol in mols for a in mol.GetAtoms()} - {"H", "F"}
        heavy = [mol.GetNumHeavyAtoms() for mol in mols]
        for scaffold, n_given in ((core, len(core.heavy)), (None, 0)):
            kind = "free" if scaffold is None else "fixed"
            with progress(f"{name}, core {kind}", "attempts") as update:
                result = _run(
                    generator, out / f"{name}-{kind}", n_attempts,
                    (max(1, min(heavy) - n_given), max(heavy) - n_given), seed, reference,
                    n_workers, scaffold=scaffold, elements=sorted(elements), callback=update,
                )  # fmt: skip
            scores.append(_judge_analogues(name, mols, core, scaffold, result))
            io.write_json(out / "analogues.json", [asdict(one) for one in scores])
    return scores


def _judge_analogues(
    name: str,
    mols: Sequence[Chem.Mol],
    core: Scaffold,
    scaffold: Scaffold | None,
    result: GenerationResult,
) -> AnalogueScores:
    valid = [a for a in result.attempts if is_valid(a, scaffold)]
    made = [Chem.RemoveHs(a.mol) for a in valid if a.mol is not None]
    keys = [molecule_key(mol) for mol in made]
    known = {molecule_key(mol) for mol in mols}
    pattern = core_pattern(core)
    nearest = similarities_to_nearest(made, [Chem.RemoveHs(mol) for mol in mols])
    return AnalogueScores(
        series=name,
        core="free" if scaffold is None else "fixed",
        n_members=len(mols),
        n_core_atoms=len(core.heavy),
        valid=Share.of(is_valid(a, scaffold) for a in result.attempts),
        with_core=Share.of(mol.HasSubstructMatch(pattern) for mol in made),
        novel=Share.of(key not in known for key in keys),
        unique=Share.of(key not in keys[:k] for k, key in enumerate(keys)),
        similarity=mean(nearest) if nearest else None,
        similarity_interval=bootstrap_interval(nearest, mean) if nearest else None,
        statuses=_statuses([result]),
        seconds=_seconds([result]),
    )


def core_pattern(core: Scaffold) -> Chem.Mol:
    """The core's heavy atoms as a substructure to search for, aromatic where it is."""
    bare = Chem.RemoveHs(Chem.DeleteSubstructs(core.mol, Chem.MolFromSmarts("[#0]")))
    Chem.SanitizeMol(bare)
    return bare


def similarities_to_nearest(mols: Sequence[Chem.Mol], others: Sequence[Chem.Mol]) -> list[float]:
    """Tanimoto similarity of Morgan fingerprints (radius 2, 2,048 bits) to the most alike."""
    prints = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    theirs = [prints.GetFingerprint(mol) for mol in others]
    return [
        max(DataStructs.BulkTanimotoSimilarity(prints.GetFingerprint(mol), theirs)) for mol in mols
    ]


# --- reports -----------------------------------------------------------------------------------


def linkers_to_markdown(scores: Sequence[LinkerScores]) -> str:
    """Return the scores as a table in Markdown."""
    columns = (
        "size", "pairs", "attempts", "valid", "pairs solved", "recovered", "by the best",
        "time an attempt",
    )  # fmt: skip
    rows = (
        (
            s.size, str(s.solved.n), str(s.valid.n), str(s.valid), str(s.solved), str(s.recovered),
            str(s.recovered_by_best), f"{s.seconds:.1f} s",
        )
        for s in scores
    )  # fmt: skip
    return "\n".join(table(columns, rows)) + "\n"


def scaffolds_to_markdown(scores: ScaffoldScores) -> str:
    """Return the scores as a table in Markdown."""
    columns = ("scaffolds", "attempts", "valid", "kept", "recovered", "relaxation, kcal/mol")
    energy = "-" if scores.relaxation is None else f"{scores.relaxation:.1f}"
    row = (
        str(scores.recovered.n), str(scores.valid.n), str(scores.valid), str(scores.kept),
        str(scores.recovered), energy,
    )  # fmt: skip
    return "\n".join(table(columns, [row])) + "\n"


def analogues_to_markdown(scores: Sequence[AnalogueScores]) -> str:
    """Return the scores as a table in Markdown."""
    columns = (
        "series", "core", "core atoms", "attempts", "valid", "core kept", "novel", "unique",
        "similarity",
    )  # fmt: skip
    rows = (
        (
            s.series, s.core, str(s.n_core_atoms), str(s.valid.n), str(s.valid), str(s.with_core),
            str(s.novel), str(s.unique), "-" if s.similarity is None else f"{s.similarity:.2f}",
        )
        for s in scores
    )  # fmt: skip
    return "\n".join(table(columns, rows)) + "\n"


# --- helpers -----------------------------------------------------------------------------------


def _run(
    generator: Generator,
    folder: Path,
    n_attempts: int,
    n_heavy_atoms: int | tuple[int, int] | Literal["auto"],
    seed: int,
    reference: ReferenceSet,
    n_workers: int,
    *,
    scaffold: Scaffold | None,
    callback: Callable[[float, int], None],
    elements: Sequence[str] = PLACED,
) -> GenerationResult:
    """Generate with default settings; the run in the folder goes on if there is one."""
    return generator.generate(
        n_attempts,
        n_heavy_atoms,
        reference=reference,
        elements=elements,
        scaffold=scaffold,
        seed=seed,
        n_workers=n_workers,
        out=folder,
        resume=(folder / JOURNAL).exists(),
        callback=callback,
    )


def _part_of(
    update: Callable[[float, int], None], number: int, n_runs: int, n_attempts: int
) -> Callable[[float, int], None]:
    """Progress of one of several runs as that of all."""
    return lambda n_done, _: update(number * n_attempts + n_done, n_runs * n_attempts)


def _recovers(task: Task, result: GenerationResult) -> list[bool]:
    """Whether each attempt is the molecule that was cut."""
    return [
        is_valid(a, task.scaffold) and a.mol is not None and molecule_key(a.mol) == task.key
        for a in result.attempts
    ]


def _statuses(results: Sequence[GenerationResult]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for result in results:
        counts.update(result.counts)
    return dict(counts.most_common())


def _seconds(results: Sequence[GenerationResult]) -> float:
    """Time an attempt, as the runs say."""
    n_attempts = sum(len(result.attempts) for result in results)
    return sum(sum(result.timings.values()) for result in results) / n_attempts


def _row(task: Task, result: GenerationResult) -> dict[str, Any]:
    """One line of a table about a molecule that was cut."""
    valid = [a for a in result.attempts if is_valid(a, task.scaffold)]
    best = result.best
    return {
        "molecule": task.key,
        "fragments": Chem.MolToSmiles(Chem.RemoveHs(task.scaffold.mol)),
        "n_removed": task.n_removed,
        "n_attempts": len(result.attempts),
        "n_valid": len(valid),
        "recovered": any(_recovers(task, result)),
        "best": None if best is None else best.report.smiles,
        "others": " ".join(str(r.status) for r in result.reports if r.status is not Status.OK),
    }


def _reference_molecule(mol: Chem.Mol) -> ReferenceMolecule:
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.int64)
    return ReferenceMolecule(
        Chem.MolToSmiles(Chem.RemoveHs(mol)), numbers, mol.GetConformer().GetPositions(), mol
    )
