"""What a GPU computes is what the CPU does. Skipped where there is none."""

from pathlib import Path

import pytest
import torch
from command_line import Command
from physics import assert_close, random_batch

from simgen.density import ReferenceEnvironments, Repulsion, SimilarityKernel, SimilarityScore
from simgen.descriptors.force_field import ForceFieldDescriptor
from simgen.evolution import EvolutionSettings, evolve
from simgen.finishing.relaxation import relax
from simgen.models import ForceField, evaluator, load_model
from simgen.molecules import MoleculeBatch
from simgen.noise import Noise
from simgen.priors import Gaussian
from simgen.sampling import Samples, start_molecules
from simgen.schedules import noise_levels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CPU, GPU = torch.device("cpu"), torch.device("cuda")
BOTH = (CPU, GPU)


def network(device: torch.device) -> ForceField:
    return load_model("small", device=device, dtype=torch.float64)


def geometries() -> MoleculeBatch:
    return random_batch((1, 6, 7, 8), (9, 1, 16), seed=3)


def similarity(device: torch.device) -> SimilarityScore:
    descriptor = ForceFieldDescriptor(network(device))
    some = random_batch((6, 7, 8), (12, 12, 12), seed=5).to(device)
    references = ReferenceEnvironments(descriptor(some).detach(), some.atomic_numbers)
    return SimilarityScore(SimilarityKernel(descriptor, references), [Repulsion(), Gaussian()])


@pytest.mark.parametrize("frozen", [False, True])
def test_energies_and_forces(frozen: bool) -> None:
    found = []
    for device in BOTH:
        model = network(device)
        compute = evaluator(model).energy_and_forces if frozen else model.energy_and_forces
        found.append(compute(geometries().to(device)))
    for cpu, gpu in zip(*found, strict=True):
        assert gpu.is_cuda
        assert_close(gpu.cpu(), cpu)


@pytest.mark.parametrize("sigma", [1.0, 0.05, 1e-3])
def test_scores_and_similarities(sigma: float) -> None:
    batch = random_batch((6, 7, 8), (9, 5), seed=1)
    cpu, gpu = (similarity(device)(batch.to(device), sigma) for device in BOTH)
    assert_close(gpu.cpu(), cpu)
    cpu, gpu = (similarity(device).atom_energies(batch.to(device), sigma) for device in BOTH)
    assert_close(gpu.cpu(), cpu)


def test_samples() -> None:
    """Positions on a grid keep rounding from growing: the molecules are the same."""

    def sample(device: torch.device) -> Samples:
        noise = Noise(0, torch.arange(4, device=device))
        start = start_molecules(Gaussian(), [[6] * 5] * 4, noise, dtype=torch.float64)
        return evolve(
            similarity(device),
            start,
            noise_levels(12).tolist(),
            noise=noise,
            settings=EvolutionSettings(n_particles=4),
        )

    cpu, gpu = map(sample, BOTH)
    assert torch.equal(gpu.molecules.atomic_numbers.cpu(), cpu.molecules.atomic_numbers)
    assert_close(gpu.molecules.positions.cpu(), cpu.molecules.positions, 1e-5)


def test_relaxed_geometries() -> None:
    batch = geometries()
    cpu, gpu = (
        relax(evaluator(network(device)).energy_and_forces, batch.to(device), max_steps=20)
        for device in BOTH
    )
    assert torch.equal(gpu.n_steps.cpu(), cpu.n_steps)
    assert_close(gpu.batch.positions.cpu(), cpu.batch.positions, 1e-5)


def test_the_command_makes_molecules(simgen: Command, tmp_path: Path) -> None:
    out = tmp_path / "run"
    made = simgen("generate", "--count", 32, "--heavy-atoms", 9, "--device", "cuda", "--out", out)
    assert made.code == 0, made.err
    assert "32 attempts" in made.out
    assert (out / "molecules.sdf").stat().st_size > 0
