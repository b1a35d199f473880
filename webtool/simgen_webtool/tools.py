"""The tools and their forms: what users find in the menus of the page.

A form is a pydantic model; the page draws it, and only what was changed in it is submitted, so that
every field has a default.
"""

from __future__ import annotations

import re
import secrets
import shutil
import zipfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import ase
import numpy as np
from pydantic import Field, PrivateAttr
from rdkit import Chem
from zndraw.extensions import Category, Extension

from simgen import io
from simgen.errors import InputError
from simgen.finishing.connectivity import BOND_FACTOR, bonded_pairs
from simgen.validation import EV_TO_KCAL, Report, Status, check_graph_kept, validate
from simgen_webtool.figures import overview
from simgen_webtool.frames import as_drawn, geometry, to_frame, to_mol
from simgen_webtool.rooms import Room
from simgen_webtool.tasks import Generate as GenerateTask
from simgen_webtool.tasks import Hydrogenate as HydrogenateTask
from simgen_webtool.tasks import Load as LoadTask
from simgen_webtool.tasks import Made, Outline, Relaxed, Shape, Task
from simgen_webtool.tasks import Relax as RelaxTask
from simgen_webtool.workers import Job, Pool

FREE = "none: a compact molecule"
DRAWN = "the drawn curve"
DEFAULT_ATOMS = 9
"""Heavy atoms where neither the user nor a shape says how many."""


@dataclass(frozen=True)
class Limits:
    """What a job, and all users together, may ask for.

    Attributes
    ----------
    atoms, molecules, steps : int
        Most heavy atoms, candidates and noise levels of a generation.
    seconds : float
        Most time that a job may take.
    rooms : int
        Most rooms of the server.
    """

    atoms: int = 80
    molecules: int = 32
    steps: int = 200
    seconds: float = 900.0
    rooms: int = 200


@dataclass
class Desk:
    """What all tools share.

    Attributes
    ----------
    pool : Pool
        Computes.
    folder : Path
        Where runs and files to be downloaded are kept while the server runs.
    shapes : mapping of str to str
        Shapes to choose from: what they are called, and their name or file.
    limits : Limits
        What a job may ask for.
    """

    pool: Pool
    folder: Path
    shapes: Mapping[str, str]
    limits: Limits = Limits()
    downloads: dict[str, Path] = field(default_factory=dict)
    runs: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))

    def compute(self, room: Room, title: str, task: Task, *, on_frames: Any = None) -> Any:
        """Let a worker compute a task, and show how it goes on.

        Raises
        ------
        JobError
            If it fails, is stopped or takes too long.
        """
        with room.vis.progress_tracker(title) as tracker:

            def tell(words: str, percent: float) -> None:
                # On a busy machine the room's client may be cut off for a while: no reason to fail.
                with suppress(RuntimeError, OSError):
                    tracker.update(f"{title}: {words}", percent)

            job = Job(
                room.name,
                self.limits.seconds,
                on_wait=lambda place: tell(f"place {place} in the queue", 0.0),
                on_progress=lambda done, words: tell(words, 100 * done),
            )
            if on_frames is not None:
                job.on_frames = on_frames
            room.is_stopped = job.stopping.is_set
            return self.pool.run(task, job)

    def new_run(self, room: Room) -> Path:
        """Return a new folder for a run of a room."""
        folder = self.folder / "runs" / secrets.token_hex(8)
        folder.mkdir(parents=True)
        return folder

    def offer(self, name: str) -> tuple[Path, str]:
        """Return where to write a file that is to be downloaded, and the link to it."""
        token = secrets.token_urlsafe(24)
        path = self.folder / "downloads" / token / name
        path.parent.mkdir(parents=True)
        self.downloads[token] = path
        return path, f"/simgen/files/{token}"


class Tool(Extension):
    """Base of the tools."""

    category: ClassVar[Category] = Category.MODIFIER
    label: ClassVar[str]
    """What it is called in the menu."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cls.__name__)
        cls.label = words[0] + words[1:].lower()

    def begin(self, room: str, desk: Desk) -> None:
        """Do what can be done before there is a connection to the room, which takes its time."""

    def work(self, room: Room, desk: Desk) -> None:
        """Carry it out; what is raised becomes a message to the user."""
        raise NotImplementedError


def _slider(default: int, low: int, high: int, words: str, title: str) -> Any:
    return Field(
        default,
        ge=low,
        le=high,
        title=title,
        description=words,
        json_schema_extra={"format": "range", "step": 1},
    )


def _choice(default: str, words: str, title: str) -> Any:
    # The page shows the default of a choice only if it is of this type.
    extra = {"x-custom-type": "dynamic-enum", "x-features": []}
    return Field(default, title=title, description=words, json_schema_extra=extra)


Palette = Literal["C", "C N O", "C N O F", "C N O S", "C N O F S Cl", "C N O F P S Cl Br"]


class ShapeTool(Tool):
    """Base of the tools that take a shape."""

    shapes: ClassVar[Sequence[str]] = ()
    """Names of the shapes to choose from; set by the server."""

    shape: str = _choice(
        DRAWN, "Where atoms are wanted: draw a curve with the pencil (X), or choose one.", "Shape"
    )
    closed: bool = Field(False, title="Close the curve", description="To a ring: a macrocycle.")
    strength: float = Field(
        1.0, gt=0.0, le=10.0, title="Strength", description="How strongly the shape holds atoms."
    )

    @classmethod
    def model_json_schema(cls, *arguments: Any, **keywords: Any) -> dict[str, Any]:
        """Return the form, with the shapes there are."""
        schema = super().model_json_schema(*arguments, **keywords)
        schema["properties"]["shape"]["enum"] = [DRAWN, FREE, *cls.shapes]
        return schema

    def chosen_shape(self, room: Room, desk: Desk) -> Shape:
        """Return the shape that the form and the room describe."""
        if self.shape == FREE:
            return Shape(strength=self.strength)
        if self.shape == DRAWN:
            points = tuple(tuple(p) for p in room.curve().tolist())
            return Shape("", points, self.closed and len(points) > 2, self.strength)
        if self.shape not in desk.shapes:
            raise InputError(f"there is no shape {self.shape!r}; choose one of the list")
        return Shape(desk.shapes[self.shape], strength=self.strength)


class MakingTool(Tool):
    """Base of the tools that make molecules."""

    candidates: int = _slider(
        4, 1, 32, "Molecules to make; the best ones come first.", "Candidates"
    )
    palette: Palette = _choice("C N O", "Heavy elements that may occur.", "Elements")
    steps: int = _slider(50, 10, 200, "Noise levels: more are slower and a little better.", "Steps")
    seed: int = Field(
        -1, ge=-1, lt=2**53, title="Seed", description="Same seed, same molecules; -1 for any."
    )

    def make(self, room: Room, desk: Desk, **choices: Any) -> None:
        """Make molecules; ``choices`` are those of :class:`simgen_webtool.tasks.Generate`."""
        limits = desk.limits
        n_atoms = choices.get("n_heavy_atoms") or 0
        for value, limit, what in (
            (np.max(n_atoms), limits.atoms, "atoms"),
            (self.candidates, limits.molecules, "candidates"),
            (self.steps, limits.steps, "steps"),
        ):
            if value > limit:
                raise InputError(f"expected at most {limit} {what} on this server, got {value}")
        title = self.label
        task = GenerateTask(
            desk.new_run(room),
            elements=tuple(self.palette.split()),
            n_molecules=self.candidates,
            n_steps=self.steps,
            seed=None if self.seed < 0 else self.seed,
            max_heavy_atoms=limits.atoms,
            **choices,
        )
        room.mark(f"before {title}")
        waiting: list[ase.Atoms] = []

        def show(frames: list[ase.Atoms]) -> None:
            waiting.extend(frames)
            if room.append_at_once(waiting):
                waiting.clear()

        made: list[Made] = desk.compute(room, title, task, on_frames=show)
        desk.runs[room.name].append(task.folder / "run")
        self._present(room, made)

    def _present(self, room: Room, made: Sequence[Made]) -> None:
        title = self.label
        frames = [
            to_frame(m.mol, _facts(m.report)) if m.mol is not None else _heavy(m) for m in made
        ]
        first = room.append(frames)
        room.mark(f"{title}: the best")
        reports = [m.report for m in made]
        room.vis.figures["Molecules"] = overview(reports, first)
        counts = Counter(str(report.status) for report in reports)
        found = ", ".join(f"{n} {status}" for status, n in counts.most_common())
        words = f"**{title}** made {len(made)}: {found}. Frames {first} to {first + len(made) - 1}."
        if reports[0].smiles:
            words += f" The best:\n```smiles\n{reports[0].smiles}\n```"
        room.say(words)


def _facts(report: Report) -> dict[str, str]:
    row = report.to_row()
    return {key: row[key] for key in ("name", "status", "smiles", "similarity") if row[key]}


def _heavy(made: Made) -> ase.Atoms:
    return ase.Atoms(made.atoms.numbers, made.atoms.positions, info=_facts(made.report))


class Generate(MakingTool, ShapeTool):
    """Make molecules along a curve, in a shape, or growing from the selected atoms.

    With atoms selected, the molecule shown stays where it is and grows at them. With none selected
    molecules are made from nothing.
    """

    atoms: int = _slider(
        0,
        0,
        80,
        f"Heavy atoms (new ones); 0 for what suits the shape, else {DEFAULT_ATOMS}.",
        "Atoms",
    )
    density: float = Field(
        1.5,
        gt=0.0,
        le=10.0,
        title="Atoms per Å",
        description="Of a drawn curve, if Atoms is 0.",
    )

    def work(self, room: Room, desk: Desk) -> None:
        """Make molecules."""
        shape = self.chosen_shape(room, desk)
        grown: dict[str, Any] = {}
        if selection := room.selection:
            grown = {"scaffold": room.molecule(), "grow_at": tuple(selection)}
        free = shape.is_free
        atoms = self.atoms or (DEFAULT_ATOMS if free else None)
        # Where nothing is drawn, the scaffold knows best where its new atoms go.
        wanted = None if grown and free and not shape.points else shape
        density = self.density if self.shape == DRAWN else None
        self.make(room, desk, shape=wanted, n_heavy_atoms=atoms, density=density, **grown)


class LinkSelection(MakingTool):
    """Join the fragments of this frame by new atoms, at the selected atoms.

    Without a selection the ends that face each other are joined.
    """

    atoms: int = _slider(0, 0, 40, "Heavy atoms of the link; 0 for what suits the gap.", "Atoms")

    def work(self, room: Room, desk: Desk) -> None:
        """Make links."""
        molecule = room.molecule()
        if len(Chem.GetMolFrags(molecule)) < 2:
            raise InputError(
                "expected two or more fragments in this frame to link, got one molecule; load "
                "several, or delete atoms between the ends"
            )
        self.make(
            room,
            desk,
            n_heavy_atoms=self.atoms or None,
            scaffold=molecule,
            grow_at=tuple(room.selection) or None,
        )


class Decorate(MakingTool):
    """Put small groups in the place of hydrogens: on the selected atoms, or on any atom."""

    least: int = _slider(1, 1, 20, "Smallest number of new heavy atoms.", "Atoms, at least")
    most: int = _slider(4, 1, 20, "Largest number of new heavy atoms.", "Atoms, at most")

    def work(self, room: Room, desk: Desk) -> None:
        """Make decorated molecules."""
        self.make(
            room,
            desk,
            n_heavy_atoms=(min(self.least, self.most), max(self.least, self.most)),
            scaffold=room.molecule(),
            grow_at=tuple(room.selection) or None,
        )


class Analogues(MakingTool):
    """Make molecules with the local environments of the molecule shown, about as large."""

    spread: int = _slider(2, 0, 10, "How many heavy atoms more or fewer.", "Difference in size")

    def work(self, room: Room, desk: Desk) -> None:
        """Make analogues."""
        molecule = room.molecule()
        n_atoms = molecule.GetNumHeavyAtoms()
        self.make(
            room,
            desk,
            n_heavy_atoms=(max(2, n_atoms - self.spread), n_atoms + self.spread),
            reference=_complete(molecule),
        )


def _complete(mol: Chem.Mol) -> Chem.Mol:
    return Chem.AddHs(mol, addCoords=True)


class ShowPrior(ShapeTool):
    """Draw the shape that Generate would use, as small spheres."""

    def work(self, room: Room, desk: Desk) -> None:
        """Draw it."""
        shape = self.chosen_shape(room, desk)
        room.draw_shape(desk.compute(room, self.label, Outline(shape)))


class Hydrogenate(Tool):
    """Add the hydrogens that the molecule lacks; bare heavy atoms get the likeliest bonds."""

    def work(self, room: Room, desk: Desk) -> None:
        """Add them."""
        molecule = room.molecule()
        complete: Chem.Mol = desk.compute(room, "Hydrogenate", HydrogenateTask(molecule))
        n_new = complete.GetNumAtoms() - molecule.GetNumAtoms()
        if n_new == 0:
            room.say("**Hydrogenate**: there is no hydrogen missing.")
            return
        room.mark("before Hydrogenate")
        room.append([to_frame(complete)])
        smiles = Chem.MolToSmiles(Chem.RemoveHs(complete))
        room.say(f"**Hydrogenate** added {n_new} hydrogens: `{smiles}`")


class Relax(Tool):
    """Relax the molecule in the force field: all atoms, or the selected ones only."""

    def work(self, room: Room, desk: Desk) -> None:
        """Relax it."""
        frame = room.frame()
        if not len(frame):
            raise InputError("expected a molecule in this frame, got no atoms; go to another frame")
        numbers, positions = geometry(frame)
        task = RelaxTask(tuple(numbers.tolist()), positions, tuple(room.selection))
        relaxed: Relaxed = desk.compute(room, "Relax", task)
        if not relaxed.finite:
            raise InputError("these atoms are too close for the force field; move them apart")
        room.mark("before Relax")
        # First: what a frame is given is written over what it had.
        moved = np.linalg.norm(relaxed.positions - positions, axis=1).max()
        frame.positions = relaxed.positions
        room.append([frame])
        words = (
            f"**Relax** released {relaxed.released * EV_TO_KCAL:.1f} kcal/mol; atoms moved by up "
        )
        words += f"to {moved:.2f} Å."
        room.say(words if relaxed.converged else words + " It did not converge: relax again.")


class Validate(Tool):
    """Check the molecule shown, and select the atoms that something is wrong with."""

    def work(self, room: Room, desk: Desk) -> None:
        """Check it."""
        frame = room.frame()
        mol = _for_validation(frame)
        name = str(frame.info.get("name", f"frame {room.vis.step}"))
        report = validate(mol, name=name)
        bad = bad_atoms(mol)
        room.select(bad)
        rows = [(key, value) for key, value in report.to_row().items() if value]
        table = "\n".join(
            ["| check | answer |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in rows)]
        )
        verdict = (
            "is sound" if report.status is Status.OK else f"**{report.status}**: {report.detail}"
        )
        selected = f" Selected: atoms {', '.join(map(str, bad))}." if bad else ""
        room.say(f"**Validate**: {name} {verdict}.{selected}\n\n{table}")


def _for_validation(frame: ase.Atoms) -> Chem.Mol:
    """The molecule of a frame; with the bonds that are drawn where none make sense."""
    try:
        return to_mol(frame)
    except InputError:
        drawn = as_drawn(frame)
        if drawn is None:
            raise
        return drawn


def bad_atoms(mol: Chem.Mol) -> list[int]:
    """Atoms of impossible valence, with open valences, or whose distances deny their bonds."""
    bad = {
        problem.GetAtomIdx()
        for problem in Chem.DetectChemistryProblems(mol)
        if hasattr(problem, "GetAtomIdx")
    }
    copy = Chem.Mol(mol)
    copy.UpdatePropertyCache(strict=False)
    Chem.AssignRadicals(copy)
    for atom in copy.GetAtoms():
        if atom.GetNumRadicalElectrons() or atom.GetTotalNumHs():
            bad.add(atom.GetIdx())
    if not check_graph_kept(mol).passed:
        numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
        drawn = {
            (min(ends), max(ends))
            for ends in ((b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds())
        }
        seen = bonded_pairs(numbers, mol.GetConformer().GetPositions(), BOND_FACTOR)
        bad.update(i for pair in seen ^ drawn for i in pair)
    return sorted(bad)


class LoadMolecules(Tool):
    """Load molecules from SMILES; for SDF, SMILES and XYZ files use the upload button."""

    smiles: str = Field(
        "",
        title="SMILES",
        description="One, or several with spaces between them.",
        json_schema_extra={"x-custom-type": "smiles"},
        max_length=20_000,
    )
    together: bool = Field(
        False, title="In one frame", description="Side by side, as fragments to be linked."
    )

    def work(self, room: Room, desk: Desk) -> None:
        """Load them."""
        text = "\n".join(self.smiles.split())
        if not text:
            raise InputError("expected a SMILES string, got none; write one into the form")
        load(room, desk, LoadTask(text, max_atoms=desk.limits.atoms), together=self.together)


def load(room: Room, desk: Desk, task: LoadTask, *, together: bool = False) -> None:
    """Read molecules and show each in a frame, or all side by side in one."""
    mols, left_out = desk.compute(room, "Load", task)
    for reason in left_out[:10]:
        room.say(f"**Load** left out {reason}")
    if not mols:
        raise InputError("expected at least one molecule, got none that can be read")
    room.mark("before Load")
    if together and len(mols) > 1:
        room.append([to_frame(_side_by_side([mol for _, mol in mols]))])
    else:
        room.append([to_frame(mol, {"name": name}) for name, mol in mols])
    room.say(f"**Load** read {len(mols)} of {len(mols) + len(left_out)} molecules.")


def _side_by_side(mols: Sequence[Chem.Mol]) -> Chem.Mol:
    """Return molecules as fragments of one, along x, with room for a few atoms between them."""
    gap, edge = 4.0, 0.0
    whole = Chem.Mol()
    for mol in mols:
        x = mol.GetConformer().GetPositions()
        shift = np.array([edge - x[:, 0].min(), -x[:, 1].mean(), -x[:, 2].mean()])
        moved = Chem.Mol(mol)
        moved.GetConformer().SetPositions(x + shift)
        whole = Chem.CombineMols(whole, moved)
        edge += float(np.ptp(x[:, 0])) + gap
    x = whole.GetConformer().GetPositions()
    whole.GetConformer().SetPositions(x - x.mean(0))
    return whole


class Save(Tool):
    """Write a file to download; the room itself is lost when the server stops."""

    what: Literal["everything (zip)", "this molecule (SDF)", "all frames (XYZ)", "report (CSV)"] = (
        _choice("everything (zip)", "The link comes in the chat.", "What")
    )

    def work(self, room: Room, desk: Desk) -> None:
        """Write it."""
        if self.what.startswith("this"):
            path, link = desk.offer("molecule.sdf")
            io.write_sdf(path, [room.molecule()])
        elif self.what.startswith("all"):
            path, link = desk.offer("frames.xyz")
            io.write_xyz(path, _plain(room.vis[:]))
        elif self.what.startswith("report"):
            path, link = desk.offer("report.csv")
            _write_reports(path, room.vis[:])
        else:
            path, link = desk.offer(f"{room.name[:40]}.zip")
            self._write_everything(path, room, desk)
        room.say(f"**Save**: [{path.name}]({link}), {max(1, path.stat().st_size // 1024)} kB")

    def _write_everything(self, path: Path, room: Room, desk: Desk) -> None:
        folder = path.parent / "content"
        frames = room.vis[:]
        mols = _molecules(frames)
        if mols:
            io.write_sdf(folder / "molecules.sdf", mols)
            _write_reports(folder / "report.csv", frames)
        io.write_xyz(folder / "frames.xyz", _plain(frames))
        for number, run in enumerate(desk.runs[room.name], start=1):
            shutil.copytree(run, folder / f"run-{number}")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(p for p in folder.rglob("*") if p.is_file()):
                archive.write(file, file.relative_to(folder))
        shutil.rmtree(folder)


def _plain(frames: Sequence[ase.Atoms]) -> list[ase.Atoms]:
    """Frames as other programs read them: elements, positions, and what they are called."""
    kept = ("name", "status", "smiles")
    return [
        ase.Atoms(f.numbers, f.positions, info={k: str(f.info[k]) for k in kept if k in f.info})
        for f in frames
        if len(f)
    ]


def _molecules(frames: Sequence[ase.Atoms]) -> list[Chem.Mol]:
    """The complete molecules of a room: frames of heavy atoms on their way are none."""
    mols = []
    for index, frame in enumerate(frames):
        if 1 not in frame.numbers:
            continue
        try:
            mol = to_mol(frame)
        except InputError:
            continue
        mol.SetProp("_Name", str(frame.info.get("name", f"frame-{index}")))
        mols.append(mol)
    return mols


def _write_reports(path: Path, frames: Sequence[ase.Atoms]) -> None:
    rows = [validate(mol, name=mol.GetProp("_Name")).to_row() for mol in _molecules(frames)]
    io.write_csv(path, rows, Report.columns())


class Stop(Tool):
    """End the jobs of this room, running or waiting."""

    _n_jobs: int = PrivateAttr(0)

    def begin(self, room: str, desk: Desk) -> None:
        """End them."""
        self._n_jobs = desk.pool.stop(room)

    def work(self, room: Room, desk: Desk) -> None:
        """Say so."""
        found = "there is no job to stop" if not self._n_jobs else f"{self._n_jobs} jobs ended"
        room.say(f"**Stop**: {found}.")


class Connect(Tool):
    """Draw a curve through the selected atoms, in the order of their numbers."""

    def work(self, room: Room, desk: Desk) -> None:
        """Draw it."""
        selection = room.selection
        if len(selection) < 2:
            raise InputError(
                "expected two or more selected atoms to draw a curve through; click them"
            )
        room.draw_curve(room.frame().positions[selection])
        room.select([])


class NewCanvas(Tool):
    """Go to a new, empty frame, without curve and shape; what was there stays in its frames."""

    def work(self, room: Room, desk: Desk) -> None:
        """Clear the scene."""
        room.mark("before New Canvas")
        room.append([ase.Atoms()])
        room.select([])
        room.clear_drawings()


TOOLBAR: dict[str, type[Tool]] = {"Connect": Connect, "NewCanvas": NewCanvas}
"""What buttons of the toolbar submit; its third one submits Generate, without any choices."""
TOOLS: tuple[type[Tool], ...] = (
    Generate,
    LinkSelection,
    Decorate,
    Analogues,
    Hydrogenate,
    Relax,
    Validate,
    LoadMolecules,
    Save,
    ShowPrior,
    Stop,
)
"""What is in the menu, in its order."""
