// Load the networks of this site with onnxruntime-web, and run them.

import { BETAS, TARGETS, guided, makeSchedule } from "./draw-sampler.js";

const started = {}; // runtimes, by their files

// Read files; `progress` hears how many bytes have come, and of how many.
async function readAll(files, progress) {
  const total = files.reduce((sum, file) => sum + file.bytes, 0);
  let loaded = 0;
  return Object.fromEntries(await Promise.all(files.map(async ({ path }) => {
    const response = await fetch(new URL(path, import.meta.url));
    if (!response.ok) throw new Error(`${path}: ${response.status} ${response.statusText}`);
    const parts = [], reader = response.body.getReader();
    for (let part; !(part = await reader.read()).done;) {
      parts.push(part.value);
      progress(loaded += part.value.length, total);
    }
    return [path, new Uint8Array(await new Blob(parts).arrayBuffer())];
  })));
}

async function start(runtime, files) {
  const ort = await import(new URL(runtime.script, import.meta.url));
  Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: files[runtime.path].buffer });
  ort.env.logLevel = "error";
  return ort;
}

// A session as a network: B pictures in a flat array, a step and labels in, the prediction out.
function asNetwork(ort, session, shape) {
  return async (xt, t, y) => {
    const B = y.length, whole = numbers => new ort.Tensor("int32", Int32Array.from(numbers), [B]);
    const x = new ort.Tensor("float32", Float32Array.from(xt), [B, ...shape]);
    const { out } = await session.run({ x, t: whole(Array(B).fill(t)), y: whole(y) });
    return Float64Array.from(out.data);
  };
}

// A session as a decoder: latents in a flat array in, pictures out, 784 numbers each.
function asDecoder(ort, session, shape, size) {
  return async z => {
    const latents = new ort.Tensor("float32", Float32Array.from(z), [z.length / size, ...shape]);
    return (await session.run({ z: latents })).out.data;
  };
}

// A network with all that drawing needs, as `fmdiff_helpers/drawing.py` has it. `entry` and `runtime` come from the
// page's table; `provider` is "wasm" for the processor and "webgpu" for a graphics card; `progress` hears what is loaded.
export async function loadDrawer(entry, runtime, provider, progress = () => {}) {
  const { shape, network, decoder, guide } = entry, size = shape.reduce((product, side) => product * side);
  const missing = started[runtime.path] ? [] : [runtime];
  const files = await readAll([...missing, ...[network, decoder, guide].filter(Boolean)], progress);
  const ort = started[runtime.path] ??= await start(runtime, files);
  const open = file => ort.InferenceSession.create(files[file.path], { executionProviders: [provider] });
  const schedule = makeSchedule(BETAS[entry.beta](entry.T));
  const predictor = async file => TARGETS[entry.target](asNetwork(ort, await open(file), shape), schedule);
  const model = await predictor(network), weak = guide && await predictor(guide);
  return {
    schedule, size, clip: decoder ? Infinity : 1,
    guided: w => guided(model, w, weak),
    decode: decoder ? asDecoder(ort, await open(decoder), shape, size) : async x => Float32Array.from(x),
  };
}
