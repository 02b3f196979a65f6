// Load the networks of this site with onnxruntime-web, and run them.

import { BETAS, TARGETS, flowOf, guided, makeSchedule, sampleDdim, sampleJumps } from "./draw-sampler.js";

const started = {}; // runtimes, by their files
const sessions = {}; // parts of networks, by their files and what they run on: two networks may share a decoder

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

// A session as a network: B pictures in a flat array, a step and labels in, the prediction out. A network that jumps
// takes two steps, which are real numbers.
function asNetwork(ort, session, shape) {
  return async (xt, t, y, r) => {
    const B = y.length, whole = numbers => new ort.Tensor("int32", Int32Array.from(numbers), [B]);
    const real = step => new ort.Tensor("float32", new Float32Array(B).fill(step), [B]);
    const steps = r === undefined ? { t: whole(Array(B).fill(t)) } : { t: real(t), r: real(r) };
    const x = new ort.Tensor("float32", Float32Array.from(xt), [B, ...shape]);
    const { out } = await session.run({ x, y: whole(y), ...steps });
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

// How a process samples from networks, the second of which is the guide, and how much of xt is noise at t: by the name
// that a network's card gives, as in fmdiff_helpers/processes/.
const PROCESSES = {
  "diffusion.Diffusion": (networks, schedule, { target, decoder }) => {
    const [model, weak] = networks.map(network => TARGETS[target](network, schedule)), clip = decoder ? Infinity : 1;
    return {
      sample: (x, { w, ...options }) => sampleDdim(guided(model, w, weak), x, schedule, { clip, ...options }),
      noiseAt: t => 1 - schedule.alphaBar[t],
    };
  },
  "flow.Shortcut": ([network], schedule) => ({
    sample: (x, options) => sampleJumps(flowOf(network, schedule), x, options),
    noiseAt: t => t ** 2 / (t ** 2 + (1 - t) ** 2),
  }),
};

// A network with all that drawing needs, as `fmdiff_helpers/drawing.py` has it. `entry` and `runtime` come from the
// page's table; `provider` is "wasm" for the processor and "webgpu" for a graphics card; `progress` hears what is loaded.
export async function loadDrawer(entry, runtime, provider, progress = () => {}) {
  const { shape, network, decoder, guide } = entry, size = shape.reduce((product, side) => product * side);
  const name = file => [file.path, runtime.path, provider].join();
  const parts = [network, guide, decoder].filter(Boolean), missing = parts.filter(file => !sessions[name(file)]);
  const files = await readAll(started[runtime.path] ? missing : [runtime, ...missing], progress);
  const ort = started[runtime.path] ??= await start(runtime, files);
  for (const file of missing) {
    sessions[name(file)] = await ort.InferenceSession.create(files[file.path], { executionProviders: [provider] });
  }
  const networks = [network, guide].filter(Boolean).map(file => asNetwork(ort, sessions[name(file)], shape));
  return {
    size, ...PROCESSES[entry.process](networks, makeSchedule(BETAS[entry.beta](entry.T)), entry),
    decode: decoder ? asDecoder(ort, sessions[name(decoder)], shape, size) : async x => Float32Array.from(x),
  };
}
