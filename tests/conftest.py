"""What every test shares: one absolute FMDIFF_DATA, and the real dataset where there is one."""

import functools
import http.server
import os
import re
import tempfile
import threading
from pathlib import Path

import pytest
from filelock import FileLock

# `pytest -n 2` runs two tests at once: each takes its share of the cores, kernels and commands that it starts included.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // int(workers))))

# Otherwise hypothesis writes a folder into the repository.
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(Path(tempfile.gettempdir()) / "hypothesis"))

# A notebook's kernel runs in notebooks/, where a relative path would mean another folder.
if os.environ.get("FMDIFF_DATA"):
    os.environ["FMDIFF_DATA"] = str(Path(os.environ["FMDIFF_DATA"]).resolve())


def pytest_runtest_setup(item):
    """Leave out what needs a GPU where there is none."""
    if not item.get_closest_marker("gpu"):
        return
    import torch  # takes seconds, which tests without it need not wait

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU: PyTorch finds none here (tests/pretend.py pretends that there is one)")


def pytest_collection_modifyitems(items):
    """Put first what takes longest: whole lessons, the later ones before the earlier; and deal them to two workers."""
    whole = re.compile(r"lesson_(\d\d)_in|\[(\d\d)_|^notebooks/(\d\d)_")

    def order(item):
        found = whole.search(item.nodeid)
        is_whole = found and ("exercises" in item.nodeid or not found[2])
        return -int(next(filter(None, found.groups()))) if is_whole else 0

    items.sort(key=order)
    if workers:
        items[:] = items[0::2] + items[1::2]  # the first worker begins with the first half, the second with the other


def pytest_xdist_make_scheduler(config, log):
    """Let a worker that has nothing left take over tests of the other."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture
def real_raw() -> Path:
    """The folder with the real dataset's files; the test is skipped where it is neither in FMDIFF_DATA nor in data/."""
    from fmdiff_helpers.data import find_problems, raw_folder

    raw = raw_folder()
    if find_problems(raw):
        pytest.skip(f"no intact Fashion-MNIST in {raw}; set FMDIFF_DATA or run `uv run fmdiff data`")
    return raw


@pytest.fixture(scope="module")
def on_the_processor():
    """Train on the processor, also where there is a GPU: accelerate keeps the first device for the whole process."""
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    from fmdiff_helpers import run

    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(cpu=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "best_precision", lambda: "no")
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The site, built once for all workers."""
    import website  # takes seconds, too

    workers = os.environ.get("PYTEST_XDIST_WORKER")
    base = tmp_path_factory.getbasetemp()
    target = (base.parent if workers else base) / "fmdiff-site"  # each worker has a folder in the run's own
    with FileLock(f"{target}.lock"):
        if not target.exists():
            website.build(target)
    return target


@pytest.fixture(scope="session")
def address(site):
    """Where a plain server for files shows the site."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
