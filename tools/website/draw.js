// The page that draws: what its controls ask for goes to draw-worker.js, and the pictures that come back are shown.
"use strict";

const byId = id => document.getElementById(id);
const { kinds: KINDS, networks: NETWORKS, runtimes: RUNTIMES } = JSON.parse(byId("table").textContent);
const SIDE = 28;
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const form = byId("draw"), stage = byId("stage"), place = byId("place"), told = byId("told"), bar = byId("bar");
const sliders = ["w", "numSteps", "eta"].map(byId);
const wished = {}; // where the slider of steps stood, by process
// The build of the runtime that also computes on graphics cards waits for them in a way that not all browsers know.
let build = navigator.gpu && globalThis.WebAssembly?.Suspending ? "jspi" : "wasm";
let worker = null, timer = null;
let shown = 1 / 3; // what part of the chain the page shows: 0 is the noise, 1 the sample

// Say in a sentence why nothing is drawn, and show a recording in its place.
function giveUp(reason) {
  worker?.terminate();
  form.hidden = true;
  byId("sorry").hidden = false;
  byId("sorry").textContent = `${reason} Here is a recording of the same network instead.`;
  if (!document.querySelector(".fmdiff-film")) byId("sorry").after(document.importNode(byId("recording").content, true));
}

// What does not start on a graphics card may start on the processor, and what needs a new browser, in an older way.
function fallBack(reason) {
  if (byId("provider").value === "wasm" && build === "wasm") return giveUp(`The networks did not start (${reason}).`);
  if (byId("provider").value === "wasm") build = "wasm";
  else byId("provider-hint").textContent = "This browser found no graphics card that it may compute on.";
  byId("provider").value = "wasm";
  ask();
}

function tell(text) {
  if (told.textContent !== text) told.textContent = text; // or screen readers would read it again and again
}

const network = () => NETWORKS[form.elements.network.value];

// The slider of steps goes through the numbers of steps that a network is made for.
const numSteps = () => network().stops[byId("numSteps").value];

const inSteps = K => `${K} step${K === 1 ? "" : "s"}`;

function chosenKinds() {
  const { kind } = form.elements;
  return kind.value === "all" ? KINDS.map((_, k) => k) : [Number(kind.value)];
}

// One canvas for each picture of a row; the row of samples also names them.
function setUpStage(kinds) {
  stage.classList.toggle("one", kinds.length === 1);
  for (const row of stage.children) {
    const name = row.querySelector("span").textContent;
    row.querySelector("ul")?.remove();
    const list = document.createElement("ul");
    for (const kind of kinds) {
      const canvas = document.createElement("canvas"), item = document.createElement("li");
      Object.assign(canvas, { width: SIDE, height: SIDE });
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${KINDS[kind]}, ${name}: not drawn yet`);
      canvas.addEventListener("click", () => form.elements.kind[kinds.length === 1 ? 0 : kind + 1].click());
      item.append(canvas);
      if (row.id === "sample") item.append(KINDS[kind]);
      list.append(item);
    }
    row.append(list);
  }
}

// Show pictures, 784 numbers from -1 to 1 each, in a row.
function paint(row, kinds, numbers, text) {
  const canvases = byId(row).querySelectorAll("canvas");
  if (canvases.length !== kinds.length) return; // of a drawing before the kind was changed
  canvases.forEach((canvas, k) => {
    const picture = new ImageData(SIDE, SIDE);
    for (let i = 0; i < SIDE * SIDE; i++) {
      picture.data.fill(127.5 * (numbers[k * SIDE * SIDE + i] + 1), 4 * i, 4 * i + 3); // it rounds and clips
      picture.data[4 * i + 3] = 255;
    }
    canvas.getContext("2d").putImageData(picture, 0, 0);
    canvas.setAttribute("aria-label", `${KINDS[kinds[k]]}, ${text}`);
  });
}

function tellPlace(step, K, t, noise) {
  const text = step === K ? `step ${K} of ${K}: no noise is left` : `step ${step} of ${K}: t = ${t}, ${(100 * noise).toFixed(0)} % noise`;
  byId("where").value = text;
  place.setAttribute("aria-valuetext", text);
}

function onPictures({ data }) {
  if (data.failed) fallBack(data.failed);
  if (data.total) {
    bar.value = data.loaded / data.total;
    tell(`Loading, ${(data.total / 1e6).toFixed(0)} MB …`);
  }
  if (data.done) bar.value = data.done / data.K;
  if (data.xt) {
    const text = `step ${data.step} of ${data.K}`;
    paint("xt", data.kinds, data.xt, `noisy, ${text}`);
    paint("x0Hat", data.kinds, data.x0Hat, `as the network sees it, ${text}`);
    tellPlace(data.step, data.K, data.t, data.noise);
  }
  if (data.glimpse) paint("sample", data.kinds, data.glimpse, "being drawn");
  if (data.sample) {
    paint("sample", data.kinds, data.sample, `sample after ${inSteps(data.K)}`);
    const what = data.kinds.length === 1 ? "One garment" : `${data.kinds.length} garments`;
    const time = data.milliseconds < 950 ? `${data.milliseconds.toFixed(0)} ms` : `${(data.milliseconds / 1000).toFixed(1)} s`;
    tell(data.preview ? "A preview in fewer steps, while the slider moves …" : `${what} in ${inSteps(data.K)}: ${time}`);
    bar.value = data.preview ? 0 : 1;
    form.dataset.drawn = Number(form.dataset.drawn ?? 0) + !data.preview; // tells tests that a drawing is complete
  }
}

// Ask for a drawing; a `preview` may take fewer steps, and a `lively` one shows how it comes about.
function ask({ preview = false, lively = false } = {}) {
  const [w, eta, seed] = ["w", "eta", "seed"].map(id => Number(byId(id).value));
  const job = {
    w, eta, seed, numSteps: numSteps(), preview, lively: lively && !calm.matches, kinds: chosenKinds(),
    network: network(), runtime: RUNTIMES[build], provider: byId("provider").value,
  };
  worker.postMessage({ job, place: shown });
}

function showValues() {
  const values = { w: Number(byId("w").value).toFixed(1), numSteps: numSteps(), eta: Number(byId("eta").value).toFixed(2) };
  for (const slider of sliders) {
    form.querySelector(`output[for="${slider.id}"]`).value = slider.disabled ? "none" : values[slider.id];
  }
  byId("numSteps").setAttribute("aria-valuetext", inSteps(numSteps()));
}

// Say what the chosen network is, and offer the controls that it has; each process has its own number of steps.
function fitControls() {
  const { about, hints, stops, unused, process } = network();
  byId("about").textContent = about;
  for (const slider of sliders) {
    byId(`${slider.id}-hint`).textContent = hints[slider.id];
    slider.disabled = unused.includes(slider.id);
  }
  byId("numSteps").max = stops.length - 1;
  byId("numSteps").value = wished[process] ?? stops.indexOf(network().start);
  fitPlace();
  showValues();
}

// The slider of steps has as many stops as the chain, and stays where it was.
function fitPlace() {
  place.max = numSteps();
  place.value = Math.round(shown * place.max);
}

function showPlace() {
  shown = place.value / place.max;
  worker.postMessage({ place: shown });
}

function stop() {
  clearInterval(timer);
  timer = null;
  byId("play").textContent = "▶";
}

function play() {
  if (timer) return stop();
  byId("play").textContent = "⏸";
  if (place.value === place.max) place.value = -1;
  timer = setInterval(() => {
    place.value = Number(place.value) + 1;
    showPlace();
    if (place.value === place.max) stop();
  }, 120);
}

function setUp() {
  if (location.protocol === "file:") return giveUp("This page was opened from a disk, where a browser lets no page load a network. Show the folder with a web server: python -m http.server --directory site.");
  if (typeof WebAssembly !== "object" || typeof Worker !== "function") return giveUp("This browser has no WebAssembly, in which the networks run.");
  form.hidden = false;
  setUpStage(chosenKinds());
  fitControls();
  worker = new Worker("assets/draw-worker.js", { type: "module" });
  worker.onmessage = onPictures;
  worker.onerror = event => giveUp(`The networks did not start (${event.message ?? "the browser is too old"}).`);
  byId("devices").hidden = build === "wasm";

  for (const slider of sliders) {
    slider.addEventListener("input", () => {
      wished[network().process] = byId("numSteps").value;
      fitPlace();
      showValues();
      ask({ preview: true });
    });
    slider.addEventListener("change", () => ask());
  }
  place.addEventListener("input", () => { stop(); showPlace(); });
  byId("play").addEventListener("click", play);
  byId("kinds").addEventListener("change", () => { setUpStage(chosenKinds()); ask({ lively: true }); });
  form.elements.network.forEach(radio => radio.addEventListener("change", () => { fitControls(); ask({ lively: true }); }));
  byId("seed").addEventListener("input", () => ask({ lively: true }));
  byId("provider").addEventListener("change", () => ask({ lively: true }));
  byId("again").addEventListener("click", () => {
    byId("seed").value = Math.floor(1e6 * Math.random());
    ask({ lively: true });
  });
  form.addEventListener("submit", event => event.preventDefault());
  tell("Starting …");
  ask({ lively: true });
}

setUp();
