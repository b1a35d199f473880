"""Runs the published SiMGen program; for an interpreter that has it, and without this package.

    python -P reference_driver.py JOB

The job is a JSON file: ``model``, a model file of mace-torch; ``reference``, molecules as atomic
numbers and positions; ``n_heavy_atoms``, ``n_attempts`` and ``seed``. Prints a line of JSON for
each attempt: seconds of sampling and finishing, and the final molecule or the error that ended it.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch

N_STEPS, N_PARTICLES, SWAP_INTERVAL = 50, 10, 2
MIN_DISTANCE = 0.75
"""Shorter distances are seen as this one by the descriptor, angstrom."""
STRENGTH = 0.7
"""Factor on the prior's force where it only holds the atoms together."""
COVARIANCE = (1.0, 1.0, 2.0)
PALETTE = (6, 7, 8)


def load(path: str) -> Any:
    """Load a model as the program does, with the distances of its radial embedding clamped."""
    published: Any = import_module("simgen.utils")
    blocks: Any = import_module("simgen.generation_utils")
    models: Any = import_module("mace.modules.models")
    given = torch.load(path, weights_only=False, map_location="cpu").float()
    config = published.get_mace_config(given)
    model = models.ScaleShiftMACE(**config)
    model.load_state_dict(given.state_dict(), strict=False)
    sizes = ("r_max", "num_bessel", "num_polynomial_cutoff")
    model.radial_embedding = blocks.RadialDistanceTransformBlock(
        r_min=MIN_DISTANCE, **{name: config[name] for name in sizes}
    )
    for parameter in model.parameters():
        parameter.requires_grad = False
    return model.eval()


def attempt(generator: Any, calculator: Any, n_heavy_atoms: int) -> dict[str, Any]:
    """Make one molecule, as ``ParticleFilterGenerator.generate`` does, and time its two parts."""
    swapping: Any = import_module("simgen.element_swapping")
    utils: Any = import_module("simgen.generation_utils")
    cleanup: Any = import_module("simgen.atoms_cleanup")
    palette = swapping.SwappingAtomicNumberTable(list(PALETTE), [1] * len(PALETTE))
    found: dict[str, Any] = {}
    start = time.perf_counter(), time.process_time()

    def lap(stage: str) -> None:
        nonlocal start
        now = time.perf_counter(), time.process_time()
        found[stage], found[f"{stage}_cpu"] = now[0] - start[0], now[1] - start[1]
        start = now

    try:
        path = generator.generate(
            ase.Atoms(f"C{n_heavy_atoms}"),
            palette,
            num_particles=N_PARTICLES,
            particle_swap_frequency=SWAP_INTERVAL,
            do_final_cleanup=False,
        )
        lap("sampling")
        atoms = utils.duplicate_atoms(path[-1])
        atoms.calc = calculator
        atoms = cleanup.cleanup_atoms(atoms, "valence", None, palette, mask=np.ones(len(atoms)))[-1]
        lap("finishing")
    except Exception as error:  # whatever ends an attempt of another program
        lap("failing")
        return {**found, "error": f"{type(error).__name__}: {error}"}
    if atoms is None:
        return {**found, "error": "no atoms left"}
    return {**found, "numbers": atoms.numbers.tolist(), "positions": atoms.positions.tolist()}


def main(path: str) -> None:
    """Carry out a job."""
    job = json.loads(Path(path).read_text())
    calculators: Any = import_module("simgen.calculators")
    filtering: Any = import_module("simgen.particle_filtering")
    integrators: Any = import_module("simgen.integrators")
    manifolds: Any = import_module("simgen.manifolds")
    utils: Any = import_module("simgen.generation_utils")
    np.random.seed(job["seed"])  # noqa: NPY002 -- the only one that the program knows
    torch.manual_seed(job["seed"])
    reference = [ase.Atoms(numbers, positions) for numbers, positions in job["reference"]]
    calculator = calculators.MaceSimilarityCalculator(load(job["model"]), reference, device="cpu")
    strength = STRENGTH * utils.calculate_restorative_force_strength(job["n_heavy_atoms"])
    generator = filtering.ParticleFilterGenerator(
        calculator,
        manifolds.MultivariateGaussianPrior(np.diag(COVARIANCE)),
        device="cpu",
        restorative_force_strength=strength,
        integration_parameters=integrators.IntegrationParameters(
            S_churn=1.3, S_min=2e-3, S_noise=0.5
        ),
        num_steps=N_STEPS,
    )
    attempt(generator, calculator, 4)  # the first is slow for reasons of its own
    for _ in range(job["n_attempts"]):
        print(json.dumps(attempt(generator, calculator, job["n_heavy_atoms"])), flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main(sys.argv[1])
