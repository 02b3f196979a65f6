"""The project's own files agree with one another, and the package keeps its shape."""

import ast
import re
import runpy
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = sorted((ROOT / "fmdiff_helpers").rglob("*.py"))

# From the ground to the roof: a module may import those on floors below it, and none beside or above it.
FLOORS = [
    {
        "dials",
        "lab",
        "ticks",
        "standin",
        "schedules",
        "measurements",
        "tiling",
        "filmstrip",
        "reports",
        "batching",
        "entries",
    },
    {"cards"},
    {"data", "checkpoints", "diffusion", "endings", "flows", "images", "plots", "alt_text", "models", "canvas"},
    {
        "start",
        "arguments",
        "export",
        "flow_samplers",
        "metrics",
        "pictures",
        "samplers",
        "guidance",
        "run",
        "tokens",
        "frames",
        "unet_plots",
        "planes",
    },
    {"drawing", "processes", "teaching", "train", "repair", "picture_reports"},
    {"recipes", "picture_judge", "latent_paths", "leaderboard", "results", "controls"},
    {"latent_plots", "explorer", "evaluation"},
    {"showing", "picture_evaluation"},
    {"explorers", "flow_explorer", "repair_explorer", "cli"},
]


def imports(path):
    """All modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: absolute imports only"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_dependencies_point_one_way(path):
    part = path.relative_to(ROOT / "fmdiff_helpers").parts[0].removesuffix(".py")
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("fmdiff_helpers.")} - {part}
    floor = next((k for k, floor in enumerate(FLOORS) if part in floor), 0)
    assert ours <= set().union(*FLOORS[:floor])


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_every_public_function_has_a_docstring(path):
    top = ast.parse(path.read_text(encoding="utf-8")).body
    methods = [node for part in top if isinstance(part, ast.ClassDef) for node in part.body]
    for node in [*top, *methods]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_conda_environment_leaves_the_dependencies_to_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, packages = environment["dependencies"]
    assert python == f"python{PROJECT['project']['requires-python']}"
    assert pip == "pip" and packages == {"pip": ["-e ."]}


def test_dependencies_have_lower_bounds_only():
    groups = PROJECT["dependency-groups"].values()
    for requirement in [*PROJECT["project"]["dependencies"], *(r for group in groups for r in group)]:
        assert re.fullmatch(r"[\w-]+>=[\d.]+", requirement), requirement


def requires(name, extras):
    """The requirements of an installed package on this machine; those of its extras are included."""
    found = map(Requirement, metadata.requires(name) or [])
    return [each for each in found if not each.marker or any(each.marker.evaluate({"extra": e}) for e in ("", *extras))]


def test_requirements_txt_pins_all_that_the_project_needs_and_nothing_else_with_hashes():
    """Asks only packages that are installed with the pinned version: what these need does not change any more."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    pins = {}  # a package may have several pins, for several versions of Python
    for block in re.findall(r"^\w.*(?:\n .*)*", text, re.M):
        name, pin = re.match(r"([\w.-]+)==([^\s;\\]+)", block).groups()
        pins.setdefault(canonicalize_name(name), set()).add(pin)
        assert "--hash=sha256:" in block, name
    installed = {canonicalize_name(each.name): each.version.partition("+")[0] for each in metadata.distributions()}
    same = {name for name in pins if installed.get(name) in pins[name]}
    queue, seen = [*map(Requirement, PROJECT["project"]["dependencies"])], set()
    while queue:
        each = queue.pop()
        name = canonicalize_name(each.name)
        assert any(each.specifier.contains(pin) for pin in pins.get(name, ())), f"{each}: run `make requirements`"
        if name in same and (name, *each.extras) not in seen:
            queue += requires(name, each.extras)
        seen.add((name, *each.extras))
    reached = {name for name, *_ in seen}
    if reached <= same:  # otherwise something that is not installed here may need the rest
        assert same <= reached, f"{same - reached} is not needed: run `make requirements`"


BENCHMARKS = ROOT / "benchmarks"


def test_the_readme_of_the_benchmarks_names_each():
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    scripts = {path.name for path in BENCHMARKS.glob("*.py")} - {"peers.py", "machine.py", "exhibits.py"}
    named = set(re.findall(r"^\| `(\w+\.py)` \|", text, re.MULTILINE))
    assert named == {name for name in scripts if not name.startswith("original_")}


@pytest.mark.parametrize("name", ["quality", "training", "sampling", "tricks", "draw_page", "repair", "memory"])
def test_the_readme_of_the_benchmarks_shows_what_they_measured(monkeypatch, name):
    monkeypatch.syspath_prepend(BENCHMARKS)
    table = runpy.run_path(str(BENCHMARKS / f"{name}.py"))["table"]()
    assert table and table in (BENCHMARKS / "README.md").read_text(encoding="utf-8")


def test_the_page_on_several_machines_shows_what_was_measured_and_what_follows(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    names = runpy.run_path(str(BENCHMARKS / "scaling.py"))
    text = (ROOT / "docs/several_machines.md").read_text(encoding="utf-8")
    assert names["table"]() in text and names["estimates"]() in text


def test_a_step_of_several_processes_is_a_fixed_part_a_part_for_each_image_and_a_ring(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    seconds = runpy.run_path(str(BENCHMARKS / "scaling.py"))["step_seconds"]
    row = {"whole": 10.0, "half": 6.0, "weights": 100}  # 2 s, and 8 s for 128 images
    assert seconds(row, 1, 1.0, 1.0) == pytest.approx(10)
    assert seconds(row, 4, latency=0.5, bandwidth=50.0) == pytest.approx(2 + 8 / 4 + 6 * (0.5 + 400 / 4 / 50))
    assert seconds(row | {"half": 4.0}, 2, 0.0, 1e9) == pytest.approx(12 / 2)  # never a fixed part below 0


def test_a_badge_only_where_there_is_an_address():
    address = PROJECT["tool"]["fmdiff"]["repository"]
    assert ("colab-badge" in README) == bool(address)


def test_no_machine_and_no_package_host_in_tracked_files():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = listing.stdout.split("\0")
    assert "uv.lock" not in tracked
    for name in tracked:
        if name and not name.endswith((".png", ".webp", ".ipynb", ".npz", ".safetensors")):
            text = (ROOT / name).read_text(encoding="utf-8")
            assert not re.search(r"pypi\.org|files\.pythonhosted|/(root|home/\w+)/", text), name


def test_nothing_is_float64_on_a_device_that_could_be_mps():
    """Apple's mps has no float64. Such numbers stay on the CPU, none names a device, or the line asks for mps."""
    on_the_cpu = re.compile(r"\.cpu\(\)\.double\(\)|dtype=torch\.float64\)|device\.type == \"mps\"")
    for path in MODULES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            code = line.split("  # ")[0]
            if re.search(r"\.double\(\)|torch\.float64\)", code):
                assert on_the_cpu.search(code) and "device=" not in code, f"{path.name}:{number}: {line}"
