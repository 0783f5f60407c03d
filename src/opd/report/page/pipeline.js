// A pipeline: the graph of its stages, what each came to, and the way to each one's own report.

const PIPE = JSON.parse($("data").textContent);
const STATES = {
  done: ["✓", "done"], unchanged: ["✓", "as it was"], running: ["…", "running"], waiting: ["·", "waiting"],
  failed: ["✗", "failed"], collapsed: ["✗", "stopped by a guard"], blocked: ["–", "not run"],
};
const BOX = { width: 208, height: 112, across: 56, down: 18 };

const known = (stage) => STATES[stage.state] || ["?", stage.state];
const lost = (stage) => ["failed", "collapsed", "blocked"].includes(stage.state);
const link = (stage, text) => (stage.report ? el("a", { href: stage.report.split("/").map(encodeURIComponent).join("/") }, text) : text);
const time = (s) => (s === null || s === undefined ? "" : s >= 120 ? `${Math.round(s / 60)} min` : `${Math.round(s)} s`);

function summary() {
  const finished = PIPE.stages.filter((s) => s.state === "done" || s.state === "unchanged").length;
  const tokens = PIPE.stages.reduce((sum, s) => sum + (s.tokens || 0), 0);
  const seconds = PIPE.stages.reduce((sum, s) => sum + (s.seconds || 0), 0);
  const problems = PIPE.stages.filter((s) => s.problem);
  fill($("brand"), PIPE.name);
  fill(
    $("short"),
    el("h1", { id: "short-title" }, `Pipeline ${PIPE.name}`),
    el("p", { class: "lede" }, el("b", {}, `${finished} of ${PIPE.stages.length} stages are done`), `; ${number(tokens)} tokens of students and ${time(seconds)} in all of them. Choose a stage to see its own report.`),
    problems.length
      ? el("ul", { class: "signs", "aria-label": "What went wrong" }, problems.map((s) =>
        el("li", { class: s.state === "blocked" ? "hunch" : "alarm" }, el("b", {}, `${known(s)[1]}. `), s.problem)))
      : null,
  );
}

// Each stage one column after the last of its inputs, and in its column near them.
function places() {
  const at = new Map();
  const columns = [];
  for (const stage of PIPE.stages) {
    const before = stage.inputs.map((name) => at.get(name)).filter(Boolean);
    const column = before.length ? Math.max(...before.map((p) => p.column)) + 1 : 0;
    const wish = before.length ? before.reduce((sum, p) => sum + p.row, 0) / before.length : columns[column] ? columns[column].size : 0;
    columns[column] = columns[column] || new Set();
    const free = Array.from({ length: PIPE.stages.length }, (_, row) => row).filter((row) => !columns[column].has(row));
    const row = free.reduce((a, b) => (Math.abs(b - wish) < Math.abs(a - wish) ? b : a));
    columns[column].add(row);
    at.set(stage.name, { column, row, x: column * (BOX.width + BOX.across), y: row * (BOX.height + BOX.down) });
  }
  return at;
}

function graph() {
  const at = places();
  const all = [...at.values()];
  const width = Math.max(...all.map((p) => p.x), 0) + BOX.width;
  const height = Math.max(...all.map((p) => p.y), 0) + BOX.height;
  const edges = PIPE.stages.flatMap((stage) => stage.inputs.filter((name) => at.has(name)).map((name) => {
    const [from, to] = [at.get(name), at.get(stage.name)];
    const [x1, y1, x2, y2] = [from.x + BOX.width, from.y + BOX.height / 2, to.x, to.y + BOX.height / 2];
    const middle = (x1 + x2) / 2;
    return el("svg:path", { d: `M${x1} ${y1} C${middle} ${y1} ${middle} ${y2} ${x2 - 5} ${y2}`, "marker-end": "url(#arrow)" });
  }));
  const boxes = PIPE.stages.map((stage) => {
    const place = at.get(stage.name);
    const [sign, words] = known(stage);
    return el(
      "li", { class: `stage ${stage.state}`, "--x": `${place.x}px`, "--y": `${place.y}px`, data: { stage: stage.name } },
      el("div", { class: "stage-top" }, el("span", { class: "sign", "aria-hidden": "true" }, sign), el("b", {}, link(stage, stage.name))),
      el("div", { class: "note" }, `${stage.title} · ${words}`, stage.inputs.length ? el("span", { class: "hidden" }, `, after ${stage.inputs.join(", ")}`) : null),
      stage.metric && stage.after !== "" ? el("div", { class: "stage-figure" }, `${stage.metric} `, el("b", {}, `${stage.before} → ${stage.after}`)) : null,
      spark(stage),
    );
  });
  fill(
    $("graph"),
    el("h2", { id: "graph-title" }, "Graph"),
    el("div", { class: "scroll-x graph-room", tabindex: "0", role: "group", "aria-label": "The graph; it can be scrolled" },
      el("div", { class: "graph", "--w": `${width}px`, "--h": `${height}px` },
        el("svg:svg", { width, height, "aria-hidden": "true" },
          el("svg:defs", {}, el("svg:marker", { id: "arrow", viewBox: "0 0 6 6", refX: 1, refY: 3, markerWidth: 6, markerHeight: 6, orient: "auto" }, el("svg:path", { d: "M0 0 L6 3 L0 6 z", class: "head" }))),
          edges),
        el("ul", { class: "boxes" }, boxes))),
  );
}

function spark(stage) {
  const points = stage.course;
  if (points.length < 2) return null;
  const [low, high] = [Math.min(...points.map((p) => p[1])), Math.max(...points.map((p) => p[1]))];
  const width = points[points.length - 1][0] - points[0][0] || 1;
  const place = ([s, v]) => `${((100 * (s - points[0][0])) / width).toFixed(1)},${(22 - (20 * (v - low)) / (high - low || 1)).toFixed(1)}`;
  return el("svg:svg", { class: "spark", viewBox: "0 0 100 24", preserveAspectRatio: "none", role: "img", "aria-label": `${stage.metric} over the steps` },
    el("svg:polyline", { points: points.map(place).join(" ") }));
}

function stages() {
  const head = ["stage", "", "state", "steps", "figure", "before", "after", "best", "tokens", "time"];
  fill(
    $("stages"),
    el("h2", { id: "stages-title" }, "Stages"),
    el("div", { class: "scroll-x" }, el("table", { class: "plain" },
      el("thead", {}, el("tr", {}, head.map((h) => el("th", { scope: "col" }, h)))),
      el("tbody", {}, PIPE.stages.map((s) => el("tr", { class: lost(s) ? "lost" : null },
        el("th", { scope: "row" }, link(s, s.name)), el("td", {}, s.title), el("td", {}, known(s).join(" ")),
        [s.steps, s.metric, s.before, s.after, s.best].map((v) => el("td", {}, v ?? "")),
        el("td", {}, s.tokens ? number(s.tokens) : ""), el("td", {}, time(s.seconds))))))),
  );
}

function figures() {
  if (!PIPE.tables.length) return void $("figures").remove();
  fill(
    $("figures"),
    el("h2", { id: "figures-title" }, "Figures"),
    PIPE.tables.map((table) => [
      el("h3", {}, table.name),
      el("div", { class: "scroll-x" }, el("table", { class: "plain measured" },
        el("thead", {}, el("tr", {}, ["model", ...table.columns].map((h) => el("th", { scope: "col" }, h.replace(/_/g, " "))))),
        el("tbody", {}, table.rows.map((row) => {
          const stage = PIPE.stages.find((s) => s.name === row.model);
          return el("tr", {}, el("th", { scope: "row" }, stage ? link(stage, row.model) : row.model), row.cells.map(([text, best]) => el("td", {}, best ? el("b", {}, text) : text)));
        })))),
    ]),
    el("p", { class: "note" }, "The best share of right answers of each table is in bold."),
  );
}

function theme(next) {
  document.documentElement.dataset.theme = next;
  $("theme").setAttribute("aria-pressed", String(next === "dark"));
}

const turn = () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
theme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
$("theme").addEventListener("click", turn);
document.addEventListener("keydown", (event) => { if (event.key === "t" && !event.ctrlKey && !event.metaKey && !event.altKey) turn(); });
summary();
graph();
stages();
figures();
fill($("record"), el("details", {}, el("summary", {}, "Pipeline file"), el("pre", {}, JSON.stringify(PIPE.config, null, 2))));
