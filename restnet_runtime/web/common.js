"use strict";
// What both pages need. Everything that comes from the server goes through text nodes or attributes, never through HTML.

const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);

function make(space, tag, attributes, children) {
  const node = space ? document.createElementNS(space, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) if (value !== null && value !== undefined) node.setAttribute(name, String(value));
  for (const child of children) node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  return node;
}
const html = (tag, attributes, ...children) => make(null, tag, attributes, children);
const svg = (tag, attributes, ...children) => make(SVG, tag, attributes, children);

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

function scaled(value, units) {
  for (const [size, unit] of units) if (Math.abs(value) >= size) return `${Number((value / size).toPrecision(3))} ${unit}`;
  const [size, unit] = units[units.length - 1];
  return `${Number((value / size).toPrecision(3))} ${unit}`;
}
const macsText = (value) => scaled(value, [[1e9, "GMACs"], [1e6, "MMACs"], [1e3, "KMACs"], [1, "MACs"]]);
const bytesText = (value) => scaled(value, [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]]);
const msText = (value) => scaled(value, [[1e3, "s"], [1, "ms"], [1e-3, "µs"]]);
const percentText = (value) => `${(value * 100).toFixed(1)} %`;
