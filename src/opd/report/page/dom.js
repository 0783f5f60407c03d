// DOM and number helpers. Text enters the page only as text nodes, never as markup.

// Control characters, direction marks and whatever else has no shape, as code points: they would hide or turn other text.
// SHAPELESS_PATTERN comes from opd/output/visible.py.
const SHAPELESS = new RegExp(SHAPELESS_PATTERN, "gu");
const codePoint = (c) => `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
const shapes = (text) => text.replace(SHAPELESS, codePoint);

const $ = (id) => document.getElementById(id);

// el("li", { class: "row", onclick: f, "aria-label": "x" }, child, "text", ...)
function el(name, props, ...children) {
  const node = name.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4))
    : document.createElement(name);
  for (const [key, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key.startsWith("--")) node.style.setProperty(key, value);
    else if (key === "data") Object.assign(node.dataset, value);
    else node.setAttribute(key, value === true ? "" : shapes(String(value)));
  }
  add(node, children);
  return node;
}

function add(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(...(child instanceof Node ? [child] : textNodes(String(child))));
  }
  return node;
}

// A text, with each mark that has no shape by its code point in an element of its own, so that it turns nothing.
function textNodes(text) {
  const found = [];
  let at = 0;
  for (const match of text.matchAll(SHAPELESS)) {
    if (match.index > at) found.push(document.createTextNode(text.slice(at, match.index)));
    const mark = document.createElement("bdi");
    mark.className = "mark-control";
    mark.textContent = codePoint(match[0]);
    found.push(mark);
    at = match.index + match[0].length;
  }
  if (at < text.length || !found.length) found.push(document.createTextNode(text.slice(at)));
  return found;
}

function fill(node, ...children) {
  node.replaceChildren();
  return add(node, children);
}

// METRIC_TABLE comes from opd/output/format.py: label, percent and better of each metric, and the order of tiles.
const unprefixed = (name) => name.replace(/^(teacher|conflict)\//, "");
const baseName = (name) => unprefixed(name).split(/[/@]/)[0];
const metricOf = (name) => METRIC_TABLE.metrics[baseName(name)] || null;

// A metric's value as text: in percent if the table or the name says so, otherwise by size.
function metricText(name, value) {
  if (value === null || value === undefined) return "–";
  const metric = metricOf(name);
  return (metric ? metric.percent : baseName(name).endsWith("_share")) ? percent(value) : number(value);
}

const percent = (value) => `${(100 * value).toFixed(1)}%`;

// A number below 0.001 as 1e-6 or −2.5e-4.
const small = (value) => {
  const text = value && Math.abs(value) < 0.001 ? Number(value.toPrecision(2)).toExponential() : String(Number(value.toPrecision(3)));
  return text.replace(/^-/, "−");
};

function number(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${(value / 1e6).toFixed(1)} M`;
  if (size >= 1e4) return `${(value / 1e3).toFixed(0)} k`;
  if (size >= 100) return value.toFixed(0);
  if (size && size < 0.01) return small(size < 0.001 ? value : Number(value.toPrecision(2)));
  return value.toFixed(size >= 10 ? 2 : 3).replace("-", "−");
}

// A probability from a log-probability, with enough decimals to differ from 0 and 1.
function chance(logprob) {
  if (logprob === null || logprob === undefined) return "–";
  const p = Math.exp(logprob);
  if (p > 0.9995) return "100%";
  return p < 0.0001 ? "< 0.01%" : `${(100 * p).toFixed(p < 0.1 ? 2 : 1)}%`;
}

// A token with visible spaces and line breaks.
function visible(text) {
  const shown = text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ +| +$/g, (s) => "␣".repeat(s.length));
  return shown === "" ? "(nothing)" : shown;
}

// A token without its leading space.
const word = (text) => (text.trim() === "" ? visible(text) : text.trim().replace(/\n/g, "⏎"));

const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

// A text whose special tokens are marked, so that the message stands out.
function withSpecials(text, run) {
  if (!run.specials.length) return [text];
  const escaped = run.specials.map((s) => s.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  return text.split(new RegExp(`(${escaped.join("|")})`)).filter((s) => s !== "")
    .map((s) => (run.specials.includes(s) ? el("span", { class: "mark-token" }, s) : s));
}

// Number of seconds as text.
const duration = (s) => (s >= 7200 ? `${(s / 3600).toFixed(1)} h` : s >= 120 ? `${Math.round(s / 60)} min` : s >= 0.95 ? `${Math.round(s)} s` : `${Math.round(1000 * s)} ms`);
