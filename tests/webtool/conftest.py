"""The running server that the tests share, and a client of a room."""

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

if find_spec("zndraw") is None:
    collect_ignore = ["test_web_server.py", "test_web_tools.py", "test_web_browser.py"]
else:
    with warnings.catch_warnings():  # what it imports warns
        warnings.simplefilter("ignore")
        import zndraw  # noqa: F401


MESH = "box.stl"
"""A shape that the server is started with."""


class Finished(NamedTuple):
    """What became of a job."""

    status: str
    seconds: float
    said: str
    """What was written to the chat meanwhile."""


class Guest:
    """A user of a room, by the requests that the page makes."""

    def __init__(self, url: str, room: str) -> None:
        import requests
        from zndraw import ZnDraw

        self.url = url
        requests.post(  # nothing is done where the room exists
            f"{url}/api/rooms/welcome/duplicate", json={"newRoomId": room}, timeout=30
        )
        self.vis = ZnDraw(url=url, room=room, user=f"guest-{uuid4().hex[:12]}")
        self.headers = self.vis.api._get_headers()

    def request(self, method: str, path: str, **keywords: Any) -> Any:
        import requests

        return requests.request(
            method, self.url + path, headers=self.headers, timeout=30, **keywords
        )

    def submit(self, tool: str, **form: Any) -> str:
        path = f"/api/rooms/{self.vis.room}/extensions/public/modifiers/{tool}/submit"
        answer = self.request("POST", path, json={"data": form})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["jobId"])

    def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.request("GET", f"/api/jobs/{job_id}").json()
        return found

    def chat(self) -> list[str]:
        messages = self.vis.get_messages(limit=100)["messages"]
        return [m["content"] for m in sorted(messages, key=lambda m: m["createdAt"])]

    def until(self, true: Callable[[], Any], seconds: float = 120.0) -> None:
        """Wait until something is true, which may take its time on a busy machine."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"not true after {seconds:.0f} s"
            time.sleep(0.05)

    def run(self, tool: str, *, timeout: float = 240.0, **form: Any) -> Finished:
        n_before, begin = len(self.chat()), time.monotonic()
        job_id = self.submit(tool, **form)
        self.until(lambda: self.job(job_id)["status"] in ("completed", "failed"), timeout)
        seconds = time.monotonic() - begin
        said = "\n".join(self.chat()[n_before:])
        return Finished(self.job(job_id)["status"], seconds, said)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Run the web tool in this process, on a free port, with a mesh to choose as a shape."""
    import trimesh

    from simgen_webtool.server import Settings, WebTool

    mesh = tmp_path_factory.mktemp("shapes") / MESH
    trimesh.creation.box((6.0, 6.0, 6.0)).export(mesh)
    with WebTool(Settings(port=0, files=(mesh,))) as tool:
        yield tool
    names = [t.name for t in threading.enumerate() if "serve_forever" in t.name]
    assert not names, f"the server left threads behind: {names}"


@pytest.fixture
def enter(server: Any) -> Iterator[Callable[[str], Guest]]:
    """Enter a room as a guest, a new copy of the welcome room."""
    guests: list[Guest] = []

    def make(room: str) -> Guest:
        guests.append(Guest(server.url, room))
        return guests[-1]

    yield make
    for guest in guests:  # it takes its client seconds
        threading.Thread(target=guest.vis.disconnect, daemon=True).start()
