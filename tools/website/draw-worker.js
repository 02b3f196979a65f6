// Draw beside the page, so that its sliders never wait: the page sends what to draw, and this sends pictures back.

import { loadDrawer } from "./draw-networks.js";
import { noiseFor } from "./draw-sampler.js";

const PREVIEW = 200; // milliseconds that a drawing takes while a slider moves
const GLIMPSE = 100; // milliseconds between two pictures on the way

class Superseded extends Error {}

const drawers = {}; // by network and what it runs on, once loaded
const costs = {}; // milliseconds of a step, by what made them differ
let job = null; // what the page wants, which may be newer than what is being drawn
let place = 0; // what part of the chain the page shows: 0 is the noise, 1 the sample
let drawer = null; // what draws it
let chain = null; // the last drawing, step by step
let done = null; // the last job that was drawn to its end
let busy = false;

// Let messages come in; a promise alone would not.
const pause = () => new Promise(go => {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => { port1.close(); go(); };
  port2.postMessage(null);
});

const nameOf = ({ network, runtime, provider }) => [network.network.path, runtime.path, provider].join();

async function drawerOf(wanted) {
  const { network, runtime, provider } = wanted, progress = (loaded, total) => postMessage({ loaded, total });
  return drawers[nameOf(wanted)] ??= await loadDrawer(network, runtime, provider, progress);
}

// Send the pictures of the step at the chosen place: what the sampler saw, and what the network made of it.
async function show() {
  const { K, steps, shown } = chain, k = Math.round(place * K);
  if (k === shown || !(k < steps.length || k === K && chain.sample)) return;
  chain.shown = k;
  const { t, xt, x0Hat } = steps[k] ?? { t: -1, xt: chain.sample, x0Hat: chain.sample };
  const both = new Float64Array(2 * xt.length);
  both.set(xt);
  both.set(x0Hat, xt.length);
  const pictures = await drawer.decode(both), half = pictures.length / 2;
  const noise = t < 0 ? 0 : drawer.noiseAt(t);
  postMessage({ step: k, K, t, noise, xt: pictures.slice(0, half), x0Hat: pictures.slice(half), kinds: chain.kinds });
}

async function draw(mine) {
  const { network, kinds, w, eta, seed, preview, lively } = mine;
  const cost = [nameOf(mine), kinds.length, w === 1].join();
  const affordable = Math.max(3, Math.floor(PREVIEW / (costs[cost] ?? Infinity)));
  const K = preview ? network.stops.findLast(n => n <= Math.min(mine.numSteps, affordable)) : mine.numSteps;
  const noise = noiseFor(seed, kinds, drawer.size);
  const started = performance.now();
  let last = lively ? 0 : Infinity, aside = 0; // time spent on pictures on the way
  chain = { kinds, K, steps: [], sample: null, shown: null };
  const watch = async step => {
    chain.steps.push(step);
    await pause();
    if (job !== mine && !preview) throw new Superseded();
    const before = performance.now();
    if (!preview) await show();
    if (before - last > GLIMPSE) {
      const pictures = await drawer.decode(step.xPrev);
      last = performance.now();
      postMessage({ glimpse: pictures, kinds, done: chain.steps.length, K });
    } else if (!preview) postMessage({ done: chain.steps.length, K });
    aside += performance.now() - before;
  };
  const x = noise();
  chain.sample = await drawer.sample(x, { draw: noise, numSteps: K, y: kinds, w, eta, watch });
  const pictures = await drawer.decode(chain.sample), milliseconds = performance.now() - started;
  costs[cost] = (milliseconds - aside) / K;
  postMessage({ sample: pictures, kinds, K, preview, milliseconds });
  await show();
}

async function work() {
  if (busy) return;
  busy = true;
  try {
    while (job !== done || place !== chain?.place) {
      await pause(); // a slider that has come to rest says so right after its last move
      const mine = job;
      try {
        drawer = await drawerOf(mine);
        if (mine !== done) await draw(mine);
        done = mine;
        chain.place = place;
        await show();
      } catch (error) {
        if (!(error instanceof Superseded)) throw error;
      }
    }
  } catch (error) {
    postMessage({ failed: String(error.message ?? error) });
  }
  busy = false;
}

onmessage = ({ data }) => {
  if ("place" in data) place = data.place;
  if ("job" in data) job = data.job;
  work();
};
