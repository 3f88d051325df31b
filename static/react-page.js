// The dashboard in React: the same page, from useDashboard and useHybridRealtime.

import { createElement as h, StrictMode, useEffect, useRef, useState } from "react";
import { createRoot } from "react-dom/client";
import { DashboardProvider, useDashboard, useHybridRealtime } from "flask-hybrid/react";
import { absolute, ago, change, clock, connection, money, reduce, send, streamSwitch, TIMINGS, totals, VERBS } from "./reports.js";

const page = document.body.dataset;
const people = JSON.parse(page.people);
const name = (id) => people[id] ?? id;
const STATUSES = { waiting: "Waiting", approved: "Approved", rejected: "Rejected" };
const streams = streamSwitch((on) => showBlocked(on));
let showBlocked = () => {}; // the panel's, while there is one

function App() {
  const { data, error, isStale, refresh } = useDashboard(page.reports);
  const [happenings, setHappenings] = useState([]);
  const [fresh, setFresh] = useState({}); // report to the event that touched it last
  const [problem, setProblem] = useState(null);
  const [received, setReceived] = useState(0);
  const onEvent = (event) => {
    setReceived((count) => count + 1);
    setHappenings((some) => [event, ...some].slice(0, 30));
    const { report } = change(event) ?? {};
    if (report) setFresh((some) => ({ ...some, [report.id]: event.id }));
  };
  const live = useHybridRealtime(undefined, { onEvent });

  useEffect(() => {
    if (error?.status === 401 || live.error?.status === 401) location.assign(page.login);
  }, [error, live.error]);

  /** Do it, show what the server says against it. What it changes comes as an event. */
  const attempt = async (action) => {
    try {
      await action();
      setProblem(null);
    } catch (failure) {
      setProblem(failure.message);
    }
  };

  const said = problem ?? (error && `The reports could not be loaded (${error.message}); trying again.`);
  return [
    h(LivePanel, { key: "live", live, received, attempt }),
    said && h(Notice, { key: "problem", text: said, dismiss: () => (problem ? setProblem(null) : refresh()) }),
    h(Tiles, { key: "tiles", reports: data?.reports }),
    h(
      "div",
      { key: "columns", className: "columns" },
      h(Board, { reports: data?.reports, isStale, fresh, attempt }),
      h("div", { className: "side" }, !page.decides && h(NewReport, { attempt }), h(Activity, { happenings })),
    ),
  ];
}

function LivePanel({ live, received, attempt }) {
  const { activeMethod, lastEvent, stopped, reconnect } = live;
  const [blocked, setBlocked] = useState(false);
  useTick(1000, "online", "offline"); // the countdown
  const { word, line } = connection(live);
  useEffect(() => {
    showBlocked = setBlocked;
  }, []);
  const figure = (title, testid, value, kind) =>
    h("div", { className: kind }, h("dt", null, title), h("dd", { "data-testid": testid, title: value }, value));
  return h(
    "section",
    { className: "card live", "aria-labelledby": "live-title" },
    h(
      "div",
      { className: "live-method" },
      h("h2", { id: "live-title" }, "Live updates"),
      h(
        "span",
        { className: "pill", "data-method": activeMethod ?? "none", role: "status" },
        h("span", { className: "pill-dot", "aria-hidden": true }),
        h("span", { "data-testid": "method" }, word),
      ),
    ),
    h(
      "dl",
      { className: "figures" },
      figure("Last event", "last-event", lastEvent ? `${lastEvent.type} · ${clock.format(lastEvent.at ?? Date.now())}` : "none yet", "figure-wide"),
      figure("Received", "received", received),
      figure("Connection", "connection", line, "figure-rest"),
    ),
    h(
      "div",
      { className: "live-actions" },
      h(
        "label",
        { className: "switch" },
        h("input", { type: "checkbox", role: "switch", "data-testid": "block-sse", checked: blocked, onChange: (event) => streams.set(event.target.checked) }),
        h("span", { className: "switch-track", "aria-hidden": true }),
        "Block SSE",
      ),
      h(
        "button",
        {
          className: "button",
          type: "button",
          "data-testid": "send-test",
          onClick: () => attempt(() => send("POST", `${page.realtime}/test`, { type: "test", data: { hello: name(page.user) }, users: [page.user] })),
        },
        "Send a test event",
      ),
      stopped && h("button", { className: "button", type: "button", onClick: reconnect }, "Reconnect"),
    ),
  );
}

function Notice({ text, dismiss }) {
  return h(
    "div",
    { className: "notice bad", role: "alert", "data-testid": "problem" },
    h("span", null, text),
    h("button", { className: "button quiet", type: "button", onClick: dismiss }, "Dismiss"),
  );
}

function Tiles({ reports }) {
  const found = reports && totals(reports);
  const tile = (id, label, testid, figure, more) =>
    h(
      "li",
      { key: id, className: "card tile", "data-tile": id },
      h("span", { className: "tile-label" }, label),
      h("span", { className: "tile-figure", "data-testid": testid }, figure ?? "–"),
      h("span", { className: "tile-more" }, more),
    );
  const sum = found && Object.values(found).reduce((all, { cents }) => all + cents, 0);
  return h(
    "section",
    { "aria-label": "Totals" },
    h(
      "ul",
      { className: "tiles" },
      Object.entries(STATUSES).map(([id, label]) => tile(id, label, `count-${id}`, found?.[id].count, found && money.format(found[id].cents / 100))),
      tile("sum", "All together", "sum", found && money.format(sum / 100), found && `${reports.length} reports`),
    ),
  );
}

function Board({ reports, isStale, fresh, attempt }) {
  const [wanted, setWanted] = useState("");
  const shown = (reports ?? []).filter(({ status }) => !wanted || status === wanted);
  return h(
    "section",
    { className: "card board", id: "reports", tabIndex: -1, "aria-labelledby": "reports-title" },
    h(
      "div",
      { className: "card-head" },
      h("h2", { id: "reports-title" }, page.decides ? "All reports" : "Your reports"),
      h(
        "fieldset",
        { className: "filter" },
        h("legend", { className: "unseen" }, "Show"),
        Object.entries({ "": "All", ...STATUSES }).map(([value, label]) =>
          h(
            "label",
            { key: value },
            h("input", { className: "unseen", type: "radio", name: "filter", checked: wanted === value, onChange: () => setWanted(value) }),
            h("span", null, label),
          ),
        ),
      ),
    ),
    h(
      "ul",
      { className: "rows", "aria-busy": !reports, "data-stale": isStale },
      shown.map((report) => h(Row, { key: report.id, report, touched: fresh[report.id], attempt })),
    ),
    reports && !shown.length && h("p", { className: "empty" }, "No reports here."),
  );
}

function Row({ report, touched, attempt }) {
  const row = useRef(null);
  useEffect(() => {
    if (!touched) return;
    row.current.classList.remove("fresh");
    void row.current.offsetWidth; // starts the animation again
    row.current.classList.add("fresh");
  }, [touched]);
  const { status, comment } = report;
  const decision = report.decided_by && name(report.decided_by) + (comment ? `: “${comment}”` : ` ${status} this`);
  return h(
    "li",
    { ref: row, className: "row", "data-testid": "report-row", "data-status": status },
    h(
      "div",
      { className: "row-main" },
      h("p", { className: "row-title" }, report.title),
      h("p", { className: "row-facts" }, name(report.author), " · ", h(Time, { at: report.submitted_at })),
      report.note && h("p", { className: "row-note" }, report.note),
      decision && h("p", { className: "row-decision" }, decision),
    ),
    h("p", { className: "row-amount" }, money.format(report.cents / 100)),
    h("p", { className: "row-status" }, h("span", { className: "chip" }, status)),
    (page.removes || (page.decides && status === "waiting")) && h(Actions, { report, attempt }),
  );
}

function Actions({ report, attempt }) {
  const [busy, setBusy] = useState(false);
  const [comment, setComment] = useState(null); // null while nobody wants to write one
  const act = (method, path) => async () => {
    setBusy(true);
    await attempt(() => send(method, `${page.reports}/${report.id}${path}`, { comment: comment ?? "" }));
    setBusy(false);
  };
  const button = (label, kind, testid, onClick) =>
    h("button", { className: `button ${kind}`, type: "button", "data-testid": testid, disabled: busy, onClick }, label);
  return h(
    "div",
    { className: "row-actions" },
    page.decides &&
      report.status === "waiting" &&
      h(
        "div",
        { className: "decision" },
        comment !== null &&
          h(
            "label",
            { className: "comment" },
            h("span", null, `Comment for ${name(report.author)}`),
            h("input", { value: comment, maxLength: 500, autoComplete: "off", autoFocus: true, onChange: (event) => setComment(event.target.value) }),
          ),
        h(
          "button",
          { className: "button quiet", type: "button", "aria-expanded": comment !== null, onClick: () => setComment(comment === null ? "" : null) },
          "Comment",
        ),
        button("Reject", "", "reject", act("POST", "/reject")),
        button("Approve", "primary", "approve", act("POST", "/approve")),
      ),
    page.removes && button("Delete", "quiet danger", "remove", act("DELETE", "")),
  );
}

function NewReport({ attempt }) {
  const submit = async (event) => {
    event.preventDefault();
    const form = event.currentTarget;
    await attempt(async () => {
      await send("POST", page.reports, Object.fromEntries(new FormData(form)));
      form.reset();
      form.elements.title.focus();
    });
  };
  return h(
    "section",
    { className: "card", "aria-labelledby": "new-title" },
    h("div", { className: "card-head" }, h("h2", { id: "new-title" }, "New report")),
    h(
      "form",
      { className: "new-report", "data-testid": "new-report-form", autoComplete: "off", onSubmit: submit },
      h("label", null, "Title", h("input", { name: "title", required: true, maxLength: 120 })),
      h("label", null, "Amount in euros", h("input", { name: "amount", type: "number", required: true, min: "0.01", max: "1000000", step: "0.01", placeholder: "0.00" })),
      h("label", null, h("span", null, "Note ", h("span", { className: "optional" }, "optional")), h("textarea", { name: "note", maxLength: 500, rows: 2 })),
      h("button", { className: "button primary" }, "Submit for approval"),
    ),
  );
}

function Activity({ happenings }) {
  const item = (event) => {
    const { what = "other", by, report } = change(event) ?? {};
    const text = report ? `${name(by)} ${VERBS[what]} “${report.title}”` : `A ${event.type} event for ${name(page.user)}`;
    return h(
      "li",
      { key: event.id, className: "happening", "data-what": what },
      h("span", { className: "happening-dot", "aria-hidden": true }),
      h(
        "div",
        null,
        h("p", { className: "happening-text" }, text),
        h("p", { className: "happening-facts" }, h(Time, { at: event.at ?? Date.now() }), ` via ${event.method === "sse" ? "SSE" : "polling"}`),
      ),
    );
  };
  return h(
    "section",
    { className: "card", "aria-labelledby": "activity-title" },
    h("div", { className: "card-head" }, h("h2", { id: "activity-title" }, "Activity")),
    h("ol", { className: "activity", role: "log", "aria-labelledby": "activity-title", "data-testid": "activity" }, happenings.map(item)),
    !happenings.length && h("p", { className: "empty" }, "Nothing has happened since you opened this page."),
  );
}

/** Draw again every `ms`, and at these events of the window. */
function useTick(ms, ...events) {
  const [, tick] = useState(0);
  useEffect(() => {
    const again = () => tick((count) => count + 1);
    const timer = setInterval(again, ms);
    for (const event of events) addEventListener(event, again);
    return () => {
      clearInterval(timer);
      for (const event of events) removeEventListener(event, again);
    };
  }, []);
}

function Time({ at }) {
  useTick(30_000);
  return h("time", { dateTime: new Date(at).toISOString(), title: absolute.format(at) }, ago(at));
}

createRoot(document.getElementById("app")).render(
  h(
    StrictMode,
    null,
    h(DashboardProvider, { url: page.realtime, name: page.user, reduce, fetch: streams.fetch, timings: TIMINGS }, h(App)),
  ),
);
