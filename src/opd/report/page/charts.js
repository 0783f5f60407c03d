// The charts on the page of a language model.

// [title, description, [[kind, column, label, dashed]], options]; a column may be a pattern.
const CHARTS = [
  ["Accuracy", "Share of correct answers: held-out prompts at each evaluation, the training batch at each step.",
    [["eval", "accuracy", "held out"], ["train", "accuracy", "training batch"], ["eval", /^accuracy\//, ""], ["eval", "teacher_accuracy", "teacher", true], ["eval", /^avg@/, ""]], { share: true }],
  ["Reward", "Mean reward: held-out prompts at each evaluation, the training batch at each step.",
    [["eval", "reward", "held out"], ["train", "reward", "training batch"], ["eval", /^reward[/@]/, ""], ["eval", "teacher_reward", "teacher", true], ["train", /^rewards\//, ""]], {}],
  ["Divergence from the teacher", "On the student's own rollouts, in nats per token.",
    [["eval", "teacher/reverse_kl", "reverse KL"], ["eval", "reverse_kl", "reverse KL, held out"], ["eval", "teacher/forward_kl", "forward KL"]], { low: 0 }],
  ["Loss", "The loss that is minimised, and its terms.",
    [["train", "loss", "loss"], ["train", /^(distill|anchor|policy_gradient|sft|teacher_entropy)$/, ""]], {}],
  ["Overlap", "Share of the 16 likeliest tokens that both have, and the student's mass on them.",
    [["eval", /^teacher\/overlap@\d+$/, ""], ["eval", "teacher/overlap_mass", "mass on shared"]], { share: true }],
  ["Entropy", "Entropy of student and teacher, in nats; the gap is the mean absolute difference.",
    [["eval", "teacher/entropy", "student"], ["eval", "teacher/teacher_entropy", "teacher"], ["eval", "teacher/entropy_gap", "gap", true], ["train", "entropy", "training rollouts"]], { low: 0 }],
  ["Length", "Student tokens per answer.", [["eval", "length", "held out"], ["train", "length", "training batch"]], { low: 0 }],
  ["Truncated, repetitive, invalid", "Share of rollouts that hit the token or turn limit, share that are repetitive, share of invalid tool calls.",
    [["eval", "truncation_rate", "truncated"], ["eval", "repetition_rate", "repetitive"], ["eval", "invalid_call_rate", "invalid calls"]], { share: true, low: 0 }],
  ["Tokens with a target", "Share of the student's tokens that have a target in each term of the loss.",
    [["train", /_share$/, ""]], { share: true, low: 0 }],
  ["Gradient norm", "Before clipping.", [["train", "grad_norm", "norm"]], { low: 0 }],
  ["Learning rate", "", [["train", "lr", "lr"]], { low: 0 }],
  ["Time per step", "Seconds, stacked.", [["train", "rollout_s", "rollouts"], ["train", "teacher_s", "teacher"], ["train", "update_s", "update"]], { stacked: true, low: 0 }],
  ["Time with servers", "Seconds: waiting is a part of teacher and update, sending weights of rollouts.", [["train", "server_wait_s", "waiting"], ["train", "push_s", "sending weights"]], { low: 0 }],
  ["Throughput", "Student tokens per second of a step.", [["train", "tokens_per_s", "tokens/s"]], { low: 0 }],
];

const buildCurves = () => drawCurves({ first: heatMap(), charts: CHARTS, group: ["Each teacher", teacherCharts()] });

// Charts for several teachers or domains: accuracy of each teacher per domain, and disagreement between teachers.
function teacherCharts() {
  const all = [...new Set(DATA.runs.flatMap((run) => names(run, "eval")))];
  const known = (pattern) => all.map((name) => name.match(pattern)).filter(Boolean);
  const labels = [...new Set(known(/^(?:teacher_accuracy|teacher\/entropy)\/(.+)$/).map((m) => m[1]))];
  const domains = [...new Set(labels.map((label) => label.split("/")[0]))];
  const each = (name) => labels.map((label) => ["eval", `${name}/${label}`, label.replace("/", ": ")]);
  const pairs = (kind) => known(new RegExp(`^conflict/${kind}/(.+)$`)).map((m) => ["eval", m[0], m[1].replace("/", ": ").replace("~", " and ")]);
  return [
    ...domains.map((domain) => [
      `Accuracy on ${domain}`, "Share of correct answers to its held-out prompts; the gate admits teachers that are better than the student.",
      [["eval", all.includes(`accuracy/${domain}`) ? `accuracy/${domain}` : "accuracy", "student"],
        ...labels.filter((label) => label.split("/")[0] === domain).map((label) => ["eval", `teacher_accuracy/${label}`, label.split("/")[1] || "teacher", true])],
      { share: true, more: gateOf(domain) },
    ]),
    ["Divergence from each teacher", "Reverse KL on the student's own rollouts of its domain, in nats per token.", each("teacher/reverse_kl"), { low: 0 }],
    ["Overlap with each teacher", "Share of the 16 likeliest tokens that both have; the gate refuses a teacher with a low overlap.", each("teacher/overlap@16"), { share: true }],
    ["Entropy of each teacher", "In nats, on the student's rollouts.", each("teacher/teacher_entropy"), { low: 0 }],
    ["Disagreement of teachers", "Jensen-Shannon divergence of two teachers on the same tokens, in nats; at most 0.693.", pairs("jsd"), { low: 0 }],
    ["Gradients of domains", "Cosine of the loss's gradients on two domains; below 0, a step for one domain partly undoes the other.", pairs("cosine"), { zero: true }],
  ];
}

// The gate's events about a domain's teachers.
function gateOf(domain) {
  const events = DATA.runs.flatMap((run) => run.events.filter((e) => {
    const about = e.kind === "gate" && e.text.match(/ (?:teaches|does not teach) ([^:]+)(?::|$)/);
    return about && about[1] === domain;
  }).map((e) => ({ ...e, run })));
  if (!events.length) return null;
  return el("ol", { class: "events gate" }, events.map((e) =>
    el("li", {}, el("span", { class: "fact" }, `gate, step ${e.step}`), DATA.runs.length > 1 ? `(${e.run.name}) ` : "", e.text)));
}

// --- divergence by position, over the training -------------------------------------------------------------------------

const BINS = 10;

function heatMap() {
  const maps = DATA.runs.map((run) => mapOf(run)).filter(Boolean);
  if (!maps.length) return null;
  return el(
    "figure", { class: "card wide-card", "aria-labelledby": "heat-title" },
    el("figcaption", {}, el("h3", { id: "heat-title" }, "Divergence by position"),
      el("p", { class: "note" }, "Mean over the recorded rollouts, from the first tenth of an answer (top) to the last, at each recorded step. Select a cell to see its worst token.")),
    maps,
  );
}

function mapOf(run) {
  const steps = run.steps;
  const cells = new Map();
  for (const rollout of run.rollouts) {
    for (const token of rollout.tokens) {
      const value = QUANTITIES.divergence.of(token);
      if (value === null) continue;
      const bin = Math.min(BINS - 1, Math.floor((BINS * token.k) / rollout.own.length));
      const key = `${rollout.step} ${bin}`;
      const cell = cells.get(key) || { sum: 0, count: 0, worst: token };
      cell.sum += value;
      cell.count += 1;
      if (value > QUANTITIES.divergence.of(cell.worst)) cell.worst = token;
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
        const label = `step ${step}, ${10 * bin} to ${10 * (bin + 1)}% of the answer: ${number(mean)} nats, ${cell.count} tokens`;
        return el("td", {}, el("button", { type: "button", title: label, "aria-label": label, "--v": strength(mean, most).toFixed(3),
          onclick: () => show(cell.worst) }));
      })));
  return el("div", { class: "scroll-x" },
    DATA.runs.length > 1 ? el("h4", { class: "run-name" }, swatch(run), run.name) : null,
    el("table", { class: "heat-map" }, el("tbody", {}, rows,
      el("tr", { class: "foot" }, el("th", { scope: "row" }, "step"), steps.map((s, i) => el("td", {}, steps.length < 14 || i % 2 === 0 ? s : ""))))),
    el("div", { class: "scale" }, [0, 0.33, 0.66, 1].map((v) => el("span", { class: "step" }, el("span", { class: "cell", "--v": v }), number(v * v * most))), el("span", { class: "note" }, "nats per token")));
}
