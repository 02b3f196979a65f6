"""Ways to end: a training that is told to end finishes its step, and two trainings never write to one folder."""

import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate.utils import gather_object
from filelock import FileLock, Timeout

from fmdiff_helpers.batching import this_process

# Ctrl-C, a request to end, a terminal that is closed, Ctrl-\, what schedulers of clusters send before the time is up,
# a limit on processor time, a power failure; on Windows Ctrl-Break, or a window that is closed.
NAMES = "SIGINT SIGTERM SIGHUP SIGQUIT SIGUSR1 SIGUSR2 SIGALRM SIGXCPU SIGPWR SIGBREAK".split()
REPEAT = 2.0  # seconds; several copies of one signal come sooner, from a terminal and from a program in between
WRITER = uuid.uuid4().hex  # tells this process from all others, in the file .writer of a folder that it writes to


class PeerEnded(RuntimeError):
    """Say that another process of this training has ended."""


class Signals:
    """Handle, within a `with` block, all signals that ask a program to end.

    The first one sets `asked`, so that a training can finish its step, or raises KeyboardInterrupt within `at_once`. If
    the step takes longer than 2 s, another signal raises it anywhere. What is ignored already, as under nohup, stays
    ignored. Of several processes, which cannot all stop at one step, each raises PeerEnded at the launcher's SIGTERM.
    """

    def __init__(self):
        self.asked, self.since, self.is_waiting, self.before = False, 0.0, False, {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is not threading.main_thread():  # Python lets only the main thread handle signals
            return self
        alone = this_process().num_processes == 1
        for name in NAMES if alone else ["SIGTERM"]:
            number = getattr(signal, name, None)
            # None: a program that runs Python inside itself, such as R, has a handler that Python cannot put back.
            if number and signal.getsignal(number) not in (signal.SIG_IGN, None):
                self.before[number] = signal.signal(number, self.stop_alone if alone else self.stop_together)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def stop_alone(self, number: int, frame: object) -> None:
        """Handle a signal in the only process."""
        is_first, self.asked = not self.asked, True
        self.since = time.monotonic() if is_first else self.since
        if self.is_waiting or time.monotonic() - self.since > REPEAT:
            raise KeyboardInterrupt

    def stop_together(self, number: int, frame: object) -> None:
        """Handle a request to end of one of several processes: `accelerate launch` sends it after another has ended."""
        raise PeerEnded

    @contextmanager
    def at_once(self, wanted: bool = True) -> Iterator[None]:
        """Let a signal raise KeyboardInterrupt at once within this block, and one that came before at its start.

        Unless this is `wanted`, the block is like any other code.
        """
        self.is_waiting = wanted
        try:
            if self.asked and wanted:
                raise KeyboardInterrupt
            yield
        finally:
            self.is_waiting = False


def lock_of(folder: Path) -> FileLock:
    """Return the lock of a folder, for one folder always the same object; `acquire` raises Timeout if another has it.

    The lock is held on a file, so that it is lost with the file.
    """
    return FileLock(folder / ".lock", blocking=False, is_singleton=True)


def take(folder: Path) -> None:
    """Make this process the writer of a folder, which is created if needed; Timeout if another training has it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock_of(folder).acquire()
    (folder / ".writer").write_text(WRITER, encoding="utf-8")


def keep(folder: Path) -> None:
    """Make sure that this process is still the writer of a folder; take it again if it has been deleted since.

    OSError if another training has taken it since, because that one shall not be overwritten.
    """
    mark = folder / ".writer"
    try:
        is_lost = mark.read_text(encoding="utf-8") != WRITER
    except FileNotFoundError:
        lock_of(folder).release(force=True)  # of the file that has been deleted
        try:
            take(folder)
            is_lost = False
        except Timeout:
            is_lost = True
    if is_lost:
        raise OSError(f"{folder} was deleted, and another training has it now; this one ends, and its steps are lost")


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a folder within a `with` block, and remove what a killed one left half-written.

    The system frees the folder when the process ends, however it ends. ValueError if another training has it, or if
    its file system cannot keep others out.
    """
    lock, problem = lock_of(folder), None
    try:
        if this_process().is_main_process:
            try:
                take(folder)
            except Timeout:
                problem = f"another training is writing to {folder}; wait until it ends, or name another folder"
            except (OSError, NotImplementedError) as error:
                what = "kept from other trainings" if os.access(folder, os.W_OK) else "written to"
                reason = getattr(error, "strerror", None) or error
                problem = f"{folder} cannot be {what} ({reason}); name a folder elsewhere"
        if problems := [found for found in gather_object([problem]) if found]:
            raise ValueError(problems[0])
        if lock.is_locked:
            # Not in other folders: a folder in this one may be that of another training, which is writing now.
            for left in (*folder.glob(".*.part"), *folder.glob("step_*/.*.part")):
                left.unlink(missing_ok=True)
        yield
    finally:
        lock.release()
