// Puts the page together: theme, keyboard, the record at the end, and news in live mode.

const KEYS = [
  ["← →", "token before, token after"], ["↑ ↓  or  k j", "rollout before, rollout after"], ["[ ]", "step back, step on"],
  ["n p", "next worst token, the one before"], ["1 … 8", "what tokens are coloured by"], ["/", "find text"],
  ["Esc", "close the token's panel"], ["t", "light or dark"], ["?", "this list"],
];

function buildRecord() {
  const rows = DATA.runs.flatMap((run) => run.events.map((e) => ({ ...e, run })));
  const several = DATA.runs.length > 1;
  fill(
    $("record"),
    el("h2", { id: "record-title" }, "Record"),
    el("h3", {}, "What guards, gate and recovery noticed"),
    rows.length
      ? el("ol", { class: "events" }, rows.map((e) => el("li", {}, el("span", { class: "fact" }, `step ${e.step}`), el("b", {}, e.kind.replace(/_/g, " ")), " ", several ? `(${e.run.name}) ` : "", e.text)))
      : el("p", { class: "note" }, "Nothing."),
    DATA.runs.map((run) => el("details", {}, el("summary", {}, several ? `Run file of ${run.name}` : "Run file"), el("pre", {}, JSON.stringify(run.config, null, 2)))),
    el("p", { class: "note" }, DATA.runs.map(choice)),
  );
}

// Which rollouts are here, and how they were chosen.
function choice(run) {
  const shown = (of) => run.rollouts.filter((r) => r.of === of).length;
  const every = (run.config.eval || {}).every;
  const several = DATA.runs.length > 1 ? `${run.name}: ` : "";
  return [
    `${several}${shown("eval")} rollouts of a fixed handful of held-out prompts, evenly spaced among them, rolled out and scored anew at every evaluation (each ${every} steps) with the draws of the first; `,
    `and ${shown("train")} of the training step that follows each, as different as domain, reward, ending and events make them, with the very numbers of the loss. `,
    "Distributions are at temperature 1; of the likeliest tokens those below 0.01 % are left out. ",
    run.left_out ? `For the size of this file it lacks ${run.left_out}; all of it is in the run's folder, rollouts.jsonl. ` : "",
    run.source ? `Method: ${run.source}. ` : "",
  ];
}

function theme(next) {
  document.documentElement.dataset.theme = next;
  $("theme").setAttribute("aria-pressed", String(next === "dark"));
}

const dark = () => document.documentElement.dataset.theme === "dark";

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest("input, select, textarea");
  if (event.key === "Escape") {
    if (typing) event.target.blur();
    view.token = null;
    markChosen();
    drawPanel();
    return;
  }
  if (typing) return;
  const inText = event.target === document.body || event.target.closest("#tokens");
  const metric = Object.keys(METRICS).find((name) => METRICS[name].key === event.key);
  const acts = {
    "[": () => moveStep(-1), "]": () => moveStep(1), n: () => nextWorst(1), p: () => nextWorst(-1), j: () => moveRollout(1), k: () => moveRollout(-1),
    t: () => { theme(dark() ? "light" : "dark"); buildCurves(); }, "?": () => $("keys").showModal(),
    "/": () => { $("filter-text").focus(); },
  };
  if (inText) {
    Object.assign(acts, { ArrowLeft: () => moveToken(-1), ArrowRight: () => moveToken(1) });
    if (event.target.closest(".tokens, #list")) Object.assign(acts, { ArrowUp: () => moveRollout(-1), ArrowDown: () => moveRollout(1) });
  }
  const act = metric ? () => paint(metric) : acts[event.key];
  if (!act || !primary().rollouts.length) return;
  event.preventDefault();
  act();
}

// The token that an event is about.
function tokenAt(event) {
  const span = event.target.closest(".tok");
  const box = event.target.closest(".tokens");
  if (!span || !box) return null;
  const rollout = DATA.runs[Number(box.dataset.run)].rollouts.find((r) => r.key === box.dataset.key);
  const token = rollout.tokens[Number(span.dataset.p)];
  return token.own ? token : null;
}

function onText(event) {
  const token = tokenAt(event);
  if (token) pick(token);
}

// Four thousand titles would be many; each is written when the pointer comes by.
function onHover(event) {
  const token = tokenAt(event);
  if (!token) return;
  const metric = METRICS[view.metric];
  const value = metric.of(token);
  event.target.closest(".tok").title =
    value === null ? "left out of the loss" : `${metric.name.toLowerCase()} ${number(value)} · p ${chance(token.student.logprob)}`;
}

function build() {
  story();
  buildTokens();
  drawPanel();
  buildCurves();
  buildRecord();
}

// Live mode: what one is looking at stays.
function follow() {
  ask(() => primary().finished, (news) => {
    const open = view.token && [view.token.rollout.key, view.token.position];
    load(news);
    view.token = null;
    build();
    const there = open && primary().rollouts.find((r) => r.key === open[0]);
    if (there) pick(there.tokens[open[1]]);
  });
}

load(JSON.parse($("data").textContent));
theme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
$("theme").addEventListener("click", () => { theme(dark() ? "light" : "dark"); buildCurves(); });
$("keys-button").addEventListener("click", () => $("keys").showModal());
fill($("keys"), el("h2", {}, "Keyboard"), el("table", { class: "figures" }, el("tbody", {}, KEYS.map(([k, what]) => el("tr", {}, el("th", { scope: "row" }, el("kbd", {}, k)), el("td", {}, what))))), el("form", { method: "dialog" }, el("button", { class: "chip" }, "Close")));
document.addEventListener("keydown", onKey);
$("text").addEventListener("click", onText);
$("text").addEventListener("mouseover", onHover);
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; buildCurves(); } });
build();
if (DATA.live) follow();
