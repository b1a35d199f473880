"""Conversion of mace-torch models to ours and back.

simgen itself needs neither mace-torch nor e3nn; only this module imports them, when it converts.
mace-torch pins e3nn 0.4.4, next to which simgen can be installed: convert in such an environment,
and use the weights anywhere.

A mace-torch model file is a *pickle*: loading it can run any code that its author put in. Import
only files whose origin you trust. What comes out is a safetensors file, which is only data.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from simgen.errors import InputError, LoadError, MissingDependencyError
from simgen.models.angular import wigner_3j
from simgen.models.config import NetworkConfig
from simgen.models.network import ForceField, Layer
from simgen.models.product import symmetric_basis, to_monomials
from simgen.models.radial import RadialNetwork

_FIRST = {
    "RealAgnosticInteractionBlock": (False, False),
    "RealAgnosticResidualInteractionBlock": (True, False),
    "RealAgnosticDensityInteractionBlock": (False, True),
    "RealAgnosticDensityResidualInteractionBlock": (True, True),
}
"""Supported interaction blocks: whether they are residual, and density-normalised."""

_TRANSFORMS = {"none": "None", "agnesi": "Agnesi"}
"""Names of the scaled distances in mace-torch."""


def import_mace(path: str | Path) -> ForceField:
    """Convert a mace-torch model file.

    The file is unpickled by torch, which can run code in it: trust its author. Weights keep their
    precision; the result is a float64 model if the file is one.

    Raises
    ------
    MissingDependencyError
        If mace-torch is not installed.
    LoadError
        If the file cannot be read, or its model has a feature that we do not support; the message
        names it.
    """
    _require_mace()
    try:
        model = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # unpickling can fail in any way
        raise LoadError(f"expected a mace-torch model file, cannot load {path}: {error}") from error
    if not isinstance(model, nn.Module):
        raise LoadError(f"expected a mace-torch model in {path}, got {type(model).__name__}")
    return from_mace(model)


def export_mace(model: ForceField, path: str | Path) -> None:
    """Write a model as a mace-torch model file, for whatever uses mace-torch.

    Raises
    ------
    MissingDependencyError
        If mace-torch is not installed.
    """
    torch.save(to_mace(model), path)


def from_mace(mace: Any) -> ForceField:
    """Convert a mace-torch model in memory; see :func:`import_mace`."""
    config = _config_of(mace)
    dtype = mace.node_embedding.linear.weight.dtype
    model = ForceField(config).to(torch.float64)
    with torch.no_grad():
        for ours, theirs in _weights(model, mace):
            ours.copy_(theirs.reshape(ours.shape))
        _match_signs(model)
        for layer, product in zip(_layers(model), mace.products, strict=True):
            for ell, contraction in enumerate(product.symmetric_contractions.contractions):
                weights = [
                    _projection(config, ell, n, contraction) @ weight.double()
                    for n, weight in enumerate(_weights_by_degree(contraction), 1)
                ]
                layer.product.weights[ell].copy_(torch.cat(weights, dim=1))
    return model.to(dtype)


def to_mace(model: ForceField) -> Any:
    """Convert to a mace-torch model in memory; see :func:`export_mace`."""
    config = model.config
    if config.beyond_mace:
        raise InputError(
            "mace-torch's MACE cannot represent this network; it differs in "
            f"{', '.join(config.beyond_mace)}"
        )
    _require_mace()
    from e3nn import o3  # type: ignore[import-untyped, import-not-found, unused-ignore]
    from mace import modules  # type: ignore[import-untyped, import-not-found, unused-ignore]
    from mace.tools.torch_tools import default_dtype  # type: ignore[import-untyped, import-not-found, unused-ignore]

    names = {features: name for name, features in _FIRST.items()}
    hidden = "+".join(
        f"{config.n_channels}x{ell}{'oe'[ell % 2 == 0]}" for ell in range(config.hidden_l_max + 1)
    )
    if (config.readout_width == 0) != (config.n_layers == 1):
        raise InputError(
            "mace-torch has a linear last readout in models of one layer, and a nonlinear one in "
            f"others; this model has {config.n_layers} layers and readout width "
            f"{config.readout_width}"
        )
    with default_dtype(model.embedding.dtype):  # mace-torch builds its buffers in it
        mace = modules.ScaleShiftMACE(
            r_max=config.r_max,
            num_bessel=config.n_radial,
            num_polynomial_cutoff=config.cutoff_power,
            max_ell=config.l_max,
            interaction_cls=getattr(modules, names[True, config.density_normalised]),
            interaction_cls_first=getattr(
                modules, names[config.first_residual, config.density_normalised]
            ),
            num_interactions=config.n_layers,
            num_elements=len(config.elements),
            hidden_irreps=o3.Irreps(hidden),
            MLP_irreps=o3.Irreps(f"{max(config.readout_width, 1)}x0e"),
            gate=nn.functional.silu,
            atomic_energies=model.atomic_energies.cpu().numpy(),
            avg_num_neighbors=config.avg_n_neighbours,
            atomic_numbers=list(config.elements),
            correlation=config.correlation,
            radial_MLP=list(config.radial_widths),
            radial_type="bessel",
            atomic_inter_scale=float(model.scale),
            atomic_inter_shift=float(model.shift),
            pair_repulsion=config.pair_repulsion,
            distance_transform=_TRANSFORMS[config.distance_transform],
        )
    model = copy.deepcopy(model)
    with torch.no_grad():
        _match_signs(model)
        for ours, theirs in _weights(model, mace):
            theirs.copy_(ours.reshape(theirs.shape))
        for layer, product in zip(_layers(model), mace.products, strict=True):
            for ell, contraction in enumerate(product.symmetric_contractions.contractions):
                degrees = _weights_by_degree(contraction)
                projections = [
                    _projection(config, ell, n, contraction) for n in range(1, len(degrees) + 1)
                ]
                ours = layer.product.weights[ell].detach().cpu().double()
                parts = ours.split([len(p) for p in projections], dim=1)
                for projection, part, weight in zip(projections, parts, degrees, strict=True):
                    weight.copy_(torch.linalg.pinv(projection) @ part)
    return mace


def _require_mace() -> None:
    try:
        import mace  # type: ignore[import-untyped, import-not-found, unused-ignore] # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "converting mace-torch models needs mace-torch next to simgen: pip install mace-torch"
        ) from error


def _config_of(mace: Any) -> NetworkConfig:
    """Read the configuration off a mace-torch model; refuse what we do not support."""
    if type(mace).__name__ != "ScaleShiftMACE":
        raise LoadError(f"expected a ScaleShiftMACE model, got {type(mace).__name__}")
    first, *others = mace.interactions
    names = [type(block).__name__ for block in mace.interactions]
    products = [block.symmetric_contractions for block in mace.products]
    accelerated = not all(hasattr(product, "contractions") for product in products)
    radial = mace.radial_embedding
    hidden = mace.products[0].linear.irreps_out
    radial_widths = {tuple(block.conv_tp_weights.hs[1:-1]) for block in mace.interactions}
    readout = mace.readouts[-1]
    nonlinear = type(readout).__name__ == "NonLinearReadoutBlock"
    transform = type(getattr(radial, "distance_transform", None)).__name__
    repulsion = getattr(mace, "pair_repulsion_fn", None)
    unsupported = {
        f"distance transform {transform}": transform not in ("NoneType", "AgnesiTransform"),
        f"pair repulsion {type(repulsion).__name__}": (
            type(repulsion).__name__ not in ("NoneType", "ZBLBasis")
        ),
        "pair repulsion with another cutoff than the radial basis": (
            repulsion is not None and int(repulsion.p) != int(radial.cutoff_fn.p)
        ),
        f"radial basis {type(radial.bessel_fn).__name__}": (
            type(radial.bessel_fn).__name__ != "BesselBasis"
        ),
        "cutoff applied after the radial network": not getattr(radial, "apply_cutoff", True),
        "several heads": len(getattr(mace, "heads", None) or ["Default"]) > 1,
        "embeddings of charge, spin or the like": hasattr(mace, "joint_embedding"),
        "element-agnostic product": any(
            getattr(block, "use_agnostic_product", False) for block in mace.products
        ),
        "SO(3) instead of O(3) features": getattr(mace, "use_so3", False),
        "only one readout": getattr(mace, "use_last_readout_only", False),
        "edge irreps": any(
            getattr(block, "edge_irreps", None) not in (None, block.node_feats_irreps)
            for block in mace.interactions
        ),
        f"interaction {names[0]}": names[0] not in _FIRST,
        "cuequivariance or other accelerated kernels": accelerated,
        f"readout {type(readout).__name__}": not (
            (nonlinear and others)
            or (type(readout).__name__ == "LinearReadoutBlock" and not others)
        ),
    }
    for name in names[1:]:
        unsupported[f"interaction {name}"] = not _FIRST.get(name, (False, False))[0]
    if unsupported[f"interaction {names[0]}"]:
        raise LoadError(f"expected one of {', '.join(_FIRST)}, got {names[0]}")
    residual, density = _FIRST[names[0]]
    unsupported["density normalisation in some layers only"] = any(
        _FIRST.get(name, (False, density))[1] != density for name in names
    )
    unsupported["radial networks of different widths"] = len(radial_widths) > 1
    correlations = {1}
    if not accelerated:
        correlations = {c.correlation for product in products for c in product.contractions}
    unsupported["different correlation orders"] = len(correlations) > 1
    unsupported["correlation order above 3"] = max(correlations) > 3
    n_channels = hidden.count("0e")
    l_hidden = [ir.l for _, ir in hidden]
    unsupported[f"hidden irreps {hidden}"] = l_hidden != list(range(len(l_hidden))) or any(
        mul != n_channels or ir.p != (-1) ** ir.l for mul, ir in hidden
    )
    l_max = max(ir.l for _, ir in first.edge_attrs_irreps)
    unsupported["spherical harmonics above degree 3"] = l_max > 3
    last = mace.products[-1].linear.irreps_out
    unsupported["equivariant features after the last layer"] = any(ir.l > 0 for _, ir in last)
    if nonlinear:
        activations = [act.f for act in readout.non_linearity.acts]
        unsupported["a readout activation other than silu"] = activations != [nn.functional.silu]
    if features := [name for name, present in unsupported.items() if present]:
        raise LoadError(f"simgen does not support this mace-torch model's {'; '.join(features)}")
    return NetworkConfig(
        elements=tuple(mace.atomic_numbers.tolist()),
        r_max=float(mace.r_max),
        n_radial=len(radial.bessel_fn.bessel_weights),
        cutoff_power=int(radial.cutoff_fn.p),
        radial_widths=next(iter(radial_widths)),
        l_max=l_max,
        hidden_l_max=max(l_hidden),
        n_channels=n_channels,
        correlation=correlations.pop(),
        n_layers=len(mace.interactions),
        first_residual=residual,
        density_normalised=density,
        avg_n_neighbours=float(first.avg_num_neighbors),
        readout_width=readout.hidden_irreps.dim if nonlinear else 0,
        distance_transform="none" if transform == "NoneType" else "agnesi",
        pair_repulsion=repulsion is not None,
    )


def _layers(model: ForceField) -> list[Layer]:
    return cast("list[Layer]", list(model.layers))


def _weights(model: ForceField, mace: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of our weights and theirs that differ in shape only."""
    yield model.atomic_energies, mace.atomic_energies_fn.atomic_energies
    yield model.scale, mace.scale_shift.scale
    yield model.shift, mace.scale_shift.shift
    yield model.embedding, mace.node_embedding.linear.weight
    if model.distance_transform is not None:
        theirs = mace.radial_embedding.distance_transform
        yield from _radii(model, model.distance_transform.radii, theirs)
        coefficients = (theirs.a, theirs.q, theirs.p)
        yield from zip(model.distance_transform.coefficients, coefficients, strict=True)
    if model.repulsion is not None:
        theirs = mace.pair_repulsion_fn
        yield from _radii(model, model.repulsion.radii, theirs)
        yield model.repulsion.screening, theirs.c
        lengths = (theirs.a_prefactor, theirs.a_exp)
        yield from zip(model.repulsion.lengths, lengths, strict=True)
    for layer, interaction, product in zip(
        _layers(model), mace.interactions, mace.products, strict=True
    ):
        ours = layer.interaction
        yield ours.linear_up, interaction.linear_up.weight
        yield from _radial_weights(ours.radial, interaction.conv_tp_weights)
        if ours.density is not None:
            yield from _radial_weights(ours.density, interaction.density_fn)
        sizes = [weight.numel() for weight in ours.linear]
        yield from zip(ours.linear, interaction.linear.weight.split(sizes), strict=True)
        yield layer.skip.weight.transpose(1, 2), interaction.skip_tp.weight
        yield layer.linear, product.linear.weight
    linear = [readout.linear for readout in mace.readouts if hasattr(readout, "linear")]
    for weight, readout in zip(model.readouts, linear, strict=True):
        yield weight, readout.weight
    if model.config.readout_width:
        yield model.readout_hidden, mace.readouts[-1].linear_1.weight
        yield model.readout_out, mace.readouts[-1].linear_2.weight


def _radii(model: ForceField, ours: Tensor, theirs: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Covalent radii, of which mace-torch has those of all elements."""
    for radius, z in zip(ours, model.elements, strict=True):
        yield radius, theirs.covalent_radii[z]


def _radial_weights(ours: RadialNetwork, theirs: Any) -> Iterator[tuple[Tensor, Tensor]]:
    for i, weight in enumerate(ours.weights):
        yield weight, getattr(theirs, f"layer{i}").weight


def _match_signs(model: ForceField) -> None:
    """Flip the weights of the paths whose coupling has another sign in the e3nn installed.

    The sign of a coupling is a convention, and e3nn 0.4.4 has another one than later versions.
    """
    from e3nn import o3  # type: ignore[import-untyped, import-not-found, unused-ignore]

    n_channels = model.config.n_channels
    for layer in _layers(model):
        for ell, weight in enumerate(layer.interaction.linear):
            paths = [path for path in layer.interaction.paths if path[2] == ell]
            for path, rows in zip(paths, weight.split(n_channels), strict=True):
                theirs = o3.wigner_3j(*path, dtype=torch.float64).numpy()
                rows *= float(np.sign((theirs * wigner_3j(*path)).sum()))


def _weights_by_degree(contraction: Any) -> list[Tensor]:
    """Weights of the couplings of degrees 1, 2, ..., each (n_elements, n_couplings, n_channels)."""
    return [*reversed(list(contraction.weights)), contraction.weights_max]


def _projection(config: NetworkConfig, ell: int, degree: int, contraction: Any) -> Tensor:
    """Matrix that expresses their couplings by our polynomials, (n_polynomials, n_couplings)."""
    couplings = contraction.U_tensors(degree).detach().cpu().double().numpy()
    dim = (config.l_max + 1) ** 2
    couplings = np.moveaxis(couplings, -1, 0).reshape(-1, *(dim,) * degree)
    theirs = to_monomials(couplings, degree)
    basis = symmetric_basis(config.l_max, ell, degree)[0].reshape(
        -1, (2 * ell + 1) * theirs.shape[1]
    )
    theirs = theirs.reshape(-1, basis.shape[1])
    projection = np.linalg.lstsq(basis.T, theirs.T, rcond=None)[0]
    if not np.allclose(basis.T @ projection, theirs.T, atol=1e-5):
        raise LoadError(
            f"the coupling coefficients of degree {degree} to l = {ell} are not symmetric "
            "equivariant polynomials of simgen's convention"
        )
    return torch.from_numpy(projection)
