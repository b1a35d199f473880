"""Equivariant networks: one framework, MACE as the preset; weights without unpickling."""

from simgen.models.config import NetworkConfig
from simgen.models.frozen import FrozenForceField
from simgen.models.network import ForceField
from simgen.models.weights import list_models, load_model, read_metadata, save_model

__all__ = [
    "ForceField",
    "FrozenForceField",
    "NetworkConfig",
    "list_models",
    "load_model",
    "read_metadata",
    "save_model",
]
