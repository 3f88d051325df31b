// What the pages of the demo share: the reports after an event, how they are written, the switch.

export const VERBS = { submitted: "submitted", approved: "approved", rejected: "rejected", removed: "deleted" };
export const GAPS = {
  epoch: "The server was restarted, and what happened meanwhile cannot be replayed.",
  expired: "This page was away for longer than the server remembers.",
  too_far: "More has happened than can be replayed.",
  overflow: "More has happened than this connection could take.",
};
export const METHODS = { sse: "SSE", polling: "Polling" };

/** How the page is connected, in a word for the pill and in a line beside it. */
export function connection({ isConnected, activeMethod, error, retryAt, bus, stopped }) {
  const offline = !isConnected && !stopped && !navigator.onLine;
  const word = isConnected ? METHODS[activeMethod] : stopped ? "Stopped" : offline ? "Offline" : "Connecting…";
  if (offline) return { word, line: "no network; it goes on by itself" };
  if (!error) {
    const late = bus === "degraded" ? "news from other servers may be late" : "in order";
    const way = activeMethod === "polling" ? "asking, since streams do not get through" : late;
    return { word, line: isConnected ? way : "being made" };
  }
  const seconds = retryAt ? Math.max(0, Math.round((retryAt - Date.now()) / 1000)) : 0;
  const again = retryAt ? `; next attempt ${seconds ? `in ${seconds} s` : "now"}` : "";
  return { word, line: error.message + again };
}
/** Shorter than the client's own, so that one can watch. */
export const TIMINGS = { base: 400, cap: 5000, poll: 2000, probe: 3000, probeMax: 15_000 };

export const money = new Intl.NumberFormat("en-IE", { style: "currency", currency: "EUR" });
export const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
export const absolute = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

export function ago(ms) {
  const minutes = Math.round((ms - Date.now()) / 60_000);
  if (minutes > -1) return "just now";
  if (minutes > -60) return `${-minutes} min ago`;
  if (minutes > -60 * 24) return relative.format(Math.round(minutes / 60), "hour");
  return relative.format(Math.round(minutes / 60 / 24), "day");
}

/** What happened to which report, or null for events of another kind. */
export function change({ type, data }) {
  const [kind, what] = type.split(".");
  if (kind !== "report" || !(what in VERBS)) return null;
  const { by, ...report } = data;
  return { what, by, report };
}

/** The dashboard's data after an event: the reports, newest first, each in its newest version. */
export function reduce(data, event) {
  const { what, report } = change(event) ?? {};
  if (!report) return data;
  const known = data.reports.find(({ id }) => id === report.id);
  const others = data.reports.filter((each) => each !== known);
  if (what === "removed") return { ...data, reports: others };
  if (known?.version >= report.version) return data;
  const reports = [report, ...others].sort((a, b) => b.submitted_at - a.submitted_at || b.id - a.id);
  return { ...data, reports };
}

/** Number and cents of the reports in each status. */
export function totals(reports) {
  return Object.fromEntries(
    ["waiting", "approved", "rejected"].map((status) => {
      const some = reports.filter((report) => report.status === status);
      return [status, { count: some.length, cents: some.reduce((sum, { cents }) => sum + cents, 0) }];
    }),
  );
}

/** Ask the server to do something; rejects with what it says against it. */
export async function send(method, url, body = {}) {
  const answer = await fetch(url, {
    method,
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  }).catch(() => {
    throw new Error("Not sent: the server cannot be reached. Try again.");
  });
  if (answer.status === 401) location.assign(document.body.dataset.login);
  const said = answer.status === 204 ? null : await answer.json().catch(() => null);
  if (!answer.ok) throw new Error(said?.error ?? said?.detail ?? `The server answered ${answer.status}.`);
  return said;
}

/**
 * A switch to watch the fallback with: a fetch that knows no streams while it is on, as some
 * networks are. It is for all tabs of this browser, since one of them holds the stream of all.
 */
export function streamSwitch(shown) {
  const streams = new Set();
  const refusal = () => new TypeError("blocked by the switch");
  const tabs = new BroadcastChannel("block-sse");
  let blocked = false;
  const set = (on) => {
    blocked = on;
    shown(on);
    if (!on) return;
    for (const controller of streams) controller.abort(refusal());
    streams.clear();
  };
  tabs.onmessage = ({ data }) => {
    if (data !== "?") set(data);
    else if (blocked) tabs.postMessage(true);
  };
  tabs.postMessage("?");
  return {
    fetch(url, init = {}) {
      if (!new Headers(init.headers).get("Accept")?.includes("text/event-stream")) return fetch(url, init);
      if (blocked) return Promise.reject(refusal());
      const controller = new AbortController();
      init.signal?.addEventListener("abort", () => {
        controller.abort();
        streams.delete(controller);
      });
      streams.add(controller);
      return fetch(url, { ...init, signal: controller.signal });
    },
    set(on) {
      set(on);
      tabs.postMessage(on);
    },
  };
}
