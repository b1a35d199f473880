"""What a force field is trained on: labelled geometries, ours or from extended XYZ files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import ase.io
import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from simgen.errors import InputError, LoadError


class TrainingData(Protocol):
    """Labelled geometries, atoms concatenated: a :class:`~simgen.data.build.Dataset` or others."""

    @property
    def counts(self) -> NDArray[np.int64]:
        """Atoms of each geometry, shape (n_geometries,)."""
        ...

    @property
    def first_atom(self) -> NDArray[np.int64]:
        """Index of the first atom of each geometry, shape (n_geometries,)."""
        ...

    @property
    def numbers(self) -> NDArray[np.uint8]:
        """Atomic numbers, shape (n_atoms,)."""
        ...

    @property
    def positions(self) -> NDArray[np.float64]:
        """In angstrom, shape (n_atoms, 3)."""
        ...

    @property
    def forces(self) -> NDArray[np.float32]:
        """In eV/A, shape (n_atoms, 3)."""
        ...

    @property
    def energies(self) -> NDArray[np.float64]:
        """In eV, shape (n_geometries,)."""
        ...

    @property
    def split(self) -> NDArray[np.int64]:
        """Index into :data:`simgen.data.build.SPLITS`, shape (n_geometries,)."""
        ...

    @property
    def kind(self) -> NDArray[np.int64]:
        """Index into ``kinds``, shape (n_geometries,)."""
        ...

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the kinds of geometries, for tables of errors."""
        ...

    def __len__(self) -> int: ...

    def checksum(self) -> str:
        """Hash of the content."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Structures:
    """Labelled geometries of the user's own; the arrays are those of :class:`TrainingData`.

    Attributes
    ----------
    atomic_energies : dict
        Energy in eV of an isolated atom of each element, by atomic number, where it is known.
    """

    counts: NDArray[np.int64]
    numbers: NDArray[np.uint8]
    positions: NDArray[np.float64]
    forces: NDArray[np.float32]
    energies: NDArray[np.float64]
    split: NDArray[np.int64]
    kind: NDArray[np.int64]
    kinds: tuple[str, ...]
    atomic_energies: dict[int, float]

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def first_atom(self) -> NDArray[np.int64]:
        """Index of the first atom of each geometry, shape (n_geometries,)."""
        return np.cumsum(self.counts) - self.counts

    def checksum(self) -> str:
        """SHA-256 over the content."""
        digest = hashlib.sha256(json.dumps(sorted(self.atomic_energies.items())).encode())
        for name in ("counts", "numbers", "positions", "forces", "energies", "split"):
            digest.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return digest.hexdigest()


def read_structures(
    train: Sequence[Path],
    valid: Sequence[Path] = (),
    test: Sequence[Path] = (),
    *,
    valid_fraction: float = 0.1,
    seed: int = 0,
    energy_key: str = "energy",
    forces_key: str = "forces",
) -> Structures:
    """Read extended XYZ files with energies (eV) and forces (eV/A) of molecules.

    Frames of a single atom give the energies of isolated atoms and are not trained on. Kinds are
    what the frames have as ``config_type``, if they do.

    Parameters
    ----------
    train, valid, test : sequence of Path
        Files of the three parts. Without ``valid``, a share of ``train`` is split off.
    valid_fraction : float
        That share.
    seed : int
        Which geometries it has.
    energy_key, forces_key : str
        Names of the energy among the properties of a frame, and of the forces among its columns.

    Raises
    ------
    LoadError
        If a file cannot be read.
    InputError
        If a frame is periodic or lacks a label, or if a part is empty.
    """
    frames: list[Atoms] = []
    split: list[int] = []
    atomic_energies: dict[int, float] = {}
    for part, paths in enumerate((train, valid, test)):
        for path in paths:
            for i, atoms in enumerate(_read(path), start=1):
                where = f"frame {i} of {path}"
                energy = _energy(atoms, energy_key, where)
                if len(atoms) == 1:
                    atomic_energies[int(atoms.numbers[0])] = energy
                    continue
                _forces(atoms, forces_key, where)
                if atoms.pbc.any():
                    raise InputError(f"expected molecules, {where} is periodic")
                frames.append(atoms)
                split.append(part)
    parts = np.array(split, dtype=np.int64)
    learned = np.flatnonzero(parts == 0)
    if not valid:
        if not 0.0 < valid_fraction < 1.0:
            raise InputError(f"expected a share between 0 and 1, got {valid_fraction}")
        n_valid = max(1, round(valid_fraction * len(learned)))
        parts[np.random.default_rng(seed).permutation(learned)[:n_valid]] = 1
    for part in (0, 1):
        if not (parts == part).any():
            files = ", ".join(map(str, train if part == 0 or not valid else valid))
            raise InputError(f"expected geometries to {('train', 'validate')[part]} on in {files}")
    labels = [str(atoms.info.get("config_type", "default")) for atoms in frames]
    kinds = sorted(set(labels))
    return Structures(
        counts=np.array([len(atoms) for atoms in frames], dtype=np.int64),
        numbers=np.concatenate([atoms.numbers for atoms in frames]).astype(np.uint8),
        positions=np.concatenate([atoms.positions for atoms in frames]),
        forces=np.concatenate([_forces(atoms, forces_key, "") for atoms in frames]),
        energies=np.array([_energy(atoms, energy_key, "") for atoms in frames]),
        split=parts,
        kind=np.array([kinds.index(label) for label in labels], dtype=np.int64),
        kinds=tuple(kinds),
        atomic_energies=atomic_energies,
    )


def _read(path: Path) -> list[Atoms]:
    try:
        frames = ase.io.read(path, ":", format="extxyz")
    except FileNotFoundError:
        raise LoadError(f"{path} does not exist; check the path") from None
    except Exception as error:  # the reader of ASE can fail in any way
        reason = " ".join(str(error).split())
        raise LoadError(f"expected an extended XYZ file, cannot read {path}: {reason}") from None
    return frames if isinstance(frames, list) else [frames]


def _label(atoms: Atoms, key: str, where: str, option: str) -> NDArray[np.float64]:
    computed = atoms.calc.results if atoms.calc is not None else {}
    value = next(
        (place[key] for place in (atoms.info, atoms.arrays, computed) if key in place), None
    )
    if value is None:
        names = sorted({*atoms.info, *atoms.arrays, *computed} - {"numbers", "positions"})
        raise InputError(
            f"expected {key!r} in {where}, which has {', '.join(names) or 'no labels'}; "
            f"name it with {option}"
        )
    array = np.asarray(value, dtype=np.float64)
    if not np.isfinite(array).all():
        raise InputError(f"expected finite numbers as {key!r} of {where}")
    return array


def _energy(atoms: Atoms, key: str, where: str) -> float:
    return float(_label(atoms, key, where, "--energy-key"))


def _forces(atoms: Atoms, key: str, where: str) -> NDArray[np.float32]:
    return _label(atoms, key, where, "--forces-key").astype(np.float32)
