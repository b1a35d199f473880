"""Priors made of others: moved, rotated, scaled, joined."""

from __future__ import annotations

import functools
import itertools
import operator
from dataclasses import dataclass

import torch
from torch import Tensor

from simgen.errors import InputError
from simgen.noise import Noise, Stream
from simgen.priors.base import AtomPrior, Size, require_positive
from simgen.priors.clouds import BETA

_ORTHOGONAL = 1e-6
"""How far a rotation may be from an orthogonal matrix: what is left of it in a text file."""


@dataclass(frozen=True, slots=True, eq=False)
class Transformed(AtomPrior):
    """A prior that is scaled, then rotated, then moved: x = s R y + t.

    The energy is s^2 U(y): the pull on an atom at a given distance from the shape stays the same
    however large the shape is, and so does the width of starting positions about it. The softness
    of the choice between the points of a cloud grows with their distances.

    Attributes
    ----------
    prior : AtomPrior
        What is transformed.
    scale : float
        Factor s on all lengths.
    rotation : Tensor, shape (3, 3), float64
        Orthogonal matrix R; one with determinant -1 gives the mirror image.
    translation : Tensor, shape (3,), float64
        Vector t, angstrom.

    Raises
    ------
    InputError
        If the scale is not positive, or the others have wrong shapes or values.
    """

    prior: AtomPrior
    scale: float = 1.0
    rotation: Tensor = None  # type: ignore[assignment]
    translation: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        require_positive(scale=self.scale)
        unit = torch.eye(3, dtype=torch.float64)
        given = unit if self.rotation is None else self.rotation
        rotation = torch.as_tensor(given, dtype=torch.float64)
        if rotation.shape != (3, 3) or not torch.allclose(
            rotation @ rotation.T, unit, rtol=0.0, atol=_ORTHOGONAL
        ):
            raise InputError(f"expected an orthogonal 3 x 3 matrix, got {rotation.tolist()}")
        moved = torch.zeros(3) if self.translation is None else self.translation
        translation = torch.as_tensor(moved, dtype=torch.float64)
        if translation.shape != (3,) or not bool(torch.isfinite(translation).all()):
            raise InputError(f"expected a translation of 3 numbers, got {translation.tolist()}")
        object.__setattr__(self, "rotation", rotation)
        object.__setattr__(self, "translation", translation)

    @property
    def size(self) -> Size | None:
        """How large the shape is."""
        return None if self.prior.size is None else self.prior.size.scaled(self.scale)

    def _inside(self, positions: Tensor) -> Tensor:
        moved = positions - self.translation.to(positions)
        return moved @ self.rotation.to(positions) / self.scale

    def _outside(self, points: Tensor) -> Tensor:
        return self.scale * points @ self.rotation.T.to(points) + self.translation.to(points)

    def energies(self, positions: Tensor) -> Tensor:
        """Energy of an atom at each position: (n, 3) -> (n,)."""
        return self.scale**2 * self.prior.energies(self._inside(positions))

    def forces(self, positions: Tensor) -> Tensor:
        """What pulls an atom at each position: (n, 3) -> (n, 3)."""
        inside = self.prior.forces(self._inside(positions))
        return self.scale * inside @ self.rotation.T.to(positions)

    def place(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """Turn random numbers into positions (:meth:`AtomPrior.place`)."""
        return self._outside(self.prior.place(uniform, normal / self.scale))

    def outline(self) -> Tensor:
        """Points to draw the shape with, shape (n_points, 3)."""
        return self._outside(self.prior.outline())

    def loops(self) -> tuple[Tensor, ...]:
        """Closed curves that a molecule is to go round (:meth:`Prior.loops`)."""
        return tuple(self._outside(points) for points in self.prior.loops())

    def landmarks(self) -> Tensor:
        """Points that want an atom each (:meth:`Prior.landmarks`)."""
        return self._outside(self.prior.landmarks())


@dataclass(frozen=True, slots=True, eq=False)
class Union(AtomPrior):
    """Several priors as one: an atom belongs to whichever part it is nearest to.

    U = -(1/beta) log sum_k exp(-beta U_k). The union of clouds of the same beta is the cloud of all
    their points. Atoms start in each part in proportion to the number of atoms that suits it; in
    equal numbers if a part suits any number.

    Attributes
    ----------
    parts : tuple of AtomPrior
        What is joined.
    beta : float
        The larger, the more only the nearest part attracts.

    Raises
    ------
    InputError
        If there is no part, or beta is not positive.
    """

    parts: tuple[AtomPrior, ...]
    beta: float = BETA

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        require_positive(beta=self.beta)
        if not self.parts:
            raise InputError("expected at least one part of a union, got none")

    @property
    def size(self) -> Size | None:
        """How large the parts are together; None if one of them suits any number of atoms."""
        sizes = [part.size for part in self.parts if part.size is not None]
        return None if len(sizes) < len(self.parts) else functools.reduce(operator.add, sizes)

    def _logits(self, positions: Tensor) -> Tensor:
        """-beta U_k, shape (n, n_parts)."""
        return -self.beta * torch.stack([part.energies(positions) for part in self.parts], dim=1)

    def energies(self, positions: Tensor) -> Tensor:
        """Energy of an atom at each position: (n, 3) -> (n,)."""
        return -torch.logsumexp(self._logits(positions), 1) / self.beta

    def forces(self, positions: Tensor) -> Tensor:
        """What pulls an atom at each position: (n, 3) -> (n, 3)."""
        weights = torch.softmax(self._logits(positions), 1)
        forces = torch.stack([part.forces(positions) for part in self.parts], dim=1)
        return (weights[:, :, None] * forces).sum(1)

    def place(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """Turn random numbers into positions (:meth:`AtomPrior.place`)."""
        sizes = [part.size for part in self.parts]
        atoms = [1.0 if size is None else size.n_atoms for size in sizes]
        if None in sizes or sum(atoms) == 0.0:
            atoms = [1.0] * len(sizes)
        sums = list(itertools.accumulate(atoms, initial=0.0))
        ends = [part / sums[-1] for part in sums]
        positions = torch.empty_like(normal)
        for part, low, high in zip(self.parts, ends, ends[1:], strict=False):
            chosen = (uniform >= low) & (uniform < high)
            # What is left of the uniform number is one within the part.
            rest = (uniform[chosen] - low) / (high - low)
            positions[chosen] = part.place(rest, normal[chosen])
        return positions

    def outline(self) -> Tensor:
        """Points to draw the shape with, shape (n_points, 3)."""
        return torch.cat([part.outline() for part in self.parts])

    def loops(self) -> tuple[Tensor, ...]:
        """Those of all parts (:meth:`Prior.loops`)."""
        return tuple(points for part in self.parts for points in part.loops())

    def landmarks(self) -> Tensor:
        """Those of all parts (:meth:`Prior.landmarks`)."""
        return torch.cat([part.landmarks() for part in self.parts])


@dataclass(frozen=True, slots=True, eq=False)
class Alternatives(Union):
    """Several priors, of which each molecule gets one: all its atoms start there.

    The energy is that of the union. An atom that starts in one of the parts stays there, where the
    parts are apart.
    """

    def sample(self, counts: Tensor, noise: Noise, *, spread: float = 1.0) -> Tensor:
        """Draw positions (:meth:`Prior.sample`)."""
        molecules = torch.arange(len(counts), device=counts.device)
        molecule_idx = torch.repeat_interleave(molecules, counts)
        normal = spread * noise.normal(Stream.START, 0, molecule_idx)
        within = noise.uniform(Stream.START_POINT, 0, molecule_idx)
        choice = noise.uniform_per_molecule(Stream.ALTERNATIVE, 0) * len(self.parts)
        chosen = choice.to(torch.int64)[molecule_idx]
        positions = torch.empty_like(normal)
        for k, part in enumerate(self.parts):
            mine = chosen == k
            positions[mine] = part.place(within[mine], normal[mine])
        return positions

    def loops(self) -> tuple[Tensor, ...]:
        """None: a molecule goes round those of its own part, if any, but which one is unknown."""
        return ()

    def landmarks(self) -> Tensor:
        """None, for the same reason."""
        return AtomPrior.landmarks(self)
