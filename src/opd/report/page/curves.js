// Curves of the run, drawn with uPlot; each has its figures as a table for who cannot see it.

// [title, what it means, [[kind, column, name, dashed]], options]; a column may be a pattern.
const CHARTS = [
  ["Accuracy", "Share of answers that are right: held-out prompts at each evaluation, the training batch at each step.",
    [["eval", "accuracy", "held out"], ["train", "accuracy", "training batch"], ["eval", /^accuracy\//, ""], ["eval", "teacher_accuracy", "teacher", true], ["eval", /^avg@/, ""]], { share: true }],
  ["Divergence from the teacher", "On the student's own rollouts, in nats a token.",
    [["eval", "teacher/reverse_kl", "reverse KL"], ["eval", "reverse_kl", "reverse KL, held out"], ["eval", "teacher/forward_kl", "forward KL"]], { low: 0 }],
  ["Loss", "What the optimizer sees, and the terms that it is made of.",
    [["train", "loss", "loss"], ["train", /^(distill|anchor|outcome|gold|unsure)$/, ""]], {}],
  ["Overlap", "Share of the 16 likeliest tokens that both have, and the student's mass on them.",
    [["eval", /^teacher\/overlap@\d+$/, ""], ["eval", "teacher/overlap_mass", "mass on shared"]], { share: true }],
  ["Entropy", "How unsure student and teacher are, in nats; the gap is their mean absolute difference.",
    [["eval", "teacher/entropy", "student"], ["eval", "teacher/teacher_entropy", "teacher"], ["eval", "teacher/entropy_gap", "gap", true], ["train", "entropy", "training rollouts"]], { low: 0 }],
  ["Length", "The student's own tokens an answer.", [["eval", "length", "held out"], ["train", "length", "training batch"]], { low: 0 }],
  ["Cut off, repetitive, invalid", "Shares of rollouts that did not end by themselves, repeat themselves, or of tool calls that were invalid.",
    [["eval", "truncation_rate", "cut off"], ["eval", "repetition_rate", "repetitive"], ["eval", "invalid_call_rate", "invalid calls"]], { share: true, low: 0 }],
  ["What teachers speak about", "Share of the student's tokens that each term of the loss has a target for.",
    [["train", /_share$/, ""]], { share: true, low: 0 }],
  ["Gradient norm", "Before clipping.", [["train", "grad_norm", "norm"]], { low: 0 }],
  ["Learning rate", "", [["train", "lr", "lr"]], { low: 0 }],
  ["Where the time goes", "Seconds a step, one on top of the other.", [["train", "rollout_s", "rollouts"], ["train", "teacher_s", "teacher"], ["train", "update_s", "update"]], { stacked: true, low: 0 }],
  ["Throughput", "The student's tokens a second of a step.", [["train", "tokens_per_s", "tokens/s"]], { low: 0 }],
];
const DIAGNOSED = /^(teacher|conflict)\//;
let drawn = [];

function buildCurves() {
  for (const chart of drawn) chart.destroy();
  drawn = [];
  for (const run of DATA.runs) throughput(run);
  const used = new Set();
  const cards = CHARTS.map((chart) => card(chart, used));
  const teachers = teacherCharts().map((chart) => card(chart, used)).filter(Boolean);
  const rest = leftOver(used).map((name) => card([name, "", [["eval", name, ""], ["train", name, ""]], {}], new Set()));
  fill(
    $("charts"),
    heatMap(),
    cards,
    teachers.length ? el("section", { class: "group", "aria-labelledby": "teachers-title" }, el("h3", { id: "teachers-title" }, "Teacher by teacher"), el("div", { class: "charts" }, teachers)) : null,
    rest.length ? el("details", { class: "more", id: "more" }, el("summary", {}, `${rest.filter(Boolean).length} further figures`), el("div", { class: "charts" }, rest)) : null,
  );
  for (const host of $("charts").querySelectorAll(".plot")) if (host.plot) plot(host);
  const more = $("more");
  if (more) more.addEventListener("toggle", () => { for (const host of more.querySelectorAll(".plot")) plot(host); });
}

// Where several teach, or one teaches several domains: who is how good at what, and where they contradict each other.
function teacherCharts() {
  const all = [...new Set(DATA.runs.flatMap((run) => names(run, "eval")))];
  const known = (pattern) => all.map((name) => name.match(pattern)).filter(Boolean);
  const labels = [...new Set(known(/^(?:teacher_accuracy|teacher\/entropy)\/(.+)$/).map((m) => m[1]))];
  const domains = [...new Set(labels.map((label) => label.split("/")[0]))];
  const each = (name) => labels.map((label) => ["eval", `${name}/${label}`, label.replace("/", ": ")]);
  const pairs = (kind) => known(new RegExp(`^conflict/${kind}/(.+)$`)).map((m) => ["eval", m[0], m[1].replace("/", ": ").replace("~", " and ")]);
  return [
    ...domains.map((domain) => [
      `Who knows ${domain}`, "Share of right answers to its held-out prompts; the gate lets teach who is better than the student.",
      [["eval", all.includes(`accuracy/${domain}`) ? `accuracy/${domain}` : "accuracy", "student"],
        ...labels.filter((label) => label.split("/")[0] === domain).map((label) => ["eval", `teacher_accuracy/${label}`, label.split("/")[1] || "teacher", true])],
      { share: true, more: gateOf(domain) },
    ]),
    ["Divergence from each teacher", "Reverse KL on the student's own rollouts of its domain, in nats a token.", each("teacher/reverse_kl"), { low: 0 }],
    ["Overlap with each teacher", "Share of the 16 likeliest tokens that both have; the gate refuses a teacher with too few.", each("teacher/overlap@16"), { share: true }],
    ["Entropy of each teacher", "In nats, on the student's rollouts.", each("teacher/teacher_entropy"), { low: 0 }],
    ["Teachers against each other", "Jensen-Shannon divergence of two teachers on the same tokens, in nats; 0.693 is the most there is.", pairs("jsd"), { low: 0 }],
    ["Domains against each other", "Cosine of the loss's gradients on two domains; below 0 a step for one undoes some of the other.", pairs("cosine"), { zero: true }],
  ];
}

// What the gate said of a domain's teachers.
function gateOf(domain) {
  const said = DATA.runs.flatMap((run) => run.events.filter((e) => {
    const about = e.kind === "gate" && e.text.match(/ (?:teaches|does not teach) ([^:]+)(?::|$)/);
    return about && about[1] === domain;
  }).map((e) => ({ ...e, run })));
  if (!said.length) return null;
  return el("ol", { class: "events gate" }, said.map((e) =>
    el("li", {}, el("span", { class: "fact" }, `gate, step ${e.step}`), DATA.runs.length > 1 ? `(${e.run.name}) ` : "", e.text)));
}

function throughput(run) {
  const c = run.train.columns;
  if (!c.tokens || !c.rollout_s || c.tokens_per_s) return;
  c.tokens_per_s = c.tokens.map((n, i) => n / ((c.rollout_s[i] || 0) + (c.teacher_s[i] || 0) + (c.update_s[i] || 0)));
}

const names = (run, kind) => Object.keys(run[kind].columns);

function leftOver(used) {
  const all = new Set(DATA.runs.flatMap((run) => [...names(run, "eval"), ...names(run, "train")]));
  return [...all].filter((name) => !used.has(name) && name !== "tokens");
}

// The series of one chart: of several runs a colour each, else of one run a colour a series.
function seriesOf(wanted, used) {
  const found = [];
  for (const run of DATA.runs) {
    for (const [kind, column, label, dashed] of wanted) {
      for (const name of names(run, kind).filter((n) => (column instanceof RegExp ? column.test(n) : n === column))) {
        used.add(name);
        const values = run[kind].columns[name];
        if (values.every((v) => v === null)) continue;
        found.push({ run, kind, name, label: label || bare(name).replace(/_/g, " "), steps: run[kind].step, values, dashed });
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
  const label = (s) => (several ? `${s.run.name}${series.length > DATA.runs.length ? `, ${s.label}` : ""}` : s.label);
  return el(
    "figure", { class: "card", role: "group", "aria-labelledby": id },
    el("figcaption", {}, el("h3", { id }, title), about ? el("p", { class: "note" }, about) : null),
    el("div", { class: "keys" }, series.map((s) =>
      el("span", { class: "key-item" }, el("span", { class: `line${s.dashed ? " dashed" : ""}`, "--c": `var(${s.colour})` }), label(s), " ",
        el("b", {}, figure(s.name, s.values.findLast((v) => v !== null)))))),
    host,
    options.more,
    table(series, label),
  );
}

// At most a dozen rows, evenly spaced.
function table(series, label) {
  const steps = [...new Set(series.flatMap((s) => s.steps))].sort((a, b) => a - b);
  const every = Math.max(1, Math.ceil(steps.length / 12));
  const shown = steps.filter((_, i) => i % every === 0 || i === steps.length - 1);
  return el(
    "details", { class: "figures-of" }, el("summary", {}, "figures"),
    el("div", { class: "scroll-x" }, el("table", { class: "plain" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "step"), series.map((s) => el("th", { scope: "col" }, label(s))))),
      el("tbody", {}, shown.map((step) => el("tr", {}, el("th", { scope: "row" }, step),
        series.map((s) => { const i = s.steps.indexOf(step); return el("td", {}, i < 0 ? "" : figure(s.name, s.values[i])); })))))),
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
  const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
  const say = options.share ? (v) => `${Math.round(100 * v)}%` : (v) => (v === 0 ? "0" : Math.abs(v) >= 1000 ? `${v / 1000}k` : String(Number(v.toPrecision(3))));
  const chart = new uPlot(
    {
      width: host.clientWidth, height: 170, legend: { show: false },
      cursor: { sync: { key: "steps" }, points: { size: 6 }, drag: { x: true, y: false } },
      scales: { x: { time: false }, y: { range: (_, low, high) => range(low, high, options) } },
      axes: [{ ...axis, size: 28 }, { ...axis, size: 46, values: (_, ticks) => ticks.map(say) }],
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

const GOOD_NEWS = new Set(["refresh", "extrapolation"]);

// What guards, gate and recovery did, as lines across.
function marks(u, colour) {
  const { ctx, bbox } = u;
  ctx.save();
  for (const run of DATA.runs) {
    for (const event of run.events) {
      const x = u.valToPos(event.step, "x", true);
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.strokeStyle = ctx.fillStyle = colour(GOOD_NEWS.has(event.kind) ? "--c1" : "--alarm");
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

// What stands under the pointer, in the chart's own key.
function readOut(u, host, series, steps) {
  const index = u.cursor.idx;
  const keys = host.parentElement.querySelectorAll(".key-item b");
  series.forEach((s, i) => {
    const at = index === null || index === undefined ? -1 : s.steps.indexOf(steps[index]);
    keys[i].textContent = figure(s.name, at < 0 ? s.values.findLast((v) => v !== null) : s.values[at]);
  });
}

// --- divergence by position, over the training -------------------------------------------------------------------------

const BINS = 10;

function heatMap() {
  const maps = DATA.runs.map((run) => mapOf(run)).filter(Boolean);
  if (!maps.length) return null;
  return el(
    "figure", { class: "card wide-card", "aria-labelledby": "heat-title" },
    el("figcaption", {}, el("h3", { id: "heat-title" }, "Divergence by position"),
      el("p", { class: "note" }, "Mean over the recorded rollouts, from the first tenth of an answer (top) to the last, at each recorded step. Choose a cell to see its worst token.")),
    maps,
  );
}

function mapOf(run) {
  const steps = run.steps;
  const cells = new Map();
  for (const rollout of run.rollouts) {
    for (const token of rollout.tokens) {
      const value = METRICS.divergence.of(token);
      if (value === null) continue;
      const bin = Math.min(BINS - 1, Math.floor((BINS * token.k) / rollout.own.length));
      const key = `${rollout.step} ${bin}`;
      const cell = cells.get(key) || { sum: 0, count: 0, worst: token };
      cell.sum += value;
      cell.count += 1;
      if (value > METRICS.divergence.of(cell.worst)) cell.worst = token;
      cells.set(key, cell);
    }
  }
  if (!cells.size || !steps.length) return null;
  const most = Math.max(...[...cells.values()].map((c) => c.sum / c.count), 1e-6);
  const rows = Array.from({ length: BINS }, (_, bin) =>
    el("tr", {}, el("th", { scope: "row" }, bin === 0 ? "start" : bin === BINS - 1 ? "end" : ""),
      steps.map((step) => {
        const cell = cells.get(`${step} ${bin}`);
        if (!cell) return el("td", { class: "empty" });
        const mean = cell.sum / cell.count;
        const label = `step ${step}, ${10 * bin} to ${10 * (bin + 1)} % of the answer: ${number(mean)} nats, ${cell.count} tokens`;
        return el("td", {}, el("button", { type: "button", title: label, "aria-label": label, "--v": strength(mean, most).toFixed(3),
          onclick: () => show(cell.worst) }));
      })));
  return el("div", { class: "scroll-x" },
    DATA.runs.length > 1 ? el("h4", {}, swatch(run), run.name) : null,
    el("table", { class: "heat-map" }, el("tbody", {}, rows,
      el("tr", { class: "foot" }, el("th", { scope: "row" }, "step"), steps.map((s, i) => el("td", {}, steps.length < 14 || i % 2 === 0 ? s : ""))))),
    el("div", { class: "scale" }, [0, 0.33, 0.66, 1].map((v) => el("span", { class: "step" }, el("span", { class: "cell", "--v": v }), number(v * v * most))), el("span", { class: "note" }, "nats a token")));
}
