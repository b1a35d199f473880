"""Which molecules and which geometries of them the training set holds.

Everything here is a pure function of a molecule's SMILES: random numbers come from a generator
seeded by the SMILES' hash, so a task gives the same geometries whenever and wherever it runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from simgen.data.collections import (
    ELEMENTS,
    CollectionMolecule,
    is_supported,
    load_collections,
    scaffold_split,
    stable_hash,
)
from simgen.elements import COVALENT_RADII
from simgen.xtb import GFN2, XtbError, relax

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

LARGEST_FORCE = 40.0
"""eV/A; geometries with a larger force on any atom teach nothing a molecule needs."""

RELAXED_FORCE = 0.03
"""eV/A; largest force on an atom of a relaxed geometry."""

DISPLACEMENTS: tuple[tuple[float, float], ...] = (
    (0.01, 0.05),
    (0.05, 0.1),
    (0.1, 0.15),
    (0.15, 0.25),
)
"""Ranges of the Gaussian amplitude in angstrom, one displaced geometry each."""


class Origin(StrEnum):
    """Where a task's molecule comes from."""

    COLLECTION = "collection"
    FRAGMENT = "fragment"
    MUTANT = "mutant"
    DIMER = "dimer"
    DIATOMIC = "diatomic"


class Kind(StrEnum):
    """How a geometry was made; stored as its index."""

    RELAXED = "relaxed"
    PATH = "path"
    DISPLACED_TO_50 = "displaced 0.01-0.05"
    DISPLACED_TO_100 = "displaced 0.05-0.10"
    DISPLACED_TO_150 = "displaced 0.10-0.15"
    DISPLACED_TO_250 = "displaced 0.15-0.25"
    STRETCHED = "stretched"
    RAW = "distance geometry"
    TRAJECTORY = "trajectory"
    DIMER = "dimer"
    DIATOMIC = "diatomic"


KINDS: tuple[Kind, ...] = tuple(Kind)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Numbers of molecules of each origin, and the largest one in heavy atoms.

    ``n_tasks`` limits the work to the first so many tasks of the well-mixed list; raising it later
    keeps what was labelled.
    """

    n_collection: int = 2300
    n_fragments: int = 1200
    n_mutants: int = 1000
    n_dimers: int = 300
    max_heavy_atoms: int = 20
    n_tasks: int | None = 3160


@dataclass(frozen=True, slots=True)
class Task:
    """One molecule to label.

    ``key`` is its SMILES (two for a dimer, joined by a dot; two symbols for a diatomic).
    """

    origin: Origin
    key: str
    split: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class LabelledGeometry:
    """A geometry with its GFN2-xTB label: positions in A, energy in eV, forces in eV/A."""

    kind: Kind
    numbers: IntArray
    positions: FloatArray
    energy: float
    forces: FloatArray


def make_tasks(recipe: Recipe) -> list[Task]:
    """All tasks of a recipe in a fixed, well-mixed order."""
    with rdBase.BlockLogs():
        return _make_tasks(recipe)


def _make_tasks(recipe: Recipe) -> list[Task]:
    molecules = load_collections(2, recipe.max_heavy_atoms)
    small_first = sorted(molecules, key=lambda m: _n_heavy(m.smiles) > 12)  # stable sort
    chosen = small_first[: recipe.n_collection]
    fragments = _fragments(molecules, recipe.n_fragments, {m.smiles for m in chosen})
    seen = {m.smiles for m in molecules} | set(fragments)
    mutants = _mutants(fragments + [m.smiles for m in chosen[:1500]], recipe.n_mutants, seen)
    tasks = [Task(Origin.COLLECTION, m.smiles, _split(m.smiles), m.source) for m in chosen]
    tasks += [Task(Origin.FRAGMENT, smiles, _split(smiles)) for smiles in fragments]
    tasks += [Task(Origin.MUTANT, smiles, _split(smiles)) for smiles in mutants]
    trainable = [smiles for smiles in fragments if _split(smiles) == "train"]
    tasks += [
        Task(Origin.DIMER, f"{trainable[i]}.{trainable[-1 - (7 * i) % len(trainable)]}", "train")
        for i in range(min(recipe.n_dimers, len(trainable)))
    ]
    if recipe.n_dimers:
        tasks += [
            Task(Origin.DIATOMIC, f"{a}.{b}", "train")
            for i, a in enumerate(ELEMENTS)
            for b in ELEMENTS[i:]
        ]
    mixed = sorted(tasks, key=lambda task: (stable_hash(task.origin + task.key), task.key))
    return mixed[: recipe.n_tasks]


def label_task(task: Task) -> list[LabelledGeometry]:
    """Make and label the geometries of one task; an empty list if its molecule cannot be made."""
    rng = np.random.default_rng(stable_hash(task.key))
    with rdBase.BlockLogs():
        if task.origin is Origin.DIATOMIC:
            labelled = _label_diatomic(task.key)
        elif task.origin is Origin.DIMER:
            labelled = _label_dimer(task.key, rng)
        else:
            labelled = _label_molecule(task.key, rng)
    return [g for g in labelled if np.linalg.norm(g.forces, axis=1).max() <= LARGEST_FORCE]


# --- molecules ------------------------------------------------------------------------------


def _n_heavy(smiles: str) -> int:
    return int(Chem.MolFromSmiles(smiles).GetNumHeavyAtoms())


def _split(smiles: str) -> str:
    return scaffold_split(Chem.MolFromSmiles(smiles))


def _fragments(molecules: Sequence[CollectionMolecule], n: int, known: set[str]) -> list[str]:
    """Most frequent pieces of 1-9 heavy atoms left by cutting one to three acyclic single bonds."""
    counts: Counter[str] = Counter()
    cuttable = Chem.MolFromSmarts("[!#1]-!@[!#1]")
    for molecule in molecules[:5000] if n else ():
        mol = Chem.MolFromSmiles(molecule.smiles)
        Chem.RemoveStereochemistry(mol)
        bonds = [
            mol.GetBondBetweenAtoms(*pair).GetIdx() for pair in mol.GetSubstructMatches(cuttable)
        ]
        if not bonds:
            continue
        rng = np.random.default_rng(stable_hash(molecule.smiles))
        for n_cuts in (1, 2, 3):
            cuts = rng.choice(bonds, size=min(n_cuts, len(bonds)), replace=False)
            pieces = Chem.FragmentOnBonds(mol, [int(c) for c in cuts], addDummies=False)
            counts.update(set(Chem.MolToSmiles(pieces).split(".")))
    fragments = []
    for smiles, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        mol = Chem.MolFromSmiles(smiles)
        if mol is None or not is_supported(mol) or not 1 <= mol.GetNumHeavyAtoms() <= 9:
            continue
        if (canonical := Chem.MolToSmiles(mol)) not in known:
            fragments.append(canonical)
        if len(fragments) == n:
            break
    return fragments


def _mutants(parents: list[str], n: int, known: set[str]) -> list[str]:
    """Strange but valence-correct relatives of small molecules: what a generator may propose."""
    small = [smiles for smiles in parents if 4 <= _n_heavy(smiles) <= 11]
    mutants: dict[str, None] = {}
    attempt = 0
    while len(mutants) < n and attempt < 20 * n:
        parent = small[attempt % len(small)]
        rng = np.random.default_rng(stable_hash(f"{parent} mutant {attempt}"))
        attempt += 1
        mol = Chem.RWMol(Chem.MolFromSmiles(parent))
        Chem.RemoveStereochemistry(mol)
        Chem.Kekulize(mol, clearAromaticFlags=True)
        for _ in range(int(rng.integers(1, 4))):
            _edit(mol, rng)
        if Chem.SanitizeMol(mol, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
            continue
        smiles = Chem.MolToSmiles(mol)
        checked = Chem.MolFromSmiles(smiles)
        if "." not in smiles and checked is not None and is_supported(checked):
            canonical = Chem.MolToSmiles(checked)
            if canonical not in known:
                mutants[canonical] = None
    return list(mutants)


def _edit(mol: Chem.RWMol, rng: Generator) -> None:
    """Change one element, one bond order, or close one ring, in place."""
    edit = rng.integers(3)
    if edit == 0:
        atom = mol.GetAtomWithIdx(int(rng.integers(mol.GetNumAtoms())))
        atom.SetAtomicNum(int(rng.choice([6, 6, 7, 7, 8, 8, 9, 16])))
        atom.SetFormalCharge(0)
        atom.SetNoImplicit(False)
        atom.SetNumExplicitHs(0)
    elif edit == 1 and mol.GetNumBonds():
        bond = mol.GetBondWithIdx(int(rng.integers(mol.GetNumBonds())))
        orders = [Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE]
        bond.SetBondType(orders[int(rng.choice([0, 1, 1, 2]))])
    else:
        distances = Chem.GetDistanceMatrix(mol, force=True)  # RDKit would reuse an older one
        pairs = np.argwhere(np.triu((distances >= 2) & (distances <= 5)))
        if len(pairs):
            i, j = pairs[int(rng.integers(len(pairs)))]
            mol.AddBond(int(i), int(j), Chem.BondType.SINGLE)


def embed(smiles: str, *, knowledge: bool = True) -> tuple[Chem.Mol, FloatArray] | None:
    """Molecule with hydrogens and one conformer in angstrom, (n_atoms, 3); None if RDKit fails.

    With ``knowledge`` it is ETKDGv3 followed by MMFF94 (UFF where MMFF lacks parameters),
    without it the bare result of distance geometry.
    """
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    parameters: Any = rdDistGeom.ETKDGv3()  # RDKit's stubs have no writable attributes
    parameters.randomSeed = stable_hash(smiles) % 2**30
    parameters.maxIterations = 50
    parameters.useExpTorsionAnglePrefs = knowledge
    parameters.useBasicKnowledge = knowledge
    if rdDistGeom.EmbedMolecule(mol, parameters) != 0:
        parameters.useRandomCoords = True
        if rdDistGeom.EmbedMolecule(mol, parameters) != 0:
            return None
    if knowledge:
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
            rdForceFieldHelpers.MMFFOptimizeMolecule(mol, maxIters=500)
        elif rdForceFieldHelpers.UFFHasAllMoleculeParams(mol):
            rdForceFieldHelpers.UFFOptimizeMolecule(mol, maxIters=500)
    return mol, np.asarray(mol.GetConformer().GetPositions())


# --- geometries -----------------------------------------------------------------------------


def _label_molecule(smiles: str, rng: Generator) -> list[LabelledGeometry]:
    embedded = embed(smiles)
    if embedded is None:
        return []
    mol, start = embedded
    numbers = np.array([a.GetAtomicNum() for a in mol.GetAtoms()])
    try:
        path = relax(numbers, start, f_max=RELAXED_FORCE, max_steps=80)
    except XtbError:
        return []
    labelled = []
    if path.converged and len(path.energies) > 4:
        for fraction in (0.0, 0.35):
            frame = int(fraction * (len(path.energies) - 2))
            labelled.append(
                LabelledGeometry(
                    Kind.PATH,
                    numbers,
                    path.positions[frame],
                    float(path.energies[frame]),
                    path.forces[frame],
                )
            )
    if path.converged:
        labelled.append(
            LabelledGeometry(
                Kind.RELAXED,
                numbers,
                path.positions[-1],
                float(path.energies[-1]),
                path.forces[-1],
            )
        )
    minimum = path.positions[-1]
    geometries: list[tuple[Kind, FloatArray]] = []
    for (low, high), kind in zip(
        DISPLACEMENTS,
        (
            Kind.DISPLACED_TO_50,
            Kind.DISPLACED_TO_100,
            Kind.DISPLACED_TO_150,
            Kind.DISPLACED_TO_250,
        ),
        strict=True,
    ):
        geometries.append((kind, minimum + rng.uniform(low, high) * rng.normal(size=minimum.shape)))
    geometries.append((Kind.STRETCHED, _stretched(mol, minimum, rng)))
    raw = embed(smiles, knowledge=False)
    if raw is not None:
        geometries.append((Kind.RAW, raw[1]))
    labelled += _label(numbers, geometries)
    if len(numbers) <= 24 and rng.uniform() < 0.25:
        labelled += _trajectory(numbers, minimum, rng)
    return labelled


def _label(
    numbers: IntArray, geometries: Iterable[tuple[Kind, FloatArray]], n_unpaired: int = 0
) -> list[LabelledGeometry]:
    """Label geometries; those without a converged electron density are left out."""
    gfn2 = GFN2(numbers, n_unpaired=n_unpaired)
    labelled = []
    for kind, positions in geometries:
        try:
            energy, forces = gfn2(positions)
        except XtbError:
            continue
        labelled.append(LabelledGeometry(kind, numbers, positions, energy, forces))
    return labelled


def _stretched(mol: Chem.Mol, positions: FloatArray, rng: Generator) -> FloatArray:
    """Scale one bond by 0.75-1.7, moving what hangs on its end; a ring bond scales everything."""
    bond = mol.GetBondWithIdx(int(rng.integers(mol.GetNumBonds())))
    i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
    if bond.IsInRing():
        return positions * rng.uniform(0.88, 1.15)
    cut = Chem.RWMol(mol)
    cut.RemoveBond(i, j)
    side = next(part for part in Chem.GetMolFrags(cut) if j in part)
    stretched = positions.copy()
    factor = rng.uniform(0.75, 1.0) if rng.uniform() < 0.5 else rng.uniform(1.0, 1.7)
    stretched[list(side)] += (factor - 1.0) * (positions[j] - positions[i])
    return stretched + 0.02 * rng.normal(size=positions.shape)


def _trajectory(numbers: IntArray, start: FloatArray, rng: Generator) -> list[LabelledGeometry]:
    """Two frames of 30 fs of molecular dynamics started with 1500 K of kinetic energy."""
    mass_unit = 103.642697  # eV fs^2 / A^2 of one dalton
    weights = Chem.GetPeriodicTable()
    masses = mass_unit * np.array([weights.GetAtomicWeight(int(z)) for z in numbers])[:, None]
    time_step = 1.0  # fs
    velocities = rng.normal(size=start.shape) * np.sqrt(8.617333e-5 * 1500.0 / masses)
    gfn2 = GFN2(numbers)
    frames = []
    try:
        x = start
        _, forces = gfn2(x)
        for step in range(1, 31):
            velocities = velocities + 0.5 * time_step * forces / masses
            x = x + time_step * velocities
            energy, forces = gfn2(x)
            velocities = velocities + 0.5 * time_step * forces / masses
            if step in (15, 30):
                frames.append(LabelledGeometry(Kind.TRAJECTORY, numbers, x, energy, forces))
    except XtbError:
        pass
    return frames


def _label_dimer(key: str, rng: Generator) -> list[LabelledGeometry]:
    """Two molecules in random orientation at three closest contacts between 1.6 and 4 A."""
    parts = []
    for smiles in key.split("."):
        embedded = embed(smiles)
        if embedded is None:
            return []
        mol, positions = embedded
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        numbers = np.array([a.GetAtomicNum() for a in mol.GetAtoms()])
        parts.append((numbers, (positions - positions.mean(axis=0)) @ rotation))
    (z1, x1), (z2, x2) = parts
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    geometries = []
    for contact in (rng.uniform(1.6, 2.2), rng.uniform(2.2, 3.0), rng.uniform(3.0, 4.0)):
        shifts = np.arange(0.0, 30.0, 0.02)
        moved = x2[None] + shifts[:, None, None] * direction
        closest = np.linalg.norm(x1[None, :, None] - moved[:, None], axis=-1).min(axis=(1, 2))
        shift = shifts[np.argmax(closest[::-1] < contact) * -1 - 1]
        geometries.append((Kind.DIMER, np.concatenate([x1, x2 + shift * direction])))
    return _label(np.concatenate([z1, z2]), geometries)


def _label_diatomic(key: str) -> list[LabelledGeometry]:
    """Two atoms at eight distances around the sum of their covalent radii, lowest spin."""
    numbers = np.array([int(z) for z in key.split(".")])
    bond = COVALENT_RADII[int(numbers[0])] + COVALENT_RADII[int(numbers[1])]
    geometries = [
        (Kind.DIATOMIC, np.array([[0.0, 0.0, 0.0], [0.0, 0.0, bond * factor]]))
        for factor in (0.7, 0.8, 0.9, 1.0, 1.1, 1.3, 1.6, 2.0)
    ]
    return _label(numbers, geometries, n_unpaired=int(numbers.sum()) % 2)
