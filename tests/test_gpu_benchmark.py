"""The GPU benchmark, as far as a CPU can test it: its loops agree, and it continues after a part fails."""

import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.usefixtures("on_the_processor")


@pytest.fixture(autouse=True)
def parts(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_results_are_written_after_each_measurement_and_failures_are_results(tmp_path):
    from gpu_parts.report import Report, faults

    report = Report(tmp_path, "fast", minutes=1, about={})
    report.add("one", lambda: {"found": 1})
    report.add("two", lambda: {}["missing"])
    report.add("wrong", lambda: {"passed": False})
    report.add("peer", lambda: __import__("no_such_package"))
    report.end = 0.0
    report.add("three", lambda: {"found": 3})
    rows = json.loads((tmp_path / "gpu.json").read_text())["fast"]
    assert rows["one"]["found"] == 1
    assert rows["two"]["error"] == "KeyError: 'missing'" and rows["two"]["where"].startswith("test_gpu_benchmark.py:")
    assert rows["three"]["left out"] == "no time was left"
    assert rows["peer"]["missing"] == "No module named 'no_such_package'"
    ended = {"ended": {"fast": "well", "good": "with status 1; see good.log"}}
    assert faults(report.results | ended) == ["fast: two", "fast: wrong", "good ended with status 1; see good.log"]


def test_a_lesson_is_estimated_from_its_first_150_steps():
    from gpu_parts.lessons import whole

    ready, step, validation = 7.0, 0.02, 1.5  # seconds: before the first step, of a step, of a validation
    seen = [(ready + 50 * step, 50), (ready + 100 * step + validation, 100), (ready + 150 * step + validation, 150)]
    assert whole(seen, every=500, steps=4000) == pytest.approx(ready + 4000 * step + 8 * validation)
    assert whole(seen[:1], every=500, steps=5) == seen[0][0]  # a rehearsal ends before


def test_a_graph_takes_the_same_steps_as_the_loop_of_the_package(monkeypatch):
    from gpu_parts import loops, report

    data = torch.randint(256, (600, 1, 28, 28), dtype=torch.uint8), torch.arange(600) % 10
    monkeypatch.setattr(loops, "training_data", lambda autoencoder, number: data)
    monkeypatch.setattr("fmdiff_helpers.recipes.NUM_VALIDATION", 100)
    losses = {}
    for loop in ("eager", "graph"):
        run, batches, _ = loops.begin("unet", loop, report.TINY, 8)
        losses[loop] = [loops.stepper(run, batches)().item() for _ in range(3)]
    assert losses["graph"] == losses["eager"]


def test_a_share_of_the_ceiling_is_that_of_the_lowest_limit():
    from gpu_parts.fast import shares

    costs = {"gflop_an_image": 1.0, "mb_an_image": 8.0, "mb_an_image_fused": 2.0}
    found = shares(100.0, costs, {"tflops": 1.0, "gb_a_second": 1.0})
    assert found == {"of_operations": 0.1, "of_bytes": 0.8, "of_fused_bytes": 0.2, "of_ceiling": 0.2}


def test_bytes_are_counted_in_and_out_and_not_for_views():
    from gpu_parts.fast import ByteCounter

    a, b = torch.ones(2, 3), torch.ones(3, 4)
    with ByteCounter() as moved:
        (a @ b).reshape(8)  # 6 + 12 + 8 numbers
        a.add(1)  # 6 + 6
    assert (moved.all, moved.heavy) == (4 * 38, 4 * 26)


def test_each_lesson_that_trains_has_a_training_cell():
    from gpu_parts.lessons import training_cell

    for path in sorted((BENCHMARKS.parent / "notebooks").glob("0[2-7]_*.ipynb")):
        assert "LiveLoss()" in training_cell(path)
