import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from simgen.graph import components, edge_vectors, molecule_pairs, neighbour_list
from simgen.molecules import MoleculeBatch

counts = st.lists(st.integers(0, 5), min_size=1, max_size=5)


def make_batch(counts: list[int], seed: int = 0) -> MoleculeBatch:
    rng = np.random.default_rng(seed)
    batch = MoleculeBatch.from_arrays(
        [(rng.integers(1, 9, n), rng.normal(size=(n, 3))) for n in counts if n],
        dtype=torch.float64,
    )
    # Molecules without atoms are kept in the count.
    idx = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return MoleculeBatch(batch.positions, batch.atomic_numbers, idx, n_molecules=len(counts))


@given(counts)
def test_pairs_are_all_different_atoms_of_a_molecule(counts: list[int]) -> None:
    batch = make_batch(counts)
    idx = batch.molecule_idx.tolist()
    expected = [
        (i, j)
        for j in range(batch.n_atoms)
        for i in range(batch.n_atoms)
        if i != j and idx[i] == idx[j]
    ]
    assert list(map(tuple, molecule_pairs(batch).T.tolist())) == expected


@given(st.floats(0.1, 4.0))
def test_neighbours_are_the_pairs_closer_than_the_cutoff(r_max: float) -> None:
    batch = make_batch([5, 3])
    pairs = molecule_pairs(batch)
    edges = neighbour_list(batch.positions, pairs, r_max)
    x = batch.positions.numpy()
    expected = [(i, j) for i, j in pairs.T.tolist() if np.sqrt(((x[i] - x[j]) ** 2).sum()) < r_max]
    assert list(map(tuple, edges.T.tolist())) == expected


def test_a_pair_exactly_at_the_cutoff_is_no_neighbour() -> None:
    batch = MoleculeBatch.from_arrays([([6, 6, 6], [[0, 0, 0], [2, 0, 0], [0, 1.9, 0]])])
    edges = neighbour_list(batch.positions, molecule_pairs(batch), 2.0)
    assert sorted(map(tuple, edges.T.tolist())) == [(0, 2), (2, 0)]


def test_vectors_point_from_sender_to_receiver() -> None:
    positions = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    vectors = edge_vectors(positions, torch.tensor([[0], [1]]))
    assert vectors.tolist() == [[1.0, 2.0, 3.0]]


@given(st.integers(1, 25), st.integers(0, 30), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_components_are_those_of_scipy(n_atoms: int, n_bonds: int, seed: int) -> None:
    bonds = np.random.default_rng(seed).integers(0, n_atoms, size=(n_bonds, 2))
    graph = coo_array((np.ones(n_bonds), (bonds[:, 0], bonds[:, 1])), shape=(n_atoms, n_atoms))
    _, expected = connected_components(graph, directed=False)
    edges = torch.from_numpy(np.concatenate([bonds, bonds[:, ::-1]]).T.copy())
    first = {int(label): int(np.flatnonzero(expected == label)[0]) for label in expected}
    assert components(n_atoms, edges).tolist() == [first[int(label)] for label in expected]
