"""What comes out of a run, and how files hold it."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from simgen import io
from simgen.generation.config import GenerationConfig
from simgen.scaffold import SCAFFOLD_INDEX
from simgen.validation import Report, Status

_WITH_EVERYTHING = Chem.PropertyPickleOptions.AtomProps | Chem.PropertyPickleOptions.CoordsAsDouble


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """What became of one attempt.

    Attributes
    ----------
    index : int
        Number of the attempt in its run, from 0.
    report : Report
        Status and what the checks found; ``report.name`` is the name in the output files.
    atomic_numbers : ndarray, shape (n_atoms,), int64
        Elements: of the finished molecule, or of the heavy atoms if finishing failed.
    positions : ndarray, shape (n_atoms, 3), float64
        Coordinates in angstrom.
    mol : Chem.Mol or None
        The molecule, hydrogens and conformer included, if finishing got that far.
    """

    index: int
    report: Report
    atomic_numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    mol: Chem.Mol | None = None


@dataclass(frozen=True, slots=True, eq=False)
class GenerationResult:
    """All attempts of a run, with what is needed to repeat it.

    Attributes
    ----------
    config : GenerationConfig
        What was asked for; ``config.seed`` is the seed, drawn if none was given.
    attempts : tuple of Attempt
        Every attempt that is finished, in order.
    provenance : dict
        Versions, device and checksums of model and reference set.
    timings : dict of str to float
        Seconds of each stage.
    """

    config: GenerationConfig
    attempts: tuple[Attempt, ...]
    provenance: dict[str, Any]
    timings: dict[str, float]

    @property
    def reports(self) -> list[Report]:
        """The report of every attempt."""
        return [attempt.report for attempt in self.attempts]

    @property
    def molecules(self) -> list[Chem.Mol]:
        """The valid molecules, with hydrogens, one conformer and the report as properties."""
        return [
            _with_properties(attempt.mol, attempt.report)
            for attempt in self.attempts
            if attempt.report.status is Status.OK and attempt.mol is not None
        ]

    @property
    def atoms(self) -> list[ase.Atoms]:
        """The valid molecules as ASE atoms, in the order of :attr:`molecules`."""
        return [_as_atoms(a) for a in self.attempts if a.report.status is Status.OK]

    @property
    def best(self) -> Attempt | None:
        """The valid attempt with the fewest atoms in unknown surroundings; None if none is valid.

        Of equals the one that looks most like the reference.
        """
        valid = [a for a in self.attempts if a.report.status is Status.OK]
        return max(valid, key=lambda a: a.report.believability, default=None)

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.config.seed

    @property
    def counts(self) -> dict[str, int]:
        """Number of attempts of each status that occurred."""
        return dict(Counter(str(report.status) for report in self.reports).most_common())

    def to_dir(self, path: str | Path) -> None:
        """Write ``molecules.sdf``, ``molecules.xyz``, ``report.csv``, ``run.json``, ``grid.png``.

        Raises
        ------
        SimgenError
            If the folder cannot be written to.
        """
        folder = Path(path)
        molecules = self.molecules
        io.write_sdf(folder / "molecules.sdf", molecules)
        io.write_xyz(folder / "molecules.xyz", [_as_atoms(a) for a in self.attempts])
        rows = [report.to_row() for report in self.reports]
        io.write_csv(folder / "report.csv", rows, Report.columns())
        legends = [mol.GetProp("_Name") for mol in molecules]
        io.write_grid(folder / "grid.png", molecules, legends)
        run = {
            "config": self.config.to_dict(),
            "seed": self.seed,
            "n_attempts": len(self.attempts),
            "counts": self.counts,
            "timings": {stage: round(seconds, 3) for stage, seconds in self.timings.items()},
            **self.provenance,
        }
        io.write_json(folder / "run.json", run)


def attempt_of_mol(index: int, report: Report, mol: Chem.Mol) -> Attempt:
    """Return the attempt that made a molecule."""
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.int64)
    return Attempt(index, report, numbers, mol.GetConformer().GetPositions(), mol)


def attempt_to_json(attempt: Attempt) -> dict[str, Any]:
    """Return an attempt as what JSON can hold; :func:`attempt_from_json` undoes it."""
    values: dict[str, Any] = {"index": attempt.index, "report": asdict(attempt.report)}
    if attempt.mol is None:
        values["atomic_numbers"] = attempt.atomic_numbers.tolist()
        values["positions"] = attempt.positions.tolist()
    else:
        values["mol"] = base64.b64encode(attempt.mol.ToBinary(int(_WITH_EVERYTHING))).decode()
    return values


def attempt_from_json(values: Mapping[str, Any]) -> Attempt:
    """Make an attempt of what :func:`attempt_to_json` returns."""
    given = values["report"]
    report = Report(**(given | {"status": Status(given["status"])}))
    if "mol" in values:
        mol = Chem.Mol(base64.b64decode(values["mol"]))  # type: ignore[call-overload]
        return attempt_of_mol(values["index"], report, mol)
    return Attempt(
        values["index"],
        report,
        np.array(values["atomic_numbers"], dtype=np.int64),
        np.array(values["positions"], dtype=np.float64).reshape(-1, 3),
    )


def _with_properties(mol: Chem.Mol, report: Report) -> Chem.Mol:
    """Return a molecule with its report as properties, as SDF files hold them."""
    mol = Chem.Mol(mol)
    if any(atom.HasProp(SCAFFOLD_INDEX) for atom in mol.GetAtoms()):
        Chem.CreateAtomIntPropertyList(mol, SCAFFOLD_INDEX)
    for column, text in report.to_row().items():
        if text:
            mol.SetProp("_Name" if column == "name" else column, text)
    return mol


def _as_atoms(attempt: Attempt) -> ase.Atoms:
    """Return the geometry of an attempt with its name and status."""
    info = {"name": attempt.report.name, "status": str(attempt.report.status)}
    return ase.Atoms(attempt.atomic_numbers, attempt.positions, info=info)


def attempt_name(index: int) -> str:
    """Name of an attempt in all files."""
    return f"simgen-{index:05d}"
