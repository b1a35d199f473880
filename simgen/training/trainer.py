"""Train a force field on labelled geometries.

The loss is that of the errors users see: the mean length of the force error and the mean absolute
error of the energy per atom. The learning rate warms up and falls linearly to zero, with the steps
or with the time; an exponential moving average of the weights is what is validated, kept and
shipped. A run killed at any moment goes on from its last checkpoint with the same result as if it
had never stopped (to rounding in time, if that is what limits it): the order of the data is a pure
function of seed and epoch, and no unpickling is involved.

Energies of isolated atoms are thousands of electronvolts with some labels, of which float32 keeps
only millielectronvolts. What is trained is therefore a network without them; the weights file has
them in float64.
"""

from __future__ import annotations

import csv
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from multiprocessing.connection import Connection
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.multiprocessing import get_context
from torch.optim import Optimizer

from simgen.data.build import SPLITS
from simgen.devices import keep_freed_memory
from simgen.elements import SYMBOLS
from simgen.errors import ConfigError, InputError
from simgen.graph import molecule_pairs, neighbour_list
from simgen.models import ForceField, NetworkConfig, load_model, read_metadata, save_model
from simgen.molecules import MoleculeBatch
from simgen.training.optimiser import make_optimisers
from simgen.training.source import TrainingData


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Settings of a training run.

    Attributes
    ----------
    n_steps : int
        Optimiser steps; the learning rate reaches zero at the last one.
    max_seconds : float
        Time after which the run ends if it has not yet, with the learning rate at zero; 0 for no
        such limit. With one, the result depends on how fast the machine is.
    batch_atoms : int
        Atoms in a batch, at most; geometries are added until it is full.
    learning_rate : float
        Highest learning rate of Muon, which trains the matrices.
    adam_learning_rate : float
        The same of Adam, which trains everything else.
    weight_decay : float
        Share by which the matrices shrink in each step, per learning rate.
    n_warmup : int
        Steps over which the learning rates rise from zero.
    ema_decay : float
        Decay of the moving average of the weights, per step.
    energy_weight, force_weight : float
        Weights of the errors of energy (eV per atom) and force (eV/A).
    clip_norm : float
        Gradients longer than this are shortened to it.
    validate_every : int
        Steps between validations and checkpoints.
    patience : int
        Stop after so many validations without a lower error on the validation part.
    seed : int
        Of the initial weights and the order of the data.
    """

    n_steps: int = 20_000
    max_seconds: float = 0.0
    batch_atoms: int = 512
    learning_rate: float = 0.02
    adam_learning_rate: float = 5e-3
    weight_decay: float = 0.0
    n_warmup: int = 200
    ema_decay: float = 0.999
    energy_weight: float = 2.0
    force_weight: float = 1.0
    clip_norm: float = 10.0
    validate_every: int = 500
    patience: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value) or value < 0:
                raise ConfigError(f"expected a number >= 0 for {field.name}, got {value}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingConfig:
        """Build settings from a mapping; unknown keys raise :class:`ConfigError`."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"unknown keys {unknown}; expected {sorted(known)}")
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Errors:
    """Errors of energies and forces.

    Attributes
    ----------
    energy, force : float
        Mean absolute errors: eV per atom, and eV/A per component.
    energy_rmse, force_rmse : float
        Roots of the mean squared errors: eV per molecule, and eV/A per component.
    force_by_kind, force_by_element : dict
        The mean absolute error of forces by kind of geometry, and by element, eV/A.
    """

    energy: float
    force: float
    energy_rmse: float
    force_rmse: float
    force_by_kind: dict[str, float]
    force_by_element: dict[int, float]

    def to_card(self) -> dict[str, float]:
        """Return those of all geometries, with units in the names, for the model card."""
        return {
            "energy_mae_meV_per_atom": round(1e3 * self.energy, 3),
            "force_mae_meV_per_A": round(1e3 * self.force, 3),
            "energy_rmse_meV": round(1e3 * self.energy_rmse, 3),
            "force_rmse_meV_per_A": round(1e3 * self.force_rmse, 3),
        }


class Geometries:
    """A dataset's tensors, from which batches are cut."""

    def __init__(self, dataset: TrainingData, dtype: torch.dtype) -> None:
        self.counts = dataset.counts
        self.first_atom = dataset.first_atom
        self.kind = dataset.kind
        self._numbers = torch.from_numpy(dataset.numbers.astype(np.int64))
        self._positions = torch.from_numpy(dataset.positions).to(dtype)
        self._forces = torch.from_numpy(dataset.forces).to(dtype)
        self._energies = torch.from_numpy(dataset.energies)

    def batch(
        self, indices: NDArray[np.int64], device: torch.device
    ) -> tuple[MoleculeBatch, Tensor, Tensor]:
        """Geometries with their energies (n_geometries,) float64 and forces (n_atoms, 3)."""
        counts = torch.from_numpy(self.counts[indices])
        atoms = torch.from_numpy(
            np.concatenate(
                [
                    np.arange(self.first_atom[i], self.first_atom[i] + self.counts[i])
                    for i in indices
                ]
            )
        )
        molecules = MoleculeBatch(
            positions=self._positions[atoms],
            atomic_numbers=self._numbers[atoms],
            molecule_idx=torch.repeat_interleave(torch.arange(len(indices)), counts),
            n_molecules=len(indices),
        )
        energies = self._energies[torch.from_numpy(indices)]
        return molecules.to(device), energies.to(device), self._forces[atoms].to(device)


def fit_atomic_energies(dataset: TrainingData, elements: tuple[int, ...]) -> list[float]:
    """Energy in eV of each element that explains the training energies best (least squares)."""
    rows = np.flatnonzero(dataset.split == SPLITS.index("train"))
    owner = np.repeat(np.arange(len(dataset)), dataset.counts)
    composition = np.stack(
        [np.bincount(owner[dataset.numbers == z], minlength=len(dataset)) for z in elements], axis=1
    )
    solution, *_ = np.linalg.lstsq(
        composition[rows].astype(float), dataset.energies[rows], rcond=None
    )
    return [float(value) for value in solution]


def energies_of_atoms(
    dataset: TrainingData, elements: tuple[int, ...], known: Mapping[int, float] | None = None
) -> Tensor:
    """Energies in eV of isolated atoms of the elements, float64: the known ones, or fitted ones."""
    if not known:
        known = dict(zip(elements, fit_atomic_energies(dataset, elements), strict=True))
    if missing := [SYMBOLS[z] for z in elements if z not in known]:
        raise InputError(
            "expected the energy of an isolated atom of every element or of none, got none of "
            f"{' '.join(missing)}"
        )
    return torch.tensor([known[z] for z in elements], dtype=torch.float64)


def initial_model(
    dataset: TrainingData, config: NetworkConfig, seed: int, atomic_energies: Tensor | None = None
) -> ForceField:
    """An untrained network with scale, number of neighbours and atomic energies from the data.

    ``atomic_energies`` are those of :func:`energies_of_atoms`, which are also the default.
    """
    geometries = Geometries(dataset, torch.float32)
    train = np.flatnonzero(dataset.split == SPLITS.index("train"))
    sample = np.random.default_rng(seed).permutation(train)[:512]
    batch, _, forces = geometries.batch(sample, torch.device("cpu"))
    edges = neighbour_list(batch.positions, molecule_pairs(batch), config.r_max)
    if atomic_energies is None:
        atomic_energies = energies_of_atoms(dataset, config.elements)
    return ForceField(
        replace(config, avg_n_neighbours=round(edges.shape[1] / batch.n_atoms, 3)),
        atomic_energies=atomic_energies.tolist(),
        scale=float(forces.square().mean().sqrt()),
        seed=seed,
    )


def batches_of_epoch(
    indices: NDArray[np.int64], counts: NDArray[np.int64], batch_atoms: int, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """Shuffle the geometries and cut them into batches of at most ``batch_atoms`` atoms.

    A pure function of its arguments, so that a resumed run sees the same batches.
    """
    order = np.random.default_rng([seed, epoch]).permutation(indices)
    filled = np.cumsum(counts[order])
    batches, start, offset = [], 0, 0
    while start < len(order):
        stop = max(start + 1, int(np.searchsorted(filled, offset + batch_atoms, side="right")))
        batches.append(order[start:stop])
        start, offset = stop, int(filled[stop - 1])
    return batches


def evaluate(
    model: ForceField,
    dataset: TrainingData,
    split: str,
    *,
    batch_atoms: int = 2048,
    max_geometries: int | None = None,
) -> Errors:
    """Errors of a model on a part of the dataset; the first ``max_geometries`` of it if given."""
    indices = np.flatnonzero(dataset.split == SPLITS.index(split))[:max_geometries]
    if not len(indices):
        raise InputError(f"expected geometries in the {split} part of the dataset, it has none")
    dtype, device = model.embedding.dtype, model.embedding.device
    geometries = Geometries(dataset, dtype)
    energy_errors, force_errors, counts, kinds, numbers = [], [], [], [], []
    for chunk in batches_of_epoch(indices, dataset.counts, batch_atoms, 0, 0):
        batch, energies, forces = geometries.batch(chunk, device)
        predicted, predicted_forces = model.energy_and_forces(batch)
        energy_errors.append((predicted - energies).cpu())
        force_errors.append((predicted_forces - forces).cpu())
        counts.append(batch.counts.cpu())
        kinds.append(torch.from_numpy(np.repeat(dataset.kind[chunk], dataset.counts[chunk])))
        numbers.append(batch.atomic_numbers.cpu())
    energy, components = torch.cat(energy_errors), torch.cat(force_errors)
    kind, number = torch.cat(kinds), torch.cat(numbers)
    force = components.abs().mean(dim=1)
    return Errors(
        energy=float((energy.abs() / torch.cat(counts)).mean()),
        force=float(force.mean()),
        energy_rmse=float(energy.square().mean().sqrt()),
        force_rmse=float(components.square().mean().sqrt()),
        force_by_kind={
            dataset.kinds[int(k)]: float(force[kind == k].mean()) for k in np.unique(kind.numpy())
        },
        force_by_element={
            int(z): float(force[number == z].mean()) for z in np.unique(number.numpy())
        },
    )


def record_errors(weights: Path, dataset: TrainingData) -> dict[str, dict[str, float]]:
    """Evaluate a model on what it was not trained on, and note the errors in its model card.

    Returns
    -------
    dict
        :meth:`Errors.to_card` of the parts ``valid`` and ``test``, as far as there are any.
    """
    model = load_model(weights, dtype=torch.float64)
    parts = [part for i, part in enumerate(SPLITS) if i and (dataset.split == i).any()]
    errors = {part: evaluate(model, dataset, part).to_card() for part in parts}
    of_atoms = model.atomic_energies
    model.to(torch.float32).atomic_energies = of_atoms
    save_model(model, weights, read_metadata(weights) | {"errors": errors})
    return errors


@dataclass(slots=True)
class _State:
    """What a checkpoint holds: enough to go on as if nothing had happened."""

    step: int
    best_error: float
    n_bad: int
    seconds: float

    def save(
        self, path: Path, model: ForceField, ema: dict[str, Tensor], optimisers: list[Optimizer]
    ) -> None:
        tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in ema.items()}
        for name, parameter in model.named_parameters():
            for optimiser in optimisers:
                for key, value in optimiser.state.get(parameter, {}).items():
                    tensors[f"optimiser.{name}.{key}"] = value
        partial = path.with_suffix(".part")
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()},
            partial,
            {"state": json.dumps(asdict(self))},
        )
        partial.replace(path)

    @classmethod
    def load(
        cls, path: Path, model: ForceField, ema: dict[str, Tensor], optimisers: list[Optimizer]
    ) -> _State:
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            state = cls(**json.loads(file.metadata()["state"]))
        model.load_state_dict(_with_prefix(tensors, "model."))
        for name, value in _with_prefix(tensors, "ema.").items():
            ema[name].copy_(value)
        for name, parameter in model.named_parameters():
            # No other name begins with this one and a dot: names are those of whole tensors.
            entry = _with_prefix(tensors, f"optimiser.{name}.")
            for optimiser in optimisers:
                if entry and any(parameter is p for p in optimiser.param_groups[0]["params"]):
                    optimiser.state[parameter] = entry
        return state


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def train(
    dataset: TrainingData,
    network: NetworkConfig,
    config: TrainingConfig,
    out: Path,
    *,
    atomic_energies: Mapping[int, float] | None = None,
    device: torch.device | str = "cpu",
    n_processes: int = 1,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> Path:
    """Train a force field; returns the weights file with the lowest validation error.

    Writes ``out/model.safetensors`` (best moving average so far), ``out/checkpoint.safetensors``,
    ``out/metrics.csv`` and ``out/training.png``. Called again with the same folder it goes on
    where it stopped.

    Parameters
    ----------
    dataset : TrainingData
        Labelled geometries; those of its ``train`` part are learned, those of ``valid`` decide
        which weights are kept and when to stop.
    network, config
        What to train and how.
    out : Path
        Folder of the run.
    atomic_energies : mapping, optional
        Energy in eV of an isolated atom of each element, by atomic number; by default they are
        fitted to the energies.
    device : torch.device or str
        Where to compute.
    n_processes : int
        Processes among which each batch is divided, on a CPU; the result is the same to rounding.
    progress : callable, optional
        Called at every step with (step, n_steps, latest metrics); these have the seconds that the
        run has taken as ``elapsed``.

    Raises
    ------
    ConfigError
        If the folder holds a run with other settings.
    """
    device = torch.device(device)
    if n_processes > 1 and device.type != "cpu":
        raise ConfigError(f"expected one process on {device.type}, got {n_processes}")
    keep_freed_memory()
    out.mkdir(parents=True, exist_ok=True)
    settings = {
        "network": json.loads(network.to_json()),
        "training": asdict(config),
        "dataset": dataset.checksum(),
    }
    _claim(out / "settings.json", settings)

    of_atoms = energies_of_atoms(dataset, network.elements, atomic_energies).to(device)
    model = initial_model(dataset, network, config.seed, of_atoms.cpu()).to(device)
    optimisers = make_optimisers(
        model, config.learning_rate, config.adam_learning_rate, config.weight_decay
    )
    highest_rates = [optimiser.param_groups[0]["lr"] for optimiser in optimisers]
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    checkpoint = out / "checkpoint.safetensors"
    state = _State(step=0, best_error=math.inf, n_bad=0, seconds=0.0)
    if checkpoint.exists():
        state = _State.load(checkpoint, model, average, optimisers)
        _drop_metrics_after(out / "metrics.csv", state.step)
    model.atomic_energies.zero_()
    geometries = Geometries(dataset, torch.float32)
    start = time.monotonic() - state.seconds
    losses: list[Tensor] = []
    latest: dict[str, float] = {}
    with _helpers(n_processes - 1, model, of_atoms, dataset, config) as helpers:
        for batch_indices in _batches_from(state.step, dataset, config):
            rate = schedule(state.step, config, time.monotonic() - start)
            if rate <= 0.0 or state.n_bad >= config.patience:
                break
            for optimiser, highest in zip(optimisers, highest_rates, strict=True):
                optimiser.param_groups[0]["lr"] = highest * rate
            by_size = batch_indices[np.argsort(dataset.counts[batch_indices], kind="stable")]
            total = len(by_size), int(dataset.counts[by_size].sum())
            for i, helper in enumerate(helpers, start=1):
                helper.start(by_size[i::n_processes], total)
            model.zero_grad(set_to_none=True)
            loss = _backward(model, of_atoms, geometries, by_size[::n_processes], total, config)
            for helper in helpers:
                loss = loss + helper.finish()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            for optimiser in optimisers:
                optimiser.step()
            state.step += 1
            decay = min(config.ema_decay, state.step / (state.step + 10.0))
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    average[name].lerp_(parameter, 1.0 - decay)
            losses.append(loss)
            seconds = time.monotonic() - start
            if progress:
                progress(state.step, config.n_steps, latest | {"elapsed": seconds})
            is_last = schedule(state.step, config, seconds) <= 0.0
            if state.step % config.validate_every == 0 or is_last:
                averaged = ForceField(model.config)
                averaged.load_state_dict(model.state_dict() | average)
                averaged.atomic_energies = of_atoms.cpu()
                precise = ForceField(model.config).to(device, torch.float64)
                precise.load_state_dict(averaged.state_dict())
                errors = evaluate(precise, dataset, "valid", max_geometries=1500)
                # Of a run that is over the time is that of its last step, so that it stays over.
                state.seconds = seconds if is_last else time.monotonic() - start
                score = config.energy_weight * errors.energy + config.force_weight * errors.force
                state.n_bad = 0 if score < state.best_error else state.n_bad + 1
                latest = {
                    "step": state.step,
                    "seconds": round(state.seconds, 1),
                    "learning_rate": config.learning_rate * rate,
                    "train_loss": float(torch.stack(losses).mean()),
                    "valid_energy_mae_meV_per_atom": 1e3 * errors.energy,
                    "valid_force_mae_meV_per_A": 1e3 * errors.force,
                    "valid_energy_rmse_meV": 1e3 * errors.energy_rmse,
                    "valid_force_rmse_meV_per_A": 1e3 * errors.force_rmse,
                }
                losses.clear()
                if score < state.best_error:
                    state.best_error = score
                    save_model(averaged, out / "model.safetensors", {"training": settings | latest})
                _append_metrics(out / "metrics.csv", latest)
                state.save(checkpoint, model, average, optimisers)
                plot_metrics(out / "metrics.csv", out / "training.png")
    return out / "model.safetensors"


def _backward(
    model: ForceField,
    of_atoms: Tensor,
    geometries: Geometries,
    indices: NDArray[np.int64],
    total: tuple[int, int],
    config: TrainingConfig,
) -> Tensor:
    """Add the gradient of some geometries' share of the loss to the parameters' gradients.

    ``total`` is the number of geometries and atoms of the whole batch, so that the shares add up
    to the loss of the batch however it is cut. ``of_atoms`` are the energies of isolated atoms, of
    which the model has none.
    """
    if not len(indices):
        return torch.zeros(())
    batch, energies, forces = geometries.batch(indices, model.embedding.device)
    energies = energies - batch.sum_per_molecule(of_atoms[model.elements_of(batch)])
    predicted, predicted_forces = model.energy_and_forces(batch, create_graph=True)
    energy_error = ((predicted - energies).abs() / batch.counts).sum() / total[0]
    # The small number keeps the gradient finite where the error vanishes.
    lengths = (predicted_forces - forces).square().sum(dim=1).add(1e-8).sqrt()
    loss = config.energy_weight * energy_error + config.force_weight * lengths.sum() / total[1]
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


class _Helper:
    """A process that computes the gradient of its share of each batch, with one thread.

    On a CPU two processes are much faster than two threads: the tensors are small, and threads
    spend their time waiting for each other.
    """

    def __init__(
        self, model: ForceField, of_atoms: Tensor, dataset: TrainingData, config: TrainingConfig
    ) -> None:
        self._model = model.share_memory()
        self._gradients = [_shared(torch.zeros_like(p)) for p in model.parameters()]
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_help,
            args=(theirs, model, of_atoms, self._gradients, dataset, config),
            daemon=True,
        )
        with _ignored_interrupts():
            self._process.start()

    def start(self, indices: NDArray[np.int64], total: tuple[int, int]) -> None:
        """Begin with a share of a batch."""
        self._connection.send((indices, total))

    def finish(self) -> Tensor:
        """Wait for the share, add its gradient to the model's, and return its loss."""
        loss = torch.tensor(self._connection.recv())
        for parameter, gradient in zip(self._model.parameters(), self._gradients, strict=True):
            if parameter.grad is not None:
                parameter.grad += gradient
            else:
                parameter.grad = gradient.clone()
        return loss

    def stop(self) -> None:
        """End the process."""
        self._connection.send(None)
        self._process.join()


@contextmanager
def _helpers(
    n_helpers: int,
    model: ForceField,
    of_atoms: Tensor,
    dataset: TrainingData,
    config: TrainingConfig,
) -> Iterator[list[_Helper]]:
    """Start helper processes, and end them however the block ends."""
    with ExitStack() as stack:
        helpers = []
        for _ in range(n_helpers):
            helper = _Helper(model, of_atoms, dataset, config)
            stack.callback(helper.stop)
            helpers.append(helper)
        yield helpers


@contextmanager
def _ignored_interrupts() -> Iterator[None]:
    """Let processes that the block starts ignore Ctrl-C: what happens then is the parent's affair.

    They inherit it, so that it holds while they still import what they need.
    """
    if current_thread() is not main_thread():  # signals are not this thread's affair
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _shared(tensor: Tensor) -> Tensor:
    tensor.share_memory_()  # type: ignore[no-untyped-call]
    return tensor


def _help(
    connection: Connection,
    model: ForceField,
    of_atoms: Tensor,
    gradients: list[Tensor],
    dataset: TrainingData,
    config: TrainingConfig,
) -> None:
    """Body of a helper process; the model's parameters are in memory shared with the trainer."""
    torch.set_num_threads(1)
    keep_freed_memory()
    geometries = Geometries(dataset, torch.float32)
    while (work := connection.recv()) is not None:
        model.zero_grad(set_to_none=True)
        loss = _backward(model, of_atoms, geometries, work[0], work[1], config)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            if parameter.grad is None:
                gradient.zero_()
            else:
                gradient.copy_(parameter.grad)
        connection.send(float(loss))


def schedule(step: int, config: TrainingConfig, seconds: float = 0.0) -> float:
    """Learning rates relative to the highest: linear rise, then linear fall to zero.

    They fall with the steps or, if that is faster, with the ``seconds`` that the run has taken.
    """
    warm = min(1.0, (step + 1) / max(1, config.n_warmup))
    left = 1.0 - step / max(1, config.n_steps)
    if config.max_seconds:
        left = min(left, 1.0 - seconds / config.max_seconds)
    return warm * max(0.0, left)


def _claim(path: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a run, or see that those of the run in the folder are the same."""
    if path.exists():
        try:
            stored = json.loads(path.read_text())
            # What was no setting yet when they were written has its default value.
            network = NetworkConfig.from_dict(stored["network"])
            stored["network"] = json.loads(network.to_json())
            stored["training"] = asdict(TrainingConfig.from_dict(stored["training"]))
        except (ValueError, KeyError, TypeError):
            stored = None
        if stored != settings:
            raise ConfigError(
                "expected an empty folder or a run with the same settings, "
                f"{path.parent} holds another; choose another folder"
            )
    path.write_text(json.dumps(settings, indent=1) + "\n")


def _batches_from(
    step: int, dataset: TrainingData, config: TrainingConfig
) -> Iterator[NDArray[np.int64]]:
    """Batches of all epochs, without those of the first ``step`` steps."""
    indices = np.flatnonzero(dataset.split == SPLITS.index("train"))
    if not len(indices):
        raise InputError("expected geometries in the train part of the dataset, it has none")
    epoch = 0
    while True:
        batches = batches_of_epoch(indices, dataset.counts, config.batch_atoms, config.seed, epoch)
        yield from batches[step:]
        step = max(0, step - len(batches))
        epoch += 1


def _append_metrics(path: Path, row: dict[str, float]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def _drop_metrics_after(path: Path, step: int) -> None:
    """Forget what a killed run wrote after its last checkpoint."""
    header, *rows = path.read_text().splitlines()
    kept = [row for row in rows if int(row.split(",")[0]) <= step]
    path.write_text("\n".join([header, *kept]) + "\n")


def plot_metrics(metrics: Path, picture: Path) -> None:
    """Draw the validation errors of a run against its steps."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2),
        ("valid_force_mae_meV_per_A", "valid_energy_mae_meV_per_atom"),
        ("force MAE (meV/Å)", "energy MAE (meV/atom)"),
        strict=True,
    ):
        axes.semilogy([int(row["step"]) for row in rows], [float(row[key]) for row in rows])
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.grid(alpha=0.3, which="both")
    figure.suptitle("Errors on the validation part")
    figure.savefig(picture, dpi=120)
