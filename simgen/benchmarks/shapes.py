"""How well molecules take the shape they are given.

Every attempt is in every denominator of *valid*, which is that all checks of the program's own
report passed and that the molecule has all the heavy atoms that were asked for: what is left of one
whose atoms mostly fell off has no shape. Distances and overlaps are those of the valid molecules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import rdShapeAlign, rdShapeHelpers
from scipy.spatial import cKDTree

from simgen import io
from simgen.benchmarks.quality import ProgressBar
from simgen.errors import InputError
from simgen.finishing.status import Status
from simgen.generation import JOURNAL, GenerationResult, Generator
from simgen.priors import AtomPrior, Circle
from simgen.reference import ReferenceMolecule, ReferenceSet, load_reference
from simgen.shapes import shape_of_molecule
from simgen.validation import molecule_key

MACROCYCLE_RADIUS = 4.0
"""Radius of the published macrocycles, angstrom (Elijošius et al. 2025)."""
MACROCYCLE_ATOMS = 38
"""Heavy atoms of the published macrocycles."""
MIN_MACROCYCLE = 12
"""Atoms that a ring has at least to count as a macrocycle (IUPAC, Gold Book, macrocycle)."""
HELD_OUT_SIZES = (12, 24)
"""Heavy atoms of the reference molecules whose shapes are imitated."""

_MIN_ATOMS = 10
"""Smaller molecules tell nothing about densities."""
_FLAT = 0.1
"""A molecule whose heavy atoms are spread less than this across its plane is planar, angstrom."""
_COMPACT = 0.5
"""A molecule whose least spread is more than this share of its largest one is compact."""


# --- distances ---------------------------------------------------------------------------------


def distances_to_shape(
    positions: NDArray[np.float64], outline: NDArray[np.float64]
) -> tuple[float, float]:
    """Chamfer and Hausdorff distance between atoms and a shape, in angstrom.

    Chamfer: half the mean distance of atoms to the shape, plus half that of the points of the shape
    to the atoms. Hausdorff: the largest of all these distances.

    Parameters
    ----------
    positions, outline : ndarray, shapes (n_atoms, 3) and (n_points, 3)
        In angstrom.
    """
    to_shape, _ = cKDTree(outline).query(positions)
    to_atoms, _ = cKDTree(positions).query(outline)
    chamfer = (to_shape.mean() + to_atoms.mean()) / 2
    return float(chamfer), float(max(to_shape.max(), to_atoms.max()))


def shape_tanimoto(mol: Chem.Mol, reference: Chem.Mol) -> float:
    """Shape Tanimoto of the heavy atoms of two molecules, at their best overlay.

    Overlays tried are the one as they are, and that of RDKit's shape alignment.

    References
    ----------
    J. A. Grant, M. A. Gallardo, B. T. Pickup, J. Comput. Chem. 17, 1653 (1996): the alignment.
    """
    probe, target = Chem.RemoveAllHs(mol), Chem.RemoveAllHs(reference)
    overlaps = [1.0 - rdShapeHelpers.ShapeTanimotoDist(probe, target)]
    rdShapeAlign.AlignMol(target, probe, useColors=False)
    overlaps.append(1.0 - rdShapeHelpers.ShapeTanimotoDist(probe, target))
    return float(max(overlaps))


def largest_ring(mol: Chem.Mol) -> int:
    """Atoms of the largest ring of the smallest set of rings; 0 without rings."""
    return max((len(ring) for ring in mol.GetRingInfo().AtomRings()), default=0)


def heavy_positions(mol: Chem.Mol) -> NDArray[np.float64]:
    """Positions of the heavy atoms, shape (n_heavy_atoms, 3), angstrom."""
    heavy = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum() > 1]
    positions: NDArray[np.float64] = np.asarray(mol.GetConformer().GetPositions())[heavy]
    return positions


def whole_molecules(result: GenerationResult) -> list[Chem.Mol]:
    """The valid molecules that have all the heavy atoms that were asked for."""
    return [
        attempt.mol
        for attempt in result.attempts
        if attempt.mol is not None
        and attempt.report.status is Status.OK
        and attempt.report.n_dropped == 0
    ]


# --- what is measured --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShapeScores:
    """How well the molecules of one shape fit it.

    ``chamfer`` and ``hausdorff`` are medians over the valid molecules, in angstrom, where they are;
    None if there are none.
    """

    name: str
    n_heavy_atoms: int
    n_attempts: int
    valid: float
    chamfer: float | None
    hausdorff: float | None


@dataclass(frozen=True, slots=True)
class MacrocycleScores:
    """The published macrocycles: ``with_ring`` is the share of the valid molecules with a ring of
    at least ``MIN_MACROCYCLE`` atoms.
    """

    n_attempts: int
    valid: float
    with_ring: float | None


@dataclass(frozen=True, slots=True)
class MoleculeScores:
    """Molecules as shapes: ``tanimoto`` is the mean over the valid molecules, and ``recovered`` the
    share of all attempts that are the molecule whose shape was given.
    """

    n_references: int
    n_attempts: int
    valid: float
    tanimoto: float | None
    recovered: float


@dataclass(frozen=True, slots=True)
class Scores:
    """All that was measured; None for a part that was not."""

    shapes: tuple[ShapeScores, ...]
    macrocycles: MacrocycleScores | None
    molecules: MoleculeScores | None


def benchmark(
    generator: Generator,
    priors: Mapping[str, AtomPrior],
    out: Path,
    *,
    n_attempts: int,
    n_macrocycles: int,
    n_molecules: int,
    seed: int,
    progress: ProgressBar,
    n_workers: int = 1,
) -> Scores:
    """Measure shapes, macrocycles and molecules as shapes, and write ``scores.json``.

    Each run has a folder of its own in ``out`` and goes on if there is one already.

    Parameters
    ----------
    priors : mapping of str to AtomPrior
        The shapes by name.
    n_attempts, n_macrocycles, n_molecules : int
        Attempts of each shape, of macrocycles, and molecules whose shape is imitated once each.
    """
    shapes = tuple(
        benchmark_shape(
            generator, name, prior, n_attempts, seed, out / name,
            progress=progress, n_workers=n_workers,
        )
        for name, prior in priors.items()
    )  # fmt: skip
    macrocycles = molecules = None
    if n_macrocycles:
        macrocycles = benchmark_macrocycles(
            generator, n_macrocycles, seed, out / "macrocycles",
            progress=progress, n_workers=n_workers,
        )  # fmt: skip
    if n_molecules:
        molecules = benchmark_molecules(
            generator, load_reference("organic"), n_molecules, 1, seed, out / "molecules",
            progress=progress, n_workers=n_workers,
        )  # fmt: skip
    scores = Scores(shapes, macrocycles, molecules)
    io.write_json(out / "scores.json", asdict(scores))
    return scores


def to_markdown(scores: Scores) -> str:
    """Return the scores as tables in Markdown."""

    def show(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    lines: list[str] = []
    if scores.shapes:
        lines += [
            "| shape | heavy atoms | attempts | valid | Chamfer / Å | Hausdorff / Å |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for s in scores.shapes:
            distances = f"{show(s.chamfer, '.2f')} | {show(s.hausdorff, '.2f')}"
            lines.append(
                f"| {s.name} | {s.n_heavy_atoms} | {s.n_attempts} | {s.valid:.0%} | {distances} |"
            )
    if (m := scores.macrocycles) is not None:
        lines += [
            "",
            f"{m.n_attempts} macrocycles: {m.valid:.0%} valid; a ring of at least "
            f"{MIN_MACROCYCLE} atoms in {show(m.with_ring, '.0%') or 'none'} of these.",
        ]
    if (n := scores.molecules) is not None:
        lines += [
            "",
            f"{n.n_references} molecules as shapes: {n.valid:.0%} valid; mean shape Tanimoto "
            f"{show(n.tanimoto, '.2f') or 'unknown'}; {n.recovered:.0%} of all attempts are the "
            "molecule itself.",
        ]
    return "\n".join(lines).strip() + "\n"


def benchmark_shape(
    generator: Generator,
    name: str,
    prior: AtomPrior,
    n_attempts: int,
    seed: int,
    out: Path,
    *,
    progress: ProgressBar,
    n_workers: int = 1,
) -> ShapeScores:
    """Give molecules a shape, as many heavy atoms as suit it, and measure how they fit."""
    result = _run(generator, name, prior, "auto", n_attempts, seed, out, progress, n_workers)
    outline = prior.outline().numpy()
    pairs = [distances_to_shape(heavy_positions(mol), outline) for mol in whole_molecules(result)]
    scores = ShapeScores(
        name=name,
        n_heavy_atoms=result.config.n_heavy_atoms[0],
        n_attempts=n_attempts,
        valid=len(pairs) / n_attempts,
        chamfer=float(np.median([chamfer for chamfer, _ in pairs])) if pairs else None,
        hausdorff=float(np.median([hausdorff for _, hausdorff in pairs])) if pairs else None,
    )
    io.write_json(out / "scores.json", asdict(scores))
    return scores


def benchmark_macrocycles(
    generator: Generator,
    n_attempts: int,
    seed: int,
    out: Path,
    *,
    progress: ProgressBar,
    n_workers: int = 1,
) -> MacrocycleScores:
    """Repeat the published macrocycle experiment.

    References
    ----------
    Elijošius et al. 2025, doi 10.1038/s41467-025-60963-3, macrocycles.
    """
    prior = Circle(MACROCYCLE_RADIUS)
    result = _run(
        generator,
        "macrocycles",
        prior,
        MACROCYCLE_ATOMS,
        n_attempts,
        seed,
        out,
        progress,
        n_workers,
    )
    rings = [largest_ring(mol) for mol in whole_molecules(result)]
    n_with_ring = sum(ring >= MIN_MACROCYCLE for ring in rings)
    scores = MacrocycleScores(
        n_attempts=n_attempts,
        valid=len(rings) / n_attempts,
        with_ring=n_with_ring / len(rings) if rings else None,
    )
    io.write_json(out / "scores.json", asdict(scores))
    return scores


def hold_out(
    reference: ReferenceSet, n_molecules: int
) -> tuple[list[ReferenceMolecule], ReferenceSet]:
    """Take molecules of 12 to 24 heavy atoms out of a reference set.

    Those with the smallest checksums: as good as at random, and the same on every machine.

    Raises
    ------
    InputError
        If there are too few of that size.
    """
    low, high = HELD_OUT_SIZES
    fitting = [
        molecule
        for molecule in reference.molecules
        if molecule.mol is not None and low <= (molecule.atomic_numbers > 1).sum() <= high
    ]
    held_out = sorted(fitting, key=lambda molecule: molecule.digest)[:n_molecules]
    if len(held_out) < n_molecules:
        raise InputError(
            f"expected at most {len(fitting)} molecules, of which the reference set has "
            f"{low} to {high} heavy atoms, got {n_molecules}"
        )
    taken = {molecule.digest for molecule in held_out}
    rest = tuple(m for m in reference.molecules if m.digest not in taken)
    return held_out, ReferenceSet(f"{reference.name} without {n_molecules}", rest)


def benchmark_molecules(
    generator: Generator,
    reference: ReferenceSet,
    n_references: int,
    n_attempts: int,
    seed: int,
    out: Path,
    *,
    progress: ProgressBar,
    n_workers: int = 1,
) -> MoleculeScores:
    """Give molecules the shapes of held-out reference molecules, and measure their overlap.

    Parameters
    ----------
    n_references : int
        How many molecules to hold out, each of which is a shape.
    n_attempts : int
        Attempts for each of them.
    """
    held_out, rest = hold_out(reference, n_references)
    rows: list[dict[str, object]] = []
    overlaps: list[float] = []
    n_recovered = 0
    for number, molecule in enumerate(held_out):
        assert molecule.mol is not None
        heavy = heavy_positions(molecule.mol)
        result = _run(
            generator,
            f"molecule {number + 1}",
            shape_of_molecule(heavy),
            len(heavy),
            n_attempts,
            seed + number,
            out / molecule.digest[:12],
            progress,
            n_workers,
            reference=rest,
        )
        whole = whole_molecules(result)
        found = [shape_tanimoto(mol, molecule.mol) for mol in whole]
        overlaps += found
        key = molecule_key(molecule.mol)
        n_same = sum(molecule_key(mol) == key for mol in whole)
        n_recovered += n_same
        rows.append(
            {
                "reference": molecule.name,
                "n_heavy_atoms": len(heavy),
                "n_attempts": n_attempts,
                "n_valid": len(found),
                "n_recovered": n_same,
                "tanimoto": float(np.mean(found)) if found else None,
            }
        )
    io.write_csv(out / "molecules.csv", rows, list(rows[0]))
    n_total = n_references * n_attempts
    scores = MoleculeScores(
        n_references=n_references,
        n_attempts=n_total,
        valid=len(overlaps) / n_total,
        tanimoto=float(np.mean(overlaps)) if overlaps else None,
        recovered=n_recovered / n_total,
    )
    io.write_json(out / "scores.json", asdict(scores))
    return scores


def _run(
    generator: Generator,
    name: str,
    prior: AtomPrior,
    n_heavy_atoms: int | Literal["auto"],
    n_attempts: int,
    seed: int,
    out: Path,
    progress: ProgressBar,
    n_workers: int,
    *,
    reference: ReferenceSet | str = "organic",
) -> GenerationResult:
    """Generate with default settings; the run in the folder goes on if there is one."""
    with progress(name, "attempts") as update:
        return generator.generate(
            n_attempts,
            n_heavy_atoms,
            prior=prior,
            reference=reference,
            seed=seed,
            n_workers=n_workers,
            out=out,
            resume=(out / JOURNAL).exists(),
            callback=update,
        )


# --- densities ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Densities:
    """Heavy atoms for each angstrom^2 of planar molecules, and angstrom^3 of compact ones."""

    surface: float
    n_planar: int
    solid: float
    n_compact: int


def measure_densities(molecules: Sequence[ReferenceMolecule]) -> Densities:
    """Measure how densely the heavy atoms of molecules fill a surface or a volume.

    The area of a planar molecule is that of the elliptical disc with the same principal variances
    (an axis of semi-length a has a^2 / 4), the volume of a compact molecule that of the ellipsoid
    (a^2 / 5). These are the regions of the centres of atoms, as those of a prior are. Medians over
    the molecules of at least 10 heavy atoms that are planar, or compact.
    """
    surface, solid = [], []
    for molecule in molecules:
        positions = molecule.positions[molecule.atomic_numbers > 1]
        if len(positions) < _MIN_ATOMS:
            continue
        variances = np.linalg.eigvalsh(np.cov(positions.T, bias=True)).clip(min=0.0)
        low, middle, high = np.sqrt(variances)
        if low < _FLAT:
            surface.append(len(positions) / (math.pi * 4 * middle * high))
        elif low > _COMPACT * high:
            solid.append(len(positions) / (4 / 3 * math.pi * 5**1.5 * low * middle * high))
    if not surface or not solid:
        raise InputError("expected planar and compact molecules, got none of one kind")
    return Densities(float(np.median(surface)), len(surface), float(np.median(solid)), len(solid))
