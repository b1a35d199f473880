"""Training of force fields."""

from simgen.training.source import Structures, TrainingData, read_structures
from simgen.training.trainer import (
    Errors,
    TrainingConfig,
    batches_of_epoch,
    evaluate,
    fit_atomic_energies,
    initial_model,
    plot_metrics,
    record_errors,
    schedule,
    train,
)

__all__ = [
    "Errors",
    "Structures",
    "TrainingConfig",
    "TrainingData",
    "batches_of_epoch",
    "evaluate",
    "fit_atomic_energies",
    "initial_model",
    "plot_metrics",
    "read_structures",
    "record_errors",
    "schedule",
    "train",
]
