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

const dashboard = createDashboard({ client: live, reduce: (data) => data });
const reports = dashboard.at<string[]>("/reports");
reports.subscribe(() => reports.get().data?.map((title) => title.length));
// @ts-expect-error it may not be known yet
reports.get().data.length;
// @ts-expect-error a dashboard needs a client
createDashboard({ name: "ada" });
