// The summary of a run: result, warnings, metrics, tokens that changed, who took part, and where the time went.

function story() {
  const runs = DATA.runs;
  fill($("brand"), runs.map((r) => r.name).join(" · "));
  const title = runs.length > 1 ? `${runs.length} runs side by side` : runs[0].title || runs[0].name;
  fill($("short"), el("h1", { id: "short-title" }, title), runs.length > 1 ? compared(runs) : storyOf(runs[0]));
}

function storyOf(run) {
  const disagreements = objections(run);
  const measured = tiles(run);
  return [
    el("p", { class: "lede" }, sentence(run)),
    alarms(run, disagreements),
    measured.length ? el("p", { class: "note of-tiles" }, "On held-out prompts, at the last evaluation:") : null,
    el("div", { class: "tiles" }, measured),
    el("div", { class: "pairs" }, changes(run), disagreements),
    el("div", { class: "pairs" }, took(run), timeOf([run])),
  ];
}

// The first five metrics of the table's tiles that this run measured; of several columns of one metric the first.
function tileNames(columns) {
  const measured = Object.keys(columns).filter((name) => !unprefixed(name).includes("/") && columns[name].some((v) => v !== null));
  const column = (tile) => measured.filter((name) => baseName(name) === tile).sort((a, b) => a.length - b.length)[0];
  return METRIC_TABLE.tiles.map(column).filter(Boolean).slice(0, 5);
}

// A value is compared with the start alone: whatever is better than that is never shown as bad.
function tiles(run) {
  const columns = run.eval.columns;
  return tileNames(columns).map((name) => {
    const { first, last, best, gain, mood, vain } = course(run, name);
    const steps = run.eval.step;
    const notes = [
      `from ${metricText(name, first.value)}`,
      vain && gain > 0 ? "closer to the teacher" : { good: "better", bad: "worse", "": "" }[mood],
      best.value !== last.value && metricText(name, best.value) !== metricText(name, last.value) ? `${vain ? "closest" : "best"} ${metricText(name, best.value)} at step ${best.step}` : "",
      last.step !== steps[steps.length - 1] ? `last measured at step ${last.step}` : "",
    ].filter(Boolean);
    return el(
      "div", { class: `tile ${mood}`, data: { metric: name } },
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
  parts.push(...errorsFound(run, !becameWorse(run)), run.teaching);
  if (run.stopped_by) parts.push(" ", bold(`Stopped by the guard “${run.stopped_by}”.`));
  else if (!run.finished) parts.push(" ", bold("The run is not finished."));
  return [...parts, bestWeights(run)];
}

const CLEAR = 0.2; // smallest change of a probability that the first table lists
const COSTLY = 0.3; // smallest loss, in nats, that the second table lists

// The text around a token, with the token as a link that selects it.
function inContext(token) {
  const { tokens } = token.rollout;
  const whole = (from, to) => tokens.slice(from, to).map((t) => (t.special || t.frame ? " " : t.text)).join("").replace(/\s+/g, " ");
  const before = whole(0, token.position);
  const cut = before.length > 18 ? `…${before.slice(-17)}` : before;
  return el("span", { class: "in-context" }, el("span", { class: "around" }, cut, /\s$/.test(before) ? "" : token.text.match(/^ */)[0]),
    el("button", { type: "button", class: "token-link", title: "Show it in its rollout", onclick: () => show(token) }, word(token.text)));
}

function tokenTable({ kind, id, title, about, heads, rows }) {
  if (!rows.length) return null;
  return el(
    "div", { class: `changes ${kind}`, id },
    el("h3", {}, title),
    el("p", { class: "note" }, about),
    el("div", { class: "scroll-x" }, el("table", { class: "plain" },
      el("thead", {}, el("tr", {}, heads.map(([name, meaning]) => el("th", { scope: "col", title: meaning }, name)))),
      el("tbody", {}, rows.map((cells) => el("tr", {}, cells.map((cell) => el("td", {}, cell))))))),
    el("p", { class: "note meanings" }, heads.map(([name, meaning], i) => [i ? " · " : "", el("b", {}, name), ` ${meaning}`])),
  );
}

// Tokens of the untrained student that training made clearly less likely where the teacher prefers another token, or
// clearly likelier where it prefers the same. Other changes have no reason in the teacher and are not listed.
function changes(run) {
  const groups = new Map();
  for (const rollout of run.rollouts.filter((r) => r.step === 0)) {
    for (const token of rollout.tokens) {
      const change = QUANTITIES.change.of(token);
      const teacher = teacherOf(token);
      if (change === null || Math.abs(change) < CLEAR || !teacher || !teacher.top || !teacher.top.length || token.bytes) continue;
      const [own, preferred] = [word(token.text), word(teacher.top[0].text)];
      if ((own === preferred) !== change > 0) continue;
      const key = JSON.stringify([own, preferred]);
      const group = groups.get(key) || { token, preferred, change: 0, count: 0, total: 0, before: 0, after: 0 };
      group.count += 1;
      group.total += Math.abs(change);
      group.before += Math.exp(token.before);
      group.after += Math.exp(token.after);
      if (Math.abs(change) > group.change) Object.assign(group, { token, change: Math.abs(change) });
      groups.set(key, group);
    }
  }
  const rows = [...groups.values()].sort((a, b) => b.total - a.total).slice(0, 5);
  return tokenTable({
    kind: "minds",
    title: "Where it changed its mind",
    about: "Tokens of the untrained student whose probability training changed, in the direction of the teacher.",
    heads: [["it wrote", "a token, behind the text before it"], ["teacher's choice", "the teacher's likeliest token there"], ["before", "the student's probability of its token before training"], ["after", "the same after training"], ["times", "how often among the recorded rollouts; probabilities are means"]],
    rows: rows.map((g) => [inContext(g.token), el("code", {}, g.preferred), chanceBar(g.before / g.count), chanceBar(g.after / g.count), g.count]),
  });
}

// Tokens of the untrained student that are not the teacher's likeliest: which, how often, and in correct answers.
function objections(run) {
  const groups = new Map();
  for (const rollout of run.rollouts.filter((r) => r.step === run.steps[0])) {
    for (const token of rollout.tokens) {
      const teacher = teacherOf(token);
      if (!teacher || !teacher.top || !teacher.top.length || token.bytes) continue;
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
  const rows = [...groups.values()].filter((g) => g.loss / g.count > COSTLY || g.correct > 1).sort((a, b) => b.loss - a.loss).slice(0, 5);
  const checked = run.rollouts.some((r) => r.correct !== null);
  return tokenTable({
    kind: "objections",
    id: "disagreements",
    title: "Where the teacher disagrees",
    about: `Tokens of the student at step ${run.steps[0]} in whose place the teacher prefers another; largest total loss first.${checked ? " A teacher that also disagrees with correct answers needs a check." : ""}`,
    heads: [["it wrote", "a token, behind the text before it"], ["teacher's choice", "the teacher's likeliest token there"], ["times", "how often among the recorded rollouts"],
      ...(checked ? [["in correct", "how many of these stand in correct answers"]] : []), ["mean loss", "in nats"]],
    rows: rows.map((g) => [inContext(g.token), el("code", {}, g.preferred), g.count, ...(checked ? [g.correct ? el("b", {}, g.correct) : 0] : []), number(g.loss / g.count)]),
  });
}

// Student, teachers, authors, rewards and servers; of several teachers what each scored.
function took(run) {
  const several = Object.keys((run.config.teacher || {}).models || {});
  const each = new Map(several.map((name) => [name, { name, tokens: 0, gap: 0, domains: new Set() }]));
  for (const rollout of several.length > 1 ? run.rollouts : []) {
    for (const token of rollout.tokens) {
      for (const term of token.terms.filter((t) => t.role !== "anchor")) {
        for (const teacher of term.teachers) {
          const row = each.get(teacher.name) || { name: teacher.name, tokens: 0, gap: 0, domains: new Set() };
          row.tokens += 1;
          row.gap += token.student.logprob - teacher.logprob;
          row.domains.add(rollout.domain);
          each.set(teacher.name, row);
        }
      }
    }
  }
  if (!run.facts.length) return null;
  return el(
    "div", { class: "changes took" },
    el("h3", {}, "Who took part"),
    el("dl", { class: "did" }, run.facts.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    each.size > 1
      ? el("div", { class: "scroll-x" }, el("table", { class: "plain" },
        el("thead", {}, el("tr", {}, ["scored by", "domains", "tokens", "student − teacher"].map((h) => el("th", { scope: "col" }, h)))),
        el("tbody", {}, [...each.values()].map((row) => el("tr", {}, [row.name, [...row.domains].join(", "), row.tokens, row.tokens ? `${number(row.gap / row.tokens)} nats` : "–"].map((v) => el("td", {}, v)))))),
      el("p", { class: "note" }, "On the recorded rollouts; the last column is the mean log-probability of the student's tokens minus the teacher's."))
      : null,
  );
}

// The parts of a run's time as one bar.
function timeOf(runs) {
  const shown = runs.filter((run) => run.times.length);
  if (!shown.length) return null;
  return el(
    "div", { class: "changes times" },
    el("h3", {}, "Where the time went"),
    shown.map((run) => {
      const whole = run.times.reduce((sum, part) => sum + part.seconds, 0);
      return [
        runs.length > 1 ? el("h4", { class: "run-name" }, swatch(run), run.name) : null,
        el("div", { class: "time-bar", "aria-hidden": "true" }, run.times.map((part, i) => el("span", { "--c": `var(--c${i % 6})`, "--w": part.seconds / whole }))),
        el("ul", { class: "time-keys" }, run.times.map((part, i) => el("li", {}, el("span", { class: "swatch", "--c": `var(--c${i % 6})` }), `${part.name} `, el("b", {}, percent(part.seconds / whole)), el("span", { class: "note" }, ` ${duration(part.seconds)}`)))),
      ];
    }),
    speeds(shown),
  );
}

function speeds(runs) {
  const lines = runs.map((run) => {
    const at = run.train.seconds.length - 1;
    return at < 0 || !run.train.seconds[at] ? null : `${runs.length > 1 ? `${run.name}: ` : ""}${number(run.train.tokens[at])} tokens in ${duration(run.train.seconds[at])} of training, ${number(run.train.tokens[at] / run.train.seconds[at])} a second`;
  }).filter(Boolean);
  return lines.length ? el("p", { class: "note" }, lines.join(". "), ".") : null;
}

const chanceBar = (p) =>
  el("span", { class: "chance" }, el("span", { class: "chance-bar", "--v": p.toFixed(3) }), el("span", {}, chance(Math.log(Math.max(p, 1e-12)))));
