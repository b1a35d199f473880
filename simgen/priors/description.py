"""Priors as what JSON can hold, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from simgen.errors import ConfigError
from simgen.priors.base import AtomPrior, Prior, Size
from simgen.priors.bodies import Ellipsoid, Sheet, Sphere, Torus, Tube
from simgen.priors.clouds import PointCloud, PriorForm
from simgen.priors.composition import Alternatives, Transformed, Union
from simgen.priors.curves import Circle, Heart, Helix, Line, Spline, TrefoilKnot
from simgen.priors.gaussian import Gaussian

KINDS: dict[str, type[AtomPrior]] = {
    "gaussian": Gaussian,
    "line": Line,
    "circle": Circle,
    "helix": Helix,
    "spline": Spline,
    "heart": Heart,
    "trefoil_knot": TrefoilKnot,
    "sphere": Sphere,
    "ellipsoid": Ellipsoid,
    "torus": Torus,
    "tube": Tube,
    "sheet": Sheet,
    "point_cloud": PointCloud,
    "transformed": Transformed,
    "union": Union,
    "alternatives": Alternatives,
}
"""Names of the priors in descriptions."""


def prior_to_dict(prior: Prior) -> dict[str, Any]:
    """Describe a prior so that :func:`prior_from_dict` can make an equal one.

    Of a prior of the user's own only the class is kept.

    Examples
    --------
    >>> prior_to_dict(Sphere(2.0))["radius"]
    2.0
    """
    # Not isinstance: a class derived from one of these may be more than its description.
    kind = next((kind for kind, known in KINDS.items() if type(prior) is known), None)
    if kind is None:
        return {"kind": f"{type(prior).__module__}.{type(prior).__qualname__}"}
    values = {f.name: _encode(getattr(prior, f.name)) for f in fields(prior) if f.init}  # type: ignore[arg-type]
    return {"kind": kind, **values}


def _encode(value: Any) -> Any:
    match value:
        case Tensor():
            return value.tolist()
        case PriorForm():
            return str(value)
        case Size():
            return {"length": value.length, "area": value.area, "volume": value.volume}
        case AtomPrior():
            return prior_to_dict(value)
        case tuple():
            return [_encode(part) for part in value]
        case _:
            return value


def prior_from_dict(values: Mapping[str, Any]) -> AtomPrior:
    """Make a prior from its description; what is missing gets its default.

    Raises
    ------
    ConfigError
        If it is not one that :func:`prior_to_dict` describes in full.

    Examples
    --------
    >>> prior_from_dict({"kind": "circle", "radius": 3.0})
    Circle(covariance=..., radius=3.0)
    """
    given = dict(values)
    kind = given.pop("kind", None)
    if kind not in KINDS:
        raise ConfigError(f"expected a prior of kind {', '.join(KINDS)}, got {kind!r}")
    try:
        if "form" in given:
            given["form"] = PriorForm(given["form"])
        if given.get("size") is not None:
            given["size"] = Size(**given["size"])
        if "prior" in given:
            given["prior"] = prior_from_dict(given["prior"])
        if "parts" in given:
            given["parts"] = tuple(prior_from_dict(part) for part in given["parts"])
        return KINDS[kind](**given)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"cannot make a {kind} prior: {error}") from None
