"""The page that draws: its sampler against the package's, in node; its networks and controls, in a browser."""

import base64
import gzip
import json
import math
import re
import shutil
import subprocess
from importlib.util import find_spec

import pytest
import torch
import website_draw
import website_networks
from browser import CHROMIUM, chromium, visitor
from website_html import ASSETS, MODULES

from fmdiff_helpers.cards import WeightsError
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.flow_samplers import sample_jumps
from fmdiff_helpers.flows import flow_of, step_at
from fmdiff_helpers.guidance import NULL, guided
from fmdiff_helpers.processes.diffusion import Diffusion
from fmdiff_helpers.samplers import respace, sample_ddim
from fmdiff_helpers.schedules import Schedule, cosine_beta

needs_node = pytest.mark.skipif(not shutil.which("node"), reason="needs node")
needs_site = pytest.mark.skipif(
    not (CHROMIUM and find_spec("onnxscript") and (MODULES / "onnxruntime-web").exists()),
    reason="needs Chromium, the dependency group `site`, and `make site`, which installs the runtime",
)
SAMPLER = (ASSETS / "draw-sampler.js").read_text(encoding="utf-8")


def in_node(script, **values):
    """What a script returns that has the sampler's functions as `sampler` and the given values as `given`."""
    module = f"data:text/javascript;base64,{base64.b64encode(SAMPLER.encode()).decode()}"
    lines = f'const sampler = await import("{module}"), given = {json.dumps(values)};\n{script}'
    whole = f"console.log(JSON.stringify(await (async () => {{ {lines} }})()));"
    done = subprocess.run(["node", "--input-type=module"], input=whole, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@needs_node
@pytest.mark.parametrize("T", [200, 1000])
def test_the_page_takes_the_same_steps_with_the_same_beta(T):
    found = in_node(
        """const whole = sampler.makeSchedule(sampler.BETAS.cosine_beta(given.T)), range = [...Array(60).keys()];
        return range.map(k => sampler.respace(whole, k + 1)).map(([steps, chain]) => [steps, chain.beta]);""",
        T=T,
    )
    for k, (steps, beta) in enumerate(found):
        expected, chain = respace(Schedule(cosine_beta(T)), k + 1)
        assert steps == expected.tolist()
        assert beta == pytest.approx(chain.beta.tolist(), rel=1e-9)


def toy(x, t, y, scale=1.0):
    """A network that depends on all that it is told."""
    return scale * (2 * x).sin() + (y.double().reshape(-1, 1) - 4) / 10 + t.double().reshape(-1, 1) / 600


@needs_node
@pytest.mark.parametrize("w", [1, 2])
@pytest.mark.parametrize(("eta", "clip"), [(0, 1.0), (0.5, math.inf), (1, 1.0)])
@pytest.mark.parametrize("weak", [False, True])
def test_the_page_walks_as_the_package_does(w, eta, clip, weak):
    schedule, shape, K, y = Schedule(cosine_beta(200)), (3, 5), 6, torch.tensor([0, 7, 9])
    generator = torch.Generator().manual_seed(0)
    x, *noise = [torch.randn(shape, generator=generator) for _ in range(K + 1)]
    found = in_node(
        """const schedule = sampler.makeSchedule(sampler.BETAS.cosine_beta(200)), steps = [];
        const toy = scale => async (xt, t, y) =>
          xt.map((x, i) => scale * Math.sin(2 * x) + (y[Math.floor(i / 5)] - 4) / 10 + t / 600);
        const [model, weak] = [1, 0.5].map(scale => sampler.TARGETS.v(toy(scale), schedule));
        const guided = sampler.guided(model, given.w, given.weak ? weak : null);
        await sampler.sampleDdim(guided, Float64Array.from(given.x), schedule, {
          draw: () => given.noise.shift(), numSteps: given.noise.length, y: given.y, eta: given.eta,
          clip: given.clip ?? Infinity, watch: step => { steps.push(step); },
        });
        return steps.map(({ t, x0Hat, xPrev }) => [t, [...x0Hat], [...xPrev]]);""",
        **{"w": w, "eta": eta, "clip": clip if clip < math.inf else None, "weak": weak, "y": y.tolist()},
        x=x.flatten().tolist(),
        noise=[each.flatten().tolist() for each in noise],
    )
    process, steps = Diffusion(schedule, "v"), []

    def predictor(scale):
        network = lambda x, t, y: toy(x, t, torch.full_like(t, NULL) if y is None else y, scale)  # noqa: E731
        return process.predictor(network)

    model = guided(predictor(1.0), w, weak=predictor(0.5) if weak else None)
    generator.manual_seed(0)
    torch.randn(shape, generator=generator)
    sample_ddim(model, x.double(), schedule, generator, K, y=y, eta=eta, clip=clip, watch=steps.append)
    for step, (t, x0_hat, x_prev) in zip(steps, found, strict=True):
        assert t == step.t
        assert x0_hat == pytest.approx(step.x0_hat.flatten().tolist(), abs=1e-8)
        assert x_prev == pytest.approx(step.x_prev.flatten().tolist(), abs=1e-8)


@needs_node
@pytest.mark.parametrize("T", [200, 1000])
def test_a_time_of_the_page_is_the_same_step_as_in_the_package(T):
    times = torch.linspace(0, 1, 41, dtype=torch.float64)
    found = in_node(
        """const schedule = sampler.makeSchedule(sampler.BETAS.cosine_beta(given.T));
        return given.times.map(t => sampler.stepAt(t, schedule));""",
        T=T,
        times=times.tolist(),
    )
    assert found == pytest.approx(step_at(times, Schedule(cosine_beta(T))).tolist(), abs=1e-6)


@needs_node
@pytest.mark.parametrize("K", [1, 2, 3, 8])
def test_the_page_jumps_as_the_package_does(K):
    x, y, steps = torch.randn((3, 5), generator=torch.Generator().manual_seed(0)), torch.tensor([0, 7, 9]), []
    found = in_node(
        """const schedule = sampler.makeSchedule(sampler.BETAS.cosine_beta(1000)), steps = [];
        const toy = async (xt, t, y, r) =>
          xt.map((x, i) => Math.sin(2 * x) + (y[Math.floor(i / 5)] - 4) / 10 + t / 600 - r / 900);
        await sampler.sampleJumps(sampler.flowOf(toy, schedule), Float64Array.from(given.x), {
          numSteps: given.K, y: given.y, watch: step => { steps.push(step); },
        });
        return steps.map(({ t, x0Hat, xPrev }) => [t, [...x0Hat], [...xPrev]]);""",
        K=K,
        x=x.flatten().tolist(),
        y=y.tolist(),
    )
    model = flow_of(lambda x, t, y, r: toy(x, t, y) - r.reshape(-1, 1) / 900, Schedule(cosine_beta(1000)))
    sample_jumps(model, x.double(), K, y=y, clip=math.inf, watch=steps.append)
    for step, (t, x0_hat, x_prev) in zip(steps, found, strict=True):
        assert t == pytest.approx(step.t)
        assert x0_hat == pytest.approx(step.x0_hat.flatten().tolist(), abs=1e-8)
        assert x_prev == pytest.approx(step.x_prev.flatten().tolist(), abs=1e-8)


@needs_node
def test_the_noise_of_the_page_is_normal_and_depends_on_seed_and_kind_only():
    n = 20_000
    numbers = in_node(
        f"""const one = (seed, kinds) => [...sampler.noiseFor(seed, kinds, {n})()];
        return [one(1, [0]), one(1, [1]), one(2, [0]), one(1, [0, 1])];"""
    )
    *each, both = map(torch.tensor, numbers)
    assert torch.equal(both, torch.cat(each[:2])), "a garment alone has the noise that it has among others"
    for x in each:  # the spread of these means is 1, 1.4 and 10 over the root of n
        assert abs(x.mean()) < 4 / n**0.5 and abs(x.square().mean() - 1) < 6 / n**0.5
        assert abs(x.pow(4).mean() - 3) < 40 / n**0.5
        assert abs((x[1:] * x[:-1]).mean()) < 4 / n**0.5
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        assert abs((each[a] * each[b]).mean()) < 4 / n**0.5


def test_a_network_that_the_page_cannot_draw_with_is_refused(monkeypatch):
    monkeypatch.setattr(website_networks, "NETWORKS", {"unet": {"guide": None}})
    with pytest.raises(WeightsError, match=r"process of 'unet'.*teach it to"):
        website_networks.network_files()
    monkeypatch.setattr(website_networks, "NETWORKS", {"latent_unet": {"guide": None}})
    with pytest.raises(WeightsError, match="never trained without labels"):
        website_networks.network_files()


CHAINS = """async ({ name, x, y, chains }) => {
  const { loadDrawer } = await import("./assets/draw-networks.js");
  const { networks, runtimes } = JSON.parse(document.getElementById("table").textContent), found = [];
  const { sample, decode } = await loadDrawer(networks[name], runtimes.wasm, "wasm");
  for (const options of chains) {
    const steps = [], watch = step => { steps.push([[...step.x0Hat], [...step.xPrev]]); };
    const end = await sample(Float64Array.from(x), { y, watch, ...options });
    found.push([steps, [...await decode(end)]]);
  }
  return found;
}"""


def chains_of_the_page(page, name, x, y, chains):
    """The steps and the pictures that a network on the page makes of noise x, for each of the options `chains`."""
    return page.evaluate(CHAINS, {"name": name, "x": x.flatten().tolist(), "y": y.tolist(), "chains": chains})


def noise_of_seeds(drawer, seeds):
    """Noise for two pictures of each seed."""
    shape = drawer.autoencoder.latent_shape if drawer.autoencoder else drawer.process.shape
    return torch.cat([torch.randn((2, *shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def check_chain(drawer, steps, found, atol):
    """Each number of each step of the page, and of its pictures, is that of the package within `atol`."""
    chain, pictures = found
    close = {"rtol": 0, "atol": atol, "check_dtype": False}
    for step, numbers in zip(steps, chain, strict=True):
        torch.testing.assert_close(step.x_prev.flatten(), torch.tensor(numbers[1]), **close)
        torch.testing.assert_close(step.x0_hat.flatten(), torch.tensor(numbers[0]), **close)
    with torch.no_grad():
        images = drawer.decode(steps[-1].x_prev.float()).flatten()
    torch.testing.assert_close(images, torch.tensor(pictures), **close)


@needs_site
@pytest.mark.browser
@pytest.mark.parametrize("name", [name for name in website_networks.NETWORKS if name != "shortcut_unet"])
def test_the_networks_of_the_page_draw_the_same_chain_as_pytorch(address, name):
    guide, K, y = website_networks.NETWORKS[name]["guide"], 20, torch.tensor([1, 9, 0, 5, 8, 3])
    x = noise_of_seeds(load_drawer(name), range(3))
    with visitor(address) as page:
        page.goto(f"{address}draw.html")
        page.wait_for_selector("form[data-drawn]")
        found = chains_of_the_page(page, name, x, y, [{"w": w, "numSteps": K} for w in (1, 2)])
    for w, (chain, pictures) in zip((1, 2), found, strict=True):
        drawer, steps = load_drawer(name, K, w, guide), []
        options = {"y": y, "clip": math.inf if drawer.autoencoder else 1.0, "watch": steps.append}
        drawer.process.sample(drawer.model, x.double(), torch.Generator(), K, **options)
        check_chain(drawer, steps, (chain, pictures), 1e-4)


@needs_site
@pytest.mark.browser
def test_the_network_that_jumps_draws_the_same_chain_as_pytorch(address):
    name, y, calls = "shortcut_unet", torch.tensor([1, 9, 0, 5, 8, 3]), [1, 2, 4, 8]
    drawer = load_drawer(name)
    x = noise_of_seeds(drawer, range(3))
    with visitor(address) as page:
        page.goto(f"{address}draw.html")
        page.wait_for_selector("form[data-drawn]")
        table = json.loads(page.locator("#table").text_content())["networks"]
        found = chains_of_the_page(page, name, x, y, [{"numSteps": K} for K in calls])
    assert table[name]["stops"] == calls and table[name]["decoder"] == table["latent_unet"]["decoder"]
    for K, chain in zip(calls, found, strict=True):
        steps = []
        drawer.process.sample(drawer.model, x.double(), torch.Generator(), K, y=y, clip=math.inf, watch=steps.append)
        check_chain(drawer, steps, chain, 1e-4)


def drawn(page, number):
    """Wait until the page has completed so many drawings."""
    page.wait_for_function(f"document.getElementById('draw').dataset.drawn >= {number}")


def pixels(page, row):
    """The pixels of all pictures in a row."""
    return page.locator(f"#{row} canvas").evaluate_all("canvases => canvases.map(canvas => canvas.toDataURL())")


@needs_site
@pytest.mark.browser
def test_keyboard_alone_draws_and_walks_through_the_steps(address):
    with visitor(address, width=390, height=844) as page:
        decoders = []
        page.on("request", lambda asked: decoders.append(asked.url) if asked.url.endswith("vae.onnx") else None)
        page.emulate_media(reduced_motion="reduce")
        page.goto(f"{address}draw.html")
        drawn(page, 1)
        assert page.locator("canvas").count() == 30 and all(
            len(set(pixels(page, row))) == 10 for row in ("xt", "sample")
        )
        names = page.locator("canvas").evaluate_all("all => all.map(canvas => canvas.getAttribute('aria-label'))")
        assert len(set(names)) == 30 and "Trouser, sample after 12 steps" in names

        def press(control, *keys):
            while page.evaluate("document.activeElement.id || document.activeElement.value") != control:
                page.keyboard.press("Tab")
            for key in keys:
                page.keyboard.press(key)

        press("place", "End")
        page.wait_for_function("document.getElementById('where').value.startsWith('step 12 of 12')")
        assert pixels(page, "xt") == pixels(page, "sample") == pixels(page, "x0Hat")
        press("all", "ArrowRight", "ArrowRight")
        drawn(page, 2)
        assert page.locator("canvas").count() == 3 and page.locator("#sample").inner_text().endswith("Trouser")
        before = pixels(page, "sample")
        press("patch_unet", "ArrowRight")
        drawn(page, 3)
        assert pixels(page, "sample") != before and page.locator("#told").inner_text().startswith("One garment in 12")
        before = pixels(page, "sample")
        press("w", "End")
        drawn(page, 4)
        assert pixels(page, "sample") != before
        press("numSteps", "Home")
        drawn(page, 5)
        assert page.locator("#told").inner_text().startswith("One garment in 1 step:")
        before = pixels(page, "sample")
        press("latent_unet", "ArrowRight")
        drawn(page, 6)
        assert pixels(page, "sample") != before and page.locator("#told").inner_text().startswith(
            "One garment in 1 step:"
        )
        assert page.locator("#w").is_disabled() and page.locator("#eta").is_disabled()
        assert (
            page.locator("#w-hint").inner_text()
            == "This network needs none: it learned from the latent U-Net with guidance 2.5."
        )
        press("numSteps", "End")
        drawn(page, 7)
        assert page.locator("#told").inner_text().startswith("One garment in 8 steps")
        assert page.locator("#numSteps").get_attribute("aria-valuetext") == "8 steps"
        press("shortcut_unet", "ArrowLeft")
        drawn(page, 8)
        assert page.locator("#told").inner_text().startswith("One garment in 1 step:"), "it forgot the number of steps"
        assert page.locator("#w").is_enabled() and page.locator("#eta").is_enabled()
        assert len(decoders) == 1, "two networks share a decoder"


@needs_site
@pytest.mark.browser
@pytest.mark.parametrize("missing", ["server", "WebAssembly"])
def test_a_browser_that_cannot_draw_says_so_and_plays_a_recording(site, address, missing):
    with chromium() as page:
        if missing == "WebAssembly":
            page.add_init_script("delete window.WebAssembly;")
        page.goto(f"{address}draw.html" if missing == "WebAssembly" else (site / "draw.html").as_uri())
        assert re.match(
            r"This (page was opened from a disk|browser has no WebAssembly).*recording", page.inner_text("#sorry")
        )
        assert not page.locator("#draw").is_visible()
        film = page.locator("figure.fmdiff-film")
        shown = film.locator("img").evaluate_all("images => images.map(image => image.src)")
        film.locator("input").focus()
        page.keyboard.press("ArrowRight")
        assert film.locator("img").evaluate_all("images => images.map(image => image.src)") != shown


@needs_site
def test_all_that_the_page_loads_is_small_enough_for_a_phone(site):
    files = [site / "draw.html", *site.glob("assets/*.css"), site / "assets/page.js", *site.glob("assets/draw*")]
    sizes = [len(gzip.compress(file.read_bytes())) for file in [*files, *site.glob("assets/networks/*")]]
    for names in website_draw.RUNTIMES.values():  # a browser loads one of them
        runtime = [len(gzip.compress((site / "assets/onnxruntime" / name).read_bytes())) for name in names]
        assert sum(sizes) + sum(runtime) < 12e6
