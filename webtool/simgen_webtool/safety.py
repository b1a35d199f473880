"""What the page may ask of the server: everything else that ZnDraw offers is refused.

ZnDraw is made for trusted users: any guest could stop the server for everybody, read files of the
host, register code to be run by others, or disconnect them. Here guests can work in rooms whose
names they know, and nothing else.
"""

from __future__ import annotations

import re
from typing import Any

from flask import Flask, Response, current_app, jsonify, request
from zndraw.app.redis_keys import GlobalIndexKeys
from zndraw.auth import AuthError, get_current_user
from zndraw.services import RoomService

from simgen.errors import InputError

MAX_REQUEST = 32 * 2**20
"""Most bytes of a request: an SDF file of thousands of molecules."""

_REFUSED = re.compile(
    "|".join(
        (
            r"/internal/.*",  # sends any event to anybody
            r"/api/shutdown",
            r"/api/disconnect/.*",  # throws out anybody
            r"/api/file-browser/(?!(upload|supported-types)$).*",  # files of the host
            r"/api/filesystems/.*",
            r"/api/rooms/[^/]+/filesystems/.*",
            r"/api/workers/.*",  # registers extensions
            r"/api/rooms/[^/]+/jobs/[^/]+/status",  # calls others' jobs finished
        )
    )
)
_READING = ("GET", "HEAD", "OPTIONS")


class Rooms(RoomService):
    """The rooms, of which there is a largest number, as all are in memory.

    Parameters
    ----------
    redis : object
        ZnDraw's store.
    limit : int
        Most rooms.
    """

    def __init__(self, redis: Any, limit: int) -> None:
        super().__init__(redis)
        self.limit = limit

    def create_room(self, room_id: str, *arguments: Any, **keywords: Any) -> dict[str, Any]:
        """Make a room.

        Raises
        ------
        InputError
            If there is none left; ZnDraw's requests answer with its message.
        """
        self.check_space()
        made: dict[str, Any] = super().create_room(room_id, *arguments, **keywords)
        return made

    def check_space(self) -> None:
        """Raise an InputError if there are as many rooms as there may be."""
        if self.r.scard(GlobalIndexKeys.rooms_index()) >= self.limit:
            raise InputError(
                f"expected fewer than {self.limit} rooms, the most that this server keeps; go on "
                "in a room that you were in, or ask whoever runs the server to start it anew"
            )


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
