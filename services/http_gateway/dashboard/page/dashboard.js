"use strict";
// Fills the page from one JSON snapshot a second. What is shown where is said by attributes:
//   data-field    path of the value that becomes the element's text, in the form data-format
//   data-list     path of an array; each item fills a copy of the template inside, by data-key
//   data-mark     path of a value that becomes the attribute of the same name, for the stylesheet
//   data-progress path of the value of a <progress>
//   data-show...  path of a value that decides whether the element is there at all
// Elements stay as long as what they show, so that focus and selection survive an update.

const SAMPLES_MAX = 600;
const NOTHING = "\u2013";
const number = (digits) => new Intl.NumberFormat("en-US", {
  minimumFractionDigits: digits, maximumFractionDigits: digits,
});
const WHOLE = number(0);
const TENTHS = number(1);
const CENTS = number(2);

const FORMATS = {
  text: String,
  words: (value) => String(value).replaceAll("_", " "),
  list: (value) => value.join(", ") || "nothing",
  integer: (value) => WHOLE.format(value),
  decimal: (value) => CENTS.format(value),
  percent: (value) => `${TENTHS.format(value)} %`,
  ms: (value) => `${value < 100 ? TENTHS.format(value) : WHOLE.format(value)} ms`,
  seconds: (value) => `${WHOLE.format(value)} s`,
  usd: (value) => `$${value < 1 ? number(4).format(value) : CENTS.format(value)}`,
  bytes: (value) => {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
    return `${unit ? TENTHS.format(value) : WHOLE.format(value)} ${units[unit]}`;
  },
  deadline: (value) => {
    const span = duration(Math.abs(value));
    return value < 0 ? `${span} ago` : `in ${span}`;
  },
};

const state = { snapshot: null, samples: [], isPaused: false, known: null };
// For tests and for the curious: what the page shows is in here.
window.tideserve = state;

function duration(seconds) {
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

function at(value, path) {
  return path.split(".").reduce((part, name) => (part == null ? part : part[name]), value);
}

function isEmpty(value) {
  return value == null || value === false || value === "" || value === 0
    || (Array.isArray(value) && value.length === 0);
}

// ---------------------------------------------------------------- values into elements

function fill(element, value) {
  const wanted = element.dataset;
  if (wanted.field) fillText(element, at(value, wanted.field));
  if (wanted.mark) element.setAttribute("data-mark", mark(element, value));
  if (wanted.progress) element.value = at(value, wanted.progress);
  if (wanted.show) element.hidden = isEmpty(at(value, wanted.show));
  if (wanted.showNot) element.hidden = !isEmpty(at(value, wanted.showNot));
  if (wanted.showEmpty) element.hidden = !isEmpty(at(value, wanted.showEmpty));
  if (wanted.showNumber) element.hidden = at(value, wanted.showNumber) === null;
  if (wanted.showNull) element.hidden = at(value, wanted.showNull) !== null;
  if (wanted.list) fillList(element, at(value, wanted.list));
  else for (const child of element.children) fill(child, value);
}

function mark(element, value) {
  // The attribute holds the path at first and the value afterwards; the path is kept beside it.
  element.markPath ??= element.dataset.mark;
  return at(value, element.markPath);
}

function fillText(element, value) {
  const format = FORMATS[element.dataset.format ?? "text"];
  const text = value == null ? NOTHING : format(value);
  if (element.textContent !== text) element.textContent = text;
}

function fillList(container, items) {
  const template = container.querySelector(":scope > template");
  const present = new Map([...container.children].map((child) => [child.itemKey, child]));
  let before = template;
  for (const item of items) {
    const key = item[container.dataset.key];
    let element = present.get(key);
    present.delete(key);
    if (!element) {
      element = template.content.firstElementChild.cloneNode(true);
      element.itemKey = key;
    }
    if (before.nextElementSibling !== element) before.after(element);
    fill(element, item);
    before = element;
  }
  present.delete(undefined);  // the template itself
  for (const gone of present.values()) gone.remove();
}

// ---------------------------------------------------------------- charts

const SVG = "http://www.w3.org/2000/svg";
const PLOT = { left: 58, top: 8, bottom: 126, label: 146 };
const SECONDS_SHOWN_MIN = 60;

function shape(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text) element.textContent = text;
  return element;
}

function niceCeiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1e-9)));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value) ?? value;
}

function secondsShown() {
  return Math.max(SECONDS_SHOWN_MIN, state.samples.length - 1);
}

function points(samples, field, top, right) {
  // A gap in the data is a gap in the line: each run of values is a line of its own.
  const runs = [[]];
  samples.forEach((sample, index) => {
    const value = sample[field];
    if (value === null) { runs.push([]); return; }
    const x = right - (samples.length - 1 - index) * (right - PLOT.left) / secondsShown();
    const y = PLOT.bottom - Math.min(value / top, 1) * (PLOT.bottom - PLOT.top);
    runs.at(-1).push(`${x.toFixed(1)},${y.toFixed(1)}`);
  });
  return runs.filter((run) => run.length > 1).map((run) => run.join(" "));
}

function draw(id, { title, unit, series, objective }) {
  const svg = document.getElementById(id);
  const right = Math.max(200, svg.clientWidth) - 4;
  const values = series.flatMap(({ field }) => state.samples.map((sample) => sample[field] ?? 0));
  const top = niceCeiling(Math.max(1, ...values, objective ?? 0));
  const middle = (PLOT.top + PLOT.bottom) / 2;
  const parts = [shape("title", {}, describe(title, unit, series, objective))];
  for (const [y, value] of [[PLOT.top, top], [middle, top / 2], [PLOT.bottom, 0]]) {
    parts.push(shape("line", { class: "axis", x1: PLOT.left, x2: right, y1: y, y2: y }));
    parts.push(shape("text", { class: "axis-text", x: PLOT.left - 6, y: y + 4, "text-anchor": "end" },
      `${value >= 10 ? WHOLE.format(value) : value}`));
  }
  parts.push(shape("text", { class: "axis-text", x: PLOT.left, y: PLOT.label },
    `${duration(secondsShown())} ago`));
  parts.push(shape("text", {
    class: "axis-text", x: right, y: PLOT.label, "text-anchor": "end",
  }, `now, ${unit}`));
  if (objective) {
    const y = PLOT.bottom - objective / top * (PLOT.bottom - PLOT.top);
    parts.push(shape("line", { class: "objective", x1: PLOT.left, x2: right, y1: y, y2: y }));
  }
  for (const { field, className } of series) {
    for (const line of points(state.samples, field, top, right)) {
      parts.push(shape("polyline", { class: className, points: line }));
    }
  }
  svg.replaceChildren(...parts);
}

function describe(title, unit, series, objective) {
  const latest = series.map(({ field, name }) => {
    const value = state.samples.at(-1)?.[field];
    return value == null ? `${name}: nothing yet` : `${name}: ${TENTHS.format(value)} ${unit}`;
  });
  const promise = objective ? `; objective ${TENTHS.format(objective)} ${unit}` : "";
  return `${title}. Now ${latest.join(", ")}${promise}.`;
}

function drawAll(snapshot) {
  draw("chart-ttft", {
    title: "First token, p99", unit: "ms", objective: snapshot.online.ttft_slo_ms,
    series: [{ field: "ttft_ms_p99", name: "p99", className: "series" }],
  });
  draw("chart-tpot", {
    title: "Later tokens, p99", unit: "ms", objective: snapshot.online.tpot_slo_ms,
    series: [{ field: "tpot_ms_p99", name: "p99", className: "series" }],
  });
  draw("chart-tokens", {
    title: "Tokens per second", unit: "tokens/s",
    series: [
      { field: "offline_tokens_per_s", name: "offline", className: "series" },
      { field: "online_tokens_per_s", name: "online", className: "series series-other" },
    ],
  });
}

// ---------------------------------------------------------------- what is said aloud

function announce(sentences) {
  if (sentences.length) document.getElementById("announcements").textContent = sentences.join(". ");
}

function news(snapshot) {
  // Only what changes seldom: a screen reader that is told everything each second tells nothing.
  const now = {
    notices: new Map(snapshot.notices.map((notice) => [notice.notice_id, notice.node_id])),
    migrations: new Map(snapshot.migrations.map((one) => [one.handover_id, one.state])),
    nodes: snapshot.totals.nodes,
  };
  const before = state.known;
  state.known = now;
  if (!before) return [`${now.nodes} nodes`];
  const sentences = [];
  for (const [id, node] of now.notices) {
    if (!before.notices.has(id)) sentences.push(`${node} is about to end`);
  }
  for (const [id, what] of now.migrations) {
    if (before.migrations.get(id) !== what && ["done", "abandoned"].includes(what)) {
      sentences.push(`migration ${id} ${what}`);
    }
  }
  if (before.nodes !== now.nodes) sentences.push(`${now.nodes} nodes now`);
  return sentences;
}

// ---------------------------------------------------------------- life of the page

function setConnection(name, text) {
  const element = document.getElementById("connection");
  element.dataset.state = name;
  if (element.textContent !== text) element.textContent = text;
}

function show(snapshot) {
  if (state.isPaused) return;
  state.snapshot = snapshot;
  fill(document.querySelector("main"), snapshot);
  fill(document.querySelector("footer"), snapshot);
  drawAll(snapshot);
  const asOf = new Date(snapshot.at_unix_ms);
  const time = document.getElementById("as-of");
  time.dateTime = asOf.toISOString();
  time.textContent = asOf.toLocaleTimeString();
  announce(news(snapshot));
}

function take(snapshot) {
  state.samples.push(snapshot.sample);
  state.samples = state.samples.slice(-SAMPLES_MAX);
  setConnection("live", "live");
  show(snapshot);
}

function connect() {
  const source = new EventSource("/dashboard/events");
  source.addEventListener("history", (event) => {
    state.samples = JSON.parse(event.data);
  });
  source.addEventListener("snapshot", (event) => take(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    setConnection("lost", "no connection; trying again");
    announce(["The connection to the gateway is lost"]);
    // A browser gives up where the answer was an error, such as too many pages.
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 5000);
  });
}

document.getElementById("pause").addEventListener("click", (event) => {
  state.isPaused = !state.isPaused;
  event.target.setAttribute("aria-pressed", String(state.isPaused));
});
connect();
