"""Shapes from files: the ready ones of the package, and those of users.

A shape file is a description of a prior (JSON), a table of points (CSV, NPY), points or a mesh
(PLY), a mesh (STL, OBJ, GLB), or molecules whose heavy atoms are the shape (SDF, XYZ, PDB).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simgen.errors import InputError, LoadError, MissingDependencyError
from simgen.priors import (
    AtomPrior,
    PointCloud,
    Prior,
    Size,
    Transformed,
    prior_from_dict,
    spread_evenly,
)
from simgen.priors.base import ATOMS_PER_CUBIC_ANGSTROM
from simgen.priors.bodies import n_body_points
from simgen.priors.clouds import ISOTROPIC_COVARIANCE, MAX_POINTS, check_points

if TYPE_CHECKING:
    import trimesh

_PACKAGE = Path(__file__).parent
# Where a wheel puts the folder, and where it is in a checkout.
_FOLDERS = (_PACKAGE / "priors_data", _PACKAGE.parent / "priors")

_DESCRIPTIONS = (".json",)
_TABLES = (".csv", ".npy")
_MESHES = (".stl", ".obj", ".ply", ".glb")
_MOLECULES = (".sdf", ".sd", ".mol", ".xyz", ".extxyz", ".pdb")
SUFFIXES = (*_DESCRIPTIONS, *_TABLES, *_MESHES, *_MOLECULES)
"""Endings of the files that can be a shape."""

_SURFACE_SEED = 0
"""Of the points drawn on a mesh, from which those that are spread evenly are chosen."""
_N_CANDIDATES = 10
"""Points to choose from, for each point of a mesh."""
_MAX_CROSSINGS = 2**21
"""Pairs of a column and a triangle that are held at a time."""
_OFFSETS = (0.4937, 0.5071, 0.5)
"""Where in its cell of the grid a point within a mesh is."""


@dataclass(frozen=True, slots=True)
class ReadyShape:
    """One entry of the manifest.

    Attributes
    ----------
    name, description : str
        What it is called, and what it is.
    path : Path
        Its file.
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


def load_shape(name_or_path: str | Path, *, scale: float = 1.0, solid: bool = False) -> AtomPrior:
    """Return the prior of a ready shape or of a file.

    Parameters
    ----------
    name_or_path : str or Path
        Name (:func:`list_shapes`) or file; lengths in a file are taken for angstrom.
    scale : float
        Factor on all lengths.
    solid : bool
        What a mesh encloses, not its surface.

    Raises
    ------
    InputError
        If there is no shape of this name, it is to be solid and is no watertight mesh, or the scale
        is not positive.
    LoadError
        If the file cannot be read or holds no shape.
    MissingDependencyError
        If it is a mesh, and trimesh is not installed.

    Examples
    --------
    >>> load_shape("macrocycle").size.suggest_atoms()
    38
    """
    ready = {shape.name: shape.path for shape in list_shapes()}
    path = ready.get(str(name_or_path), Path(name_or_path))
    if path.suffix.lower() not in SUFFIXES:
        if not path.suffix and not path.exists():
            raise InputError(
                f"expected a shape file or one of {', '.join(ready)}, got {str(name_or_path)!r}"
            )
        raise LoadError(
            f"cannot tell what shape {path} is: expected a name ending in {', '.join(SUFFIXES)}"
        )
    if not path.is_file():
        raise LoadError(f"{path} does not exist; check the path")
    if path.stat().st_size == 0:
        raise LoadError(f"{path} is empty; expected a shape")
    prior = _read(path, solid=solid)
    return prior if scale == 1.0 else Transformed(prior, scale=scale)


def _read(path: Path, *, solid: bool) -> AtomPrior:
    suffix = path.suffix.lower()
    if suffix in _MESHES:
        return _read_mesh(path, solid=solid)
    if solid:
        raise InputError(f"expected a mesh to be made solid, got {path}; leave the option out")
    if suffix in _DESCRIPTIONS:
        return _read_description(path)
    if suffix in _TABLES:
        return _cloud(_read_table(path), path)
    return _read_molecules(path)


def _cloud(
    points: object, path: Path | str, size: Size | None = None, *, occupied: bool = False
) -> PointCloud:
    """Return a cloud of at most ``MAX_POINTS`` points, the same in every direction of space.

    Raises
    ------
    LoadError
        If there are no points, or some that are not finite; it names the file.
    """
    try:
        tensor = check_points(points)
    except (InputError, ValueError, TypeError) as error:
        raise LoadError(f"{path} holds no shape: {error}") from None
    tensor = spread_evenly(tensor, MAX_POINTS)
    return PointCloud(tensor, covariance=ISOTROPIC_COVARIANCE, size=size, occupied=occupied)


def _read_description(path: Path) -> AtomPrior:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} is no description of a shape in JSON: {error}") from None
    if not isinstance(values, dict):
        raise LoadError(f"{path} is no description of a shape: expected an object with a kind")
    return prior_from_dict(values)


def _read_table(path: Path) -> NDArray[np.float64]:
    """Points of a table with columns x, y, z, or of an array of shape (n, 3)."""
    try:
        if path.suffix.lower() == ".npy":
            return np.asarray(np.load(path, allow_pickle=False), dtype=np.float64)
        lines = path.read_text(encoding="utf-8").replace(";", ",").splitlines()
        rows = [line.split(",") if "," in line else line.split() for line in lines if line.strip()]
        if rows and not _is_number(rows[0][0]):
            rows = rows[1:]  # a header
        return np.array([[float(x) for x in row[:3]] for row in rows], dtype=np.float64)
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise LoadError(f"{path} is no table of numbers x, y, z: {reason}") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# --- molecules ---------------------------------------------------------------------------------


def shape_of_molecule(positions: NDArray[np.float64]) -> PointCloud:
    """Return the shape of a molecule: its heavy atoms, each of which wants one, about their centre.

    Parameters
    ----------
    positions : ndarray, shape (n_heavy_atoms, 3)
        Coordinates in angstrom.
    """
    centred = torch.from_numpy(positions - positions.mean(0))
    size = Size(volume=len(positions) / ATOMS_PER_CUBIC_ANGSTROM)
    return PointCloud(centred, covariance=ISOTROPIC_COVARIANCE, size=size, occupied=True)


def _read_molecules(path: Path) -> PointCloud:
    """The heavy atoms of all molecules of a file, where they are, as one cloud.

    It suits as many heavy atoms as these molecules have on average.
    """
    frames = _pdb_frames(path) if path.suffix.lower() == ".pdb" else _molecule_frames(path)
    heavy = [positions[numbers > 1] for numbers, positions in frames]
    heavy = [positions for positions in heavy if len(positions)]
    if not heavy:
        raise LoadError(f"{path} holds no heavy atom with 3D coordinates")
    n_atoms = sum(len(positions) for positions in heavy) / len(heavy)
    size = Size(volume=n_atoms / ATOMS_PER_CUBIC_ANGSTROM)
    # Of one molecule, not of several that lie over one another, each atom wants one.
    return _cloud(np.concatenate(heavy), path, size, occupied=len(heavy) == 1)


def _molecule_frames(path: Path) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    from simgen.io import read_molecules

    records = read_molecules(path)
    return [record.geometry for record in records if record.positions is not None]


def _pdb_frames(path: Path) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        mol = Chem.MolFromPDBFile(str(path), sanitize=False, removeHs=False, proximityBonding=False)
    if mol is None or mol.GetNumAtoms() == 0:
        raise LoadError(f"{path} is no PDB file with atoms")
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.int64)
    return [(numbers, np.asarray(c.GetPositions())) for c in mol.GetConformers()]


# --- meshes ------------------------------------------------------------------------------------


def _read_mesh(path: Path, *, solid: bool) -> PointCloud:
    """Points spread evenly over a mesh or within it; a file without faces is a cloud."""
    try:
        import trimesh
    except ImportError:
        raise MissingDependencyError(
            f"reading {path} needs trimesh; pip install 'simgen-toolkit[mesh]'"
        ) from None
    try:
        geometry = trimesh.load(path)
    except Exception as error:
        # Its readers raise whatever their parts raise.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LoadError(f"{path} is no mesh that trimesh can read: {reason}") from None
    if isinstance(geometry, trimesh.PointCloud) and not solid:
        return _cloud(np.asarray(geometry.vertices), path)
    if isinstance(geometry, trimesh.Scene):
        geometry = geometry.to_mesh()
    if not isinstance(geometry, trimesh.Trimesh) or not len(geometry.faces):
        raise LoadError(f"{path} holds no faces; expected a mesh")
    _check_mesh(geometry, path)
    if not solid:
        size = Size(area=float(geometry.area))
        n_points = n_body_points(size)
        candidates, _ = trimesh.sample.sample_surface(
            geometry, _N_CANDIDATES * n_points, seed=_SURFACE_SEED
        )
        return _cloud(spread_evenly(torch.from_numpy(candidates), n_points), path, size)
    if not geometry.is_watertight:
        raise InputError(
            f"expected a watertight mesh to be made solid, got {path}, which has holes; use its "
            "surface or repair it"
        )
    size = Size(volume=abs(float(geometry.volume)))
    inside = _points_inside(geometry, n_body_points(size))
    return PointCloud(inside, covariance=ISOTROPIC_COVARIANCE, size=size)


def _check_mesh(mesh: trimesh.Trimesh, path: Path) -> None:
    """Raise a LoadError if a mesh has corners that are not finite, or no area."""
    if not np.isfinite(mesh.vertices).all():
        raise LoadError(f"{path} holds no shape: expected finite points, got some that are not")
    if not mesh.area > 0.0:
        raise LoadError(f"{path} holds no shape: its faces have no area")


def _points_inside(mesh: trimesh.Trimesh, n_points: int) -> Tensor:
    """Points of a grid that lie inside a watertight mesh; about ``n_points``."""
    low, high = np.asarray(mesh.bounds)
    spacing = (abs(float(mesh.volume)) / n_points) ** (1 / 3)
    n_cells = np.ceil((high - low) / spacing)
    x, y, z = (
        # Off the middle of the cells, as edges of meshes tend to lie at round numbers.
        middle + (np.arange(n) - n / 2 + offset) * spacing
        for middle, n, offset in zip((low + high) / 2, n_cells, _OFFSETS, strict=True)
    )
    inside = inside_of_grid((x, y, z), np.asarray(mesh.triangles, dtype=np.float64))
    grid = np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1)
    return torch.from_numpy(grid[inside])


def inside_of_grid(
    axes: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    triangles: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Tell which points of a grid a closed surface encloses.

    A ray from a point inside, here along z, crosses the surface an odd number of times.

    Parameters
    ----------
    axes : tuple of 3 ndarrays, shapes (n_x,), (n_y,), (n_z,)
        Coordinates of the grid.
    triangles : ndarray, shape (n_triangles, 3, 3)
        Corners of each; no column of the grid may meet an edge.

    Returns
    -------
    ndarray, shape (n_x, n_y, n_z), bool
        True inside.
    """
    x, y, z = axes
    columns = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 1, 2)
    crossings = np.zeros((len(columns), len(z)), dtype=np.int64)
    size = max(1, _MAX_CROSSINGS // len(triangles))
    for start in range(0, len(columns), size):
        # Seen from the column, which side of each edge of the projected triangle is it on?
        a, b, c = np.moveaxis(
            triangles[None, :, :, :2] - columns[start : start + size, :, None], 2, 0
        )
        areas = np.stack([_cross(b, c), _cross(c, a), _cross(a, b)], axis=-1)
        column, triangle = np.nonzero((areas > 0).all(-1) | (areas < 0).all(-1))
        weights = areas[column, triangle]
        heights = (weights * triangles[triangle, :, 2]).sum(1) / weights.sum(1)
        np.add.at(crossings, start + column, heights[:, None] > z)
    inside: NDArray[np.bool_] = (crossings % 2 == 1).reshape(len(x), len(y), len(z))
    return inside


def _cross(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    product: NDArray[np.float64] = u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]
    return product


# --- pictures ----------------------------------------------------------------------------------


def draw_shape(prior: Prior, path: str | Path, *, title: str = "") -> None:
    """Draw a shape in three dimensions, with equal axes in angstrom, as PNG, atomically.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    SimgenError
        If the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError(
            "pictures of shapes need matplotlib; pip install 'simgen-toolkit[eval]'"
        ) from None
    from simgen.io import atomic_path

    points = prior.outline().numpy()
    figure = Figure(figsize=(6.0, 6.0), layout="constrained")
    axes = figure.add_subplot(projection="3d")
    # Colour tells what a picture without depth cannot: where along z.
    axes.scatter(*points.T, c=points[:, 2], cmap="viridis", s=12.0)
    middle = (points.max(0) + points.min(0)) / 2
    half = max(1.0, 0.55 * float((points.max(0) - points.min(0)).max()))
    axes.set(
        xlim=(middle[0] - half, middle[0] + half),
        ylim=(middle[1] - half, middle[1] + half),
        zlim=(middle[2] - half, middle[2] + half),
        xlabel="x / Å",
        ylabel="y / Å",
        zlabel="z / Å",
        title=title,
        box_aspect=(1, 1, 1),
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
