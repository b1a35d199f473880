"""Equivariant networks: one framework, known networks as presets, weights without unpickling."""

from simgen.models.config import NetworkConfig
from simgen.models.evaluator import Evaluator, evaluator
from simgen.models.frozen import FrozenForceField
from simgen.models.network import ForceField
from simgen.models.presets import PRESETS, ace, botnet, mace, nequip
from simgen.models.weights import find_model, list_models, load_model, read_metadata, save_model

__all__ = [
    "PRESETS",
    "Evaluator",
    "ForceField",
    "FrozenForceField",
    "NetworkConfig",
    "ace",
    "botnet",
    "evaluator",
    "find_model",
    "list_models",
    "load_model",
    "mace",
    "nequip",
    "read_metadata",
    "save_model",
]
