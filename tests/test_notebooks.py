"""What every lesson keeps: code that is the package's, the form of the series, outputs that belong to the code."""

import ast
import re
import symtable
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import colab
import nbformat
import pytest
from nbclient import NotebookClient

from fmdiff_helpers.alt_text import LONGEST
from notebooks import WIDGET, code_hash, tags

ROOT = Path(__file__).parents[1]

PATHS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
lesson = pytest.mark.parametrize("nb", [nbformat.read(p, as_version=4) for p in PATHS], ids=[p.stem for p in PATHS])


def code_cells(nb):
    """The code cells without the setup cell, which holds what only Colab understands."""
    return [cell for cell in nb.cells if cell.cell_type == "code" and "setup" not in tags(cell)]


def tagged(nb, tag):
    """The only cell with a tag."""
    (cell,) = [cell for cell in nb.cells if tag in tags(cell)]
    return cell


def definitions(source):
    """Top-level functions and classes of some source by name, as code without docstrings and annotations."""
    found = {}
    for top in ast.parse(source).body:
        if not isinstance(top, ast.FunctionDef | ast.ClassDef):
            continue
        for node in ast.walk(top):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
            if isinstance(node, ast.FunctionDef):
                node.returns = None
            if isinstance(node, ast.arg):
                node.annotation = None
        found[top.name] = ast.unparse(top)
    return found


MODULES = sorted((ROOT / "fmdiff_helpers").rglob("*.py"))
PACKAGE = {name: code for path in MODULES for name, code in definitions(path.read_text(encoding="utf-8")).items()}


def test_the_mirror_sees_a_changed_formula_but_no_hint_or_docstring():
    package = definitions('def f(x: Tensor, T: int = 3) -> Tensor:\n    """Do."""\n    return x / (T - 1)')
    assert definitions("def f(x, T=3):\n    return x / (T - 1)  # why") == package
    assert definitions("def f(x, T=3):\n    return x / T") != package
    assert definitions("def f(x, T=4):\n    return x / (T - 1)") != package


@lesson
def test_inline_definitions_equal_the_package(nb):
    for cell in code_cells(nb):
        for name, code in definitions(cell.source).items():
            assert code == PACKAGE.get(name, code), f"{name} in cell {cell.id} is not the package's"


def claims(number):
    """The names of the package whose docstring says that lesson `number` builds them."""
    nodes = [node for path in MODULES for node in ast.parse(path.read_text(encoding="utf-8")).body]
    documented = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return {node.name for node in documented if f"Built in lesson {number}." in (ast.get_docstring(node) or "")}


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_a_lesson_defines_what_the_package_says_it_builds_and_nothing_else_of_the_package(path):
    cells = code_cells(nbformat.read(path, as_version=4))
    inline = {name for cell in cells for name in definitions(cell.source)}
    assert inline & PACKAGE.keys() == claims(path.stem[:2])


@lesson
def test_setup_cell_is_the_same_in_every_lesson(nb):
    assert tagged(nb, "setup").source == colab.setup_cell(colab.repository())
    badge = colab.badge(colab.repository(), "x")
    assert nb.cells[0].source.startswith("[![Open in Colab]" if badge else "# ")


@lesson
def test_parameters_are_literals_with_a_comment_each(nb):
    cell = tagged(nb, "parameters")
    for node in ast.parse(cell.source).body:
        assert isinstance(node, ast.Assign) and len(node.targets) == 1
        ast.literal_eval(node.value)
    assert all("  # " in line for line in cell.source.splitlines())


@lesson
def test_ci_shrinks_only_parameters_and_keeps_their_type(nb):
    for cell in nb.cells:
        mock = cell.metadata.get("nbmake", {}).get("mock", {})
        if mock:
            assert "parameters" in tags(cell)
        literals = {n.targets[0].id: ast.literal_eval(n.value) for n in ast.parse(cell.source).body} if mock else {}
        for name, value in mock.items():
            assert name in literals, f"{name} is no parameter of this lesson"
            kinds = (int, float, str) if literals[name] == "auto" else (type(literals[name]),)
            assert type(value) in kinds and type(value) in (int, float, str), "nbmake passes numbers and strings only"


@lesson
def test_cells_are_short_and_text_outweighs_code(nb):
    lengths = [len(cell.source.splitlines()) for cell in code_cells(nb)]
    assert max(lengths) <= 40
    assert sorted(lengths)[len(lengths) // 2] <= 8
    kinds = Counter(cell.cell_type for cell in nb.cells)
    assert kinds["markdown"] >= kinds["code"]


@lesson
def test_no_infrastructure_in_a_lesson(nb):
    for cell in code_cells(nb):
        assert not re.search(r"os\.environ|get_ipython|sys\.path|^[%!]", cell.source, flags=re.M), cell.id


def test_no_lesson_reads_from_a_folder_that_depends_on_where_it_runs(monkeypatch, tmp_path):
    """JupyterLab runs it in notebooks/, other programs in the repository's root."""
    monkeypatch.chdir(tmp_path)
    for path in PATHS:
        cells = code_cells(nbformat.read(path, as_version=4))
        readers = [cell for cell in cells if re.search(r"\.\./|read_text|read_bytes|\bopen\(|np\.load", cell.source)]
        names = {}
        for cell in needed(cells, readers):
            exec(cell.source, names)
        assert bool(readers) == path.stem.startswith(("08", "10"))


@lesson
def test_stamp_matches_the_code(nb):
    assert nb.metadata.fmdiff.code == code_hash(nb), "the code has changed since its outputs: run `make notebooks`"


@lesson
def test_outputs_are_in_normal_form(nb):
    assert nb.metadata.kernelspec.name == "python3"
    assert "widgets" not in nb.metadata
    for cell in nb.cells:
        assert set(cell.metadata) <= {"tags", "nbmake"}
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            assert WIDGET not in output.get("data", {})
        assert cell.get("execution_count") is None
    assert any(cell.get("outputs") for cell in nb.cells)


class Pictures(HTMLParser):
    """Collect the alternative texts of the pictures on a page."""

    def __init__(self, page):
        super().__init__()
        self.texts = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.texts.append(dict(attrs).get("alt") or "")


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_each_picture_says_what_it_shows(path):
    """JupyterLab and nbconvert show a PNG without a text; only a picture in HTML has one."""
    nb, found = nbformat.read(path, as_version=4), []
    for cell in code_cells(nb):
        for output in cell.outputs:
            data = output.get("data", {})
            assert not [kind for kind in data if kind.startswith("image/")], f"{cell.id}: a picture without a text"
            texts = Pictures(data.get("text/html", "")).texts
            assert all(5 < len(text) <= LONGEST for text in texts), cell.id
            found += texts
    assert len(found) > 5 and len(set(found)) > 5


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_notebook_is_small_and_names_no_machine(path):
    has_player = "fmdiff-film" in path.read_text(encoding="utf-8")
    assert path.stat().st_size <= (1_000_000 if has_player else 500_000)
    text = re.sub(r"data:image/png;base64,[\w+/=]+", "", path.read_text(encoding="utf-8"))
    assert not re.search(r"/(home|root|work|tmp|Users)/|0x[0-9a-f]{8}", text)


def binds_and_needs(statements):
    """The names to which statements give a value, and those that must have one before."""
    bound, needs = set(), set()
    for statement in statements:
        stores, loads = names_of_block(statement) if hasattr(statement, "body") else names_of_line(statement)
        needs |= loads - bound
        bound |= stores
    return bound, needs


def names_of_block(statement):
    """`binds_and_needs` of an if, for or with: first its head, then each of its branches."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return names_of_line(statement)
    if isinstance(statement, ast.For):
        pairs = [(statement.target, statement.iter)]
    elif isinstance(statement, ast.With):
        pairs = [(item.optional_vars, item.context_expr) for item in statement.items]
    else:
        pairs = [(None, statement.test)]
    head = [" = ".join(ast.unparse(part) for part in pair if part) for pair in pairs]
    bound, needs = binds_and_needs(ast.parse("\n".join(head)).body)
    branches = [binds_and_needs(branch) for branch in (statement.body, getattr(statement, "orelse", []))]
    needs = needs.union(*(inside - bound for _, inside in branches))
    return bound.union(*(inside for inside, _ in branches)), needs


def names_of_line(statement):
    """`binds_and_needs` of a statement without branches; a function needs what it looks up when it is called."""
    symbols = symtable.symtable(ast.unparse(statement), "cell", "exec")
    stores = {s.get_name() for s in symbols.get_symbols() if s.is_assigned() or s.is_imported()}
    loads = {s.get_name() for s in symbols.get_symbols() if s.is_referenced()}
    inner = symbols.get_children()
    while inner:
        table = inner.pop()
        loads |= {s.get_name() for s in table.get_symbols() if s.is_global()}
        inner += table.get_children()
    for node in ast.walk(statement):  # z[0] = 1 and z += 1 give z another value, and need the old one
        target = node.target if isinstance(node, ast.AugAssign) else node
        if target is not node or (isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store)):
            changed = {name.id for name in ast.walk(target) if isinstance(name, ast.Name)}
            stores, loads = stores | changed, loads | changed
    return stores, loads


def needed(cells, last):
    """Those of the code cells, in order, without which `last`, some of them, cannot run."""
    kept, missing = [], set()
    for cell in reversed(cells):
        bound, needs = binds_and_needs(ast.parse(cell.source).body)
        if cell in last or bound & missing:
            kept.insert(0, cell)
            missing = missing - bound | needs
    return kept


def test_cells_that_others_need_are_kept_and_no_others():
    sources = ["import a.b", "x = y = 0", "x = a.b", "y = x", "z = [1]", "z[0] = x"]  # the zeros are not needed
    sources += ["def f(q):\n    z = q\n    return y + z", "for q in y:\n    print(q)", "print(z)", "f(1)"]
    sources += ["if x:\n    q = 1\n    print(q)\nelse:\n    print(y)"]
    sources += ["with z as q:\n    for k in q:\n        print(k)"]
    sources += ["y += 1", "print(y)"]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    needs = {7: [0, 2, 3, 7], 8: [0, 2, 4, 5, 8], 9: [0, 2, 3, 6, 9], 10: [0, 2, 3, 10], 11: [0, 2, 4, 5, 11]}
    for last, expected in (needs | {13: [0, 2, 3, 12, 13]}).items():
        assert [cells.index(cell) for cell in needed(cells, [cells[last]])] == expected


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_exercises_can_be_solved_as_the_solutions_say(path):
    """Put each solution into the empty cell above it; then every check must print that it is correct.

    Cells that no exercise needs are left out here, because nbmake runs all cells.
    """
    nb = nbformat.read(path, as_version=4)
    solutions = [s for c in nb.cells for s in re.findall(r"<details>.*?```python\n(.*?)```", c.source, flags=re.S)]
    exercises = [cell for cell in nb.cells if "exercise" in tags(cell)]
    assert len(solutions) == len(exercises) == 3
    for cell, solution in zip(exercises, solutions, strict=True):
        assert definitions(cell.source).keys() == definitions(solution).keys()
        cell.source = solution
    parameters = tagged(nb, "parameters")
    mock = parameters.metadata.get("nbmake", {}).get("mock", {})
    mock |= {"epochs": 0} if "epochs" in mock else {}  # no training: exercises use the published networks
    parameters.source += "".join(f"\n{name} = {value!r}" for name, value in mock.items())
    checks = [cell for cell in nb.cells if cell.cell_type == "code" and re.search(r"Exercise \{?\d", cell.source)]
    cells = code_cells(nb)
    nb.cells = needed(cells, [*exercises, *checks])
    NotebookClient(nb, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}}).execute()
    printed = "".join(o.get("text", "") for cell in nb.cells for o in cell.get("outputs", []))
    assert [f"Exercise {k}: correct" in printed for k in (1, 2, 3)] == [True] * 3
