"use strict";
// The dashboard: /status and /routes once and now and then, the rest as /events tells it.

const SPAN_S = 300, REFRESH_MS = 60000, LOADING_MS = 4000, HIDDEN_MS = 20000, MOST_SWITCHES = 100;
const view = { routes: [], status: null, told: null, reading: null, samples: [], switches: [], updates: [], skewS: 0, live: false, dirty: false, readOnly: false };
let stream = null, retryMs = 1000, retrying = null, refreshing = null, hiding = null, image = null, repeating = null, asking = false;

// Which model this page is of: ?model=NAME of its address, else the first. What is asked is asked of that one.
let model = new URLSearchParams(location.search).get("model");
const ofModel = (path) => (model === null ? path : `${path}${path.includes("?") ? "&" : "?"}model=${encodeURIComponent(model)}`);

const nowS = () => Date.now() / 1000;
const OPENED_S = nowS();
const routeOf = (name) => view.routes.find((route) => route.name === name);
const say = (id, text, state = "") => {
  byId(id).textContent = text;
  byId(id).dataset.state = state;
};

// Talking to the server

// The token stays in this tab, and leaves it for this server alone.
const tokenKey = "restnet-token";
let token = sessionStorage.getItem(tokenKey) || "";
function authorized(headers = {}) {
  const known = byId("token").value.trim() || token;
  return known ? { ...headers, Authorization: `Bearer ${known}` } : headers;
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { cache: "no-store", ...options, headers: authorized(options.headers) });
  if (answer.status === 401) askForToken();
  const body = await answer.json().catch(() => ({}));
  if (answer.ok) return { body, date: answer.headers.get("date") };
  const error = new Error(body.error || `the server answers ${answer.status}`);
  error.status = answer.status;
  throw error;
}

async function refresh() {
  clearTimeout(refreshing);
  try {
    const asked = model;
    const [status, routes] = await Promise.all([ask(ofModel("/status")), ask(ofModel("/routes"))]);
    if (asked !== model) return; // another one was chosen meanwhile
    if (status.date) view.skewS = Date.parse(status.date) / 1000 - nowS();
    view.status = status.body;
    view.routes = routes.body.routes;
    view.switches = status.body.switches.slice(-MOST_SWITCHES).reverse();
    view.updates = status.body.update ? status.body.update.steps.slice(-MOST_SWITCHES).reverse() : [];
    view.readOnly = status.body.read_only === true;
    const { decision, budget, pin, reading } = status.body;
    view.told = { budget: budget.text, pin, route: decision && decision.route, feasible: decision && decision.feasible, reason: decision && decision.reason, limits: decision && decision.limits };
    view.reading = view.reading || reading;
    drawAll();
  } catch (error) {
    if (error.status === 404 && model !== null) return chooseModel(null); // an old address: there is no such model any more
    // The stream says when the server is back, and a token that is missing is asked for.
  }
  if (!document.hidden) refreshing = setTimeout(refresh, settled() ? REFRESH_MS : LOADING_MS);
}

function settled() {
  if (!view.status) return false;
  const { known: all, loaded, left_out: left, outdone, failed } = view.status.routes;
  return loaded.length + left.length + Object.keys(outdone).length + Object.keys(failed).length >= all;
}

function askForToken() {
  byId("token-line").hidden = false;
  say("token-message", token ? "The token is wrong." : "This server asks for a token.", "bad");
}

// What EventSource does, with a header that it cannot send.
class TokenStream {
  constructor(path) {
    this.listeners = {};
    this.ended = new AbortController();
    this.run(path).catch(() => {}).then(() => this.ended.signal.aborted || this.onerror());
  }
  addEventListener(name, listener) {
    this.listeners[name] = listener;
  }
  close() {
    this.ended.abort();
  }
  async run(path) {
    const answer = await fetch(path, { cache: "no-store", headers: authorized(), signal: this.ended.signal });
    if (answer.status === 401) askForToken();
    if (!answer.ok) return;
    this.onopen();
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ; ) {
      const { done, value } = await reader.read();
      if (done) return;
      const events = (text + value).split("\n\n");
      text = events.pop();
      for (const event of events) {
        const fields = Object.fromEntries(event.split("\n").map((line) => [line.slice(0, line.indexOf(": ")), line.slice(line.indexOf(": ") + 2)]));
        if (this.listeners[fields.event]) this.listeners[fields.event]({ data: fields.data });
      }
    }
  }
}

function connect() {
  clearTimeout(retrying);
  if (stream) stream.close();
  stream = token ? new TokenStream(ofModel("/events")) : new EventSource(ofModel("/events"));
  stream.onopen = () => {
    retryMs = 1000;
    connection("live", "live");
    view.live = true;
    refresh();
  };
  stream.onerror = () => {
    stream.close();
    stream = null;
    if (view.live) view.samples.push({ at: nowS() });
    view.live = false;
    connection("lost", "no connection, trying again");
    if (!token) refresh(); // an EventSource does not say whether it was for want of a token
    retrying = setTimeout(connect, retryMs);
    retryMs = Math.min(5000, retryMs * 1.5);
  };
  stream.addEventListener("decision", (event) => told(JSON.parse(event.data)));
  stream.addEventListener("switch", (event) => switched(JSON.parse(event.data)));
  stream.addEventListener("update", (event) => updated(JSON.parse(event.data)));
  stream.addEventListener("reading", (event) => {
    const reading = JSON.parse(event.data);
    view.reading = reading;
    told(reading);
    sample(reading);
    drawTimes();
    drawFacts();
  });
}

function connection(state, text) {
  if (byId("connection").textContent !== text) say("connection", text, state);
}

function told(decision) {
  const before = view.told;
  view.told = { budget: decision.budget, pin: decision.pin, route: decision.route, feasible: decision.feasible, reason: decision.reason, limits: decision.limits };
  if (!before || JSON.stringify(before) !== JSON.stringify(view.told)) drawDecision();
  if (before && before.budget !== decision.budget) refresh();
}

function switched(entry) {
  byId("announce").textContent = `${entry.after} serves now. ${entry.reason}`;
  if (view.switches.some((one) => one.at_s === entry.at_s && one.after === entry.after)) return; // /status was quicker
  view.switches.unshift(entry);
  view.switches.length = Math.min(view.switches.length, MOST_SWITCHES);
  drawLog();
}

function updated(step) {
  byId("announce").textContent = `New bundle: ${step.state}. ${step.reason}`;
  refresh(); // other routes may serve now
}

function sample(reading) {
  const limits = reading.limits || {}, latency = reading.latencies && reading.latencies[reading.route];
  view.samples.push({
    at: nowS(),
    route: reading.route,
    latency: latency ? latency.median_ms : null,
    p95: latency ? latency.p95_ms : null,
    latencyLimit: limits.latency_ms,
    memory: reading.own_memory_bytes,
    memoryLimit: known(limits.memory_bytes) ? limits.memory_bytes + (reading.others_memory_bytes || 0) : null, // of the server, as its memory is
    cpu: reading.cpu_percent,
    heat: reading.temperature_c,
  });
  while (view.samples.length && view.samples[0].at < nowS() - SPAN_S - 5) view.samples.shift();
}

// Drawing

function drawAll() {
  byId("bundle").textContent = view.status.model;
  drawModels();
  byId("version").textContent = `version ${view.status.version}, ONNX Runtime ${view.status.versions.onnxruntime || ""}`;
  document.title = `${view.status.model} – ReStNet Runtime`;
  drawDecision();
  drawFacts();
  drawProgress();
  drawTable();
  drawControls();
  drawLog();
  drawTimes();
}

// One model needs no choice.
function drawModels() {
  const select = byId("model"), models = view.status.models;
  byId("model-line").hidden = models.length < 2;
  byId("bundle").hidden = models.length > 1;
  if (models.length < 2 || document.activeElement === select) return;
  select.replaceChildren(...models.map((one) => html("option", { value: one.name }, one.ready ? one.name : `${one.name} (not ready)`)));
  select.value = view.status.model;
}

function chooseModel(name) {
  model = name;
  history.replaceState(null, "", name === null ? location.pathname : `?model=${encodeURIComponent(name)}`);
  Object.assign(view, { routes: [], status: null, told: null, reading: null, samples: [], switches: [], updates: [], dirty: false });
  byId("top").replaceChildren();
  say("answer-text", "");
  say("control-message", "");
  connect();
}

function drawDecision() {
  const { route: name, feasible, reason, pin, budget } = view.told, route = routeOf(name);
  byId("route").textContent = name || "no route yet";
  byId("precision").hidden = !route;
  byId("precision").textContent = route ? route.precision : "";
  byId("verdict").hidden = feasible === null;
  say("verdict", feasible ? `fits the budget (${budget})` : `does not fit the budget (${budget})`, feasible ? "good" : "bad");
  byId("pinned").hidden = !pin;
  byId("reason").textContent = reason || "";
  const served = view.status && view.status.models.find((one) => one.name === view.status.model);
  const problem = view.status && ((served && served.reason) || view.status.problem);
  byId("problem").hidden = !problem;
  byId("problem").textContent = problem || "";
  byId("fact-accuracy").textContent = route && known(route.accuracy) ? percentText(route.accuracy) : "–";
  byId("fact-cost").textContent = route ? macsText(route.macs) : "–";
  for (const row of byId("routes").children) row.classList.toggle("lit", row.dataset.route === name);
  drawCurve(byId("curve"), view.routes, name, view.status ? { ...view.status.budget } : {});
  drawLegend(byId("legend"), view.routes);
}

function drawFacts() {
  const reading = view.reading || {}, route = routeOf(view.told && view.told.route);
  const latency = reading.latencies && view.told && reading.latencies[view.told.route];
  byId("fact-latency").textContent = latency ? msText(latency.median_ms) : route && route.profile ? msText(route.profile.latency_ms) : "–";
  byId("fact-memory").textContent = known(reading.own_memory_bytes) ? bytesText(reading.own_memory_bytes) : "–";
  byId("fact-rate").textContent = known(reading.requests_per_s) && reading.requests_per_s > 0 ? `${Number(reading.requests_per_s.toPrecision(2))} / s` : "none now";
}

function drawProgress() {
  const { known: all, loaded, loading } = view.status.routes;
  byId("progress").hidden = settled();
  byId("progress-bar").max = all;
  byId("progress-bar").value = loaded.length;
  byId("progress-text").textContent = `${loaded.length} of ${all} routes ready${loading ? `, making ready ${loading}` : ""}`;
}

function stateOf(route) {
  const { failed, left_out: left, loading } = view.status.routes;
  if (Object.hasOwn(failed, route.name)) return `failed: ${failed[route.name]}`;
  if (route.outdone) return route.outdone;
  if (route.name === loading) return "being made ready";
  if (left.includes(route.name)) return "no memory for it now";
  return route.loaded ? "ready" : "not loaded yet";
}

function drawTable() {
  const rows = view.routes.map((route) => {
    const cells = [route.precision, macsText(route.macs), known(route.accuracy) ? percentText(route.accuracy) : "–", route.profile ? msText(route.profile.latency_ms) : "–", stateOf(route)];
    const row = html("tr", {}, html("th", { scope: "row" }, route.name), ...cells.map((text) => html("td", {}, text)));
    row.dataset.route = route.name;
    row.classList.toggle("lit", route.name === (view.told && view.told.route));
    return row;
  });
  byId("routes").replaceChildren(...rows);
}

// Switches of routes, and the steps of bundles that are replaced, the latest first.
function drawLog() {
  const latest = [...view.switches, ...view.updates].sort((one, other) => other.at_s - one.at_s);
  byId("log-empty").hidden = latest.length > 0;
  byId("log").hidden = latest.length === 0;
  const entries = latest.map((entry) => {
    const at = new Date((entry.at_s - view.skewS) * 1000);
    const what = entry.state ? updateWords(entry) : switchWords(entry);
    return html("li", {}, html("time", { datetime: at.toISOString() }, at.toLocaleTimeString([], { hour12: false })), what, html("span", { class: "why" }, entry.reason));
  });
  byId("log").replaceChildren(...entries);
}

function switchWords(entry) {
  const what = html("span", {}, entry.before ? `${entry.before} → ${entry.after}` : entry.after);
  if (!entry.feasible) what.append(" ", html("span", { class: "chip", "data-state": "bad" }, "over the budget"));
  return what;
}

function updateWords(step) {
  const state = { accepted: "good", returned: "bad", refused: "bad" }[step.state] || "";
  return html("span", {}, `New bundle${step.digest ? ` ${step.digest.slice(0, 12)}` : ""} `, html("span", { class: "chip", "data-state": state }, step.state));
}

const lines = {};

function drawTimes() {
  const box = byId("times");
  if (!lines.route) for (const [key, title] of [["route", "Route, by cost"], ["latency", "Latency of the network"], ["memory", "Memory of the server"], ["cpu", "CPU of the device"], ["heat", "Heat"]]) lines[key] = timeline(title, box);
  const now = nowS(), spanS = Math.min(SPAN_S, Math.max(60, Math.ceil((now - OPENED_S) / 30) * 30)), frame = { now, spanS };
  byId("span").textContent = `${spanS < 120 ? `${spanS} seconds` : `${Number((spanS / 60).toFixed(1))} minutes`} ago`;
  const last = view.samples[view.samples.length - 1] || {}, reading = view.reading || {};
  const points = (key) => view.samples.map((one) => [one.at, one[key] ?? null]);
  const ranks = new Map(view.routes.map((route, index) => [route.name, index + 1]));
  // What was switched before this page was opened is known to the second.
  const first = view.samples.length ? view.samples[0].at : now;
  const older = view.switches.map((entry) => [entry.at_s - view.skewS, ranks.get(entry.after) ?? null]).filter(([at]) => at < first).reverse();
  const begin = now - spanS, within = older.filter(([at]) => at >= begin), earlier = older.filter(([at]) => at < begin).pop();
  const past = earlier ? [[begin, earlier[1]], ...within] : within;
  const route = [...past, ...view.samples.map((one) => [one.at, ranks.get(one.route) ?? null])];
  drawTimeline(lines.route, { ...frame, steps: true, series: [{ points: route, kind: "steps" }], text: (view.told && view.told.route) || "–", floor: 0.5, ceiling: view.routes.length + 0.5, height: 64 });
  const latency = known(last.latency) ? `${msText(last.latency)}, 95 % within ${msText(last.p95)}` : "no requests lately";
  drawTimeline(lines.latency, { ...frame, series: [{ points: points("latency") }, { points: points("p95"), kind: "second" }], limit: points("latencyLimit"), text: known(last.latencyLimit) ? `${latency}, limit ${msText(last.latencyLimit)}` : latency });
  const memory = known(last.memory) ? bytesText(last.memory) : "not told by this device";
  drawTimeline(lines.memory, { ...frame, series: [{ points: points("memory") }], limit: points("memoryLimit"), text: known(last.memoryLimit) ? `${memory}, limit ${bytesText(last.memoryLimit)}` : memory });
  drawTimeline(lines.cpu, { ...frame, series: [{ points: points("cpu") }], text: known(last.cpu) ? `${last.cpu.toFixed(0)} %` : "not told by this device", ceiling: 100 });
  const zone = reading.temperature_zone ? `, ${reading.temperature_zone}` : "", throttled = reading.throttled && reading.throttled.length ? `, slowed down: ${reading.throttled.join(", ")}` : "";
  drawTimeline(lines.heat, { ...frame, series: [{ points: points("heat") }], text: (known(last.heat) ? `${last.heat.toFixed(1)} °C${zone}` : "no sensor") + throttled, floor: 20, ceiling: Math.max(90, ...points("heat").map((point) => point[1] || 0)) });
}

// Controls

const FIELDS = [["limit-macs", "macs", 1e6, "Cost"], ["limit-latency", "latency_ms", 1, "Latency"], ["limit-memory", "memory_bytes", 1e6, "Memory"], ["limit-accuracy", "min_accuracy", 0.01, "Accuracy"]];
const WHOLE = new Set(["macs", "memory_bytes"]);
const stops = () => [...new Set(view.routes.filter((route) => route.on_front).map((route) => route.macs))].sort((a, b) => a - b);

function drawControls() {
  const { budget, pin } = view.status, slider = byId("cost-slider"), costs = stops();
  byId("read-only").hidden = !view.readOnly;
  byId("budget-fields").disabled = byId("pin-fields").disabled = view.readOnly;
  if (!view.dirty) {
    for (const [id, key, unit] of FIELDS) byId(id).value = known(budget[key]) ? Number((budget[key] / unit).toPrecision(9)) : "";
    slider.max = costs.length;
    const fitting = costs.filter((macs) => !known(budget.macs) || macs <= budget.macs).length;
    slider.value = known(budget.macs) ? Math.max(0, fitting - 1) : costs.length;
    drawSlider(budget.macs);
  }
  const select = byId("pin-route"), chosen = pin || select.value;
  if (document.activeElement !== select) {
    select.replaceChildren(...view.routes.map((route) => html("option", { value: route.name }, `${route.name} (${macsText(route.macs)})`)));
    if (routeOf(chosen)) select.value = chosen;
  }
  byId("unpin").disabled = !pin;
}

function drawSlider(limit = null) {
  const slider = byId("cost-slider"), macs = limit ?? stops()[Number(slider.value)], text = known(macs) ? macsText(macs) : "no limit";
  byId("cost-output").textContent = text;
  slider.setAttribute("aria-valuetext", text);
}

async function change(path, method, body, done) {
  const headers = { "Content-Type": "application/json" };
  try {
    const answer = await ask(ofModel(path), { method, headers, body: body === null ? undefined : JSON.stringify(body) });
    view.dirty = false;
    const decision = answer.body.decision;
    say("control-message", `${done}${decision ? `: ${decision.reason}` : ""}`);
    await refresh();
  } catch (error) {
    if (error.status === 403) {
      view.readOnly = true;
      drawControls();
    }
    say("control-message", error.message, "bad");
  }
}

function limitsAsked() {
  const limits = {};
  for (const [id, key, unit, name] of FIELDS) {
    const text = byId(id).value.trim().replace(",", ".");
    const value = Number(text) * unit;
    if (text && !Number.isFinite(value)) {
      byId(id).focus();
      throw new Error(`${name}: ${text} is no number`);
    }
    limits[key] = text ? (WHOLE.has(key) ? Math.round(value) : Number(value.toPrecision(12))) : null;
  }
  return limits;
}

function setBudget() {
  try {
    change("/budget", "PUT", limitsAsked(), "New budget");
  } catch (error) {
    say("control-message", error.message, "bad");
  }
}

byId("model").addEventListener("change", (event) => {
  event.target.blur(); // what is drawn next may change the list
  chooseModel(event.target.value);
});
byId("budget").addEventListener("submit", (event) => {
  event.preventDefault();
  setBudget();
});
byId("budget").addEventListener("input", (event) => {
  if (event.target.id !== "cost-slider") view.dirty = true;
});
byId("cost-slider").addEventListener("input", () => drawSlider());
byId("cost-slider").addEventListener("change", () => {
  const macs = stops()[Number(byId("cost-slider").value)];
  byId("limit-macs").value = known(macs) ? macs / 1e6 : "";
  setBudget();
});
byId("no-limits").addEventListener("click", () => change("/budget", "PUT", { budget: "none" }, "No limits"));
byId("pin").addEventListener("submit", (event) => {
  event.preventDefault();
  change("/pin", "PUT", { route: byId("pin-route").value }, "Pinned");
});
byId("token-line").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value.trim();
  sessionStorage.setItem(tokenKey, token);
  byId("token").value = "";
  say("token-message", token ? "Sent with everything from now on." : "Forgotten.");
  connect();
});
byId("unpin").addEventListener("click", () => change("/pin", "DELETE", null, "The budget decides"));

// An image

async function predict() {
  if (!image || asking) return;
  asking = true;
  const began = performance.now();
  try {
    const { body } = await ask(ofModel("/predict?top_k=5"), { method: "POST", headers: { "Content-Type": image.type || "application/octet-stream" }, body: image });
    const rows = body.top.map((one) => {
      const bar = html("span", { class: "bar", "aria-hidden": "true" });
      bar.style.width = `${one.probability * 100}%`;
      return html("li", {}, html("span", { class: "class", title: one.class }, one.class), html("span", {}, percentText(one.probability)), bar);
    });
    byId("top").replaceChildren(...rows);
    byId("answer").hidden = false;
    const met = body.budget_met ? "within the budget" : `over the budget: ${body.reason}`;
    say("answer-text", `${body.class}, says ${body.route} in ${msText(body.latency_ms)} (${msText(performance.now() - began)} with the way there), ${met}.`, body.budget_met ? "" : "bad");
  } catch (error) {
    say("answer-text", error.status ? error.message : "The server did not answer.", "bad");
  }
  asking = false;
}

function choose(file) {
  if (!file) return;
  image = file;
  const preview = byId("preview");
  URL.revokeObjectURL(preview.src);
  preview.onload = () => preview.classList.toggle("small", preview.naturalWidth < 96);
  preview.src = URL.createObjectURL(file);
  byId("top").replaceChildren();
  byId("again").disabled = byId("repeat").disabled = false;
  predict();
}

byId("file").addEventListener("change", (event) => choose(event.target.files[0]));
byId("again").addEventListener("click", predict);
byId("repeat").addEventListener("change", (event) => {
  clearInterval(repeating);
  if (event.target.checked) repeating = setInterval(() => document.hidden || predict(), 1000);
});
const drop = byId("drop");
for (const name of ["dragenter", "dragover"]) {
  drop.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  choose(event.dataTransfer.files[0]);
});

// A page that nobody looks at costs the device nothing.

document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  if (!document.hidden) {
    if (!stream) connect();
    return;
  }
  hiding = setTimeout(() => {
    clearTimeout(refreshing);
    clearTimeout(retrying);
    if (stream) stream.close();
    stream = null;
    view.live = false;
    view.samples.push({ at: nowS() });
    connection("waiting", "paused");
  }, HIDDEN_MS);
});
new ResizeObserver(() => {
  if (!view.status) return;
  drawDecision();
  drawTimes();
}).observe(byId("main"));
connect();
