"""Times mace-torch, in an interpreter that has it.

    python -m simgen.benchmarks.mace WEIGHTS MOLECULES

prints energies, the norm of all forces, and seconds a call as JSON. The weights are ours, converted
in memory; the molecules an NPZ file with ``positions``, ``atomic_numbers`` and ``molecule_idx``.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch

from simgen.graph import molecule_pairs, neighbour_list
from simgen.models import load_model
from simgen.models.mace_interop import to_mace
from simgen.molecules import MoleculeBatch

N_CALLS = 10
"""Calls that are timed; the fastest counts, since whatever else a machine does only delays."""


def seconds_per_call(function: Callable[[], object], n_calls: int = N_CALLS) -> float:
    """Seconds of the fastest of several calls, after one that is not counted."""
    function()
    seconds = []
    for _ in range(n_calls):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def time_mace(weights: str, molecules: str) -> dict[str, object]:
    """Evaluate energies and forces of molecules with mace-torch, neighbours included."""
    torch.set_num_threads(1)
    model = load_model(weights)
    mace = to_mace(model)
    arrays = np.load(molecules)
    batch = MoleculeBatch(
        torch.from_numpy(arrays["positions"]).to(model.embedding.dtype),
        torch.from_numpy(arrays["atomic_numbers"]),
        torch.from_numpy(arrays["molecule_idx"]),
    )
    pairs = molecule_pairs(batch)

    def call() -> dict[str, torch.Tensor]:
        edges = neighbour_list(batch.positions, pairs, model.r_max)
        zeros = batch.positions.new_zeros(edges.shape[1], 3)
        element = model.elements_of(batch)
        one_hot = torch.nn.functional.one_hot(element, len(model.elements))
        data = {
            "positions": batch.positions.clone(),
            "node_attrs": one_hot.to(batch.positions.dtype),
            "edge_index": edges,
            "shifts": zeros,
            "unit_shifts": zeros,
            "cell": batch.positions.new_zeros(3 * len(batch), 3),
            "batch": batch.molecule_idx,
            "ptr": torch.cat([torch.zeros(1, dtype=torch.int64), batch.counts.cumsum(0)]),
            "head": torch.zeros(len(batch), dtype=torch.int64),
        }
        result: dict[str, torch.Tensor] = mace(data, compute_force=True)
        return result

    out = call()
    return {
        "energies": out["energy"].detach().tolist(),
        "force_norm": float(out["forces"].detach().norm()),
        "seconds": seconds_per_call(call),
    }


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    print(json.dumps(time_mace(sys.argv[1], sys.argv[2])))
