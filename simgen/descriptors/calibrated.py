"""One meaning of the kernel's sharpness for all descriptors.

The similarity kernel measures squared distances of descriptors in units of ell, the mean of
|chi|^2 over the reference, which suits the force field it was published with. What another
descriptor has as its mean square, a common offset above all, says nothing about how much of a
difference two environments make. The sharpness goes with a noise level, that is with a length, so
it should mean the same length for all:

===================================================  ==========================================
Equation                                             Variable
===================================================  ==========================================
S = mean_i |d chi_i / d x|^2                         :func:`mean_stiffness`, 1/angstrom^2
ell = S / STIFFNESS                                  ``unit``
chi' = (chi - mean chi, sqrt(ell - var chi))         :class:`Calibrated`
===================================================  ==========================================

Small random displacements of the atoms of the reference, of variance s^2 along each axis, then
change d^2 / ell by s^2 STIFFNESS on average, whatever the descriptor is and however it is scaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from simgen.descriptors import Linearises, differentiable
from simgen.molecules import MoleculeBatch

STIFFNESS = 10.0
"""What S / ell is for the first layer of the force field that comes with the package, 1/angstrom^2:
9.3 for reference molecules of 9 heavy atoms, 10.5 for those of 16."""

_MOLECULES_AT_ONCE = 64
"""Bounds the memory."""

_N_PROBED = 2000
"""So many atoms are looked at at least, if need be each of them several times."""


def mean_stiffness(descriptor: Linearises, batch: MoleculeBatch, seed: int = 0) -> float:
    """Mean over atoms of the sum of the squared derivatives of their features.

    The squared norm of the Jacobian J is the expectation of that of v J with a vector v of random
    signs (Hutchinson's estimator). Errors are a few per cent.

    Parameters
    ----------
    descriptor : Linearises
        What to look at.
    batch : MoleculeBatch
        Molecules, at least one atom.
    seed : int
        Of the random vector.

    Returns
    -------
    float
        In the unit of squared features, 1/angstrom^2.

    References
    ----------
    M. F. Hutchinson, Commun. Stat. Simul. Comput. 19, 433 (1990).
    """
    generator = torch.Generator().manual_seed(seed)
    total, n_copies = 0.0, -(-_N_PROBED // batch.n_atoms)
    for part in _parts(batch[torch.arange(len(batch)).repeat(n_copies)]):
        features, pullback = descriptor.linearise(part)
        signs = torch.randint(0, 2, features.shape, generator=generator).to(features) * 2 - 1
        total += float(pullback(signs).to(torch.float64).square().sum())
    return total / (n_copies * batch.n_atoms)


def _parts(batch: MoleculeBatch) -> Iterator[MoleculeBatch]:
    """Split a batch into some molecules at a time."""
    for start in range(0, len(batch), _MOLECULES_AT_ONCE):
        yield batch[start : start + _MOLECULES_AT_ONCE]


class Calibrated:
    """A descriptor with the offset that gives the kernel's sharpness its usual meaning.

    Where it would have to be smaller than the variance of the features, the unit is that variance:
    the kernel is less sharp then. The unit is 1 if the reference has atoms without neighbours only.

    Parameters
    ----------
    descriptor : Linearises
        Any one.
    reference : MoleculeBatch
        Molecules that the kernel will compare with, at least one atom.
    """

    def __init__(self, descriptor: Linearises, reference: MoleculeBatch) -> None:
        self._descriptor = descriptor
        features = torch.cat([descriptor.linearise(part)[0] for part in _parts(reference)])
        self._centre = features.mean(0)
        variance = float((features - self._centre).square().sum(1).mean())
        unit = max(mean_stiffness(descriptor, reference) / STIFFNESS, variance) or 1.0
        self._offset = math.sqrt(unit - variance)

    def __call__(self, batch: MoleculeBatch, pairs: Tensor | None = None) -> Tensor:
        """Return the features and the offset, (n_atoms, n_features + 1), differentiable once."""
        return differentiable(self, batch)

    def linearise(self, batch: MoleculeBatch) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the same and the transpose of its Jacobian."""
        features, pullback = self._descriptor.linearise(batch)
        offset = features.new_full((len(features), 1), self._offset)
        shifted = torch.cat([features - self._centre, offset], 1)
        return shifted, lambda gradient: pullback(gradient[:, :-1].contiguous())
