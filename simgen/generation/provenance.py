"""What made the molecules: checksums and versions."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version

import torch

import simgen
from simgen.models import ForceField


def model_digest(model: ForceField) -> str:
    """Checksum of a force field: its configuration and weights, in hexadecimal."""
    checksum = hashlib.sha256(model.config.to_json().encode())
    for name, tensor in sorted(model.state_dict().items()):
        checksum.update(name.encode())
        checksum.update(tensor.cpu().to(torch.float64).numpy().tobytes())
    return checksum.hexdigest()


def versions() -> dict[str, str]:
    """Versions of the program and of what its results depend on."""
    packages = ("torch", "rdkit", "numpy", "scipy", "ase")
    return {
        "simgen": simgen.__version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
