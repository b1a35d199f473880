"""What each tool does in a room, and what it says where it cannot: by the page's requests."""

import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
import requests
from conftest import MESH, Guest
from rdkit import Chem
from zndraw.geometries import Curve

from simgen_webtool.frames import to_frame, to_mol
from simgen_webtool.tools import DEFAULT_ATOMS

Enter = Callable[[str], Guest]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

EXAMPLE = "CC(=O)Nc1ccc(O)cc1"
"""In the welcome room, and so the first frame of every room."""
QUICK = {"candidates": 1, "steps": 10, "seed": 1}


@pytest.fixture
def guest(enter: Enter, request: pytest.FixtureRequest) -> Guest:
    """A guest in a room named after the test."""
    return enter(re.sub(r"\W", "-", request.node.name))


def shown(guest: Guest) -> ase.Atoms:
    frame: ase.Atoms = guest.vis[guest.vis.step]
    return frame


def smiles(guest: Guest, step: int | None = None) -> str:
    frame = guest.vis[guest.vis.step if step is None else step]
    return Chem.MolToSmiles(Chem.RemoveHs(to_mol(frame)))


def put(guest: Guest, frame: ase.Atoms) -> None:
    """Show a frame of one's own."""
    guest.vis.append(frame)
    guest.vis.step = len(guest.vis) - 1


def bare(mol: Chem.Mol) -> ase.Atoms:
    """The heavy atoms of a molecule, without bonds."""
    frame = to_frame(mol)
    return ase.Atoms(frame.numbers, frame.positions)[frame.numbers > 1]


def saved(guest: Guest, what: str) -> bytes:
    """Save something and fetch it by the link in the chat."""
    link = re.search(r"\((/simgen/files/\S+)\)", guest.run("Save", what=what).said)
    assert link is not None
    answer = requests.get(guest.url + link[1], timeout=30)
    assert "attachment" in answer.headers["Content-Disposition"]
    return answer.content


@pytest.mark.parametrize(
    "tool",
    ["Link selection", "Decorate", "Analogues", "Hydrogenate", "Relax", "Validate"],
)
def test_an_empty_frame_is_no_molecule(guest: Guest, tool: str) -> None:
    put(guest, ase.Atoms())
    found = guest.run(tool)
    assert found.status == "failed"
    assert f"**{tool}**: expected a molecule in this frame, got no atoms" in found.said


def test_a_form_that_is_filled_in_wrong_is_explained(guest: Guest) -> None:
    found = guest.run("Generate", strength=-1)
    assert found.status == "failed"
    assert "the form is not filled in right: strength: " in found.said
    assert "greater than 0" in found.said


class TestGenerate:
    def test_along_a_curve(self, guest: Guest) -> None:
        guest.vis.geometries["curve"] = Curve(position=[(-4, 0, 0), (0, 0, 1), (4, 0, 0)])
        n_before = len(guest.vis)
        found = guest.run("Generate", candidates=2, atoms=8, seed=3, steps=20)
        assert found.status == "completed"
        assert "made 2" in found.said
        assert len(guest.vis) >= n_before + 3  # the trajectory, and two molecules
        on_the_way = guest.vis[n_before]
        assert len(on_the_way) == 8
        widths = np.ptp(guest.vis[-2].positions, axis=0)
        assert widths[0] > 5.0
        assert guest.vis.step == len(guest.vis) - 2

    def test_the_best_come_first_and_points_of_the_plot_know_their_frames(
        self, guest: Guest
    ) -> None:
        guest.run("Generate", candidates=3, atoms=6, seed=1, steps=20)
        points = guest.vis.figures["Molecules"].data[0]
        assert [action["click"] for action in points.meta["interactions"]] == ["step"]
        assert len(points.customdata) >= 1
        for (frame,), text in zip(points.customdata, points.text, strict=True):
            info = guest.vis[int(frame)].info
            assert text == f"{info['smiles']}<br>{info['status']}"
        valid = [s for s, t in zip(points.x, points.text, strict=True) if t.endswith(">ok")]
        assert valid == sorted(valid, reverse=True)

    def test_without_any_choice_drawing_and_selection(self, guest: Guest) -> None:
        n_before = len(guest.vis)
        found = guest.run("Generate")
        assert found.status == "completed"
        assert "**Generate** made 4" in found.said
        assert len(guest.vis[n_before]) == DEFAULT_ATOMS

    def test_a_single_point_is_a_place_to_be_near(self, guest: Guest) -> None:
        guest.vis.geometries["curve"] = Curve(position=[(20.0, 0.0, 5.0)])
        guest.run("Generate", atoms=4, **QUICK)
        centre = shown(guest).positions.mean(0)
        np.testing.assert_allclose(centre, [20.0, 0.0, 5.0], atol=2.0)

    def test_selected_atoms_grow_and_the_others_stay(self, guest: Guest) -> None:
        guest.run("Load molecules", smiles="c1ccccc1")
        ring = shown(guest).positions[:6]
        guest.vis.selection = [0]
        found = guest.run("Generate", atoms=3, candidates=1, seed=1, steps=20)
        assert found.status == "completed", found.said
        grown = shown(guest)
        np.testing.assert_allclose(grown.positions[:6], ring, atol=1e-3)
        assert sum(grown.numbers > 1) > 6

    def test_what_is_too_much_is_refused_with_the_limit(self, guest: Guest) -> None:
        assert "less than or equal to 80" in guest.run("Generate", atoms=1000).said
        guest.vis.geometries["curve"] = Curve(position=[(-400, 0, 0), (400, 0, 0)])
        found = guest.run("Generate")
        assert found.status == "failed"
        assert "at most 80 atoms" in found.said

    def test_a_shape_that_there_is_not(self, guest: Guest) -> None:
        assert "there is no shape '/etc/passwd'" in guest.run("Generate", shape="/etc/passwd").said


class TestLinkSelection:
    def test_fragments_are_joined_and_stay(self, guest: Guest) -> None:
        found = guest.run("Link selection")
        assert found.status == "failed"
        assert "two or more fragments" in found.said
        guest.run("Load molecules", smiles="c1ccccc1 c1ccccc1", together=True)
        before = shown(guest)
        heavy = before.positions[before.numbers > 1]
        found = guest.run("Link selection", candidates=1, seed=1, steps=20)
        assert found.status == "completed", found.said
        after = shown(guest).positions
        distances = np.linalg.norm(heavy[:, None] - after[None], axis=-1)
        assert distances.min(1).max() < 1e-3
        assert sum(shown(guest).numbers > 1) > len(heavy)


class TestDecorate:
    def test_a_group_takes_the_place_of_a_hydrogen(self, guest: Guest) -> None:
        guest.run("Load molecules", smiles="c1ccccc1")
        ring = shown(guest).positions[:6]
        guest.vis.selection = [2]
        # The numbers in either order are the same range.
        found = guest.run("Decorate", least=2, most=1, candidates=1, seed=1, steps=20)
        assert found.status == "completed", found.said
        grown = shown(guest)
        np.testing.assert_allclose(grown.positions[:6], ring, atol=1e-3)
        assert 7 <= sum(grown.numbers > 1) <= 8


class TestAnalogues:
    def test_they_are_about_as_large(self, guest: Guest) -> None:
        guest.run("Load molecules", smiles="CCOC")
        found = guest.run("Analogues", spread=1, **QUICK)
        assert found.status == "completed", found.said
        assert 3 <= sum(shown(guest).numbers > 1) <= 5


class TestHydrogenateRelaxValidate:
    def test_one_after_the_other(self, guest: Guest) -> None:
        guest.run("Load molecules", smiles="CCO")
        frame = shown(guest)
        del frame[[8]]
        frame.info.pop("connectivity")
        put(guest, frame)
        found = guest.run("Validate")
        assert "no_hydrogens" in found.said
        assert guest.vis.selection == (2,)
        found = guest.run("Hydrogenate")
        assert "added 1 hydrogens" in found.said
        assert smiles(guest) == "CCO"
        guest.vis.selection = []
        before = guest.vis[guest.vis.step].positions
        found = guest.run("Relax")
        assert found.status == "completed"
        moved = np.linalg.norm(guest.vis[guest.vis.step].positions - before, axis=1).max()
        assert f"atoms moved by up to {moved:.2f} Å" in found.said
        assert moved > 0.005
        found = guest.run("Validate")
        assert "is sound" in found.said
        assert "| smiles | CCO |" in found.said
        assert not guest.vis.selection

    def test_bare_heavy_atoms_get_hydrogens_and_complete_ones_none(self, guest: Guest) -> None:
        guest.run("Load molecules", smiles="CC(N)=O")
        put(guest, bare(to_mol(shown(guest))))
        assert "added 5 hydrogens: `CC(N)=O`" in guest.run("Hydrogenate").said
        n_frames = len(guest.vis)
        assert "no hydrogen missing" in guest.run("Hydrogenate").said
        assert len(guest.vis) == n_frames

    def test_relaxing_a_selection_leaves_the_others_where_they_are(self, guest: Guest) -> None:
        guest.run("Load molecules", smiles="CCCC")
        before = shown(guest).positions
        before[4] += [0.1, 0.0, 0.0]
        put(guest, ase.Atoms(shown(guest).numbers, before))
        guest.vis.selection = [4, 5, 6]
        guest.run("Relax")
        moved = np.linalg.norm(shown(guest).positions - before, axis=1) > 1e-4
        assert moved[4]
        assert set(np.flatnonzero(moved)) <= {4, 5, 6}

    def test_what_the_force_field_cannot_do_is_said(self, guest: Guest) -> None:
        put(guest, ase.Atoms("Fe"))
        assert "the force field does not know Fe" in guest.run("Relax").said

    def test_bookmarks_lead_back(self, guest: Guest) -> None:
        before = shown(guest).positions
        guest.run("Relax")
        assert np.abs(shown(guest).positions - before).max() > 1e-3
        (back,) = (step for step, words in guest.vis.bookmarks.items() if words == "before Relax")
        guest.vis.step = int(back)
        np.testing.assert_array_equal(shown(guest).positions, before)


class TestLoad:
    def test_bond_orders_charges_and_names_are_kept(self, guest: Guest) -> None:
        found = guest.run("Load molecules", smiles="C#CC=C C[N+](C)(C)CC(=O)[O-] X")
        assert found.status == "completed"
        assert "left out" in found.said
        assert "read 2 of 3" in found.said
        assert [smiles(guest, -2), smiles(guest, -1)] == ["C#CC=C", "C[N+](C)(C)CC(=O)[O-]"]

    @pytest.mark.parametrize(
        ("text", "answer"),
        [
            (" ", "expected a SMILES string, got none"),
            ("this", "not a SMILES string: this"),
            ("C" * 81, "more than 80 heavy atoms"),
        ],
    )
    def test_what_cannot_be_read_is_said(self, guest: Guest, text: str, answer: str) -> None:
        found = guest.run("Load molecules", smiles=text)
        assert found.status == "failed"
        assert answer in found.said
        assert len(guest.vis) == 1

    def test_an_uploaded_file_becomes_a_room_with_its_bonds(
        self, guest: Guest, enter: Enter, tmp_path: Path
    ) -> None:
        known = guest.request("GET", "/api/file-browser/supported-types").json()["extensions"]
        assert {".sdf", ".smi", ".xyz"} <= set(known)
        with Chem.SDWriter(str(tmp_path / "two.sdf")) as writer:
            for text in ("c1ccncc1", "C#N"):
                mol = Chem.AddHs(Chem.MolFromSmiles(text))
                Chem.rdDistGeom.EmbedMolecule(mol, randomSeed=1)
                writer.write(mol)
        with (tmp_path / "two.sdf").open("rb") as file:
            answer = guest.request("POST", "/api/file-browser/upload", files={"file": file})
        assert answer.status_code == 200
        visitor = enter(answer.json()["room"])
        visitor.until(lambda: len(visitor.vis) == 2)
        assert [smiles(visitor, -2), smiles(visitor, -1)] == ["c1ccncc1", "C#N"]
        answer = guest.request("POST", "/api/file-browser/upload", files={"file": ("a.exe", b"x")})
        assert answer.status_code == 400
        assert "expected a file ending in .sdf" in answer.json()["error"]


class TestSave:
    def test_everything(self, guest: Guest) -> None:
        guest.run("Load molecules", smiles="CC(N)=O")
        guest.run("Generate", atoms=4, **QUICK)
        archive = zipfile.ZipFile(io.BytesIO(saved(guest, "everything (zip)")))
        assert {"frames.xyz", "molecules.sdf", "report.csv", "run-1/run.json"} <= set(
            archive.namelist()
        )
        supplier = Chem.SDMolSupplier()
        supplier.SetData(archive.read("molecules.sdf").decode())
        assert [Chem.MolToSmiles(mol) for mol in supplier][:2] == [EXAMPLE, "CC(N)=O"]
        assert requests.get(f"{guest.url}/simgen/files/wrong", timeout=30).status_code == 404

    def test_one_molecule_frames_and_report(self, guest: Guest) -> None:
        guest.run("Load molecules", smiles="C[N+](C)(C)CC(=O)[O-]")
        block = saved(guest, "this molecule (SDF)").decode().split("$$$$")[0]
        assert Chem.MolToSmiles(Chem.MolFromMolBlock(block)) == "C[N+](C)(C)CC(=O)[O-]"
        lines = saved(guest, "all frames (XYZ)").decode().splitlines()
        assert [int(lines[0]), int(lines[22])] == [len(guest.vis[0]), len(guest.vis[1])]
        report = saved(guest, "report (CSV)").decode().splitlines()
        assert len(report) == 3
        assert EXAMPLE in report[1]

    def test_an_empty_frame_is_no_molecule(self, guest: Guest) -> None:
        put(guest, ase.Atoms())
        found = guest.run("Save", what="this molecule (SDF)")
        assert found.status == "failed"
        assert "got no atoms" in found.said


class TestShapes:
    def points(self, enter: Enter, guest: Guest) -> Any:
        geometry = enter(guest.vis.room).vis.geometries["shape"]  # as it is seen from elsewhere
        return np.array(geometry.position)

    def test_a_ready_one_is_shown(self, guest: Guest, enter: Enter) -> None:
        assert guest.run("Show prior", shape="macrocycle").status == "completed"
        distances = np.linalg.norm(self.points(enter, guest), axis=1)
        np.testing.assert_allclose(distances, 4.0, atol=0.01)

    def test_a_mesh_of_the_command_line_is_shown(self, guest: Guest, enter: Enter) -> None:
        assert guest.run("Show prior", shape=MESH).status == "completed"
        points = self.points(enter, guest)
        assert 4.0 < np.ptp(points, axis=0).min() <= np.ptp(points, axis=0).max() < 6.1

    def test_the_drawn_one_is_shown_open_or_closed(self, guest: Guest, enter: Enter) -> None:
        corners = np.array([(3, 0, 0), (0, 0, 3), (-3, 0, 0), (0, 0, -3)], float)
        guest.vis.geometries["curve"] = Curve(position=corners.tolist())
        missing = np.array([1.5, 0.0, -1.5])  # between the last and the first
        for closed in (False, True):
            guest.run("Show prior", closed=closed)
            points = self.points(enter, guest)
            assert np.linalg.norm(points[:, None] - corners, axis=-1).min(0).max() < 0.5
            is_near = np.linalg.norm(points - missing, axis=1).min() < 1.0
            assert is_near == closed


class TestToolbar:
    def test_its_buttons_work_without_any_choices(self, guest: Guest, enter: Enter) -> None:
        assert "two or more selected atoms" in guest.run("Connect").said
        positions = shown(guest).positions
        guest.vis.selection = [0, 2, 4]
        assert guest.run("Connect").status == "completed"
        room = guest.vis.room
        np.testing.assert_allclose(enter(room).vis.points, positions[[0, 2, 4]], atol=1e-4)
        assert guest.run("NewCanvas").status == "completed"
        visitor = enter(room)
        assert "curve" not in visitor.vis.geometries
        assert "plane" in visitor.vis.geometries
        assert len(shown(visitor)) == 0
        assert smiles(visitor, 0) == EXAMPLE

    def test_the_menu_has_each_tool_once(self, guest: Guest) -> None:
        forms = guest.request("GET", f"/api/rooms/{guest.vis.room}/schema/modifiers").json()
        names = [form["name"] for form in forms]
        assert len(set(names)) == len(names)
        assert names[:4] == ["Generate", "Link selection", "Decorate", "Analogues"]
        assert {"Hydrogenate", "Relax", "Validate", "Load molecules", "Save"} <= set(names)
        assert {"Show prior", "Stop", "Delete"} <= set(names)
        assert not {"Connect", "NewCanvas", "AddFromSMILES"} & set(names)


def test_stop_has_nothing_to_stop(guest: Guest) -> None:
    assert "there is no job to stop" in guest.run("Stop").said
