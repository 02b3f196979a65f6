"""Whatever a card or a weights file holds, it is used, or refused in one line: soon, and without much memory.

FMDIFF_FUZZ=2000 tries so many other examples; without it, the same few are tried each time.
"""

import hashlib
import json
import math
import os
import sys
from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, configuration, given, settings
from hypothesis import strategies as st
from small_networks import TINY, saved
from small_training import old_form

from fmdiff_helpers.cards import WeightsError, read_card
from fmdiff_helpers.drawing import load_autoencoder, load_drawer
from fmdiff_helpers.recipes import CARDS

NUMBERS = [0, -1, 1, 2, 3, 8, 10, 28, 1000, 10**6, 10**12, 10**400, 0.5, -0.5, 1e300, math.nan, math.inf, -math.inf]
TEXTS = ["", "x", "\0", "\ud800", "a\nb", "a" * 300, "a/" * 3000, "..", "/dev/zero", "os.system", "unet.ResNetBlock"]
NAMES = {text for card in CARDS.values() for text in (card["kind"], card["network"], card["process"]["name"])}
OTHERS = [None, True, False, [], [1], [1, 2], [[1]], [0] * 9, [64] * 8, {}, {"a": 1}, {"name": "vae", "sha256": "1"}]
ODD = [*NUMBERS, *TEXTS, *sorted(NAMES), "linear_beta", "ramp", "x0", "v", *TINY, *OTHERS]


def peak_memory() -> int:
    """The most bytes that this process has held."""
    resource = pytest.importorskip("resource")  # Windows has none
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a tiny network of every name; the denoisers of latents name the autoencoders in it."""
    folder = tmp_path_factory.mktemp("networks")
    for name in sorted(TINY, key=lambda name: bool(CARDS[name]["autoencoder"])):
        changes = {"recipe": CARDS[name]["recipe"] | {"steps": 5}}
        if place := CARDS[name]["autoencoder"]:
            changes["autoencoder"] = {"name": str(folder / place), "sha256": read_card(folder / place)["sha256"]}
        saved(name, folder / name, **changes)
    configuration.set_hypothesis_home_dir(folder / "hypothesis")  # or it would write into the current folder
    return folder


def all_places(value, place=()):
    """The way to each value within a card, as a tuple of keys and indices."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*place, key)
        yield from all_places(value[key], (*place, key))


def edit(card: dict, draw) -> None:
    """Change one value of a card, somewhere within it."""
    *way, key = draw(st.sampled_from(sorted(all_places(card), key=str)))
    parent = card
    for step in way:
        parent = parent[step]
    change = draw(st.sampled_from(["replace", "replace", "replace", "delete", "rename", "nest"]))
    if change == "replace":
        parent[key] = deepcopy(draw(st.sampled_from(ODD)))
    elif change == "nest":
        in_list = draw(st.booleans())
        for _ in range(draw(st.sampled_from([1, 3, 200]))):
            parent[key] = [parent[key]] if in_list else {"name": parent[key]}
    else:
        value = parent.pop(key)
        if change == "rename" and isinstance(parent, dict):
            parent[draw(st.sampled_from(["T", "self", "card", "x\n", "num_classes", "a" * 300]))] = value


def damage(content: bytes, end: int, draw) -> bytes:
    """Flip bits of one of the first `end` bytes, or cut there."""
    place = draw(st.integers(0, end - 1))
    flipped = bytes([content[place] ^ draw(st.integers(1, 255))]) + content[place + 1 :]
    return content[:place] + draw(st.sampled_from([b"", flipped, flipped]))


def use(place: Path, network: Path) -> None:
    """Read a network in each way that a card is read, and draw one image in one step; or raise an error of one line."""

    def drawn(name: Path, **options) -> None:
        drawer = replace(load_drawer(name, **options), num_steps=1)
        assert drawer.draw(1, y=drawer.all_kinds(1)).shape == (1, 1, 28, 28)

    for way in (lambda: load_autoencoder(place), lambda: drawn(place), lambda: drawn(network, guidance=2, guide=place)):
        try:
            way()
        except (WeightsError, ValueError) as error:
            assert 10 < len(str(error)) < 2000 and "\n" not in str(error), str(error)


@given(draws=st.data())
@settings(
    max_examples=int(os.environ.get("FMDIFF_FUZZ", "40")),
    derandomize="FMDIFF_FUZZ" not in os.environ,
    database=None,
    deadline=timedelta(seconds=10),
    suppress_health_check=[HealthCheck.too_slow],
)
def test_an_odd_card_or_file_works_or_is_refused_in_one_line(folder, draws):
    draw, before = draws.draw, peak_memory()
    network = folder / draw(st.sampled_from(sorted(TINY)))
    card = json.loads((network / "weights.json").read_text())
    weights = (network / "weights.safetensors").read_bytes()
    card = old_form(card) if draw(st.booleans()) else card
    for _ in range(draw(st.integers(0, 3))):
        edit(card, draw)
    if draw(st.integers(0, 3)) == 0:  # the header is a number of 8 bytes, and JSON
        weights = damage(weights, 8 + int.from_bytes(weights[:8], "little"), draw)
        card["sha256"] = hashlib.sha256(weights).hexdigest()
    text = json.dumps(card).encode()
    text = damage(text, len(text), draw) if draw(st.integers(0, 7)) == 0 else text
    place = folder / "odd"
    place.mkdir(exist_ok=True)
    (place / "weights.json").write_bytes(text)
    (place / "weights.safetensors").write_bytes(weights)
    use(place, network)
    assert peak_memory() - before < 1e9
