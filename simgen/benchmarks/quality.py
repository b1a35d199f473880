"""How good generated molecules are, judged by programs that had no part in making them.

Every attempt is in every denominator. *Valid* means one fragment, closed shell, neutral, sanitised,
and the bond graph of the SDF kept when GFN2-xTB relaxes the final geometry.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem

from simgen import io
from simgen.finishing.status import Status
from simgen.generation import GenerationResult, Generator
from simgen.priors import Prior
from simgen.validation import check_gfn2, check_posebusters


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the judges say of one attempt.

    Attributes
    ----------
    name : str
        Of the attempt.
    status : Status
        What the program itself reported.
    smiles : str or None
        The molecule, if there is one.
    valid : bool
        As defined at the top of this module.
    posebusters : bool
        Whether it passes every test of the stock ``mol`` configuration.
    failed_tests : tuple of str
        PoseBusters tests that it fails.
    relaxation_energy : float
        Energy released by GFN2-xTB in kcal/mol; infinite where there is no molecule.
    rmsd : float
        Of the heavy atoms in that relaxation, in angstrom; infinite where there is no molecule.
    is_unique : bool
        Valid, and the first of its bond graph among the attempts.
    """

    name: str
    status: Status
    smiles: str | None
    valid: bool
    posebusters: bool
    failed_tests: tuple[str, ...]
    relaxation_energy: float
    rmsd: float
    is_unique: bool


@dataclass(frozen=True, slots=True)
class Scores:
    """A set of attempts in figures; shares are of all attempts, ``unique`` of the valid ones.

    ``relaxation_energy`` is the median over all attempts in kcal/mol, those without a molecule
    counting as infinite.
    """

    n_attempts: int
    valid: float
    posebusters: float
    unique: float
    relaxation_energy: float
    statuses: dict[str, int]
    failed_tests: dict[str, int]
    seconds: float


def judge(result: GenerationResult, n_workers: int | None = None) -> list[Judgement]:
    """Judge every attempt of a run, in parallel processes."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for the workers: one process per core is faster
    with ProcessPoolExecutor(n_workers, mp_context=get_context("spawn")) as pool:
        verdicts = list(pool.map(_judge, [attempt.mol for attempt in result.attempts]))
    judgements = []
    for attempt, (kept, energy, rmsd, failed) in zip(result.attempts, verdicts, strict=True):
        report = attempt.report
        sound = all((report.connected, report.closed_shell, report.neutral, report.sanitised))
        valid = sound and kept
        judgements.append(
            Judgement(
                name=report.name,
                status=report.status,
                smiles=report.smiles,
                valid=valid,
                posebusters=failed is not None and not failed,
                failed_tests=tuple(failed or ()),
                relaxation_energy=energy,
                rmsd=rmsd,
                is_unique=valid and report.duplicate_of is None,
            )
        )
    return judgements


def _judge(mol: Chem.Mol | None) -> tuple[bool, float, float, list[str] | None]:
    """Graph kept, relaxation energy, RMSD and failed PoseBusters tests of a finished molecule."""
    if mol is None or mol.GetNumConformers() == 0:
        return False, math.inf, math.inf, None
    gfn2 = check_gfn2(mol)
    energy = gfn2.relaxation_energy
    failed = [name for name, passed in check_posebusters(mol).items() if not passed]
    if not math.isfinite(energy):
        return False, math.inf, math.inf, failed
    return gfn2.graph_kept, energy, gfn2.rmsd, failed


def summarise(judgements: Sequence[Judgement], seconds: float) -> Scores:
    """Figures of a set of judgements; ``seconds`` is what making the molecules took."""
    n_attempts = len(judgements)
    n_valid = sum(j.valid for j in judgements)
    return Scores(
        n_attempts=n_attempts,
        valid=n_valid / n_attempts,
        posebusters=sum(j.posebusters for j in judgements) / n_attempts,
        unique=sum(j.is_unique for j in judgements) / max(1, n_valid),
        relaxation_energy=float(np.median([j.relaxation_energy for j in judgements])),
        statuses=dict(Counter(str(j.status) for j in judgements).most_common()),
        failed_tests=dict(Counter(t for j in judgements for t in j.failed_tests).most_common()),
        seconds=seconds,
    )


def benchmark(
    generator: Generator,
    n_heavy_atoms: int,
    n_attempts: int,
    seed: int,
    out: Path,
    *,
    prior: Prior | None = None,
    n_workers: int = 1,
    callback: Callable[[float, int], None] | None = None,
) -> Scores:
    """Generate with default settings, judge, and write ``judgements.csv`` and ``scores.json``.

    The run in ``out`` is resumed if there is one.
    """
    start = time.perf_counter()
    result = generator.generate(
        n_attempts,
        n_heavy_atoms,
        prior=prior,
        seed=seed,
        n_workers=n_workers,
        out=out,
        resume=(out / "attempts.jsonl").exists(),
        callback=callback,
    )
    seconds = time.perf_counter() - start
    judgements = judge(result, n_workers)
    scores = summarise(judgements, seconds)
    rows: list[dict[str, Any]] = [
        asdict(j) | {"failed_tests": " ".join(j.failed_tests)} for j in judgements
    ]
    io.write_csv(out / "judgements.csv", rows, list(rows[0]))
    io.write_json(out / "scores.json", asdict(scores))
    return scores
