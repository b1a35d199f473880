"""Training of force fields."""

from simgen.training.trainer import (
    Errors,
    TrainingConfig,
    batches_of_epoch,
    evaluate,
    fit_atomic_energies,
    initial_model,
    plot_metrics,
    schedule,
    train,
)

__all__ = [
    "Errors",
    "TrainingConfig",
    "batches_of_epoch",
    "evaluate",
    "fit_atomic_energies",
    "initial_model",
    "plot_metrics",
    "schedule",
    "train",
]
