"""The descriptor of a pretrained force field: the invariants after its first layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from simgen.descriptors import LinearisesSome, differentiable
from simgen.graph import is_batch_invariant
from simgen.models import ForceField, evaluator
from simgen.molecules import MoleculeBatch

MIN_DISTANCE = 0.75
"""Shorter distances are seen as this one, angstrom, so that coinciding atoms stay finite
(Elijošius et al. 2025, doi 10.1038/s41467-025-60963-3)."""


class ForceFieldDescriptor:
    """Invariant features of each atom after the first product block of a force field.

    Parameters
    ----------
    model : ForceField
        A trained field; later changes of its weights are not seen.

    References
    ----------
    Elijošius et al. 2025, doi 10.1038/s41467-025-60963-3: first-layer invariants of MACE.
    """

    def __init__(self, model: ForceField) -> None:
        self._network = evaluator(model, n_layers=1, min_distance=MIN_DISTANCE)

    def __call__(self, batch: MoleculeBatch, pairs: Tensor | None = None) -> Tensor:
        """Return the invariants, shape (n_atoms, n_channels), differentiable once."""
        return differentiable(self._network, batch)

    @property
    def reach(self) -> float | None:
        """Cutoff of the environments, angstrom, where only some of them can be evaluated."""
        return self._network.reach if isinstance(self._network, LinearisesSome) else None

    def linearise(
        self, batch: MoleculeBatch, wanted: Tensor | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the invariants, or those of some atoms, and the transpose of their Jacobian."""
        if wanted is None:
            return self._network.linearise(batch)
        assert isinstance(self._network, LinearisesSome)
        return self._network.linearise(batch, wanted)

    def is_batch_invariant(self, batch: MoleculeBatch) -> bool:
        """Whether it is the same for a molecule, bit for bit, in any batch: with compiled loops."""
        return is_batch_invariant(self._network, batch)
