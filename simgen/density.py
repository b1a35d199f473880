"""The log-density that molecules are drawn from, and its gradient, the score.

========================================  =====================================
Equation                                  Variable
========================================  =====================================
chi_i, descriptor of atom i               ``features``
d2_ij = |chi_i - chi_j|^2 / (ell s_z)     (never stored as such)
ell = mean_j |chi_j|^2                    ``ReferenceEnvironments.length_scale``
m(sigma)                                  :func:`simgen.schedules.kernel_sharpness`
m / (ell s_z)                             ``precision``
log k_i = logsumexp_j(-m d2_ij / 2)       ``log_k`` (:mod:`simgen.kernel`)
E_i = -log k_i                            ``atom_energies``
========================================  =====================================

References
----------
R. Elijošius et al., "Zero shot molecular generation via similarity kernels", Nat. Commun. 16
(2025), doi 10.1038/s41467-025-60963-3.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from scipy.spatial import KDTree
from torch import Tensor

from simgen.descriptors import Descriptor, LinearisesSome, linearise
from simgen.errors import InputError
from simgen.graph import Chunk, Families, Layout, is_batch_invariant, molecule_pairs
from simgen.kernel import References
from simgen.models.compiled import library_for
from simgen.molecules import MoleculeBatch
from simgen.schedules import kernel_sharpness

MAX_SCORE = math.sqrt(3.0)
"""Largest norm of an atom's similarity score, 1/angstrom (Elijošius et al. 2025)."""
REPULSION_STRENGTH = 1.0 / 3.0
"""Energy of two coinciding atoms (Elijošius et al. 2025)."""
REPULSION_DECAY = 8.0
"""1/angstrom (Elijošius et al. 2025)."""

SMALLEST_DISTANCE = 1e-12
"""angstrom; two atoms closer than this coincide."""
THEMES_AT_HAND = 64
"""Parts of the reference that are kept as tensors of their own, those used last."""
MARGIN = 1e-3
"""angstrom; more than distances round by."""
LEAF_SIZE = 8
"""References that are not sorted any further."""


class LogDensity(Protocol):
    """The logarithm of an unnormalised density of molecules."""

    def log_prob(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Log-density of each molecule at a noise level, differentiable: (n_molecules,)."""
        ...


@runtime_checkable
class HasScore(Protocol):
    """A log-density that brings a score of its own."""

    def score(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Gradient of the log-density, shape (n_atoms, 3), 1/angstrom."""
        ...


Evaluate = Callable[[MoleculeBatch, float], Tensor]
"""Something of a batch at a noise level, in angstrom, for each atom."""


def score_of(log_density: LogDensity) -> Evaluate:
    """Gradient of a log-density with respect to the positions, (n_atoms, 3), in 1/angstrom.

    Parameters
    ----------
    log_density : LogDensity
        If it has a method ``score``, that is what is returned, else automatic differentiation.
    """
    if isinstance(log_density, HasScore):
        return log_density.score

    def differentiate(batch: MoleculeBatch, sigma: float) -> Tensor:
        positions = batch.positions.detach().requires_grad_(True)
        with torch.enable_grad():
            total = log_density.log_prob(batch.replace(positions=positions), sigma).sum()
        return torch.autograd.grad(total, positions)[0]

    return differentiate


def clip_score(score: Tensor, max_norm: float = MAX_SCORE) -> Tensor:
    """Shorten the score of each atom, shape (n_atoms, 3), to at most ``max_norm``."""
    norm = torch.linalg.vector_norm(score, dim=1, keepdim=True)
    clipped: Tensor = score * (max_norm / norm).clamp(max=1.0)
    return clipped


# --- similarity --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceEnvironments:
    """Descriptors of the atoms of reference molecules.

    Attributes
    ----------
    features : Tensor, shape (n_environments, n_features)
        Their descriptors.
    atomic_numbers : Tensor, shape (n_environments,), int64
        Their elements.

    Raises
    ------
    InputError
        If there are none, or if they are not finite.
    """

    features: Tensor
    atomic_numbers: Tensor

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or not len(self.features):
            raise InputError(
                "expected at least one reference environment, got features of shape "
                f"{tuple(self.features.shape)}; bring molecules with heavy atoms"
            )
        if self.atomic_numbers.shape != (len(self.features),):
            raise InputError(
                f"expected {len(self.features)} atomic numbers, "
                f"got shape {tuple(self.atomic_numbers.shape)}"
            )
        if not bool(torch.isfinite(self.features).all()):
            raise InputError("expected finite descriptors of the reference, got some that are not")

    @property
    def length_scale(self) -> Tensor:
        """The unit of squared distances, mean over environments of |chi|^2: a scalar."""
        return self.features.square().sum(1).mean()

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> ReferenceEnvironments:
        """Return the environments on another device or with features of another dtype."""
        return ReferenceEnvironments(
            self.features.to(device=device, dtype=dtype), self.atomic_numbers.to(device=device)
        )


class Evaluation(NamedTuple):
    """Similarity of a batch at one noise level."""

    score: Tensor
    """Gradient of sum_i log k_i, shape (n_atoms, 3), 1/angstrom; not clipped."""
    atom_energies: Tensor
    """E_i = -log k_i, shape (n_atoms,)."""


class SimilarityKernel:
    """How much the environment of each atom looks like any of the reference, or of a part of it.

    Parameters
    ----------
    descriptor : Descriptor
        Describes the atoms.
    environments : ReferenceEnvironments
        The reference, described by the same descriptor.
    themes : sequence of Tensor, shape (n_members,), int64
        Parts of the reference, as indices of environments: the atoms of a molecule are compared
        with the part that its ``theme`` is the number of. Without them, with all environments.
    widths : mapping of int to float
        Width s_z of an element's kernel, of the atom that is compared; 1 where not given.
    max_pairs : int, optional
        Pairs of atoms whose descriptors are computed at once; bounds the memory.
    """

    def __init__(
        self,
        descriptor: Descriptor,
        environments: ReferenceEnvironments,
        *,
        themes: Sequence[Tensor] = (),
        widths: Mapping[int, float] | None = None,
        max_pairs: int | None = None,
    ) -> None:
        self.descriptor = descriptor
        self.environments = environments
        self.themes = tuple(themes)
        self._layout = Layout(max_pairs)
        features = environments.features
        self._centre = features.mean(0)
        # References that are alike are adjacent: what is far from an atom is left out in groups.
        order = torch.as_tensor(KDTree(features.cpu(), leafsize=LEAF_SIZE).indices)
        order = order.to(features.device)
        self._centred = (features - self._centre)[order]
        self._place = torch.argsort(order)
        self._references = References(self._centred)
        self._of_theme = lru_cache(THEMES_AT_HAND)(
            lambda number: References(self._centred[self._place[self.themes[number]].sort().values])
        )
        widths = dict(widths or {})
        if any(width <= 0 for width in widths.values()):
            raise InputError(f"expected positive widths, got {widths}")
        inverse_scale = torch.ones(max(widths, default=0) + 1, dtype=features.dtype)
        for z, width in widths.items():
            inverse_scale[z] = 1.0 / width
        self._inverse_scale = inverse_scale.to(features.device) / environments.length_scale

    def is_batch_invariant(self, batch: MoleculeBatch) -> bool:
        """Whether it is the same for a molecule, bit for bit, in any batch: with compiled loops."""
        return self._references.is_compiled and is_batch_invariant(self.descriptor, batch)

    def _precision(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        # Elements beyond the table have no width of their own; nor has its entry 0.
        known = batch.atomic_numbers < len(self._inverse_scale)
        row = torch.where(known, batch.atomic_numbers, 0)
        return kernel_sharpness(sigma) * self._inverse_scale[row]

    def log_prob(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Sum of log k_i of each molecule, differentiable once: shape (n_molecules,)."""
        pairs = molecule_pairs(batch)
        features = self.descriptor(batch, pairs) - self._centre
        precision = self._precision(batch, sigma)
        log_k = torch.zeros_like(precision)
        for atoms, references in self._references_of(batch):
            log_k[atoms] = references.differentiable(features[atoms], precision[atoms])
        return batch.sum_per_molecule(log_k)

    def evaluate(self, batch: MoleculeBatch, sigma: float) -> Evaluation:
        """Evaluate score and energies together, for little more than either."""
        return self._evaluate(batch, sigma, None)

    def score(self, batch: MoleculeBatch, sigma: float, still: Tensor | None = None) -> Tensor:
        """Gradient of the log-density, shape (n_atoms, 3), 1/angstrom.

        Parameters
        ----------
        batch : MoleculeBatch
            Molecules.
        sigma : float
            Noise level, angstrom.
        still : Tensor, shape (n_atoms,), bool, optional
            Atoms that are not to move: their score means nothing. Environments that no other atom
            is part of are left out where the descriptor can do that.
        """
        return self._evaluate(batch, sigma, still).score

    def _evaluate(self, batch: MoleculeBatch, sigma: float, still: Tensor | None) -> Evaluation:
        scores, energies = [], []
        for chunk in self._layout.chunks(batch):
            part = chunk.of(batch)
            wanted = None if still is None else self._wanted(part, chunk, still[chunk.atoms])
            features, pullback = linearise(self.descriptor, part, chunk.pairs, wanted)
            log_k, gradient = self._log_kernel(
                part, features, sigma, with_gradient=True, wanted=wanted
            )
            assert gradient is not None
            scores.append(pullback(gradient))
            energies.append(-log_k)
        return Evaluation(torch.cat(scores), torch.cat(energies))

    def _wanted(self, batch: MoleculeBatch, chunk: Chunk, still: Tensor) -> Tensor | None:
        """Atoms that move, or are near one that does, (n_atoms,); None for all."""
        reach = self.descriptor.reach if isinstance(self.descriptor, LinearisesSome) else None
        code = library_for(batch.positions)
        if reach is None or code is None or not bool(still.any()):
            return None
        positions, near = batch.positions.contiguous(), torch.empty_like(still)
        code.near_moving(
            *(*chunk.senders.shape, positions.data_ptr(), chunk.senders.data_ptr()),
            *(still.data_ptr(), reach + MARGIN, near.data_ptr()),
        )
        return near

    def atom_energies(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Energies E_i = -log k_i without derivatives, shape (n_atoms,)."""
        energies = []
        for chunk in self._layout.chunks(batch):
            part = chunk.of(batch)
            with torch.no_grad():
                features = self.descriptor(part, chunk.pairs)
            energies.append(-self._log_kernel(part, features, sigma, with_gradient=False)[0])
        return torch.cat(energies)

    def _log_kernel(
        self,
        batch: MoleculeBatch,
        features: Tensor,
        sigma: float,
        *,
        with_gradient: bool,
        wanted: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Kernel of atoms with these features, and its gradient, by the theme of their molecule.

        Both are zero for atoms that are not wanted.
        """
        features = features - self._centre
        precision = self._precision(batch, sigma)
        parts = list(self._references_of(batch))
        if wanted is not None:
            every = torch.arange(len(wanted), device=wanted.device)
            parts = [(every[atoms][wanted[atoms]], references) for atoms, references in parts]
        elif len(parts) == 1:
            return parts[0][1].log_kernel(features, precision, with_gradient=with_gradient)
        log_k = torch.zeros_like(precision)
        gradient = torch.zeros_like(features) if with_gradient else None
        for atoms, references in parts:
            log_k[atoms], slopes = references.log_kernel(
                features[atoms], precision[atoms], with_gradient=with_gradient
            )
            if gradient is not None and slopes is not None:
                gradient[atoms] = slopes
        return log_k, gradient

    def _references_of(self, batch: MoleculeBatch) -> Iterator[tuple[Tensor | slice, References]]:
        """Atoms of each theme of a batch, with the references that they are compared with."""
        if not self.themes:
            yield slice(None), self._references
            return
        # Molecules of a theme are mostly adjacent, and slices are faster than lists of atoms.
        themes = batch.theme.tolist()
        first_atom = [0, *torch.cumsum(batch.counts, 0).tolist()]
        parts: dict[int, list[slice]] = {}
        for number, run in groupby(range(len(themes)), themes.__getitem__):
            molecules = list(run)
            atoms = slice(first_atom[molecules[0]], first_atom[molecules[-1] + 1])
            parts.setdefault(number, []).append(atoms)
        for number, slices in parts.items():
            if len(slices) == 1:
                yield slices[0], self._of_theme(number)
            else:
                rows = torch.cat([torch.arange(part.start, part.stop) for part in slices])
                yield rows.to(batch.positions.device), self._of_theme(number)

    def reference_energies(self, sigma: float, theme: int | None = None) -> Tensor:
        """Energies of the reference's own atoms, each compared with all others: (n_environments,).

        What an atom of a real molecule gets from references that it is not part of. Those of a
        theme are compared with one another: (n_members,).
        """
        place = self._place if theme is None else self._place[self.themes[theme]]
        members = self._centred[place]
        precision = kernel_sharpness(sigma) * self._inverse_scale[0]
        precision = precision.expand(len(members))
        references = self._references if theme is None else self._of_theme(theme)
        log_k, _ = references.log_kernel(members, precision, with_gradient=False)
        # Its own term in the sum is exp(0). Where it is all there is, the rest is rounding.
        others = -torch.expm1(-log_k.clamp(min=torch.finfo(log_k.dtype).eps))
        return -(log_k + torch.log(others))


# --- the rest ----------------------------------------------------------------------------------


class Repulsion:
    """Keeps atoms from coinciding: E = 1/3 sum over pairs of exp(-8 r)."""

    def __init__(self) -> None:
        self._layout = Layout()

    def is_batch_invariant(self, batch: MoleculeBatch) -> bool:
        """Whether it is the same for a molecule, bit for bit, in any batch: with compiled loops."""
        return library_for(batch.positions) is not None

    def log_prob(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Minus the energy of each molecule, whatever the noise level: shape (n_molecules,)."""
        parts = []
        for chunk in self._layout.chunks(batch):
            part = chunk.of(batch)
            _, energies = self._pairs(part, chunk)
            # Each pair comes twice.
            parts.append(part.sum_per_molecule(0.5 * energies.sum(1)))
        return -torch.cat(parts)

    def score(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Gradient of the log-density, shape (n_atoms, 3), 1/angstrom."""
        code = library_for(batch.positions)
        with torch.no_grad():
            return torch.cat(
                [self._score(chunk.of(batch), chunk, code) for chunk in self._layout.chunks(batch)]
            )

    def _score(self, batch: MoleculeBatch, chunk: Chunk, code: ctypes.CDLL | None) -> Tensor:
        if code is None:
            vectors, energies = self._pairs(batch, chunk)
            r = torch.linalg.vector_norm(vectors, dim=2).clamp(min=SMALLEST_DISTANCE)
            score: Tensor = ((REPULSION_DECAY * energies / r)[..., None] * vectors).sum(1)
            return score
        positions = batch.positions.contiguous()
        score = torch.empty_like(positions)
        code.repulsion(
            *(*chunk.senders.shape, positions.data_ptr(), chunk.senders.data_ptr()),
            *(REPULSION_STRENGTH, REPULSION_DECAY, SMALLEST_DISTANCE, score.data_ptr()),
        )
        return score

    @staticmethod
    def _pairs(batch: MoleculeBatch, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Vectors and energies between each atom and the others, (n_atoms, n_slots[, 3])."""
        vectors = batch.positions[:, None] - batch.positions[chunk.senders]
        # Coinciding atoms know no direction: their force is zero, not infinite.
        r = vectors.square().sum(2).clamp(min=SMALLEST_DISTANCE**2).sqrt()
        energies = REPULSION_STRENGTH * torch.exp(-REPULSION_DECAY * r)
        itself = torch.arange(len(r), device=r.device)[:, None]
        return vectors, torch.where(chunk.senders == itself, 0.0, energies)


class SimilarityScore:
    """The score that makes molecules: clipped similarity plus everything else.

    Parameters
    ----------
    kernel : SimilarityKernel
        Draws atoms to environments like those of the reference.
    terms : sequence of LogDensity
        What is added after the clip: repulsion, a prior, any other guidance.
    """

    def __init__(self, kernel: SimilarityKernel, terms: Sequence[LogDensity]) -> None:
        self.kernel = kernel
        self.terms = tuple(terms)
        self._similarity: Evaluate = kernel.score
        self._energies: Evaluate = kernel.atom_energies
        self._scores = tuple(map(score_of, terms))

    def __call__(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Return the score, shape (n_atoms, 3), 1/angstrom."""
        total = clip_score(self._similarity(batch, sigma))
        for term in self._scores:
            total = total + term(batch, sigma)
        return total

    def atom_energies(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Similarity energies E_i that element evolution selects by, shape (n_atoms,)."""
        return self._energies(batch, sigma)

    def in_families(
        self, batch: MoleculeBatch, families: Families, still: Tensor
    ) -> SimilarityScore:
        """Return the same score, which is for a molecule the same, bit for bit, in any batch.

        Parameters
        ----------
        batch : MoleculeBatch
            The device and the dtype of this one are those of all that it is for.
        families : Families
            What depends on the batch is evaluated for each of them by itself.
        still : Tensor, shape (n_atoms,), bool
            Atoms whose score is not asked for.
        """

        def apart(part: object, evaluate: Evaluate) -> Evaluate:
            return evaluate if is_batch_invariant(part, batch) else families.apart(evaluate)

        result = SimilarityScore(self.kernel, self.terms)
        if is_batch_invariant(self.kernel, batch):
            result._similarity = partial(self.kernel.score, still=still)
        else:
            result._similarity = families.apart(self.kernel.score)
        result._energies = apart(self.kernel, self.kernel.atom_energies)
        result._scores = tuple(apart(term, score_of(term)) for term in self.terms)
        return result
