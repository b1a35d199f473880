"""Ready shapes: point clouds from the data files that come with the package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from simgen.errors import InputError, LoadError
from simgen.priors import PointCloud

_PACKAGE = Path(__file__).parent
# Where a wheel puts the folder, and where it is in a checkout.
_FOLDERS = (_PACKAGE / "priors_data", _PACKAGE.parent / "priors")


@dataclass(frozen=True, slots=True)
class ReadyShape:
    """One entry of the manifest.

    Attributes
    ----------
    name, description : str
        What it is called, and what it is.
    path : Path
        Table with columns x, y, z in angstrom.
    n_heavy_atoms : int
        A number of heavy atoms that suits it.
    source, licence : str
        Where it comes from.
    """

    name: str
    description: str
    path: Path
    n_heavy_atoms: int
    source: str
    licence: str


def list_shapes() -> list[ReadyShape]:
    """Return the shapes that come with the package.

    Raises
    ------
    LoadError
        If the data files are missing: the installation is damaged.
    """
    for folder in _FOLDERS:
        manifest = folder / "manifest.json"
        if manifest.is_file():
            entries = json.loads(manifest.read_text(encoding="utf-8"))["shapes"]
            return [ReadyShape(path=folder / entry.pop("file"), **entry) for entry in entries]
    raise LoadError(f"expected the shapes in {_FOLDERS[0]}, found none; install simgen again")


def load_shape(name: str) -> PointCloud:
    """Return the prior of a ready shape.

    Raises
    ------
    InputError
        If there is no shape of this name.

    Examples
    --------
    >>> load_shape("macrocycle").points.shape
    torch.Size([100, 3])
    """
    shapes = {shape.name: shape for shape in list_shapes()}
    if name not in shapes:
        raise InputError(f"expected a shape among {', '.join(shapes)}, got {name!r}")
    points = np.loadtxt(shapes[name].path, delimiter=",", skiprows=1, ndmin=2)
    return PointCloud(torch.from_numpy(points))
