// The panel of the selected token.

function drawPanel() {
  const token = view.token;
  const panel = $("panel");
  panel.classList.toggle("open", Boolean(token));
  if (!token) sheet(panel);
  if (!token) {
    fill(panel, el("p", { class: "note" }, "Select a token to see both distributions, its part of the loss, and its probability before and after training."));
    return;
  }
  const all = token.terms.flatMap((term) => term.teachers.map((teacher) => ({ ...teacher, term })));
  // Two terms may share one teacher.
  const teachers = all.filter((t, i) => all.findIndex((o) => o.name === t.name && o.logprob === t.logprob) === i);
  fill(
    panel,
    el(
      "div", { class: "panel-head" },
      el("code", { class: "big" }, token.partial ? character(token).text : visible(token.text)),
      el("span", { class: "note" }, `token ${token.id}, position ${token.position}`),
      el("button", { type: "button", class: "close", "aria-label": "Close", title: "Close (Esc)", onclick: () => { view.token = null; markChosen(); drawPanel(); } }, "×"),
    ),
    token.bytes ? bytesOf(token) : null,
    token.stranger ? el("p", { class: "shout" }, "This token was inserted but is in the loss: the student is trained on a token that it did not generate.") : null,
    history(token),
    el("h3", {}, "Likeliest tokens"),
    el("div", { class: "columns" }, [token.student, ...teachers].map((model) => distribution(model, token))),
    teachers.length ? null : el("p", { class: "note" }, token.masked ? "No target, or weight 0: this token is not in the loss." : token.rollout.scored ? "No teacher distribution was recorded here." : "This rollout was not scored."),
    token.terms.map((term) => termTable(term, token)),
  );
  panel.scrollTop = 0;
  sheet(panel);
}

// On a small screen the panel is a sheet at the bottom: the page gets room for it, and scrolling keeps clear of it.
function sheet(panel) {
  const covers = panel.classList.contains("open") && getComputedStyle(panel).position === "fixed";
  if (covers) panel.dataset.sheet = "yes";
  else delete panel.dataset.sheet;
  document.documentElement.style.setProperty("--sheet", covers ? `${panel.offsetHeight}px` : "0px");
}

// The token that completes a character, for a token that holds a part of it.
const character = (token) => token.rollout.tokens.slice(token.position).find((t) => !t.partial) || token;

// Which bytes a token holds, and the other tokens of the same character.
function bytesOf(token) {
  const whole = character(token);
  const together = view.tokens.get(view.spans.get(whole)) || [token];
  return el(
    "div", { class: "bytes" },
    el("p", { class: "note" }, together.length > 1
      ? `One of ${together.length} tokens whose bytes make up `
      : "Bytes that complete no character: ", together.length > 1 ? el("code", {}, visible(whole.text)) : null, together.length > 1 ? "; select one:" : null),
    el("div", { class: "chips" }, together.map((t) => el("button", { type: "button", class: "chip", "aria-pressed": String(t === token), onclick: () => pick(t) }, t.bytes || visible(t.text)))),
  );
}

// The student's probability of the token before, during and after training; at later steps if scored again.
function history(token) {
  const rows = [
    ["before training (step 0)", token.before],
    [`when generated (step ${token.rollout.step})`, token.student.logprob],
    ["after training", token.after],
  ].filter(([, v]) => v !== null && v !== undefined);
  const again = [[0, token.before ?? token.student.logprob], ...token.again];
  return el(
    "div", { class: "fate" },
    el("h3", {}, "Student's probability"),
    el("table", { class: "values" }, el("tbody", {}, rows.map(([name, v]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, chanceBar(Math.exp(v))))))),
    again.length > 1
      ? el("figure", { class: "course" }, spark(again.map((a) => a[0]), again.map((a) => Math.exp(a[1])), `probability of this token at steps ${again.map((a) => a[0]).join(", ")}: ${again.map((a) => chance(a[1])).join(", ")}`, 1),
        el("figcaption", {}, `step ${again[0][0]} to ${again[again.length - 1][0]}, 0 to 100%`))
      : null,
  );
}

function distribution(model, token) {
  const own = token.bytes ? shownBytes(token) : word(token.text);
  const rows = model.top ? model.top.slice() : [];
  const listed = rows.some((r) => word(r.text) === own);
  const line = (text, logprob, mine) =>
    el("tr", { class: mine ? "mine" : null },
      el("th", { scope: "row" }, el("code", {}, word(text)), mine ? el("span", { class: "hidden" }, " (the student's token)") : null),
      el("td", {}, chanceBar(Math.exp(logprob))));
  return el(
    "div", { class: "column" },
    el("h4", {}, model.name, model.term && model.term.role === "anchor" ? el("span", { class: "note" }, " anchor") : null),
    rows.length
      ? el("table", { class: "values likely" }, el("tbody", {},
        rows.map((r) => line(r.text, r.logprob, word(r.text) === own)),
        listed ? null : line(own, model.logprob, true)))
      : el("table", { class: "values likely" }, el("tbody", {}, line(own, model.logprob, true))),
    model.entropy === null || model.entropy === undefined ? null : el("p", { class: "note" }, `entropy ${number(model.entropy)} nats`),
  );
}

// A token's bytes as report/texts.py shows a token alone: whole characters, and the other bytes in hexadecimal.
function shownBytes(token) {
  const raw = Uint8Array.from(token.bytes.split(" "), (byte) => parseInt(byte, 16));
  const found = [];
  for (let i = 0; i < raw.length;) {
    const size = raw[i] < 0x80 ? 1 : raw[i] >= 0xf0 ? 4 : raw[i] >= 0xe0 ? 3 : 2;
    try {
      found.push(new TextDecoder("utf-8", { fatal: true }).decode(raw.slice(i, i + size)));
      i += size;
    } catch {
      const hex = raw[i].toString(16).toUpperCase().padStart(2, "0");
      const open = found.length && found[found.length - 1].startsWith("⟨");
      if (open) found[found.length - 1] = `${found[found.length - 1].slice(0, -1)} ${hex}⟩`;
      else found.push(`⟨${hex}⟩`);
      i += 1;
    }
  }
  return word(found.join(""));
}

function termTable(term, token) {
  const teacher = term.teachers[0];
  const rows = [
    [term.label, `${number(term.loss)}`],
    ["weight of the position", number(term.weight)],
    ["weight of the term", number(term.factor)],
    [`share of the batch's loss (1 of ${term.count})`, number((term.factor * term.weight * term.loss) / Math.max(term.count, 1))],
    term.advantage === null ? null : ["advantage", number(term.advantage)],
    teacher ? ["teacher − student logprob", number(teacher.logprob - token.student.logprob)] : null,
    teacher && token.drawn !== null ? ["teacher − rollout logprob", number(teacher.logprob - token.drawn)] : null,
  ].filter(Boolean);
  return el(
    "div", { class: "term" },
    el("h3", {}, "In the loss: ", el("code", {}, term.name)),
    el("table", { class: "values" }, el("tbody", {}, rows.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, value))))),
  );
}
