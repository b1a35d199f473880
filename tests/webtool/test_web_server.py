"""The running server: what the tools do, by the requests that the page makes, and safety."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from conftest import Guest
from rdkit import Chem
from zndraw.geometries import Curve

from simgen.errors import ConfigError
from simgen_webtool.frames import to_mol
from simgen_webtool.server import ADMIN, TEMPLATE_ROOM, Settings

Enter = Callable[[str], Guest]
SIMGEN = str(Path(sys.executable).with_name("simgen"))

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def smiles(guest: Guest, step: int | None = None) -> str:
    frame = guest.vis[guest.vis.step if step is None else step]
    return Chem.MolToSmiles(Chem.RemoveHs(to_mol(frame)))


class TestTools:
    def test_loading_keeps_bond_orders_charges_and_names(self, enter: Enter) -> None:
        guest = enter("load")
        found = guest.run("Load molecules", smiles="C#CC=C C[N+](C)(C)CC(=O)[O-] X")
        assert found.status == "completed"
        assert "left out" in found.said
        assert "read 2 of 3" in found.said
        assert [smiles(guest, -2), smiles(guest, -1)] == ["C#CC=C", "C[N+](C)(C)CC(=O)[O-]"]

    def test_an_uploaded_file_becomes_a_room_with_its_bonds(
        self, enter: Enter, tmp_path: Path
    ) -> None:
        guest = enter("upload")
        with Chem.SDWriter(str(tmp_path / "two.sdf")) as writer:
            for text in ("c1ccncc1", "C#N"):
                mol = Chem.AddHs(Chem.MolFromSmiles(text))
                Chem.rdDistGeom.EmbedMolecule(mol, randomSeed=1)
                writer.write(mol)
        with (tmp_path / "two.sdf").open("rb") as file:
            answer = guest.request("POST", "/api/file-browser/upload", files={"file": file})
        assert answer.status_code == 200
        visitor = enter(answer.json()["room"])
        end = time.monotonic() + 60
        while len(visitor.vis) < 2 and time.monotonic() < end:
            time.sleep(0.1)
        assert [smiles(visitor, -2), smiles(visitor, -1)] == ["c1ccncc1", "C#N"]
        answer = guest.request("POST", "/api/file-browser/upload", files={"file": ("a.exe", b"x")})
        assert answer.status_code == 400

    def test_hydrogenate_relax_and_validate(self, enter: Enter) -> None:
        guest = enter("finish")
        guest.run("Load molecules", smiles="CCO")
        frame = guest.vis[guest.vis.step]
        del frame[[8]]
        frame.info.pop("connectivity")
        guest.vis.append(frame)
        guest.vis.step = len(guest.vis) - 1
        found = guest.run("Validate")
        assert "no_hydrogens" in found.said
        assert guest.vis.selection == (2,)
        found = guest.run("Hydrogenate")
        assert "added 1 hydrogens" in found.said
        assert smiles(guest) == "CCO"
        guest.vis.selection = []
        found = guest.run("Relax")
        assert found.status == "completed"
        assert "released" in found.said
        found = guest.run("Validate")
        assert "is sound" in found.said
        assert "| smiles | CCO |" in found.said
        assert not guest.vis.selection
        assert "before Relax" in guest.vis.bookmarks.values()

    def test_relaxing_a_selection_leaves_the_others_where_they_are(self, enter: Enter) -> None:
        guest = enter("part")
        guest.run("Load molecules", smiles="CCCC")
        before = guest.vis[guest.vis.step].positions
        guest.vis.selection = [4, 5, 6]
        guest.run("Relax")
        moved = np.linalg.norm(guest.vis[guest.vis.step].positions - before, axis=1) > 1e-4
        assert set(np.flatnonzero(moved)) <= {4, 5, 6}

    def test_generating_along_a_curve(self, enter: Enter) -> None:
        guest = enter("curve")
        guest.vis.geometries["curve"] = Curve(position=[(-4, 0, 0), (0, 0, 1), (4, 0, 0)])
        n_before = len(guest.vis)
        found = guest.run("Generate", candidates=2, atoms=8, seed=3, steps=20)
        assert found.status == "completed"
        assert "made 2" in found.said
        assert len(guest.vis) > n_before + 3  # the trajectory, and two molecules
        on_the_way = guest.vis[n_before]
        assert len(on_the_way) == 8
        widths = np.ptp(guest.vis[-2].positions, axis=0)
        assert widths[0] > 5.0
        assert "Molecules" in guest.vis.figures
        assert guest.vis.step == len(guest.vis) - 2

    def test_selected_atoms_grow_and_the_others_stay(self, enter: Enter) -> None:
        guest = enter("grow")
        guest.run("Load molecules", smiles="c1ccccc1")
        ring = guest.vis[guest.vis.step].positions[:6]
        guest.vis.selection = [0]
        found = guest.run("Generate", candidates=1, atoms=3, seed=1, steps=20)
        assert found.status == "completed", found.said
        grown = guest.vis[guest.vis.step]
        np.testing.assert_allclose(grown.positions[:6], ring, atol=1e-3)
        assert sum(grown.numbers > 1) > 6

    def test_fragments_are_linked(self, enter: Enter) -> None:
        guest = enter("link")
        found = guest.run("Link selection")
        assert found.status == "failed"
        assert "two or more fragments" in found.said
        guest.run("Load molecules", smiles="c1ccccc1 c1ccccc1", together=True)
        found = guest.run("Link selection", candidates=1, seed=1, steps=20)
        assert found.status == "completed", found.said

    def test_the_toolbar_works_without_any_choices(self, enter: Enter) -> None:
        guest = enter("toolbar")
        assert "two or more selected atoms" in guest.run("Connect").said
        positions = guest.vis[guest.vis.step].positions
        guest.vis.selection = [0, 2, 4]
        assert guest.run("Connect").status == "completed"
        visitor = enter("toolbar")
        np.testing.assert_allclose(visitor.vis.points, positions[[0, 2, 4]], atol=1e-4)
        assert guest.run("NewCanvas").status == "completed"
        visitor = enter("toolbar")
        assert "curve" not in visitor.vis.geometries
        assert "plane" in visitor.vis.geometries
        assert len(visitor.vis[visitor.vis.step]) == 0
        assert smiles(visitor, 0) == "CC(=O)Nc1ccc(O)cc1"

    def test_shapes_are_shown(self, enter: Enter) -> None:
        guest = enter("shape")
        assert guest.run("Show shape", shape="macrocycle").status == "completed"
        points = np.array(enter("shape").vis.geometries["shape"].position)
        np.testing.assert_allclose(np.linalg.norm(points, axis=1), 4.0, atol=0.01)
        found = guest.run("Show shape", shape="/etc/passwd")
        assert "there is no shape" in found.said

    def test_saving_gives_everything(self, enter: Enter) -> None:
        guest = enter("save")
        guest.run("Load molecules", smiles="CC(N)=O")
        guest.run(
            "Generate", candidates=1, atoms=4, seed=1, steps=10, shape="none: a compact molecule"
        )
        link = re.search(r"\((/simgen/files/\S+)\)", guest.run("Save").said)
        assert link is not None
        answer = requests.get(guest.url + link[1], timeout=30)
        assert "attachment" in answer.headers["Content-Disposition"]
        archive = zipfile.ZipFile(io.BytesIO(answer.content))
        assert {"frames.xyz", "molecules.sdf", "report.csv", "run-1/run.json"} <= set(
            archive.namelist()
        )
        text = archive.read("molecules.sdf").decode()
        supplier = Chem.SDMolSupplier()
        supplier.SetData(text)
        assert [Chem.MolToSmiles(mol) for mol in supplier][:2] == ["CC(=O)Nc1ccc(O)cc1", "CC(N)=O"]
        assert requests.get(f"{guest.url}/simgen/files/wrong", timeout=30).status_code == 404

    def test_stop_ends_a_job_within_a_second(self, enter: Enter) -> None:
        guest = enter("stop")
        job_id = guest.submit("Generate", candidates=8, atoms=40, shape="none: a compact molecule")
        while guest.job(job_id)["status"] != "processing" or len(guest.vis) < 4:
            time.sleep(0.1)
        begin = time.monotonic()
        guest.submit("Stop")
        while guest.job(job_id)["status"] == "processing":
            time.sleep(0.02)
        assert time.monotonic() - begin < 2.0  # under a second, and the way there and back
        assert guest.job(job_id)["status"] == "failed"
        assert guest.run("Relax").status == "completed"

    def test_what_is_too_much_is_refused_with_the_limit(self, enter: Enter) -> None:
        guest = enter("limits")
        assert "less than or equal to 80" in guest.run("Generate", atoms=1000).said
        guest.vis.geometries["curve"] = Curve(position=[(-400, 0, 0), (400, 0, 0)])
        found = guest.run("Generate")
        assert found.status == "failed"
        assert "at most 80 atoms" in found.said

    def test_a_job_waits_for_a_user_who_is_drawing(self, enter: Enter) -> None:
        guest = enter("drawing")
        n_before = len(guest.vis)
        lock = guest.vis.get_lock(msg="drawing")
        lock.acquire()
        threading.Timer(2.0, lock.release).start()
        found = guest.run("Load molecules", smiles="CC")
        assert found.status == "completed"
        assert found.seconds > 1.5
        assert len(enter("drawing").vis) == n_before + 1

    def test_a_worker_that_dies_fails_its_job_and_no_other(self, enter: Enter, server: Any) -> None:
        guest = enter("crash")
        job_id = guest.submit("Generate", candidates=8, atoms=40, shape="none: a compact molecule")
        while len(guest.vis) < 3:
            time.sleep(0.1)
        worker = next(w for w in server.desk.pool.workers if w not in server.desk.pool._idle)
        os.kill(worker.pid, signal.SIGKILL)
        while guest.job(job_id)["status"] == "processing":
            time.sleep(0.05)
        assert guest.job(job_id)["status"] == "failed"
        assert "ended unexpectedly" in guest.chat()[-1]
        assert guest.run("Relax").status == "completed"

    def test_rooms_are_copies_of_the_welcome_room_and_do_not_share(self, enter: Enter) -> None:
        one, other = enter("one"), enter("other")
        one.run("Load molecules", smiles="CC")
        assert len(one.vis) == 2
        assert len(enter("other").vis) == len(other.vis) == 1
        assert smiles(other, 0) == "CC(=O)Nc1ccc(O)cc1"


class TestSafety:
    @pytest.fixture
    def guest(self, enter: Enter) -> Guest:
        return enter("safety")

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("POST", "/api/shutdown", {}),
            ("POST", "/internal/emit", {"event": "x", "sid": "y"}),
            ("POST", "/api/disconnect/simgen", {}),
            ("GET", "/api/file-browser/list", None),
            ("POST", "/api/file-browser/load", {"path": "/etc/passwd"}),
            ("POST", "/api/file-browser/create-room-from-file", {"sourceRoom": "safety"}),
            ("POST", "/api/workers/register", {"name": "Evil", "category": "modifiers"}),
            ("POST", "/api/workers/filesystem/register", {"name": "evil"}),
            ("GET", "/api/filesystems/any/list", None),
            ("POST", "/api/rooms/safety/filesystems/any/load", {}),
            ("PUT", "/api/rooms/safety/jobs/any/status", {"status": "completed"}),
            ("PUT", "/api/rooms/default", {"roomId": "safety"}),
            ("POST", f"/api/rooms/{TEMPLATE_ROOM}/frames", {}),
            ("PATCH", f"/api/rooms/{TEMPLATE_ROOM}", {"locked": True}),
            (
                "POST",
                f"/api/rooms/{TEMPLATE_ROOM}/extensions/public/modifiers/NewCanvas/submit",
                {"data": {}},
            ),
            ("GET", "/api/admin/users", None),
            ("POST", f"/api/admin/users/{ADMIN}/demote", {}),
            ("DELETE", f"/api/admin/users/{ADMIN}", None),
        ],
    )
    def test_guests_are_refused(self, guest: Guest, method: str, path: str, body: Any) -> None:
        for headers in (guest.headers, {}):
            answer = requests.request(
                method, guest.url + path, json=body, headers=headers, timeout=30
            )
            assert answer.status_code in (401, 403), answer.text
        assert requests.get(f"{guest.url}/health", timeout=30).status_code == 200

    def test_there_are_no_metrics(self, guest: Guest) -> None:
        assert "python_gc" not in requests.get(f"{guest.url}/metrics", timeout=30).text

    def test_extensions_of_guests_are_not_taken(self, guest: Guest) -> None:
        from pydantic import Field
        from zndraw.extensions import Category, Extension

        class Evil(Extension):
            category = Category.MODIFIER
            number: int = Field(1)

            def run(self, vis: Any, **_: Any) -> None: ...

        for public in (True, False):
            with pytest.raises(Exception, match=r"not offer|Only admin|403"):
                guest.vis.register_extension(Evil, public=public)

    @pytest.mark.parametrize("name", [ADMIN, f" {ADMIN} "])
    @pytest.mark.parametrize("password", ["", "simgen", None])
    def test_nobody_becomes_administrator(
        self, guest: Guest, name: str, password: str | None
    ) -> None:
        form = {"userName": name, "password": password}
        for path in ("/api/login", "/api/user/register", "/api/user/upgrade"):
            for headers in ({}, guest.headers):
                answer = requests.post(guest.url + path, json=form, headers=headers, timeout=30)
                assert answer.status_code >= 400, answer.text
                assert "token" not in answer.json()
        assert not guest.vis.is_admin

    def test_tokens_signed_with_the_public_default_key_are_refused(self, guest: Guest) -> None:
        import jwt

        forged = jwt.encode(
            {"sub": ADMIN, "role": "admin", "exp": time.time() + 60},
            "dev-secret-key-change-in-production",
            algorithm="HS256",
        )
        answer = requests.get(
            f"{guest.url}/api/admin/users",
            headers={"Authorization": f"Bearer {forged}"},
            timeout=30,
        )
        assert answer.status_code == 401

    def test_a_request_that_is_too_large_is_refused(self, guest: Guest) -> None:
        answer = guest.request(
            "POST", "/api/file-browser/upload", files={"file": ("a.sdf", b" " * (33 * 2**20))}
        )
        assert answer.status_code == 413

    def test_listening_to_others_takes_a_password(self) -> None:
        with pytest.raises(ConfigError, match="password"):
            Settings(host="0.0.0.0")
        assert Settings(host="0.0.0.0", password="long enough").password

    def test_guests_see_the_rooms_they_were_in_only(self, enter: Enter) -> None:
        enter("hidden")
        visible = {room["id"] for room in enter("seen").request("GET", "/api/rooms").json()}
        assert visible == {"seen"}


class TestCommand:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_it_starts_and_ends_without_leaving_anything(
        self, number: signal.Signals, tmp_path: Path
    ) -> None:
        environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
        command = [SIMGEN, "web", "--port", "0", "--no-browser"]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        url = re.search(r"http://\S+\d", line)
        assert url is not None, line
        assert requests.get(f"{url[0]}/health", timeout=30).status_code == 200
        process.send_signal(number)
        assert process.wait(timeout=20) == 0
        process.stdout.close()
        with pytest.raises(ProcessLookupError):  # no process of its group is left
            for _ in range(50):
                os.killpg(process.pid, 0)
                time.sleep(0.1)
        assert not list(tmp_path.glob("simgen-web-*"))

    def test_a_port_in_use_is_one_clear_line(self, server: Any) -> None:
        command = [SIMGEN, "web", "--port", str(server.port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2
        assert "cannot listen" in done.stderr
