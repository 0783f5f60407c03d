// Parts that several pages share: theme, warnings, course of a metric, sparklines, live updates.

function theme(next) {
  document.documentElement.dataset.theme = next;
  $("theme").setAttribute("aria-pressed", String(next === "dark"));
}

const toggleTheme = () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");

// Follow the system's theme; redraw runs after each change by the button.
function startTheme(redraw) {
  theme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  $("theme").addEventListener("click", () => { toggleTheme(); redraw(); });
}

const swatch = (run) => el("span", { class: "swatch", "--c": `var(--run-${run.index % 6})` });

// Warnings about a run, above everything else. evidence: the table of what a teacher prefers, or null.
function alarms(run, evidence = null) {
  if (!run.signs.length) return null;
  return el("ul", { class: "signs", "aria-label": "Warnings" }, run.signs.map((sign) => {
    const rollout = sign.at && run.rollouts.find((r) => r.step === sign.at[0] && r.of === sign.at[1] && r.n === sign.at[2]);
    return el(
      "li", { class: sign.alarm ? "alarm" : "hunch", data: { kind: sign.kind } },
      el("b", {}, sign.alarm ? "Error. " : "Note. "), sign.text, " ",
      rollout && run.index === 0 ? el("button", { type: "button", class: "token-link", onclick: () => show(rollout.tokens[sign.at[3]]) }, "Show an example") : null,
      evidence && sign.kind.endsWith("teacher") ? ["Evidence: ", el("a", { href: `#${evidence.id}` }, "Where the teacher disagrees"), "."] : null,
    );
  }));
}

// A sentence that refers to the errors among the warnings, so that no summary is good news alone.
function errorsFound(run, rose) {
  const errors = run.signs.filter((sign) => sign.alarm).length;
  return errors ? [el("b", {}, `${rose ? "But the" : "The"} page found ${errors > 1 ? `${errors} errors` : "an error"}: see below.`), " "] : [];
}

// First, last and best value of an evaluation metric; without a better direction the best is the last.
function course(run, name) {
  const points = run.eval.step.map((step, i) => ({ step, value: run.eval.columns[name][i] })).filter((p) => p.value !== null);
  const [first, last] = [points[0], points[points.length - 1]];
  const metric = metricOf(name);
  const sign = !metric ? 1 : { higher: 1, lower: -1 }[metric.better] || 0;
  const best = sign ? points.reduce((a, b) => (sign * b.value > sign * a.value ? b : a)) : last;
  // At least a quarter of the gain is lost again.
  const lost = sign * (best.value - last.value) > 0.25 * Math.abs(best.value - first.value) + 1e-9;
  const gain = sign * (last.value - first.value);
  // Closer to a teacher is no gain where the student became worse.
  const vain = name.startsWith("teacher/") && becameWorse(run);
  const mood = gain > 0 && !vain ? "good" : gain < 0 ? "bad" : ""; // compared with the start
  return { first, last, best, sign, gain, lost, mood, vain };
}

function becameWorse(run) {
  const judge = ["accuracy", "reward"].find((name) => run.eval.columns[name] && run.eval.columns[name].some((v) => v !== null));
  return judge ? course(run, judge).mood === "bad" : false;
}

// Which weights are the best, and where they are, if they are not those of the last evaluation.
function bestWeights(run) {
  const last = run.eval.step[run.eval.step.length - 1];
  if (run.best_step === null || run.best_step === last) return [];
  const path = (...more) => el("code", {}, [run.name, ...more].join("/"));
  const best = run.ends_with_best ? path() : path("checkpoints", "best");
  const rest = run.finished && !run.ends_with_best ? ["; the last are in ", path()] : [];
  return [" ", el("b", {}, `The best weights, of step ${run.best_step}`), ", are in the folder ", best, rest, "."];
}

// A sparkline: a line without axes.
function spark(steps, values, label, most) {
  const points = steps.map((s, i) => [s, values[i]]).filter(([, v]) => v !== null);
  if (points.length < 2) return null;
  const [low, high] = [most ? 0 : Math.min(...points.map((p) => p[1])), most || Math.max(...points.map((p) => p[1]))];
  const width = points[points.length - 1][0] - points[0][0] || 1;
  const place = ([s, v]) =>
    `${((100 * (s - points[0][0])) / width).toFixed(1)},${(22 - (20 * (v - low)) / (high - low || 1)).toFixed(1)}`;
  return el(
    "svg:svg", { class: "spark", viewBox: "0 0 100 24", preserveAspectRatio: "none", role: "img", "aria-label": label },
    el("svg:polyline", { points: points.map(place).join(" ") }),
  );
}

// Poll the page's own server every two seconds. live names the data that the page has, state() is the text beside them,
// take receives new data. A run whose folder was removed is waited for again.
function poll(live, state, take) {
  let seen = `"${live}"`;
  const status = (text) => { $("live").hidden = false; $("live").textContent = text; };
  status(state());
  setInterval(async () => {
    try {
      const answer = await fetch("data.json", { headers: { "If-None-Match": seen }, cache: "no-store" });
      status(answer.ok || answer.status === 304 ? state() : "unreadable");
      if (!answer.ok) return;
      seen = answer.headers.get("ETag");
      const news = await answer.json();
      if (news.waiting) location.reload();
      else take(news);
      status(state());
    } catch {
      status("no connection");
    }
  }, 2000);
}
