// Plain EventSource against the same endpoint: each frame as it came, in a table.
const rows = document.querySelector("tbody");
const pill = document.querySelector(".pill");
const stream = new EventSource(document.querySelector("main").dataset.stream);

function show({ type, lastEventId, data }) {
  const row = rows.insertRow(0);
  for (const text of [type, lastEventId, data]) row.insertCell().textContent = text;
  while (rows.rows.length > 50) rows.deleteRow(-1);
}

function say(method, text) {
  pill.dataset.method = method;
  pill.lastElementChild.textContent = text;
}

for (const what of ["submitted", "approved", "rejected", "removed"]) stream.addEventListener(`report.${what}`, show);
stream.addEventListener("test", show);
stream.addEventListener("hybrid.hello", (event) => {
  show(event);
  say("sse", "EventSource");
});
stream.addEventListener("hybrid.gap", () => location.reload());
stream.addEventListener("error", () => say("none", stream.readyState === EventSource.CLOSED ? "Given up" : "Coming back…"));
