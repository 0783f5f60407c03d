// The page of a pipeline: graph of stages, their results, and links to their reports.

let PIPE = JSON.parse($("data").textContent);
const STATES = {
  done: ["✓", "done"], unchanged: ["✓", "unchanged"], running: ["…", "running"], waiting: ["·", "waiting"],
  failed: ["✗", "failed"], collapsed: ["✗", "stopped by a guard"], blocked: ["–", "not run"],
};
const BOX = { width: 208, height: 112, across: 56, down: 18 };

const known = (stage) => STATES[stage.state] || ["?", stage.state];
const lost = (stage) => ["failed", "collapsed", "blocked"].includes(stage.state);
const link = (stage, text) => (stage.report ? el("a", { href: stage.report.split("/").map(encodeURIComponent).join("/") }, text) : text);
const time = (s) => (s === null || s === undefined ? "" : duration(s));

function summary() {
  const finished = PIPE.stages.filter((s) => s.state === "done" || s.state === "unchanged").length;
  const tokens = PIPE.stages.reduce((sum, s) => sum + (s.tokens || 0), 0);
  const seconds = PIPE.stages.reduce((sum, s) => sum + (s.seconds || 0), 0);
  const problems = PIPE.stages.filter((s) => s.problem);
  fill($("brand"), PIPE.name);
  fill(
    $("short"),
    el("h1", { id: "short-title" }, `Pipeline ${PIPE.name}`),
    el("p", { class: "lede" }, el("b", {}, `${finished} of ${PIPE.stages.length} stages are done`), `; ${number(tokens)} student tokens and ${time(seconds)} in total. Select a stage to see its report.`),
    problems.length
      ? el("ul", { class: "signs", "aria-label": "Problems" }, problems.map((s) =>
        el("li", { class: s.state === "blocked" ? "hunch" : "alarm" }, el("b", {}, `${known(s)[1]}. `), s.problem)))
      : null,
  );
}

// Position of each stage: one column after its last input, in the free row nearest to its inputs.
function places() {
  const at = new Map();
  const columns = [];
  for (const stage of PIPE.stages) {
    const before = stage.inputs.map((name) => at.get(name)).filter(Boolean);
    const column = before.length ? Math.max(...before.map((p) => p.column)) + 1 : 0;
    const wanted = before.length ? before.reduce((sum, p) => sum + p.row, 0) / before.length : columns[column] ? columns[column].size : 0;
    columns[column] = columns[column] || new Set();
    const free = Array.from({ length: PIPE.stages.length }, (_, row) => row).filter((row) => !columns[column].has(row));
    const row = free.reduce((a, b) => (Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a));
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
      stage.metric && stage.after !== "" ? el("div", { class: "stage-metric" }, `${stage.metric} `, el("b", {}, `${stage.before} → ${stage.after}`)) : null,
      spark(stage.course.map((p) => p[0]), stage.course.map((p) => p[1]), `${stage.metric} over the steps`),
    );
  });
  fill(
    $("graph"),
    el("h2", { id: "graph-title" }, "Graph"),
    el("div", { class: "scroll-x graph-room", tabindex: "0", role: "group", "aria-label": "Graph, scrollable" },
      el("div", { class: "graph", "--w": `${width}px`, "--h": `${height}px` },
        el("svg:svg", { width, height, "aria-hidden": "true" },
          el("svg:defs", {}, el("svg:marker", { id: "arrow", viewBox: "0 0 6 6", refX: 1, refY: 3, markerWidth: 6, markerHeight: 6, orient: "auto" }, el("svg:path", { d: "M0 0 L6 3 L0 6 z", class: "head" }))),
          edges),
        el("ul", { class: "boxes" }, boxes))),
  );
}

function stages() {
  const head = ["stage", "", "state", "steps", "metric", "before", "after", "best", "tokens", "time"];
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

function metrics() {
  $("metrics").hidden = !PIPE.tables.length;
  if (!PIPE.tables.length) return;
  fill(
    $("metrics"),
    el("h2", { id: "metrics-title" }, "Metrics"),
    PIPE.tables.map((table) => [
      el("h3", {}, table.name),
      el("div", { class: "scroll-x" }, el("table", { class: "plain measured" },
        el("thead", {}, el("tr", {}, ["model", ...table.columns].map((h) => el("th", { scope: "col" }, h.replace(/_/g, " "))))),
        el("tbody", {}, table.rows.map((row) => {
          const stage = PIPE.stages.find((s) => s.name === row.model);
          return el("tr", {}, el("th", { scope: "row" }, stage ? link(stage, row.model) : row.model), row.cells.map(([text, best]) => el("td", {}, best ? el("b", {}, text) : text)));
        })))),
    ]),
    el("p", { class: "note" }, "The best accuracy of each table is bold."),
  );
}

function build() {
  const scrolled = document.querySelector(".graph-room")?.scrollLeft || 0;
  summary();
  graph();
  stages();
  metrics();
  fill($("record"), el("details", {}, el("summary", {}, "Pipeline file"), el("pre", {}, JSON.stringify(PIPE.config, null, 2))));
  document.querySelector(".graph-room").scrollLeft = scrolled;
}

startTheme(() => {});
document.addEventListener("keydown", (event) => { if (event.key === "t" && !event.ctrlKey && !event.metaKey && !event.altKey) toggleTheme(); });
build();
const going = () => PIPE.stages.some((s) => ["running", "waiting"].includes(s.state));
if (PIPE.live) poll(PIPE.live, () => (going() ? "live" : "finished"), (news) => { PIPE = news; build(); });
