"""The test images report and do nothing else: no lesson, recipe or benchmark trains on them, or chooses by them.

What comes from `load_fashion_mnist("test")` is followed through the code, from name to name, and must not reach a
training: a statement that calls `backward`, an optimizer's `step`, `fit`, or something whose name begins with `train`.
"""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from fmdiff_helpers.arguments import seeds_for
from fmdiff_helpers.cards import PUBLISHED
from notebooks import tags

ROOT = Path(__file__).parents[1]
LESSONS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))
# The functions of benchmarks that report on the test images; all others compare, so that one may choose.
REPORTS = {
    "bugs.py": {"measure"},
    "flows.py": {"measure_few"},
    "gpu_parts/good.py": {"distances", "quality"},
    "latents.py": {"measure_reported"},
    "leaderboard.py": {"measure_board", "measure_kinds"},
    "memory.py": {"measure", "run"},
    "patch_unets.py": {"measure_reported"},
    "quality.py": {"run", "measure_floor"},
    "repair.py": {"report", "run"},
    "transformer_choices.py": {"measure"},
    "vectors.py": {"measure_reported"},
}


def lesson_code(nb) -> str:
    """The code of a lesson in one piece, without the setup cell, which holds what only Colab understands."""
    return "\n".join(cell.source for cell in nb.cells if cell.cell_type == "code" and "setup" not in tags(cell))


def called(node) -> str:
    """The name that a call calls, `step` in optimizer.step(), or nothing for another node."""
    function = node.func if isinstance(node, ast.Call) else None
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def is_test_data(node) -> bool:
    """Whether test images are loaded here, or taken from a judge; a split that is not written out may be any."""
    if called(node) == "load_fashion_mnist":
        given = [*node.args[:1], *(each.value for each in node.keywords if each.arg == "split")]
        return bool(given) and getattr(given[0], "value", None) not in ("train", "validation")
    return isinstance(node, ast.Attribute) and node.attr in ("test_images", "test_features")


def is_training(node) -> bool:
    """Whether something is trained here; `network.train()` without arguments only changes a mode."""
    name, has_arguments = called(node), isinstance(node, ast.Call) and bool(node.args or node.keywords)
    owner = ast.unparse(node.func.value) if name == "step" and isinstance(node.func, ast.Attribute) else ""
    return name in ("backward", "fit") or "optim" in owner or (name.startswith("train") and has_arguments)


def names(node, context=ast.Load) -> set[str]:
    """The names that are read, or written, in some code."""
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, context)}


class Follower:
    """Follows test images through statements, in their order: `tainted` are the names that hold some of them.

    `trainers` are functions that train, with the names that they read from outside. `found` are the lines at which
    test images reach a training.
    """

    def __init__(self, code: str):
        self.tainted, self.trainers, self.found = set(), {}, []
        self.follow(ast.parse(code).body)

    def holds(self, node) -> bool:
        """Whether a piece of code reads test images."""
        return any(map(is_test_data, ast.walk(node))) or bool(names(node) & self.tainted)

    def trains(self, node) -> bool:
        """Whether a piece of code trains, itself or by a function that was defined before."""
        return any(map(is_training, ast.walk(node))) or bool(names(node) & self.trainers.keys())

    def write(self, targets, holds: bool) -> None:
        """Give names a value that holds test images, or not; a part of a list or an object taints the whole."""
        for target in targets:
            stored = names(target, ast.Store)
            self.tainted = self.tainted | stored if holds else self.tainted - stored
            if holds and isinstance(target, ast.Subscript | ast.Attribute):
                self.tainted |= names(target)

    def follow(self, statements) -> None:
        """Follow statements, and those inside them; a loop twice, since its end may reach its beginning."""
        for statement in statements:
            if isinstance(statement, ast.FunctionDef | ast.ClassDef):
                self.define(statement)
                continue
            blocks = [getattr(statement, part, []) for part in ("body", "orelse", "finalbody")]
            blocks += [each.body for part in ("handlers", "cases") for each in getattr(statement, part, [])]
            if not any(blocks):
                self.check(statement, statement)
                self.assign(statement)
                continue
            for _ in range(2 if isinstance(statement, ast.For | ast.While) else 1):
                self.head(statement)
                self.branch([block for block in blocks if block], statement)

    def branch(self, blocks, statement) -> None:
        """Follow blocks of which one may be left out: a name holds test images if it does after any of them."""
        before, after = self.tainted, set()
        for block in blocks:
            self.tainted = before
            self.follow(block)
            after |= self.tainted
        may_be_skipped = isinstance(statement, ast.If | ast.For | ast.While) and not statement.orelse
        self.tainted = after | before if may_be_skipped else after

    def check(self, part, statement) -> None:
        """Note a training that reads test images, or whose function does."""
        outside = set().union(*(self.trainers[name] for name in names(part) & self.trainers.keys()))
        if self.trains(part) and (self.holds(part) or outside & self.tainted):
            self.found.append(statement.lineno)

    def head(self, statement) -> None:
        """Follow what a for or a with gives a name, and what a condition reads."""
        pairs = [(getattr(statement, "target", None), getattr(statement, "iter", None))]
        pairs += [(item.optional_vars, item.context_expr) for item in getattr(statement, "items", [])]
        pairs += [(None, getattr(statement, "test", None))]
        for target, value in pairs:
            if value is not None:
                self.check(value, statement)
                self.write([target] if target else [], self.holds(value))

    def assign(self, statement) -> None:
        """Follow a line: an assignment, or a call that changes a list such as rows.append(x)."""
        if isinstance(statement, ast.Assign):
            targets = [each for target in statement.targets for each in getattr(target, "elts", [target])]
            self.write(targets, self.holds(statement.value))
        elif isinstance(statement, ast.AugAssign | ast.AnnAssign) and self.holds(statement):
            self.write([statement.target], True)
        for call in ast.walk(statement):
            if called(call) in ("append", "extend", "add", "update", "insert") and isinstance(call.func, ast.Attribute):
                self.tainted |= names(call.func) if any(map(self.holds, call.args)) else set()
            if isinstance(call, ast.NamedExpr) and self.holds(call.value):
                self.write([call.target], True)

    def define(self, function) -> None:
        """Remember what a function reads from outside, and follow what happens within it."""
        inside = Follower("")
        arguments = {each.arg for each in ast.walk(function) if isinstance(each, ast.arg)}
        outside = names(function) - arguments - names(function, ast.Store)
        inside.tainted, inside.trainers = self.tainted - arguments, dict(self.trainers)
        inside.follow(function.body)
        if self.trains(function):
            self.trainers[function.name] = outside.union(*(self.trainers.get(name, set()) for name in outside))
        if outside & self.tainted or any(map(is_test_data, ast.walk(function))):
            self.tainted = self.tainted | {function.name}
        self.found += inside.found


def trained_on_test_images(code: str) -> list[str]:
    """The lines of some code at which test images reach a training."""
    return [code.splitlines()[line - 1].strip() for line in dict.fromkeys(Follower(code).found)]


LOAD = 'images, labels = load_fashion_mnist("test", device)\ntrain_images, _ = load_fashion_mnist("train")\n'
LESSON_06 = LOAD + (  # two cells of lesson 06 as they once were
    "x0, y = to_model(images[:2000]), labels[:2000]\n"
    "for _ in range(steps):\n"
    "    chosen = torch.randint(len(x0), (64,))\n"
    "    loss = v_loss(small, x0[chosen], y[chosen]).mean()\n"
    "    loss.backward()\n"
    "def short_training(lr):\n"
    "    for _ in range(steps):\n"
    "        chosen = torch.randint(2000, (64,))\n"
    "        loss = v_loss(network, x_train[chosen]).mean()\n"
    "        loss.backward()\n"
    "x_train = to_model(images[:2000])\n"
    "runs = {lr: short_training(lr) for lr in (0.1, 0.2)}\n"
)


def test_a_training_on_test_images_is_found_as_lesson_06_once_had_it():
    found = trained_on_test_images(LESSON_06)
    assert found == ["loss.backward()", "runs = {lr: short_training(lr) for lr in (0.1, 0.2)}"]
    assert trained_on_test_images(LESSON_06.replace("(images[", "(train_images[").replace("labels[", "_[")) == []


@pytest.mark.parametrize(
    "code",
    [
        "train(model, images)",
        "train_network(model, data=to_model(images))",
        "regression.fit(labels)",
        "part = images[:10]\nx = [part]\nmodel.train(seconds, x)",
        "rows = []\nrows.append(images)\ntrain(model, rows)",
        "rows = {}\nrows['x'] = images\ntrain(model, rows)",
        "for part in images.split(10):\n    model(part).sum().backward()",
        "while True:\n    train(model, x)\n    x = images",
        "with open_it(images) as x:\n    train(model, x)",
        "if train(model, images):\n    pass",
        "if some:\n    x = images\nelse:\n    x = train_images\ntrain(model, x)",
        "x = images\nif some:\n    x = train_images\ntrain(model, x)",
        "def get():\n    return images\ntrain(model, get())",
        "def learn(x):\n    model(x).backward()\nlearn(images)",
        "def learn():\n    train(model, *load_fashion_mnist('test'))",
        "train(model, *load_fashion_mnist(split='test'))",
        "train(model, *load_fashion_mnist(split))",
        "train(model, judge.test_images)",
        "loss = model(images)\noptimizer.step(lambda: loss)",
    ],
)
def test_every_way_from_test_images_to_a_training_is_found(code):
    assert trained_on_test_images(LOAD + code)


@pytest.mark.parametrize(
    "code",
    [
        "train(model, train_images)",
        "train(model, *load_fashion_mnist())",
        "train(model, *load_fashion_mnist('validation'))",
        "model.train()\nmodel(images)",
        "x = images\nx = train_images\ntrain(model, x)",
        "def measure(model):\n    return model(images)\ntrain(model, train_images)\nmeasure(model)",
        "def learn(images):\n    train(model, images)\nlearn(train_images)",
        "print(accuracy(model, images))",
    ],
)
def test_nothing_is_found_where_test_images_only_report(code):
    assert trained_on_test_images(LOAD + code) == []


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_no_lesson_trains_on_test_images(path):
    assert trained_on_test_images(lesson_code(nbformat.read(path, as_version=4))) == []


@pytest.mark.parametrize("path", [ROOT / "fmdiff_helpers" / "recipes.py", *BENCHMARKS], ids=lambda p: p.stem)
def test_no_recipe_and_no_benchmark_trains_on_test_images(path):
    assert trained_on_test_images(path.read_text(encoding="utf-8")) == []


def reporters(code: str) -> set[str]:
    """The functions that name the test split, or the numbers of other lines that do."""
    tops = [top for top in ast.parse(code).body if any(getattr(node, "value", "") == "test" for node in ast.walk(top))]
    return {getattr(top, "name", str(top.lineno)) for top in tops}


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda p: p.stem)
def test_a_benchmark_chooses_on_the_validation_images_but_for_what_is_listed_as_a_report(path):
    code = path.read_text(encoding="utf-8")
    assert reporters(code) == REPORTS.get(path.relative_to(ROOT / "benchmarks").as_posix(), set())
    for call in ast.walk(ast.parse(code)):
        says = [each.arg for each in getattr(call, "keywords", [])]
        assert called(call) != "load_judge" or "split" in says, "say whether the judge is to choose or to report"
        assert called(call) != "range" or "SEEDS" not in ast.unparse(call), "`seeds_for` says which seeds a split has"


def tables(found: object, above: dict, place: str = "") -> Iterator[tuple[str, dict]]:
    """Each part of a card or a result that says something of its images: where it is, and all that holds for it."""
    parts = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    if isinstance(found, dict):
        says = {key: found[key] for key in ("split", "seeds", "first_seed") if key in found}
        above = above | says
        if says and "seeds" in above:
            yield place, above
    for key, part in parts:
        yield from tables(part, above, f"{place}/{key}")


RESULTS = [*PUBLISHED.glob("*.json"), *(ROOT / "data").glob("*.json"), *(ROOT / "benchmarks").glob("*.json")]
# Older than the rule; texts that show these numbers say so. "earlier" are those of weights that others have replaced.
OLDER = {"gpu": ("/",), "unet": ("/earlier", "/exhibits/original")}
# Measured with one seed, the first of those of their split, because they take long.
ONE_SEED = {
    "unet": ("/choices/as published, DDPM", "/choices/without the scales, DDPM"),
    "quality": ("/rates", "/rows/original of lesson 06"),
}


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_what_chooses_and_what_reports_never_share_a_seed(path):
    for place, about in tables(json.loads(path.read_text(encoding="utf-8")), {}):
        if not place.startswith(OLDER.get(path.stem, "/earlier")):
            seeds = seeds_for(about["split"])
            number = 1 if place.startswith(ONE_SEED.get(path.stem, ())) else len(seeds)
            assert (about["first_seed"], about["seeds"]) == (seeds[0], number), place


def test_a_table_in_a_table_inherits_what_it_does_not_say():
    found = {"split": "test", "seeds": 3, "first_seed": 3, "rows": [{"fd": 1}, {"first_seed": 0}]}
    assert list(tables(found, {})) == [
        ("", {"split": "test", "seeds": 3, "first_seed": 3}),
        ("/rows/1", {"split": "test", "seeds": 3, "first_seed": 0}),
    ]
