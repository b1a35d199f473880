"""Generation end to end: from a configuration to finished molecules with an honest report.

A run is a list of attempts. Attempt k draws random numbers of its own (:mod:`simgen.noise`), so it
gives the same molecule in whatever chunk it is computed. Attempts go through in chunks, and each
finished chunk is on disk before the next one starts.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import secrets
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import ase
import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem

import simgen
from simgen import io
from simgen.cohesion import Cohesion
from simgen.density import Repulsion, SimilarityKernel, SimilarityScore
from simgen.descriptors.force_field import ForceFieldDescriptor
from simgen.devices import keep_freed_memory, memory_budget, resolve_device
from simgen.elements import SYMBOLS, atomic_number
from simgen.errors import ConfigError, DeviceError, InputError, LoadError, SimgenError
from simgen.evolution import EvolutionSettings, Palette, evolve
from simgen.finishing.bonds import BondAssignment, assign_bonds
from simgen.finishing.classical import has_tight_contacts, minimise_classically
from simgen.finishing.hydrogens import add_hydrogens
from simgen.finishing.relaxation import relax
from simgen.models import ForceField, FrozenForceField, load_model
from simgen.molecules import MoleculeBatch
from simgen.noise import Noise, Stream
from simgen.priors import Gaussian, Prior, prior_from_dict, prior_to_dict, suggest_atoms
from simgen.reference import ReferenceSet, load_reference
from simgen.refinement import RefinementSettings, refine
from simgen.sampling import Progress, Samples, start_molecules
from simgen.schedules import N_STEPS, noise_levels
from simgen.validation import (
    EV_TO_KCAL,
    Report,
    Status,
    check_contacts,
    check_graph_kept,
    mark_duplicates,
    molecule_key,
    validate,
)

MAX_HEAVY_ATOMS = 200
"""More heavy atoms than this are taken for a slip of the keyboard."""

JOURNAL = "attempts.jsonl"
"""File in the output folder that holds the finished attempts: a header, then a line per chunk."""

_MAX_CHUNK = {"cpu": 64, "cuda": 1024}
"""Most attempts of a chunk, after which results are saved. Larger ones are no faster."""

_ATOMS_PER_HEAVY_ATOM = 2.5
"""Atoms of a finished molecule, hydrogens included, for each heavy atom; at most about that."""

_COPIES = 4
"""How often the features of an edge are held at a time while forces are computed."""

_GOAL = 0.75
"""Quantile of the energies of real atoms at which a molecule's mean energy counts as good."""

_WORKER_CHUNK = 4
"""Attempts that a worker process computes at a time."""

_SAMPLING_SHARE = 0.5
"""Share of the time of a chunk that the first pass of sampling takes, for the progress report."""

_F_MAX = 0.03
"""Largest force left by relaxations, eV/angstrom."""
_HYDROGEN_STEPS = 50
"""Most steps of the relaxation of the hydrogens alone, which need not converge."""
_RELAXATION_STEPS = 500
"""Most steps of the relaxation of all atoms."""


# --- configuration -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class GenerationConfig:
    """Everything that determines the molecules of a run.

    Attributes
    ----------
    n_molecules : int
        Number of attempts.
    n_heavy_atoms : tuple of int
        Smallest and largest number of heavy atoms; each attempt draws its own.
    seed : int
        Seed of all random numbers, in [0, 2^64).
    prior : Prior
        Where atoms are wanted.
    reference : str
        Name or file of the reference set.
    model : str
        Name or file of the force field.
    elements : tuple of int
        Atomic numbers of the heavy atoms that may occur.
    n_steps : int
        Noise levels.
    n_particles : int
        Copies of each molecule in element evolution.
    n_refinements : int
        Rounds in which samples that do not look like the reference yet are sampled on.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    n_molecules: int = 16
    n_heavy_atoms: tuple[int, int] = (12, 12)
    seed: int = 0
    prior: Prior = Gaussian()  # noqa: RUF009 -- frozen
    reference: str = "organic"
    model: str = "small"
    elements: tuple[int, ...] = (6, 7, 8)
    n_steps: int = N_STEPS
    n_particles: int = 10
    n_refinements: int = RefinementSettings().n_rounds

    def __post_init__(self) -> None:
        for name in ("n_heavy_atoms", "elements"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, low, high in (
            ("n_molecules", 1, 2**32 - 1),
            ("n_steps", 4, 100_000),
            ("n_particles", 1, 2**24 - 1),
            ("n_refinements", 0, 1000),
            ("seed", 0, 2**64 - 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(
                    f"expected {name} to be an integer from {low} to {high}, got {value}"
                )
        sizes = self.n_heavy_atoms
        if len(sizes) != 2 or not 2 <= sizes[0] <= sizes[1] <= MAX_HEAVY_ATOMS:
            raise ConfigError(
                "expected n_heavy_atoms to be a number or an ascending pair of numbers from 2 to "
                f"{MAX_HEAVY_ATOMS}, got {sizes}"
            )
        if not self.elements or len(set(self.elements)) < len(self.elements):
            raise ConfigError(f"expected elements to be different ones, got {self.elements}")
        if 1 in self.elements:
            raise ConfigError("expected heavy elements only; hydrogens are added at the end")

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as what JSON can hold; :meth:`from_dict` undoes it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["n_heavy_atoms"] = list(self.n_heavy_atoms)
        values["elements"] = [SYMBOLS[z] for z in self.elements]
        values["prior"] = prior_to_dict(self.prior)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GenerationConfig:
        """Build a configuration from what :meth:`to_dict` returns; missing keys get defaults.

        Raises
        ------
        ConfigError
            If there is an unknown key, or a value is out of range.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(
                f"unknown key {unknown[0]!r}; expected one of {', '.join(sorted(known))}"
            )
        given = dict(values)
        if "elements" in given:
            given["elements"] = tuple(atomic_number(symbol) for symbol in given["elements"])
        if "prior" in given:
            given["prior"] = prior_from_dict(given["prior"])
        return cls(**given)

    def to_json(self) -> str:
        """Return the configuration as JSON text; :meth:`from_json` undoes it."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> GenerationConfig:
        """Build a configuration from JSON text.

        Examples
        --------
        >>> GenerationConfig.from_json('{"n_atoms": 3}')
        Traceback (most recent call last):
        ...
        simgen.errors.ConfigError: unknown key 'n_atoms'; expected one of elements, ...
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"expected a configuration as JSON: {error}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"expected a JSON object, got {type(values).__name__}")
        return cls.from_dict(values)


# --- results -----------------------------------------------------------------------------------


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


# --- the generator -----------------------------------------------------------------------------


class Generator:
    """Makes molecules with one force field.

    Parameters
    ----------
    model : ForceField
        Force field; its first layer describes environments, all of it relaxes molecules.
    name : str
        What to call it in the configuration.
    """

    def __init__(self, model: ForceField, *, name: str = "unnamed") -> None:
        self.model = model
        self.name = name

    @classmethod
    def from_pretrained(cls, model: str | Path = "small", *, device: str = "auto") -> Generator:
        """Load a force field that comes with the package, or one from a weights file.

        Parameters
        ----------
        model : str or Path
            Name (:func:`simgen.models.list_models`) or file.
        device : str
            ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``.

        Raises
        ------
        LoadError
            If there is no such model.
        DeviceError
            If there is no such device.
        """
        keep_freed_memory()
        return cls(load_model(model, device=resolve_device(device)), name=str(model))

    @property
    def device(self) -> torch.device:
        """Where the force field is, and everything is computed."""
        return self.model.embedding.device

    def generate(
        self,
        n_molecules: int = 16,
        n_heavy_atoms: int | tuple[int, int] | Literal["auto"] = 12,
        *,
        prior: Prior | None = None,
        reference: str | Path | ReferenceSet = "organic",
        elements: Sequence[str] = ("C", "N", "O"),
        n_steps: int = N_STEPS,
        n_particles: int = 10,
        n_refinements: int = RefinementSettings().n_rounds,
        seed: int | None = None,
        batch_size: int | None = None,
        n_workers: int = 1,
        out: str | Path | None = None,
        resume: bool = False,
        trajectory: bool = False,
        callback: Callable[[float, int], None] | None = None,
    ) -> GenerationResult:
        """Make molecules.

        Parameters
        ----------
        n_molecules : int
            Number of attempts; the result tells which of them are valid.
        n_heavy_atoms : int, (int, int) or "auto"
            Heavy atoms of each molecule, or the range from which each attempt draws; with "auto"
            the number that suits the prior's size.
        prior : Prior, optional
            Where atoms are wanted; by default a Gaussian that only holds them together.
        reference : str, Path or ReferenceSet
            Shipped reference set or file with the molecules to learn from.
        elements : sequence of str
            Symbols of the heavy atoms that may occur.
        n_steps : int
            Noise levels.
        n_particles : int
            Copies of each molecule in element evolution.
        n_refinements : int
            Rounds in which samples that do not look like the reference yet are sampled on.
        seed : int, optional
            By default one is drawn; the result has it.
        batch_size : int, optional
            Attempts computed at once; by default as many as fit the memory. The result does not
            depend on it.
        n_workers : int
            Processes that attempts are divided among, on a CPU; one per core is fastest for more
            than a few attempts. In a script, more than one needs the usual guard
            ``if __name__ == "__main__":``. The result does not depend on it.
        out : str or Path, optional
            Folder to write to; without it nothing is written. Finished attempts are saved in its
            journal after every batch, the other files are written when the run ends.
        resume : bool
            Go on with the run in ``out``, whose configuration must be the same.
        trajectory : bool
            Also write the path of each attempt to ``out/trajectories/``.
        callback : callable, optional
            Called with the number of attempts done, which has a fraction, and that of all.

        Returns
        -------
        GenerationResult
            All attempts.

        Raises
        ------
        InputError
            If an argument is out of range, or the force field lacks an element.
        LoadError
            If the reference cannot be read, or there is nothing to resume.
        DeviceError
            If a single attempt is too large for the memory.

        Examples
        --------
        >>> from simgen.models import ForceField, NetworkConfig
        >>> config = NetworkConfig(elements=(1, 6, 7, 8), n_channels=4, l_max=1)
        >>> result = Generator(ForceField(config)).generate(2, 3, n_steps=4, n_particles=1, seed=0)
        >>> len(result.attempts)
        2
        """
        if isinstance(reference, str | Path):
            reference = load_reference(reference)
        prior = Gaussian() if prior is None else prior
        n_atoms = suggest_atoms(prior) if n_heavy_atoms == "auto" else n_heavy_atoms
        sizes = (n_atoms, n_atoms) if isinstance(n_atoms, int) else n_atoms
        run = None if out is None else _Folder(Path(out), resume=resume)
        if seed is None:
            # A run that is resumed without a seed goes on with the one that was drawn for it.
            seed = run.seed if run is not None and run.seed is not None else secrets.randbits(63)
        config = GenerationConfig(
            n_molecules=n_molecules,
            n_heavy_atoms=sizes,
            seed=seed,
            prior=prior,
            reference=reference.name,
            model=self.name,
            elements=tuple(atomic_number(symbol) for symbol in elements),
            n_steps=n_steps,
            n_particles=n_particles,
            n_refinements=n_refinements,
        )
        if batch_size is not None and batch_size < 1:
            raise InputError(f"expected batch_size >= 1, got {batch_size}")
        if trajectory and run is None:
            raise InputError("expected an output folder for the trajectories, got none; give out")
        if n_workers < 1 or (n_workers > 1 and self.device.type != "cpu"):
            raise InputError(
                f"expected n_workers >= 1, and 1 on {self.device.type}, got {n_workers}"
            )
        work = _Run(self, config, reference, run, trajectory, callback)
        return work.finish(batch_size, n_workers)


class _Run:
    """One call of :meth:`Generator.generate`."""

    def __init__(
        self,
        generator: Generator,
        config: GenerationConfig,
        reference: ReferenceSet,
        folder: _Folder | None,
        trajectory: bool,
        callback: Callable[[float, int], None] | None,
    ) -> None:
        model = generator.model
        self.config = config
        self.reference = reference
        self.model = model
        self.energy_and_forces = FrozenForceField(model).energy_and_forces
        self.device = generator.device
        self.dtype = model.embedding.dtype
        self.folder = folder
        self.trajectory = trajectory
        self.callback = callback
        self.timings: dict[str, float] = {}
        lacking = [SYMBOLS[z] for z in (1, *config.elements) if z not in model.elements]
        if lacking:
            raise InputError(
                f"the force field {config.model} lacks {', '.join(lacking)}; it knows "
                f"{', '.join(SYMBOLS[z] for z in model.elements)}"
            )
        with_bonds = [m.mol for m in reference.molecules if m.mol is not None]
        self.known = {molecule_key(mol) for mol in with_bonds} if with_bonds else None
        with self._timed("reference"):
            chosen = reference.select(config.n_heavy_atoms, elements=model.elements)
            descriptor = ForceFieldDescriptor(model)
            environments = chosen.environments(descriptor, dtype=self.dtype, device=self.device)
            kernel = SimilarityKernel(descriptor, environments)
            self.levels = noise_levels(config.n_steps).tolist()
            self.goal = float(kernel.reference_energies(self.levels[-1]).quantile(_GOAL))
        self.score = SimilarityScore(kernel, [Repulsion(), Cohesion(), config.prior])
        self.provenance: dict[str, Any] = {
            "model": {"name": config.model, "sha256": model_digest(model)},
            "reference": {
                "name": reference.name,
                "sha256": reference.digest,
                "n_molecules": len(reference),
                "n_molecules_used": len(chosen),
                "n_environments": len(environments.features),
                "skipped": list(chosen.skipped),
            },
            "device": str(self.device),
            "versions": versions(),
        }

    def finish(self, batch_size: int | None, n_workers: int) -> GenerationResult:
        """Compute what is missing and return all attempts."""
        attempts: dict[int, Attempt] = {}
        if self.folder is not None:
            identity = {
                "config": self.config.to_dict(),
                "model": self.provenance["model"]["sha256"],
                "reference": self.provenance["reference"]["sha256"],
            }
            attempts, self.timings = self.folder.open(identity, self.timings)
        missing = [k for k in range(self.config.n_molecules) if k not in attempts]
        self._report(len(attempts))
        n_workers = min(n_workers, len(missing))
        chunks = (
            self._in_parallel(missing, batch_size, n_workers)
            if n_workers > 1
            else self._one_by_one(missing, batch_size)
        )
        try:
            for finished in chunks:
                attempts |= {attempt.index: attempt for attempt in finished}
                if self.folder is not None:
                    self.folder.append(finished, self.timings)
                self._report(len(attempts))
        except BaseException:
            # While a run goes on the journal is enough; once it ends, the files are there.
            if self.folder is not None and attempts:
                with suppress(SimgenError):
                    self._result(attempts).to_dir(self.folder.path)
            raise
        result = self._result(attempts)
        if self.folder is not None:
            result.to_dir(self.folder.path)
        return result

    def _one_by_one(self, missing: list[int], limit: int | None) -> Iterator[list[Attempt]]:
        """Compute attempts in this process, chunk by chunk."""
        sizes = self._sizes()
        while missing:
            chunk = missing[: self._chunk_size(sizes[missing], limit)]
            n_done = self.config.n_molecules - len(missing)
            try:
                finished = self._compute(chunk, sizes[chunk], n_done)
            except torch.OutOfMemoryError:
                if len(chunk) == 1:
                    raise DeviceError(
                        f"not enough memory on {self.device} for one molecule of "
                        f"{int(sizes[chunk[0]])} heavy atoms; use fewer --particles"
                    ) from None
                limit = len(chunk) // 2
                continue
            missing = missing[len(chunk) :]
            yield finished

    def _in_parallel(
        self, missing: list[int], batch_size: int | None, n_workers: int
    ) -> Iterator[list[Attempt]]:
        """Compute attempts in processes of one thread each, chunk by chunk as they finish.

        Networks as small as ours spend much of their time between operations, where threads
        cannot help.
        """
        sizes = self._sizes()
        size = min(batch_size or _WORKER_CHUNK, -(-len(missing) // n_workers))
        path = self.folder.path if self.folder is not None and self.trajectory else None
        with ProcessPoolExecutor(
            n_workers,
            mp_context=get_context("spawn"),
            initializer=_start_worker,
            initargs=(self.model, self.config, self.reference, path),
        ) as pool:
            futures = [
                pool.submit(_compute_in_worker, missing[i : i + size], sizes[missing[i : i + size]])
                for i in range(0, len(missing), size)
            ]
            try:
                for future in as_completed(futures):
                    attempts, timings = future.result()
                    for stage, seconds in timings.items():
                        self.timings[stage] = self.timings.get(stage, 0.0) + seconds
                    yield [_attempt_from_json(values) for values in attempts]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _sizes(self) -> NDArray[np.int64]:
        """Heavy atoms of each attempt, shape (n_molecules,)."""
        low, high = self.config.n_heavy_atoms
        noise = Noise(self.config.seed, torch.arange(self.config.n_molecules))
        # Start positions are drawn at step 0 of this stream, so that step 1 is free.
        uniform = noise.uniform_per_molecule(Stream.START, 1).numpy()
        return low + (uniform * (high - low + 1)).astype(np.int64)

    def _chunk_size(self, sizes: NDArray[np.int64], limit: int | None) -> int:
        """How many of the next attempts, of these sizes, fit into memory together."""
        network = self.model.config
        n_pairs = (_ATOMS_PER_HEAVY_ATOM * sizes) ** 2
        n_values = network.n_layers * network.n_channels * (network.l_max + 1) ** 2
        itemsize = torch.finfo(self.dtype).bits // 8
        n_bytes = np.cumsum(n_pairs * n_values * itemsize * _COPIES)
        fitting = int(np.searchsorted(n_bytes, memory_budget(self.device), side="right"))
        most = _MAX_CHUNK[self.device.type]
        return max(1, min(fitting, most if limit is None else limit))

    def _compute(self, chunk: list[int], sizes: NDArray[np.int64], n_done: int) -> list[Attempt]:
        """Carry out the attempts of a chunk together."""
        frames: list[Progress] = []

        def on_progress(progress: Progress) -> None:
            share = _SAMPLING_SHARE * progress.step / (len(self.levels) - 1)
            self._report(n_done + share * len(chunk))
            if self.trajectory:
                frames.append(progress)

        with self._timed("sampling"):
            noise = Noise(self.config.seed, torch.tensor(chunk, device=self.device))
            counts = torch.as_tensor(sizes, device=self.device)
            palette = Palette(self.config.elements)
            start = start_molecules(
                self.config.prior,
                counts,
                noise,
                atomic_number=6 if 6 in palette.elements else palette.elements[0],
                dtype=self.dtype,
            )
            settings = EvolutionSettings(n_particles=self.config.n_particles, palette=palette)
            samples = evolve(
                self.score, start, self.levels, noise=noise, settings=settings, callback=on_progress
            )
        with self._timed("refinement"):
            samples = refine(
                self.score,
                samples,
                self.levels,
                self.goal,
                noise=noise,
                settings=RefinementSettings(n_rounds=self.config.n_refinements),
                evolution=settings,
            )
            skeletons = self._skeletons(chunk, samples, self.levels[-1])
        if self.folder is not None and frames:
            self.folder.write_trajectories(chunk, frames)
        return self._finish(skeletons)

    def _skeletons(self, chunk: list[int], samples: Samples, sigma: float) -> list[_Skeleton]:
        """Take the samples of a chunk apart."""
        batch = samples.molecules
        log_k = batch.sum_per_molecule(-self.score.atom_energies(batch, sigma)) / batch.counts
        parts = batch.to("cpu", torch.float64).split()
        columns = zip(chunk, parts, samples.finite.tolist(), log_k.tolist(), strict=True)
        return [
            _Skeleton(
                k,
                part.atomic_numbers.numpy(),
                part.positions.numpy(),
                finite,
                similarity if finite else None,
            )
            for k, part, finite, similarity in columns
        ]

    def _finish(self, skeletons: Sequence[_Skeleton]) -> list[Attempt]:
        """Bonds, hydrogens, relaxation and checks for the heavy atoms of a chunk."""
        with self._timed("bonds and hydrogens"):
            assignments = [
                assign_bonds(s.atomic_numbers, s.positions)
                if s.finite
                else BondAssignment(Status.NONFINITE, None, ())
                for s in skeletons
            ]
            mols = {
                place: add_hydrogens(assignment.mol)
                for place, assignment in enumerate(assignments)
                if assignment.mol is not None
            }
            for mol in mols.values():
                if has_tight_contacts(mol):
                    minimise_classically(mol, hydrogens_only=False)
        with self._timed("relaxation"):
            relaxed = dict(zip(mols, self._relax(list(mols.values())), strict=True))
            # A field can have holes where atoms are too close. What fell into one begins again
            # from where a classical field, which has none, puts it.
            spoiled = [place for place, result in relaxed.items() if not _is_sound(result)]
            for place in spoiled:
                minimise_classically(mols[place], hydrogens_only=False)
            again = self._relax([mols[place] for place in spoiled])
            pairs = zip(spoiled, again, strict=True)
            relaxed |= {place: result for place, result in pairs if _is_sound(result)}
        with self._timed("validation"):
            return [
                self._judge(skeleton, assignment, relaxed.get(place))
                for place, (skeleton, assignment) in enumerate(
                    zip(skeletons, assignments, strict=True)
                )
            ]

    def _relax(self, mols: Sequence[Chem.Mol]) -> list[_Relaxed]:
        """Relax all molecules together in the force field: hydrogens first, then everything."""
        batch = MoleculeBatch.from_arrays(
            [
                ([a.GetAtomicNum() for a in mol.GetAtoms()], mol.GetConformer().GetPositions())
                for mol in mols
            ],
            dtype=self.dtype,
            device=self.device,
        )
        everything = torch.zeros_like(batch.fixed)
        first = relax(
            self.energy_and_forces,
            batch.replace(fixed=batch.atomic_numbers != 1),
            f_max=_F_MAX,
            max_steps=_HYDROGEN_STEPS,
        )
        second = relax(
            self.energy_and_forces,
            first.batch.replace(fixed=everything),
            f_max=_F_MAX,
            max_steps=_RELAXATION_STEPS,
        )
        energies = ((second.initial_energies - second.energies) * EV_TO_KCAL).tolist()
        finite = (first.finite & second.finite).tolist()
        results = []
        for mol, part, *outcome in zip(
            mols,
            second.batch.to("cpu", torch.float64).split(),
            energies,
            finite,
            second.converged.tolist(),
            strict=True,
        ):
            complete = Chem.Mol(mol)
            complete.GetConformer().SetPositions(part.positions.numpy())
            results.append(_Relaxed(complete, *outcome))
        return results

    def _judge(
        self, skeleton: _Skeleton, assignment: BondAssignment, relaxed: _Relaxed | None
    ) -> Attempt:
        """Write the report of an attempt."""
        name = _name(skeleton.index)
        n_dropped = len(skeleton.atomic_numbers) - len(assignment.kept) if skeleton.finite else None
        if relaxed is None:
            report = Report(
                name, assignment.status, n_dropped=n_dropped, similarity=skeleton.similarity
            )
            return Attempt(skeleton.index, report, skeleton.atomic_numbers, skeleton.positions)
        report = validate(
            relaxed.mol,
            name=name,
            relaxation_energy=relaxed.energy if relaxed.finite else None,
            n_dropped=n_dropped,
            similarity=skeleton.similarity,
            known=self.known,
        )
        if not relaxed.finite:
            report = replace(report, status=Status.NONFINITE, detail="relaxation")
        elif report.status is Status.OK and not relaxed.converged:
            detail = f"forces above {_F_MAX} eV/A after {_RELAXATION_STEPS} steps"
            report = replace(report, status=Status.UNCONVERGED, detail=detail)
        elif report.status is Status.OK and len(assignment.kept) < self.config.n_heavy_atoms[0]:
            detail = f"{n_dropped} of {len(skeleton.atomic_numbers)} heavy atoms lay apart"
            report = replace(report, status=Status.INCOMPLETE, detail=detail)
        return _attempt_of_mol(skeleton.index, report, relaxed.mol)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - start

    def _report(self, n_done: float) -> None:
        if self.callback is not None:
            self.callback(n_done, self.config.n_molecules)

    def _result(self, attempts: Mapping[int, Attempt]) -> GenerationResult:
        ordered = [attempts[k] for k in sorted(attempts)]
        reports = mark_duplicates(attempt.report for attempt in ordered)
        marked = (replace(a, report=report) for a, report in zip(ordered, reports, strict=True))
        return GenerationResult(self.config, tuple(marked), self.provenance, dict(self.timings))


_worker: _Run
"""The run that a worker process contributes to."""


def _start_worker(
    model: ForceField, config: GenerationConfig, reference: ReferenceSet, path: Path | None
) -> None:
    """Prepare a worker process; ``path`` is where trajectories go, if they are wanted."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process decides what happens
    torch.set_num_threads(1)
    keep_freed_memory()
    folder = None if path is None else _Folder(path, resume=True)
    generator = Generator(model, name=config.model)
    _worker = _Run(generator, config, reference, folder, path is not None, None)


def _compute_in_worker(
    chunk: list[int], sizes: NDArray[np.int64]
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Carry out attempts in a worker process; returns them as JSON holds them, and the timings."""
    _worker.timings = {}
    attempts = [_attempt_to_json(a) for a in _worker._compute(chunk, sizes, n_done=0)]
    return attempts, _worker.timings


@dataclass(frozen=True, slots=True, eq=False)
class _Skeleton:
    """Heavy atoms as the sampler leaves them."""

    index: int
    atomic_numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    finite: bool
    similarity: float | None


@dataclass(frozen=True, slots=True, eq=False)
class _Relaxed:
    """A molecule after relaxation; ``energy`` is what the last part of it released, kcal/mol."""

    mol: Chem.Mol
    energy: float
    finite: bool
    converged: bool


def _is_sound(relaxed: _Relaxed) -> bool:
    """Whether a relaxation left the bonds of the molecule, and no atoms on top of each other."""
    checks = (check_graph_kept, check_contacts)
    return relaxed.finite and all(check(relaxed.mol).passed for check in checks)


class _Folder:
    """The output folder of a run, with the journal of its finished attempts.

    The journal is appended to, a line per chunk. A line that an interruption cut short is the last
    one; it is dropped when the run is resumed, and its chunk is computed again.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self.journal = path / JOURNAL
        self.lines: list[dict[str, Any]] = []
        if self.journal.exists() and not resume:
            raise ConfigError(
                f"{path} already holds a run; go on with it (--resume) or choose another folder"
            )
        if resume:
            self.lines = self._read()

    @property
    def seed(self) -> int | None:
        """Seed of the run in the folder, if there is one."""
        return int(self.lines[0]["config"]["seed"]) if self.lines else None

    def _read(self) -> list[dict[str, Any]]:
        try:
            text = self.journal.read_text()
        except OSError:
            raise LoadError(f"no run to resume in {self.path}: there is no {JOURNAL}") from None
        lines = text.split("\n")[:-1]
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            raise LoadError(f"{self.journal} is damaged; start again in another folder") from None

    def open(
        self, identity: dict[str, Any], timings: dict[str, float]
    ) -> tuple[dict[int, Attempt], dict[str, float]]:
        """Check that the journal is of this run, or begin one; return what is finished."""
        if self.lines:
            _check_identity(self.lines[0], identity, self.path)
        else:
            self.lines = [identity]
        # Without the line that was cut short, if there is one.
        io.write_text(self.journal, "".join(json.dumps(line) + "\n" for line in self.lines))
        attempts = [_attempt_from_json(a) for line in self.lines[1:] for a in line["attempts"]]
        if len(self.lines) > 1:
            timings = self.lines[-1]["timings"]
        return {attempt.index: attempt for attempt in attempts}, dict(timings)

    def append(self, attempts: Sequence[Attempt], timings: Mapping[str, float]) -> None:
        """Save a finished chunk."""
        line = {"timings": timings, "attempts": [_attempt_to_json(a) for a in attempts]}
        try:
            with self.journal.open("a") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SimgenError(
                f"cannot write {self.journal}: {error.strerror}; free some space, then --resume"
            ) from None

    def write_trajectories(self, chunk: Sequence[int], frames: Sequence[Progress]) -> None:
        """Write the path of each attempt of a chunk to a file of its own."""
        paths = [frame.molecules.to("cpu", torch.float64).split() for frame in frames]
        for place, index in enumerate(chunk):
            atoms = [
                ase.Atoms(
                    path[place].atomic_numbers.numpy(),
                    path[place].positions.numpy(),
                    info={"step": frame.step, "sigma": frame.sigma},
                )
                for frame, path in zip(frames, paths, strict=True)
            ]
            io.write_xyz(self.path / "trajectories" / f"{_name(index)}.xyz", atoms)


def read_attempts(folder: Path) -> tuple[dict[str, Any], dict[int, Attempt]]:
    """Read the configuration and the finished attempts, by their index, of a run.

    Raises
    ------
    LoadError
        If there is no journal, or it is damaged.
    """
    header, *chunks = _Folder(folder, resume=True).lines or [{}]
    found = [_attempt_from_json(values) for chunk in chunks for values in chunk["attempts"]]
    return header.get("config", {}), {attempt.index: attempt for attempt in found}


def _check_identity(found: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    """Raise a ConfigError that names the first difference between two runs."""
    theirs = {**found["config"], "weights": found["model"], "molecules": found["reference"]}
    ours = {**expected["config"], "weights": expected["model"], "molecules": expected["reference"]}
    for key, value in ours.items():
        if theirs.get(key) != value:
            raise ConfigError(
                f"the run in {path} has another configuration: {key} is {theirs.get(key)} there "
                f"and {value} here; use the same options to resume, or another folder"
            )


def _name(index: int) -> str:
    return f"simgen-{index:05d}"


def model_digest(model: ForceField) -> str:
    """Checksum of a force field: its configuration and weights, in hexadecimal."""
    checksum = hashlib.sha256(model.config.to_json().encode())
    for name, tensor in sorted(model.state_dict().items()):
        checksum.update(name.encode())
        checksum.update(tensor.cpu().to(torch.float64).numpy().tobytes())
    return checksum.hexdigest()


def versions() -> dict[str, str]:
    """Versions of the program and of what its results depend on."""
    packages = ("torch", "rdkit", "numpy", "scipy", "ase")
    return {
        "simgen": simgen.__version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


# --- attempts as files hold them ---------------------------------------------------------------

_WITH_EVERYTHING = Chem.PropertyPickleOptions.CoordsAsDouble


def _attempt_of_mol(index: int, report: Report, mol: Chem.Mol) -> Attempt:
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.int64)
    return Attempt(index, report, numbers, mol.GetConformer().GetPositions(), mol)


def _attempt_to_json(attempt: Attempt) -> dict[str, Any]:
    values: dict[str, Any] = {"index": attempt.index, "report": asdict(attempt.report)}
    if attempt.mol is None:
        values["atomic_numbers"] = attempt.atomic_numbers.tolist()
        values["positions"] = attempt.positions.tolist()
    else:
        values["mol"] = base64.b64encode(attempt.mol.ToBinary(_WITH_EVERYTHING)).decode()
    return values


def _attempt_from_json(values: Mapping[str, Any]) -> Attempt:
    given = values["report"]
    report = Report(**(given | {"status": Status(given["status"])}))
    if "mol" in values:
        mol = Chem.Mol(base64.b64decode(values["mol"]))  # type: ignore[call-overload]
        return _attempt_of_mol(values["index"], report, mol)
    return Attempt(
        values["index"],
        report,
        np.array(values["atomic_numbers"], dtype=np.int64),
        np.array(values["positions"], dtype=np.float64).reshape(-1, 3),
    )


def _with_properties(mol: Chem.Mol, report: Report) -> Chem.Mol:
    """Return a molecule with its report as properties, as SDF files hold them."""
    mol = Chem.Mol(mol)
    for column, text in report.to_row().items():
        if text:
            mol.SetProp("_Name" if column == "name" else column, text)
    return mol


def _as_atoms(attempt: Attempt) -> ase.Atoms:
    """Return the geometry of an attempt with its name and status."""
    info = {"name": attempt.report.name, "status": str(attempt.report.status)}
    return ase.Atoms(attempt.atomic_numbers, attempt.positions, info=info)
