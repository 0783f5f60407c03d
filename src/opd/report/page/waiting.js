// The page before a run has begun. Any change loads it again; once all have begun it is the runs' page.

const { live, waiting } = JSON.parse($("data").textContent);

fill(
  $("short"),
  el("h1", { id: "short-title" }, waiting.length > 1 ? `Waiting for ${waiting.length} runs to begin` : "Waiting for a run to begin"),
  el("p", { class: "lede" }, "This page becomes the page of the run or pipeline when it begins."),
  el("ul", { class: "waited" }, waiting.map(({ folder, exists }) =>
    el("li", {}, el("code", {}, folder), el("span", { class: "note" }, exists ? "no run has begun in it" : "the folder does not exist yet")))),
  el("p", { class: "note" }, "Nothing happens? Compare the folder with ", el("code", {}, "out"), " of the run file."),
);
startTheme(() => {});
document.addEventListener("keydown", (event) => { if (event.key === "t" && !event.ctrlKey && !event.metaKey && !event.altKey) toggleTheme(); });
poll(live, () => "waiting", () => location.reload());
