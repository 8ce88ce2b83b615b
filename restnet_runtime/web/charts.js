"use strict";
// The curve and the timelines, as SVG in the size that they have on the screen.

function ticksOf(low, high, most) {
  const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= raw);
  const ticks = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) ticks.push(value);
  return ticks;
}

function logTicks(low, high) {
  let ticks = [];
  for (const factors of [[1, 2, 5], [1, 1.5, 2, 3, 4, 5, 6, 8]]) {
    ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) ticks.push(...factors.map((factor) => factor * 10 ** power));
    ticks = ticks.filter((value) => value >= low && value <= high);
    if (ticks.length > 2) break;
  }
  return ticks;
}

const kindOf = (precision) => (precision === "fp32" ? "fp32" : precision === "int8" ? "int8" : "mixed");
const onFront = (route) => (route.on_front_here === null ? route.on_front : route.on_front_here);

function marker(kind, x, y, r, classes) {
  const attributes = { class: `point ${kind} ${classes}` };
  if (kind === "int8") return svg("rect", { ...attributes, x: x - r * 0.9, y: y - r * 0.9, width: r * 1.8, height: r * 1.8 });
  if (kind === "mixed") return svg("path", { ...attributes, d: `M${x} ${y - r * 1.3}L${x + r * 1.3} ${y}L${x} ${y + r * 1.3}L${x - r * 1.3} ${y}Z` });
  return svg("circle", { ...attributes, cx: x, cy: y, r });
}

// routes: as /routes has them; current: a name; limits: macs and min_accuracy, null where there is none
function drawCurve(box, routes, current, limits) {
  const scored = routes.filter((route) => known(route.accuracy));
  const width = Math.max(240, box.clientWidth), height = width < 500 ? 240 : 300;
  const left = 46, right = 14, top = 40, bottom = 40;
  if (!scored.length) {
    box.replaceChildren(html("p", { class: "muted" }, "The accuracy of these routes was not measured: the table has their cost."));
    return;
  }
  const costs = scored.map((route) => Math.max(1, route.macs)), scores = scored.map((route) => route.accuracy);
  const fromX = Math.log(Math.min(...costs) * 0.85), toX = Math.log(Math.max(...costs) * 1.15);
  const span = Math.max(0.005, Math.max(...scores) - Math.min(...scores));
  const fromY = Math.min(...scores) - span * 0.1, toY = Math.max(...scores) + span * 0.1;
  const x = (macs) => left + ((Math.log(macs) - fromX) / (toX - fromX)) * (width - left - right);
  const y = (accuracy) => height - bottom - ((accuracy - fromY) / (toY - fromY)) * (height - top - bottom);
  const lit = scored.find((route) => route.name === current);
  const label = lit
    ? `Accuracy over cost of ${scored.length} routes. ${lit.name} serves: ${percentText(lit.accuracy)} at ${macsText(lit.macs)}.`
    : `Accuracy over cost of ${scored.length} routes.`;
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
  for (const value of ticksOf(fromY, toY, 5)) {
    chart.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    chart.append(svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, `${Number((value * 100).toFixed(1))} %`));
  }
  let last = -Infinity;
  for (const value of logTicks(Math.exp(fromX), Math.exp(toX))) {
    const at = x(value);
    chart.append(svg("line", { class: "grid", x1: at, x2: at, y1: top, y2: height - bottom }));
    if (at - last < 74 || at > width - 30) continue;
    chart.append(svg("text", { x: at, y: height - bottom + 17, "text-anchor": "middle" }, macsText(value)));
    last = at;
  }
  chart.append(svg("text", { x: width - right, y: height - 4, "text-anchor": "end" }, "cost of one input (log)"));
  for (const kind of ["fp32", "int8"]) {
    const front = scored.filter((route) => kindOf(route.precision) === kind && route.on_front).sort((a, b) => a.macs - b.macs);
    const path = front.map((route, index) => `${index ? "L" : "M"}${x(route.macs)} ${y(route.accuracy)}`).join("");
    if (front.length > 1) chart.append(svg("path", { class: `front ${kind}`, d: path }));
  }
  if (known(limits.macs) && Math.log(limits.macs) > fromX && Math.log(limits.macs) < toX) {
    const at = x(limits.macs), late = at > width / 2;
    chart.append(svg("line", { class: "limit", x1: at, x2: at, y1: 4, y2: height - bottom }));
    chart.append(svg("text", { class: "limit-text", x: at + (late ? -5 : 5), y: 14, "text-anchor": late ? "end" : "start" }, `limit ${macsText(limits.macs)}`));
  }
  if (known(limits.min_accuracy) && limits.min_accuracy > fromY && limits.min_accuracy < toY) {
    const at = y(limits.min_accuracy);
    chart.append(svg("line", { class: "limit", x1: left, x2: width - right, y1: at, y2: at }));
    chart.append(svg("text", { class: "limit-text", x: width - right, y: at - 5, "text-anchor": "end" }, `floor ${percentText(limits.min_accuracy)}`));
  }
  if (lit) chart.append(svg("circle", { class: "halo", cx: x(lit.macs), cy: y(lit.accuracy), r: 15 }));
  for (const route of [...scored.filter((one) => one !== lit), ...(lit ? [lit] : [])]) {
    const classes = `${onFront(route) ? "on" : ""} ${route.loaded ? "" : "away"} ${route === lit ? "lit" : ""}`;
    const point = marker(kindOf(route.precision), x(Math.max(1, route.macs)), y(route.accuracy), route === lit ? 7.5 : 5, classes);
    point.append(svg("title", {}, `${route.name}, ${route.precision}: ${percentText(route.accuracy)}, ${macsText(route.macs)}`));
    chart.append(point);
  }
  if (lit) {
    const at = x(lit.macs), late = at > width * 0.45, most = Math.floor((late ? at - left : width - right - at) / 7.2);
    const whole = `${lit.name} (${lit.precision})`, name = whole.length > most ? lit.name : whole, shown = name.length > most ? `${name.slice(0, Math.max(4, most - 1))}…` : name;
    // A front rises: above it there is room to the left, below it to the right.
    chart.append(svg("text", { class: "name", x: at + (late ? -12 : 12), y: y(lit.accuracy) + (late ? -14 : 24), "text-anchor": late ? "end" : "start" }, shown));
  }
  box.replaceChildren(chart);
}

function drawLegend(box, routes) {
  const entry = (shape, text) => {
    const icon = svg("svg", { viewBox: "0 0 16 14" });
    icon.append(shape);
    return html("span", {}, icon, text);
  };
  const kinds = [...new Set(routes.map((route) => kindOf(route.precision)))];
  const entries = [entry(marker("fp32", 8, 7, 5.5, "on lit"), "serves now")];
  for (const kind of ["fp32", "int8", "mixed"]) {
    if (kinds.includes(kind)) entries.push(entry(marker(kind, 8, 7, 4, "on"), kinds.length > 1 ? `${kind}, on the front here` : `on the front here (${kind})`));
  }
  entries.push(entry(marker("fp32", 8, 7, 4, ""), "another route is better here"));
  entries.push(entry(svg("path", { class: "front", d: "M1 10L15 4" }), "front over cost"));
  box.replaceChildren(...entries);
}

// A timeline: { box, value } made once by `timeline`, drawn by `drawTimeline` whenever there is something new.
function timeline(title, parent) {
  const value = html("b", {}, "–"), box = html("div", { class: "chart" });
  parent.append(html("div", { class: "time" }, html("h3", {}, html("span", {}, title), value), box));
  return { title, value, box };
}

// series: lists of [seconds, value or null] with a class; limit: such a list; ceiling, floor: of the axis, where fixed
function drawTimeline(line, { series, limit = [], text, now, spanS, steps = false, floor = 0, ceiling = null, height = 46 }) {
  line.value.textContent = text;
  const width = Math.max(200, line.box.clientWidth), main = series[0].points.map((point) => point[1]).filter(known);
  // The second line may leave the picture: one slow request would press the first one flat.
  const others = series.slice(1).flatMap(({ points }) => points.map((point) => point[1])).filter(known).sort((a, b) => a - b);
  const values = [...main, ...others.slice(0, Math.ceil(others.length * 0.9))];
  let top = ceiling ?? Math.max(1e-9, ...values) * 1.1;
  const limits = limit.map((point) => point[1]).filter(known);
  if (ceiling === null && limits.length && Math.max(...limits) < top * 4) top = Math.max(top, Math.max(...limits) * 1.1);
  const x = (at) => width - ((now - at) / spanS) * width, y = (value) => height - 3 - ((value - floor) / (top - floor)) * (height - 6);
  const label = `${line.title}: ${text}`;
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
  for (let minute = 0; minute <= spanS / 60; minute += 1) {
    const at = x(now - minute * 60);
    chart.append(svg("line", { class: "grid", x1: at, x2: at, y1: 0, y2: height }));
  }
  chart.append(svg("line", { class: "grid", x1: 0, x2: width, y1: height - 1, y2: height - 1 }));
  const path = (points, stepped) => {
    let drawn = "", before = null;
    for (const [at, value] of points) {
      if (!known(value)) before = null;
      else {
        if (before === null) drawn += `M${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
        else drawn += `${stepped ? `H${x(at).toFixed(1)}V` : `L${x(at).toFixed(1)} `}${y(value).toFixed(1)}`;
        before = value;
      }
    }
    return drawn + (stepped && before !== null ? `H${width}` : "");
  };
  if (limits.length && Math.min(...limits) <= top) chart.append(svg("path", { class: "limit", d: path(limit.map(([at, value]) => [at, known(value) && value <= top ? value : null]), true) }));
  for (const { points, kind } of [...series].reverse()) chart.append(svg("path", { class: `trace ${kind || ""}`, d: path(points, steps) }));
  line.box.replaceChildren(chart);
}
