"""The claims of fmdiff_helpers.flow_explorer: one noise for all kinds and samplers, and the calls that are shown."""

import torch

from fmdiff_helpers.flow_explorer import FewStepsExplorer


def test_all_samplers_get_the_same_noise_of_the_seed_and_the_calls_of_the_slider():
    seen = []

    def draw(x, calls, y):
        seen.append((x.clone(), calls, y.tolist()))
        return torch.zeros(10, 1, 28, 28)

    explorer = FewStepsExplorer({"one": draw, "another": draw}, (4, 7, 7))
    calls = explorer.numbers[explorer.slider.value]
    expected = torch.randn((1, 4, 7, 7), generator=torch.Generator().manual_seed(0))
    assert len(seen) == 2 and {found for _, found, _ in seen} == {calls}
    assert all(x.shape == (10, 4, 7, 7) and (x == expected).all() and y == [*range(10)] for x, _, y in seen)
    explorer.slider.value = len(explorer.numbers) - 1
    assert seen[-1][1] == explorer.numbers[-1] and f"at most {explorer.numbers[-1]} calls" in explorer.readout.value
    explorer.controls["seed"].value = 5
    assert not torch.equal(seen[-1][0][0], expected[0])
