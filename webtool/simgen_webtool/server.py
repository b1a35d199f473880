"""ZnDraw in this process, with our tools in it: no Redis, no Celery, nothing left behind.

The page is served by threads of this process; tasks are computed by worker processes
(:mod:`simgen_webtool.workers`).
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import werkzeug.serving
from flask import Flask, Response, abort, jsonify, request, send_file
from pydantic import ValidationError
from rdkit import Chem
from zndraw import ZnDraw
from zndraw.app import events as zndraw_events
from zndraw.app import tasks as celery_tasks
from zndraw.app.job_manager import JobManager
from zndraw.config import ZnDrawConfig, set_config
from zndraw.extensions.analysis import analysis
from zndraw.extensions.modifiers import modifiers
from zndraw.extensions.selections import selections
from zndraw.geometries import Camera
from zndraw.server import create_app, socketio
from zndraw.server_manager import wait_for_server_ready

from simgen.errors import ConfigError, InputError, LoadError, SimgenError
from simgen.shapes import SUFFIXES, list_shapes, load_shape
from simgen_webtool.frames import lay_flat
from simgen_webtool.page import install_page
from simgen_webtool.rooms import Room, welcome
from simgen_webtool.safety import Rooms, make_safe
from simgen_webtool.tasks import Load
from simgen_webtool.tools import TOOLBAR, TOOLS, Desk, Limits, ShapeTool, Tool, load
from simgen_webtool.workers import Pool, Worker, load_generator

log = logging.getLogger(__name__)

ADMIN = "simgen"
"""Name of the administrator, as which the tools work."""
TEMPLATE_ROOM = "welcome"
"""Room that new rooms are copies of."""
EXAMPLE = "CC(=O)Nc1ccc(O)cc1 paracetamol"
"""Molecule in the welcome room."""
MOLECULE_FILES = {".sdf": ".sdf", ".sd": ".sdf", ".mol": ".sdf", ".smi": ".smi", ".xyz": ".xyz"}
"""Files that can be uploaded, and how they are read."""

_FORMS: dict[str, dict[str, Any]] = {
    "modifiers": modifiers,
    "selections": selections,
    "analysis": analysis,
}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_KEPT_MODIFIERS = ("Delete", "Translate", "Rotate", "Duplicate", "ChangeType", "RemoveAtoms")
"""ZnDraw's own that make sense for molecules."""
_PING_TIMEOUT = 120.0
"""Seconds after which a client that does not answer is taken for gone."""
_ASSIGNMENT_WAIT = 60.0
"""Seconds within which the page's request has noted who does a job."""


@dataclass(frozen=True)
class Settings:
    """How to run the web tool.

    Attributes
    ----------
    host, port : str, int
        Where to listen; port 0 for any free one.
    model, device : str
        Force field and where it computes, as of ``Generator.from_pretrained``.
    files : tuple of Path
        Shapes to offer, and molecules to begin with.
    n_workers : int or None
        Worker processes; by default two on a CPU, one on a GPU.
    password : str or None
        Of the administrator, ``simgen``; needed where the host is not loopback.
    limits : Limits
        What a job may ask for.

    Raises
    ------
    ConfigError
        If the server would listen to others and there is no password.
    """

    host: str = "127.0.0.1"
    port: int = 8642
    model: str = "small"
    device: str = "auto"
    files: tuple[Path, ...] = ()
    n_workers: int | None = None
    password: str | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.host not in _LOOPBACK and not self.password:
            raise ConfigError(
                f"expected a password to listen on {self.host}, where others can connect; set "
                "SIMGEN_WEB_PASSWORD, or leave --host out"
            )


class WebTool:
    """The server; a context manager.

    Parameters
    ----------
    settings : Settings
        How to run it.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._password = settings.password or secrets.token_urlsafe(24)
        self._folder = Path(tempfile.mkdtemp(prefix="simgen-web-"))
        n_workers = settings.n_workers or _default_workers(settings.device)
        n_threads = max(1, (os.cpu_count() or 1) // n_workers)
        load = partial(load_generator, settings.model, settings.device, n_threads)
        pool = Pool([Worker(load) for _ in range(n_workers)])
        shapes = {shape.name: shape.name for shape in list_shapes()}
        shapes |= {p.name: str(p.resolve()) for p in settings.files if _is_shape(p)}
        self.desk = Desk(pool, self._folder, shapes, settings.limits)
        self._install_tools(tuple(shapes))
        self._http = self._make_server()
        self.port = int(self._http.port)
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """Address of the page, as the tools use it too."""
        host = self.settings.host
        return f"http://{host if host in _LOOPBACK else '127.0.0.1'}:{self.port}"

    # -- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Serve the page; returns when it is ready. The workers load the force field meanwhile."""
        self.desk.pool.start()
        self._thread.start()
        if not wait_for_server_ready(self.url, timeout=30.0):
            raise SimgenError(f"the server at {self.url} does not answer; is the port in use?")
        self._furnish()

    def stop(self) -> None:
        """End jobs, workers and server, and remove temporary files."""
        self.desk.pool.close()
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join(timeout=5.0)
        self._http.server_close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> WebTool:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def client(self, room: str) -> ZnDraw:
        """Return a client of a room that acts as the administrator."""
        return ZnDraw.for_job_execution(self.url, room, user=ADMIN, password=self._password)

    # -- making it --------------------------------------------------------------------------------

    def _install_tools(self, shapes: tuple[str, ...]) -> None:
        """Replace ZnDraw's modifiers by ours and those of its own that are of use."""
        kept = {name: modifiers[name] for name in _KEPT_MODIFIERS if name in modifiers}
        ShapeTool.shapes = shapes
        modifiers.clear()
        modifiers.update({tool.label: tool for tool in TOOLS})
        modifiers.update(kept)
        modifiers.update(TOOLBAR)

    def _make_server(self) -> werkzeug.serving.BaseWSGIServer:
        settings = self.settings
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        server = _bind(settings.host, settings.port)
        config = ZnDrawConfig(
            server_host=settings.host,
            server_port=server.port,
            server_url=None,
            simgen_enabled=True,
            admin_username=ADMIN,
            admin_password=self._password,
            upload_temp=str(self._folder / "uploads"),
            media_path=str(self._folder / "media"),
            log_level="ERROR",
        )
        config.flask_secret_key = os.environ.get("FLASK_SECRET_KEY") or secrets.token_hex(32)
        set_config(config)
        # From above, so that one looks at the floor to draw on.
        zndraw_events.Camera = partial(Camera, position=(0.0, 20.0, 10.0))
        socketio.server_options["async_mode"] = "threading"
        # A page in the background, or on a busy machine, answers late.
        socketio.server_options["ping_timeout"] = _PING_TIMEOUT
        app = create_app(config=config)
        app.json.sort_keys = False
        app.wsgi_app = app.wsgi_app.app  # without /metrics
        self.rooms = Rooms(app.extensions["redis"], settings.limits.rooms)
        app.extensions["room_service"] = self.rooms
        make_safe(app, admin=ADMIN, template_room=TEMPLATE_ROOM)
        install_page(app, [(tool.label, tool) for tool in TOOLS], tuple(MOLECULE_FILES))
        self._add_routes(app)
        celery_tasks.celery_job_worker.delay = _Runner(app, self).delay
        server.app = app
        self._app = app
        return server

    def _add_routes(self, app: Flask) -> None:
        schema_of = app.view_functions["rooms.get_room_schema"]

        def schema(room_id: str, category: str) -> Any:
            forms = schema_of(room_id, category)
            # What has a button in the toolbar is not to be in the list a second time.
            if isinstance(forms, list):
                forms = [form for form in forms if form["name"] not in TOOLBAR]
            return forms

        app.view_functions["rooms.get_room_schema"] = schema
        app.view_functions["file_browser.upload_file"] = self._upload
        app.view_functions["file_browser.supported_types"] = lambda: {
            "extensions": list(MOLECULE_FILES)
        }
        app.add_url_rule("/simgen/files/<token>", "simgen_files", self._download)

    def _download(self, token: str) -> Response:
        path = self.desk.downloads.get(token)
        if path is None or not path.exists():
            abort(404)
        return send_file(path, as_attachment=True)

    def _upload(self) -> Any:
        """Read an uploaded file into a new room, with bond orders kept."""
        file = request.files.get("file")
        name = Path(file.filename or "").name if file is not None else ""
        suffix = MOLECULE_FILES.get(Path(name).suffix.lower())
        if file is None or suffix is None:
            known = ", ".join(MOLECULE_FILES)
            return jsonify({"error": f"expected a file ending in {known}, got {name!r}"}), 400
        try:
            self.rooms.check_space()
        except InputError as error:
            return jsonify({"error": str(error)}), 400
        text = file.read().decode(errors="replace")
        room = f"{''.join(c for c in Path(name).stem if c.isalnum())[:20]}-{secrets.token_hex(4)}"
        task = Load(text, suffix, max_atoms=self.desk.limits.atoms)
        vis = self.client(room)  # the page is about to enter it
        threading.Thread(target=self._read_into, args=(vis, task), daemon=True).start()
        return jsonify({"status": "queued", "room": room, "message": "reading the file"})

    def _read_into(self, vis: ZnDraw, task: Load) -> None:
        room = Room(vis)
        try:
            room.clear_drawings()
            load(room, self.desk, task)
        except SimgenError as error:
            room.say(f"**Upload**: {error}")
        finally:
            vis.disconnect()

    def _furnish(self) -> None:
        """Make the welcome room, and let new rooms be copies of it."""
        mols = [mol for path in self.settings.files for mol in _read(path, self.settings.limits)]
        vis = self.client(TEMPLATE_ROOM)
        try:
            welcome(Room(vis), mols or [_example()])
            self._app.extensions["redis"].set("default_room", TEMPLATE_ROOM)
        finally:
            vis.disconnect()


class _Runner:
    """Carries out the jobs that the page submits, each in a thread, in Celery's place."""

    def __init__(self, app: Flask, tool: WebTool) -> None:
        self.app = app
        self.tool = tool

    def delay(self, job: dict[str, Any], server_url: str) -> SimpleNamespace:
        """Begin a job and return its handle, as Celery does."""
        task_id = secrets.token_hex(8)
        threading.Thread(target=self._run, args=(job, f"celery:{task_id}"), daemon=True).start()
        return SimpleNamespace(id=task_id)

    def _run(self, job: dict[str, Any], worker_id: str) -> None:
        redis, job_id = self.app.extensions["redis"], job["id"]
        kind = _FORMS[job["category"]][job["extension"]]
        name = kind.label if issubclass(kind, Tool) else job["extension"]
        deadline = time.monotonic() + _ASSIGNMENT_WAIT
        while not JobManager.start_processing(redis, job_id, worker_id, socketio=socketio):
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
        vis = None
        try:
            form = kind(**job["data"])
            if isinstance(form, Tool):
                form.begin(job["room"], self.tool.desk)
            vis = self.tool.client(job["room"])
            if isinstance(form, Tool):
                form.work(Room(vis), self.tool.desk)
            else:
                form.run(vis)
        except Exception as error:
            message = _explain(error)
            self._say(vis, job["room"], f"**{name}**: {message}")
            JobManager.fail_job(redis, job_id, message, socketio=socketio)
        else:
            JobManager.complete_job(redis, job_id, socketio=socketio)
        finally:
            if vis is not None:
                vis.disconnect()

    def _say(self, vis: ZnDraw | None, room: str, words: str) -> None:
        """Write to the chat; a form that is filled in wrong fails before there is a client."""
        if vis is not None:
            vis.log(words)
            return
        vis = self.tool.client(room)
        vis.log(words)
        vis.disconnect()


def _explain(error: Exception) -> str:
    """Return what went wrong, for the user; what is our mistake goes to the log too."""
    if isinstance(error, SimgenError):
        return str(error)
    if isinstance(error, ValidationError):
        problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return "the form is not filled in right: " + "; ".join(problems)
    log.error("a job failed", exc_info=error)
    return f"internal error, see the log of the server: {error!r}"


def _bind(host: str, port: int) -> werkzeug.serving.BaseWSGIServer:
    """Return a server that listens; its application comes later.

    Raises
    ------
    ConfigError
        If it cannot listen there.
    """
    probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port or --host"
        ) from None
    probe.listen(128)
    return werkzeug.serving.make_server(
        host, port, Flask("starting"), threaded=True, fd=probe.detach()
    )


def _default_workers(device: str) -> int:
    """Return 1 for a GPU; otherwise two where there are two cores."""
    from simgen.devices import resolve_device

    return 1 if resolve_device(device).type != "cpu" else min(2, os.cpu_count() or 1)


def _is_shape(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.suffix.lower() not in MOLECULE_FILES


def _example() -> tuple[str, Chem.Mol]:
    ((name, mol),), _ = Load(EXAMPLE).read(lambda fraction, words: None)
    return name, lay_flat(mol)


def _read(path: Path, limits: Limits) -> list[tuple[str, Chem.Mol]]:
    """Return the molecules of a file; none if it is a shape."""
    if _is_shape(path):
        load_shape(path)  # what is wrong with it is to be said now
        return []
    suffix = MOLECULE_FILES.get(path.suffix.lower())
    if suffix is None:
        known = ", ".join(dict.fromkeys([*MOLECULE_FILES, *SUFFIXES]))
        raise LoadError(f"cannot tell what {path} is: expected a name ending in {known}")
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror}") from None
    mols, left_out = Load(text, suffix, max_atoms=limits.atoms).read(lambda fraction, words: None)
    for reason in left_out:
        log.warning("left out: %s", reason)
    return mols
