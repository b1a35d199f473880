"""What must hold for any force field: functions that take one and raise AssertionError."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from simgen.models import ForceField
from simgen.molecules import MoleculeBatch


def random_batch(
    elements: Sequence[int],
    counts: Sequence[int] = (7, 1, 4),
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> MoleculeBatch:
    """Molecules of atoms on a jittered grid: dense, but nowhere coinciding."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(3.0)] * 3), axis=-1).reshape(-1, 3)
    return MoleculeBatch.from_arrays(
        [
            (
                rng.choice(elements, n),
                1.4 * rng.permutation(grid)[:n] + rng.uniform(-0.25, 0.25, (n, 3)),
            )
            for n in counts
        ],
        dtype=dtype,
    )


def random_rotation(seed: int, determinant: int) -> Tensor:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return torch.from_numpy(q * determinant * np.sign(np.linalg.det(q)))


def moved(batch: MoleculeBatch, positions: Tensor) -> MoleculeBatch:
    return batch.replace(positions=positions)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=tolerance * scale)


def check_euclidean_symmetry(model: ForceField, batch: MoleculeBatch) -> None:
    """Energies and invariants do not change, forces turn along, mirror images included."""
    energies, forces = model.energy_and_forces(batch)
    invariants = model.node_invariants(batch)
    assert forces.abs().max() > 1e-3
    for determinant in (1, -1):
        rotation = random_rotation(1, determinant).to(batch.positions)
        shift = batch.positions.new_tensor([10.0, -20.0, 5.0])
        turned = moved(batch, batch.positions @ rotation.T + shift)
        turned_energies, turned_forces = model.energy_and_forces(turned)
        assert_close(turned_energies, energies)
        assert_close(turned_forces, forces @ rotation.T)
        assert_close(model.node_invariants(turned), invariants)


def check_permutation(model: ForceField, batch: MoleculeBatch) -> None:
    """The order of the atoms of a molecule does not matter."""
    rng = np.random.default_rng(2)
    random = torch.from_numpy(rng.random(batch.n_atoms))
    order = torch.argsort(batch.molecule_idx + random)
    assert not torch.equal(order, torch.arange(batch.n_atoms))
    permuted = batch.replace(
        positions=batch.positions[order], atomic_numbers=batch.atomic_numbers[order]
    )
    energies, forces = model.energy_and_forces(batch)
    permuted_energies, permuted_forces = model.energy_and_forces(permuted)
    assert_close(permuted_energies, energies)
    assert_close(permuted_forces, forces[order])
    assert_close(model.node_invariants(permuted), model.node_invariants(batch)[order])


def check_forces(model: ForceField, batch: MoleculeBatch, step: float = 1e-4) -> None:
    """Forces are the negative central differences of the energy; those of a molecule add to 0."""
    _, forces = model.energy_and_forces(batch)
    assert_close(batch.sum_per_molecule(forces), torch.zeros(len(batch), 3).to(forces))
    direction = torch.from_numpy(np.random.default_rng(3).normal(size=forces.shape)).to(forces)
    with torch.no_grad():
        high = model(moved(batch, batch.positions + step * direction))
        low = model(moved(batch, batch.positions - step * direction))
    expected = -batch.sum_per_molecule((forces * direction).sum(1))
    assert_close((high - low) / (2 * step), expected, tolerance=1e-5)


def check_batching(model: ForceField, batch: MoleculeBatch) -> None:
    """Molecules of a batch do not feel each other, and batch size does not matter."""
    energies, forces = model.energy_and_forces(batch)
    alone = [model.energy_and_forces(molecule) for molecule in batch.split()]
    assert_close(energies, torch.cat([energy for energy, _ in alone]))
    assert_close(forces, torch.cat([force for _, force in alone]))
    positions = batch.positions.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(moved(batch, positions))[0], positions)
    assert torch.all(gradient[batch.molecule_idx > 0] == 0)


def check_extensivity(model: ForceField, batch: MoleculeBatch) -> None:
    """Two molecules beyond each other's reach have the sum of their energies."""
    first, second = batch[[0]], batch[[2]]
    reach = float((first.positions.abs().max() + second.positions.abs().max()) * 2)
    offset = first.positions.new_tensor([reach + 2 * model.r_max, 0.0, 0.0])
    together = MoleculeBatch.from_arrays(
        [
            (
                torch.cat([first.atomic_numbers, second.atomic_numbers]),
                torch.cat([first.positions, second.positions + offset]),
            )
        ],
        dtype=batch.positions.dtype,
    )
    assert_close(model(together), model(first) + model(second))


def check_isolated_atoms(model: ForceField) -> None:
    """An atom alone has its atomic energy plus the shift, if nothing passes by the messages."""
    assert not model.config.first_residual
    batch = MoleculeBatch.from_arrays(
        [([z], [[0.0, 0.0, 0.0]]) for z in model.elements], dtype=model.embedding.dtype
    )
    energies, forces = model.energy_and_forces(batch)
    assert_close(energies, model.atomic_energies + model.shift)
    assert torch.all(forces == 0)


def check_smooth_at_cutoff(model: ForceField) -> None:
    """The energy and its first two derivatives fade towards the cutoff, and vanish beyond."""
    z = model.elements[-1]

    def derivatives(distance: float) -> list[float]:
        x = torch.tensor(distance, dtype=torch.float64, requires_grad=True)
        zero = torch.zeros((), dtype=torch.float64)
        positions = torch.stack([torch.zeros(3, dtype=torch.float64), torch.stack([x, zero, zero])])
        batch = MoleculeBatch(positions, torch.tensor([z, z]), torch.zeros(2, dtype=torch.int64))
        energy = model(batch).sum()
        if not energy.requires_grad:
            return [energy.item(), 0.0, 0.0]
        (first,) = torch.autograd.grad(energy, x, create_graph=True)
        (second,) = torch.autograd.grad(first, x)
        return [energy.item(), first.item(), second.item()]

    r_max, step = model.r_max, 1e-4
    inside = np.array(derivatives(r_max - step))
    beyond = np.array(derivatives(r_max + step))
    reference = np.abs(np.array(derivatives(0.6 * r_max)) - beyond)
    np.testing.assert_allclose(beyond[1:], 0.0, atol=0.0)
    assert np.all(np.abs(inside - beyond) <= 1e-2 * reference)


def check_precision(model: ForceField, batch: MoleculeBatch, tolerance: float = 1e-4) -> None:
    """A float32 copy agrees with the float64 model."""
    energies, forces = model.energy_and_forces(batch)
    single = load_copy(model).to(torch.float32)
    single_energies, single_forces = single.energy_and_forces(batch.to(dtype=torch.float32))
    assert single_energies.dtype == single_forces.dtype == torch.float32
    assert_close(single_energies.double(), energies, tolerance)
    assert_close(single_forces.double(), forces, tolerance)


def load_copy(model: ForceField) -> ForceField:
    copy = ForceField(model.config).to(model.embedding.dtype)
    copy.load_state_dict(model.state_dict())
    return copy


def check_all(model: ForceField, batch: MoleculeBatch) -> None:
    """Everything in this file, for a float64 model."""
    check_euclidean_symmetry(model, batch)
    check_permutation(model, batch)
    check_forces(model, batch)
    check_batching(model, batch)
    check_extensivity(model, batch)
    if not model.config.first_residual:
        check_isolated_atoms(model)
    check_smooth_at_cutoff(model)
    check_precision(model, batch)
