"""What tools do in a room: read what is there, write frames, draw shapes, say things."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ase
import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from zndraw.geometries import Curve, InteractionSettings, Plane, Sphere

from simgen.errors import InputError
from simgen_webtool.frames import clean, to_frame, to_mol

if TYPE_CHECKING:
    from zndraw import ZnDraw

CURVE, PLANE, SHAPE, FLOOR = "curve", "plane", "shape", "floor"
"""Keys of what is drawn in a room: the user's curve, what to draw on, the shape shown, and ZnDraw's
own floor, which lies in our plane."""
MAX_FRAMES = 5000
"""Most frames of a room; it is all in memory."""

_LOCK_WAIT = 300.0
"""Seconds that a write waits for a user to leave drawing mode."""
_MAX_SPHERES = 400
"""Most points that a shape is drawn with."""


class Room:
    """A room, seen by a tool.

    Parameters
    ----------
    vis : ZnDraw
        Client of the room.
    is_stopped : callable
        Whether to give up waiting.
    """

    def __init__(self, vis: ZnDraw, is_stopped: Callable[[], bool] = lambda: False) -> None:
        self.vis = vis
        self.is_stopped = is_stopped

    @property
    def name(self) -> str:
        """Name of the room."""
        return str(self.vis.room)

    # -- reading ----------------------------------------------------------------------------------

    def frame(self) -> ase.Atoms:
        """Return the frame that is shown, ready to be changed."""
        return clean(self.vis[self.vis.step]) if len(self.vis) else ase.Atoms()

    def molecule(self) -> Chem.Mol:
        """Return the molecule of the frame that is shown.

        Raises
        ------
        InputError
            If there is none.
        """
        return to_mol(self.frame())

    @property
    def selection(self) -> list[int]:
        """Indices of the selected atoms that there are in this frame, sorted."""
        n_atoms = len(self.vis[self.vis.step]) if len(self.vis) else 0
        return sorted(int(i) for i in self.vis.selection if 0 <= i < n_atoms)

    def curve(self, name: str = CURVE) -> NDArray[np.float64]:
        """Control points of a curve, shape (n, 3); none where nothing is drawn."""
        curve = self.vis.geometries.get(name)
        points = [] if curve is None or isinstance(curve.position, str) else curve.position
        return np.asarray(points, dtype=np.float64).reshape(-1, 3)

    # -- writing ----------------------------------------------------------------------------------

    def write(self, action: Callable[[], Any]) -> None:
        """Do something that needs the room's lock, which a user who is drawing holds.

        Raises
        ------
        InputError
            If the lock does not come free.
        """
        begin = time.monotonic()
        told = False
        while not self.try_to_write(action):
            if self.is_stopped() or time.monotonic() - begin > _LOCK_WAIT:
                raise InputError(
                    "could not write to the room, as someone is drawing in it or the server is too "
                    "busy; leave drawing mode (X) and try again"
                )
            if not told and time.monotonic() - begin > 2.0:
                told = True
                self.say("Waiting for you to leave drawing mode (X) ...")
            time.sleep(0.3)

    def try_to_write(self, action: Callable[[], Any]) -> bool:
        """Do something that needs the room's lock; returns whether it was free.

        A client that was cut off, as happens on a busy machine, comes back by itself like a lock.
        """
        try:
            action()
        except RuntimeError as error:
            if not any(words in str(error).lower() for words in ("lock", "not connected")):
                raise
            return False
        return True

    def append(self, frames: Sequence[ase.Atoms], *, show: int = 0) -> int:
        """Add frames at the end and go to one of them; returns the index of the first.

        Parameters
        ----------
        frames : sequence of ase.Atoms
            At least one.
        show : int
            Which of them to go to.
        """
        self._check_room_for(len(frames))
        self.write(lambda: self.vis.extend(list(frames)))
        first = len(self.vis) - len(frames)
        self.vis.step = first + show
        return first

    def append_at_once(self, frames: Sequence[ase.Atoms]) -> bool:
        """Add frames and go to the last, unless someone is drawing; returns whether it did."""
        self._check_room_for(len(frames))
        done = self.try_to_write(lambda: self.vis.extend(list(frames)))
        if done:
            self.vis.step = len(self.vis) - 1
        return done

    def _check_room_for(self, n_frames: int) -> None:
        if len(self.vis) + n_frames > MAX_FRAMES:
            raise InputError(
                f"this room would have more than {MAX_FRAMES} frames; save what you need and open "
                "a new room"
            )

    def mark(self, words: str) -> None:
        """Bookmark the frame that is shown, as a place to come back to."""
        if len(self.vis):
            self.vis.bookmarks[self.vis.step] = words

    def say(self, words: str) -> None:
        """Write to the chat; Markdown."""
        self.vis.log(words)

    def select(self, atoms: Sequence[int]) -> None:
        """Select atoms of the frame that is shown."""
        self.vis.selection = list(atoms)

    # -- drawing ----------------------------------------------------------------------------------

    def draw_curve(self, points: NDArray[np.float64]) -> None:
        """Replace the user's curve."""
        self.write(lambda: self._set(CURVE, Curve(position=_tuples(points))))

    def draw_shape(self, points: NDArray[np.float64]) -> None:
        """Show a shape as small spheres, which cannot be clicked."""
        points = points[:: 1 + len(points) // _MAX_SPHERES]
        spheres = Sphere(
            position=_tuples(points), radius=[0.12], color=["#e8871e"], opacity=0.6, resolution=8
        )
        self.write(lambda: self._set(SHAPE, spheres))

    def clear_drawings(self) -> None:
        """Remove curve and shape, and put the plane to draw on where it belongs."""
        for key in (CURVE, SHAPE, FLOOR):
            # An empty curve would stay on the screen; drawing mode makes a new one.
            if self.vis.geometries.get(key) is not None:
                self.write(lambda key=key: self._remove(key))  # type: ignore[misc]
        self.write(lambda: self._set(PLANE, drawing_plane()))

    def _set(self, key: str, geometry: Any) -> None:
        self.vis.geometries[key] = geometry

    def _remove(self, key: str) -> None:
        del self.vis.geometries[key]


def drawing_plane() -> Plane:
    """The floor to draw on, as clicks on empty space draw nothing.

    It is the xz plane: ZnDraw draws double bonds side by side as seen along y.
    """
    quiet = InteractionSettings(color="#9cc4e4", opacity=0.1)
    return Plane(
        position=[(0.0, 0.0, 0.0)],
        rotation=[(-math.pi / 2, 0.0, 0.0)],
        size=[(40.0, 40.0)],
        opacity=0.12,
        color=["#9cc4e4"],
        selecting=quiet,
        hovering=quiet,
    )


def welcome(room: Room, examples: Sequence[tuple[str, Chem.Mol]]) -> None:
    """Furnish the room that new rooms are copies of: examples, and a floor to draw on."""
    room.append([to_frame(mol, {"name": name}) for name, mol in examples])
    room.clear_drawings()


def _tuples(points: NDArray[np.float64]) -> list[tuple[float, float, float]]:
    return [(float(x), float(y), float(z)) for x, y, z in points]
