// The page of a denoising run: summary, curves and record. The sample images are in images.js.

const DATA = { runs: [], live: false };
const RUN = () => DATA.runs[0];

function load(tree) {
  DATA.live = tree.live;
  DATA.runs = tree.runs.map((run, index) => ({ ...run, index }));
}

const MEANINGS = {
  accuracy: "images that show their prompt", frechet: "Fréchet distance to real images",
  distance: "the loss's distance to the teacher, held-out prompts",
  gap_recovery: "share of the teacher's initial lead that the student has closed",
};
const FIRST = ["accuracy", "frechet", "distance"];
const DENOISING_CHARTS = [
  ["Accuracy", "Share of held-out images that show their prompt, at each evaluation.",
    [["eval", "accuracy", "held out"], ["eval", /^accuracy\//, ""], ["eval", "teacher_accuracy", "teacher", true]], { share: true }],
  ["Reward", "Mean reward of the training batch at each step.", [["train", "reward", "training batch"], ["train", /^reward\//, ""]], {}],
  ["Fréchet distance", "Distance between the set of images and real images; lower is better.",
    [["eval", "frechet", "student"], ["eval", "teacher_frechet", "teacher", true]], { low: 0 }],
  ["Distance to the teacher", "The loss on held-out prompts, averaged over the states of trajectories.", [["eval", "distance", "distance"]], { low: 0 }],
  ["Loss", "The total loss, and its terms.",
    [["train", "loss", "loss"], ["train", /^(distill|anchor|policy_gradient|reward_gradient)$/, ""]], {}],
  ["Spread", "Standard deviation of the clean latents across a batch; it falls to 0 if the student generates one image for every prompt.", [["train", "spread", "spread"]], { low: 0 }],
  ["Gradient norm", "Before clipping.", [["train", "grad_norm", "norm"]], { low: 0 }],
  ["Learning rate", "", [["train", "lr", "lr"]], { low: 0 }],
  ["Time per step", "Seconds per step, stacked.", [["train", "rollout_s", "rollouts"], ["train", "teacher_s", "teacher"], ["train", "update_s", "update"]], { stacked: true, low: 0 }],
  ["Throughput", "Images per second of a step.", [["train", "images_per_s", "images/s"]], { low: 0 }],
];

const known = (column) => Boolean(column) && column.some((v) => v !== null);

function summary() {
  const run = RUN();
  fill($("brand"), run.name);
  fill(
    $("short"),
    el("h1", { id: "short-title" }, run.title || run.name),
    el("p", { class: "lede" }, sentence(run)),
    run.summary ? el("p", { class: "lede" }, run.summary) : null,
    alarms(run),
    el("div", { class: "two" }, measured(run), did(run)),
  );
}

function sentence(run) {
  const bold = (text) => el("b", {}, text);
  const parts = [];
  const steps = run.train.step.length ? run.train.step[run.train.step.length - 1] : 0;
  const name = FIRST.find((n) => known(run.eval.columns[n]));
  if (name) {
    const { first, last } = course(run, name);
    const what = { accuracy: "Accuracy on held-out prompts", frechet: "The Fréchet distance", distance: "The distance to the teacher on held-out prompts" }[name];
    parts.push(`${what} went `, bold(`from ${metricText(name, first.value)} to ${metricText(name, last.value)}`), ` in ${steps} steps`);
  } else parts.push(bold(`${steps} steps`));
  parts.push(run.seconds ? `, ${duration(run.seconds)}. ` : ". ");
  if (run.stopped_by) parts.push(bold(`Stopped by the guard “${run.stopped_by}”.`));
  else parts.push(run.finished ? "The run is finished." : bold("The run is not finished."));
  return [...parts, " ", ...errorsFound(run, false), bestWeights(run)];
}

// One row per metric: before, after, best, and the teacher's.
function measured(run) {
  const { step, columns } = run.eval;
  const all = Object.keys(columns).filter((name) => known(columns[name]) && !name.startsWith("teacher_"));
  const order = [...FIRST, "gap_recovery"];
  const rank = (name) => { const at = order.indexOf(name.split("/")[0]); return at < 0 ? order.length : at; };
  const rows = all.sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
  if (!rows.length) return card2("Before and after", el("p", { class: "note" }, "Nothing was measured: the run file names no held-out prompts, or no task that judges images."));
  const heads = ["before", "after", "best", "teacher"];
  return card2("Before and after",
    el("div", { class: "scroll-x" }, el("table", { class: "plain before-after" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "metric"), heads.map((h) => el("th", { scope: "col" }, h)), el("td", {}))),
      el("tbody", {}, rows.map((name) => {
        const { first, last, best } = course(run, name);
        const teacher = (columns[`teacher_${name}`] || []).findLast((v) => v !== null);
        return el("tr", {},
          el("th", { scope: "row", title: MEANINGS[name] }, label(name)),
          el("td", {}, metricText(name, first.value)), el("td", {}, el("b", {}, metricText(name, last.value))),
          el("td", { title: `step ${best.step}` }, metricText(name, best.value)), el("td", {}, metricText(name, teacher)),
          el("td", { class: "course-cell" }, spark(step, columns[name], `${label(name)} over the run`)));
      })))),
    el("p", { class: "note" }, rows.filter((n) => MEANINGS[n]).map((n) => `${label(n)}: ${MEANINGS[n]}`).join(". "), "."));
}

const label = (name) => (name === "frechet" ? "Fréchet" : name.replace(/_/g, " ").replace("/", ": "));

const card2 = (title, ...content) => el("section", { class: "card", "aria-label": title }, el("h3", {}, title), content);

function did(run) {
  return card2("What the run did",
    el("dl", { class: "did" }, run.facts.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    run.source ? el("p", { class: "note" }, `Method: ${run.source}`) : null);
}

const buildCurves = () => drawCurves({ first: null, charts: DENOISING_CHARTS, group: null });

function record() {
  const run = RUN();
  const missing = run.left_out ? ` To keep this file small, ${run.left_out} are left out; the run's folder has them, in samples.` : "";
  fill(
    $("record"),
    el("h2", { id: "record-title" }, "Record"),
    el("h3", {}, "Events"),
    run.events.length
      ? el("ol", { class: "events" }, run.events.map((e) => el("li", {}, el("span", { class: "fact" }, `step ${e.step}`), el("b", {}, e.kind.replace(/_/g, " ")), " ", e.text)))
      : el("p", { class: "note" }, "Nothing."),
    el("details", {}, el("summary", {}, "Run file"), el("pre", {}, JSON.stringify(run.config, null, 2))),
    el("p", { class: "note" }, `Every image of a prompt starts from the same noise, at every evaluation${run.samples.teacher.length ? " and for the teacher" : ""}.${missing}`),
  );
}

const turn = () => { toggleTheme(); buildCurves(); };

function build() {
  summary();
  buildImages();
  buildCurves();
  record();
}

// Live mode: a reader at the last evaluation moves on to the next one.
function follow() {
  poll(DATA.live, () => (RUN().finished ? "finished" : "live"), (news) => {
    load(news);
    const focused = document.activeElement.id;
    build();
    if (focused && $(focused)) $(focused).focus({ preventScroll: true });
  });
}
