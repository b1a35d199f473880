"""Every file in priors/ is a usable shape, and the manifest knows them all."""

from pathlib import Path

import pytest
import torch

from simgen import shapes
from simgen.errors import InputError, LoadError
from simgen.shapes import ReadyShape, list_shapes, load_shape

FOLDER = Path(__file__).parent.parent / "priors"


def test_the_manifest_lists_every_file_once() -> None:
    files = sorted(shape.path.name for shape in list_shapes())
    assert files == sorted(path.name for path in FOLDER.iterdir() if path.name != "manifest.json")
    names = [shape.name for shape in list_shapes()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("shape", list_shapes(), ids=lambda shape: shape.name)
def test_every_shape_loads(shape: ReadyShape) -> None:
    points = load_shape(shape.name).points
    gaps = (torch.cdist(points, points) + 1e9 * torch.eye(len(points))).min(1).values
    assert gaps.min() > 1e-3  # no point twice
    assert gaps.max() < 1.5  # no gap that an atom could not bridge
    length = float(gaps.sum())
    assert shape.n_heavy_atoms == pytest.approx(1.5 * length, rel=0.1)
    assert shape.description
    assert shape.source
    assert shape.licence


def test_the_macrocycle_is_the_published_circle() -> None:
    points = load_shape("macrocycle").points
    assert len(points) == 100
    torch.testing.assert_close(
        points.norm(dim=1), torch.full((100,), 4.0, dtype=torch.float64), atol=1e-5, rtol=0
    )


def test_unknown_shapes_and_missing_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a shape among macrocycle, hairpin"):
        load_shape("pretzel")
    monkeypatch.setattr(shapes, "_FOLDERS", (tmp_path,))
    with pytest.raises(LoadError, match="install simgen again"):
        list_shapes()
