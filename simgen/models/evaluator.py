"""The fastest way to evaluate a network whose weights are fixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from simgen.graph import Layout
from simgen.models.frozen import FrozenForceField
from simgen.models.network import ForceField
from simgen.molecules import MoleculeBatch


class Evaluator(Protocol):
    """A network to be evaluated many times."""

    model: ForceField

    def linearise(self, batch: MoleculeBatch) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the invariants, (n_atoms, n_features), and the transpose of their Jacobian."""
        ...

    def energy_and_forces(self, batch: MoleculeBatch) -> tuple[Tensor, Tensor]:
        """Energies in eV, (n_molecules,), and forces in eV/angstrom, (n_atoms, 3)."""
        ...


def evaluator(
    model: ForceField, *, n_layers: int | None = None, min_distance: float | None = None
) -> Evaluator:
    """Return a MACE as it is now, with derivatives written out, and any other network as such.

    Networks with terms that differ from pair to pair of elements are among the others.

    Parameters
    ----------
    model : ForceField
        The network; do not change its weights any more.
    n_layers : int, optional
        How many of its layers the invariants are taken from; by default all. Energies need all.
    min_distance : float, optional
        As that of :meth:`ForceField.node_invariants`, angstrom.
    """
    if not model.config.is_tabulated:
        return _Differentiated(model, n_layers or model.config.n_layers, min_distance)
    return FrozenForceField(model, n_layers=n_layers, min_distance=min_distance)


class _Differentiated:
    """Evaluation by automatic differentiation, in chunks that bound the memory."""

    def __init__(self, model: ForceField, n_layers: int, min_distance: float | None) -> None:
        self.model = model
        self._n_layers, self._min_distance = n_layers, min_distance
        self._layout = Layout()

    def linearise(self, batch: MoleculeBatch) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        parts = []
        for chunk in self._layout.chunks(batch):
            molecules = chunk.of(batch)
            positions = molecules.positions.detach().requires_grad_()
            with torch.enable_grad():
                features = self.model.node_invariants(
                    molecules.replace(positions=positions),
                    chunk.pairs,
                    self._n_layers,
                    self._min_distance,
                )
            parts.append((features, positions))

        def pullback(gradient: Tensor) -> Tensor:
            weights = torch.split(gradient, [len(positions) for _, positions in parts])
            return torch.cat(
                [
                    # Atoms without neighbours may not depend on their positions at all.
                    torch.autograd.grad(features, positions, weight, materialize_grads=True)[0]
                    if features.requires_grad
                    else torch.zeros_like(positions)
                    for (features, positions), weight in zip(parts, weights, strict=True)
                ]
            )

        return torch.cat([features.detach() for features, _ in parts]), pullback

    def energy_and_forces(self, batch: MoleculeBatch) -> tuple[Tensor, Tensor]:
        results = [
            self.model.energy_and_forces(chunk.of(batch), chunk.pairs)
            for chunk in self._layout.chunks(batch)
        ]
        energies, forces = zip(*results, strict=True)
        return torch.cat(energies), torch.cat(forces)
