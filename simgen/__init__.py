"""Zero-shot 3D molecule design by similarity kernels.

The names below are the public API. They are imported when first used: ``import simgen`` itself
loads nothing, so that ``simgen --help`` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simgen import priors as priors
    from simgen.errors import SimgenError as SimgenError
    from simgen.generation import GenerationConfig as GenerationConfig
    from simgen.generation import GenerationResult as GenerationResult
    from simgen.generation import Generator as Generator
    from simgen.models import load_model as load_model
    from simgen.molecules import MoleculeBatch as MoleculeBatch
    from simgen.reference import ReferenceSet as ReferenceSet
    from simgen.reference import load_reference as load_reference

__version__ = "0.1.0"

_HOMES = {
    "GenerationConfig": "simgen.generation",
    "GenerationResult": "simgen.generation",
    "Generator": "simgen.generation",
    "MoleculeBatch": "simgen.molecules",
    "ReferenceSet": "simgen.reference",
    "SimgenError": "simgen.errors",
    "load_model": "simgen.models",
    "load_reference": "simgen.reference",
}

__all__ = [
    "GenerationConfig",
    "GenerationResult",
    "Generator",
    "MoleculeBatch",
    "ReferenceSet",
    "SimgenError",
    "__version__",
    "load_model",
    "load_reference",
    "priors",
]


def __getattr__(name: str) -> object:
    if name == "priors":
        return import_module("simgen.priors")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'simgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
