import numpy as np
import physics
import pytest
import torch
from ase import Atoms
from ase.optimize import BFGS

from simgen.calculator import ForceFieldCalculator
from simgen.errors import InputError
from simgen.models import ForceField, NetworkConfig, list_models

CONFIG = NetworkConfig(elements=(1, 6, 8), n_channels=4, radial_widths=(8,), r_max=3.0)


def water() -> Atoms:
    return Atoms("OH2", [(0, 0, 0), (0.8, 0.6, 0), (-0.8, 0.6, 0)])


def test_energy_and_forces_are_those_of_the_model() -> None:
    model = ForceField(CONFIG, atomic_energies=[-1.0, -2.0, -3.0], scale=5.0).to(torch.float64)
    batch = physics.random_batch(CONFIG.elements, counts=(6,))
    atoms = Atoms(batch.atomic_numbers.numpy(), batch.positions.numpy())
    atoms.calc = ForceFieldCalculator(model)
    energies, forces = model.energy_and_forces(batch)
    assert atoms.get_potential_energy() == pytest.approx(float(energies[0]), abs=1e-12)
    np.testing.assert_allclose(atoms.get_forces(), forces.numpy(), atol=1e-12)
    atoms.rattle(0.1, seed=0)
    assert atoms.get_potential_energy() != pytest.approx(float(energies[0]), abs=1e-6)


def test_periodic_systems_and_unknown_elements_are_refused() -> None:
    calculator = ForceFieldCalculator(ForceField(CONFIG))
    atoms = water()
    atoms.calc = calculator
    atoms.pbc = (True, False, False)
    with pytest.raises(InputError, match="pbc"):
        atoms.get_potential_energy()
    atoms = Atoms("Cl2", [(0, 0, 0), (0, 0, 2)])
    atoms.calc = calculator
    with pytest.raises(InputError, match="Cl"):
        atoms.get_forces()


@pytest.mark.skipif("small" not in list_models(), reason="no model is shipped")
def test_shipped_model_relaxes_water() -> None:
    atoms = water()
    atoms.calc = ForceFieldCalculator()
    BFGS(atoms, logfile=None).run(fmax=0.02, steps=50)
    assert atoms.get_distance(0, 1) == pytest.approx(0.96, abs=0.04)
    assert atoms.get_angle(1, 0, 2) == pytest.approx(106, abs=10)
