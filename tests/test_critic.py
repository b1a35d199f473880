"""The critic finds what no known molecule shows, and says what is to move."""

import numpy as np
import pytest
import torch
from chemistry import conformer

from simgen import Generator
from simgen.filters import Filters
from simgen.generation import GenerationConfig
from simgen.generation.critic import Critic
from simgen.generation.finish import Finisher
from simgen.generation.maker import Maker
from simgen.known import CommonFeatures, collect, load_known
from simgen.models import ForceField, NetworkConfig
from simgen.molecules import MoleculeBatch
from simgen.reference import ReferenceSet, load_reference
from simgen.scaffold import Scaffold


def critic(
    *reference: str, filters: Filters | None = None, common: CommonFeatures | None = None
) -> Critic:
    def no_forces(batch: MoleculeBatch) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(batch.n_molecules), torch.zeros_like(batch.positions)

    finisher = Finisher(
        GenerationConfig(filters=filters or Filters()),
        no_forces,
        [],
        load_known() | collect(conformer(smiles) for smiles in reference),
        dtype=torch.float64,
        device=torch.device("cpu"),
        timings={},
    )
    return Critic(
        finisher,
        lambda b: [(p.atomic_numbers.numpy(), p.positions.numpy()) for p in b.split()],
        common,
    )


def heavy(smiles: str) -> tuple[list[int], list[list[float]]]:
    """Heavy atoms of a conformer, in the order of the SMILES."""
    mol = conformer(smiles)
    n_heavy = mol.GetNumHeavyAtoms()
    numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()][:n_heavy]
    return numbers, mol.GetConformer().GetPositions()[:n_heavy].tolist()


def judged(judge: Critic, *molecules: object, fixed: list[bool] | None = None) -> list[list[int]]:
    batch = MoleculeBatch.from_arrays(list(molecules), dtype=torch.float64)
    if fixed is not None:
        batch = batch.replace(fixed=torch.tensor(fixed))
    return [torch.nonzero(mask).squeeze(1).tolist() for mask in judge(batch)]


def test_believable_molecules_have_no_fault() -> None:
    molecules = [heavy(smiles) for smiles in ("CC(=O)Nc1ccc(O)cc1", "CCCO")]
    assert judged(critic(), *molecules) == [[], []]


def test_faults_are_found_in_their_molecule_and_neighbours_move() -> None:
    faulty, loose = judged(critic(), heavy("CCCO"), heavy("COOOC"))
    assert faulty == [5, 6, 7]  # the chain of oxygens of the second molecule
    assert loose == [4, 5, 6, 7, 8]


def test_what_the_reference_shows_is_no_fault() -> None:
    assert judged(critic("CCCOOOC"), heavy("CCCOOOC")) == [[], []]


def test_what_is_to_be_rejected_is_a_fault() -> None:
    molecule = heavy("CCCC(=O)OC")
    assert judged(critic(), molecule) == [[], []]
    faulty, loose = judged(critic(filters=Filters(("C(=O)OC",))), molecule)
    assert (faulty, loose) == ([3, 4, 5, 6], [2, 3, 4, 5, 6])
    assert judged(critic(filters=Filters(("C(=O)OC",), reject=False)), molecule) == [[], []]


def test_atoms_that_make_no_molecule_are_all_at_fault() -> None:
    apart = ([6, 6, 6, 6], [[0.0, 0, 0], [1.5, 0, 0], [9.0, 0, 0], [10.5, 0, 0]])
    assert judged(critic(), apart) == [[0, 1, 2, 3], [0, 1, 2, 3]]


def test_an_atom_that_lies_apart_is_at_fault() -> None:
    numbers, positions = heavy("CCCO")
    assert judged(critic(), ([*numbers, 6], [*positions, [30.0, 0.0, 0.0]])) == [[4], [4]]


def test_given_atoms_count_only_where_something_new_is_bonded_to_them() -> None:
    numbers, positions = heavy("CCCOOOC")
    given = [True] * 5 + [False] * 2  # the last oxygen and the last carbon are new
    faulty, loose = judged(critic(), (numbers, positions), fixed=given)
    assert faulty == [4, 5]
    assert loose == [3, 4, 5, 6]


def test_rings_are_as_large_as_wanted() -> None:
    strict = critic(common=CommonFeatures(frozenset({5, 6})))
    for smiles in ("C1CCCC1CO", "c1ccccc1"):
        assert not any(judged(strict, heavy(smiles))[0])
    seven = heavy("CC1CCCCCC1")
    assert not any(judged(critic(), seven)[0])
    faulty, loose = judged(strict, seven)
    assert faulty == [1, 2, 3, 4, 5, 6, 7]
    assert loose == list(range(8))
    # One that was given is what it is, also where something is bonded to it.
    faulty, _ = judged(strict, seven, fixed=[False] + [True] * 7)
    assert faulty == []


def test_double_bonds_are_as_crowded_as_wanted() -> None:
    crowded = heavy("CC(C)=C(C)C")
    assert not any(judged(critic(), crowded)[0])
    strict = critic(common=CommonFeatures(crowded_bonds=False))
    faulty, loose = judged(strict, crowded)
    assert faulty == [1, 3]
    assert loose == list(range(6))
    for smiles in ("CC=C(C)C", "Cc1ccccc1C"):
        assert not any(judged(strict, heavy(smiles))[0])


@pytest.fixture(scope="module")
def model() -> ForceField:
    config = NetworkConfig(elements=(1, 6, 7, 8, 9, 15, 16, 17, 35), n_channels=4, l_max=1)
    return ForceField(config, scale=0.0)


def test_the_bonds_of_a_scaffold_are_known(model: ForceField) -> None:
    scaffold = Scaffold.from_mol(conformer("c1ccccc1"))
    config = GenerationConfig(1, (2, 2), scaffold=scaffold)
    reference = ReferenceSet("some", load_reference("organic").molecules[:12])
    maker = Maker(model, config, reference, reference)
    numbers, positions = heavy("c1ccccc1")
    batch = MoleculeBatch.from_arrays(
        [([*numbers, 6, 8], [*positions, [20.0, 0.0, 0.0], [21.4, 0.0, 0.0]])]
    )
    fixed = torch.tensor([True] * 6 + [False] * 2)
    faulty, _ = maker.critic(batch.replace(fixed=fixed))
    assert faulty.all()  # two pieces
    outwards = np.array(positions[0]) / np.linalg.norm(positions[0])
    whole = batch.positions.clone()
    whole[6:] = torch.tensor(positions[0] + np.array([[1.5], [2.9]]) * outwards)
    faulty, _ = maker.critic(batch.replace(fixed=fixed, positions=whole))
    assert not faulty.all()


def test_repair_leaves_fewer_unknown_atoms() -> None:
    """Through the interface; the reports count what is left."""
    generator = Generator.from_pretrained("small", device="cpu")

    def n_unknown(n_repairs: int) -> int:
        result = generator.generate(
            8, 9, n_steps=20, n_particles=3, seed=1, n_refinements=0, n_repairs=n_repairs
        )
        return sum(9 if r.n_unknown is None else r.n_unknown for r in result.reports)

    assert n_unknown(4) < n_unknown(0)
