"""Priors: where the atoms of a molecule are wanted.

A prior is a log-density that holds the atoms together, or in a shape, while the noise is high,
and fades as it falls (:func:`simgen.schedules.prior_weight`). It also says where atoms start.
"""

from simgen.priors.base import AtomPrior, Prior, Size, suggest_atoms
from simgen.priors.bodies import Ellipsoid, Sheet, Sphere, Torus, Tube
from simgen.priors.clouds import PointCloud, PriorForm, estimate_size, spread_evenly
from simgen.priors.composition import Alternatives, Transformed, Union
from simgen.priors.curves import Circle, Heart, Helix, Line, Spline, TrefoilKnot
from simgen.priors.description import prior_from_dict, prior_to_dict
from simgen.priors.gaussian import Gaussian

__all__ = [
    "Alternatives",
    "AtomPrior",
    "Circle",
    "Ellipsoid",
    "Gaussian",
    "Heart",
    "Helix",
    "Line",
    "PointCloud",
    "Prior",
    "PriorForm",
    "Sheet",
    "Size",
    "Sphere",
    "Spline",
    "Torus",
    "Transformed",
    "TrefoilKnot",
    "Tube",
    "Union",
    "estimate_size",
    "prior_from_dict",
    "prior_to_dict",
    "spread_evenly",
    "suggest_atoms",
]
