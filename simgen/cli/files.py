"""``simgen relax``, ``hydrogenate`` and ``validate``: the steps of finishing, on files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simgen.cli.progress import Device, Model, progress_bar
from simgen.errors import InputError

if TYPE_CHECKING:
    import ase
    import numpy as np
    from numpy.typing import NDArray
    from rdkit import Chem

    from simgen.io import Record

_CHUNK = 32
"""Molecules relaxed at once."""

Source = Annotated[
    Path, typer.Argument(metavar="FILE", help="Molecules: SDF, SMILES or XYZ (.gz of these too).")
]


def _suffix(out: Path, *allowed: str) -> str:
    if out.suffix not in allowed:
        raise InputError(f"expected --out to end in {' or '.join(allowed)}, got {out}")
    return out.suffix


def _readable(records: Sequence[Record]) -> Iterator[Record]:
    """Yield the entries that can be read and say what is wrong with the others."""
    for record in records:
        if record.error is None:
            yield record
        else:
            _left_out(record, record.error)


def _left_out(record: Record, reason: str) -> None:
    typer.echo(f"left out: {record.name} (line {record.line}): {reason}", err=True)


def _require(n_done: int, what: str) -> None:
    if n_done == 0:
        raise InputError(f"no molecule could be {what}; the reasons are above")


def hydrogenate(
    file: Source,
    out: Annotated[Path, typer.Option(help="File to write: .sdf.")],
) -> None:
    """Add hydrogens, with coordinates.

    Molecules with bonds (SDF, SMILES) get the hydrogens they lack; heavy atoms without bonds (XYZ)
    get the likeliest bonds, charges and hydrogens.
    """
    _suffix(out, ".sdf")
    from simgen.finishing.bonds import assign_bonds
    from simgen.finishing.hydrogens import add_hydrogens
    from simgen.io import embed, read_molecules, write_sdf

    records = read_molecules(file)
    complete: list[Chem.Mol] = []
    for record in _readable(records):
        if record.mol is None:
            numbers, positions = record.geometry
            if 1 in numbers:
                _left_out(record, "it has hydrogens, but no bonds; give the heavy atoms only")
                continue
            assignment = assign_bonds(numbers, positions)
            if assignment.mol is None:
                _left_out(record, str(assignment.status))
                continue
            mol = add_hydrogens(assignment.mol)
        elif record.positions is not None:
            mol = add_hydrogens(record.mol)
        else:
            embedded = embed(record.mol)
            if embedded is None:
                _left_out(record, "no conformer found")
                continue
            mol = embedded
        mol.SetProp("_Name", record.name)
        complete.append(mol)
    _require(len(complete), "hydrogenated")
    write_sdf(out, complete)
    typer.echo(f"wrote {len(complete)} of {len(records)} molecules to {out}")


def relax(
    file: Source,
    out: Annotated[Path, typer.Option(help="File to write: .sdf or .xyz.")],
    model: Model = "small",
    device: Device = "auto",
    f_max: Annotated[float, typer.Option(help="Largest force left, eV/A.")] = 0.03,
    max_steps: Annotated[int, typer.Option(min=1, help="Most steps for a molecule.")] = 500,
) -> None:
    """Relax molecules, hydrogens included, in a force field."""
    suffix = _suffix(out, ".sdf", ".xyz")
    import ase
    import torch

    from simgen.devices import resolve_device
    from simgen.elements import SYMBOLS
    from simgen.finishing.relaxation import relax as relax_batch
    from simgen.io import read_molecules, write_sdf, write_xyz
    from simgen.models import evaluator, load_model
    from simgen.molecules import MoleculeBatch

    field = load_model(model, device=resolve_device(device))
    energy_and_forces = evaluator(field).energy_and_forces
    records = read_molecules(file)
    complete: list[Record] = []
    for record in _readable(records):
        if record.positions is None:
            _left_out(record, "no 3D coordinates; make them with simgen hydrogenate")
        elif record.n_missing_hydrogens:
            _left_out(
                record,
                f"{record.n_missing_hydrogens} hydrogens missing; add them with simgen hydrogenate",
            )
        elif suffix == ".sdf" and record.mol is None:
            _left_out(record, "no bonds; write to an .xyz file")
        elif lacking := sorted(set(record.geometry[0].tolist()) - set(field.elements)):
            _left_out(record, f"the model lacks {', '.join(SYMBOLS[z] for z in lacking)}")
        else:
            complete.append(record)
    _require(len(complete), "relaxed")
    mols: list[Chem.Mol] = []
    frames: list[ase.Atoms] = []
    with progress_bar("relaxing", "molecules") as update:
        update(0, len(complete))
        for start in range(0, len(complete), _CHUNK):
            chunk = complete[start : start + _CHUNK]
            batch = MoleculeBatch.from_arrays(
                [record.geometry for record in chunk], device=field.embedding.device
            )
            result = relax_batch(energy_and_forces, batch, f_max=f_max, max_steps=max_steps)
            for record, part, energy, initial, converged in zip(
                chunk,
                result.batch.to("cpu", torch.float64).split(),
                result.energies.tolist(),
                result.initial_energies.tolist(),
                result.converged.tolist(),
                strict=True,
            ):
                facts = {
                    "name": record.name,
                    "energy_eV": round(energy, 6),
                    "released_eV": round(initial - energy, 6),
                    "converged": converged,
                }
                positions = part.positions.numpy()
                frames.append(ase.Atoms(part.atomic_numbers.numpy(), positions, info=facts))
                if record.mol is not None:
                    mols.append(_at(record.mol, positions, facts))
            update(len(frames), len(complete))
    if suffix == ".sdf":
        write_sdf(out, mols)
    else:
        write_xyz(out, frames)
    typer.echo(f"wrote {len(frames)} of {len(records)} molecules to {out}")


def validate(
    file: Source,
    out: Annotated[Path, typer.Option(help="Table to write: .csv, a row per entry.")],
    posebusters: Annotated[
        bool,
        typer.Option("--posebusters", help="Add PoseBusters (needs posebusters)."),
    ] = False,
    gfn2: Annotated[
        bool, typer.Option("--gfn2", help="Add a relaxation in GFN2-xTB (needs tblite).")
    ] = False,
) -> None:
    """Check molecules and write a report of each; entries without bonds (XYZ) get RDKit's."""
    _suffix(out, ".csv")
    from simgen.io import read_molecules, write_csv
    from simgen.validation import Report, Status, mark_duplicates
    from simgen.validation import validate as check

    records = read_molecules(file)
    reports: list[Report] = []
    extras: list[dict[str, str]] = []
    with progress_bar("validating", "molecules") as update:
        for done, record in enumerate(records, start=1):
            mol = record.mol if record.mol is not None else _with_bonds(record)
            if mol is None:
                detail = record.error or "no bonds fit the geometry"
                reports.append(Report(record.name, Status.UNSANITISABLE, detail))
                extras.append({})
            else:
                reports.append(check(mol, name=record.name))
                extras.append(_judge(mol, posebusters=posebusters, gfn2=gfn2))
            update(done, len(records))
    added = list(dict.fromkeys(column for extra in extras for column in extra))
    rows = [r.to_row() | extra for r, extra in zip(mark_duplicates(reports), extras, strict=True)]
    write_csv(out, rows, [*Report.columns(), *added])
    n_valid = sum(report.status is Status.OK for report in reports)
    typer.echo(f"{n_valid} of {len(records)} molecules are valid; see {out}")


def _with_bonds(record: Record) -> Chem.Mol | None:
    """Return the molecule of an XYZ entry with the bonds that RDKit sees, if it sees any."""
    from simgen.io import perceive_bonds

    return None if record.error is not None else perceive_bonds(*record.geometry)


def _judge(mol: Chem.Mol, *, posebusters: bool, gfn2: bool) -> dict[str, str]:
    """Columns of the independent judges, for a molecule with coordinates."""
    from simgen.validation import check_gfn2, check_hydrogens, check_posebusters

    columns: dict[str, object] = {}
    if mol.GetNumConformers() == 0 or not check_hydrogens(mol).passed:
        return {}
    if posebusters:
        tests = check_posebusters(mol)
        columns["posebusters_passed"] = all(tests.values())
        columns |= {f"posebusters_{name}": passed for name, passed in tests.items()}
    if gfn2:
        found = check_gfn2(mol)
        columns["gfn2_converged"] = found.converged
        columns["gfn2_relaxation_energy"] = f"{found.relaxation_energy:.4g}"
        columns["gfn2_rmsd"] = f"{found.rmsd:.4g}"
        columns["gfn2_graph_kept"] = found.graph_kept
    return {name: str(value) for name, value in columns.items()}


def _at(mol: Chem.Mol, positions: NDArray[np.float64], facts: dict[str, object]) -> Chem.Mol:
    """Return a molecule at other positions, with facts as its properties."""
    from rdkit import Chem

    mol = Chem.Mol(mol)
    mol.GetConformer().SetPositions(positions)
    for name, value in facts.items():
        mol.SetProp("_Name" if name == "name" else name, str(value))
    return mol
