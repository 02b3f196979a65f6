"""Find a lesson, and the arguments with which JupyterLab opens it on this machine."""

import os
import sys
import webbrowser
from pathlib import Path

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def find_lesson(name: str) -> Path:
    """Return the one notebook whose number is `name`, such as 1 or 01, or whose name starts with it.

    ValueError with the names of all lessons where there is no such notebook, or more than one.
    """
    lessons = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    if not lessons:
        raise ValueError(
            f"there are no lessons in {NOTEBOOKS}: the installed package does not hold them; work in a copy of the "
            "repository, which has them in notebooks/"
        )
    prefix = f"{int(name):02d}" if name.isdecimal() else Path(name).stem
    found = [lesson for lesson in lessons if lesson.stem.startswith(prefix)]
    if len(found) != 1:
        known = ", ".join(lesson.stem for lesson in lessons)
        raise ValueError(f"{name!r} names {len(found)} lessons; expected one of: {known}")
    return found[0]


def has_browser() -> bool:
    """Tell whether this machine can show a browser window."""
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def lab_arguments(lesson: Path, port: int, browser: bool) -> list[str]:
    """Return the arguments with which JupyterLab shows a lesson on `port`, or the next free one, of this machine only.

    With `browser` it opens a browser window.
    """
    root = NOTEBOOKS.parent
    # As the default address, not as a file to open, because JupyterLab prints the default address.
    address = f"/lab/tree/{lesson.relative_to(root).as_posix()}"
    arguments = [f"--ServerApp.root_dir={root}", f"--LabApp.default_url={address}", "--ip=127.0.0.1", f"--port={port}"]
    if not browser:
        arguments.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--allow-root")  # many containers have no other user, but JupyterLab refuses to start as root
    return arguments
