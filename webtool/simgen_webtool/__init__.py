"""The web tool of simgen: draw a shape in the browser, get molecules.

ZnDraw shows molecules and curves in rooms; this package puts simgen's tools into it.

- :mod:`~simgen_webtool.frames`: molecules as frames of a room, and back.
- :mod:`~simgen_webtool.tasks`: what can be computed, as plain data in and out.
- :mod:`~simgen_webtool.workers`: processes that compute tasks, and their fair queue.
- :mod:`~simgen_webtool.rooms`: what tools do in a room: write frames, draw shapes, say things.
- :mod:`~simgen_webtool.tools`: the tools with their forms.
- :mod:`~simgen_webtool.server`: ZnDraw in this process, made safe, with the tools in it.
"""

import warnings

# ZnDraw imports eventlet, which warns at length; it is not used here.
warnings.filterwarnings("ignore", r"\s*Eventlet is deprecated")
