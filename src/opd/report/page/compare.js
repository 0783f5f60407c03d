// Several runs side by side: what each reached, and what differs in their run files.

function compared(runs) {
  const names = [...new Set(runs.flatMap((run) => tileNames(run.eval.columns)))];
  return [
    el("p", { class: "lede" }, "Curves over steps, tokens and seconds are below; the token view shows each held-out prompt once per run."),
    runs.map((run) => (run.signs.length ? [el("h4", { class: "run-name" }, swatch(run), run.name), alarms(run)] : null)),
    el("div", { class: "changes reached" },
      el("h3", {}, "What each reached"),
      el("p", { class: "note" }, "On held-out prompts: at the end, with the start and the best evaluation below."),
      el("div", { class: "scroll-x" }, el("table", { class: "plain beside-table" },
        el("thead", {}, el("tr", {}, el("td", {}), runs.map((run) => el("th", { scope: "col" }, el("span", { class: "run-name" }, swatch(run), run.name))))),
        el("tbody", {},
          names.map((name) => el("tr", {}, el("th", { scope: "row" }, metricOf(name).label), runs.map((run) => reached(run, name)))),
          [["steps", (run) => run.train.step[run.train.step.length - 1] ?? 0], ["tokens", (run) => number(run.train.tokens[run.train.tokens.length - 1] ?? 0)], ["seconds", (run) => (run.seconds ? duration(run.seconds) : "–")]]
            .map(([name, of]) => el("tr", {}, el("th", { scope: "row" }, name), runs.map((run) => el("td", {}, of(run))))))))),
    el("div", { class: "pairs" }, differing(runs), timeOf(runs)),
  ];
}

function reached(run, name) {
  if (!run.eval.columns[name]) return el("td", {}, "–");
  const { first, last, best, mood, vain } = course(run, name);
  return el("td", { class: mood }, el("b", {}, metricText(name, last.value)),
    el("div", { class: "note" }, `from ${metricText(name, first.value)}`, metricText(name, best.value) !== metricText(name, last.value) ? ` · ${vain ? "closest" : "best"} ${metricText(name, best.value)} at ${best.step}` : ""));
}

// The keys whose values differ, as DATA.differing has them.
function differing(runs) {
  const rows = DATA.differing || [];
  const value = (v) => (v === null || v === undefined ? el("span", { class: "note" }, "–") : el("code", {}, typeof v === "string" ? v : JSON.stringify(v)));
  return el(
    "div", { class: "changes differing" },
    el("h3", {}, "What differs in their run files"),
    rows.length
      ? el("div", { class: "scroll-x" }, el("table", { class: "plain beside-table" },
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "key"), runs.map((run) => el("th", { scope: "col" }, el("span", { class: "run-name" }, swatch(run), run.name))))),
        el("tbody", {}, rows.map(([key, values]) => el("tr", {}, el("th", { scope: "row" }, el("code", {}, key)), values.map((v) => el("td", {}, value(v))))))))
      : el("p", { class: "note" }, "Nothing but the folder."),
  );
}
