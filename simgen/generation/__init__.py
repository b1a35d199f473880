"""Generation end to end: from a configuration to finished molecules with an honest report.

A run is a list of attempts. Attempt k draws random numbers of its own (:mod:`simgen.noise`), so it
gives the same molecule in whatever chunk it is computed. Attempts go through in chunks, and each
finished chunk is on disk before the next one starts.
"""

from simgen.generation.config import MAX_HEAVY_ATOMS, GenerationConfig
from simgen.generation.generator import Generator
from simgen.generation.journal import JOURNAL, read_attempts
from simgen.generation.provenance import model_digest, versions
from simgen.generation.result import Attempt, GenerationResult

__all__ = [
    "JOURNAL",
    "MAX_HEAVY_ATOMS",
    "Attempt",
    "GenerationConfig",
    "GenerationResult",
    "Generator",
    "model_digest",
    "read_attempts",
    "versions",
]
