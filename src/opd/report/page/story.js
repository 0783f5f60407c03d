// "In short": what came of the run, and which choices changed most. For somebody who sees this for the first time.

const HEADLINE = ["accuracy", "invalid_call_rate", "reverse_kl", "teacher/reverse_kl", "teacher/overlap@16", "length", "text_loss"];
const NAMES = {
  accuracy: "answers right", invalid_call_rate: "invalid tool calls", reverse_kl: "divergence from the teacher",
  "teacher/reverse_kl": "divergence from the teacher", "teacher/overlap@16": "likeliest tokens shared",
  length: "tokens an answer", text_loss: "loss on held-out text",
};

function story() {
  const runs = DATA.runs;
  fill($("brand"), runs.map((r) => r.name).join(" · "));
  const title = runs.length > 1 ? `${runs.length} runs side by side` : runs[0].title || runs[0].name;
  fill(
    $("short"),
    el("h1", { id: "short-title" }, title),
    runs.map((run) => [
      runs.length > 1 ? el("h3", { class: "run-name" }, swatch(run), run.name) : null,
      el("p", { class: "lede" }, sentence(run)),
      alarms(run),
      el("div", { class: "tiles" }, tiles(run)),
    ]),
    runs.length === 1 ? [changes(runs[0]), objections(runs[0])] : null,
  );
}

function tiles(run) {
  const columns = run.eval.columns;
  const here = HEADLINE.filter((name) => columns[name] && columns[name].some((v) => v !== null));
  return here.filter((name) => !(name === "teacher/reverse_kl" && columns.reverse_kl)).slice(0, 5).map((name) => {
    const { first, last, best, sign, lost } = course(run, name);
    const gain = sign * (last.value - first.value);
    const mood = !sign || first.value === last.value ? "" : lost || gain < 0 ? "bad" : "good";
    const steps = run.eval.step;
    const said = [
      `from ${figure(name, first.value)}`,
      lost ? `best ${figure(name, best.value)} at step ${best.step}` : { good: "better", bad: "worse", "": "" }[mood],
      last.step !== steps[steps.length - 1] ? `last known at step ${last.step}` : "",
    ].filter(Boolean);
    return el(
      "div", { class: `tile ${mood}` },
      el("div", { class: "tile-name" }, NAMES[name]),
      el("div", { class: "tile-now" }, figure(name, last.value)),
      el("div", { class: "tile-was" }, said.join(" · ")),
      spark(steps, columns[name], `${NAMES[name]} over the run`),
    );
  });
}

function sentence(run) {
  const { step, columns } = run.eval;
  const parts = [];
  const bold = (text) => el("b", {}, text);
  const steps = run.train.step.length ? run.train.step[run.train.step.length - 1] : 0;
  const time = run.seconds ? ` (${run.seconds >= 120 ? `${Math.round(run.seconds / 60)} min` : `${Math.round(run.seconds)} s`})` : "";
  if (columns.accuracy && step.length > 1) {
    const { first, last, best, lost } = course(run, "accuracy");
    if (lost && best.step === first.step) {
      parts.push("Accuracy on held-out prompts ", bold(`fell from ${percent(first.value)} to ${percent(last.value)}`), ` in ${steps} steps${time}. `);
    } else if (lost) {
      parts.push("Accuracy on held-out prompts rose ", bold(`from ${percent(first.value)} to ${percent(best.value)} at step ${best.step}`));
      parts.push(", and then ", bold(`fell to ${percent(last.value)}`), ` by step ${last.step}${time}. `);
    } else {
      parts.push("Accuracy on held-out prompts went ", bold(`from ${percent(first.value)} to ${percent(last.value)}`), ` in ${steps} steps${time}. `);
    }
  } else {
    parts.push(bold(`${steps} steps`), `${time}. `);
  }
  parts.push(run.teaching);
  if (run.stopped_by) parts.push(" ", bold(`Stopped by the guard “${run.stopped_by}”`), "; the best weights were kept.");
  else if (!run.finished) parts.push(" ", bold("The run is not finished."));
  return parts;
}

// The choices of the untrained student that training changed most, and what the teacher would rather have had.
function changes(run) {
  const groups = new Map();
  for (const rollout of run.rollouts) {
    if (rollout.step !== 0) continue;
    for (const token of rollout.tokens) {
      const change = METRICS.change.of(token);
      if (change === null || Math.abs(change) < 0.05) continue;
      const teacher = teacherOf(token);
      const key = word(token.text);
      const group = groups.get(key) || { token, change: 0, count: 0, total: 0, prefers: new Map(), before: 0, after: 0 };
      group.count += 1;
      group.total += change;
      group.before += Math.exp(token.before);
      group.after += Math.exp(token.after);
      if (teacher && teacher.top) {
        const best = word(teacher.top[0].text);
        group.prefers.set(best, (group.prefers.get(best) || 0) + 1);
      }
      if (Math.abs(change) > Math.abs(group.change)) Object.assign(group, { token, change });
      groups.set(key, group);
    }
  }
  const rows = [...groups.entries()].sort((a, b) => Math.abs(b[1].total) - Math.abs(a[1].total)).slice(0, 8);
  if (!rows.length) return null;
  return el(
    "div", { class: "changes" },
    el("h3", {}, "Where it changed its mind"),
    el("p", { class: "note" }, "Tokens that the untrained student wrote, how likely they were then, and how likely they are now in the same place. Choose one to see it in its answer."),
    el(
      "div", { class: "scroll-x" },
      el(
        "table", { class: "plain" },
        el("thead", {}, el("tr", {}, ["student wrote", "times", "before", "after", "teacher preferred"].map((h) => el("th", { scope: "col" }, h)))),
        el("tbody", {}, rows.map(([text, g]) => {
          const prefers = [...g.prefers.entries()].sort((a, b) => b[1] - a[1]).slice(0, 3).map(([t]) => t);
          return el(
            "tr", {},
            el("td", {}, el("button", { type: "button", class: "token-link", onclick: () => show(g.token) }, text)),
            el("td", {}, g.count),
            el("td", {}, chanceBar(g.before / g.count)),
            el("td", {}, chanceBar(g.after / g.count)),
            el("td", {}, prefers.map((t) => (t === text ? el("span", { class: "note" }, "the same ") : el("code", {}, t))), g.prefers.size > 3 ? " …" : ""),
          );
        })),
      ),
    ),
  );
}

// Where the teacher would have written something else than the untrained student: what, how often, and in right answers.
function objections(run) {
  const groups = new Map();
  for (const rollout of run.rollouts) {
    if (rollout.step !== run.steps[0]) continue;
    for (const token of rollout.tokens) {
      const teacher = teacherOf(token);
      if (!teacher || !teacher.top || !teacher.top.length) continue;
      const [wrote, rather] = [word(token.text), word(teacher.top[0].text)];
      if (wrote === rather) continue;
      const key = JSON.stringify([wrote, rather]);
      const group = groups.get(key) || { wrote, rather, token, count: 0, right: 0, loss: 0 };
      group.count += 1;
      group.right += rollout.reward >= 1 ? 1 : 0;
      group.loss += Math.abs(lead(token).loss);
      if (Math.abs(lead(token).loss) > Math.abs(lead(group.token).loss)) group.token = token;
      groups.set(key, group);
    }
  }
  const rows = [...groups.values()].sort((a, b) => b.loss - a.loss).slice(0, 5);
  if (!rows.length) return null;
  const checked = run.rollouts.some((r) => r.reward !== null);
  return el(
    "div", { class: "changes objections" },
    el("h3", {}, "Where the teacher objects"),
    el("p", { class: "note" }, `What the student wrote at step ${run.steps[0]}, and what the teacher finds likeliest in its place; the most loss first.`,
      checked ? " A teacher that objects in right answers as well is worth a second look." : ""),
    el(
      "div", { class: "scroll-x" },
      el(
        "table", { class: "plain" },
        el("thead", {}, el("tr", {}, ["student wrote", "teacher prefers", "times", checked ? "in right answers" : null, "mean loss"].filter(Boolean).map((h) => el("th", { scope: "col" }, h)))),
        el("tbody", {}, rows.map((g) => el(
          "tr", {},
          el("td", {}, el("button", { type: "button", class: "token-link", onclick: () => show(g.token) }, g.wrote)),
          el("td", {}, el("code", {}, g.rather)),
          el("td", {}, g.count),
          checked ? el("td", {}, g.right) : null,
          el("td", {}, number(g.loss / g.count)),
        ))),
      ),
    ),
  );
}

const chanceBar = (p) =>
  el("span", { class: "chance" }, el("span", { class: "chance-bar", "--v": p.toFixed(3) }), el("span", {}, chance(Math.log(Math.max(p, 1e-12)))));
