// The monitor's page. The state of the deployment is pushed once a second over the project's own
// client, on a stream of its own; lists are asked for. Whatever comes from users (names, types,
// messages) becomes text and nothing else.

import { connect } from "./hybrid.js";
import { bytes, Charts, compact, count, ms, sparkline } from "./monitor-charts.js";

const $ = (id) => document.getElementById(id);
const base = document.body.dataset.base;
const operates = "operates" in document.body.dataset;
const KEPT = 300;
const TAIL = 200;
const LIST_EVERY = 10_000;

// -- small pieces

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function duration(seconds) {
  if (seconds < 1) return "now";
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.floor(seconds)} s`;
}

const times = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const time = (at) => times.format(at);
const percent = (share) => (share === null || share === undefined ? "–" : `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`);
const total = (object) => Object.values(object).reduce((sum, value) => sum + value, 0);

async function ask(path, options) {
  const response = await fetch(`${base}${path}`, { headers: { Accept: "application/json" }, cache: "no-store", ...options });
  const body = await response.json();
  if (!response.ok) throw new Error(body.detail ?? `status ${response.status}`);
  return body;
}

function post(path, body) {
  return ask(path, { method: "POST", headers: { "Content-Type": "application/json", Accept: "application/json" }, body: JSON.stringify(body) });
}

/** A table whose rows are kept by key, so that focus and selection survive an update. */
class Table {
  constructor(table, columns, { onSort, sort, descending = false } = {}) {
    Object.assign(this, { table, columns, onSort, sort, descending });
    this.body = table.tBodies[0];
    this.rows = new Map();
    const head = table.tHead.rows[0];
    if (!head.cells.length) for (const column of columns) head.append(this.#head(column));
    this.#mark();
  }

  #head(column) {
    const cell = element("th", { scope: "col", className: column.number ? "number" : "" });
    if (!column.sort) {
      cell.append(element("span", { textContent: column.label, className: column.quiet ? "hidden" : "" }));
      return cell;
    }
    const button = element("button", { type: "button", textContent: column.label });
    button.addEventListener("click", () => {
      this.descending = this.sort === column.sort ? !this.descending : Boolean(column.number);
      this.sort = column.sort;
      this.#mark();
      this.onSort?.();
    });
    cell.append(button);
    cell.dataset.sort = column.sort;
    return cell;
  }

  #mark() {
    for (const cell of this.table.tHead.rows[0].cells) {
      if (!cell.dataset.sort) continue;
      cell.ariaSort = cell.dataset.sort === this.sort ? (this.descending ? "descending" : "ascending") : "none";
    }
  }

  show(items, key) {
    const old = this.rows;
    this.rows = new Map();
    let before = this.body.firstChild;
    for (const item of items) {
      const id = key(item);
      let row = old.get(id);
      old.delete(id);
      if (!row) {
        row = element("tr");
        for (const column of this.columns) {
          const cell = row.appendChild(element(column.heading ? "th" : "td", { className: column.number ? "number" : column.whole ? "whole" : "" }));
          if (column.heading) cell.scope = "row";
          cell.dataset.label = column.label;
        }
      }
      this.rows.set(id, row);
      this.columns.forEach((column, place) => {
        const cell = row.cells[place];
        if (column.draw) column.draw(cell, item);
        else put(cell, String(column.text(item)));
      });
      if (row === before) before = before.nextSibling;
      else this.body.insertBefore(row, before);
    }
    for (const row of old.values()) row.remove();
    return items.length;
  }
}

function badge(cell, state, text) {
  const known = cell.firstChild ?? cell.appendChild(element("span", { className: "badge" }));
  known.dataset.state = state;
  put(known, text);
}

// -- the tiles

const sum = (columns, name, seconds) => {
  const from = (columns.at.at(-1) ?? 0) - seconds;
  return columns.at.reduce((all, at, index) => (at > from ? all + columns[name][index] : all), 0);
};
const level = (value, amber, red) => (value === null ? "" : value > red ? "red" : value > amber ? "amber" : "");

const TILES = [
  {
    id: "clients", label: "Clients", about: "Open streams, and clients that poll: held polls, or whoever polled within the last 15 to 30 seconds, told apart by user, address and browser.",
    main: ({ connections: { clients } }) => [compact(clients.sse + clients.polling), ""],
    sub: ({ connections: { clients } }) => `${compact(clients.sse)} SSE · ${compact(clients.polling)} polling`,
    spark: (c, i) => c.sse[i] + c.polling[i],
  },
  {
    id: "fallback", label: "Fallback share", about: "Clients that poll, of all clients. High when something on the way holds streams back. Amber above 20 %, red above 50 %.",
    main: ({ connections }) => [percent(connections.fallback_share), ""],
    sub: ({ connections: { clients } }) => `${compact(clients.polling)} of ${compact(clients.sse + clients.polling)} clients`,
    level: ({ connections }) => level(connections.fallback_share, 0.2, 0.5),
    spark: (c, i) => (c.sse[i] + c.polling[i] ? c.polling[i] / (c.sse[i] + c.polling[i]) : 0),
  },
  {
    id: "events", label: "Events", about: "Events that entered the log each second, whoever emitted them; the average of the last minute.",
    main: ({ recent }) => [compact(recent.per_second?.stored ?? 0), "/s"],
    sub: ({ events }) => `${compact(events.emitted)} emitted here so far`,
    spark: (c, i) => c.stored[i] / c.step,
  },
  {
    id: "delivered", label: "Delivered", about: "Events handed to clients each second: one event to a hundred clients counts a hundred times. The average of the last minute.",
    main: ({ recent }) => [compact(recent.per_second?.delivered ?? 0), "/s"],
    sub: ({ recent }) => `${bytes(recent.per_second?.bytes ?? 0)}/s`,
    spark: (c, i) => c.delivered[i] / c.step,
  },
  {
    id: "latency", label: "Delivery p50 / p99", about: "From emit to the write to the client’s socket, of all instances together, in the last minute. Steps of 19 %. Amber above 500 ms, red above 2 s.",
    main: ({ recent }) => [recent.latency_ms?.p50 == null ? "–" : `${ms(recent.latency_ms.p50).replace(/ .*/, "")} / ${ms(recent.latency_ms.p99)}`, ""],
    sub: ({ recent }) => (recent.latency_ms?.p95 == null ? "nothing delivered in the last minute" : `p95 ${ms(recent.latency_ms.p95)}`),
    level: ({ recent }) => level(recent.latency_ms?.p99 ?? null, 500, 2000),
    spark: (c, i) => c.p99[i],
  },
  {
    id: "resume", label: "Resume success", about: "Of the clients that came back with a cursor in the last five minutes, those that were sent all they had missed. Amber under 99 %, red under 95 %.",
    main: (_, c) => {
      const full = sum(c, "resumed", 300);
      const all = full + sum(c, "unresumed", 300);
      return [all ? percent(full / all) : "–", ""];
    },
    sub: (_, c) => {
      const all = sum(c, "resumed", 300) + sum(c, "unresumed", 300);
      return all ? `${count.format(sum(c, "resumed", 300))} of ${count.format(all)} in 5 min` : "nobody came back in 5 min";
    },
    level: (_, c) => {
      const lost = sum(c, "unresumed", 300);
      return lost ? level(lost / (lost + sum(c, "resumed", 300)), 0.01, 0.05) : "";
    },
    spark: (c, i) => (c.resumed[i] + c.unresumed[i] ? c.resumed[i] / (c.resumed[i] + c.unresumed[i]) : null),
  },
  {
    id: "reconnects", label: "Reconnects", about: "Streams that began with a cursor, in the last minute: clients that had been here before.",
    main: (_, c) => [compact(sum(c, "resumed", 60) + sum(c, "unresumed", 60)), "/min"],
    sub: (_, c) => `${compact(sum(c, "opened", 60))} opened, ${compact(sum(c, "closed", 60))} ended`,
    spark: (c, i) => c.resumed[i] + c.unresumed[i],
  },
  {
    id: "errors", label: "Errors and drops", about: "Errors of the servers, clients that were cut because they did not read, and requests that were refused for want of room or by a limit, in the last five minutes; the table of endings says which. What browsers reported is told beside them, and counts in no alert: anybody can send it.",
    main: (_, c) => [compact(["errors", "slow", "refused"].reduce((all, name) => all + sum(c, name, 300), 0)), "in 5 min"],
    sub: (_, c) => `${compact(sum(c, "errors", 300))} ${sum(c, "errors", 300) === 1 ? "error" : "errors"} · ${compact(sum(c, "slow", 300))} slow · ${compact(sum(c, "refused", 300))} refused${sum(c, "reported", 300) ? ` · ${compact(sum(c, "reported", 300))} by browsers` : ""}`,
    level: (_, c) => (sum(c, "errors", 300) + sum(c, "slow", 300) + sum(c, "refused", 300) ? "amber" : ""),
    spark: (c, i) => c.errors[i] + c.slow[i] + c.refused[i],
  },
];

for (const tile of TILES) {
  tile.value = element("span", { className: "value" });
  tile.unit = element("span", { className: "unit" });
  tile.note = element("p", { className: "sub" });
  tile.flag = element("span", { className: "flag" });
  tile.line = sparkline();
  const about = element("details", { className: "about-tile" }, element("summary", { textContent: "i", ariaLabel: `What is ${tile.label}?` }), element("p", { textContent: tile.about }));
  tile.node = element("article", { className: "tile", id: `tile-${tile.id}` },
    element("div", { className: "tile-head" }, element("h2", { textContent: tile.label }), tile.flag, about),
    element("p", { className: "main" }, tile.value, tile.unit), tile.note, tile.line.svg);
  $("tiles").append(tile.node);
}
document.addEventListener("click", (event) => {
  for (const open of document.querySelectorAll(".about-tile[open]")) if (!open.contains(event.target)) open.open = false;
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") for (const open of document.querySelectorAll(".about-tile[open]")) open.open = false;
});

function showTiles(state, columns) {
  for (const tile of TILES) {
    const [value, unit] = tile.main(state, columns);
    put(tile.value, value);
    put(tile.unit, unit);
    put(tile.note, tile.sub(state, columns));
    const flag = tile.level?.(state, columns) ?? "";
    tile.node.dataset.level = flag;
    put(tile.flag, { red: "▲ high", amber: "▲ look" }[flag] ?? "");
    const from = Math.max(0, columns.at.length - KEPT);
    tile.line.draw(columns.at.slice(from).map((_, index) => tile.spark(columns, from + index)));
  }
}

// -- the tables

let state = null;
const rows = { instances: [] };

const instances = new Table($("instances"), [
  { label: "Instance", heading: true, sort: "host", draw: (cell, row) => {
    if (!cell.firstChild) cell.append(element("span"), element("small", { className: "quiet" }));
    put(cell.firstChild, `${row.host}:${row.pid}`);
    put(cell.lastChild, row.id);
  } },
  { label: "State", sort: "state", draw: (cell, row) => badge(cell, row.state, row.state === "gone" ? `gone ${duration(row.age_seconds)}` : row.state) },
  { label: "Connections", sort: "connections", number: true, draw: (cell, row) => {
    if (!cell.firstChild) cell.append(element("span"), element("meter", { min: 0, low: 0.8, high: 0.95, optimum: 0, max: 1 }));
    put(cell.firstChild, count.format(row.connections));
    cell.lastChild.value = row.max_connections ? row.connections / row.max_connections : 0;
    cell.lastChild.title = `of ${count.format(row.max_connections)}`;
    cell.lastChild.ariaLabel = `of ${count.format(row.max_connections)} connections`;
  } },
  { label: "Emitted", sort: "emitted", number: true, text: (row) => compact(row.emitted) },
  { label: "Delivered", sort: "delivered", number: true, text: (row) => compact(row.delivered) },
  { label: "Loop lag", sort: "loop_lag_ms", number: true, text: (row) => ms(row.loop_lag_ms) },
  { label: "CPU", sort: "cpu_percent", number: true, text: (row) => `${row.cpu_percent} %` },
  { label: "Memory", sort: "memory_bytes", number: true, text: (row) => bytes(row.memory_bytes) },
  { label: "Redis", sort: "redis_ms", number: true, text: (row) => ms(row.redis_ms) },
  { label: "Up", sort: "uptime_seconds", number: true, text: (row) => duration(row.uptime_seconds) },
  { label: "Version", sort: "version", text: (row) => row.version },
], { sort: "host", onSort: () => showInstances() });

function showInstances() {
  const { sort, descending } = instances;
  const sorted = rows.instances.toSorted((a, b) => {
    const [x, y] = [a[sort] ?? -1, b[sort] ?? -1];
    const order = typeof x === "string" ? x.localeCompare(y) : x - y;
    return (descending ? -order : order) || a.pid - b.pid;
  });
  instances.show(sorted, (row) => row.id);
  const gone = sorted.filter((row) => row.state === "gone").length;
  put($("instances-count"), gone ? `${sorted.length - gone} live, ${gone} gone` : count.format(sorted.length));
}

const connections = new Table($("connections"), [
  { label: "User", heading: true, sort: "user", draw: (cell, row) => {
    if (!cell.firstChild) cell.append(element("span"), element("small", { className: "quiet" }));
    put(cell.firstChild, row.user || "anonymous");
    put(cell.lastChild, row.id);
    cell.firstChild.className = row.user ? "" : "quiet";
  } },
  { label: "Transport", sort: "transport", whole: true, text: (row) => (row.transport === "sse" ? "SSE" : "polling") },
  { label: "State", draw: (cell, row) => badge(cell, row.state, row.state) },
  { label: "Topics", sort: "topics", text: (row) => row.topic_names.join(", ") + (row.topics > row.topic_names.length ? ` and ${row.topics - row.topic_names.length} more` : "") || "–" },
  { label: "Address", sort: "address", text: (row) => row.address || "–" },
  { label: "Instance", whole: true, text: (row) => nameOf(row.instance) },
  { label: "Age", sort: "age", number: true, text: (row) => duration(row.age) },
  { label: "Behind", sort: "behind", number: true, text: (row) => count.format(row.behind) },
  ...(operates ? [{ label: "Action", quiet: true, whole: true, draw: (cell, row) => {
    if (!cell.firstChild) cell.append(element("button", { type: "button", className: "plain small", textContent: "Disconnect" }));
    cell.firstChild.onclick = () => end(row);
    cell.firstChild.ariaLabel = `Disconnect ${row.user || "the anonymous connection"} ${row.id}`;
  } }] : []),
], { sort: "age", descending: true, onSort: () => list(1) });

function nameOf(id) {
  const found = rows.instances.find((row) => row.id === id);
  return found ? `${found.host}:${found.pid}` : id;
}

const errors = new Table($("errors"), [
  { label: "Message", heading: true, draw: (cell, row) => {
    if (!cell.firstChild) cell.append(element("span"), element("small", { className: "quiet" }));
    put(cell.firstChild, row.message);
    put(cell.lastChild, row.place);
  } },
  { label: "Level", draw: (cell, row) => badge(cell, row.level, row.level) },
  { label: "From", text: (row) => row.source },
  { label: "Times", number: true, text: (row) => count.format(row.count) },
  { label: "First seen", text: (row) => time(row.first) },
  { label: "Last seen", text: (row) => time(row.last) },
]);

const pair = (first, second) => [
  { label: first, heading: true, text: ([name]) => name },
  { label: second, number: true, text: ([, times]) => count.format(times) },
];
const topics = new Table($("topics"), [
  { label: "Topic", heading: true, text: ([name]) => name },
  { label: "Connections", number: true, text: ([, held]) => count.format(held) },
  { label: "Events", number: true, text: ([, , sent]) => (sent ? `${compact(sent.per_second)}/s` : "–") },
  { label: "Bytes", number: true, text: ([, , sent]) => (sent ? `${bytes(sent.bytes_per_second)}/s` : "–") },
]);
const types = new Table($("types"), pair("Type", "Emitted"));
const reasons = new Table($("reasons"), [
  { label: "What", heading: true, text: ([what]) => what },
  { label: "Reason", text: ([, reason]) => reason },
  { label: "Times", number: true, text: ([, , times]) => count.format(times) },
]);
const changes = new Table($("changes"), [
  { label: "When", text: (row) => time(row.at) },
  { label: "What", heading: true, text: (row) => `${row.rule} ${row.kind}` },
  { label: "Why", text: (row) => row.why },
]);

function fill(table, items, key) {
  table.table.nextElementSibling.hidden = table.show(items, key) > 0;
}

function showTables({ connections: { topics: held, closed, refused_by: refused = {} }, events, errors: wrong, instances: all, changes: told }) {
  rows.instances = all;
  showInstances();
  const names = new Set([...Object.keys(held), ...Object.keys(events.topics ?? {})]);
  fill(topics, [...names].map((name) => [name, held[name] ?? 0, events.topics?.[name]]), ([name]) => name);
  fill(types, Object.entries(events.by_type), ([name]) => name);
  const ends = [...Object.entries(closed).map((entry) => ["ended", ...entry]), ...Object.entries(refused).filter(([, times]) => times).map(([reason, times]) => ["refused", reason.replaceAll("_", " "), times]), ...Object.entries(events.gaps).map((entry) => ["gap", ...entry])];
  fill(reasons, ends, ([what, reason]) => `${what} ${reason}`);
  $("errors-empty").hidden = errors.show(wrong.groups, (row) => row.id) > 0;
  put($("errors-count"), wrong.groups.length ? count.format(wrong.groups.reduce((all, group) => all + group.count, 0)) : "");
  if (told) fill(changes, told.slice(0, 20), (row) => `${row.rule} ${row.kind} ${row.at}`);
}

// -- the list of connections, which is asked for

let page = 1;
let asked = 0;
let listed = [];

async function list(wanted = page) {
  const mine = ++asked;
  const form = new FormData($("find"));
  const query = new URLSearchParams({ q: form.get("q"), transport: form.get("transport"), sort: connections.sort, order: connections.descending ? "desc" : "asc", page: wanted });
  try {
    const found = await ask(`/monitor/connections?${query}`);
    if (mine !== asked) return; // a later question has been asked meanwhile
    page = found.page;
    listed = found.rows;
    connections.show(listed, (row) => row.id);
    put($("connections-count"), count.format(found.total));
    put($("page"), `Page ${found.page} of ${found.pages}`);
    offer(form, found.total);
    put($("missing"), found.missing.length ? `No answer from ${found.missing.map(nameOf).join(", ")}` : "");
    $("previous").disabled = found.page <= 1;
    $("next").disabled = found.page >= found.pages;
    $("connections-empty").hidden = found.rows.length > 0;
  } catch (error) {
    put($("missing"), `The list could not be loaded: ${error.message}`);
  }
}

let typing = null;
$("find").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => list(1), 250);
});
$("find").addEventListener("submit", (event) => {
  event.preventDefault();
  list(1);
});
$("previous").addEventListener("click", () => list(page - 1));
$("next").addEventListener("click", () => list(page + 1));

async function confirmed(dialog) {
  dialog.returnValue = "no";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  return dialog.returnValue === "yes";
}

async function end(row) {
  put($("confirm-whom"), `${row.user || "Anonymous"}, ${row.id}, on ${nameOf(row.instance)}`);
  if (!(await confirmed($("confirm")))) return;
  try {
    await post("/monitor/disconnect", { connection: row.id });
    say(`${row.user || "The connection"} was disconnected.`);
  } catch (error) {
    trouble(`Not disconnected: ${error.message}`);
  }
  list();
}

// All that a search finds; not by transport alone, which would be half of everybody.
let offered = null;

function offer(form, total) {
  const text = form.get("q");
  offered = operates && text.trim() && !form.get("transport") && total ? { text, total } : null;
  $("end-found").hidden = !offered;
  if (offered) put($("end-found"), `Disconnect all ${count.format(total)}`);
}

$("end-found").addEventListener("click", async () => {
  if (!offered) return;
  const { text, total } = offered;
  const typed = $("confirm-found-count");
  typed.value = "";
  $("confirm-found-yes").disabled = true;
  typed.oninput = () => ($("confirm-found-yes").disabled = typed.value.trim() !== String(total));
  put($("confirm-found-whom"), `${count.format(total)} ${total === 1 ? "connection matches" : "connections match"} “${text}”.`);
  if (!(await confirmed($("confirm-found")))) return;
  try {
    const { ended, missing } = await post("/monitor/disconnect", { search: text, count: total });
    say(`${count.format(ended)} were disconnected.`);
    if (missing.length) trouble(`No answer from ${missing.map(nameOf).join(", ")}: what they hold goes on.`);
  } catch (error) {
    trouble(`Not disconnected: ${error.message}`);
  }
  list(1);
});

// -- alerts, the tail, what is said

let known = null;

/** Until when an alert is told nowhere, or the button for it. */
function snoozing({ rule, snoozed_until: until }) {
  if (until > Date.now()) return [`, snoozed until ${time(until)}`];
  if (!operates) return [];
  const button = element("button", { type: "button", className: "plain small", textContent: "Snooze 1 h", ariaLabel: `Snooze ${rule} for an hour` });
  button.dataset.snooze = rule;
  return [button];
}

$("alert-list").addEventListener("click", async ({ target }) => {
  if (!target.dataset.snooze) return;
  target.blur();
  try {
    const { missing } = await post("/monitor/snooze", { rule: target.dataset.snooze, minutes: 60 });
    if (missing.length) trouble(`No answer from ${missing.map(nameOf).join(", ")}: it may be told all the same.`);
  } catch (error) {
    trouble(`Not snoozed: ${error.message}`);
  }
});

function showAlerts(alerts) {
  $("alerts").hidden = !alerts.length;
  const items = alerts.map((alert) =>
    element("li", { className: "alert" },
      element("span", { className: "badge", textContent: alert.severity }),
      element("div", {}, element("b", { textContent: alert.rule.replaceAll("_", " ") }), element("p", { textContent: alert.why })),
      element("span", { className: "quiet" }, `for ${duration((Date.now() - alert.since) / 1000)} `, ...snoozing(alert))));
  items.forEach((item, index) => {
    item.dataset.severity = item.firstChild.dataset.state = alerts[index].severity;
  });
  const now = new Set(alerts.map((alert) => alert.rule));
  // A button that somebody has reached or presses is to stay.
  const held = $("alert-list").matches(":focus-within, :active") && known?.size === now.size;
  if (!held) $("alert-list").replaceChildren(...items);
  const fresh = known && alerts.find((alert) => !alert.silent && !known.has(alert.rule));
  if (fresh) put($("alarm"), `${fresh.severity}: ${fresh.why}`);
  known = now;
}

let tailPaused = false;
const inTail = new Set();

function showTail({ rows: came, skipped }) {
  if (tailPaused) return;
  const list = $("tail");
  for (const row of came) {
    if (inTail.has(row.cursor)) continue;
    inTail.add(row.cursor);
    const to = row.everyone ? "everyone" : [...row.users, ...row.roles, ...row.topics].join(", ") + (row.more ? ` and ${row.more} more` : "") || "nobody";
    const item = element("li", {}, element("time", { textContent: time(row.at) }), element("b", { textContent: row.type }), element("span", { textContent: `to ${to}` }), element("span", { className: "quiet", textContent: bytes(row.bytes) }));
    if (operates) {
      const button = element("button", { type: "button", className: "plain small", textContent: "Show", ariaLabel: `Show the data of ${row.type}` });
      button.addEventListener("click", () => payload(row));
      item.append(button);
    }
    list.prepend(item);
  }
  while (list.children.length > TAIL) list.lastChild.remove();
  if (inTail.size > 5 * TAIL) {
    inTail.clear();
    for (const row of came) inTail.add(row.cursor); // they come again
  }
  put($("skipped"), skipped ? `+${count.format(skipped)} not shown in the last second` : "");
  $("tail-empty").hidden = list.children.length > 0;
}

async function payload(row) {
  put($("payload-title"), row.type);
  try {
    const event = await ask(`/monitor/event?cursor=${encodeURIComponent(row.cursor)}`);
    put($("payload-text"), "text" in event ? event.text : JSON.stringify(event.data, null, 2));
  } catch (error) {
    put($("payload-text"), error.message);
  }
  $("payload").showModal();
}

$("tail-pause").addEventListener("click", () => {
  tailPaused = !tailPaused;
  $("tail-pause").ariaPressed = String(tailPaused);
  put($("tail-pause"), tailPaused ? "Go on" : "Pause");
});
$("tail-clear").addEventListener("click", () => {
  $("tail").replaceChildren();
  $("tail-empty").hidden = false;
});

let saidAt = 0;

function say(text) {
  put($("status"), text);
  saidAt = Date.now();
}

function trouble(text) {
  $("trouble").hidden = !text;
  put($("trouble"), text);
}

// -- the charts

const charts = new Charts(document.querySelector(".charts"));
const history = {};
let range = "5m";
let loadedAt = 0;

async function load(wanted) {
  try {
    history[wanted] = await ask(`/monitor/history?range=${wanted}`);
    if (wanted === range) loadedAt = Date.now();
    return true;
  } catch (error) {
    trouble(`The history could not be loaded: ${error.message}`);
    return false;
  }
}

/** Take over the newest seconds. */
function extend(points) {
  const columns = history["5m"];
  if (!columns || !points) return;
  const last = columns.at.at(-1) ?? 0;
  points.at.forEach((at, index) => {
    if (at <= last) return;
    for (const name of Object.keys(columns)) if (name !== "step") columns[name].push(points[name][index]);
  });
  const extra = columns.at.length - KEPT;
  if (extra > 0) for (const name of Object.keys(columns)) if (name !== "step") columns[name].splice(0, extra);
}

async function choose(wanted) {
  range = wanted;
  for (const button of document.querySelectorAll("[data-range]")) button.ariaPressed = String(button.dataset.range === wanted);
  if (wanted !== "5m" || !history["5m"]) await load(wanted);
  if (range === wanted && history[wanted]) charts.show(history[wanted], wanted, true);
}

for (const button of document.querySelectorAll("[data-range]")) button.addEventListener("click", () => choose(button.dataset.range));

// -- theme, pause

const THEMES = ["auto", "light", "dark"];
const stored = () => {
  try {
    return localStorage.getItem("hybrid.monitor.theme");
  } catch {
    return null; // storage may be forbidden
  }
};

function theme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  put($("theme"), `Theme: ${name}`);
  if (history[range]) charts.show(history[range], range, true);
}

$("theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % THEMES.length];
  try {
    localStorage.setItem("hybrid.monitor.theme", next);
  } catch {
    // it lasts as long as the page
  }
  theme(next);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme(document.documentElement.dataset.theme ?? "auto"));

let paused = false;
$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").ariaPressed = String(paused);
  put($("pause"), paused ? "Go on" : "Pause");
  document.body.classList.toggle("paused", paused);
});

// -- what comes

const WORDS = { ok: "All is well", degraded: "Degraded", critical: "Critical" };

function show() {
  if (!state || paused || document.visibilityState === "hidden" || !history["5m"]) return;
  const old = $("state").dataset.state;
  $("state").dataset.state = state.state;
  put($("state-text"), WORDS[state.state]);
  if (old !== state.state && old !== "unknown" && Date.now() - saidAt > 10_000) say(WORDS[state.state]);
  const own = state.instance;
  const redis = state.performance.redis_ms;
  put($("bus"), own.url === "memory://" ? "in memory, one process" : `${own.url.split(":")[0]} · ${own.bus === "ok" ? ms(redis) : "out of reach"}`);
  showTiles(state, history["5m"]);
  if (range === "5m") charts.show(history["5m"], range);
  showTables(state);
  connections.show(listed, (row) => row.id); // whose instances may have names only now
  showAlerts(state.alerts);
  document.title = `${state.state === "ok" ? "" : `${WORDS[state.state]} · `}Monitor · ${location.host}`;
}

const live = connect(`${base}/monitor`);
live.on("monitor", (event) => {
  state = event.data;
  state.came = Date.now();
  extend(state.points);
  if (state.tail && !paused) showTail(state.tail); // each has its own second, the others are of now
  show();
});
live.on("gap", () => load("5m").then(show));
let link = null;
live.on("state", ({ isConnected, activeMethod, error, stopped }) => {
  clearTimeout(link);
  // A stream begins anew now and then; only what lasts is worth a word.
  link = setTimeout(() => {
    document.body.dataset.link = isConnected ? activeMethod : "";
    put($("link"), isConnected ? `live via ${activeMethod === "sse" ? "SSE" : "polling"}` : stopped ? "stopped" : "connecting…");
    trouble(stopped || /^40[13]$/.test(error?.status) ? `The server sends nothing any more: ${error?.message ?? "it refused"}. Reload the page.` : "");
  }, isConnected ? 0 : 2500);
});

setInterval(() => {
  const age = state ? (Date.now() - state.came) / 1000 : null;
  put($("updated"), age === null ? "" : paused ? " · paused" : age < 3 ? "" : ` · ${duration(age)} ago`);
  if (document.visibilityState === "hidden" || paused) return;
  const step = history[range]?.step ?? 1;
  if (range !== "5m" && Date.now() - loadedAt > step * 1000) {
    loadedAt = Date.now();
    load(range).then((ok) => ok && charts.show(history[range], range));
  }
}, 1000);
setInterval(() => {
  if (document.visibilityState !== "hidden" && !paused) list();
}, LIST_EVERY);
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") load("5m").then(show);
});

theme(THEMES.includes(stored()) ? stored() : "auto");
await Promise.all([choose("5m"), ask("/monitor").then((first) => (state ??= { ...first, came: Date.now() }), (error) => trouble(error.message)), list()]);
show();
