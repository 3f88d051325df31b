// An application that has said nothing of its events: every type is allowed, the data is unknown.
import { connect } from "flask-hybrid";
import { createDashboard } from "flask-hybrid/dashboard";

const live = connect("/api/realtime", { topics: ["report:17"], name: "ada", headers: async () => ({ "X-Key": "k" }) });
const off: () => void = live.on("anything", (event) => {
  const data: unknown = event.data;
  const at: number | null = event.at;
  // @ts-expect-error what is unknown cannot be used as it is
  event.data.id;
  return [data, at];
});
off();
live.on("gap", ({ reason, cursor }) => [reason.length, cursor]);
live.on("state", ({ isConnected, activeMethod }) => isConnected && activeMethod === "sse");
live.on("error", ({ message, status }) => [message.length, status]);

// Whether to try again after a 401: a word for it, or the token that makes it worth while.
connect("/api/realtime", { onAuth: async ({ status }) => status === 401 });
connect("/api/realtime", { onAuth: async () => (await (await fetch("/token")).text()) || null });
connect("/api/realtime", { onAuth: () => false });
// @ts-expect-error who says nothing has forgotten something
connect("/api/realtime", { onAuth: async () => void (await fetch("/token")) });
// @ts-expect-error an answer of the server is truthy even where it is a refusal
connect("/api/realtime", { onAuth: () => fetch("/token") });

// @ts-expect-error an address is a string
connect(17);
// @ts-expect-error there is no such transport
connect("/api/realtime", { transport: "websocket" });
// @ts-expect-error the state is read only
live.state.isConnected = false;
// @ts-expect-error `bus` is not what an error has
live.on("error", ({ bus }) => bus);

// What may be left out may be undefined, and timings are those that there are.
const known: string | undefined = live.state.role === "solo" ? undefined : "ada";
connect("/api/realtime", { name: known, cursor: live.cursor, topics: known ? [known] : undefined, onAuth: undefined, fetch });
connect("/api/realtime", { parse: (text) => JSON.parse(text, (_, value: unknown) => value) });
connect("/api/realtime", { timings: { probe: 3, cap: 60_000 } });
// @ts-expect-error there is no such timing
connect("/api/realtime", { timings: { proeb: 3 } });
// @ts-expect-error one that is undefined would not be the default
connect("/api/realtime", { timings: { probe: undefined } });
live.on("state", ({ status, role }) => status === "waiting" && role === "leader");
// @ts-expect-error there is no such status
live.on("state", ({ status }) => status === "wating");

export async function loop() {
  for await (const event of live.events()) event.type.length;
  for await (const event of live.events("order.*")) {
    // @ts-expect-error what is unknown cannot be used as it is
    event.data.id;
  }
}

const end: () => void = live.load("/orders", (orders: string[], event) => (event.type === "x" ? [...orders, event.type] : orders), ({ data = [], error, isStale }) => [data.length, error?.status, isStale]);
live.load((init) => fetch("/orders", init), null, ({ data }) => data);
// @ts-expect-error it has to be shown somewhere
live.load("/orders", null);
end();

const dashboard = createDashboard({ client: live, reduce: (data) => data });
const reports = dashboard.at<string[]>("/reports");
reports.subscribe(() => reports.get().data?.map((title) => title.length));
// @ts-expect-error it may not be known yet
reports.get().data.length;
// @ts-expect-error a dashboard needs a client
createDashboard({ name: "ada" });
