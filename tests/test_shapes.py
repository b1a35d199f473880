"""Shapes from files: the ready ones, those of users, and what the commands say of bad ones."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from command_line import Command
from PIL import Image
from rdkit import Chem

from simgen import shapes
from simgen.errors import InputError, LoadError
from simgen.io import embed, write_sdf
from simgen.models import ForceField, NetworkConfig, save_model
from simgen.priors import Circle, Sphere, Transformed, prior_to_dict
from simgen.shapes import ReadyShape, inside_of_grid, list_shapes, load_shape

FOLDER = Path(__file__).parent.parent / "priors"


# --- ready shapes ------------------------------------------------------------------------------


def test_the_manifest_lists_every_file_once() -> None:
    files = sorted(shape.path.name for shape in list_shapes())
    assert files == sorted(path.name for path in FOLDER.iterdir() if path.name != "manifest.json")
    names = [shape.name for shape in list_shapes()]
    assert len(set(names)) == len(names) >= 15
    assert json.loads((FOLDER / "manifest.json").read_text())["units"] == "angstrom"


@pytest.mark.parametrize("shape", list_shapes(), ids=lambda shape: shape.name)
def test_every_shape_loads(shape: ReadyShape) -> None:
    prior = load_shape(shape.name)
    points = prior.outline()
    gaps = (torch.cdist(points, points) + 1e9 * torch.eye(len(points))).min(1).values
    assert gaps.max() < 1.5  # no gap that an atom could not bridge
    assert shape.n_heavy_atoms == prior.size.suggest_atoms()
    assert 9 <= shape.n_heavy_atoms <= 120
    # Centred, so that a scaled shape stays where it is.
    assert ((points.max(0).values + points.min(0).values) / 2).abs().max() < 6.0
    assert shape.description
    assert shape.source
    assert shape.licence


def test_the_macrocycle_is_the_published_circle() -> None:
    prior = load_shape("macrocycle")
    assert prior_to_dict(prior) == prior_to_dict(Circle(4.0))
    assert prior.size.suggest_atoms() == 38


def test_unknown_shapes_and_missing_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a shape file or one of macrocycle"):
        load_shape("pretzel")
    monkeypatch.setattr(shapes, "_FOLDERS", (tmp_path,))
    with pytest.raises(LoadError, match="install simgen again"):
        list_shapes()


# --- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".npy", ".ply", ".xyz"])
def test_clouds_from_files(suffix: str, tmp_path: Path) -> None:
    points = Circle(4.0).points.numpy()
    path = tmp_path / f"circle{suffix}"
    match suffix:
        case ".csv":
            np.savetxt(path, points, delimiter=",", header="x,y,z", comments="")
        case ".npy":
            np.save(path, points)
        case ".ply":
            trimesh.PointCloud(points).export(path)
        case ".xyz":
            path.write_text("100\n\n" + "".join(f"C {x} {y} {z}\n" for x, y, z in points))
    prior = load_shape(path)
    np.testing.assert_allclose(np.sort(prior.outline(), 0), np.sort(points, 0), atol=1e-5)
    if suffix == ".xyz":
        assert prior.size.suggest_atoms() == 100  # atoms are counted
    else:
        assert prior.size.length == pytest.approx(8 * np.pi, rel=0.02)
    twice = load_shape(path, scale=2.0)
    torch.testing.assert_close(twice.outline(), 2 * prior.outline())


def test_csv_without_header_and_with_other_separators(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    for text in ("0,0,0\n0,0,2\n", "0 0 0\n0 0 2\n", "x;y;z;what\n0;0;0;a\n0;0;2;b\n"):
        path.write_text(text)
        assert load_shape(path).points.tolist() == [[0, 0, 0], [0, 0, 2]]


def test_large_clouds_are_thinned_evenly(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(5000, 3))
    points = 4.0 * points / np.linalg.norm(points, axis=1, keepdims=True)
    np.save(tmp_path / "sphere.npy", points)
    prior = load_shape(tmp_path / "sphere.npy")
    assert len(prior.points) == 1000
    assert prior.size.area == pytest.approx(64 * np.pi, rel=0.15)


@pytest.mark.parametrize("suffix", [".stl", ".obj", ".ply", ".glb"])
def test_meshes(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"ball{suffix}"
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=3.0)
    mesh.export(path)
    shell, ball = load_shape(path), load_shape(path, solid=True)
    assert shell.size.area == pytest.approx(36 * np.pi, rel=0.01)
    assert ball.size.volume == pytest.approx(36 * np.pi, rel=0.01)
    radii = shell.outline().norm(dim=1)
    assert 2.97 < radii.min() <= radii.max() < 3.0001
    radii = ball.outline().norm(dim=1)
    assert radii.max() < 3.0
    # A ball has an eighth of its volume within half its radius.
    assert float((radii < 1.5).double().mean()) == pytest.approx(0.125, abs=0.05)
    assert len(ball.points) == pytest.approx(905, rel=0.1)
    gaps = torch.cdist(shell.points, shell.points).topk(2, largest=False).values[:, 1]
    assert gaps.min() > 0.5 * gaps.mean()


def test_inside_and_outside_of_a_mesh() -> None:
    mesh = trimesh.creation.torus(3.0, 1.0)
    x, y, z = np.linspace(-3.9, 3.83, 17), np.linspace(-3.81, 3.9, 13), np.linspace(-1.2, 1.2, 9)
    inside = inside_of_grid((x, y, z), mesh.triangles)
    level = (np.hypot(x[:, None, None], y[:, None]) - 3.0) ** 2 + z**2
    clear = np.abs(level - 1.0) > 0.1  # the mesh is not quite the torus
    assert 50 < inside.sum() < inside.size - 50
    np.testing.assert_array_equal(inside[clear], (level < 1.0)[clear])


def test_molecules_are_shapes(tmp_path: Path) -> None:
    mols = [embed(Chem.MolFromSmiles(smiles)) for smiles in ("CCO", "c1ccccc1CC")]
    write_sdf(tmp_path / "one.sdf", mols[1:])
    write_sdf(tmp_path / "many.sdf", mols)
    Chem.MolToPDBFile(mols[1], str(tmp_path / "one.pdb"))
    heavy = mols[1].GetConformer().GetPositions()[:8]
    for name in ("one.sdf", "one.pdb"):
        prior = load_shape(tmp_path / name)
        np.testing.assert_allclose(prior.points, heavy, atol=2e-3)
        assert prior.size.suggest_atoms() == 8
        assert torch.equal(prior.landmarks(), prior.points)
    both = load_shape(tmp_path / "many.sdf")
    assert len(both.points) == 11
    assert both.size.suggest_atoms() == 6  # 5.5 on average
    assert not len(both.landmarks())


# --- commands ----------------------------------------------------------------------------------


def test_priors_list(simgen: Command) -> None:
    outcome = simgen("priors", "list")
    names = [line.split()[0] for line in outcome.out.splitlines()]
    assert names == ["gaussian", "line", "circle", *(shape.name for shape in list_shapes())]


@pytest.mark.parametrize("shape", ["trefoil", "gaussian", "circle", "file"])
def test_priors_show(simgen: Command, tmp_path: Path, shape: str) -> None:
    out = tmp_path / "shape.png"
    if shape == "file":
        shape = str(tmp_path / "shape.csv")
        np.savetxt(shape, Circle(2.0).points.numpy(), delimiter=",")
    outcome = simgen("priors", "show", shape, "--out", out)
    assert outcome.code == 0, outcome.err
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
        # Something is drawn, in colours.
        assert len(picture.convert("RGB").getcolors(2**24) or []) > 50
    assert ("heavy atoms" in outcome.out) == (shape != "gaussian")
    if shape == "circle":
        assert "extent    8.1 x 8.1 x 0.0 angstrom" in outcome.out
        assert "length    25.3 angstrom" in outcome.out
        assert "suits     38 heavy atoms" in outcome.out


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Options of a run that takes no time."""
    folder = tmp_path_factory.mktemp("small")
    config = NetworkConfig(elements=(1, 6, 7, 8), n_channels=4, l_max=1)
    save_model(ForceField(config, scale=0.0), folder / "random.safetensors", {})
    (folder / "reference.smi").write_text("CCO\nCC(=O)N\nC1CCCC1\nCCN\n")
    return (
        "generate", "--model", folder / "random.safetensors", "--reference",
        folder / "reference.smi", "--count", 1, "--steps", 4, "--particles", 2, "--device", "cpu",
        "--refinements", 0, "--repairs", 0, "--workers", 1, "--seed", 1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "n_atoms"),
    [
        (["--shape", "chain", "--shape-scale", "0.3"], 5),  # 3.6 angstrom
        (["--shape", "chain", "--density", "0.5"], 6),
        (["--shape", "circle.json"], 9),
        (["--shape", "box.stl", "--shape-scale", "0.5"], 9),  # 24 angstrom^2
        (["--shape", "box.stl", "--shape-solid", "--density", "0.5"], 4),  # 8 angstrom^3
    ],
)
def test_the_number_of_atoms_from_the_shape(
    simgen: Command,
    small: tuple,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list,
    n_atoms: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("circle.json").write_text('{"kind": "circle", "radius": 1.0}')
    extents = (2, 2, 2) if "--shape-solid" in options else (4, 4, 4)
    trimesh.creation.box(extents).export("box.stl")
    outcome = simgen(*small, "--heavy-atoms", "auto", *options, "--out", "run")
    assert outcome.code == 0, outcome.err
    config = json.loads(Path("run", "run.json").read_text())["config"]
    assert config["n_heavy_atoms"] == [n_atoms, n_atoms]
    if "--shape-scale" in options:
        assert config["prior"]["kind"] == "transformed"
        assert config["prior"]["scale"] == float(options[-1])


TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"
BAD_FILES = {
    "open.obj": TRIANGLE,
    "nofaces.obj": "v 0 0 0\nv 1 0 0\n",
    "nan.obj": TRIANGLE.replace("1 0 0", "nan 0 0"),
    "garbage.stl": "these are not the faces",
    "empty.csv": "",
    "header.csv": "x,y,z\n",
    "nan.csv": "0,0,0\nnan,1,2\n",
    "ragged.csv": "0,0,0\n1,2\n",
    "words.csv": "0,0,0\na,b,c\n",
    "garbage.npy": "no array",
    "empty.xyz": "",
    "hydrogen.xyz": "1\n\nH 0 0 0\n",
    "broken.pdb": "nothing here\n",
    "shape.docx": "words",
    "point.json": '{"kind": "spline", "through": [[0, 0, 0]]}',
    "cube.json": '{"kind": "cube"}',
    "list.json": "[1]",
    "broken.json": "{",
    "huge.json": '{"kind": "sphere", "radius": 50.0, "solid": true}',
}


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--shape", "open.obj", "--shape-solid"], 2, ["watertight", "open.obj"]),
        (["--shape", "nofaces.obj", "--shape-solid"], 3, ["nofaces.obj holds no faces"]),
        (["--shape", "nan.obj"], 3, ["nan.obj"]),
        (["--shape", "garbage.stl"], 3, ["garbage.stl"]),
        (["--shape", "empty.csv"], 3, ["empty.csv is empty"]),
        (["--shape", "header.csv"], 3, ["header.csv holds no shape"]),
        (["--shape", "nan.csv"], 3, ["nan.csv", "finite"]),
        (["--shape", "ragged.csv"], 3, ["ragged.csv is no table"]),
        (["--shape", "words.csv"], 3, ["words.csv is no table"]),
        (["--shape", "garbage.npy"], 3, ["garbage.npy is no table"]),
        (["--shape", "pickle.npy"], 3, ["pickle.npy is no table", "allow_pickle=False"]),
        (["--shape", "empty.xyz"], 3, ["empty.xyz is empty"]),
        (["--shape", "hydrogen.xyz"], 3, ["no heavy atom"]),
        (["--shape", "broken.pdb"], 3, ["no PDB file"]),
        (["--shape", "shape.docx"], 3, ["shape.docx", ".csv", ".stl"]),
        (["--shape", "none.csv"], 3, ["none.csv does not exist"]),
        (["--shape", "point.json"], 2, ["at least 2 points", "got 1"]),
        (["--shape", "cube.json"], 2, ["'cube'"]),
        (["--shape", "list.json"], 3, ["list.json is no description"]),
        (["--shape", "broken.json"], 3, ["broken.json is no description"]),
        (["--shape", "pretzel"], 2, ["--shape", "'pretzel'", "trefoil"]),
        (["--shape", "heart", "--shape-solid"], 2, ["expected a mesh", "heart"]),
        (["--shape", "circle", "--shape-solid"], 2, ["expected a mesh", "circle"]),
        (["--shape", "heart", "--shape-scale", "0"], 2, ["scale", "0.0"]),
        (["--shape", "circle"], 2, ["circle", "--heavy-atoms"]),
        (["--shape", "gaussian"], 2, ["suits any number"]),
        (["--shape", "huge.json"], 2, ["at most 200", "--shape-scale"]),
        (["--shape", "dumbbell", "--density", "1"], 2, ["together"]),
        (["--shape", "heart", "--density", "0"], 2, ["positive density"]),
        (["--shape", "heart", "--heavy-atoms", "9", "--density", "1"], 2, ["--density", "auto"]),
    ],
)
def test_bad_shapes_are_one_clear_line(
    simgen: Command,
    small: tuple,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list,
    code: int,
    words: list,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in BAD_FILES.items():
        Path(name).write_text(text)
    np.save("pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    outcome = simgen(*small, "--heavy-atoms", "auto", "--out", "run", *options)
    assert outcome.code == code, outcome
    assert "Traceback" not in outcome.err
    last = outcome.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    for word in words:
        assert word in last
    assert not Path("run", "molecules.sdf").exists()


def test_missing_packages(simgen: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trimesh.creation.box((1, 1, 1)).export(tmp_path / "box.stl")
    show = ("priors", "show", tmp_path / "box.stl", "--out", tmp_path / "box.png")
    assert "expected --out to end in .png" in simgen(*show[:-1], tmp_path / "box.gif").err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    outcome = simgen(*show)
    assert (outcome.code, "need matplotlib" in outcome.err) == (5, True)
    monkeypatch.setitem(sys.modules, "trimesh", None)
    outcome = simgen(*show)
    assert (outcome.code, "simgen-toolkit[mesh]" in outcome.err) == (5, True)


def test_scaled_ready_shapes_are_the_same_in_python() -> None:
    scaled = load_shape("cage", scale=2.0)
    assert isinstance(scaled, Transformed)
    assert isinstance(scaled.prior, Sphere)
    assert scaled.size.area == pytest.approx(4 * np.pi * 7.0**2)
