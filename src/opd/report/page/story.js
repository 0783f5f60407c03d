// The summary of a run: result, warnings, metrics, and the tokens that changed most.

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

// The first five metrics of the table's tiles that this run measured; of several columns of one metric the first.
function tileNames(columns) {
  const measured = Object.keys(columns).filter((name) => !unprefixed(name).includes("/") && columns[name].some((v) => v !== null));
  const column = (tile) => measured.filter((name) => baseName(name) === tile).sort((a, b) => a.length - b.length)[0];
  return METRIC_TABLE.tiles.map(column).filter(Boolean).slice(0, 5);
}

function tiles(run) {
  const columns = run.eval.columns;
  return tileNames(columns).map((name) => {
    const { first, last, best, sign, lost } = course(run, name);
    const gain = sign * (last.value - first.value);
    const mood = !sign || first.value === last.value ? "" : lost || gain < 0 ? "bad" : "good";
    const steps = run.eval.step;
    const notes = [
      `from ${metricText(name, first.value)}`,
      lost ? `best ${metricText(name, best.value)} at step ${best.step}` : { good: "better", bad: "worse", "": "" }[mood],
      last.step !== steps[steps.length - 1] ? `last measured at step ${last.step}` : "",
    ].filter(Boolean);
    return el(
      "div", { class: `tile ${mood}` },
      el("div", { class: "tile-name" }, metricOf(name).label),
      el("div", { class: "tile-now" }, metricText(name, last.value)),
      el("div", { class: "tile-was" }, notes.join(" · ")),
      spark(steps, columns[name], `${metricOf(name).label} over the run`),
    );
  });
}

function sentence(run) {
  const { step, columns } = run.eval;
  const parts = [];
  const bold = (text) => el("b", {}, text);
  const steps = run.train.step.length ? run.train.step[run.train.step.length - 1] : 0;
  const time = run.seconds ? ` (${duration(run.seconds)})` : "";
  if (columns.accuracy && step.length > 1) {
    const { first, last, best, lost } = course(run, "accuracy");
    if (lost && best.step === first.step) {
      parts.push("Accuracy on held-out prompts ", bold(`fell from ${percent(first.value)} to ${percent(last.value)}`), ` in ${steps} steps${time}. `);
    } else if (lost) {
      parts.push("Accuracy on held-out prompts rose ", bold(`from ${percent(first.value)} to ${percent(best.value)} at step ${best.step}`));
      parts.push(", then ", bold(`fell to ${percent(last.value)}`), ` by step ${last.step}${time}. `);
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

// Tokens of the untrained student whose probability changed most, and the teacher's likeliest tokens there.
function changes(run) {
  const groups = new Map();
  for (const rollout of run.rollouts) {
    if (rollout.step !== 0) continue;
    for (const token of rollout.tokens) {
      const change = QUANTITIES.change.of(token);
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
    el("h3", {}, "Largest changes by training"),
    el("p", { class: "note" }, "Tokens of the untrained student, with their mean probability before and after training in the same context. Select one to see it in its answer."),
    el(
      "div", { class: "scroll-x" },
      el(
        "table", { class: "plain" },
        el("thead", {}, el("tr", {}, ["student's token", "times", "before", "after", "teacher's token"].map((h) => el("th", { scope: "col" }, h)))),
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

// Tokens of the untrained student that are not the teacher's likeliest: which, how often, and in correct answers.
function objections(run) {
  const groups = new Map();
  for (const rollout of run.rollouts) {
    if (rollout.step !== run.steps[0]) continue;
    for (const token of rollout.tokens) {
      const teacher = teacherOf(token);
      if (!teacher || !teacher.top || !teacher.top.length) continue;
      const [student, preferred] = [word(token.text), word(teacher.top[0].text)];
      if (student === preferred) continue;
      const key = JSON.stringify([student, preferred]);
      const group = groups.get(key) || { student, preferred, token, count: 0, correct: 0, loss: 0 };
      group.count += 1;
      group.correct += rollout.correct ? 1 : 0;
      group.loss += Math.abs(lead(token).loss);
      if (Math.abs(lead(token).loss) > Math.abs(lead(group.token).loss)) group.token = token;
      groups.set(key, group);
    }
  }
  const rows = [...groups.values()].sort((a, b) => b.loss - a.loss).slice(0, 5);
  if (!rows.length) return null;
  const checked = run.rollouts.some((r) => r.correct !== null);
  return el(
    "div", { class: "changes objections" },
    el("h3", {}, "Where the teacher disagrees"),
    el("p", { class: "note" }, `Tokens of the student at step ${run.steps[0]}, and the teacher's likeliest token instead; largest loss first.`,
      checked ? " Check a teacher that also disagrees with correct answers." : ""),
    el(
      "div", { class: "scroll-x" },
      el(
        "table", { class: "plain" },
        el("thead", {}, el("tr", {}, ["student's token", "teacher's token", "times", checked ? "in correct answers" : null, "mean loss"].filter(Boolean).map((h) => el("th", { scope: "col" }, h)))),
        el("tbody", {}, rows.map((g) => el(
          "tr", {},
          el("td", {}, el("button", { type: "button", class: "token-link", onclick: () => show(g.token) }, g.student)),
          el("td", {}, el("code", {}, g.preferred)),
          el("td", {}, g.count),
          checked ? el("td", {}, g.correct) : null,
          el("td", {}, number(g.loss / g.count)),
        ))),
      ),
    ),
  );
}

const chanceBar = (p) =>
  el("span", { class: "chance" }, el("span", { class: "chance-bar", "--v": p.toFixed(3) }), el("span", {}, chance(Math.log(Math.max(p, 1e-12)))));
