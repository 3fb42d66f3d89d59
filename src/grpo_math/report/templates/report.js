"use strict";
const $ = (id) => document.getElementById(id);
const root = document.documentElement;
const PAGE = 20; // cards at a time

// Data: base64 of gzip.
async function inflate(element) {
  const bytes = Uint8Array.from(atob(element.textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

// An element with its text and children; all text of a run goes through here and is never read as HTML.
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

function remember(store, name, value) {
  try {
    store.setItem(name, value);
  } catch {} // a browser may refuse
}

function recall(store, name) {
  try {
    return store.getItem(name);
  } catch {
    return null;
  }
}

// The text of a button's element to the clipboard; file:// may have no navigator.clipboard.
async function copy(button) {
  const text = $(button.dataset.copy).textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", { value: text, className: "aside" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const before = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = before), 1500);
}
for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button));

// Mathematics: Temml makes MathML of what stands between delimiters, of bare \boxed{...} and of environments. As in
// Pandoc a dollar opens before and closes behind a letter or sign, and no digit follows: "$5 and $7" stays an amount.
// No formula is longer than 4,000 characters, or a text of many that never end would be read again from each. What
// could hide text, its own or a neighbour's, stays as it was written.
const INNER = String.raw`(?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*`;
const FORMULA = new RegExp([
  String.raw`\\\[(?<bracket>[^]{1,4000}?)\\\]`,
  String.raw`\\\((?<round>[^]{1,4000}?)\\\)`,
  String.raw`(?<!\\)\$\$(?<display>[^$]{1,4000})\$\$`,
  String.raw`(?<![\\\w$])\$(?<dollar>(?![\s$])(?:\\[^]|[^$\\\n]|\n(?!\s*\n)){1,4000}?(?<!\s))\$(?![\d$])`,
  String.raw`(?<whole>\\begin\{(?<name>(?:align|aligned|gather|equation|cases|[pbv]?matrix)\*?)\}[^]{1,4000}?\\end\{\k<name>\}|\\boxed\{${INNER}\})`,
].join("|"), "g");
const TEMML = { throwOnError: true, trust: false, maxSize: [20, 200], maxExpand: 200 };
const FORMULAS = 200; // of one text: the loops of a collapsed policy stay readable, and the page quick
const HIDES = /\\(?:[a-z]*color(?:box)?|[hv]?phantom|smash|rule|[clr]lap|[hm]?(?:kern|skip|space)|vspace|raise(?:box)?|lower|bbox)(?![a-zA-Z])/;
const PROSE = /[a-z]{2,} [a-z]{2,}/i;
const known = new Map(); // formula: its MathML, or null where it cannot be read

function formula(source, displayMode = false) {
  if (HIDES.test(source)) return null;
  const key = (displayMode ? "d" : "i") + source;
  if (!known.has(key)) {
    const math = make("span", { className: "math" });
    try {
      temml.render(source, math, { ...TEMML, displayMode });
      known.set(key, math);
    } catch {
      known.set(key, null);
    }
  }
  const math = known.get(key)?.cloneNode(true);
  if (math) math.title = source;
  return math;
}

// A text as nodes: its formulas as MathML, all else, and what Temml refuses, as text.
function written(text) {
  if (!$("rendered")?.checked) return [text];
  const nodes = [];
  let end = 0;
  for (const found of text.matchAll(FORMULA)) {
    const { bracket, round, display, dollar, whole, name } = found.groups;
    const math = formula(bracket ?? round ?? display ?? dollar ?? whole, (bracket ?? display ?? name) !== undefined);
    if (!math) continue;
    if (nodes.length === 2 * FORMULAS) break;
    nodes.push(text.slice(end, found.index), math);
    end = found.index + found[0].length;
  }
  return [...nodes, text.slice(end)];
}

// A gold or an answer: a formula without delimiters where it has LaTeX's signs and no words outside of \text{}.
function value(text) {
  const bare = /[\\^_]/.test(text) && !text.includes("$") && !PROSE.test(text.replace(/\\(?:text|mbox)\w*\{[^{}]*\}/g, ""));
  const math = $("rendered")?.checked && bare ? formula(text) : null;
  return math ? [math] : written(text);
}

// Theme: the system's, until somebody chooses.
const systemDark = matchMedia("(prefers-color-scheme: dark)");
function setTheme(theme) {
  root.dataset.theme = theme;
  for (const chart of document.querySelectorAll(".js-plotly-plot")) Plotly.relayout(chart, colors());
}
setTheme(recall(localStorage, "theme") || (systemDark.matches ? "dark" : "light"));
systemDark.addEventListener("change", () => recall(localStorage, "theme") || setTheme(systemDark.matches ? "dark" : "light"));
$("theme").addEventListener("click", () => {
  setTheme(root.dataset.theme === "dark" ? "light" : "dark");
  remember(localStorage, "theme", root.dataset.theme);
});

function colors() {
  const style = getComputedStyle(root);
  const [text, quiet, panel, line, grid] = ["text", "quiet", "panel", "line", "grid"].map((name) => style.getPropertyValue(`--${name}`).trim());
  const axis = (name) => ({ [`${name}.gridcolor`]: grid, [`${name}.linecolor`]: line, [`${name}.zerolinecolor`]: line });
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", "font.color": quiet,
    "hoverlabel.bgcolor": panel, "hoverlabel.bordercolor": line, "hoverlabel.font.color": text,
    "modebar.bgcolor": panel, "modebar.color": quiet, "modebar.activecolor": text,
    ...axis("xaxis"), ...axis("yaxis"),
  };
}

async function load(library) {
  document.head.append(make("script", { textContent: await inflate($(library)) }));
}

async function drawCharts() {
  await load("plotly");
  const figures = JSON.parse(await inflate($("figures")));
  const charts = [...document.querySelectorAll(".chart")];
  const touch = matchMedia("(pointer: coarse)").matches; // there, a drag scrolls the page
  const hovers = matchMedia("(hover: hover)").matches; // elsewhere Plotly's buttons would always cover the legend
  const config = {
    responsive: true, displaylogo: false, displayModeBar: hovers && "hover",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };
  await Promise.all(charts.map(async (chart, place) => {
    const { data, layout } = figures[place];
    const font = { family: getComputedStyle(document.body).fontFamily, size: 11 };
    await Plotly.newPlot(chart, data, { ...layout, font, dragmode: touch ? false : "zoom" }, config);
    await Plotly.relayout(chart, colors());
    chart.on("plotly_relayout", (change) => zoomOthers(charts, chart, change));
  }));
}

// All charts show the same steps.
function zoomOthers(charts, source, change) {
  if (!("xaxis.range[0]" in change || "xaxis.range" in change || "xaxis.autorange" in change)) return;
  const range = source._fullLayout.xaxis.range.slice();
  for (const chart of charts) {
    const [low, high] = chart._fullLayout.xaxis.range;
    if (chart !== source && (low !== range[0] || high !== range[1])) Plotly.relayout(chart, { "xaxis.range": range });
  }
}

// Completions: every row knows its step, and its question all of its rows.
const steps = [];
const byQuestion = new Map();
const filters = {
  all: () => true,
  wrong: (row) => row.correct === false,
  right: (row) => row.correct === true,
  truncated: (row) => row.truncated === true,
  "no-answer": (row) => row.answer === undefined,
  paid: (row) => row.correct === false && row.reward !== undefined,
};
const MOVES = { changed: [1, -1], gained: [1], lost: [-1] };

async function readSteps() {
  for (const element of document.querySelectorAll("script.step")) {
    const { run, name, kind, step, rows, shown } = element.dataset;
    const moment = kind === "eval" ? `evaluation at step ${step}` : `step ${step}`;
    const cut = rows === shown ? "" : ` (first ${shown} of ${rows})`;
    const one = { run, kind, step: Number(step), label: [name, moment].filter(Boolean).join(", ") + cut };
    one.rows = JSON.parse(await inflate(element)).map((row) => ({ ...row, at: one }));
    steps.push(one);
    for (const row of one.rows) append(byQuestion, row.question, row);
  }
}

function append(map, key, value) {
  map.has(key) ? map.get(key).push(value) : map.set(key, [value]);
}

function groups(rows, key = (row) => row.question) {
  const found = new Map();
  for (const row of rows) append(found, key(row), row);
  return [...found.values()];
}

// Problems that got better (+1) or worse (-1) from a run's first evaluation to its last, with both completions.
function moved(run, direction) {
  const evaluations = steps.filter((one) => one.run === run && one.kind === "eval");
  if (evaluations.length < 2) return [];
  const [first, last] = [evaluations[0], evaluations.at(-1)];
  const share = (rows) => rows.filter((row) => row.correct === true).length / rows.length;
  const found = groups([...first.rows, ...last.rows], (row) => JSON.stringify([row.dataset, row.problem, row.question])).filter((rows) => {
    const [before, after] = [first, last].map((one) => rows.filter((row) => row.at === one));
    return before.length && after.length && (share(after) - share(before)) * direction > 0;
  });
  return found.map((rows) => Object.assign(rows, { direction }));
}

// The cards that the controls ask for, as lists of rows.
function chosen() {
  const one = steps[$("step").value]; // none: all steps
  const filter = $("filter").value;
  const words = $("search").value.toLowerCase();
  const found = (row) => [row.question, row.completion, row.answer, row.gold, row.solution].some((text) => String(text ?? "").toLowerCase().includes(words));
  const run = (one ?? steps[0]).run;
  if (filter in MOVES) return MOVES[filter].flatMap((direction) => moved(run, direction)).filter((rows) => rows.some(found));
  const rows = (one ? one.rows : [...byQuestion.values()].flat()).filter(filters[filter]).filter(found);
  return filter === "paid" ? rows.sort((a, b) => b.reward - a.reward).map((row) => [row]) : groups(rows);
}

let most = PAGE;
function showCards() {
  const cards = chosen();
  const rows = cards.flat();
  const count = (number, what) => `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;
  const unpaid = $("filter").value === "paid" && !rows.length ? ": evaluations have no rewards, choose a training step" : "";
  $("count").textContent = `${count(rows.length, "completion")} of ${count(new Set(rows.map((row) => row.question)).size, "problem")}${unpaid}`;
  const shown = new Map(cards.slice(0, most).map((one) => [one, card(one, true)]));
  const nodes = [...shown.values()];
  for (const direction of $("filter").value === "changed" ? MOVES.changed : []) {
    const moves = cards.filter((one) => one.direction === direction);
    const text = `${moves.length.toLocaleString("en")} ${direction > 0 ? "wrong → right" : "right → wrong"}`;
    const first = nodes.indexOf(shown.get(moves[0]));
    if (first >= 0) nodes.splice(first, 0, make("h3", { textContent: text }));
  }
  $("cards").replaceChildren(...nodes);
  $("more").hidden = cards.length <= most;
}

function card(rows, withMore) {
  const [{ question, prompt, gold, solution }] = rows;
  const everywhere = byQuestion.get(question);
  const right = rows.filter((row) => row.correct === true).length;
  const more = withMore && everywhere.length > rows.length;
  const across = $("step").value === "all" || rows.some((row) => row.at !== rows[0].at); // say which step
  const meta = make("div", { className: "meta" }, make("span", {}, "gold ", make("b", {}, ...value(gold ?? solution ?? ""))),
    rows.length > 1 ? make("span", { textContent: `${right} of ${rows.length} right` }) : null,
    more ? make("button", { type: "button", className: "link open", textContent: `this problem at all steps (${everywhere.length})`, onclick: () => showQuestion(question) }) : null,
    prompt ? make("details", {}, make("summary", { textContent: "prompt" }), make("pre", { textContent: prompt })) : null);
  const same = groups(rows, (row) => JSON.stringify([steps.indexOf(row.at), row.completion, row.correct, row.answer, row.reward]));
  const attempts = make("div", { className: "attempts" }, ...same.map((rows) => attempt(rows[0], across, rows.length)));
  return make("article", { className: "card" }, make("p", {}, ...written(question)), meta, attempts);
}

// A completion, and how many are like it.
function attempt(row, withStep, count) {
  const verdict = { true: "✓ right", false: "✗ wrong" }[row.correct] ?? "? not graded";
  const number = (value) => String(Number(value.toPrecision(4)));
  const rewards = Object.keys(row).filter((key) => key.startsWith("rewards/")).map((key) => `${key.slice(8)} ${row[key]}`);
  const facts = [
    withStep && row.at.label,
    ...(row.answer === undefined ? ["no answer"] : [["answer ", ...value(row.answer)], row.how && `by ${row.how}`]),
    row.reward !== undefined && `reward ${number(row.reward)}` + (rewards.length ? ` (${rewards.join(", ")})` : ""),
    row.advantage !== undefined && `advantage ${row.advantage > 0 ? "+" : ""}${number(row.advantage)}`,
    row.length !== undefined && `${row.length} tokens`,
    row.truncated && "truncated",
  ];
  const times = count > 1 ? make("b", { className: "times", textContent: ` × ${count}`, title: `${count} identical completions` }) : null;
  const header = make("header", {}, make("b", { textContent: verdict }), times, ...facts.filter(Boolean).flatMap((fact) => [" · ", fact].flat()));
  const kind = { true: "right", false: "wrong" }[row.correct] ?? "";
  const text = make("div", { className: "completion", tabIndex: 0 }, ...written(row.completion));
  return make("div", { className: `attempt ${kind}` }, header, text);
}

function showQuestion(question) {
  const rows = [...byQuestion.get(question)].sort((a, b) => a.at.run - b.at.run || a.at.step - b.at.step);
  const close = make("button", { type: "button", className: "close", textContent: "Close", onclick: () => $("question").close() });
  $("question").replaceChildren(close, card(rows, false));
  $("question").showModal();
}

function fillControls() {
  const option = (one, place) => make("option", { value: place, textContent: one.label });
  const all = make("option", { value: "all", textContent: "all steps, by problem" });
  $("step").replaceChildren(...steps.map(option).reverse(), all);
  const again = () => { most = PAGE; showCards(); };
  for (const id of ["filter", "search"]) $(id).addEventListener("input", again);
  $("step").addEventListener("input", () => {
    if ($("filter").value in MOVES) $("filter").value = "all"; // a change belongs to no single step
    again();
  });
  $("rendered").checked = recall(localStorage, "mathematics") !== "source";
  $("rendered").addEventListener("input", () => {
    remember(localStorage, "mathematics", $("rendered").checked ? "rendered" : "source");
    showCards();
  });
  $("filter").value = MOVES.changed.some((direction) => moved(steps.at(-1).run, direction).length) ? "changed" : "all";
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("more").addEventListener("click", () => { most += PAGE; showCards(); });
}

// A run that goes on: load the page again, and stay where the reader was.
const reload = Number(document.body.dataset.reload);

function restore() {
  const kept = JSON.parse(recall(sessionStorage, location.pathname) ?? "null");
  remember(sessionStorage, location.pathname, "null"); // it was for this load: the run may have ended since
  if (!kept) return;
  if (steps.length) {
    const place = steps.findIndex((one) => one.label === kept.step);
    $("step").value = kept.step === "all" ? "all" : kept.step && place >= 0 ? place : $("step").value;
    [$("filter").value, $("search").value, most] = [kept.filter, kept.search, kept.most];
    showCards();
  }
  scrollTo(0, kept.scroll);
}

function loadAgain() {
  if ($("question").open || document.activeElement === $("search") || String(getSelection())) return;
  const step = steps.length && (steps[$("step").value]?.label ?? "all");
  const kept = { step, filter: $("filter")?.value, search: $("search")?.value, most, scroll: scrollY };
  remember(sessionStorage, location.pathname, JSON.stringify(kept));
  location.reload();
}

async function start() {
  if (reload) history.scrollRestoration = "manual";
  await drawCharts();
  await readSteps();
  if (steps.length) {
    await load("temml");
    fillControls();
    showCards();
  }
  restore();
  root.dataset.ready = "true";
}

start().catch((error) => {
  console.error(error);
  $("curves").append(make("p", { textContent: `This browser could not draw the page (${error.message}): use a browser from the last three years.` }));
}).finally(() => reload && setInterval(loadAgain, reload * 1000));
