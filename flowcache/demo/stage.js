// Plays the frames that have come so far, each run in a panel of its own; at the end, all runs on one clock.
const panels = [];
const box = element.querySelector(".runs");
const bar = element.querySelector(".clock");
const [button, face] = bar.children;
let race = null;

function make(kind, name, parent, text) {
  const made = document.createElement(kind);
  if (name) made.className = name;
  if (text) made.textContent = text;
  parent.append(made);
  return made;
}

function addPanel() {
  const root = make("section", "run", box);
  const head = make("header", "", root);
  const panel = { root, images: [], position: 0, title: make("h3", "", head), state: make("span", "state", head) };
  panel.notes = make("p", "notes", root);
  const body = make("div", "body", root);
  const film = make("div", "film", body);
  panel.canvas = make("canvas", "", film);
  panel.progress = make("div", "progress", film);
  panel.facts = make("dl", "", body);
  const charts = make("div", "charts", body);
  for (const [name, title, legend] of [
    ["map", "Reuse map: chunks down, steps across", ["computed", "reused"]],
    ["cache", "KV cache", []],
  ]) {
    const figure = make("figure", name, charts);
    const caption = make("figcaption", "", figure);
    panel[`${name}Title`] = make("span", "", caption, title);
    for (const each of legend) make("i", each, caption, each);
    panel[name] = make("div", "", figure);
  }
  panel.files = make("p", "files", root);
  return panel;
}

function showProgress(panel, share) {
  panel.progress.style.setProperty("--share", Math.min(share, 1));
}

function fill(panel, run) {
  panel.run = run;
  panel.title.textContent = run.label;
  panel.root.dataset.state = run.state;
  const [done, all] = run.frames ?? [0, 0];
  const come = all && run.state !== "done" ? `, ${done} of ${all} frames` : "";
  panel.state.textContent = run.error || run.state + come;
  panel.notes.textContent = run.notes.join(" ");
  showProgress(panel, done / (all || 1));
  panel.map.innerHTML = run.map ?? "";
  panel.cache.innerHTML = run.cache ?? "";
  panel.cacheTitle.textContent = `KV cache: ${run.tokens ? `up to ${run.tokens} tokens` : "no tokens"} per layer`;
  panel.facts.replaceChildren();
  for (const [name, value, remark] of run.facts ?? []) {
    const cell = make("div", "", panel.facts);
    make("dt", "", cell, name);
    make("dd", "", cell, value);
    make("small", "", cell, remark);
  }
  panel.files.replaceChildren();
  for (const [name, path] of run.files ?? []) {
    const link = make("a", "", panel.files, name);
    link.href = "gradio_api/file=" + path.split("/").map(encodeURIComponent).join("/");
    link.download = path.split("/").pop();
  }
  const strips = run.strips ?? [];
  if (strips.length < panel.images.length) panel.images.length = panel.position = 0;
  for (const strip of strips.slice(panel.images.length)) {
    const image = new Image();
    image.src = strip.picture;
    panel.images.push(image);
  }
  if (run.size) panel.canvas.style.aspectRatio = run.size.join("/");
  panel.canvas.classList.toggle("pixels", Boolean(run.size) && Math.max(...run.size) <= 128);
}

const countFrames = (panel) => (panel.run.strips ?? []).reduce((sum, strip) => sum + strip.count, 0);
const lastReady = (panel) => panel.run.strips.at(-1).ready;

// Frame to show after some seconds of the model's work: each strip plays while the next one is computed.
function frameAt(panel, seconds, speed) {
  const strips = panel.run.strips;
  let shown = 0;
  if (seconds < strips[0].ready) return null;
  for (let i = 0; i < strips.length; i++) {
    const next = strips[i + 1];
    if (!next) return ((seconds - strips[i].ready) / speed) * panel.run.fps % countFrames(panel);
    const share = (seconds - strips[i].ready) / (next.ready - strips[i].ready);
    if (seconds < next.ready) return shown + strips[i].count * share;
    shown += strips[i].count;
  }
}

function draw(panel, frame) {
  const context = panel.canvas.getContext("2d");
  let index = frame === null ? -1 : Math.floor(frame);
  for (const [place, strip] of (panel.run.strips ?? []).entries()) {
    const image = panel.images[place];
    if (index >= 0 && index < strip.count && image.naturalWidth) {
      const [width, height] = [image.naturalWidth, image.naturalHeight / strip.count];
      if (panel.canvas.width !== width) [panel.canvas.width, panel.canvas.height] = [width, height];
      context.drawImage(image, 0, index * height, width, height, 0, 0, width, height);
      return;
    }
    index -= strip.count;
  }
  if (frame === null) context.clearRect(0, 0, panel.canvas.width, panel.canvas.height);
}

function startRace() {
  const longest = Math.max(...panels.map(lastReady));
  race = { start: performance.now(), longest, speed: longest / Math.min(Math.max(longest, 4), 12) };
}

let before = performance.now();
function tick(now) {
  if (!element.isConnected) return;
  const seconds = (now - before) / 1000;
  before = now;
  const clock = race && ((now - race.start) / 1000) * race.speed;
  for (const panel of panels) {
    const count = countFrames(panel);
    if (race && count) {
      draw(panel, frameAt(panel, clock, race.speed));
      showProgress(panel, clock / lastReady(panel));
    } else if (count) {
      panel.position += seconds * panel.run.fps;
      if (panel.position >= count) panel.position = panel.run.state === "done" ? 0 : count - 1;
      draw(panel, panel.position);
    } else draw(panel, null);
  }
  if (race) {
    const shown = race.speed > 1 ? `${race.speed.toFixed(1)}x faster` : `${(1 / race.speed).toFixed(1)}x slower`;
    const rate = Math.abs(race.speed - 1) < 0.05 ? "" : `, shown ${shown}`;
    face.textContent = `${Math.min(clock, race.longest).toFixed(1)} s of the model's time${rate}`;
    if (clock > race.longest + 3 * race.speed) {
      race = null;
      for (const panel of panels) panel.position = 0;
    }
  }
  requestAnimationFrame(tick);
}

// A sentence below the runs, until something else is shown.
function say(sentence, kind) {
  box.querySelector(".said")?.remove();
  if (sentence) make("p", `said ${kind}`, box, sentence).setAttribute("role", kind === "error" ? "alert" : "status");
}

function update() {
  const { runs, error } = props.value ?? { runs: [] };
  const wasDone = panels.length && panels.every((panel) => panel.run.state === "done");
  while (panels.length > runs.length) panels.pop().root.remove();
  while (panels.length < runs.length) panels.push(addPanel());
  runs.forEach((run, place) => fill(panels[place], run));
  say(error, "error");
  const isDone = panels.length > 0 && panels.every((panel) => panel.run.state === "done" && panel.run.strips.length);
  bar.hidden = !isDone;
  button.textContent = panels.length > 1 ? "Play on one clock" : "Play as it was made";
  if (!isDone) race = null;
  else if (!wasDone && panels.length > 1) startRace();
  else if (!wasDone) face.textContent = "";
}

button.addEventListener("click", startRace);
document.addEventListener("click", (event) => {
  const starts = event.target.closest("#run:enabled, #resume:enabled");
  if (starts) say("Waiting for the model, which makes one video at a time.", "");
});
watch("value", update);
update();
requestAnimationFrame(tick);
