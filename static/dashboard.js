// The dashboard: a snapshot of the reports, kept live by events.

const page = document.body.dataset;
const people = JSON.parse(page.people);
const find = (testid) => document.querySelector(`[data-testid="${testid}"]`);
const VERBS = { submitted: "submitted", approved: "approved", rejected: "rejected", removed: "deleted" };
const GAPS = {
  epoch: "The server was restarted, and what happened meanwhile cannot be replayed.",
  expired: "This page was away for longer than the server remembers.",
  too_far: "More has happened than can be replayed.",
  overflow: "More has happened than this connection could take.",
};
const money = new Intl.NumberFormat("en-IE", { style: "currency", currency: "EUR" });
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const absolute = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

const reports = new Map(); // id to report, each in the newest version that was heard of
const removed = new Set(); // an older event must not bring a report back
let realtime = null;
let received = 0;

// -- reports

/** Take in a report, unless a newer version is here; returns whether it was news. */
function learn(report) {
  const known = reports.get(report.id);
  if (removed.has(report.id) || (known && known.version >= report.version)) return false;
  reports.set(report.id, report);
  return true;
}

let loads = 0;

/** Fetch the snapshot; of several under way the last that was asked for counts. */
async function load() {
  const mine = ++loads;
  const answer = await fetch(page.reports, { cache: "no-store" });
  if (answer.status === 401) location.assign(page.login);
  if (!answer.ok) throw new Error(`The reports could not be loaded (${answer.status}).`);
  const body = await answer.json();
  if (mine !== loads) return null;
  const listed = new Set(body.reports.map((report) => report.id));
  const newest = Math.max(0, ...listed);
  for (const id of reports.keys()) {
    // What is not in the list any more was deleted; what is newer than the list came by an event.
    if (!listed.has(id) && id <= newest) forget(id);
  }
  body.reports.forEach(learn);
  draw();
  return answer.headers.get("X-Realtime-Cursor");
}

function forget(id) {
  removed.add(id);
  reports.delete(id);
}

async function send(method, path, body) {
  const answer = await fetch(page.reports + path, {
    method,
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body ?? {}),
  });
  if (answer.status === 401) location.assign(page.login);
  const said = answer.status === 204 ? null : await answer.json().catch(() => null);
  if (!answer.ok) throw new Error(said?.error ?? `The server answered ${answer.status}.`);
  return said;
}

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

function draw() {
  const wanted = new FormData(filter).get("filter");
  const shown = [...reports.values()]
    .filter((report) => !wanted || report.status === wanted)
    .sort((a, b) => b.submitted_at - a.submitted_at || b.id - a.id);
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
  total();
}

function total() {
  let sum = 0;
  for (const status of ["waiting", "approved", "rejected"]) {
    const some = [...reports.values()].filter((report) => report.status === status);
    const cents = some.reduce((all, report) => all + report.cents, 0);
    sum += cents;
    find(`count-${status}`).textContent = some.length;
    document.querySelector(`[data-tile="${status}"] .tile-more`).textContent = money.format(cents / 100);
  }
  find("sum").textContent = money.format(sum / 100);
  document.querySelector('[data-tile="sum"] .tile-more').textContent = `${reports.size} reports`;
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

function ago(ms) {
  const minutes = Math.round((ms - Date.now()) / 60_000);
  if (minutes > -1) return "just now";
  if (minutes > -60) return `${-minutes} min ago`;
  if (minutes > -60 * 24) return relative.format(Math.round(minutes / 60), "hour");
  return relative.format(Math.round(minutes / 60 / 24), "day");
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
    if (await sure(reports.get(id))) {
      await attempt(row, async () => {
        await send("DELETE", `/${id}`);
        forget(id);
        draw();
      });
    }
  } else {
    await attempt(row, async () => {
      learn(await send("POST", `/${id}/${action}`, { comment: comment.querySelector("input").value }));
      draw();
    });
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
    learn(await send("POST", "", Object.fromEntries(new FormData(form))));
    form.reset();
    form.elements.title.focus();
    draw();
  });
});

find("send-test").addEventListener("click", (event) => {
  attempt(event.target.parentElement, async () => {
    const answer = await fetch(`${page.realtime}/test`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ type: "test", data: { hello: people[page.user] }, users: [page.user] }),
    });
    if (!answer.ok) throw new Error((await answer.json()).detail);
  });
});

find("reconnect").addEventListener("click", () => realtime?.reconnect());

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

// A switch to watch the fallback with: it is a fetch that knows no streams, as some networks are.
const blocker = find("block-sse");
const streams = new Set();

function blockable(url, init = {}) {
  if (!new Headers(init.headers).get("Accept")?.includes("text/event-stream")) return fetch(url, init);
  if (blocker.checked) return Promise.reject(new TypeError("streams are blocked by the switch"));
  const controller = new AbortController();
  init.signal?.addEventListener("abort", () => {
    controller.abort();
    streams.delete(controller);
  });
  streams.add(controller);
  return fetch(url, { ...init, signal: controller.signal });
}

blocker.addEventListener("change", () => {
  if (!blocker.checked) return;
  for (const controller of streams) controller.abort(new TypeError("streams are blocked by the switch"));
  streams.clear();
});

function happened(event) {
  received += 1;
  find("received").textContent = received;
  find("last-event").textContent = `${event.type} · ${clock.format(event.at ?? Date.now())}`;
  const what = event.type.split(".")[1];
  const ours = event.type.startsWith("report.") && what in VERBS;
  tell(
    ours
      ? `${people[event.data.by] ?? event.data.by} ${VERBS[what]} “${event.data.title}”`
      : `A ${event.type} event for ${people[page.user]}`,
    ours ? what : "other",
    event,
  );
  if (!ours) return;
  const { by: _, ...report } = event.data;
  if (what === "removed") forget(report.id);
  else learn(report);
  draw();
  flash(report.id);
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
  const { isConnected, activeMethod, error, retryAt, bus, stopped } = realtime.state;
  const names = { sse: "SSE", polling: "Polling" };
  find("method").textContent = isConnected ? names[activeMethod] : stopped ? "Stopped" : "Connecting…";
  document.querySelector(".pill").dataset.method = activeMethod ?? "none";
  find("bus").textContent = bus ?? "–";
  const seconds = retryAt ? Math.max(0, Math.round((retryAt - Date.now()) / 1000)) : 0;
  const again = retryAt ? `, next attempt ${seconds ? `in ${seconds} s` : "now"}` : "";
  find("trouble").textContent = error ? error.message + again : "none";
  find("reconnect").hidden = !stopped;
  if (error?.status === 401) location.assign(page.login);
}

async function gap({ reason }) {
  const why = GAPS[reason] ?? "The server could not say what happened in the meantime.";
  try {
    await load();
    show("gap-notice", `${why} The list was loaded again, so it is up to date.`);
  } catch (error) {
    show("gap-notice", `${why} Load the page again to be up to date.`);
    show("problem", error.message);
  }
}

try {
  const [{ connect }, cursor] = await Promise.all([import(page.client), load()]);
  realtime = connect(page.realtime, {
    cursor, // what happens from the snapshot on is replayed: nothing falls in between
    fetch: blockable,
    // Shorter than the defaults, so that one can watch.
    timings: { base: 400, cap: 5000, poll: 2000, probe: 3000, probeMax: 15_000 },
  });
  realtime.subscribe(showState);
  realtime.on("*", happened);
  realtime.on("gap", gap);
  setInterval(showState, 1000); // the countdown
} catch (error) {
  show("problem", `Live updates could not be started: ${error.message}`);
}
