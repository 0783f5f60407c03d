// Charts of metrics, drawn with uPlot. Each chart has its values as a table for screen readers.

let drawn = [];
let axis = "step"; // of all charts: step, tokens or seconds

const AXES = { step: "steps", tokens: "tokens", seconds: "seconds of training" };

// The values of the axis at the rows of a kind of metrics.
const along = (run, kind) => (axis === "step" ? run[kind].step : run[kind][axis]);

// Where a step is on the axis.
function placeOf(run, step) {
  const { step: steps } = run.train;
  const at = steps.findLastIndex((s) => s <= step);
  return axis === "step" ? step : at < 0 ? 0 : run.train[axis][at];
}

function axisChoice() {
  if (!DATA.runs.some((run) => run.train.tokens.some(Boolean))) return null;
  return el("div", { class: "axis wide-card", role: "group", "aria-label": "Horizontal axis" }, el("span", { class: "label" }, "Curves over"),
    el("div", { class: "chips" }, Object.entries(AXES).map(([name, label]) =>
      el("button", { type: "button", class: "chip", data: { axis: name }, "aria-pressed": String(name === axis),
        onclick: () => { axis = name; buildCurves(); $("charts").querySelector(`[data-axis=${name}]`).focus(); } }, label))));
}

// first: a node above the charts; charts: see charts.js; group: a title and the charts below it.
function drawCurves({ first, charts, group }) {
  for (const chart of drawn) chart.destroy();
  drawn = [];
  for (const run of DATA.runs) throughput(run);
  const used = new Set();
  const cards = charts.map((chart) => card(chart, used));
  const [title, others] = group || ["", []];
  const grouped = others.map((chart) => card(chart, used)).filter(Boolean);
  const rest = leftOver(used).map((name) => card([name, "", [["eval", name, ""], ["train", name, ""]], {}], new Set()));
  fill(
    $("charts"),
    first,
    axisChoice(),
    cards,
    grouped.length ? el("section", { class: "group", "aria-labelledby": "teachers-title" }, el("h3", { id: "teachers-title" }, title), el("div", { class: "charts" }, grouped)) : null,
    rest.length ? el("details", { class: "more", id: "more" }, el("summary", {}, `${rest.filter(Boolean).length} more metrics`), el("div", { class: "charts" }, rest)) : null,
  );
  for (const host of $("charts").querySelectorAll(".plot")) if (host.plot) plot(host);
  const more = $("more");
  if (more) more.addEventListener("toggle", () => { for (const host of more.querySelectorAll(".plot")) plot(host); });
}

// Adds what a step makes per second: tokens, or images of a denoising run, whose "tokens" are denoising steps.
function throughput(run) {
  const c = run.train.columns;
  if (!c.tokens || !c.rollout_s) return;
  const { prompts_per_step: prompts, rollouts_per_prompt: each } = run.config.rollout || {};
  const [name, made] = run.config.family === "diffusion" ? ["images_per_s", () => prompts * (each || 1)] : ["tokens_per_s", (i) => c.tokens[i]];
  c[name] = c.tokens.map((_, i) => made(i) / ((c.rollout_s[i] || 0) + (c.teacher_s[i] || 0) + (c.update_s[i] || 0)));
}

const names = (run, kind) => Object.keys(run[kind].columns);

function leftOver(used) {
  const all = new Set(DATA.runs.flatMap((run) => [...names(run, "eval"), ...names(run, "train")]));
  return [...all].filter((name) => !used.has(name) && name !== "tokens");
}

// The series of one chart. Several runs have one colour each; of one run each series has a colour.
function seriesOf(wanted, used) {
  const found = [];
  for (const run of DATA.runs) {
    for (const [kind, column, label, dashed] of wanted) {
      for (const name of names(run, kind).filter((n) => (column instanceof RegExp ? column.test(n) : n === column))) {
        used.add(name);
        const values = run[kind].columns[name];
        if (values.every((v) => v === null)) continue;
        found.push({ run, kind, name, label: label || unprefixed(name).replace(/_/g, " "), steps: along(run, kind), values, dashed });
      }
    }
  }
  return found;
}

function card([title, about, wanted, options], used) {
  const series = seriesOf(wanted, used);
  if (!series.length) return null;
  const several = DATA.runs.length > 1;
  const id = `chart-${title.replace(/\W+/g, "-").toLowerCase()}`;
  series.forEach((s, i) => { s.colour = several ? `--run-${s.run.index % 6}` : `--c${i % 6}`; });
  const host = el("div", { class: "plot", "aria-hidden": "true" });
  host.plot = { series, options };
  const shared = new Set(series.map((s) => s.run)).size < series.length;
  const label = (s) => (several ? `${s.run.name}${shared ? `, ${s.label}` : ""}` : s.label);
  return el(
    "figure", { class: "card", role: "group", "aria-labelledby": id },
    el("figcaption", {}, el("h3", { id }, title), about ? el("p", { class: "note" }, about) : null),
    el("div", { class: "keys" }, series.map((s) =>
      el("span", { class: "key-item" }, el("span", { class: `line${s.dashed ? " dashed" : ""}`, "--c": `var(${s.colour})` }), label(s), " ",
        el("b", {}, metricText(s.name, s.values.findLast((v) => v !== null)))))),
    host,
    options.more,
    table(series, label),
  );
}

// A table of at most 13 rows, evenly spaced.
function table(series, label) {
  const steps = [...new Set(series.flatMap((s) => s.steps))].sort((a, b) => a - b);
  const every = Math.max(1, Math.ceil(steps.length / 12));
  const shown = steps.filter((_, i) => i % every === 0 || i === steps.length - 1);
  return el(
    "details", { class: "values-of" }, el("summary", {}, "values"),
    el("div", { class: "scroll-x" }, el("table", { class: "plain" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, AXES[axis].replace("steps", "step")), series.map((s) => el("th", { scope: "col" }, label(s))))),
      el("tbody", {}, shown.map((step) => el("tr", {}, el("th", { scope: "row" }, axis === "step" ? step : number(step)),
        series.map((s) => { const i = s.steps.indexOf(step); return el("td", {}, i < 0 ? "" : metricText(s.name, s.values[i])); })))))),
  );
}

function plot(host) {
  if (!host.plot || host.firstChild || !host.clientWidth) return;
  const { series, options } = host.plot;
  const css = getComputedStyle(document.documentElement);
  const colour = (name) => css.getPropertyValue(name).trim();
  const steps = [...new Set(series.flatMap((s) => s.steps))].sort((a, b) => a - b);
  const at = new Map(steps.map((s, i) => [s, i]));
  let columns = series.map((s) => {
    const column = new Array(steps.length).fill(null);
    s.steps.forEach((step, i) => { column[at.get(step)] = s.values[i]; });
    return column;
  });
  if (options.stacked && DATA.runs.length === 1) {
    columns = columns.map((_, k) => steps.map((_, i) => columns.slice(0, k + 1).reduce((sum, c) => sum + (c[i] || 0), 0)));
  }
  const stacked = options.stacked && DATA.runs.length === 1;
  const order = stacked ? columns.map((_, i) => columns.length - 1 - i) : columns.map((_, i) => i);
  const lines = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
  const round = (v) => (Math.abs(v) >= 1e6 ? `${v / 1e6}M` : Math.abs(v) >= 1e4 ? `${v / 1e3}k` : v);
  const tick = options.share ? (v) => `${Math.round(100 * v)}%` : (v) => (v === 0 ? "0" : Math.abs(v) >= 1000 ? `${v / 1000}k` : small(v));
  const chart = new uPlot(
    {
      width: host.clientWidth, height: 170, legend: { show: false },
      cursor: { sync: { key: "steps" }, points: { size: 6 }, drag: { x: true, y: false } },
      scales: { x: { time: false }, y: { range: (_, low, high) => range(low, high, options) } },
      axes: [{ ...lines, size: 28, values: (_, ticks) => ticks.map(round) }, { ...lines, size: 50, values: (_, ticks) => ticks.map(tick) }],
      series: [
        {},
        ...order.map((k) => ({
          stroke: colour(series[k].colour), width: series[k].kind === "train" && !stacked ? 1.25 : 2, spanGaps: true,
          dash: series[k].dashed ? [4, 4] : undefined, fill: stacked ? colour(series[k].colour) : undefined,
          points: { show: series[k].kind === "eval" && series[k].steps.length < 60, size: 5, fill: colour(series[k].colour) },
        })),
      ],
      hooks: { draw: [(u) => marks(u, colour)], setCursor: [(u) => readOut(u, host, series, steps)] },
    },
    [steps, ...order.map((k) => columns[k])], host,
  );
  drawn.push(chart);
}

function range(low, high, options) {
  if (low === null) return [0, 1];
  if (options.zero) [low, high] = [Math.min(low, 0), Math.max(high, 0)];
  const bottom = options.low !== undefined ? Math.min(options.low, low) : low;
  const room = (high - bottom || Math.abs(high) || 1) * 0.06;
  return [options.low !== undefined && low >= 0 ? options.low : bottom - room, high + room];
}

const NEUTRAL_EVENTS = new Set(["refresh", "extrapolation"]);

// Vertical lines at the events of guards, gate and recovery.
function marks(u, colour) {
  const { ctx, bbox } = u;
  ctx.save();
  for (const run of DATA.runs) {
    for (const event of run.events) {
      const x = u.valToPos(placeOf(run, event.step), "x", true);
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.strokeStyle = ctx.fillStyle = colour(NEUTRAL_EVENTS.has(event.kind) ? "--c1" : "--alarm");
      ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
      ctx.lineWidth = devicePixelRatio;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      const size = 4 * devicePixelRatio;
      ctx.beginPath();
      ctx.moveTo(x - size, bbox.top);
      ctx.lineTo(x + size, bbox.top);
      ctx.lineTo(x, bbox.top + 1.6 * size);
      ctx.fill();
    }
  }
  ctx.restore();
}

// Shows the values under the pointer in the chart's key, otherwise the last values.
function readOut(u, host, series, steps) {
  const index = u.cursor.idx;
  const keys = host.parentElement.querySelectorAll(".key-item b");
  series.forEach((s, i) => {
    const at = index === null || index === undefined ? -1 : s.steps.indexOf(steps[index]);
    keys[i].textContent = metricText(s.name, at < 0 ? s.values.findLast((v) => v !== null) : s.values[at]);
  });
}
