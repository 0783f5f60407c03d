// Entry point of a language model's page: keyboard, record, live updates.

const KEYS = [
  ["← →", "previous or next token"], ["↑ ↓  or  k j", "previous or next rollout"], ["[ ]", "previous or next step"],
  ["n p", "next or previous worst token"], ["1 … 8", "colour tokens by a quantity"], ["/", "find text"],
  ["Esc", "close the token's panel"], ["t", "light or dark"], ["?", "this list"],
];

function buildRecord() {
  const rows = DATA.runs.flatMap((run) => run.events.map((e) => ({ ...e, run })));
  const several = DATA.runs.length > 1;
  fill(
    $("record"),
    el("h2", { id: "record-title" }, "Record"),
    el("h3", {}, "Events of guards, gate and recovery"),
    rows.length
      ? el("ol", { class: "events" }, rows.map((e) => el("li", {}, el("span", { class: "fact" }, `step ${e.step}`), el("b", {}, e.kind.replace(/_/g, " ")), " ", several ? `(${e.run.name}) ` : "", e.text)))
      : el("p", { class: "note" }, "None."),
    DATA.runs.map((run) => el("details", {}, el("summary", {}, several ? `Run file of ${run.name}` : "Run file"), el("pre", {}, JSON.stringify(run.config, null, 2)))),
    el("p", { class: "note" }, DATA.runs.map(selection)),
  );
}

// How the rollouts on the page were selected.
function selection(run) {
  const shown = (of) => run.rollouts.filter((r) => r.of === of).length;
  const every = (run.config.eval || {}).every;
  const several = DATA.runs.length > 1 ? `${run.name}: ` : "";
  return [
    `${several}${shown("eval")} rollouts of a fixed set of held-out prompts, evenly spaced, generated with one seed and scored at every evaluation (every ${every} steps); `,
    `and ${shown("train")} rollouts of the training step after each evaluation, selected to differ in domain, reward, ending and events, with the numbers of the loss. `,
    "Distributions are at temperature 1; likeliest tokens below 0.01% are left out. ",
    run.left_out ? `To limit the size of this file, it lacks ${run.left_out}; rollouts.jsonl in the run's folder has everything. ` : "",
    run.source ? `Method: ${run.source}. ` : "",
  ];
}

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
  const quantity = Object.keys(QUANTITIES).find((name) => QUANTITIES[name].key === event.key);
  const acts = {
    "[": () => moveStep(-1), "]": () => moveStep(1), n: () => nextWorst(1), p: () => nextWorst(-1), j: () => moveRollout(1), k: () => moveRollout(-1),
    t: () => { toggleTheme(); buildCurves(); }, "?": () => $("keys").showModal(),
    "/": () => { $("filter-text").focus(); },
  };
  if (inText) {
    Object.assign(acts, { ArrowLeft: () => moveToken(-1), ArrowRight: () => moveToken(1) });
    if (event.target.closest(".tokens, #list")) Object.assign(acts, { ArrowUp: () => moveRollout(-1), ArrowDown: () => moveRollout(1) });
  }
  const act = quantity ? () => paint(quantity) : acts[event.key];
  if (!act || !primary().rollouts.length) return;
  event.preventDefault();
  act();
}

// The student token under an event; null for other targets.
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

// Sets a token's title on hover, because thousands of titles at once are slow.
function onHover(event) {
  const token = tokenAt(event);
  if (!token) return;
  const quantity = QUANTITIES[view.quantity];
  const value = quantity.of(token);
  event.target.closest(".tok").title =
    value === null ? "not in the loss" : `${quantity.name.toLowerCase()} ${number(value)} · p ${chance(token.student.logprob)}`;
}

function build() {
  story();
  buildTokens();
  drawPanel();
  buildCurves();
  buildRecord();
}

// Live mode: new data arrive. A reader at the newest weights moves on to newer ones; a selected token stays selected.
function follow() {
  poll(DATA.live, () => (primary().finished ? "finished" : "live"), (news) => {
    const chosen = view.token && [view.token.rollout.key, view.token.position];
    const atNewest = !chosen && !view.all && view.step === newest();
    load(news);
    view.token = null;
    if (atNewest && newest() !== view.step) followTo(newest());
    build();
    const there = chosen && primary().rollouts.find((r) => r.key === chosen[0]);
    if (there) pick(there.tokens[chosen[1]]);
  });
}

load(JSON.parse($("data").textContent));
startTheme(buildCurves);
$("theme").before(el("button", { id: "keys-button", type: "button", title: "Keyboard (?)", "aria-label": "Keyboard" }, "?"));
$("keys-button").addEventListener("click", () => $("keys").showModal());
fill($("keys"), el("h2", {}, "Keyboard"), el("table", { class: "values" }, el("tbody", {}, KEYS.map(([k, action]) => el("tr", {}, el("th", { scope: "row" }, el("kbd", {}, k)), el("td", {}, action))))), el("form", { method: "dialog" }, el("button", { class: "chip" }, "Close")));
document.addEventListener("keydown", onKey);
$("text").addEventListener("click", onText);
$("text").addEventListener("mouseover", onHover);
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; buildCurves(); } });
build();
if (DATA.live) follow();
