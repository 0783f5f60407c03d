// The token view: list of rollouts, filters, colours, and the text of one rollout.

// spans: the span of each token; tokens: of each span, several if they share a character; waiting: not yet in a span.
const view = { step: null, key: null, token: null, quantity: "divergence", worst: -1, all: false, spans: new Map(), tokens: new Map(), waiting: [] };
const filters = { text: "", domain: "", reward: "", event: "", of: "", sort: "order" };

const primary = () => DATA.runs[0];
const current = () => primary().rollouts.find((r) => r.key === view.key) || null;

function buildTokens() {
  document.querySelector(".reader").classList.toggle("many", DATA.runs.length > 1);
  buildFilters();
  buildPaint();
  if (!primary().rollouts.length) {
    fill($("text"), el("p", { class: "note" }, "This run recorded no rollouts: report is false, or the run stopped before its first evaluation."));
    fill($("steps"));
    return;
  }
  if (!current()) open();
  draw();
}

// The first rollout to show: one with a wrong mask if there is any, otherwise of the best weights, or live of the newest.
function open() {
  const { rollouts } = primary();
  const step = DATA.live ? newest() : bestStep(primary());
  const wrong = rollouts.filter((r) => r.tokens.some((t) => t.stranger || t.missed));
  const there = rollouts.filter((r) => r.step === step);
  const first = wrong.find((r) => r.step === step) || wrong[0] || there.find((r) => r.worst > 0.1) || there[0] || rollouts[0];
  Object.assign(view, { step: first.step, key: first.key });
}

const newest = () => primary().steps[primary().steps.length - 1];

// The recorded step whose weights are the best: of several at one distance the later.
const bestStep = (run) => nearest(run, run.best_step ?? Infinity);
const nearest = (run, step) => run.steps.findLast((s) => s <= step) ?? run.steps[0];

function draw() {
  drawSteps();
  drawList();
  drawText();
}

// --- steps ---------------------------------------------------------------------------------------------------------

function drawSteps() {
  const button = (label, on, act, title) =>
    el("button", { type: "button", class: "chip", "aria-pressed": String(on), title, onclick: act }, label);
  const best = primary().best_step === null ? null : bestStep(primary());
  fill(
    $("steps"),
    el("span", { class: "label", id: "steps-label" }, "Weights after step"),
    el(
      "div", { class: "chips", role: "group", "aria-labelledby": "steps-label" },
      primary().steps.map((s) => button(
        [s, s === best ? el("span", { class: "chip-note" }, " best") : s === 0 ? el("span", { class: "chip-note" }, " start") : null],
        !view.all && s === view.step, () => goStep(s), "[ and ] go to the previous or next step")),
      button("all", view.all, () => { view.all = true; draw(); }, "rollouts of every step"),
    ),
  );
}

// Shows the same prompt at another step, or its first rollout: training prompts do not recur.
function goStep(step) {
  view.all = false;
  followTo(step);
  draw();
  drawPanel();
}

function followTo(step) {
  const now = current();
  const there = primary().rollouts.filter((r) => r.step === step);
  const same = there.find((r) => now && r.of === now.of && r.n === now.n) || there.find((r) => now && r.of === "eval" && r.n === now.n);
  const next = same || there[0];
  view.step = step;
  view.token = null;
  if (next) view.key = next.key;
}

function moveStep(by) {
  const steps = primary().steps;
  const at = steps.indexOf(view.step) + by;
  if (at >= 0 && at < steps.length) goStep(steps[at]);
}

// --- search  -------------------------------------------------------------------------------------------------------

function buildFilters() {
  const focused = document.activeElement && document.activeElement.id;
  const rollouts = primary().rollouts;
  const options = (values) => values.map(([value, label]) => el("option", { value }, label));
  const distinct = (of) => [...new Set(rollouts.flatMap(of))].filter((v) => v !== null).sort();
  const domains = distinct((r) => [r.domain]);
  const events = distinct((r) => r.events.map((e) => e.kind));
  const select = (name, label, values) =>
    el(
      "label", { class: "field" }, el("span", {}, label),
      el("select", { id: `filter-${name}`, onchange: (e) => { filters[name] = e.target.value; draw(); } }, options(values)),
    );
  fill(
    $("filters"),
    el(
      "label", { class: "field grow" }, el("span", {}, "Find text"),
      el("input", { id: "filter-text", type: "search", placeholder: "in prompts and answers  (/)", autocomplete: "off",
        oninput: (e) => { filters.text = e.target.value; draw(); } }),
    ),
    domains.length > 1 ? select("domain", "Domain", [["", "all"], ...domains.map((d) => [d, d])]) : null,
    select("of", "From", [["", "both"], ["eval", "held-out prompts"], ["train", "training batch"]]),
    select("reward", "Reward", [["", "any"], ["right", "correct"], ["wrong", "not correct"]]),
    events.length ? select("event", "Event", [["", "any"], ["none", "no event"], ...events.map((k) => [k, k.replace(/_/g, " ")])]) : null,
    select("sort", "Sort by", [["order", "as recorded"], ["worst", "worst token"], ["mean", "mean divergence"]]),
  );
  for (const [name, value] of Object.entries(filters)) {
    const field = $(`filter-${name}`);
    if (field) field.value = value;
  }
  if (focused && focused.startsWith("filter-") && $(focused)) $(focused).focus();
}

function found() {
  const wanted = filters.text.trim().toLowerCase();
  const rollouts = primary().rollouts.filter((r) => {
    if (!view.all && r.step !== view.step) return false;
    if (wanted && !`${primary().prompts[r.asked].prompt_text}\n${r.plain}\n${r.prompt}`.toLowerCase().includes(wanted)) return false;
    if (filters.domain && r.domain !== filters.domain) return false;
    if (filters.of && r.of !== filters.of) return false;
    if (filters.reward === "right" && !r.correct) return false;
    if (filters.reward === "wrong" && r.correct !== false) return false;
    if (filters.event === "none" && r.events.length) return false;
    if (filters.event && filters.event !== "none" && !r.events.some((e) => e.kind === filters.event)) return false;
    return true;
  });
  if (filters.sort !== "order") rollouts.sort((a, b) => b[filters.sort] - a[filters.sort]);
  return rollouts;
}

function drawList() {
  const rollouts = found();
  const where = view.all ? "of all steps" : `at step ${view.step}`;
  fill($("count"), `${rollouts.length} rollout${rollouts.length === 1 ? "" : "s"} ${where}`);
  fill($("list"), rollouts.map((rollout) => {
    return el(
      "li", {},
      el(
        "button", {
          type: "button", class: "item", "aria-current": rollout.key === view.key ? "true" : null, data: { key: rollout.key },
          onclick: () => choose(rollout),
        },
        el(
          "span", { class: "item-top" }, mark(rollout), el("span", { class: "item-name" }, rollout.prompt),
          el("span", { class: "item-of" }, view.all ? `step ${rollout.step} · ${rollout.of}` : rollout.of === "train" ? "train" : ""),
        ),
        el("span", { class: "item-text" }, short(question(rollout), 72)),
        strip(rollout),
      ),
    );
  }));
}

// The last message of a prompt; without messages, the last line of its text.
function question(rollout) {
  const { messages, prompt_text: text } = primary().prompts[rollout.asked];
  if (messages && messages.length) return contentOf(messages[messages.length - 1]).trim();
  const lines = text.split("\n").map((s) => s.trim()).filter(Boolean);
  return lines.length ? lines[lines.length - 1] : text;
}

function mark(rollout) {
  if (rollout.correct === null) {
    const reward = rollout.reward === null ? null : +rollout.reward.toFixed(3);
    return el("span", { class: "reward none", title: reward === null ? "no reward" : `reward ${reward}` }, reward === null ? "·" : reward);
  }
  const right = rollout.correct;
  const label = right ? "correct" : "not correct";
  return el("span", { class: `reward ${right ? "right" : "wrong"}`, title: label, role: "img", "aria-label": label }, right ? "✓" : "✗");
}

// A rollout's tokens as a strip of bars in the colours of the text.
function strip(rollout) {
  const quantity = QUANTITIES[view.quantity];
  const most = scale(primary(), view.quantity);
  const room = view.all ? 48 : 120;
  const tokens = rollout.tokens.length > room ? sampled(rollout.tokens, room) : rollout.tokens;
  const width = 100 / tokens.length;
  const bars = tokens.map((token, i) => {
    const value = quantity.of(token);
    if (value === null) return null;
    const high = token.stranger ? 14 : Math.max(2, 14 * strength(value, most));
    const kind = token.stranger ? "alarm" : quantity.diverging && value > 0 ? "up" : "heat";
    return el("svg:rect", { class: kind, x: (i * width).toFixed(2), y: (14 - high).toFixed(1), width: (width * 0.86).toFixed(2), height: high.toFixed(1) });
  });
  return el("svg:svg", { class: "strip", viewBox: "0 0 100 14", preserveAspectRatio: "none", "aria-hidden": "true" }, bars);
}

// The largest value of each group of tokens, so that no peak is lost.
function sampled(tokens, most) {
  const of = QUANTITIES[view.quantity].of;
  const size = tokens.length / most;
  return Array.from({ length: most }, (_, i) => {
    const part = tokens.slice(Math.floor(i * size), Math.floor((i + 1) * size) || 1);
    return part.reduce((a, b) => (Math.abs(of(b) ?? -1) > Math.abs(of(a) ?? -1) ? b : a), part[0]);
  });
}

function choose(rollout) {
  view.key = rollout.key;
  if (!view.all) view.step = rollout.step;
  view.token = null;
  draw();
  drawPanel();
}

function moveRollout(by) {
  const rollouts = found();
  const at = rollouts.findIndex((r) => r.key === view.key) + by;
  if (at >= 0 && at < rollouts.length) choose(rollouts[at]);
}

// --- colours -------------------------------------------------------------------------------------------------------

function buildPaint() {
  fill(
    $("paint"),
    el("div", { class: "chips", role: "group", "aria-label": "Colour by" },
      Object.entries(QUANTITIES).map(([name, quantity]) =>
        el("button", { type: "button", class: "chip", data: { quantity: name }, title: `${quantity.about}  (${quantity.key})`,
          "aria-pressed": String(name === view.quantity), onclick: () => paint(name) }, quantity.name))),
    el("div", { id: "legend", class: "legend" }),
  );
}

function paint(name) {
  view.quantity = name;
  view.worst = -1;
  for (const chip of $("paint").querySelectorAll("[data-quantity]")) {
    chip.setAttribute("aria-pressed", String(chip.dataset.quantity === name));
  }
  colour();
  drawList();
}

function colour() {
  const quantity = QUANTITIES[view.quantity];
  const size = (t) => Math.abs(quantity.of(t) ?? -1);
  for (const [span, tokens] of view.tokens) {
    if (!tokens.length) continue;
    const token = tokens.reduce((a, b) => (size(b) > size(a) ? b : a));
    const value = quantity.of(token);
    span.classList.toggle("up", value !== null && Boolean(quantity.diverging) && value > 0);
    span.style.setProperty("--v", value === null ? "0" : strength(value, scale(DATA.runs[token.rollout.run], view.quantity)).toFixed(3));
  }
  drawLegend();
}

function drawLegend() {
  const quantity = QUANTITIES[view.quantity];
  const most = scale(primary(), view.quantity);
  const at = (v, up) =>
    el("span", { class: "step" }, el("span", { class: `tok own${up ? " up" : ""}`, "--v": v }, "  "), number((up || !quantity.diverging ? 1 : -1) * v * v * most));
  const steps = quantity.diverging
    ? [at(1, false), at(0.6, false), at(0, true), at(0.6, true), at(1, true)]
    : [at(0, false), at(0.33, false), at(0.66, false), at(1, false)];
  const label = primary().labels.distill;
  const warned = (kind) => primary().signs.some((s) => s.kind === kind || s.kind === "shifted");
  const text = view.quantity === "divergence" ? `${label} at each token, in nats` : quantity.about;
  fill(
    $("legend"),
    el("p", { class: "note" }, text[0].toUpperCase() + text.slice(1), "."),
    el(
      "div", { class: "scale" },
      quantity.diverging ? el("span", { class: "sign" }, quantity.signs[0]) : null, steps,
      quantity.diverging ? el("span", { class: "sign" }, quantity.signs[1]) : null,
      el("span", { class: "step" }, el("span", { class: "tok inserted" }, "tool"), "not generated by the student"),
      el("span", { class: "step" }, el("span", { class: "tok own masked" }, "token"), "not in the loss"),
      warned("inserted") ? el("span", { class: "step" }, el("span", { class: "tok own stranger" }, "token"), "inserted, but in the loss") : null,
      warned("missed") ? el("span", { class: "step" }, el("span", { class: "tok inserted missed" }, "token"), "generated by the student, but not in the loss") : null,
    ),
  );
}

// --- text ----------------------------------------------------------------------------------------------------------

function drawText() {
  const rollout = current();
  view.spans.clear();
  view.tokens.clear();
  view.waiting = [];
  view.worst = -1;
  if (!rollout) return void fill($("text"));
  const others = DATA.runs.slice(1).map((run) => besideOf(run, rollout));
  fill(
    $("text"),
    el(
      "div", { class: others.length ? "beside" : "" },
      [rollout, ...others].map((r, i) => el(
        "article", { class: "rollout" },
        others.length ? el("h3", { class: "run-name" }, swatch(DATA.runs[i]), DATA.runs[i].name) : null,
        r ? rolloutText(r) : el("p", { class: "note" }, "This run has not recorded this prompt."),
      )),
    ),
  );
  showEnds($("text"));
  colour();
  markChosen();
}

// Another run's rollout of the same prompt: at its best weights if the first run is at its own, else at the nearest step.
function besideOf(run, rollout) {
  const same = run.rollouts.filter((r) => r.of === rollout.of && r.prompt === rollout.prompt);
  const best = rollout.step === bestStep(primary());
  const step = best ? bestStep(run) : nearest(run, rollout.step);
  return same.find((r) => r.step === step) || same.findLast((r) => r.step <= step) || same[0] || null;
}

// --- selection of a token ------------------------------------------------------------------------------------------------

// Opens the rollout of a token and selects it.
function show(token) {
  const rollout = token.rollout;
  if (rollout.run === 0 && rollout.key !== view.key) {
    view.key = rollout.key;
    if (!view.all) view.step = rollout.step;
    draw();
  }
  if (token.own) pick(token);
  const span = view.spans.get(token) || $(`t-${rollout.run}-${token.position}`);
  if (fitsBelow($("paint"), span)) reveal($("paint"), "start");
  else reveal(span, "center");
}

// Whether an element is in view while another one above it is at the top of the page.
function fitsBelow(top, element) {
  if (!element) return false;
  const { scrollPaddingTop: above, scrollPaddingBottom: below } = getComputedStyle(document.documentElement);
  const height = element.getBoundingClientRect().bottom - top.getBoundingClientRect().top;
  return height < innerHeight - parseFloat(above) - parseFloat(below);
}

// Brings a token into view. The page's scroll padding leaves out the header, and the sheet of a small screen.
function reveal(span, block) {
  if (span) span.scrollIntoView({ block, behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

function pick(token) {
  view.token = token;
  markChosen();
  drawPanel();
  if ($("panel").dataset.sheet) reveal(view.spans.get(token), "nearest");
}

function markChosen() {
  for (const old of $("text").querySelectorAll(".chosen")) {
    old.classList.remove("chosen");
    old.removeAttribute("aria-selected");
  }
  const span = view.token && view.spans.get(view.token);
  if (!span) return;
  span.classList.add("chosen");
  span.setAttribute("aria-selected", "true");
  span.closest(".tokens").setAttribute("aria-activedescendant", span.id);
}

function moveToken(by) {
  const rollout = view.token ? view.token.rollout : current();
  if (!rollout) return;
  const own = rollout.tokens.filter((t) => t.own);
  const at = view.token ? own.indexOf(view.token) + by : 0;
  if (at < 0 || at >= own.length) return;
  pick(own[at]);
  reveal(view.spans.get(own[at]), "nearest");
}

// Goes to the next largest value of the current quantity among all listed rollouts.
function nextWorst(by) {
  const of = QUANTITIES[view.quantity].of;
  const ranked = found().flatMap((r) => r.tokens).filter((t) => of(t) !== null).sort((a, b) => Math.abs(of(b)) - Math.abs(of(a)));
  if (!ranked.length) return;
  const at = Math.min(Math.max(view.worst + by, 0), ranked.length - 1);
  show(ranked[at]);
  view.worst = at;
}
