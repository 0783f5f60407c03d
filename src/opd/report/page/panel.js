// Everything about one token.

function drawPanel() {
  const token = view.token;
  const panel = $("panel");
  panel.classList.toggle("open", Boolean(token));
  if (!token) {
    fill(panel, el("p", { class: "note" }, "Choose a token to see both distributions, what it weighs in the loss, and what training made of it."));
    return;
  }
  const said = token.terms.flatMap((term) => term.teachers.map((teacher) => ({ ...teacher, term })));
  // Two terms may have one teacher.
  const teachers = said.filter((t, i) => said.findIndex((o) => o.name === t.name && o.logprob === t.logprob) === i);
  fill(
    panel,
    el(
      "div", { class: "panel-head" },
      el("code", { class: "big" }, visible(token.text)),
      el("span", { class: "note" }, `token ${token.id}, position ${token.position}`),
      el("button", { type: "button", class: "close", "aria-label": "Close", title: "Close (Esc)", onclick: () => { view.token = null; markChosen(); drawPanel(); } }, "×"),
    ),
    token.stranger ? el("p", { class: "shout" }, "Inserted, and in the loss: the student is trained on a token that it never chose.") : null,
    fate(token),
    el("h3", {}, "Likeliest tokens"),
    el("div", { class: "columns" }, [token.student, ...teachers].map((who) => distribution(who, token))),
    teachers.length ? null : el("p", { class: "note" }, token.masked ? "No teacher speaks about this token, or its position does not count: it is left out of the loss." : token.rollout.scored ? "There is no teacher's distribution here." : "No teacher was asked about this rollout."),
    token.terms.map((term) => termTable(term, token)),
  );
}

// Before training, when drawn, after; and along the way where the same answer was asked about again.
function fate(token) {
  const rows = [
    ["before training (step 0)", token.before],
    [`when written (step ${token.rollout.step})`, token.student.logprob],
    ["after training", token.after],
  ].filter(([, v]) => v !== null && v !== undefined);
  const again = [[0, token.before ?? token.student.logprob], ...token.again];
  return el(
    "div", { class: "fate" },
    el("h3", {}, "How likely the student finds it"),
    el("table", { class: "figures" }, el("tbody", {}, rows.map(([name, v]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, chanceBar(Math.exp(v))))))),
    again.length > 1
      ? el("figure", { class: "course" }, spark(again.map((a) => a[0]), again.map((a) => Math.exp(a[1])), `probability of this token at steps ${again.map((a) => a[0]).join(", ")}: ${again.map((a) => chance(a[1])).join(", ")}`, 1),
        el("figcaption", {}, `step ${again[0][0]} to ${again[again.length - 1][0]}, 0 to 100 %`))
      : null,
  );
}

function distribution(who, token) {
  const own = word(token.text);
  const rows = who.top ? who.top.slice() : [];
  const listed = rows.some((r) => word(r.text) === own);
  const line = (text, logprob, mine) =>
    el("tr", { class: mine ? "mine" : null },
      el("th", { scope: "row" }, el("code", {}, word(text)), mine ? el("span", { class: "hidden" }, " (the student's token)") : null),
      el("td", {}, chanceBar(Math.exp(logprob))));
  return el(
    "div", { class: "column" },
    el("h4", {}, who.name, who.term && who.term.role === "anchor" ? el("span", { class: "note" }, " anchor") : null),
    rows.length
      ? el("table", { class: "figures likely" }, el("tbody", {},
        rows.map((r) => line(r.text, r.logprob, word(r.text) === own)),
        listed ? null : line(token.text, who.logprob, true)))
      : el("table", { class: "figures likely" }, el("tbody", {}, line(token.text, who.logprob, true))),
    who.entropy === null || who.entropy === undefined ? null : el("p", { class: "note" }, `entropy ${number(who.entropy)} nats`),
  );
}

function termTable(term, token) {
  const teacher = term.teachers[0];
  const rows = [
    [term.label, `${number(term.loss)}`],
    ["weight of the position", number(term.weight)],
    ["factor of the term", number(term.factor)],
    [`share of the batch's loss (1 of ${term.count})`, number((term.factor * term.weight * term.loss) / Math.max(term.count, 1))],
    term.advantage === null ? null : ["advantage", number(term.advantage)],
    teacher ? ["teacher − student logprob", number(teacher.logprob - token.student.logprob)] : null,
    teacher && token.drawn !== null ? ["teacher − drawn logprob", number(teacher.logprob - token.drawn)] : null,
  ].filter(Boolean);
  return el(
    "div", { class: "term" },
    el("h3", {}, "In the loss: ", el("code", {}, term.name)),
    el("table", { class: "figures" }, el("tbody", {}, rows.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, value))))),
  );
}
