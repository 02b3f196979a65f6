// From noise to pictures, as in fmdiff_helpers: schedules.py, diffusion.py, guidance.py, samplers.py, and for jumps
// flows.py and flow_samplers.py.
// `model(xt, t, y)` predicts the noise in B pictures, one after the other in a flat array; all of them are at one step t.
// Names are the package's. Numbers are float64: where hardly any signal is left, float32 would lose x0Hat.

export const NULL = 10; // the label that means "no label given"

// Noise schedules, by the name that a network's card gives.
export const BETAS = {
  // beta that makes alphaBar a squared cosine (Nichol & Dhariwal 2021, eq. 17)
  cosine_beta(T, s = 0.008) {
    const alphaBar = range(T + 1).map(t => Math.cos(((t / T + s) / (1 + s)) * Math.PI / 2) ** 2);
    return range(T).map(t => Math.min(1 - alphaBar[t + 1] / alphaBar[t], 0.999));
  },
};

// What the network predicts -> how its prediction becomes the noise.
export const TARGETS = {
  // v is the direction in which xt moves from x0 towards the noise (Salimans & Ho 2022, appendix D)
  v: (network, schedule) => async (xt, t, y) => {
    const v = await network(xt, t, y), { signalScale, noiseScale } = schedule;
    return xt.map((x, i) => noiseScale[t] * x + signalScale[t] * v[i]);
  },
};

const range = n => Array.from({ length: n }, (_, k) => k);

// The tables of a chain, indexed by t = 0 (least noisy) to T - 1 (Ho et al. 2020, section 2).
export function makeSchedule(beta) {
  let product = 1;
  const alphaBar = beta.map(b => (product *= 1 - b));
  return {
    T: beta.length, beta, alphaBar, alphaBarPrev: [1, ...alphaBar.slice(0, -1)],
    signalScale: alphaBar.map(Math.sqrt), noiseScale: alphaBar.map(a => Math.sqrt(1 - a)),
    logSnr: alphaBar.map(a => Math.log(a) - Math.log1p(-a)),
  };
}

// Round to the nearest whole number, and from the middle between two to the even one.
const round = x => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

// Choose numSteps steps from 0 to T - 1, both included; a single one is T - 1. alphaBar stays what it was at these
// steps, and beta follows from it (Nichol & Dhariwal 2021, section 4).
export function respace(schedule, numSteps) {
  const last = schedule.T - 1, gap = last / (numSteps - 1);
  const steps = range(numSteps).map(k => (k < numSteps / 2 ? round(gap * k) : round(last - gap * (numSteps - 1 - k))));
  if (numSteps === 1) steps[0] = last;
  const alphaBar = steps.map(t => schedule.alphaBar[t]);
  return [steps, makeSchedule(alphaBar.map((a, k) => 1 - a / (k ? alphaBar[k - 1] : 1)))];
}

// The x0 implied by xt and its noise, and the noise implied by xt and its x0 (Ho et al. 2020, eq. 15).
const x0FromEps = (xt, t, eps, { signalScale, noiseScale }) =>
  xt.map((x, i) => (x - noiseScale[t] * eps[i]) / signalScale[t]);
const epsFromX0 = (xt, t, x0, { signalScale, noiseScale }) =>
  xt.map((x, i) => (x - signalScale[t] * x0[i]) / noiseScale[t]);

// A denoiser that goes w times as far from the prediction without labels towards the one with labels
// (Ho & Salimans 2022, eq. 6). With `weak`, the prediction of a weaker network, with labels, takes the place of the one
// without (Karras et al. 2024).
export function guided(model, w, weak) {
  if (w === 1) return model;
  return async (xt, t, y) => {
    const B = y.length, n = xt.length;
    let epsY, epsNull;
    if (weak) {
      [epsY, epsNull] = [await model(xt, t, y), await weak(xt, t, y)];
    } else { // both in one call on 2 B pictures
      const both = new Float64Array(2 * n);
      both.set(xt);
      both.set(xt, n);
      const eps = await model(both, t, [...y, ...Array(B).fill(NULL)]);
      [epsY, epsNull] = [eps.subarray(0, n), eps.subarray(n)];
    }
    return epsY.map((e, i) => epsNull[i] + w * (e - epsNull[i]));
  };
}

// Walk from noise x to samples along DDIM's path: eta = 0 adds no noise, eta = 1 as much as DDPM. Each step uses the
// noise that the clipped x0Hat implies (Song et al. 2021, eqs. 12 and 16). `draw()` returns fresh noise like x;
// `watch` sees each step.
export async function sampleDdim(model, x, schedule, { draw, numSteps, y, clip = 1, eta = 0, watch }) {
  const [steps, chain] = respace(schedule, numSteps);
  for (let k = chain.T - 1; k >= 0; k--) {
    const variance = eta ** 2 * chain.beta[k] * (1 - chain.alphaBarPrev[k]) / (1 - chain.alphaBar[k]);
    const towardsNoise = Math.sqrt(1 - chain.alphaBarPrev[k] - variance);
    const signal = Math.sqrt(chain.alphaBarPrev[k]);
    const epsHat = await model(x, steps[k], y);
    const x0Hat = x0FromEps(x, k, epsHat, chain).map(v => Math.max(-clip, Math.min(clip, v)));
    const direction = epsFromX0(x, k, x0Hat, chain);
    const fresh = eta > 0 ? draw() : null;
    const noise = x.map((_, i) => (fresh ? Math.sqrt(variance) * fresh[i] : 0));
    const xPrev = x.map((_, i) => signal * x0Hat[i] + towardsNoise * direction[i] + noise[i]);
    await watch?.({ t: steps[k], xt: x, x0Hat, epsHat, noise, xPrev });
    x = xPrev;
  }
  return x;
}

// The step of a schedule, as a real number, whose ratio of signal and noise a flow has at time t, from 0 (data) to 1
// (noise). Times before the first step, or after the last, get that step.
export function stepAt(t, { T, logSnr }) {
  const wanted = Math.max(logSnr[T - 1], Math.min(logSnr[0], 2 * (Math.log(1 - t) - Math.log(t))));
  const before = Math.min(T - 2, logSnr.findLastIndex(value => value >= wanted));
  return before + (logSnr[before] - wanted) / (logSnr[before] - logSnr[before + 1]);
}

// A network that was trained to predict v, from step to step, as a model of the mean velocity on straight paths from
// time t to time r. xt of the flow is that of the diffusion divided by signal + noise (Gao et al. 2025).
export function flowOf(network, schedule) {
  return async (x, t, y, r) => {
    const [signal, noise] = [1 - t, t].map(scale => scale / Math.hypot(t, 1 - t));
    const xt = x.map(each => (signal + noise) * each);
    const v = await network(xt, stepAt(t, schedule), y, stepAt(r, schedule));
    return xt.map((each, i) => (noise - signal) * each + (signal + noise) * v[i]);
  };
}

// Jump from time t to time r along the mean velocity u between them (Geng et al. 2025, eq. 12).
const jump = (x, t, r, u) => x.map((each, i) => each + (r - t) * u[i]);

// Walk from noise x to samples by equal jumps: `model(xt, t, y, r)` predicts the mean velocity from t to r. There is no
// chance on the way. x0Hat is where u would lead by time 0.
export async function sampleJumps(model, x, { numSteps, y, watch }) {
  for (let k = 0; k < numSteps; k++) {
    const [t, r] = [1 - k / numSteps, 1 - (k + 1) / numSteps];
    const u = await model(x, t, y, r), xPrev = jump(x, t, r, u);
    await watch?.({ t, xt: x, x0Hat: jump(x, t, 0, u), xPrev });
    x = xPrev;
  }
  return x;
}

// Normal random numbers for one picture: the same seed and kind always give the same ones. sfc32 by C. Doty-Humphrey
// (PractRand 0.94) draws whole numbers, and G. Box and M. Muller's transform (1958) makes two normal numbers of two.
export function normalNumbers(seed, kind) {
  let [a, b, c, count] = [seed, kind, 0x9e3779b9, 1];
  const uniform = () => { // between 0 and 1, never 0 or 1
    const sum = (a + b + count++) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + sum) | 0;
    return ((sum >>> 0) + 0.5) / 2 ** 32;
  };
  for (let k = 0; k < 12; k++) uniform(); // until seed and kind have reached all of the state
  let spare = null;
  return () => {
    if (spare !== null) return [spare, spare = null][0];
    const radius = Math.sqrt(-2 * Math.log(uniform())), angle = 2 * Math.PI * uniform();
    spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  };
}

// Noise for pictures of some kinds, `size` numbers each, as a function that draws more of it at each call. A garment
// starts from the same noise, whether it is drawn alone or among all ten.
export function noiseFor(seed, kinds, size) {
  const each = kinds.map(kind => normalNumbers(seed, kind));
  return () => Float64Array.from({ length: kinds.length * size }, (_, i) => each[Math.floor(i / size)]());
}
