"""Whether captures can be saved where they shall go, told before there is anything to save."""

import os
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

from migsniff.core.errors import problem_text

TRIED: Final = 4096  # bytes: a full disk still makes files without any


def why_not_saved(parent: Path) -> str | None:
    """Why no capture can be saved under `parent`, as far as it can be told before there is one; None: it can.

    What is missing of the path is not made: the nearest folder that is there is tried.
    """
    place = parent.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    try:
        with TemporaryFile(dir=place, buffering=0) as file:  # it has no name, or none any more
            file.write(bytes(TRIED))
    except OSError as error:
        return problem_text("saver-place", place=parent, detail=error.strerror or error)
    return None
