"""The journal of a run: its finished attempts on disk, from which it can be resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ase
import torch

from simgen import io
from simgen.errors import ConfigError, LoadError, SimgenError
from simgen.generation.result import Attempt, attempt_from_json, attempt_name, attempt_to_json
from simgen.sampling import Progress

JOURNAL = "attempts.jsonl"
"""File in the output folder that holds the finished attempts: a header, then a line per chunk."""

_LONGEST_VALUE = 80
"""Values of more characters than this are not shown in messages."""


class RunFolder:
    """The output folder of a run, with the journal of its finished attempts.

    The journal is appended to, a line per chunk. A line that an interruption cut short is the last
    one; it is dropped when the run is resumed, and its chunk is computed again.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self.journal = path / JOURNAL
        self.lines: list[dict[str, Any]] = []
        if self.journal.exists() and not resume:
            raise ConfigError(
                f"{path} already holds a run; go on with it (--resume) or choose another folder"
            )
        if resume:
            self.lines = self._read()

    @property
    def seed(self) -> int | None:
        """Seed of the run in the folder, if there is one."""
        return int(self.lines[0]["config"]["seed"]) if self.lines else None

    def _read(self) -> list[dict[str, Any]]:
        try:
            text = self.journal.read_text()
        except OSError:
            raise LoadError(f"no run to resume in {self.path}: there is no {JOURNAL}") from None
        lines = text.split("\n")[:-1]
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            raise LoadError(f"{self.journal} is damaged; start again in another folder") from None

    def open(
        self, identity: dict[str, Any], timings: dict[str, float]
    ) -> tuple[dict[int, Attempt], dict[str, float]]:
        """Check that the journal is of this run, or begin one; return what is finished."""
        if self.lines:
            _check_identity(self.lines[0], identity, self.path)
        else:
            self.lines = [identity]
        # Without the line that was cut short, if there is one.
        io.write_text(self.journal, "".join(json.dumps(line) + "\n" for line in self.lines))
        attempts = [attempt_from_json(a) for line in self.lines[1:] for a in line["attempts"]]
        if len(self.lines) > 1:
            timings = self.lines[-1]["timings"]
        return {attempt.index: attempt for attempt in attempts}, dict(timings)

    def append(self, attempts: Sequence[Attempt], timings: Mapping[str, float]) -> None:
        """Save a finished chunk."""
        line = {"timings": timings, "attempts": [attempt_to_json(a) for a in attempts]}
        try:
            with self.journal.open("a") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SimgenError(
                f"cannot write {self.journal}: {error.strerror}; free some space, then --resume"
            ) from None


def write_trajectories(folder: Path, chunk: Sequence[int], frames: Sequence[Progress]) -> None:
    """Write the path of each attempt of a chunk to a file of its own in a folder."""
    paths = [frame.molecules.to("cpu", torch.float64).split() for frame in frames]
    for place, index in enumerate(chunk):
        atoms = [
            ase.Atoms(
                path[place].atomic_numbers.numpy(),
                path[place].positions.numpy(),
                info={"step": frame.step, "sigma": frame.sigma},
            )
            for frame, path in zip(frames, paths, strict=True)
        ]
        io.write_xyz(folder / f"{attempt_name(index)}.xyz", atoms)


def read_attempts(folder: Path) -> tuple[dict[str, Any], dict[int, Attempt]]:
    """Read the configuration and the finished attempts, by their index, of a run.

    Raises
    ------
    LoadError
        If there is no journal, or it is damaged.
    """
    header, *chunks = RunFolder(folder, resume=True).lines or [{}]
    found = [attempt_from_json(values) for chunk in chunks for values in chunk["attempts"]]
    return header.get("config", {}), {attempt.index: attempt for attempt in found}


def _check_identity(found: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    """Raise a ConfigError that names the first difference between two runs."""
    theirs, ours = _named(found), _named(expected)
    for key, there, here in _differences(theirs, ours):
        raise ConfigError(
            f"the run in {path} has another configuration: {key} is {there} there and {here} "
            "here; use the same options to resume, or another folder"
        )


def _named(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration and checksums under the names that messages have for them."""
    return {
        **identity["config"],
        "weights": identity["model"],
        "weights of the descriptor": identity.get("descriptor"),
        "molecules": identity["reference"],
    }


def _differences(
    theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    """Names and values of what differs, parts of parts included."""
    for key, here in ours.items():
        there = theirs.get(key)
        if isinstance(here, dict) and isinstance(there, dict):
            yield from _differences(there, here)
        elif there != here:
            yield key, _short(there), _short(here)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST_VALUE else "something else"
