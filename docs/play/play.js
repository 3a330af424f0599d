// The page of a flow map X_{s,t}(x): onnxruntime-web runs board.onnx (x, s, t) -> samples; this file draws and listens.
// window.flowmaps is for the console and the tests: jump, walk, noise, state, ready.
"use strict";

const POINTS = 2000; // on the plane
const SHOWN = 40; // of them with their trajectories
const TIMES = 33; // on a trajectory
const HALF = 1.9; // the plane is [-HALF, HALF]^2
const SECONDS = 1.8; // from s to t when it plays
const SMALL = 1e-3; // of a jump that stands for the velocity
const CELLS = [0, 1, 2, 3].flatMap((i) => [0, 1, 2, 3].map((j) => [i, j])).filter(([i, j]) => (i + j) % 2 === 0);

const $ = (id) => document.getElementById(id);
const state = { steps: 1, s: 0, t: 1, seed: 0, ode: false, paths: true };
let session = null;
let ort = null;

// noise -------------------------------------------------------------------------------------------------------------

/** Uniform numbers in (0, 1) of a seed (mulberry32). */
function uniforms(seed) {
  let a = (seed * 0x9e3779b1 + 0x6d2b79f5) >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let r = Math.imul(a ^ (a >>> 15), 1 | a);
    r = (r + Math.imul(r ^ (r >>> 7), 61 | r)) ^ r;
    return (((r ^ (r >>> 14)) >>> 0) + 0.5) / 4294967296;
  };
}

/** Standard normal points of a seed, two numbers a point (Box and Muller). */
function noise(seed, number = POINTS) {
  const next = uniforms(seed);
  const x = new Float32Array(2 * number);
  for (let k = 0; k < number; k++) {
    const radius = Math.sqrt(-2 * Math.log(next()));
    const angle = 2 * Math.PI * next();
    x[2 * k] = radius * Math.cos(angle);
    x[2 * k + 1] = radius * Math.sin(angle);
  }
  return x;
}

// the map -----------------------------------------------------------------------------------------------------------

let last = Promise.resolve(); // onnxruntime runs one batch at a time

/** X_{s,t}(x) of points, two numbers a point; s and t are numbers, or a time for each point. */
function jump(x, s, t) {
  const number = x.length / 2;
  const times = (r) => (typeof r === "number" ? new Float32Array(number).fill(r) : Float32Array.from(r));
  const tensor = (data, dims) => new ort.Tensor("float32", data, dims);
  const feeds = {
    x: tensor(Float32Array.from(x), [number, 2]),
    s: tensor(times(s), [number]),
    t: tensor(times(t), [number]),
  };
  const found = last.then(() => session.run(feeds));
  last = found.catch(() => {}); // one that fails leaves the next ones their turn
  return found.then((all) => all.samples.data);
}

/** A step of Euler's method from s to t, along the velocity of the map: that of a jump so small that it is straight. */
async function eulerStep(x, s, t) {
  const small = s + SMALL <= 1 ? SMALL : -SMALL;
  const near = await jump(x, s, s + small);
  return x.map((value, k) => value + ((t - s) / small) * (near[k] - value));
}

/** The points at the ends of N equal steps from s to t, the start first: N + 1 arrays. */
async function walk(x, s, t, steps, ode = false) {
  const found = [x];
  for (let k = 0; k < steps; k++) {
    const [a, b] = [s + ((t - s) * k) / steps, s + ((t - s) * (k + 1)) / steps];
    found.push(await (ode ? eulerStep : jump)(found[k], a, b));
  }
  return found;
}

/** One jump of the first points from s to each of TIMES times: arrays of a point's x and y in turn, a point each. */
async function curves(x, s, t) {
  const many = new Float32Array(2 * SHOWN * TIMES);
  const ends = new Float32Array(SHOWN * TIMES);
  for (let k = 0; k < TIMES; k++) {
    many.set(x.subarray(0, 2 * SHOWN), 2 * SHOWN * k);
    ends.fill(s + ((t - s) * k) / (TIMES - 1), SHOWN * k, SHOWN * (k + 1));
  }
  const found = await jump(many, s, ends);
  return Array.from({ length: SHOWN }, (_, point) =>
    Float32Array.from({ length: 2 * TIMES }, (_, k) => found[2 * (SHOWN * (k >> 1) + point) + (k & 1)]),
  );
}

// what is shown -----------------------------------------------------------------------------------------------------

const shown = { start: null, ends: [], curves: [], hues: [], milliseconds: 0, evaluations: 0 };

/** Compute what the state asks for. */
async function compute() {
  const asked = { ...state };
  const x0 = noise(asked.seed);
  const start = asked.s > 0 ? await jump(x0, 0, asked.s) : x0;
  const begun = performance.now();
  const ends = asked.s === asked.t ? [start, start] : await walk(start, asked.s, asked.t, asked.steps, asked.ode);
  const milliseconds = performance.now() - begun;
  const lines = asked.paths ? await curves(start, asked.s, asked.t) : [];
  const hues = Array.from({ length: POINTS }, (_, k) => Math.atan2(x0[2 * k + 1], x0[2 * k]) / (2 * Math.PI));
  Object.assign(shown, { start, ends, curves: lines, hues, milliseconds, asked });
  shown.evaluations = asked.s === asked.t ? 0 : asked.steps;
}

let wanted = 0; // changes of the state
let busy = null; // the computation that is going on

/** Compute and draw until nothing has changed since. */
function update() {
  wanted += 1;
  stop();
  listen();
  busy ??= (async () => {
    try {
      for (let done = 0; done !== wanted; ) {
        done = wanted;
        await compute();
        draw(shown.ends.at(-1), 1);
      }
    } catch (error) {
      wrong(`The network could not be run (${error.message ?? error}). Change something to try again.`);
    } finally {
      busy = null;
    }
  })();
  return busy;
}

// drawing -----------------------------------------------------------------------------------------------------------

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function sized(canvas) {
  const scale = window.devicePixelRatio || 1;
  const side = Math.max(1, Math.round(canvas.clientWidth * scale));
  if (canvas.width !== side || canvas.height !== side) canvas.width = canvas.height = side;
  const brush = canvas.getContext("2d");
  brush.setTransform(1, 0, 0, 1, 0, 0);
  brush.clearRect(0, 0, side, side);
  return [brush, side, scale];
}

/** Draw points, at a share of the way from s to t, over the board and the trajectories. */
function draw(points, share) {
  const [brush, side, scale] = sized($("plane"));
  const at = (v) => ((v + HALF) / (2 * HALF)) * side;
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  brush.fillStyle = colour("--cell");
  for (const [i, j] of CELLS) {
    const corner = [-1 + i / 2, -1 + (j + 1) / 2];
    brush.fillRect(at(corner[0]), side - at(corner[1]), side / (4 * HALF), side / (4 * HALF));
  }
  const line = (values, to) => {
    brush.beginPath();
    for (let k = 0; k < to; k++) brush.lineTo(at(values[2 * k]), side - at(values[2 * k + 1]));
    brush.stroke();
  };
  brush.lineJoin = "round";
  brush.strokeStyle = colour("--rule");
  brush.lineWidth = 3 * scale;
  for (const curve of shown.curves) line(curve, TIMES);
  for (let k = 0; k < POINTS; k++) {
    brush.fillStyle = `hsl(${360 * shown.hues[k]} ${dark ? 70 : 62}% ${dark ? 66 : 48}% / 0.8)`;
    brush.fillRect(at(points[2 * k]) - scale, side - at(points[2 * k + 1]) - scale, 2 * scale, 2 * scale);
  }
  if (state.paths) drawSteps(brush, line, points, share, [at, side, scale]);
  say();
}

/** The steps of some points so far: straight lines from end to end, a ring where they begin, a dot where they are. */
function drawSteps(brush, line, points, share, [at, side, scale]) {
  const steps = shown.ends.length - 1;
  const whole = Math.min(steps, Math.floor(share * steps + 1e-9));
  brush.strokeStyle = brush.fillStyle = colour("--ink");
  for (let k = 0; k < SHOWN; k++) {
    const corners = [...shown.ends.slice(0, whole + 1), points].flatMap((x) => [x[2 * k], x[2 * k + 1]]);
    brush.globalAlpha = 0.55;
    brush.lineWidth = 1.1 * scale;
    line(corners, corners.length / 2);
    brush.globalAlpha = 1;
    for (let corner = 1; corner <= whole; corner++) dot(brush, at(corners[2 * corner]), side - at(corners[2 * corner + 1]), 1.8 * scale);
    dot(brush, at(points[2 * k]), side - at(points[2 * k + 1]), 2.8 * scale);
    brush.fillStyle = colour("--plane");
    brush.lineWidth = 1.2 * scale;
    dot(brush, at(corners[0]), side - at(corners[1]), 2.6 * scale);
    brush.stroke();
    brush.fillStyle = colour("--ink");
  }
}

function dot(brush, x, y, radius) {
  brush.beginPath();
  brush.arc(x, y, radius, 0, 2 * Math.PI);
  brush.fill();
}

/** The square of times: the diagonal, the steps that are taken as dots, and the jump that is asked for. */
function drawSquare() {
  const [brush, side, scale] = sized($("square"));
  const [least, whole] = [16 * scale, side - 32 * scale];
  const x = (r) => least + 1.0 * r * whole;
  const y = (r) => side - least - r * whole;
  brush.fillStyle = colour("--band");
  brush.fillRect(x(0), y(1), whole, whole);
  brush.strokeStyle = colour("--rule");
  brush.lineWidth = scale;
  brush.strokeRect(x(0), y(1), whole, whole);
  brush.beginPath();
  brush.moveTo(x(0), y(0));
  brush.lineTo(x(1), y(1));
  brush.stroke();
  brush.fillStyle = colour("--faint");
  brush.font = `italic ${12 * scale}px Georgia, "Liberation Serif", serif`;
  brush.fillText("s →", x(0.82), y(0) + 13 * scale);
  brush.fillText("t ↑", x(0) - 14 * scale, y(0.9));
  const ends = Array.from({ length: state.steps }, (_, k) => [k, k + 1]).map((pair) =>
    pair.map((n) => state.s + ((state.t - state.s) * n) / state.steps),
  );
  brush.globalAlpha = 0.5;
  brush.fillStyle = colour(state.ode ? "--teacher" : "--map");
  if (state.steps > 1) for (const [a, b] of ends) dot(brush, x(a), y(b), 3 * scale);
  brush.globalAlpha = 1;
  dot(brush, x(state.s), y(state.t), 6.5 * scale);
}

function say() {
  const { s, t, steps, ode } = shown.asked;
  const [from, to] = [s, t].map((r) => (r === 0 ? "noise" : r === 1 ? "data" : `time ${r.toFixed(2)}`));
  const way = s === t ? "nothing moves" : `from ${from} to ${to}`;
  const how = ode ? `${steps} Euler step${steps > 1 ? "s" : ""}` : `${steps} jump${steps > 1 ? "s" : ""}`;
  $("caption").textContent = s === t ? `s = t: ${way}` : `${way} in ${how}`;
  const number = POINTS.toLocaleString("en");
  const calls = `${shown.evaluations} evaluation${shown.evaluations === 1 ? "" : "s"} of the network`;
  $("cost").textContent = `${number} points, ${calls}, ${shown.milliseconds.toFixed(0)} ms`;
}

// playing -----------------------------------------------------------------------------------------------------------

let playing = 0; // the number of the animation that goes on; 0 for none

function stop() {
  playing = 0;
  $("play").textContent = "▶ play";
}

/** Carry the points from s to t before the reader's eyes: each picture is one evaluation of the map. */
async function play() {
  if (playing) {
    stop();
    return draw(shown.ends.at(-1), 1);
  }
  await update();
  const own = (playing = Date.now());
  $("play").textContent = "■ stop";
  const { s, t, steps, ode } = shown.asked;
  for (const begun = performance.now(); playing === own; ) {
    const now = await new Promise(requestAnimationFrame);
    const share = Math.min(1, (now - begun) / (1000 * SECONDS * Math.max(1, Math.log2(steps))));
    const k = Math.min(steps - 1, Math.floor(Math.max(0, share) * steps));
    const [a, r] = [s + ((t - s) * k) / steps, s + (t - s) * Math.max(0, share)];
    const points = ode ? await eulerStep(shown.ends[k], a, r) : await jump(shown.ends[k], a, r);
    if (playing !== own) return;
    draw(points, share);
    if (share === 1) return stop();
  }
}

// controls ----------------------------------------------------------------------------------------------------------

/** Show the state in the controls. */
function listen() {
  $("steps").value = Math.log2(state.steps);
  $("steps-shown").textContent = state.steps;
  for (const name of ["s", "t"]) {
    $(name).value = state[name];
    $(`${name}-shown`).textContent = state[name].toFixed(2);
  }
  $("seed").textContent = state.seed;
  $("paths").checked = state.paths;
  $("by-map").setAttribute("aria-pressed", !state.ode);
  $("by-ode").setAttribute("aria-pressed", state.ode);
  drawSquare();
}

function set(changes) {
  Object.assign(state, changes);
  return update();
}

function connect() {
  $("steps").addEventListener("input", (event) => set({ steps: 2 ** Number(event.target.value) }));
  for (const name of ["s", "t"]) $(name).addEventListener("input", (event) => set({ [name]: Number(event.target.value) }));
  $("paths").addEventListener("input", (event) => set({ paths: event.target.checked }));
  const pressed = { "by-map": { ode: false }, "by-ode": { ode: true }, "to-data": { s: 0, t: 1 }, "to-noise": { s: 1, t: 0 } };
  for (const [id, changes] of Object.entries(pressed)) $(id).addEventListener("click", () => set(changes));
  $("noise").addEventListener("click", () => set({ seed: state.seed + 1 }));
  $("play").addEventListener("click", play);
  const square = $("square");
  const drag = (event) => {
    const box = square.getBoundingClientRect();
    const share = (v, size) => Math.round(100 * Math.min(1, Math.max(0, (v - 16) / (size - 32)))) / 100;
    set({ s: share(event.clientX - box.left, box.width), t: share(box.bottom - event.clientY, box.height) });
  };
  square.addEventListener("pointerdown", (event) => {
    square.setPointerCapture(event.pointerId);
    drag(event);
  });
  square.addEventListener("pointermove", (event) => event.buttons && drag(event));
  const again = () => shown.asked && !playing && (drawSquare(), draw(shown.ends.at(-1), 1));
  window.addEventListener("resize", again);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
}

// loading -----------------------------------------------------------------------------------------------------------

/** Say what is wrong, and how it is mended. */
function wrong(words) {
  $("message").className = "wrong";
  $("message").innerHTML = words;
  $("message").hidden = false;
}

async function load() {
  if (location.protocol === "file:") {
    wrong("A browser loads no network from a file. Serve this folder and open it there: " +
      "<code>python -m http.server -d docs/play</code>, then <a href='http://localhost:8000'>localhost:8000</a>.");
    return false;
  }
  const folder = new URL("ort/", location.href).href;
  try {
    ort = await import(`${folder}ort.wasm.min.mjs`);
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmPaths = folder;
    session = await ort.InferenceSession.create(new URL("board.onnx", location.href).href, { executionProviders: ["wasm"] });
  } catch (error) {
    wrong("The runtime or the map could not be loaded. <code>python docs/play/make.py --runtime</code> fetches " +
      "onnxruntime-web into <code>docs/play/ort</code>; <code>board.onnx</code> stands beside the page. " +
      `The browser says: <code></code>`);
    $("message").lastElementChild.textContent = String(error.message || error).slice(0, 300);
    return false;
  }
  $("message").hidden = true;
  connect();
  await update();
  return true;
}

const ready = load();
window.flowmaps = { jump, walk, noise, state, shown, set, ready };
