// A project without the DOM's types, as one for Node or a worker without them.
import { connect, type Options } from "flask-hybrid";
import { createDashboard } from "flask-hybrid/dashboard";

const options: Options = { name: "ada", credentials: "include", fetch: async (address) => ({ ok: true, address }) };
const client = connect("http://localhost:8000/api/realtime", options);
client.load<number[]>("/numbers", null, ({ data }) => data?.length);
const kept = new Map<string, string>();
createDashboard({ client, storage: { getItem: (key) => kept.get(key) ?? null, setItem: (key, text) => void kept.set(key, text) } });
// @ts-expect-error there are three
connect("/api/realtime", { credentials: "sometimes" });
