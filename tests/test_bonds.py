"""Bond assignment: known molecules come back from bare positions, and nothing else leaves."""

from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from chemistry import conformer
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem, RDConfig
from rdkit.Chem import AllChem

from simgen.errors import InputError, LoadError
from simgen.finishing import bond_field, bonds
from simgen.finishing.bond_field import BondField, Undecided
from simgen.finishing.bond_problem import BondProblem, Solution, possible_links
from simgen.finishing.bond_programme import BondProgramme
from simgen.finishing.bonds import (
    NOISE_LEVELS,
    VALENCES,
    BondStatistics,
    KnownAtom,
    KnownBonds,
    assign_bonds,
    fit_bond_statistics,
    load_bond_statistics,
)
from simgen.finishing.connectivity import bonded_pairs, fragments, relative_distances
from simgen.finishing.skeleton import Skeleton
from simgen.finishing.states import Wanted
from simgen.finishing.status import Status
from simgen.io import read_molecules

SMILES = [
    "CCO",
    "C=C",
    "C#C",
    "CC#N",
    "O=C=O",
    "CC(=O)O",
    "NC(N)=O",
    "c1ccccc1",
    "c1ccncc1",
    "c1cc[nH]c1",
    "c1cnc[nH]1",
    "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "C[N+](=O)[O-]",
    "O=[N+]([O-])c1ccccc1",
    "CS(C)(=O)=O",
    "CS(C)=O",
    "COP(=O)(OC)OC",
    "CN=[N+]=[N-]",
    "FC(F)(F)c1ccc(Cl)cc1Br",
    "C1CCC2CCCCC2C1",
    "O=C1C=CC(=O)C=C1",
    "CC(=O)Nc1ccc(O)cc1",
    "C1CC1",
    "N#Cc1ccsc1",
]


def plain(mol: Chem.Mol) -> str:
    return Chem.CanonSmiles(Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False))


def skeleton(smiles: str) -> tuple[np.ndarray, np.ndarray]:
    mol = Chem.RemoveHs(conformer(smiles))
    return np.array([a.GetAtomicNum() for a in mol.GetAtoms()]), mol.GetConformer().GetPositions()


@pytest.mark.parametrize("smiles", SMILES)
def test_molecules_come_back_from_bare_positions(smiles: str) -> None:
    numbers, positions = skeleton(smiles)
    result = assign_bonds(numbers, positions)
    assert result.status is Status.OK
    assert plain(result.mol) == Chem.CanonSmiles(smiles)
    assert np.isfinite(result.cost)
    assert result.kept == tuple(range(len(numbers)))
    assert [a.GetAtomicNum() for a in result.mol.GetAtoms()] == numbers.tolist()
    assert np.array_equal(result.mol.GetConformer().GetPositions(), positions)
    assert all(a.GetNoImplicit() for a in result.mol.GetAtoms())


def test_positions_known_to_be_exact_tell_more() -> None:
    """A cumulated double bond is rarer than a badly measured alkyne."""
    result = assign_bonds(*skeleton("C=C=C"), noise=0.01)
    assert plain(result.mol) == "C=C=C"


@pytest.mark.parametrize("smiles", ["CCO", "c1ccccc1", "CC(=O)O", "O=[N+]([O-])c1ccccc1"])
def test_noise_of_a_generated_skeleton_does_no_harm(smiles: str) -> None:
    numbers, positions = skeleton(smiles)
    rng = np.random.default_rng(0)
    found = [
        assign_bonds(numbers, positions + 0.04 * rng.standard_normal(positions.shape)).mol
        for _ in range(10)
    ]
    assert sum(plain(mol) == Chem.CanonSmiles(smiles) for mol in found) >= 8


def test_the_assignment_does_not_depend_on_the_order_of_atoms_or_the_frame() -> None:
    numbers, positions = skeleton("CC(=O)Nc1ccc(O)cc1")
    rng = np.random.default_rng(0)
    order = rng.permutation(len(numbers))
    rotation = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    first = assign_bonds(numbers, positions)
    second = assign_bonds(numbers[order], (positions @ rotation.T + 5.0)[order])
    assert plain(first.mol) == plain(second.mol)
    assert first.cost == pytest.approx(second.cost, rel=1e-9)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(sorted(VALENCES)), min_size=2, max_size=9),
    st.integers(0, 2**32 - 1),
)
def test_whatever_comes_out_has_closed_shells_and_no_charge(elements: list[int], seed: int) -> None:
    """Random crumpled chains: mostly nonsense, some of it assignable."""
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((len(elements), 3))
    positions = np.cumsum(1.5 * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)
    result = assign_bonds(elements, positions)
    assert (result.mol is not None) == (result.status is Status.OK)
    if result.mol is not None:
        assert Chem.SanitizeMol(result.mol, catchErrors=True) == 0
        assert Chem.GetFormalCharge(result.mol) == 0
        assert sum(a.GetNumRadicalElectrons() for a in result.mol.GetAtoms()) == 0
        assert len(Chem.GetMolFrags(result.mol)) == 1
        for atom in result.mol.GetAtoms():
            assert (atom.GetFormalCharge(), atom.GetTotalValence()) in VALENCES[atom.GetAtomicNum()]


def test_lone_atoms_are_dropped_and_named() -> None:
    result = assign_bonds([8, 6, 6, 8], [[9, 0, 0], [0, 0, 0], [1.52, 0, 0], [2.0, 1.33, 0]])
    assert result.kept == (1, 2, 3)
    assert plain(result.mol) == "CCO"


@pytest.mark.parametrize(
    ("numbers", "positions", "status"),
    [
        ([6, 6], [[0, 0, 0], [1.5, 0, np.nan]], Status.NONFINITE),
        ([6, 26], [[0, 0, 0], [1.5, 0, 0]], Status.UNKNOWN_ELEMENT),
        ([6], [[0, 0, 0]], Status.TOO_FEW_ATOMS),
        ([6, 6], [[0, 0, 0], [9, 0, 0]], Status.TOO_FEW_ATOMS),
        ([6, 6, 6, 6], [[0, 0, 0], [1.5, 0, 0], [9, 0, 0], [10.5, 0, 0]], Status.DISCONNECTED),
        # three fluorines on a fluorine
        ([9, 9, 9, 9], [[0, 0, 0], [1.1, 0, 0], [0, 1.1, 0], [0, 0, 1.1]], Status.UNASSIGNABLE),
    ],
)
def test_failures_have_reasons(numbers: list, positions: list, status: Status) -> None:
    result = assign_bonds(numbers, positions)
    assert result.status is status
    assert result.mol is None


def test_no_atoms_are_too_few_and_mismatched_arrays_an_error() -> None:
    assert assign_bonds([], np.zeros((0, 3))).status is Status.TOO_FEW_ATOMS
    with pytest.raises(InputError, match="expected positions of shape"):
        assign_bonds([6, 6], [[0.0, 0.0, 0.0]])


def test_a_borderline_contact_may_stay_unbonded() -> None:
    """Neopentane with a fifth carbon pushed to 1.25 times the bond length of the centre."""
    numbers, positions = skeleton("CC(C)(C)CC")
    centre = positions[1]
    away = centre - positions[[0, 2, 3, 4]].mean(0)
    numbers = np.append(numbers, 6)
    # bonded to a methyl carbon, close to the quaternary one
    methyl = positions[0]
    direction = methyl - centre
    side = np.cross(direction, away + np.array([0.1, 0.2, 0.3]))
    extra = centre + 0.55 * direction + 1.65 * side / np.linalg.norm(side)
    positions = np.vstack([positions, extra])
    relative = relative_distances(numbers, positions)[-1]
    assert 1.1 < relative[1] < 1.3
    result = assign_bonds(numbers, positions)
    assert result.status is Status.OK
    assert result.mol.GetBondBetweenAtoms(1, 6) is None


def test_the_total_charge_is_the_one_asked_for() -> None:
    numbers, positions = skeleton("CC(=O)[O-]")
    anion = assign_bonds(numbers, positions, charge=-1)
    assert plain(anion.mol) == "CC(=O)[O-]"
    assert Chem.GetFormalCharge(assign_bonds(numbers, positions).mol) == 0
    assert assign_bonds(numbers, positions, charge=-4).status is Status.UNASSIGNABLE


def known_of(smiles: str, *grown: int) -> KnownBonds:
    """What is known of a molecule; ``grown`` are the atoms whose hydrogens may be replaced."""
    mol = Chem.MolFromSmiles(smiles)
    Chem.Kekulize(mol, clearAromaticFlags=True)
    atoms = tuple(
        KnownAtom(
            atom.GetFormalCharge(),
            0 if atom.GetIdx() in grown else atom.GetTotalNumHs(),
            atom.GetTotalNumHs() if atom.GetIdx() in grown else 0,
        )
        for atom in mol.GetAtoms()
    )
    orders = {
        (min(ends), max(ends)): int(bond.GetBondTypeAsDouble())
        for bond in mol.GetBonds()
        for ends in [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())]
    }
    return KnownBonds(atoms, orders)


@pytest.mark.parametrize("smiles", SMILES)
def test_what_is_known_comes_back_whatever_the_geometry(smiles: str) -> None:
    """All bonds known: distances have no say, not even where atoms are far apart."""
    mol = Chem.MolFromSmiles(smiles)
    numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    apart = 3.0 * np.arange(3.0 * len(numbers)).reshape(-1, 3)
    result = assign_bonds(numbers, apart, known=known_of(smiles))
    assert result.status is Status.OK
    assert plain(result.mol) == Chem.CanonSmiles(smiles)


def test_new_atoms_are_bonded_where_there_is_room_for_them() -> None:
    """Toluene: known are the ring, and which of its atoms have hydrogens to give."""
    numbers, positions = skeleton("c1ccccc1C")
    grown = assign_bonds(numbers, positions, known=known_of("c1ccccc1", 5))
    assert plain(grown.mol) == "Cc1ccccc1"
    # Where that atom keeps its hydrogen, the new one has nobody, and is one fragment too many.
    closed = assign_bonds(numbers, positions, known=known_of("c1ccccc1", 0))
    assert closed.status is Status.DISCONNECTED


def test_a_site_opens_as_far_as_it_has_hydrogens() -> None:
    """The oxygen of acetaldehyde takes both hydrogens of a methyl group, and no less."""
    numbers, positions = skeleton("CC=O")
    two = KnownBonds((KnownAtom(0, 3, 0), KnownAtom(0, 1, 2)), {(0, 1): 1})
    assert plain(assign_bonds(numbers, positions, known=two).mol) == "CC=O"
    one = KnownBonds((KnownAtom(0, 3, 0), KnownAtom(0, 2, 1)), {(0, 1): 1})
    assert plain(assign_bonds(numbers, positions, known=one).mol) == "CCO"


def test_known_atoms_are_not_bonded_to_each_other_anew() -> None:
    """Two carbons at a bond's distance that are known not to be bonded stay so."""
    positions = [[0.0, 0.0, 0.0], [1.5, 0.0, 0.0], [0.75, 1.3, 0.0]]
    known = KnownBonds((KnownAtom(0, 2, 2), KnownAtom(0, 2, 2)))
    result = assign_bonds([6, 6, 6], positions, known=known)
    assert plain(result.mol) == "CCC"
    assert assign_bonds([6, 6, 6], positions).mol.GetNumBonds() == 3


def test_known_charges_and_odd_valences_stay() -> None:
    numbers, positions = skeleton("C[N+](C)(C)C")
    known = known_of("C[NH+](C)C", 1)
    result = assign_bonds(numbers[[0, 1, 2, 3, 4]], positions, charge=1, known=known)
    assert plain(result.mol) == "C[N+](C)(C)C"
    assert assign_bonds(numbers, positions, charge=0, known=known).status is Status.UNASSIGNABLE


def test_charges_that_cancel_can_be_forbidden() -> None:
    numbers, positions = skeleton("C[N+](=O)[O-]")
    assert plain(assign_bonds(numbers, positions).mol) == "C[N+](=O)[O-]"
    mol = assign_bonds(numbers, positions, formal_charges=False).mol
    assert mol is None or not any(a.GetFormalCharge() for a in mol.GetAtoms())
    # Those of known atoms are theirs.
    known = known_of("C[N+](=O)[O-]")
    kept = assign_bonds(numbers, positions, formal_charges=False, known=known)
    assert plain(kept.mol) == "C[N+](=O)[O-]"


@pytest.mark.parametrize("n_hydrogens", [6, 4, 2])
def test_the_number_of_hydrogens_can_be_given(n_hydrogens: int) -> None:
    numbers, positions = skeleton("CCO")
    result = assign_bonds(numbers, positions, n_hydrogens=n_hydrogens)
    assert result.mol is not None
    assert sum(a.GetTotalNumHs() for a in result.mol.GetAtoms()) == n_hydrogens
    assert assign_bonds(numbers, positions, n_hydrogens=7).status is Status.UNASSIGNABLE


def problem(
    numbers: list[int], positions: np.ndarray, wanted: Wanted, firm: float = 1.1
) -> BondProblem:
    """Pairs up to 1.3 times the bond length, of which those beyond ``firm`` are optional."""
    pairs = wanted.known.filter(bonded_pairs(numbers, positions, 1.3))
    optional = pairs - bonded_pairs(numbers, positions, firm) - set(wanted.known.orders)
    skeleton = Skeleton.build(numbers, positions, pairs)
    return BondProblem(skeleton, optional, wanted, NOISE_LEVELS, load_bond_statistics())


def check(problem: BondProblem, solution: Solution, level: int) -> None:
    """Whether a solution is one, and costs what it says."""
    states, wanted = solution.states, problem.wanted
    assert sum(state.charge for state in states) == wanted.charge
    assert wanted.n_hydrogens in (None, sum(state.n_hydrogens for state in states))
    assert fragments(len(states), set(solution.bonded)).max() == 0
    cost = 0.0
    for i, state in enumerate(states):
        mine = [order for pair, order in solution.orders.items() if i in pair]
        counted = mine.count(2), mine.count(3), len(mine) - mine.count(0)
        assert counted == (state.n_double, state.n_triple, state.degree)
        place = np.array(problem.states[i].index(state))
        cost += problem.state_costs.of(i, place)[level]
    for b, (i, j) in enumerate(problem.pairs):
        order = solution.orders[i, j]
        assert order in problem.orders[b]
        links = possible_links(problem.states[i], problem.states[j])
        ends = problem.states[i].index(states[i]), problem.states[j].index(states[j])
        choice = links.index((*ends, order)) if order else len(links) + 1
        cost += problem.link_costs.of(b, np.array(choice))[level]
    assert solution.cost == pytest.approx(cost, rel=1e-9)


def compare(problem: BondProblem) -> list[Solution | None]:
    """Elimination finds what the integer programme finds."""
    programme = BondProgramme(problem)
    found = BondField(problem).solve()
    for level, solution in enumerate(found):
        expected = programme.solve(level)
        assert (solution is None) == (expected is None)
        if solution is not None and expected is not None:
            check(problem, solution, level)
            check(problem, expected, level)
            assert solution.cost == pytest.approx(expected.cost, rel=1e-9)
    return found


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(SMILES),
    st.floats(0.0, 0.1),
    st.floats(0.95, 1.3),
    st.integers(0, 2**32 - 1),
)
def test_elimination_agrees_on_perturbed_molecules(
    smiles: str, noise: float, firm: float, seed: int
) -> None:
    numbers, positions = skeleton(smiles)
    positions = positions + noise * np.random.default_rng(seed).standard_normal(positions.shape)
    compare(problem(numbers, positions, Wanted(), firm))


def crowd(elements: list[int], seed: int) -> np.ndarray:
    """Random points about a bond's length apart, some of them much closer to several others."""
    rng = np.random.default_rng(seed)
    positions = np.zeros((1, 3))
    for _ in elements[1:]:
        start = positions[rng.integers(len(positions))]
        step = rng.standard_normal((20, 3))
        options = start + rng.uniform(1.2, 1.8) * step / np.linalg.norm(step, axis=1)[:, None]
        distances = np.linalg.norm(options[:, None] - positions, axis=-1).min(1)
        positions = np.vstack([positions, options[distances.argmax()]])
    return positions


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([6, 6, 6, 7, 7, 8, 15, 16, 17]), min_size=2, max_size=9),
    st.floats(0.9, 1.3),
    st.integers(-1, 1),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_elimination_agrees_on_crowds(
    elements: list[int], firm: float, charge: int, formal_charges: bool, seed: int
) -> None:
    """With optional pairs, charges that no atom alone would have, and fragments to be joined."""
    compare(problem(elements, crowd(elements, seed), Wanted(charge, formal_charges), firm))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from(["CCO", "NC(N)=O", "CC(=O)O", "c1cnc[nH]1", "C=CC=O", "CN=[N+]=[N-]"]),
    st.integers(-2, 2),
    st.integers(0, 10),
    st.floats(1.1, 1.3),
)
def test_elimination_agrees_on_totals(
    smiles: str, charge: int, n_hydrogens: int, firm: float
) -> None:
    numbers, positions = skeleton(smiles)
    compare(problem(numbers, positions, Wanted(charge, n_hydrogens=n_hydrogens), firm))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from(["c1ccccc1", "CC=O", "C[NH+](C)C", "NC=O", "C1CC1"]),
    st.lists(st.sampled_from([6, 7, 8]), min_size=1, max_size=4),
    st.data(),
)
def test_elimination_agrees_on_scaffolds(smiles: str, new: list[int], data: st.DataObject) -> None:
    numbers, positions = skeleton(smiles)
    seed = data.draw(st.integers(0, 2**32 - 1))
    grown = data.draw(st.sets(st.integers(0, len(numbers) - 1), min_size=1))
    around = crowd([6, *new], seed)
    place = positions[min(grown)]
    outward = place - positions.mean(0)
    around = around + place + 1.5 * outward / np.linalg.norm(outward)
    known = known_of(smiles, *grown)
    charge = sum(atom.charge for atom in known.atoms)
    elements = [*numbers.tolist(), *[6, *new]]
    wanted = Wanted(charge, n_hydrogens=None, known=known)
    for solution in compare(problem(elements, np.vstack([positions, around]), wanted)):
        if solution is not None:
            assert {pair: solution.orders[pair] for pair in known.orders} == known.orders


APART = [8, 6, 6, 6], np.array([[0, 0, 0], [1.45, 0, 0], [0, 1.95, 0], [1.45, 1.95, 0]])
"""Two bonds too far from each other for a third one, were it not for having to be one molecule."""


def test_fragments_are_joined_at_the_least_cost() -> None:
    found = compare(problem(*APART, Wanted()))
    assert all(solution is not None and len(solution.bonded) == 3 for solution in found)


def test_fragments_out_of_reach_are_no_solution() -> None:
    numbers, positions = skeleton("CC")
    numbers, positions = np.tile(numbers, 2), np.vstack([positions, positions + 9.0])
    assert compare(problem(numbers.tolist(), positions, Wanted())) == [None] * len(NOISE_LEVELS)


def limit(monkeypatch: pytest.MonkeyPatch, name: str) -> list[BondProblem]:
    """Make one of the limits of elimination as low as it gets; the list is of the problems left."""
    left: list[BondProblem] = []

    def note(problem: BondProblem) -> BondProgramme:
        left.append(problem)
        return BondProgramme(problem)

    monkeypatch.setattr(bonds, "BondProgramme", note)
    monkeypatch.setattr(bond_field, name, 0)
    return left


@pytest.mark.parametrize("smiles", ["CC(=O)Nc1ccc(O)cc1", "C[N+](=O)[O-]"])
@pytest.mark.parametrize("limited", ["MAX_ENTRIES", "MAX_ADDITIONS"])
def test_what_is_too_large_is_left_to_the_integer_programme(
    smiles: str, limited: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers, positions = skeleton(smiles)
    fast = assign_bonds(numbers, positions)
    left = limit(monkeypatch, limited)
    slow = assign_bonds(numbers, positions)
    assert left
    assert slow.cost == pytest.approx(fast.cost, rel=1e-9)
    assert plain(slow.mol) == plain(fast.mol) == Chem.CanonSmiles(smiles)
    with pytest.raises(Undecided):
        BondField(problem(numbers, positions, Wanted()))


@pytest.mark.parametrize("limited", ["MAX_TRIED", "MAX_TRIED_ENTRIES"])
def test_fragments_that_are_too_many_are_left_to_the_integer_programme(
    limited: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = assign_bonds(*APART)
    left = limit(monkeypatch, limited)
    slow = assign_bonds(*APART)
    assert len(left) == 1
    assert slow.cost == pytest.approx(fast.cost, rel=1e-9)
    assert plain(slow.mol) == plain(fast.mol)


def test_molecules_are_left_to_elimination(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(problem: BondProblem) -> BondProgramme:
        raise AssertionError("elimination takes too long")

    monkeypatch.setattr(bonds, "BondProgramme", never)
    rng = np.random.default_rng(0)
    for smiles in SMILES:
        numbers, positions = skeleton(smiles)
        noisy = positions + 0.05 * rng.standard_normal(positions.shape)
        assert assign_bonds(numbers, noisy).status is not Status.UNASSIGNABLE


def test_fitting_counts_what_is_there() -> None:
    statistics = fit_bond_statistics([conformer("C=CO"), conformer("[Na+].[Cl-]")])
    assert statistics.n_molecules == 1
    assert statistics.bonds.total() == 2
    assert sum(c.total() for c in statistics.histograms["length"].values()) == 2
    assert sum(c.total() for c in statistics.histograms["angle"].values()) == 1
    assert set(statistics.atoms) == {(6, 1, 0), (6, 2, 0), (8, 1, 0)}


def test_fitted_likelihoods_are_normalised() -> None:
    """Over its range each density integrates to one and each set of states sums to one."""
    statistics = load_bond_statistics()
    for z in VALENCES:
        for degree in (1, 2, 3, 4):
            costs = statistics.state_costs(z, degree, 0)
            if costs:
                assert sum(np.exp(-c) for c in costs.values()) == pytest.approx(1.0)
    state = next(s for s in statistics.state_costs(6, 2, 0) if s.n_double == 1)
    for noise in (0.01, 0.09):
        density = np.exp(-statistics.feature_costs("angle", (state, 0), noise))  # bins of 2 degrees
        assert 2.0 * density.sum() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("first", [(6, 1), (6, 2), (7, 3), (16, 4)])
@pytest.mark.parametrize("second", [(6, 3), (6, 2), (8, 1)])
def test_pairs_of_states_sum_to_one(first: tuple[int, int], second: tuple[int, int]) -> None:
    statistics = load_bond_statistics()
    rows, columns = (statistics.state_costs(*end, None) for end in (first, second))
    total = sum(
        np.exp(-rows[a] - columns[b] - statistics.pair_cost(a, b, order))
        for a in rows
        for b in columns
        for order in (1, 2, 3)
    )
    assert total == pytest.approx(1.0, abs=1e-6)


def test_most_molecules_of_a_public_collection_come_back() -> None:
    lines = (Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi").read_text().splitlines()
    found = []
    for line in lines[4000:4100]:
        mol = Chem.MolFromSmiles(line.split()[0])
        if mol is None or "." in line or Chem.GetFormalCharge(mol) or mol.GetNumAtoms() > 16:
            continue
        if not all(a.GetAtomicNum() in VALENCES for a in mol.GetAtoms()):
            continue
        mol = Chem.AddHs(mol)
        if AllChem.EmbedMolecule(mol, randomSeed=1) == 0:
            AllChem.MMFFOptimizeMolecule(mol)
            bare = Chem.RemoveHs(mol)
            numbers = [a.GetAtomicNum() for a in bare.GetAtoms()]
            result = assign_bonds(numbers, bare.GetConformer().GetPositions())
            found.append(result.mol is not None and plain(result.mol) == plain(mol))
    assert len(found) > 30
    assert np.mean(found) >= 0.9


def test_statistics_survive_json() -> None:
    statistics = fit_bond_statistics([conformer(s) for s in SMILES[:8]])
    again = BondStatistics.from_json(statistics.to_json())
    assert (again.n_molecules, again.atoms, again.bonds) == (8, statistics.atoms, statistics.bonds)
    assert again.histograms == statistics.histograms
    assert again.to_json() == statistics.to_json()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"n_molecules": 3, "atoms": 1}'])
def test_other_text_is_no_statistics(text: str) -> None:
    with pytest.raises(LoadError, match="expected bond statistics"):
        BondStatistics.from_json(text)


def test_the_shipped_statistics_are_those_of_the_shipped_reference_molecules() -> None:
    with resources.as_file(resources.files("simgen.references") / "organic.sdf.gz") as path:
        molecules = [record.mol for record in read_molecules(path)]
    assert fit_bond_statistics(molecules).to_json() == load_bond_statistics().to_json()


def test_nothing_to_fit_is_an_error() -> None:
    with pytest.raises(InputError, match="none that can be used"):
        fit_bond_statistics([])


def test_a_missing_statistics_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="nowhere"):
        load_bond_statistics(tmp_path / "nowhere.json")


def test_connectivity_by_distance() -> None:
    numbers, positions = [6, 6, 8], np.array([[0, 0, 0], [1.5, 0, 0], [4.0, 0, 0]])
    assert relative_distances(numbers, positions)[0, 1] == pytest.approx(1.5 / 1.52)
    assert bonded_pairs(numbers, positions) == {(0, 1)}
    assert bonded_pairs(numbers, positions, 1.8) == {(0, 1), (1, 2)}
    assert fragments(3, {(0, 1)}).tolist() == [0, 0, 1]
    assert fragments(2, set()).tolist() == [0, 1]
