// The student's images at each evaluation, the teacher's from the same noise, and the loss along the trajectory.

const SMALL = 128; // pixels; smaller images are enlarged without smoothing
const view = { at: null }; // number of the evaluation; null is the last

function buildImages() {
  const { samples } = RUN();
  $("images").hidden = !samples.steps.length;
  if (!samples.steps.length) return;
  const last = samples.steps.length - 1;
  fill(
    $("images"),
    el("h2", { id: "images-title" }, "Sample images"),
    el("div", { class: "walk", role: "group", "aria-label": "Evaluation" },
      el("button", { type: "button", class: "chip", id: "earlier", "aria-label": "Evaluation before", title: "[", onclick: () => walk(-1) }, "‹"),
      el("input", { type: "range", id: "step", min: 0, max: last, step: 1, "aria-label": "Evaluation", disabled: !last, oninput: (e) => look(Number(e.target.value)) }),
      el("button", { type: "button", class: "chip", id: "later", "aria-label": "Evaluation after", title: "]", onclick: () => walk(1) }, "›"),
      el("output", { id: "now", for: "step" })),
    el("ul", { class: "drawn" }, samples.prompts.map((prompt, i) => column(prompt, i))),
    last ? atOnce(samples) : null,
    samples.shown.length ? shownToTeacher(samples) : null,
    el("div", { id: "states" }),
  );
  look(view.at === null ? last : Math.min(view.at, last));
}

// One prompt: the student's image, and the teacher's if it is a model of its own.
function column(prompt, i) {
  const { samples } = RUN();
  const [drawn, taught] = [image("", ""), samples.teacher.length ? image(samples.teacher[i], `The teacher's image of “${prompt.text}”`) : null];
  drawn.dataset.prompt = i;
  return el("li", {}, el("figure", {},
    el("div", { class: "pair" },
      el("div", {}, el("span", { class: "whose" }, "student"), drawn),
      taught ? el("div", { class: "of-teacher" }, el("span", { class: "whose" }, "teacher"), taught) : null),
    caption(prompt)));
}

const caption = (prompt) =>
  el("figcaption", {}, el("span", { class: "prompt-text" }, prompt.text), prompt.domain === "default" ? null : el("span", { class: "fact" }, prompt.domain));

function image(source, alt) {
  return el("img", { src: source || null, alt, draggable: "false", onload: (e) => e.target.classList.toggle("small", e.target.naturalWidth <= SMALL) });
}

function shownToTeacher(samples) {
  return [
    el("h3", { class: "above" }, "Images that the teacher sees"),
    el("p", { class: "note" }, "Images of training prompts. The teacher sees them beside the prompt; the student does not."),
    el("ul", { class: "drawn" }, samples.references.map((prompt, i) =>
      el("li", {}, el("figure", {}, image(samples.shown[i], `The teacher sees it with “${prompt.text}”`), caption(prompt))))),
  ];
}

// Every evaluation as a row, the teacher below; built when the reader opens it.
function atOnce(samples) {
  const rows = samples.steps.map(({ step, images }) => [`step ${step}`, images]);
  if (samples.teacher.length) rows.push(["teacher", samples.teacher]);
  const draw = (event) => {
    const host = event.target.querySelector(".scroll-x");
    if (host.firstChild) return;
    fill(host, el("table", { class: "at-once" },
      el("thead", {}, el("tr", {}, el("td", {}), samples.prompts.map((p) => el("th", { scope: "col", title: p.text }, short(p.text, 40))))),
      el("tbody", {}, rows.map(([name, images]) => el("tr", {}, el("th", { scope: "row" }, name),
        images.map((source, i) => el("td", {}, image(source, `“${samples.prompts[i].text}”, ${name}`))))))));
  };
  return el("details", { class: "values-of", ontoggle: draw }, el("summary", {}, "All evaluations"),
    el("div", { class: "scroll-x", tabindex: "0", role: "group", "aria-label": "All evaluations; scrollable" }));
}

// Show one evaluation.
function look(at) {
  const { samples } = RUN();
  const last = samples.steps.length - 1;
  view.at = at === last ? null : at;
  const { step, images } = samples.steps[at];
  for (const image of $("images").querySelectorAll("img[data-prompt]")) {
    const i = Number(image.dataset.prompt);
    image.src = images[i];
    image.alt = `The student's image of “${samples.prompts[i].text}” after ${step} steps`;
  }
  const name = step === 0 ? "before training" : `step ${step}`;
  $("step").value = at;
  $("step").setAttribute("aria-valuetext", name);
  $("earlier").disabled = at === 0;
  $("later").disabled = at === last;
  fill($("now"), el("b", {}, name), el("span", {}, `${at + 1} of ${last + 1}`), figuresAt(step));
  differences(step);
}

function walk(by) {
  const { samples } = RUN();
  const at = (view.at === null ? samples.steps.length - 1 : view.at) + by;
  if (at >= 0 && at < samples.steps.length) look(at);
}

function figuresAt(step) {
  const { eval: measured } = RUN();
  const row = measured.step.lastIndexOf(step);
  return FIRST.filter((name) => row >= 0 && measured.columns[name] && measured.columns[name][row] !== null)
    .map((name) => el("span", {}, ` ${label(name).toLowerCase()} ${metricText(name, measured.columns[name][row])}`));
}

// --- the loss along the trajectory ----------------------------------------------------------------------------------

// Bars of the loss at the last recorded step up to the one shown. A loss falls by orders of magnitude, so each recorded
// step has its own scale: the bars show how the loss is spread over the states, and the key shows its mean.
function differences(step) {
  const lines = RUN().states.filter((line) => line.loss.distill);
  if (!lines.length) return;
  const now = lines.findLast((line) => line.step <= step) || lines[0];
  const first = lines[0];
  const values = now.loss.distill;
  const part = (line, k) => (Math.max(line.loss.distill[k] ?? 0, 0) / Math.max(...line.loss.distill, 1e-12)).toFixed(4);
  const mean = (line) => { const all = line.loss.distill.filter((v) => v !== null); return all.reduce((a, b) => a + b, 0) / all.length; };
  const keys = now === first ? [["is", now]] : [["is", now], ["was", first]];
  const few = values.length <= 16;
  const summary = `Mean loss by state at step ${now.step}: ${values.map((v, k) => `${k + 1}: ${v === null ? "none" : number(v)}`).join(", ")}`;
  fill(
    $("states"),
    el("figure", { class: "card along" },
      el("figcaption", {}, el("h3", {}, "Loss along the trajectory"),
        el("p", { class: "note" }, `Mean loss (${RUN().distance}) at each state that the student visits, from noise to image, on the training batch after ${now.step} steps${now === first ? "." : `; behind it the loss at step ${first.step}. Each is scaled to its own maximum.`}`)),
      el("div", { class: "along-room", "--n": values.length }, el("div", { class: `bars${few ? "" : " many"}`, role: "img", "aria-label": summary }, values.map((v, k) =>
        el("div", { class: "state", title: `state ${k + 1}: ${v === null ? "not trained on" : number(v)}` },
          now === first ? null : el("span", { class: "was", "--v": part(first, k) }), el("span", { class: "is", "--v": part(now, k) }),
          few ? el("span", { class: "value", "--v": part(now, k) }, v === null ? "–" : number(v)) : null))),
      el("div", { class: "ends", "aria-hidden": "true" }, el("span", {}, "noise"), el("span", {}, "image"))),
      el("div", { class: "keys" }, keys.map(([kind, line]) =>
        el("span", { class: "key-item" }, el("span", { class: `block-key ${kind}` }), `step ${line.step}, mean `, el("b", {}, number(mean(line)))))),
      el("details", { class: "values-of" }, el("summary", {}, "values"),
        el("div", { class: "scroll-x" }, el("table", { class: "plain" },
          el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "step"), values.map((_, k) => el("th", { scope: "col" }, `state ${k + 1}`)))),
          el("tbody", {}, lines.map((line) => el("tr", {}, el("th", { scope: "row" }, line.step), line.loss.distill.map((v) => el("td", {}, v === null ? "–" : number(v))))))))),
    ),
  );
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const act = { "[": () => walk(-1), "]": () => walk(1), t: turn }[event.key];
  if (!act || ("[]".includes(event.key) && !RUN().samples.steps.length)) return;
  event.preventDefault();
  act();
}

load(JSON.parse($("data").textContent));
startTheme(buildCurves);
document.addEventListener("keydown", onKey);
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; buildCurves(); } });
build();
if (DATA.live) follow();
