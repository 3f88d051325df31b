// The dashboard: the reports, fetched once and kept live by events.

import { connect } from "flask-hybrid";
import { createDashboard } from "flask-hybrid/dashboard";
import { absolute, ago, change, clock, connection, GAPS, money, reduce, send, streamSwitch, TIMINGS, totals, VERBS } from "./reports.js";

const page = document.body.dataset;
const people = JSON.parse(page.people);
const find = (testid) => document.querySelector(`[data-testid="${testid}"]`);

const streams = streamSwitch((on) => (find("block-sse").checked = on));
const realtime = connect(page.realtime, { name: page.user, fetch: streams.fetch, timings: TIMINGS });
const reports = createDashboard({ client: realtime, name: page.user, reduce }).at(page.reports);
let received = 0;

/** Do something with the buttons of `scope` off, and say what went wrong if it did. */
async function attempt(scope, action) {
  const buttons = [...scope.querySelectorAll("button")];
  for (const button of buttons) button.disabled = true;
  try {
    await action();
    hide("problem");
  } catch (error) {
    show("problem", error.message);
  } finally {
    for (const button of buttons) button.disabled = false;
  }
}

// -- drawing

const list = document.querySelector(".rows");
const touched = []; // reports that are to flash when they are drawn next

function draw() {
  const { data, error } = reports.get();
  if (error?.status === 401) location.assign(page.login);
  if (error) show("problem", `The reports could not be loaded (${error.message}); trying again.`);
  if (!data) return;
  const wanted = new FormData(filter).get("filter");
  const shown = data.reports.filter((report) => !wanted || report.status === wanted);
  const rows = new Map([...list.children].map((row) => [Number(row.dataset.id), row]));
  for (const [id, row] of rows) {
    if (!shown.some((report) => report.id === id)) row.remove();
  }
  shown.forEach((report, place) => {
    const row = rows.get(report.id) ?? newRow(report);
    if (row.dataset.version !== String(report.version)) fill(row, report);
    // Only moved where it has to be: moving takes the focus away.
    if (list.children[place] !== row) list.insertBefore(row, list.children[place] ?? null);
  });
  list.removeAttribute("aria-busy");
  document.querySelector(".board .empty").hidden = shown.length > 0;
  total(data.reports);
  for (const id of touched.splice(0)) flash(id);
}

function total(all) {
  let sum = 0;
  for (const [status, { count, cents }] of Object.entries(totals(all))) {
    sum += cents;
    find(`count-${status}`).textContent = count;
    document.querySelector(`[data-tile="${status}"] .tile-more`).textContent = money.format(cents / 100);
  }
  find("sum").textContent = money.format(sum / 100);
  document.querySelector('[data-tile="sum"] .tile-more').textContent = `${all.length} reports`;
}

function clone(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}

function newRow(report) {
  const row = clone("row");
  row.dataset.id = report.id;
  row.addEventListener("click", (event) => {
    const button = event.target.closest("[data-action]");
    if (button) act(row, button);
  });
  return row;
}

function fill(row, report) {
  const field = (name, text) => {
    const element = row.querySelector(`[data-field="${name}"]`);
    element.textContent = text;
    element.hidden = !text;
    return element;
  };
  row.dataset.status = report.status;
  row.dataset.version = report.version;
  field("title", report.title);
  field("author", people[report.author] ?? report.author);
  time(field("submitted", " "), report.submitted_at);
  field("note", report.note);
  field("amount", money.format(report.cents / 100));
  field("status", report.status);
  const by = people[report.decided_by] ?? report.decided_by;
  field("decision", report.decided_by ? `${by}${report.comment ? `: “${report.comment}”` : ` ${report.status} this`}` : "");
  const actions = row.querySelector(".row-actions");
  const focused = actions.contains(document.activeElement);
  actions.replaceChildren();
  if (page.decides && report.status === "waiting") {
    const decision = clone("decision");
    decision.querySelector('[data-field="author"]').textContent = people[report.author] ?? report.author;
    actions.append(decision);
  }
  if (page.removes) actions.append(clone("removal"));
  if (focused) row.focus({ preventScroll: true });
}

function flash(id) {
  const row = list.querySelector(`[data-id="${id}"]`);
  if (!row) return;
  row.classList.remove("fresh");
  void row.offsetWidth; // starts the animation again
  row.classList.add("fresh");
}

function time(element, ms) {
  element.dateTime = new Date(ms).toISOString();
  element.title = absolute.format(ms);
  element.textContent = ago(ms);
}

setInterval(() => {
  for (const element of document.querySelectorAll("time[datetime]")) element.textContent = ago(Date.parse(element.dateTime));
}, 30_000);

// -- what the user does

const filter = document.createElement("form"); // gives FormData of the radio buttons
for (const input of document.querySelectorAll('[name="filter"]')) {
  filter.id = "filter";
  input.setAttribute("form", "filter");
  input.addEventListener("change", draw);
}
filter.hidden = true;
document.body.append(filter);

async function act(row, button) {
  const id = Number(row.dataset.id);
  const action = button.dataset.action;
  const comment = row.querySelector(".comment");
  if (action === "comment") {
    comment.hidden = !comment.hidden;
    button.setAttribute("aria-expanded", String(!comment.hidden));
    if (!comment.hidden) comment.querySelector("input").focus();
  } else if (action === "remove") {
    const report = reports.get().data.reports.find((each) => each.id === id);
    if (await sure(report)) await attempt(row, () => send("DELETE", `${page.reports}/${id}`));
  } else {
    // What it changes comes as an event, to this page as to all others.
    const body = { comment: comment.querySelector("input").value };
    await attempt(row, () => send("POST", `${page.reports}/${id}/${action}`, body));
  }
}

function sure(report) {
  const dialog = document.querySelector("dialog");
  dialog.querySelector("[data-text]").textContent = `“${report.title}” by ${people[report.author]} disappears from every dashboard.`;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

find("new-report-form")?.addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target;
  attempt(form, async () => {
    await send("POST", page.reports, Object.fromEntries(new FormData(form)));
    form.reset();
    form.elements.title.focus();
  });
});

find("send-test").addEventListener("click", (event) => {
  attempt(event.target.parentElement, () =>
    send("POST", `${page.realtime}/test`, { type: "test", data: { hello: people[page.user] }, users: [page.user] }),
  );
});

find("reconnect").addEventListener("click", () => realtime.reconnect());

function show(testid, text) {
  const notice = find(testid);
  notice.querySelector("[data-text]").textContent = text;
  notice.hidden = false;
}

function hide(testid) {
  find(testid).hidden = true;
}

for (const notice of document.querySelectorAll(".notice button")) {
  notice.addEventListener("click", () => (notice.parentElement.hidden = true));
}

// -- live

find("block-sse").addEventListener("change", (event) => streams.set(event.target.checked));

function happened(event) {
  received += 1;
  find("received").textContent = received;
  find("last-event").textContent = `${event.type} · ${clock.format(event.at ?? Date.now())}`;
  const { what = "other", by, report } = change(event) ?? {};
  tell(
    report ? `${people[by] ?? by} ${VERBS[what]} “${report.title}”` : `A ${event.type} event for ${people[page.user]}`,
    what,
    event,
  );
  if (report) touched.push(report.id);
}

function tell(text, what, { at, method }) {
  const item = clone("activity-item");
  item.dataset.what = what;
  item.querySelector(".happening-text").textContent = text;
  time(item.querySelector("time"), at ?? Date.now());
  item.querySelector(".via").textContent = ` via ${method === "sse" ? "SSE" : "polling"}`;
  const activity = find("activity");
  activity.prepend(item);
  while (activity.children.length > 30) activity.lastElementChild.remove();
  find("no-activity").hidden = true;
}

function showState() {
  const { activeMethod, error, stopped } = realtime.state;
  const { word, line } = connection(realtime.state);
  document.querySelector(".pill").dataset.method = activeMethod ?? "none";
  if (find("method").textContent !== word) find("method").textContent = word; // said aloud once
  find("connection").textContent = find("connection").title = line;
  find("reconnect").hidden = !stopped;
  if (error?.status === 401) location.assign(page.login);
}

realtime.subscribe(showState);
realtime.on("*", happened);
realtime.on("gap", ({ reason }) => {
  const why = GAPS[reason] ?? "The server could not say what happened in the meantime.";
  show("gap-notice", `${why} The list is loaded again, so that it is up to date.`);
});
reports.subscribe(draw);
draw();
setInterval(showState, 1000); // the countdown
for (const change of ["online", "offline"]) addEventListener(change, showState);
