"""The one central type: a batch of molecules as flat tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from simgen.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class MoleculeBatch:
    """Molecules of any sizes, atoms concatenated.

    Attributes
    ----------
    positions : Tensor, shape (n_atoms, 3), floating point
        Cartesian coordinates in angstrom. Their dtype is the dtype of everything computed.
    atomic_numbers : Tensor, shape (n_atoms,), int64
        Nuclear charges.
    molecule_idx : Tensor, shape (n_atoms,), int64
        Molecule of each atom, sorted ascending, in ``[0, n_molecules)``.
    fixed : Tensor, shape (n_atoms,), bool
        True for atoms that never move (a scaffold). The only mask in the program.
    n_molecules : int
        Number of molecules; stored, so that no device synchronisation is needed to know it.
    theme : Tensor, shape (n_molecules,), int64
        Which theme of the reference each molecule is to look like
        (:func:`simgen.reference.themes`); 0 by default.

    Raises
    ------
    InputError
        If shapes, dtypes or devices do not fit together.
    """

    positions: Tensor
    atomic_numbers: Tensor
    molecule_idx: Tensor
    fixed: Tensor = field(default=None)  # type: ignore[assignment]
    n_molecules: int = -1
    theme: Tensor = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        n_atoms = len(self.positions)
        if self.fixed is None:
            fixed = torch.zeros(n_atoms, dtype=torch.bool, device=self.positions.device)
            object.__setattr__(self, "fixed", fixed)
        if self.n_molecules < 0:
            n_molecules = int(self.molecule_idx[-1]) + 1 if n_atoms else 0
            object.__setattr__(self, "n_molecules", n_molecules)
        if self.theme is None:
            theme = torch.zeros(self.n_molecules, dtype=torch.int64, device=self.positions.device)
            object.__setattr__(self, "theme", theme)
        if self.positions.ndim != 2 or self.positions.shape[1] != 3:
            raise InputError(
                f"expected positions of shape (n_atoms, 3), got {tuple(self.positions.shape)}"
            )
        if not self.positions.is_floating_point():
            raise InputError(f"expected floating point positions, got {self.positions.dtype}")
        for name, length, dtype in (
            ("atomic_numbers", n_atoms, torch.int64),
            ("molecule_idx", n_atoms, torch.int64),
            ("fixed", n_atoms, torch.bool),
            ("theme", self.n_molecules, torch.int64),
        ):
            tensor = getattr(self, name)
            if tensor.shape != (length,) or tensor.dtype != dtype:
                raise InputError(
                    f"expected {name} of shape ({length},) and dtype {dtype}, "
                    f"got {tuple(tensor.shape)} and {tensor.dtype}"
                )
            if tensor.device != self.positions.device:
                raise InputError(
                    f"expected {name} on {self.positions.device} like positions, "
                    f"got {tensor.device}"
                )

    @classmethod
    def from_arrays(
        cls,
        molecules: Sequence[tuple[object, object]],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> MoleculeBatch:
        """Build a batch from ``(atomic_numbers, positions)`` pairs of array-likes (angstrom)."""
        numbers = [torch.as_tensor(z, dtype=torch.int64, device=device) for z, _ in molecules]
        positions = [torch.as_tensor(x, dtype=dtype, device=device) for _, x in molecules]
        for i, (z, x) in enumerate(zip(numbers, positions, strict=True)):
            if x.shape != (len(z), 3):
                raise InputError(
                    f"expected positions of shape ({len(z)}, 3) for the {len(z)} atoms of "
                    f"molecule {i}, got {tuple(x.shape)}"
                )
        counts = torch.tensor([len(z) for z in numbers], dtype=torch.int64, device=device)
        no_positions = torch.zeros(0, 3, dtype=dtype, device=device)
        no_numbers = torch.zeros(0, dtype=torch.int64, device=device)
        return cls(
            positions=torch.cat([no_positions, *positions]),
            atomic_numbers=torch.cat([no_numbers, *numbers]),
            molecule_idx=torch.repeat_interleave(
                torch.arange(len(molecules), device=device), counts
            ),
            n_molecules=len(molecules),
        )

    @property
    def n_atoms(self) -> int:
        """Number of atoms of all molecules together."""
        return len(self.positions)

    @property
    def counts(self) -> Tensor:
        """Number of atoms of each molecule, shape (n_molecules,), int64."""
        return torch.bincount(self.molecule_idx, minlength=self.n_molecules)

    @property
    def local_idx(self) -> Tensor:
        """Index of each atom within its molecule, shape (n_atoms,), int64."""
        counts = self.counts
        first_atom = torch.cumsum(counts, 0) - counts
        return torch.arange(self.n_atoms, device=counts.device) - first_atom[self.molecule_idx]

    def replace(self, **changes: Tensor) -> MoleculeBatch:
        """Return a copy with some tensors replaced (checked again)."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> MoleculeBatch:
        """Return the batch on another device or with positions of another dtype."""
        return MoleculeBatch(
            positions=self.positions.to(device=device, dtype=dtype),
            atomic_numbers=self.atomic_numbers.to(device=device),
            molecule_idx=self.molecule_idx.to(device=device),
            fixed=self.fixed.to(device=device),
            n_molecules=self.n_molecules,
            theme=self.theme.to(device=device),
        )

    def sum_per_molecule(self, values: Tensor) -> Tensor:
        """Sum per-atom values, shape (n_atoms, ...), over each molecule, (n_molecules, ...)."""
        zeros = values.new_zeros(self.n_molecules, *values.shape[1:])
        return zeros.index_add(0, self.molecule_idx, values)

    def split(self) -> list[MoleculeBatch]:
        """Return the molecules as batches of one; ``cat`` undoes it."""
        counts = self.counts.tolist()
        tensors = (self.positions, self.atomic_numbers, self.fixed)
        parts = zip(*(torch.split(tensor, counts) for tensor in tensors), strict=True)
        return [
            MoleculeBatch(x, z, torch.zeros_like(z), fixed, n_molecules=1, theme=theme)
            for (x, z, fixed), theme in zip(parts, self.theme[:, None], strict=True)
        ]

    @staticmethod
    def cat(batches: Sequence[MoleculeBatch]) -> MoleculeBatch:
        """Concatenate batches, molecules in the order given."""
        if not batches:
            raise InputError("expected at least one batch to concatenate, got none")
        offsets = [0]
        for batch in batches:
            offsets.append(offsets[-1] + batch.n_molecules)
        return MoleculeBatch(
            positions=torch.cat([b.positions for b in batches]),
            atomic_numbers=torch.cat([b.atomic_numbers for b in batches]),
            molecule_idx=torch.cat(
                [b.molecule_idx + n for b, n in zip(batches, offsets, strict=False)]
            ),
            fixed=torch.cat([b.fixed for b in batches]),
            n_molecules=offsets[-1],
            theme=torch.cat([b.theme for b in batches]),
        )

    def __len__(self) -> int:
        return self.n_molecules

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> MoleculeBatch:
        """Select molecules by position, slice, list or index tensor; repeats are allowed."""
        device = self.positions.device
        everyone = torch.arange(self.n_molecules, device=device)
        if isinstance(index, int):
            if not -self.n_molecules <= index < self.n_molecules:
                raise IndexError(f"molecule {index} of a batch of {self.n_molecules}")
            chosen = everyone[index].reshape(1)
        elif isinstance(index, slice):
            chosen = everyone[index]
        else:
            chosen = everyone[torch.as_tensor(index, device=device)]
        counts = self.counts
        first_atom = torch.cumsum(counts, 0) - counts
        new_counts = counts[chosen]
        new_idx = torch.repeat_interleave(torch.arange(len(chosen), device=device), new_counts)
        new_first = torch.cumsum(new_counts, 0) - new_counts
        atoms = (
            torch.arange(len(new_idx), device=device) + (first_atom[chosen] - new_first)[new_idx]
        )
        return MoleculeBatch(
            positions=self.positions[atoms],
            atomic_numbers=self.atomic_numbers[atoms],
            molecule_idx=new_idx,
            fixed=self.fixed[atoms],
            n_molecules=len(chosen),
            theme=self.theme[chosen],
        )
