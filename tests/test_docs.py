"""README and docs are right: links lead somewhere, commands can be typed, versions agree, the bare server works."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
import yaml
from accelerate.commands.launch import launch_command_parser

from fmdiff_helpers.cards import read_card
from fmdiff_helpers.cli import app
from fmdiff_helpers.leaderboard import read_leaderboard

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), ROOT / "benchmarks/README.md"]
FMDIFF = re.compile(r"""(?:(?<![\w"/.-])fmdiff|-m fmdiff_helpers\.cli) ([a-z]+(?:\s.*)?)$""", re.M)
NOTEBOOK_PACKAGES = ["IPython", "ipywidgets", "jupyterlab", "matplotlib", "sklearn"]


def read(path):
    return path.read_text(encoding="utf-8")


def links(path):
    """The targets of a page's links to files and headings of the repository."""
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", read(path)) if not target.startswith("https://")]


def anchors(path):
    """The names under which GitHub links to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", read(path), re.M)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings_that_exist(page):
    for target in links(page):
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not heading or heading in anchors(file), target


def test_the_readme_is_short_and_leads_to_every_lesson_and_page():
    readme = ROOT / "README.md"
    assert len(read(readme).splitlines()) <= 110
    for path in [*ROOT.glob("notebooks/[0-9]*.ipynb"), *ROOT.glob("docs/*.md")]:
        assert path.relative_to(ROOT).as_posix() in {target.partition("#")[0] for target in links(readme)}


def test_each_promise_names_a_test_that_exists():
    named = re.findall(r"\[test_\w+\]\((\S+)\)((?:: `\w+`(?:, `\w+`)*)?)", read(ROOT / "docs/promises.md"))
    assert len(named) > 25
    for file, tests in named:
        for test in re.findall(r"`(\w+)`", tests):
            assert f"def {test}(" in read(ROOT / "docs" / file), test


def test_the_longer_trainings_of_the_unet_are_told_as_they_were_measured():
    card, board = read_card("unet"), read_leaderboard()["steps"]["settings"]
    published = card["history"][-1]["validation"]["loss"]
    rows = {"8,000 steps, as published": (published, board["unet, noisy: 200"], board["unet: 50"])}
    for name in ("14,000 steps", "36 channels, 12,000 steps"):
        ddpm, ddim = (card["longer"][f"{name}, {sampler}"] for sampler in ("DDPM", "DDIM"))
        rows[name] = (ddpm["loss"], ddpm, ddim)
    lines = read(ROOT / "docs/networks.md").splitlines()
    for name, (loss, *drawn) in rows.items():
        cells = [f"{loss:.4f}"]
        for found in drawn:
            cells += ["{:.2f} ± {:.2f}".format(*found[measure]) for measure in ("fd", "label_free_fd")]
            cells.append(f"{found['recall'][0]:.2f}")
        (line,) = [line for line in lines if line.startswith(f"| {name} |")]
        assert line.split("| ", 3)[3] == " | ".join(cells) + " |"


def commands():
    """All lines of code in the pages, each with its page; what is in backquotes within a sentence counts, too."""
    for page in PAGES:
        blocks = re.findall(r"^```\n(.*?)^```", read(page), re.M | re.S)
        within = re.findall(r"`([^`\n]+)`", re.sub(r"^```\n.*?^```", "", read(page), flags=re.M | re.S))
        for line in [line for block in blocks for line in block.splitlines()] + within:
            yield page, line


def test_fmdiff_commands_can_be_typed_as_they_are_shown():
    """Names, options and values are right; in a line with … or a name in capitals, something is left to the reader."""
    known, checked = typer.main.get_command(app).commands, set()
    for page, line in commands():
        for found in FMDIFF.findall(re.sub("&&| > ", "\n", line)):
            name, *arguments = shlex.split(found, comments=True)
            assert name in known, f"{page.name}: {line}"
            if arguments and not {"…", "...", "NAME", "--help"} & {*arguments}:
                known[name].make_context(name, arguments)
                checked.add(name)
    assert checked == set(known)


def test_accelerate_commands_can_be_typed_as_they_are_shown():
    lines = [line for _, line in commands() if "accelerate launch -" in line and "…" not in line]
    assert len(lines) > 3
    for line in lines:
        arguments = shlex.split(line.partition("accelerate launch ")[2], comments=True)
        assert launch_command_parser().parse_args(arguments).training_script == "fmdiff_helpers.cli", line


def test_make_targets_and_scripts_in_commands_exist():
    targets = re.findall(r"^(\w[\w-]*):", read(ROOT / "Makefile"), re.M)
    for page, line in commands():
        if found := re.match(r"make (\w[\w-]*)", line):
            assert found[1] in targets, f"{page.name}: {line}"
        for script in re.findall(r"(?:python|bash) ([\w./]+\.py|\.ci/run)\b", line):
            assert (ROOT / script).exists(), f"{page.name}: {line}"


def test_one_version_everywhere():
    version = PROJECT["project"]["version"]
    assert re.search(r"^## (.+)$", read(ROOT / "CHANGELOG.md"), re.M)[1] == version
    assert yaml.safe_load(read(ROOT / "CITATION.cff"))["version"] == version


def test_the_floor_is_the_oldest_python_that_is_allowed():
    floor = PROJECT["project"]["requires-python"].removeprefix(">=")
    (job,) = yaml.safe_load(read(ROOT / ".github/workflows/floor.yml"))["jobs"].values()
    assert {"python-version": floor} in [step.get("with") for step in job["steps"]]
    assert f"--python {floor} .floor" in read(ROOT / "Makefile")


def test_the_server_group_is_all_but_the_packages_of_the_notebook():
    notebook = ("ipywidgets", "jupyterlab", "matplotlib", "scikit-learn")
    needed = [line for line in PROJECT["project"]["dependencies"] if not line.startswith(notebook)]
    assert PROJECT["dependency-groups"]["server"] == needed
    assert len(needed) == len(PROJECT["project"]["dependencies"]) - len(notebook)


def test_a_server_trains_samples_and_evaluates_without_the_packages_of_the_notebook(tmp_path):
    calls = [
        ["train", "vae", "--epochs", "0.01", "--batch-size", "580", "--out", str(tmp_path / "run")],
        ["sample", "unet", "-n", "2", "--steps", "2", "-o", str(tmp_path / "x.png")],
        ["evaluate", "nothing"],  # far enough: all is imported before the network is looked for
    ]
    code = f"""
import sys
sys.modules |= dict.fromkeys({NOTEBOOK_PACKAGES})  # as if they were not installed
from fmdiff_helpers.cli import app
for call in {calls}:
    app(call, standalone_mode=False)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "x.png").exists(), done.stderr
    assert "no weights 'nothing'" in done.stderr
