"""The force field as an ASE calculator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from simgen.errors import InputError
from simgen.models import ForceField, evaluator, load_model
from simgen.molecules import MoleculeBatch


class ForceFieldCalculator(Calculator):
    """Energies in eV and forces in eV/angstrom of a molecule, for anything that ASE does.

    Parameters
    ----------
    model : ForceField, str or Path
        A model, the name of a shipped one, or a weights file, which is loaded in float64.
    device : torch.device or str
        Where a model that is loaded here computes.

    Raises
    ------
    InputError
        When computing a periodic system, or an element that the model does not know.

    Examples
    --------
    >>> from ase import Atoms
    >>> from simgen.models import ForceField, NetworkConfig
    >>> atoms = Atoms("OH2", [(0, 0, 0), (0.76, 0.59, 0), (-0.76, 0.59, 0)])
    >>> atoms.calc = ForceFieldCalculator(ForceField(NetworkConfig(elements=(1, 8), n_channels=4)))
    >>> atoms.get_forces().shape
    (3, 3)
    """

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012  (as in ASE)

    def __init__(
        self, model: ForceField | str | Path = "small", device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if not isinstance(model, ForceField):
            model = load_model(model, device=device, dtype=torch.float64)
        self.model = model
        self._energy_and_forces = evaluator(model).energy_and_forces

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute energy and forces; called by ASE."""
        super().calculate(atoms, list(properties), list(system_changes))  # type: ignore[no-untyped-call]
        system: Any = self.atoms
        if system.pbc.any():
            raise InputError(
                f"expected a molecule, got a system with periodic axes {system.pbc}; "
                "set atoms.pbc = False"
            )
        weight = self.model.embedding
        batch = MoleculeBatch.from_arrays(
            [(system.numbers, system.positions)], dtype=weight.dtype, device=weight.device
        )
        energies, forces = self._energy_and_forces(batch)
        self.results = {
            "energy": float(energies[0]),
            "free_energy": float(energies[0]),
            "forces": forces.cpu().double().numpy(),
        }
