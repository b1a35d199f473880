"""Files in, files out: the boundary where molecules meet the formats of other programs.

Readers return one :class:`Record` an entry, so that a bad entry is a row with its reason and not a
lost file. Writers are atomic: they write a temporary file in the folder of the target and then
rename it, so that a reader (or a run that is resumed) never meets half a file.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdDepictor, rdDetermineBonds, rdDistGeom, rdForceFieldHelpers
from rdkit.Chem.Draw import rdMolDraw2D

from simgen.errors import InputError, LoadError, SimgenError

CONFORMER_SEED = 20_250_715
"""Seed of the RDKit conformers made for entries without coordinates: any fixed number does."""

N_GRID_MOLECULES = 100
"""At most this many molecules are drawn in a grid, so that the picture stays one to look at."""

_SMILES_SUFFIXES = (".smi", ".smiles", ".txt", ".csv")
_SDF_SUFFIXES = (".sdf", ".sd", ".mol")
_XYZ_SUFFIXES = (".xyz", ".extxyz")


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One entry of a molecule file.

    Attributes
    ----------
    index : int
        Place in the file: entries are counted from 1.
    line : int
        Line of the file on which the entry starts, counted from 1.
    name : str
        Title of the entry, or ``"NAME-INDEX"`` with the name of the file.
    mol : Chem.Mol or None
        Sanitised molecule with the atoms of the file; None for XYZ, which has no bonds.
    atomic_numbers : ndarray, shape (n_atoms,), int64, or None
        Nuclear charges; None where there are no 3D coordinates.
    positions : ndarray, shape (n_atoms, 3), float64, or None
        Coordinates in angstrom; None where there are none in 3D.
    error : str or None
        Why the entry cannot be read; then all three above are None.
    """

    index: int
    line: int
    name: str
    mol: Chem.Mol | None = None
    atomic_numbers: NDArray[np.int64] | None = None
    positions: NDArray[np.float64] | None = None
    error: str | None = None

    @property
    def geometry(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Atomic numbers and positions of an entry that has 3D coordinates.

        Raises
        ------
        InputError
            If it has none.
        """
        if self.atomic_numbers is None or self.positions is None:
            raise InputError(f"expected 3D coordinates of {self.name}, got none; embed it first")
        return self.atomic_numbers, self.positions

    @property
    def n_missing_hydrogens(self) -> int:
        """Hydrogens that the bonds call for and that are no atoms; 0 where bonds are unknown."""
        if self.mol is None:
            return 0
        return sum(int(atom.GetTotalNumHs()) for atom in self.mol.GetAtoms())


def read_molecules(path: str | Path) -> list[Record]:
    """Read a file of molecules.

    Parameters
    ----------
    path : str or Path
        SDF (V2000 or V3000), SMILES (``.smi .smiles .txt .csv``, first column; the second one is
        the name) or XYZ (plain or extended, any number of frames); ``.gz`` of each.

    Returns
    -------
    list of Record
        One for each entry, in the order of the file; entries that cannot be read have an ``error``.

    Raises
    ------
    LoadError
        If the file is missing, empty, of an unknown format or without a single readable entry.
    """
    path = Path(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    stem = path.name.split(".")[0]
    readers = {_SDF_SUFFIXES: _read_sdf, _SMILES_SUFFIXES: _read_smiles, _XYZ_SUFFIXES: _read_xyz}
    reader = next((f for endings, f in readers.items() if suffix in endings), None)
    if reader is None:
        raise LoadError(
            f"cannot tell the format of {path}: expected a name ending in .sdf, .smi, .csv, .txt "
            "or .xyz (.gz of these too); rename it"
        )
    text = _read_text(path)
    if not text.strip():
        raise LoadError(f"{path} is empty; expected at least one molecule")
    with rdBase.BlockLogs():
        records = list(reader(text, stem))
    if all(record.error for record in records):
        reason = f"; first problem: {records[0].error}" if records else ""
        raise LoadError(f"{path} holds no readable molecule{reason}")
    return records


def _read_text(path: Path) -> str:
    """Text of a file, decompressed where its name ends in .gz."""
    try:
        data = path.read_bytes()
        if path.suffix.lower() == ".gz":
            data = gzip.decompress(data)
        return data.decode()
    except FileNotFoundError:
        raise LoadError(f"{path} does not exist; check the path") from None
    except UnicodeDecodeError:
        raise LoadError(f"{path} is not a text file; expected SDF, SMILES or XYZ") from None
    except (OSError, EOFError) as error:
        raise LoadError(f"cannot read {path}: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    """Return what went wrong, on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())


def _record_of_mol(mol: Chem.Mol, index: int, line: int, name: str) -> Record:
    """Sanitise a molecule as it was parsed; what is wrong with it becomes the record's error."""
    try:
        Chem.SanitizeMol(mol)
    except Chem.MolSanitizeException as error:
        return Record(index, line, name, error=_reason(error))
    if mol.GetNumAtoms() == 0:
        return Record(index, line, name, error="an entry without atoms")
    if mol.GetNumConformers() == 0 or not mol.GetConformer().Is3D():
        Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
        return Record(index, line, name, mol)
    positions = np.asarray(mol.GetConformer().GetPositions(), dtype=np.float64)
    if not np.isfinite(positions).all():
        return Record(index, line, name, error="coordinates that are not finite")
    Chem.AssignStereochemistryFrom3D(mol)
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.int64)
    return Record(index, line, name, mol, numbers, positions)


def _read_sdf(text: str, stem: str) -> Iterator[Record]:
    lines = text.splitlines()
    # Split here and not by RDKit: one broken entry then cannot take its neighbours with it.
    ends = [k for k, line in enumerate(lines) if line.startswith("$$$$")]
    starts = [0, *(end + 1 for end in ends)]
    ends.append(len(lines))
    index = 0
    for start, end in zip(starts, ends, strict=True):
        block = lines[start:end]
        if not any(line.strip() for line in block):
            continue
        index += 1
        name = block[0].strip() or f"{stem}-{index}"
        supplier = Chem.SDMolSupplier()
        supplier.SetData("\n".join([*block, "$$$$", ""]), sanitize=False, removeHs=False)
        mol = next(iter(supplier), None)
        if mol is None:
            yield Record(index, start + 1, name, error="not a V2000 or V3000 molecule block")
            continue
        if mol.GetNumConformers() and not mol.GetConformer().Is3D():
            # Wedges are what tells the stereo centres of a drawing.
            Chem.AssignChiralTypesFromBondDirs(mol)
        yield _record_of_mol(mol, index, start + 1, name)


def _read_smiles(text: str, stem: str) -> Iterator[Record]:
    index = 0
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.replace(",", " ").replace(";", " ").split()
        if not fields or fields[0].startswith("#"):
            continue
        if index == 0 and fields[0].strip('"').lower() in ("smiles", "canonical_smiles"):
            continue
        index += 1
        smiles = fields[0].strip('"')
        name = " ".join(fields[1:2]).strip('"') or f"{stem}-{index}"
        mol = Chem.MolFromSmiles(smiles, sanitize=False)
        if mol is None:
            yield Record(index, number, name, error=f"not a SMILES string: {smiles}")
        else:
            yield _record_of_mol(mol, index, number, name)


def _read_xyz(text: str, stem: str) -> Iterator[Record]:
    lines = text.splitlines()
    start, index = 0, 0
    while start < len(lines):
        if not lines[start].strip():
            start += 1
            continue
        index += 1
        name = f"{stem}-{index}"
        try:
            n_atoms = int(lines[start])
        except ValueError:
            # Without a count there is no telling where the next frame begins.
            yield Record(
                index, start + 1, name, error=f"expected a number of atoms, got {lines[start]!r}"
            )
            return
        frame = lines[start : start + n_atoms + 2]
        yield _record_of_frame(frame, n_atoms, index, start + 1, name)
        start += n_atoms + 2


def _record_of_frame(frame: list[str], n_atoms: int, index: int, line: int, name: str) -> Record:
    """Read one frame of an XYZ file, plain or extended."""
    import ase.io  # a second of imports: not before it is needed

    if n_atoms < 1 or len(frame) < n_atoms + 2:
        error = f"expected {n_atoms} lines of atoms, got {max(len(frame) - 2, 0)}"
        return Record(index, line, name, error=error)
    try:
        atoms = next(ase.io.iread(io.StringIO("\n".join(frame) + "\n"), format="extxyz"))
        numbers = np.asarray(atoms.numbers, dtype=np.int64)
        positions = np.asarray(atoms.positions, dtype=np.float64)
    except Exception as error:
        # ASE's parser raises whatever its parts raise: KeyError, IndexError, its own OSError.
        return Record(index, line, name, error=f"not an XYZ frame: {_reason(error)}")
    if not np.isfinite(positions).all():
        return Record(index, line, name, error="coordinates that are not finite")
    if (numbers < 1).any():
        return Record(index, line, name, error="an atom of no known element")
    name = str(atoms.info.get("name", name))
    return Record(index, line, name, None, numbers, positions)


def perceive_bonds(
    atomic_numbers: NDArray[np.int64], positions: NDArray[np.float64], charge: int = 0
) -> Chem.Mol | None:
    """Return the molecule that distances and valences suggest, or None if there is none.

    Charges are given to atoms where that completes all valences; failing that, electrons are left
    unpaired.

    Parameters
    ----------
    atomic_numbers : ndarray, shape (n_atoms,)
        Elements, hydrogens included.
    positions : ndarray, shape (n_atoms, 3)
        Coordinates in angstrom.
    charge : int
        Of the whole molecule.

    References
    ----------
    Y. Kim, W. Y. Kim, Bull. Korean Chem. Soc. 36, 1769 (2015) (xyz2mol, which RDKit implements).
    """
    bare = Chem.RWMol()
    for z in atomic_numbers.tolist():
        atom = Chem.Atom(z)
        atom.SetNoImplicit(True)
        bare.AddAtom(atom)
    conformer = Chem.Conformer(len(atomic_numbers))
    conformer.SetPositions(np.asarray(positions, dtype=np.float64))
    bare.AddConformer(conformer)
    for allow_charges in (True, False):
        mol = Chem.RWMol(bare)
        try:
            with rdBase.BlockLogs():
                rdDetermineBonds.DetermineBonds(
                    mol, charge=charge, allowChargedFragments=allow_charges
                )
                Chem.SanitizeMol(mol)
        except (ValueError, RuntimeError):
            # What RDKit raises if no bond orders fit the charge, or the atoms make no sense.
            continue
        return mol.GetMol()
    return None


def embed(mol: Chem.Mol) -> Chem.Mol | None:
    """Return the molecule with hydrogens and one conformer, or None where RDKit finds none.

    ETKDG version 3, then MMFF94s, or UFF where MMFF lacks a type; always the same seed.

    References
    ----------
    S. Wang et al., J. Chem. Inf. Model. 60, 2044 (2020) (ETKDGv3);
    P. Tosco et al., J. Cheminform. 6, 37 (2014) (MMFF94 in RDKit).
    """
    with rdBase.BlockLogs():
        mol = Chem.AddHs(mol)
        parameters = rdDistGeom.ETKDGv3()
        # rdkit's stubs give these attributes the type of their owner.
        parameters.randomSeed = CONFORMER_SEED  # type: ignore[assignment]
        if rdDistGeom.EmbedMolecule(mol, parameters) != 0:
            parameters.useRandomCoords = True  # type: ignore[assignment]
            if rdDistGeom.EmbedMolecule(mol, parameters) != 0:
                return None
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
            rdForceFieldHelpers.MMFFOptimizeMolecule(mol, mmffVariant="MMFF94s", maxIters=1000)
        elif rdForceFieldHelpers.UFFHasAllMoleculeParams(mol):
            rdForceFieldHelpers.UFFOptimizeMolecule(mol, maxIters=1000)
    return mol


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary file next to ``path`` that takes its place if the block succeeds.

    Raises
    ------
    SimgenError
        If the file cannot be written: no space left, no permission, no such folder.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise SimgenError(
            f"cannot write {path}: {_reason(error)}; free some space or choose another folder"
        ) from None
    finally:
        # A folder that is not one makes this fail too; the first error is the one to show.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, data: object) -> None:
    """Write a JSON file, atomically; NaN and infinities are refused, as JSON has none."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a table, atomically; a missing or None entry is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="raise", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_sdf(path: str | Path, mols: Sequence[Chem.Mol]) -> None:
    """Write molecules with their properties to an SDF file (V3000 where it must), atomically."""
    text = io.StringIO()
    with Chem.SDWriter(text) as writer:
        for mol in mols:
            writer.write(mol)
    write_text(path, text.getvalue())


def write_xyz(path: str | Path, frames: Sequence[ase.Atoms]) -> None:
    """Write frames with their ``info`` to an extended XYZ file, atomically."""
    import ase.io  # a second of imports: not before it is needed

    text = io.StringIO()
    for atoms in frames:
        ase.io.write(text, atoms, format="extxyz")
    write_text(path, text.getvalue())


def write_grid(path: str | Path, mols: Sequence[Chem.Mol], legends: Sequence[str]) -> None:
    """Draw the first molecules (at most ``N_GRID_MOLECULES``) in a grid, as PNG, atomically."""
    if len(mols) != len(legends):
        raise InputError(f"expected one legend per molecule, got {len(legends)} for {len(mols)}")
    drawings = []
    for mol in mols[:N_GRID_MOLECULES]:
        drawing = Chem.RemoveHs(Chem.Mol(mol))
        drawing.RemoveAllConformers()
        rdDepictor.Compute2DCoords(drawing)
        drawings.append(drawing)
    if not drawings:
        # An empty canvas keeps the set of output files the same for every run.
        drawings, legends = [Chem.Mol()], ["no valid molecule"]
    n_columns = min(5, len(drawings))
    n_rows = -(-len(drawings) // n_columns)
    width, height = 260, 240
    drawer = rdMolDraw2D.MolDraw2DCairo(n_columns * width, n_rows * height, width, height)
    drawer.DrawMolecules(drawings, legends=list(legends[: len(drawings)]))
    drawer.FinishDrawing()
    with atomic_path(path) as temporary:
        temporary.write_bytes(drawer.GetDrawingText())
