import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simgen.errors import InputError
from simgen.molecules import MoleculeBatch


def make_batch(counts: list[int], seed: int = 0) -> MoleculeBatch:
    rng = np.random.default_rng(seed)
    batch = MoleculeBatch.from_arrays(
        [(rng.integers(1, 18, n), rng.normal(size=(n, 3))) for n in counts], dtype=torch.float64
    )
    return batch.replace(
        fixed=torch.as_tensor(rng.random(batch.n_atoms) < 0.3),
        theme=torch.as_tensor(rng.integers(0, 9, len(counts))),
    )


def same(a: MoleculeBatch, b: MoleculeBatch) -> bool:
    return a.n_molecules == b.n_molecules and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("positions", "atomic_numbers", "molecule_idx", "fixed", "theme")
    )


sizes = st.lists(st.integers(1, 6), min_size=1, max_size=6)


@given(sizes)
def test_cat_undoes_split(counts: list[int]) -> None:
    batch = make_batch(counts)
    parts = batch.split()
    assert [part.n_atoms for part in parts] == counts
    assert all(part.n_molecules == 1 for part in parts)
    assert same(MoleculeBatch.cat(parts), batch)


@given(sizes, st.data())
def test_selection_is_the_selection_of_the_parts(counts: list[int], data: st.DataObject) -> None:
    batch = make_batch(counts)
    chosen = data.draw(st.lists(st.integers(0, len(counts) - 1), min_size=1, max_size=8))
    expected = MoleculeBatch.cat([batch.split()[i] for i in chosen])
    assert same(batch[chosen], expected)
    assert same(batch[torch.tensor(chosen)], expected)


def test_selection_by_number_and_slice() -> None:
    batch = make_batch([2, 3, 4])
    parts = batch.split()
    assert same(batch[-1], parts[2])
    assert same(batch[1:], MoleculeBatch.cat(parts[1:]))
    assert len(batch[:0]) == 0
    with pytest.raises(IndexError):
        batch[3]


@given(sizes)
def test_local_idx_counts_the_atoms_of_each_molecule(counts: list[int]) -> None:
    expected = [i for n in counts for i in range(n)]
    assert make_batch(counts).local_idx.tolist() == expected


def test_sum_per_molecule_includes_molecules_without_atoms() -> None:
    batch = MoleculeBatch.from_arrays([([6, 6], np.zeros((2, 3))), ([], np.zeros((0, 3)))])
    assert batch.counts.tolist() == [2, 0]
    assert batch.sum_per_molecule(torch.tensor([1.0, 2.0])).tolist() == [3.0, 0.0]


def test_no_molecules() -> None:
    batch = MoleculeBatch.from_arrays([])
    assert (batch.n_atoms, batch.n_molecules) == (0, 0)


def test_replace_keeps_the_layout_and_leaves_the_original() -> None:
    batch = make_batch([2, 3])
    moved = batch.replace(positions=batch.positions + 1)
    assert moved.molecule_idx is batch.molecule_idx
    assert not torch.equal(moved.positions, batch.positions)


def test_to_changes_the_dtype() -> None:
    changed = make_batch([2]).to(dtype=torch.float32)
    assert changed.positions.dtype == torch.float32
    assert torch.equal(changed.theme, make_batch([2]).theme)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"positions": torch.zeros(2, 2)}, "positions of shape"),
        ({"positions": torch.zeros(2, 3, dtype=torch.int64)}, "floating point"),
        ({"atomic_numbers": torch.zeros(3, dtype=torch.int64)}, "atomic_numbers"),
        ({"atomic_numbers": torch.zeros(2)}, "atomic_numbers"),
        ({"fixed": torch.zeros(2)}, "fixed"),
        ({"theme": torch.zeros(2, dtype=torch.int64)}, "theme"),
    ],
)
def test_wrong_tensors_are_refused(change: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_batch([2]).replace(**change)


def test_arrays_must_fit_molecule_by_molecule() -> None:
    with pytest.raises(InputError, match="molecule 0"):
        MoleculeBatch.from_arrays([([6], np.zeros((2, 3))), ([6, 6], np.zeros((1, 3)))])


def test_nothing_to_concatenate() -> None:
    with pytest.raises(InputError, match="at least one"):
        MoleculeBatch.cat([])
