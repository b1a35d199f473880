"""Build the training set: parallel, resumable, deterministic.

The work is cut into shards of a fixed list of tasks. Each finished shard is one file, written
atomically; a second run does only what is missing and joins the shards at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simgen.data.recipe import KINDS, Recipe, Task, label_task, make_tasks
from simgen.errors import LoadError
from simgen.io import atomic_path

SHARD_SIZE = 40
"""Tasks in a shard: small enough that an interruption costs little."""

SPLITS: tuple[str, ...] = ("train", "valid", "test")


@dataclass(frozen=True, slots=True)
class Dataset:
    """Labelled geometries, atoms concatenated.

    Attributes
    ----------
    counts : array, shape (n_geometries,), int64
        Atoms of each geometry.
    numbers : array, shape (n_atoms,), uint8
        Atomic numbers.
    positions : array, shape (n_atoms, 3), float64
        In angstrom.
    forces : array, shape (n_atoms, 3), float32
        In eV/A.
    energies : array, shape (n_geometries,), float64
        In eV.
    kind, split, task : arrays, shape (n_geometries,), int64
        Index into ``KINDS``, ``SPLITS`` and ``keys``.
    keys : array of str, shape (n_tasks,)
        SMILES of each task.
    origins : array of str, shape (n_tasks,)
        Where each task's molecule comes from.
    """

    counts: NDArray[np.int64]
    numbers: NDArray[np.uint8]
    positions: NDArray[np.float64]
    forces: NDArray[np.float32]
    energies: NDArray[np.float64]
    kind: NDArray[np.int64]
    split: NDArray[np.int64]
    task: NDArray[np.int64]
    keys: NDArray[np.str_]
    origins: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def first_atom(self) -> NDArray[np.int64]:
        """Index of the first atom of each geometry, shape (n_geometries,)."""
        return np.cumsum(self.counts) - self.counts

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the kinds of geometries."""
        return tuple(kind.value for kind in KINDS)

    def checksum(self) -> str:
        """SHA-256 over the content, positions and labels rounded to 1e-4 A, eV and eV/A."""
        digest = hashlib.sha256()
        for name in ("counts", "numbers", "kind", "split"):
            digest.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        for name in ("positions", "forces", "energies"):
            rounded = np.rint(getattr(self, name).astype(np.float64) * 1e4).astype(np.int64)
            digest.update(rounded.tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write as an uncompressed ``.npz``, atomically."""
        _save_atomically(path, {name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def load(cls, path: Path) -> Dataset:
        """Read what :meth:`save` wrote.

        Raises
        ------
        LoadError
            If the file is absent or is not a dataset.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(**{name: file[name] for name in cls.__slots__})
        except FileNotFoundError:
            raise LoadError(
                f"expected a dataset at {path}, found none; make it with: simgen data build"
            ) from None
        except (OSError, ValueError, KeyError) as error:
            raise LoadError(f"expected a simgen dataset, {path} is not one: {error}") from None


def _save_atomically(path: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def build_dataset(
    out: Path,
    recipe: Recipe = Recipe(),  # noqa: B008 -- frozen
    *,
    n_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Label every task of a recipe and write ``out/dataset.npz`` and ``out/dataset.json``.

    Parameters
    ----------
    out : Path
        Folder; finished shards in it are not computed again if they are of the same recipe.
    recipe : Recipe
        What to label.
    n_workers : int, optional
        Processes; default one per available core.
    progress : callable, optional
        Called with (shards done, shards in all).

    Raises
    ------
    LoadError
        If the folder holds shards of another recipe.
    """
    out.mkdir(parents=True, exist_ok=True)
    recipe_file = out / "recipe.json"
    if recipe_file.exists() and not _same_tasks(json.loads(recipe_file.read_text()), recipe):
        raise LoadError(
            f"expected an empty folder or one of the same recipe, {out} holds another recipe; "
            "choose another folder"
        )
    recipe_file.write_text(json.dumps(asdict(recipe), indent=1))
    tasks = make_tasks(recipe)
    shards = [tasks[i : i + SHARD_SIZE] for i in range(0, len(tasks), SHARD_SIZE)]
    paths = [out / "shards" / f"{i:05d}.npz" for i in range(len(shards))]
    (out / "shards").mkdir(exist_ok=True)
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    done = len(shards) - len(missing)
    if progress:
        progress(done, len(shards))
    os.environ["OMP_NUM_THREADS"] = "1"  # for the workers: one process per core is faster
    with ProcessPoolExecutor(n_workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_build_shard, shards[i], i * SHARD_SIZE, paths[i]) for i in missing]
        for future in as_completed(futures):
            future.result()
            done += 1
            if progress:
                progress(done, len(shards))
    dataset = _join(paths, tasks)
    dataset.save(out / "dataset.npz")
    summary = {
        "recipe": asdict(recipe),
        "n_geometries": len(dataset),
        "n_atoms": int(dataset.counts.sum()),
        "n_by_kind": {k.value: int((dataset.kind == i).sum()) for i, k in enumerate(KINDS)},
        "n_by_split": {s: int((dataset.split == i).sum()) for i, s in enumerate(SPLITS)},
        "checksum": dataset.checksum(),
    }
    (out / "dataset.json").write_text(json.dumps(summary, indent=1) + "\n")
    return dataset


def _same_tasks(stored: dict[str, int | None], recipe: Recipe) -> bool:
    """Whether a stored recipe differs from this one in its number of tasks at most."""
    return stored | {"n_tasks": None} == asdict(recipe) | {"n_tasks": None}


def _build_shard(tasks: list[Task], first_task: int, path: Path) -> None:
    labelled = [
        (first_task + i, task, geometry)
        for i, task in enumerate(tasks)
        for geometry in label_task(task)
    ]
    geometries = [geometry for _, _, geometry in labelled]
    empty = np.zeros((0, 3))
    _save_atomically(
        path,
        {
            "counts": np.array([len(g.numbers) for g in geometries], dtype=np.int64),
            "numbers": np.concatenate([np.zeros(0), *(g.numbers for g in geometries)]).astype(
                np.uint8
            ),
            "positions": np.concatenate([empty, *(g.positions for g in geometries)]),
            "forces": np.concatenate([empty, *(g.forces for g in geometries)]).astype(np.float32),
            "energies": np.array([g.energy for g in geometries], dtype=np.float64),
            "kind": np.array([KINDS.index(g.kind) for g in geometries], dtype=np.int64),
            "split": np.array([SPLITS.index(t.split) for _, t, _ in labelled], dtype=np.int64),
            "task": np.array([i for i, _, _ in labelled], dtype=np.int64),
        },
    )


def _join(paths: list[Path], tasks: list[Task]) -> Dataset:
    parts = []
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            parts.append({name: file[name] for name in file.files})
    return Dataset(
        **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
        keys=np.array([task.key for task in tasks]),
        origins=np.array([task.origin.value for task in tasks]),
    )
