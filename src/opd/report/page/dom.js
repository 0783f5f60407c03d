// Small helpers. Text enters the page through textContent alone, never as markup.

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
    else node.setAttribute(key, value === true ? "" : value);
  }
  add(node, children);
  return node;
}

function add(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

function fill(node, ...children) {
  node.replaceChildren();
  return add(node, children);
}

// Figures as opd prints them elsewhere: shares in percent, everything else with three decimals.
const SHARES =
  /^(accuracy|avg@|gap_recovery|invalid_call_rate|repetition_rate|teacher_accuracy|truncation_rate|overlap@|.*_share$)/;

function figure(name, value) {
  if (value === null || value === undefined) return "–";
  return SHARES.test(bare(name)) ? percent(value) : number(value);
}

const bare = (name) => name.replace(/^(teacher|conflict)\//, "");
const percent = (value) => `${(100 * value).toFixed(1)} %`;

function number(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${(value / 1e6).toFixed(1)} M`;
  if (size >= 1e4) return `${(value / 1e3).toFixed(0)} k`;
  if (size >= 100) return value.toFixed(0);
  if (size && size < 0.01) return size < 1e-5 ? "0.000" : String(Number(value.toPrecision(2))).replace("-", "−");
  return value.toFixed(size >= 10 ? 2 : 3).replace("-", "−");
}

// A probability from a logprob, with as many decimals as it needs to be told from 0 and 1.
function chance(logprob) {
  if (logprob === null || logprob === undefined) return "–";
  const p = Math.exp(logprob);
  if (p > 0.9995) return "100 %";
  return p < 0.0001 ? "< 0.01 %" : `${(100 * p).toFixed(p < 0.1 ? 2 : 1)} %`;
}

// Tokens are shown so that spaces and line breaks can be seen.
function visible(text) {
  const shown = text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ +| +$/g, (s) => "␣".repeat(s.length));
  return shown === "" ? "(nothing)" : shown;
}

// The same where a leading space is only a word boundary.
const word = (text) => (text.trim() === "" ? visible(text) : text.trim().replace(/\n/g, "⏎"));

const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

// A text with the special tokens of the tokenizer set apart, so that what was said stands out.
function withSpecials(text, run) {
  if (!run.specials.length) return [text];
  const escaped = run.specials.map((s) => s.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  return text.split(new RegExp(`(${escaped.join("|")})`)).filter((s) => s !== "")
    .map((s) => (run.specials.includes(s) ? el("span", { class: "mark-token" }, s) : s));
}
