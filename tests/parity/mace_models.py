"""Build and evaluate mace-torch models, where mace-torch is installed and simgen importable.

    python tests/parity/mace_models.py make DIR      # weights converted by us, mace-torch's results
    python tests/parity/mace_models.py export DIR    # the way back: evaluate what we export
    python tests/parity/mace_models.py refuse        # features that we must refuse by name
    python tests/parity/mace_models.py single        # foundation models in float32

``make tests/goldens`` wrote the files there.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

warnings.filterwarnings("ignore")

import mace.modules as modules  # noqa: E402  (before e3nn 0.4.4, which needs its settings)
from e3nn import o3  # noqa: E402
from mace.tools.torch_tools import default_dtype  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from simgen.errors import LoadError  # noqa: E402
from simgen.graph import molecule_pairs, neighbour_list  # noqa: E402
from simgen.models import evaluator, load_model, save_model  # noqa: E402
from simgen.models.mace_interop import export_mace, from_mace, import_mace, to_mace  # noqa: E402
from simgen.molecules import MoleculeBatch  # noqa: E402

ELEMENTS = [1, 6, 7, 8, 16]
PLAIN = "RealAgnosticInteractionBlock"
RESIDUAL = "RealAgnosticResidualInteractionBlock"
DENSITY = "RealAgnosticDensityInteractionBlock"
DENSITY_RESIDUAL = "RealAgnosticDensityResidualInteractionBlock"
NONLINEAR = "RealAgnosticResidualNonLinearInteractionBlock"

SETTINGS: dict[str, dict[str, Any]] = {
    "invariant": {},
    "l1_linear": {"max_ell": 1, "correlation": 1},
    "l2_quadratic": {"max_ell": 2, "correlation": 2, "num_channels": 5},
    "one_layer": {"num_interactions": 1},
    "first_residual": {"interaction_cls_first": RESIDUAL, "num_bessel": 8},
    "vectors": {"hidden": 1, "num_channels": 3},
    "vectors_three_layers": {"hidden": 1, "num_channels": 2, "num_interactions": 3},
    "vectors_density": {
        "hidden": 1,
        "interaction_cls_first": DENSITY,
        "interaction_cls": DENSITY_RESIDUAL,
    },
    "density_residual": {
        "max_ell": 2,
        "interaction_cls_first": DENSITY_RESIDUAL,
        "interaction_cls": DENSITY_RESIDUAL,
    },
    "tensors": {
        "hidden": 2,
        "num_channels": 2,
        "correlation": 2,
        "interaction_cls_first": RESIDUAL,
        "radial_MLP": [4],
    },
    "tensors_three_layers": {"hidden": 2, "num_channels": 2, "num_interactions": 3},
}

OFF: dict[str, Any] = {"interaction_cls_first": RESIDUAL, "num_bessel": 8}
MP: dict[str, Any] = {"interaction_cls_first": RESIDUAL, "num_bessel": 10, "r_max": 6.0}
PAIRS: dict[str, Any] = {"distance_transform": "Agnesi", "pair_repulsion": True}
DENSE: dict[str, Any] = {"interaction_cls_first": DENSITY, "interaction_cls": DENSITY_RESIDUAL}
VECTORS: dict[str, Any] = {"hidden": 1, "num_channels": 3}
FAMILIES: dict[str, dict[str, Any]] = {
    "off23_small": {**OFF, "r_max": 4.5},
    "off23_medium": {**OFF, "r_max": 5.0, **VECTORS},
    "mp0_small": {**MP},
    "mp0_medium": {**MP, **VECTORS},
    "mp0b_small": {**MP, **PAIRS},
    "mp0b_medium": {**MP, **PAIRS, **VECTORS},
    "omat0_small": {**MP, **PAIRS, **DENSE},
    "mpa0_medium": {**MP, **PAIRS, **DENSE, **VECTORS},
}
"""Foundation models as they were published, all with max_ell 3, correlation 3, two layers and a
polynomial cutoff of 5; but with fewer channels, narrower radial networks and fewer elements."""
SETTINGS |= FAMILIES

SINCE_2023 = (
    "apply_cutoff", "cueq_config", "edge_irreps", "embedding_specs", "heads", "oeq_config",
    "use_agnostic_product", "use_edge_irreps_first", "use_last_readout_only", "use_reduced_cg",
    "use_so3",
)  # fmt: skip
"""What the files of MACE-OFF23 and MACE-MP-0 do not have, as mace-torch had none of it then."""


def build(
    *, hidden: int = 0, num_channels: int = 4, seed: int = 0, **changes: Any
) -> modules.ScaleShiftMACE:
    """Build a float64 mace-torch model with random weights."""
    rng = np.random.default_rng(seed)
    irreps = "+".join(f"{num_channels}x{ell}{'eo'[ell % 2]}" for ell in range(hidden + 1))
    arguments: dict[str, Any] = {
        "r_max": 3.5,
        "num_bessel": 5,
        "num_polynomial_cutoff": 5,
        "max_ell": 3,
        "interaction_cls": RESIDUAL,
        "interaction_cls_first": PLAIN,
        "num_interactions": 2,
        "num_elements": len(ELEMENTS),
        "hidden_irreps": o3.Irreps(irreps),
        "MLP_irreps": o3.Irreps("6x0e"),
        "gate": torch.nn.functional.silu,
        "atomic_energies": rng.normal(size=len(ELEMENTS)),
        "avg_num_neighbors": 3.3,
        "atomic_numbers": ELEMENTS,
        "correlation": 3,
        "radial_MLP": [8, 8],
        "atomic_inter_scale": 1.7,
        "atomic_inter_shift": 0.2,
        **changes,
    }
    for name in ("interaction_cls", "interaction_cls_first"):
        arguments[name] = getattr(modules, arguments[name])
    with default_dtype(torch.float64), fork_rng(seed):
        return modules.ScaleShiftMACE(**arguments)


@contextmanager
def fork_rng(seed: int) -> Iterator[None]:
    """Seed torch's global generator, as mace-torch draws weights from it, and restore it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def molecules(seed: int = 0) -> MoleculeBatch:
    """Atoms at random, from one alone to a dense cluster."""
    rng = np.random.default_rng(seed)
    return MoleculeBatch.from_arrays(
        [(rng.choice(ELEMENTS, n), 1.6 * rng.normal(size=(n, 3))) for n in (1, 5, 8, 2)],
        dtype=torch.float64,
    )


def evaluate(model: Any, batch: MoleculeBatch) -> dict[str, torch.Tensor]:
    """Energies, forces and invariants of the first layer by mace-torch, in the model's dtype."""
    dtype = batch.positions.dtype
    edge_index = neighbour_list(batch.positions, molecule_pairs(batch), float(model.r_max))
    n_edges, n_molecules = edge_index.shape[1], batch.n_molecules
    element = torch.searchsorted(model.atomic_numbers, batch.atomic_numbers)
    data = {
        "positions": batch.positions.clone(),
        "node_attrs": torch.nn.functional.one_hot(element, len(model.atomic_numbers)).to(dtype),
        "edge_index": edge_index,
        "shifts": torch.zeros(n_edges, 3, dtype=dtype),
        "unit_shifts": torch.zeros(n_edges, 3, dtype=dtype),
        "cell": torch.zeros(3 * n_molecules, 3, dtype=dtype),
        "batch": batch.molecule_idx,
        "ptr": torch.cat([torch.zeros(1, dtype=torch.int64), batch.counts.cumsum(0)]),
        "head": torch.zeros(n_molecules, dtype=torch.int64),
    }
    with default_dtype(dtype):  # in which the pair repulsion multiplies atomic numbers
        out = model(data, compute_force=True)
    n_channels = model.products[0].linear.irreps_out.count("0e")
    return {
        "energies": out["energy"].detach(),
        "forces": out["forces"].detach(),
        "invariants": out["node_feats"][:, :n_channels].detach().contiguous(),
    }


def make(folder: Path) -> None:
    """Write our weights of each model, and what mace-torch computes with it."""
    folder.mkdir(exist_ok=True)
    batch = molecules()
    results = {
        "positions": batch.positions,
        "atomic_numbers": batch.atomic_numbers,
        "molecule_idx": batch.molecule_idx,
    }
    for seed, (name, changes) in enumerate(SETTINGS.items()):
        mace = build(seed=seed, **changes)
        results |= {f"{name}.{key}": value for key, value in evaluate(mace, batch).items()}
        if name in FAMILIES and not {"distance_transform", "pair_repulsion"} & {*changes}:
            age(mace)
        file = folder / "mace.model"
        torch.save(mace, file)
        save_model(import_mace(file), folder / f"{name}.safetensors", {"made_by": "mace-torch"})
        file.unlink()
    save_file(results, folder / "results.safetensors")


def age(mace: Any) -> None:
    """Take away what the files of 2023 do not have."""
    for module in mace.modules():
        for name in SINCE_2023:
            vars(module).pop(name, None)


def single() -> None:
    """Import the foundation models in float32; print how far they are from mace-torch in float64.

    The last line of each is how far mace-torch in float32 is from itself.
    """
    batch = molecules()
    rounded = batch.replace(positions=batch.positions.float())
    worst = {"network": 0.0, "evaluator": 0.0, "mace-torch": 0.0}
    for seed, (name, changes) in enumerate(FAMILIES.items()):
        mace = build(seed=seed, **changes)
        exact = evaluate(mace, batch)
        model = from_mace(mace.float())
        fields = {"network": model, "evaluator": evaluator(model)}
        found = {path: field.energy_and_forces(rounded) for path, field in fields.items()}
        theirs = evaluate(mace, rounded)
        found["mace-torch"] = theirs["energies"], theirs["forces"]
        for path, both in found.items():
            for key, values in zip(("energies", "forces"), both, strict=True):
                error = float((values - exact[key]).abs().max() / exact[key].abs().max())
                print(f"{name:14}{path:11}{key:9}{error:.1e}", flush=True)
                worst[path] = max(worst[path], error)
    if worst["network"] > 1e-6 or worst["evaluator"] > 2e-6:
        sys.exit(f"expected the same numbers to 1e-6, got {worst}")


def export(folder: Path) -> None:
    """Export the weights in a folder to mace-torch and evaluate them there."""
    inputs = load_file(folder / "results.safetensors")
    batch = MoleculeBatch(
        inputs["positions"], inputs["atomic_numbers"], inputs["molecule_idx"], n_molecules=4
    )
    results = {}
    for name in SETTINGS:
        file = folder / f"{name}.model"
        export_mace(load_model(folder / f"{name}.safetensors", dtype=torch.float64), file)
        mace = torch.load(file, weights_only=False)
        results |= {f"{name}.{key}": value for key, value in evaluate(mace, batch).items()}
    save_file(results, folder / "exported.safetensors")


REFUSALS: dict[str, dict[str, Any]] = {
    "distance transform SoftTransform": {"distance_transform": "Soft"},
    "radial basis GaussianBasis": {"radial_type": "gaussian"},
    "cutoff applied after the radial network": {"apply_cutoff": False},
    "several heads": {"heads": ["a", "b"], "atomic_energies": np.zeros((2, len(ELEMENTS)))},
    "element-agnostic product": {"use_agnostic_product": True},
    "only one readout": {"use_last_readout_only": True},
    "different correlation orders": {"correlation": [2, 3]},
    "density normalisation in some layers only": {"interaction_cls_first": DENSITY},
    "a readout activation other than silu": {"gate": torch.tanh},
    "equivariant features after the last layer": {"hidden": 1, "keep_last_layer_irreps": True},
    NONLINEAR: {"interaction_cls_first": NONLINEAR, "interaction_cls": NONLINEAR},
    "embeddings of charge, spin or the like": {
        "embedding_specs": {"total_charge": {"type": "continuous", "in_dim": 1, "emb_dim": 4}}
    },
}
"""Among them what is in MACE-OMOL-0 and MACE-MH-1."""


def refuse() -> None:
    """Check that the message names each feature that we do not support."""
    for feature, changes in REFUSALS.items():
        try:
            from_mace(build(**{"max_ell": 1, "correlation": 2, **changes}))
        except LoadError as error:
            if feature not in str(error):
                sys.exit(f"expected the message to name {feature!r}, got: {error}")
        else:
            sys.exit(f"expected {feature!r} to be refused")
    mace = build(pair_repulsion=True)
    mace.pair_repulsion_fn.p += 1
    try:
        from_mace(mace)
    except LoadError as error:
        assert "pair repulsion with another cutoff" in str(error)
    else:
        sys.exit("expected another cutoff of the pair repulsion to be refused")
    model = load_model(Path(__file__).parents[1] / "goldens" / "invariant.safetensors")
    assert to_mace(model).node_embedding.linear.weight.dtype == torch.float32


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["make", "export", "refuse", "single"])
    parser.add_argument("folder", type=Path, nargs="?")
    arguments = parser.parse_args()
    if arguments.folder is None:
        {"refuse": refuse, "single": single}[arguments.command]()
    else:
        {"make": make, "export": export}[arguments.command](arguments.folder)
