"""Relaxation: minima known from elsewhere, batches, fixed atoms, potentials that misbehave."""

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import AllChem
from scipy.optimize import minimize
from torch import Tensor

from simgen.errors import InputError
from simgen.finishing.internal import InternalCoordinates
from simgen.finishing.relaxation import _Chart, _Space, relax
from simgen.molecules import MoleculeBatch

KCAL = 0.0433641  # eV


def batch_of(*shapes: int, seed: int = 0, spread: float = 1.2) -> MoleculeBatch:
    rng = np.random.default_rng(seed)
    return MoleculeBatch.from_arrays(
        [([6] * n, spread * rng.standard_normal((n, 3))) for n in shapes], dtype=torch.float64
    )


def harmonic(batch: MoleculeBatch) -> tuple[Tensor, Tensor]:
    """Each atom bound to the origin, stiffly along z."""
    k = torch.tensor([1.0, 4.0, 30.0], dtype=batch.positions.dtype)
    energies = batch.sum_per_molecule((0.5 * k * batch.positions**2).sum(1))
    return energies, -k * batch.positions


def lennard_jones(batch: MoleculeBatch) -> tuple[Tensor, Tensor]:
    """Depth 1 eV, minimum at 1.5 A."""
    x = batch.positions.detach().requires_grad_()
    same = batch.molecule_idx[:, None] == batch.molecule_idx[None]
    i, j = torch.nonzero(torch.triu(same, 1), as_tuple=True)
    ratio = (1.5**2 / (x[i] - x[j]).square().sum(1)) ** 3
    energies = torch.zeros(batch.n_molecules, dtype=x.dtype)
    energies = energies.index_add(0, batch.molecule_idx[i], ratio**2 - 2 * ratio)
    (gradient,) = torch.autograd.grad(energies.sum(), x)
    return energies.detach(), -gradient


def mmff(mol: Chem.Mol):
    field = AllChem.MMFFGetMoleculeForceField(mol, AllChem.MMFFGetMoleculeProperties(mol))

    def energy_and_forces(batch: MoleculeBatch) -> tuple[Tensor, Tensor]:
        flat = batch.positions.double().flatten().tolist()
        energy = torch.tensor([field.CalcEnergy(flat)], dtype=torch.float64)
        gradient = torch.tensor(field.CalcGrad(flat), dtype=torch.float64).reshape(-1, 3)
        return KCAL * energy, -KCAL * gradient

    return energy_and_forces


def test_a_harmonic_well_relaxes_to_its_bottom() -> None:
    result = relax(harmonic, batch_of(3, 5, 1), f_max=1e-4)
    assert result.converged.all()
    assert result.finite.all()
    assert result.batch.positions.abs().max() < 1e-4
    assert (result.energies <= result.initial_energies).all()


def test_clusters_relax_to_the_minima_that_scipy_finds_nearby() -> None:
    start = batch_of(3, 4, 5, spread=0.9)
    result = relax(lennard_jones, start, f_max=1e-5, max_steps=500)
    assert result.converged.all()
    for single, energy in zip(result.batch.split(), result.energies, strict=True):

        def objective(flat: np.ndarray, like: MoleculeBatch = single) -> tuple[float, np.ndarray]:
            e, f = lennard_jones(like.replace(positions=torch.tensor(flat.reshape(-1, 3))))
            return float(e), -f.numpy().ravel()

        found = minimize(objective, single.positions.numpy().ravel(), jac=True, method="BFGS")
        assert float(energy) == pytest.approx(found.fun, abs=1e-8)
    # dimers, triangles and tetrahedra touch in every pair
    assert result.energies[:2].tolist() == pytest.approx([-3.0, -6.0], abs=1e-6)


def test_one_together_is_one_alone() -> None:
    start = batch_of(4, 2, 6, 3, seed=2)
    together = relax(lennard_jones, start, f_max=0.01)
    for k, alone_start in enumerate(start.split()):
        alone = relax(lennard_jones, alone_start, f_max=0.01)
        assert alone.n_steps[0] == together.n_steps[k]
        assert torch.equal(together.batch[k].positions, alone.batch.positions)


def test_finished_molecules_are_not_computed_again() -> None:
    sizes = []

    def counting(batch: MoleculeBatch) -> tuple[Tensor, Tensor]:
        sizes.append(batch.n_molecules)
        return lennard_jones(batch)

    result = relax(counting, batch_of(2, 9, seed=3), f_max=0.01)
    assert sizes[0] == 2
    assert sizes[-1] == 1
    assert sum(sizes) == result.n_steps.sum()


def test_fixed_atoms_stay_bit_for_bit_and_their_forces_do_not_count() -> None:
    start = batch_of(5, 4, seed=4)
    fixed = torch.tensor([True, False, False, True, False] + [True] * 4)
    start = start.replace(fixed=fixed)
    result = relax(lennard_jones, start, f_max=0.01)
    assert torch.equal(result.batch.positions[fixed], start.positions[fixed])
    assert not torch.equal(result.batch.positions[~fixed], start.positions[~fixed])
    assert result.converged.all()
    assert result.n_steps[1] == 1  # nothing to move
    forces = lennard_jones(result.batch)[1]
    assert forces[:5][~fixed[:5]].norm(dim=1).max() < 0.01
    assert forces[:5][fixed[:5]].norm(dim=1).max() > 0.01


def test_no_atom_moves_further_than_allowed() -> None:
    seen = []

    def recording(batch: MoleculeBatch) -> tuple[Tensor, Tensor]:
        seen.append(batch.positions.clone())
        return lennard_jones(batch)

    relax(recording, batch_of(6, seed=5), f_max=0.01, max_step=0.07)
    first = (seen[1] - seen[0]).norm(dim=1).max()
    assert first <= 0.07 + 1e-12
    assert len(seen) > 3


def test_the_energy_never_ends_higher_than_it_was() -> None:
    """Forces ten times too large overshoot; the energies tell."""

    def exaggerating(batch: MoleculeBatch) -> tuple[Tensor, Tensor]:
        energies, forces = harmonic(batch)
        return energies, 10.0 * forces

    result = relax(exaggerating, batch_of(3, seed=6), f_max=0.01, max_steps=300)
    assert result.converged.all()
    assert result.energies[0] < 1e-3


def test_a_molecule_that_becomes_nonfinite_stops_alone() -> None:
    def cliff(batch: MoleculeBatch) -> tuple[Tensor, Tensor]:
        energies, forces = harmonic(batch)
        near = batch.positions.norm(dim=1) < 1.0
        doomed = batch.counts[batch.molecule_idx] == 1
        return energies, torch.where((near & doomed)[:, None], torch.nan, forces)

    start = MoleculeBatch.from_arrays(
        [([6], [[1.5, 0, 0]]), ([6, 6], [[1.0, 0, 0], [0, 1.0, 0]])], dtype=torch.float64
    )
    result = relax(cliff, start, f_max=0.001)
    assert result.finite.tolist() == [False, True]
    assert result.converged.tolist() == [False, True]
    assert result.batch.positions.isfinite().all()
    assert result.energies.isfinite().all()


def test_what_falls_into_a_hole_is_given_up() -> None:
    """An atom that falls to the origin without end; another one is held there gently."""

    def hole(batch: MoleculeBatch) -> tuple[Tensor, Tensor]:
        x = batch.positions
        r = x.norm(dim=1)
        falls = batch.atomic_numbers == 1
        energies = torch.where(falls, -1.0 / r, r**2)
        forces = torch.where(falls, -1.0 / r**3, -2.0)[:, None] * x
        return energies, forces

    start = MoleculeBatch.from_arrays(
        [([1], [[2.0, 0, 0]]), ([6], [[0, 2.0, 0]])], dtype=torch.float64
    )
    result = relax(hole, start, f_max=0.01)
    assert result.converged.tolist() == [False, True]
    assert result.finite.all()
    assert result.n_steps[0] < 20
    assert hole(result.batch)[1][0].norm() > 50


def test_a_nonfinite_start_is_returned_as_it_came() -> None:
    start = MoleculeBatch.from_arrays(
        [([6, 6], [[torch.nan, 0, 0], [1, 0, 0]]), ([6], [[1.0, 0, 0]])], dtype=torch.float64
    )
    result = relax(harmonic, start, f_max=0.001)
    assert result.finite.tolist() == [False, True]
    assert result.n_steps[0] == 1
    torch.testing.assert_close(result.batch.positions, result.batch.positions, equal_nan=True)
    assert torch.equal(result.batch.positions[1], start.positions[1])


def test_giving_up_is_not_converging() -> None:
    result = relax(lennard_jones, batch_of(6, seed=5), f_max=1e-6, max_steps=3)
    assert result.n_steps.tolist() == [3]
    assert not result.converged.any()
    assert result.finite.all()


def test_no_molecules_are_no_problem() -> None:
    result = relax(harmonic, MoleculeBatch.from_arrays([]))
    assert result.batch.n_molecules == 0


@pytest.mark.parametrize("options", [{"f_max": 0.0}, {"max_steps": 0}, {"max_step": -1.0}])
def test_senseless_options_are_refused(options: dict) -> None:
    with pytest.raises(InputError, match="expected positive"):
        relax(harmonic, batch_of(2), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rough_molecule_takes_few_force_calls(dtype: torch.dtype) -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles("CC(=O)Nc1ccc(O)cc1"))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    rng = np.random.default_rng(0)
    rough = mol.GetConformer().GetPositions() + 0.1 * rng.standard_normal((mol.GetNumAtoms(), 3))
    numbers = [a.GetAtomicNum() for a in mol.GetAtoms()]
    start = MoleculeBatch.from_arrays([(numbers, rough)], dtype=dtype)
    result = relax(mmff(mol), start, f_max=0.03)
    assert result.converged.all()
    assert result.n_steps[0] <= 60
    assert result.batch.positions.dtype == dtype


def test_a_floppy_molecule_takes_few_force_calls() -> None:
    """Turning about bonds is neither stiff nor straight; in Cartesian steps it takes hundreds."""
    mol = Chem.AddHs(Chem.MolFromSmiles("CCC(CCC(CCCCCO)=NO)OC"))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    rng = np.random.default_rng(0)
    rough = mol.GetConformer().GetPositions() + 0.1 * rng.standard_normal((mol.GetNumAtoms(), 3))
    numbers = [a.GetAtomicNum() for a in mol.GetAtoms()]
    start = MoleculeBatch.from_arrays([(numbers, rough)])
    result = relax(mmff(mol), start, f_max=0.03)
    assert result.converged.all()
    assert result.n_steps[0] <= 80


def test_steps_in_scaled_coordinates_are_least_squares() -> None:
    """Against the dense derivatives of everything, by finite differences, and NumPy's solver."""
    mol = Chem.AddHs(Chem.MolFromSmiles("C#CCO"))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    numbers = [a.GetAtomicNum() for a in mol.GetAtoms()]
    water = ([8, 1, 1], [[0, 0, 0], [0.96, 0, 0], [0, 0.96, 0]])
    batch = MoleculeBatch.from_arrays(
        [water, (numbers, mol.GetConformer().GetPositions())], dtype=torch.float64
    )
    batch = batch.replace(fixed=torch.arange(batch.n_atoms) % 5 == 1)
    space = _Space(InternalCoordinates(batch), batch)
    x, h = batch.positions, 1e-5
    chart = _Chart(space, x)
    moves = torch.eye(3 * batch.n_atoms, dtype=torch.float64).view(-1, batch.n_atoms, 3)
    moves = moves[~batch.fixed.repeat_interleave(3)]
    columns = [space.change(space.at(x - h * m), space.at(x + h * m)) / (2 * h) for m in moves]
    dense = torch.stack(columns, 1).numpy()
    rng = np.random.default_rng(0)

    shift = torch.tensor(rng.standard_normal(len(moves)))
    step = (shift[:, None, None] * moves).sum(0)
    np.testing.assert_allclose(chart.along(step), dense @ shift.numpy(), atol=1e-6)
    z = torch.tensor(rng.standard_normal(len(dense)))
    found = chart.solve(chart.back(z))
    assert not found[batch.fixed].any()
    expected = np.linalg.lstsq(dense, z.numpy(), rcond=None)[0]
    np.testing.assert_allclose((found * moves).sum((1, 2)), expected, atol=1e-5)
    # the shortest solution of W^T G = g
    forces = step
    expected = np.linalg.lstsq(dense.T, -shift.numpy(), rcond=None)[0]
    np.testing.assert_allclose(chart.gradient(forces), expected, atol=1e-5)


def test_atoms_turn_about_bonds_without_stretching_them() -> None:
    """A methyl group: a straight step of 0.3 A makes its bonds 0.04 A longer."""
    mol = Chem.AddHs(Chem.MolFromSmiles("CC"))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    x = torch.tensor(mol.GetConformer().GetPositions())
    numbers = [a.GetAtomicNum() for a in mol.GetAtoms()]
    batch = MoleculeBatch.from_arrays([(numbers, x)], dtype=torch.float64)
    axis = torch.nn.functional.normalize(x[1] - x[0], dim=0)
    turning = torch.linalg.cross(axis.expand(8, 3), x - x[0])
    turning[[0, 1, 5, 6, 7]] = 0.0
    step = 0.3 * turning / turning.norm(dim=1).max()
    chart = _Chart(_Space(InternalCoordinates(batch), batch), x)

    def stretch(step: Tensor) -> float:
        bonds = [(x + step)[k] - (x + step)[0] for k in (2, 3, 4)]
        return max(
            abs(float(bond.norm() - (x[k] - x[0]).norm()))
            for bond, k in zip(bonds, (2, 3, 4), strict=True)
        )

    assert stretch(step) > 0.035
    assert stretch(step + chart.bending(step)) < 0.005
