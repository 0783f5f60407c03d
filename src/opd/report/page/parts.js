// What the pages of all runs say and do alike: what looks wrong, how a figure went, and asking for news.

const LOWER_IS_BETTER = new Set(["invalid_call_rate", "reverse_kl", "teacher/reverse_kl", "text_loss", "frechet", "distance"]);
const NEUTRAL = new Set(["length"]);

const swatch = (run) => el("span", { class: "swatch", "--c": `var(--run-${run.index % 6})` });

// What looks wrong, before anything else.
function alarms(run) {
  if (!run.signs.length) return null;
  return el("ul", { class: "signs", "aria-label": "What looks wrong" }, run.signs.map((sign) => {
    const rollout = sign.at && run.rollouts.find((r) => r.step === sign.at[0] && r.of === sign.at[1] && r.n === sign.at[2]);
    return el(
      "li", { class: sign.alarm ? "alarm" : "hunch", data: { kind: sign.kind } },
      el("b", {}, sign.alarm ? "Something is wrong. " : "Worth a look. "), sign.text, " ",
      rollout && run.index === 0 ? el("button", { type: "button", class: "token-link", onclick: () => show(rollout.tokens[sign.at[3]]) }, "Show one") : null,
    );
  }));
}

// First, last and best of a column, where there is such; for what is neither good nor bad the best is the last.
function course(run, name) {
  const points = run.eval.step.map((step, i) => ({ step, value: run.eval.columns[name][i] })).filter((p) => p.value !== null);
  const [first, last] = [points[0], points[points.length - 1]];
  const sign = NEUTRAL.has(name) ? 0 : LOWER_IS_BETTER.has(name) ? -1 : 1;
  const best = sign ? points.reduce((a, b) => (sign * b.value > sign * a.value ? b : a)) : last;
  // Lost again: a quarter of what had been gained, or more.
  const lost = sign * (best.value - last.value) > 0.25 * Math.abs(best.value - first.value) + 1e-9;
  return { first, last, best, sign, lost };
}

// A line without axes.
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

// Ask the page's own server for news, every two seconds.
function ask(finished, take) {
  let seen = null;
  const say = (text) => { $("live").hidden = false; $("live").textContent = text; };
  say("live");
  setInterval(async () => {
    try {
      const answer = await fetch("data.json", { headers: seen ? { "If-None-Match": seen } : {}, cache: "no-store" });
      say(finished() ? "finished" : "live");
      if (answer.status === 304 || !answer.ok) return;
      const first = seen === null;
      seen = answer.headers.get("ETag");
      if (!first) take(await answer.json());
    } catch {
      say("no connection");
    }
  }, 2000);
}
