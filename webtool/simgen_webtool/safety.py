"""What the page may ask of the server: everything else that ZnDraw offers is refused.

ZnDraw is made for trusted users: any guest could stop the server for everybody, read files of the
host, register code to be run by others, or disconnect them. Here guests can work in rooms whose
names they know, and nothing else.
"""

from __future__ import annotations

import re

from flask import Flask, Response, current_app, jsonify, request
from zndraw.auth import AuthError, get_current_user

MAX_REQUEST = 32 * 2**20
"""Most bytes of a request: an SDF file of thousands of molecules."""

_REFUSED = re.compile(
    "|".join(
        (
            r"/internal/.*",  # sends any event to anybody
            r"/api/shutdown",
            r"/api/disconnect/.*",  # throws out anybody
            r"/api/file-browser/(?!upload$).*",  # files of the host
            r"/api/filesystems/.*",
            r"/api/rooms/[^/]+/filesystems/.*",
            r"/api/workers/.*",  # registers extensions
            r"/api/rooms/[^/]+/jobs/[^/]+/status",  # calls others' jobs finished
        )
    )
)
_READING = ("GET", "HEAD", "OPTIONS")


def make_safe(app: Flask, *, admin: str, template_room: str) -> None:
    """Refuse what guests must not do.

    Parameters
    ----------
    app : Flask
        ZnDraw's application.
    admin : str
        Name of the administrator. ZnDraw would let in anybody who gives it without a password.
    template_room : str
        Room that new ones are copies of: only the administrator may change it.
    """
    app.config["MAX_CONTENT_LENGTH"] = MAX_REQUEST

    template = f"/api/rooms/{template_room}"

    def refuse() -> tuple[Response, int] | None:
        if _REFUSED.fullmatch(request.path):
            return _refusal("this server does not offer that")
        writes = request.method not in _READING and request.path != f"{template}/duplicate"
        inside = request.path == template or request.path.startswith(f"{template}/")
        if inside and writes and not _is_admin():
            return _refusal("the room that new rooms are copies of cannot be changed")
        if request.path.startswith(("/api/login", "/api/user/")):
            form = request.get_json(silent=True)
            form = form if isinstance(form, dict) else {}
            names_admin = str(form.get("userName") or "").strip() == admin
            if names_admin and not (request.path == "/api/login" and form.get("password")):
                return _refusal("this name is the administrator's")
        return None

    app.before_request(refuse)


def _refusal(reason: str) -> tuple[Response, int]:
    return jsonify({"error": reason, "type": "Refused"}), 403


def _is_admin() -> bool:
    try:
        user = get_current_user()
    except AuthError:
        return False
    return bool(current_app.extensions["admin_service"].is_admin(user))
