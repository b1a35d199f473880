"""The Python interface of generation."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch

from simgen.composition import Composition
from simgen.descriptors.settings import DescriptorSettings, NetworkInvariants
from simgen.devices import keep_freed_memory, resolve_device
from simgen.errors import InputError
from simgen.evolution import suited_particles
from simgen.filters import Filters
from simgen.generation.config import GenerationConfig
from simgen.generation.journal import RunFolder
from simgen.generation.result import GenerationResult
from simgen.generation.run import Run
from simgen.host import Host
from simgen.models import ForceField, load_model
from simgen.priors import Gaussian, Prior, suggest_atoms
from simgen.processes import worker_context
from simgen.reference import ReferenceSet, load_reference
from simgen.refinement import RefinementSettings, RepairSettings
from simgen.sampling import Callback
from simgen.scaffold import Scaffold
from simgen.schedules import N_STEPS


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
        elements: Sequence[str] | Composition = ("C", "N", "O"),
        scaffold: Scaffold | None = None,
        host: Host | None = None,
        filters: Filters | None = None,
        descriptor: DescriptorSettings | None = None,
        n_steps: int = N_STEPS,
        n_particles: int | None = None,
        n_refinements: int = RefinementSettings().n_rounds,
        n_repairs: int = RepairSettings().n_rounds,
        seed: int | None = None,
        batch_size: int | None = None,
        n_workers: int = 1,
        out: str | Path | None = None,
        resume: bool = False,
        trajectory: bool = False,
        callback: Callable[[float, int], None] | None = None,
        observer: Callback | None = None,
    ) -> GenerationResult:
        """Make molecules.

        Parameters
        ----------
        n_molecules : int
            Number of attempts; the result tells which of them are valid.
        n_heavy_atoms : int, (int, int) or "auto"
            Heavy atoms of each molecule, or the range from which each attempt draws. With a
            scaffold: of heavy atoms to add to it. With "auto" the number that an exact formula has,
            or that links the fragments of a scaffold, or that suits the prior's size.
        prior : Prior, optional
            Where atoms are wanted; by default where a scaffold grows, or the cavity of a host, or a
            Gaussian that only holds them together (:meth:`Gaussian.suited_to` their number).
        reference : str, Path or ReferenceSet
            Shipped reference set or file with the molecules to learn from.
        elements : sequence of str or Composition
            Symbols of the heavy atoms that may occur, or all that is to be said about what
            molecules are made of.
        scaffold : Scaffold, optional
            Atoms that are there already: they stay where they are, with their bonds and indices.
        host : Host, optional
            Surroundings that molecules are made in.
        filters : Filters, optional
            Substructures that are not wanted.
        descriptor : DescriptorSettings, optional
            What environments are compared by; by default the first layer of the force field.
        n_steps : int
            Noise levels.
        n_particles : int, optional
            Copies of each molecule in element evolution, by default as many as suit the number of
            heavy atoms (:func:`simgen.evolution.suited_particles`).
        n_refinements : int
            Rounds in which samples that do not look like the reference yet are sampled on.
        n_repairs : int
            Rounds in which atoms in surroundings that no known molecule shows are sampled again;
            known are those of RDKit's bundled collections and of the reference.
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
            Whatever it raises ends the run; what is finished is saved.
        observer : callable, optional
            Shown the heavy atoms of a batch, those of a scaffold first in each molecule, after
            every few noise levels; only where attempts are computed in this process. Whatever it
            raises ends the run as well.

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
        if min(n_molecules, n_workers) > 1:
            worker_context()  # workers import what they need while the reference is read
        if isinstance(reference, str | Path):
            reference = load_reference(reference)
        composition = (
            elements if isinstance(elements, Composition) else Composition(tuple(elements))
        )
        if prior is None and scaffold is None and host is not None:
            prior = host.cavity()
        sizes = _sizes(n_heavy_atoms, composition, scaffold, prior)
        if prior is None:
            make_prior = Gaussian.suited_to if scaffold is None else scaffold.prior
            prior = make_prior(sum(sizes) // 2)
        run = None if out is None else RunFolder(Path(out), resume=resume)
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
            composition=composition,
            scaffold=scaffold,
            host=host,
            filters=filters or Filters(),
            descriptor=descriptor or NetworkInvariants(),
            n_steps=n_steps,
            n_particles=n_particles or suited_particles(sum(sizes) // 2),
            n_refinements=n_refinements,
            n_repairs=n_repairs,
        )
        if batch_size is not None and batch_size < 1:
            raise InputError(f"expected batch_size >= 1, got {batch_size}")
        if trajectory and run is None:
            raise InputError("expected an output folder for the trajectories, got none; give out")
        if n_workers < 1 or (n_workers > 1 and self.device.type != "cpu"):
            raise InputError(
                f"expected n_workers >= 1, and 1 on {self.device.type}, got {n_workers}"
            )
        if observer is not None and n_workers > 1:
            raise InputError(f"expected one worker for an observer, got {n_workers}")
        work = Run(
            self.model,
            config,
            reference,
            run,
            trajectory=trajectory,
            callback=callback,
            observer=observer,
        )
        return work.finish(batch_size, n_workers)


def _sizes(
    n_heavy_atoms: int | tuple[int, int] | Literal["auto"],
    composition: Composition,
    scaffold: Scaffold | None,
    prior: Prior | None,
) -> tuple[int, int]:
    """Range of the number of heavy atoms to place."""
    if n_heavy_atoms != "auto":
        n_atoms = n_heavy_atoms
        return (n_atoms, n_atoms) if isinstance(n_atoms, int) else n_atoms
    if composition.n_heavy_atoms is not None:
        given = 0 if scaffold is None else len(scaffold.heavy)
        return (composition.n_heavy_atoms - given,) * 2
    if prior is None and scaffold is not None:
        return scaffold.linker_sizes()
    return (suggest_atoms(prior or Gaussian()),) * 2
