// The client as a page has it: a real fetch against a real HTTP server on loopback.
import assert from "node:assert/strict";
import { once } from "node:events";
import { copyFile, mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { connect } from "../../hybrid/static/hybrid.js";

const FAST = { base: 20, first: 10, cap: 100, probe: 40, poll: 30, shortLife: 0 };
const HELLO = (cursor = "e.0.origin") =>
  `retry: 20\n\nid: ${cursor}\nevent: hybrid.hello\ndata: {"protocol":1,"cursor":"${cursor}","heartbeat":15000}\n\n`;
const EVENT = (offset, type = "tick") => `id: e.${offset}.id${offset}\nat: 7\nevent: ${type}\ndata: ${offset}\n\n`;

/** A server whose answers the test gives; `next(path)` is the next request for it. */
async function site(t) {
  const waiting = [];
  const came = [];
  const server = createServer((request, response) => {
    const url = new URL(request.url, "http://x");
    const call = { request, response, path: url.pathname, query: url.searchParams, closed: once(response, "close") };
    call.stream = (text) => {
      response.writeHead(200, { "Content-Type": "text/event-stream" });
      response.write(text);
      return call;
    };
    call.json = (body, status = 200, headers = {}) => {
      response.writeHead(status, { "Content-Type": "application/json", ...headers });
      response.end(JSON.stringify(body));
    };
    call.refuse = (status, headers = {}) => {
      response.writeHead(status, { "Content-Type": "application/problem+json", ...headers });
      response.end("{}");
    };
    const taker = waiting.findIndex((each) => each.path === call.path);
    if (taker >= 0) waiting.splice(taker, 1)[0].resolve(call);
    else came.push(call);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const clients = [];
  t.after(() => {
    for (const client of clients) client.close();
    server.closeAllConnections();
    server.close();
  });
  return {
    server,
    connect: (options = {}) => {
      const client = connect(`http://127.0.0.1:${server.address().port}/rt/`, { timings: FAST, ...options });
      clients.push(client);
      return client;
    },
    next: (path) => {
      const index = came.findIndex((each) => each.path === path);
      if (index >= 0) return Promise.resolve(came.splice(index, 1)[0]);
      return new Promise((resolve) => waiting.push({ path, resolve }));
    },
  };
}

/** Resolves when the client has heard `count` events; to all that it has heard. */
function hears(client, count, type = "*") {
  const heard = [];
  return new Promise((resolve) => {
    client.on(type, (event) => {
      heard.push(event);
      if (heard.length === count) resolve(heard);
    });
  });
}

const becomes = (client, test) =>
  new Promise((resolve) => {
    const off = client.subscribe(() => {
      if (test(client.state)) {
        off();
        resolve(client.state);
      }
    });
    if (test(client.state)) resolve(client.state);
  });

test("a stream: what is asked, what is heard, what the state says", async (t) => {
  const { connect, next } = await site(t);
  const client = connect({ topics: ["a b", "c&d"], cursor: "e.0.origin", headers: { "X-Key": "k" } });
  assert.equal(client.state.isConnected, false);
  const heard = hears(client, 2);
  const typed = hears(client, 1, "other");
  const call = await next("/rt/sse");
  assert.deepEqual(call.query.getAll("topic"), ["a b", "c&d"]);
  assert.equal(call.query.get("since"), "e.0.origin");
  assert.equal(call.request.headers.accept, "text/event-stream, application/problem+json");
  assert.equal(call.request.headers["x-key"], "k");
  assert.equal(call.request.headers["last-event-id"], undefined);
  call.stream(HELLO() + EVENT(1) + EVENT(2, "other"));
  assert.deepEqual((await heard).map((event) => event.data), [1, 2]);
  assert.equal((await typed)[0].type, "other");
  const [event] = await heard;
  assert.deepEqual(event, { id: "id1", cursor: "e.1.id1", type: "tick", data: 1, at: 7, method: "sse", provisional: false });
  assert.ok(Object.isFrozen(event));
  assert.equal(client.state.activeMethod, "sse");
  assert.equal(client.state.lastEvent.data, 2);
  assert.ok(Object.isFrozen(client.state));
  assert.equal(client.state, client.state, "the same object until something changes");
});

test("R-42 6 a stream cut in the middle of a block delivers its event once", async (t) => {
  const { connect, next } = await site(t);
  const client = connect();
  const heard = hears(client, 2);
  const first = (await next("/rt/sse")).stream(HELLO() + EVENT(1) + EVENT(2).slice(0, -1));
  await hears(client, 1);
  first.response.destroy();
  const second = await next("/rt/sse");
  assert.equal(second.query.get("since"), "e.1.id1", "an id counts when its block is complete");
  second.stream(HELLO("e.1.id1") + EVENT(2));
  assert.deepEqual((await heard).map((event) => event.data), [1, 2]);
});

test("3 4 from streams to polls and back, one cursor all the way", async (t) => {
  const { connect, next } = await site(t);
  const client = connect({ cursor: "e.0.origin" });
  const heard = hears(client, 4);
  for (let tries = 0; tries < 3; tries += 1) (await next("/rt/sse")).refuse(502);
  const poll = await next("/rt/polling");
  assert.equal(poll.request.headers.accept, "application/json");
  const item = (n) => ({ id: `id${n}`, cursor: `e.${n}.id${n}`, type: "tick", data: n, at: 7 });
  poll.json({ events: [item(1), item(2)], cursor: "e.2.id2", more: false, gap: null, wait: 30, bus: "ok" });
  await becomes(client, (state) => state.activeMethod === "polling");
  assert.equal(client.state.bus, "ok");
  const probe = await next("/rt/sse");
  probe.stream(HELLO("e.2.id2") + EVENT(2) + EVENT(3));
  await becomes(client, (state) => state.activeMethod === "sse");
  probe.response.write(EVENT(4));
  assert.deepEqual((await heard).map((event) => `${event.method} ${event.data}`), ["polling 1", "polling 2", "sse 3", "sse 4"]);
});

test("15 16 headers are asked for before every request, and onAuth once", async (t) => {
  const { connect, next } = await site(t);
  let token = 0;
  const asked = [];
  const client = connect({
    headers: async () => ({ Authorization: `token ${++token}` }),
    onAuth: async (error) => asked.push(error.status) > 0,
  });
  const first = await next("/rt/sse");
  assert.equal(first.request.headers.authorization, "token 1");
  first.refuse(401);
  const second = await next("/rt/sse");
  assert.equal(second.request.headers.authorization, "token 2");
  second.refuse(401);
  await becomes(client, (state) => state.stopped);
  assert.deepEqual(asked, [401]);
  assert.equal(client.state.error.status, 401);
});

for (const [answer, again] of [[true, true], ["a fresh token", true], [{}, true], [false, false], [null, false], ["", false], [undefined, false], [Error, false]]) {
  test(`15 onAuth that resolves to ${answer?.name ?? JSON.stringify(answer)} means ${again ? "one more try" : "the end"}`, async (t) => {
    const { connect, next } = await site(t);
    const client = connect({
      onAuth: async () => {
        if (answer === Error) throw Error("the login is away");
        return answer;
      },
    });
    (await next("/rt/sse")).refuse(401);
    if (again) (await next("/rt/sse")).stream(HELLO());
    const { stopped, error } = await becomes(client, (state) => state.isConnected || state.stopped);
    assert.equal(stopped, !again);
    assert.equal(error?.status, again ? undefined : 401);
  });
}

test("16 a poll asks for its headers as well", async (t) => {
  const { connect, next } = await site(t);
  let token = 0;
  connect({ transport: "polling", headers: () => ({ Authorization: `token ${++token}` }) });
  for (const wanted of ["token 1", "token 2", "token 3"]) {
    const poll = await next("/rt/polling");
    assert.equal(poll.request.headers.authorization, wanted);
    poll.json({ events: [], cursor: "e.0.origin", more: true, gap: null, wait: 30 });
  }
});

test("16 headers that cannot be had are a failure, not the end", async (t) => {
  const { connect, next } = await site(t);
  let tries = 0;
  const client = connect({
    headers: () => {
      if (++tries === 1) throw new Error("no token yet");
      return {};
    },
  });
  const error = new Promise((resolve) => client.on("error", resolve));
  (await next("/rt/sse")).stream(HELLO());
  await becomes(client, (state) => state.isConnected);
  assert.equal(tries, 2);
  assert.ok(await error);
});

test("17 an answer of another type is not read", async (t) => {
  const { connect, next } = await site(t);
  const client = connect({ transport: "sse" });
  const failed = new Promise((resolve) => client.on("error", resolve));
  client.on("*", () => assert.fail("an event out of a web page"));
  const call = await next("/rt/sse");
  call.response.writeHead(200, { "Content-Type": "text/html" });
  call.response.write(HELLO() + EVENT(1));
  assert.match((await failed).message, /text\/html/);
  await call.closed;
});

test("18 close() ends the request, and nothing is heard afterwards", async (t) => {
  const { connect, next } = await site(t);
  const client = connect();
  const heard = [];
  client.on("*", (event) => {
    heard.push(event.data);
    client.close();
    client.close();
  });
  const call = (await next("/rt/sse")).stream(HELLO() + EVENT(1) + EVENT(2));
  await call.closed;
  assert.deepEqual(heard, [1]);
  assert.equal(client.state.isConnected, false);
  assert.equal(client.state.activeMethod, null);
  client.reconnect();
  assert.equal(client.state.isConnected, false);
});

test("19 close() while the headers are awaited sends nothing", async (t) => {
  const { server, connect } = await site(t);
  server.on("request", () => assert.fail("a request after close()"));
  let give;
  const client = connect({ headers: () => new Promise((resolve) => (give = resolve)) });
  await null; // the client begins in a moment
  client.close();
  give({});
  await new Promise(setImmediate);
  await new Promise(setImmediate);
});

test("a client that is closed at once asks for nothing", async (t) => {
  const { server, connect } = await site(t);
  server.on("request", () => assert.fail("a request after close()"));
  connect({ headers: () => assert.fail("asked for headers after close()") }).close();
  await new Promise(setImmediate);
});

/** The messages of what reaches the page's error handler: it is thrown from a timer without delay. */
function reported(t) {
  const thrown = [];
  const { setTimeout } = globalThis;
  globalThis.setTimeout = (call, ...rest) =>
    rest.length
      ? setTimeout(call, ...rest)
      : setTimeout(() => {
          assert.throws(call, (error) => thrown.push(error.message) > 0);
        });
  t.after(() => (globalThis.setTimeout = setTimeout));
  return thrown;
}

test("35 a listener that throws stops nobody else, and the error is not swallowed", async (t) => {
  const { connect, next } = await site(t);
  const client = connect();
  const thrown = reported(t);
  client.on("tick", () => {
    throw new Error("of the page");
  });
  const heard = hears(client, 2, "tick");
  (await next("/rt/sse")).stream(HELLO() + EVENT(1) + EVENT(2));
  await heard;
  await new Promise((resolve) => setTimeout(resolve, 1));
  assert.deepEqual(thrown, ["of the page", "of the page"]);
});

test("reconnect() from within a listener loses nothing", async (t) => {
  const { connect, next } = await site(t);
  const client = connect();
  let once = true;
  client.on("tick", () => {
    if (once) client.reconnect();
    once = false;
  });
  const heard = hears(client, 2);
  (await next("/rt/sse")).stream(HELLO() + EVENT(1) + EVENT(2));
  const again = await next("/rt/sse");
  assert.equal(again.query.get("since"), "e.1.id1");
  again.stream(HELLO("e.1.id1") + EVENT(2));
  assert.deepEqual((await heard).map((event) => event.data), [1, 2]);
});

test("a listener is taken off by what on() returned, and one added twice is called twice", async (t) => {
  const { connect, next } = await site(t);
  const client = connect();
  const calls = [];
  const listener = (event) => calls.push(event.data);
  const off = client.on("tick", listener);
  client.on("tick", listener);
  const { subscribe } = client; // a hook takes it off its object
  subscribe(() => {});
  const call = (await next("/rt/sse")).stream(HELLO() + EVENT(1));
  await hears(client, 1);
  off();
  off();
  call.response.write(EVENT(2));
  await hears(client, 1);
  assert.deepEqual(calls, [1, 1, 2]);
});

test("R-104 provisional, gap, status and bye reach their listeners; an event of such a type comes under * alone", async (t) => {
  const { connect, next } = await site(t);
  const client = connect();
  const gap = new Promise((resolve) => client.on("gap", resolve));
  const status = new Promise((resolve) => client.on("status", resolve));
  const heard = hears(client, 3);
  const waits = becomes(client, (state) => state.status === "waiting");
  (await next("/rt/sse")).stream(
    `${HELLO()}id: e.5.x\nevent: hybrid.gap\ndata: {"reason":"expired","cursor":"e.5.x"}\n\nevent: hybrid.status\ndata: {"bus":"degraded"}\n\n${EVENT(6, "status")}${EVENT(7)}eid: p\nevent: tick\ndata: 8\n\nevent: hybrid.bye\ndata: {"reason":"drain","after":60000}\n\n`,
  );
  assert.deepEqual(await gap, { reason: "expired", cursor: "e.5.x" });
  assert.deepEqual(await status, { bus: "degraded" });
  assert.deepEqual((await heard).map((event) => [event.type, event.provisional]), [["status", false], ["tick", false], ["tick", true]]);
  assert.equal((await waits).error, null, "a goodbye is no failure");
  assert.ok(client.state.retryAt >= Date.now() + 50_000);
  assert.equal(client.state.bus, "degraded");
});

test("11 Retry-After in seconds", async (t) => {
  const { connect, next } = await site(t);
  const client = connect({ transport: "sse" });
  const asked = Date.now();
  (await next("/rt/sse")).refuse(503, { "Retry-After": "60" });
  const { retryAt } = await becomes(client, (state) => state.retryAt !== null);
  assert.ok(retryAt >= asked + 60_000 && retryAt <= Date.now() + 72_000);
});

test("11 Retry-After as a date", async (t) => {
  const { connect, next } = await site(t);
  const client = connect({ transport: "sse" });
  const when = new Date(Date.now() + 60_000);
  (await next("/rt/sse")).refuse(503, { "Retry-After": when.toUTCString() });
  const { retryAt } = await becomes(client, (state) => state.retryAt !== null);
  assert.ok(retryAt > when.getTime() - 2_000);
  assert.ok(retryAt < when.getTime() + 15_000);
});

test("the page's own fetch is used, and one that ignores its signal leaves nothing open", async (t) => {
  const { connect, next } = await site(t);
  let controller;
  const client = connect({
    fetch: (url, { signal, ...init }) => {
      controller = signal;
      return fetch(url, init);
    },
  });
  (await next("/rt/sse")).stream(HELLO());
  await becomes(client, (state) => state.isConnected);
  assert.equal(controller.aborted, false);
  client.close();
  assert.equal(controller.aborted, true);
});

test("29 without readable bodies it polls at once", async (t) => {
  const { connect, next } = await site(t);
  const { ReadableStream } = globalThis;
  delete globalThis.ReadableStream;
  t.after(() => (globalThis.ReadableStream = ReadableStream));
  connect();
  await next("/rt/polling");
});

test("50 importing it makes no global", async () => {
  const before = Object.getOwnPropertyNames(globalThis);
  await import("../../hybrid/static/hybrid.js?again");
  assert.deepEqual(Object.getOwnPropertyNames(globalThis), before);
});

test("events() is a loop over events of a type or of a beginning of types, and ends with close()", async (t) => {
  const { connect, next } = await site(t);
  const client = connect();
  const call = next("/rt/sse");
  const told = [];
  client.on("order.*", (event) => told.push(event.type));
  const loop = (async () => {
    const heard = [];
    for await (const event of client.events("order.*")) {
      heard.push(event.data);
      if (heard.length === 2) client.close();
    }
    return heard;
  })();
  (await call).stream(HELLO() + EVENT(1, "order.new") + EVENT(2, "other") + EVENT(3, "order.paid"));
  assert.deepEqual(await loop, [1, 3]);
  assert.deepEqual(told, ["order.new", "order.paid"]);
});

test("events() leaves no listener behind, however many loops there were", async (t) => {
  const { connect, next } = await site(t);
  const warnings = [];
  const warned = ({ name }) => warnings.push(name);
  process.on("warning", warned);
  t.after(() => process.off("warning", warned));
  const client = connect();
  const call = (await next("/rt/sse")).stream(HELLO());
  for (let loop = 1; loop <= 12; loop += 1) {
    const events = client.events();
    const first = events.next();
    call.response.write(EVENT(loop));
    assert.equal((await first).value.data, loop);
    await events.return();
  }
  const waiting = Array.from({ length: 12 }, () => client.events().next());
  client.close();
  for (const { done } of await Promise.all(waiting)) assert.ok(done);
  await new Promise(setImmediate);
  assert.deepEqual(warnings, []);
});

/** Resolves when it shows these rows, to the state that has them. */
function shower() {
  const shown = [];
  let look = () => {};
  return {
    show: (state) => look(shown.push(state)),
    shown,
    rows: (wanted) =>
      new Promise((resolve) => {
        look = () => JSON.stringify(shown.at(-1)?.data) === JSON.stringify(wanted) && resolve(shown.at(-1));
        look();
      }),
  };
}

test("load(): events that arrive during a fetch are played over what it brings, also after a gap", async (t) => {
  const { server, connect, next } = await site(t);
  const client = connect();
  const { show, rows } = shower();
  const off = client.load(
    (init) => fetch(`http://127.0.0.1:${server.address().port}/rows`, init),
    (old, { type, data }) => (type === "tick" ? [...old.filter((row) => row !== data), data] : old),
    show,
  );
  const { response } = (await next("/rt/sse")).stream(HELLO());
  const first = await next("/rows");
  response.write(EVENT(1) + EVENT(2));
  await hears(client, 2);
  first.json([1], 200, { "X-Realtime-Cursor": "e.1.id1" });
  assert.equal((await rows([1, 2])).isStale, false);
  response.write('id: e.5.x\nevent: hybrid.gap\ndata: {"reason":"expired","cursor":"e.5.x"}\n\n');
  const second = await next("/rows");
  response.write(EVENT(6)); // after the rows were read, before they are here
  await hears(client, 1);
  second.json([1, 2, 5], 200, { "X-Realtime-Cursor": "e.5.x" });
  await rows([1, 2, 5, 6]);
  assert.equal(client.cursor, "e.6.id6");
  off();
  off();
});

test("load() that is taken back at once, or whose client is closed, fetches nothing", async (t) => {
  const { connect } = await site(t);
  const fails = () => assert.fail("a fetch");
  connect().load(fails, null, fails)();
  const client = connect();
  client.load(fails, null, fails);
  client.close();
  await import("../../hybrid/static/dashboard.js");
  await new Promise((resolve) => setTimeout(resolve));
});

test("14 what the server says of a refusal is the error, and what is no page of the server's is none", async (t) => {
  const { connect, next } = await site(t);
  for (const [type, body, status, stopped, message] of [
    ["application/problem+json", '{"status":403,"detail":"the topic is not open to you"}', 403, true, "the topic is not open to you"],
    ["application/problem+json; charset=utf-8", "{", 403, true, "answered 403 application/problem+json"],
    ["application/problem+json", "null", 404, true, "answered 404 application/problem+json"],
    ["text/html", "<h1>Not Found</h1>", 404, false, "answered 404 text/html"],
  ]) {
    const client = connect({ timings: {}, transport: "sse" });
    const { response } = await next("/rt/sse");
    response.writeHead(status, { "Content-Type": type });
    response.end(body);
    const { error, stopped: ended } = await becomes(client, (state) => state.error);
    assert.deepEqual({ ...error }, { message, status });
    assert.equal(ended, stopped);
    client.close();
  }
});

test("15 a redirect to a login page is told to onAuth", async (t) => {
  const { connect, next } = await site(t);
  const asked = [];
  const client = connect({ onAuth: (error) => asked.push(error.message) });
  const { response } = await next("/rt/sse");
  response.writeHead(302, { Location: "/login" }).end();
  const login = await next("/login");
  login.response.writeHead(200, { "Content-Type": "text/html" });
  login.response.end("<form>");
  (await next("/rt/sse")).stream(HELLO());
  await becomes(client, (state) => state.isConnected);
  assert.deepEqual(asked, ["redirected, answered 200 text/html"]);
});

test("topics that are too long for an address are posted, over both ways", async (t) => {
  const { connect, next } = await site(t);
  const topics = Array.from({ length: 100 }, (_, each) => `project:${each}:`.padEnd(100, "x"));
  const [few, streamed, polled] = [topics.slice(0, 10), topics, topics];
  const wanted = async (path, method, body) => {
    const { request, query, response } = await next(path);
    assert.equal(request.method, method);
    assert.deepEqual(query.getAll("topic"), body ? [] : few);
    assert.equal(query.get("since"), "e.0.origin");
    let text = "";
    for await (const piece of request) text += piece;
    assert.equal(text, body ? JSON.stringify({ topics: body }) : "");
    assert.equal(request.headers["content-type"], body ? "application/json" : undefined);
    response.writeHead(204).end();
  };
  connect({ topics: few, cursor: "e.0.origin" });
  await wanted("/rt/sse", "GET");
  connect({ topics: streamed, cursor: "e.0.origin" });
  await wanted("/rt/sse", "POST", streamed);
  connect({ topics: polled, cursor: "e.0.origin", transport: "polling" });
  await wanted("/rt/polling", "POST", polled);
});

test("load() whose part cannot be had says so, and tries again", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "hybrid-"));
  t.after(() => rm(folder, { recursive: true }));
  const source = new URL("../../hybrid/static/", import.meta.url);
  await writeFile(join(folder, "package.json"), '{"type":"module"}');
  await copyFile(new URL("hybrid.js", source), join(folder, "hybrid.js"));
  const { connect } = await import(join(folder, "hybrid.js"));
  const timers = [];
  const { setTimeout } = globalThis;
  globalThis.setTimeout = (act, ms) => (ms === 5_000 ? timers.push(act) : setTimeout(act, ms));
  t.after(() => (globalThis.setTimeout = setTimeout));
  const client = connect("http://127.0.0.1:1/rt", { fetch: () => new Promise(() => {}) });
  t.after(() => client.close());
  let off;
  const { error, isLoading } = await new Promise((resolve) => (off = client.load("/rows", null, resolve)));
  assert.match(error.message, /dashboard\.js/);
  assert.equal(isLoading, false);
  while (!timers.length) await new Promise((resolve) => setImmediate(resolve));
  await copyFile(new URL("dashboard.js", source), join(folder, "dashboard.js"));
  off();
  await new Promise((resolve) => {
    client.load(() => new Promise(() => resolve()), null, () => {});
    timers[0](); // that of the one that was taken back
  });
});

test("40 an event beyond maxBuffer is a failure that says so", async (t) => {
  const { connect, next } = await site(t);
  const client = connect({ maxBuffer: 1000 });
  const error = new Promise((resolve) => client.on("error", resolve));
  (await next("/rt/sse")).stream(`${HELLO()}data: ${"x".repeat(2000)}`);
  assert.match((await error).message, /longer than maxBuffer/);
});

/** Web Locks, which this Node may lack: one holder a name, the others in turn. */
function giveLocks(t) {
  const held = new Map();
  const queue = [];
  const next = (name) => {
    const index = queue.findIndex((each) => each.name === name);
    if (held.has(name) || index < 0) return;
    const [{ hold, resolve }] = queue.splice(index, 1);
    held.set(name, hold);
    Promise.resolve(hold()).then(() => {
      held.delete(name);
      resolve();
      next(name);
    });
  };
  const locks = {
    request: (name, { signal }, hold) =>
      new Promise((resolve, reject) => {
        const waiting = { name, hold, resolve };
        queue.push(waiting);
        signal?.addEventListener("abort", () => {
          if (!queue.includes(waiting)) return;
          queue.splice(queue.indexOf(waiting), 1);
          reject(signal.reason);
        });
        queueMicrotask(() => next(name));
      }),
  };
  const before = Object.getOwnPropertyDescriptor(globalThis, "navigator");
  Object.defineProperty(globalThis, "navigator", { value: { locks }, configurable: true });
  t.after(() => (before ? Object.defineProperty(globalThis, "navigator", before) : delete globalThis.navigator));
  return held;
}

test("19 24 a client that is closed before, while or after tabs.js is loaded leads nobody", async (t) => {
  const { connect } = await site(t);
  const held = giveLocks(t);
  for (let turns = 0; turns < 30; turns += 1) {
    const client = connect({ name: "ada" });
    for (let turn = 0; turn < turns; turn += 1) await null;
    client.close();
    // The last of what it may still do, also where the file is loaded for the first time.
    await import("../../hybrid/static/tabs.js");
    await new Promise((resolve) => setImmediate(resolve));
    assert.equal(held.size, 0, `closed after ${turns} turns, it holds the lock`);
    assert.equal(client.state.status, "closed");
  }
  await becomes(connect({ name: "ada" }), (state) => state.role === "leader");
});

function giveStorage(t) {
  const kept = new Map();
  globalThis.sessionStorage = new Proxy({}, { get: (_, key) => kept.get(key), set: (_, key, value) => kept.set(key, value) });
  t.after(() => delete globalThis.sessionStorage);
  return kept;
}

test("27 two connections have one key only if address, topics and name are the same, in whatever order", async (t) => {
  const { connect } = await site(t);
  const kept = giveStorage(t);
  const connections = [
    { topics: ["x,y"] },
    { topics: ["x", "y"] },
    { topics: ["#a"], name: "b" },
    { topics: [], name: "a#b" },
    { topics: [], name: "b" },
    { topics: [], name: "undefined" },
    {},
  ];
  for (const [index, options] of connections.entries()) {
    await becomes(connect({ ...options, share: false }), (state) => state.status === "connecting");
    await null; // it is kept after those who listen have heard
    assert.equal(kept.size, index + 1, JSON.stringify(options));
  }
  await becomes(connect({ topics: ["y", "x"] }), (state) => state.status === "connecting");
  await null;
  assert.equal(kept.size, connections.length);
});

/** The same global, for the time of a test. */
function replace(t, name, value) {
  const before = globalThis[name];
  globalThis[name] = value;
  t.after(() => (globalThis[name] = before));
}

const refuse = () => {
  throw new DOMException("The operation is insecure.", "SecurityError");
};

for (const [what, break_] of Object.entries({
  "a channel that cannot be had": (t) => replace(t, "BroadcastChannel", class { constructor() { refuse(); } }),
  "locks that cannot be had": () => Object.defineProperty(navigator, "locks", { get: refuse }),
  "locks that refuse at once": () => (navigator.locks.request = refuse),
  "locks that refuse later": () => (navigator.locks.request = async () => refuse()),
})) {
  test(`28 with ${what} a tab works alone`, async (t) => {
    const { connect, next } = await site(t);
    giveLocks(t);
    break_(t);
    const client = connect({ name: "ada" });
    const heard = hears(client, 2);
    const call = (await next("/rt/sse")).stream(HELLO() + EVENT(1));
    await becomes(client, (state) => state.lastEvent);
    assert.equal(client.state.role, "solo");
    call.response.destroy();
    (await next("/rt/sse")).stream(HELLO("e.1.id1") + EVENT(2));
    assert.deepEqual((await heard).map((event) => event.data), [1, 2]);
  });
}

test("28 a hook that throws no error is a failure like any other, for all tabs", async (t) => {
  const { connect, next } = await site(t);
  giveLocks(t);
  const things = [new Response("", { status: 500 }), undefined, Object.create(null), Symbol("thing"), { message: {} }];
  const client = connect({ name: "ada", transport: "sse", headers: async () => { if (things.length) throw things.shift(); } });
  const messages = [];
  client.on("error", ({ message }) => messages.push(message));
  const follower = connect({ name: "ada" });
  await becomes(follower, (state) => state.role === "follower" && state.error);
  (await next("/rt/sse")).stream(HELLO() + EVENT(1));
  await Promise.all([client, follower].map((each) => becomes(each, (state) => state.lastEvent)));
  assert.deepEqual(messages, ["[object Response]", "undefined", "unknown", "Symbol(thing)", "[object Object]"]);
});

test("28 what one effect throws stops neither the others nor the timer", async (t) => {
  const { connect, next } = await site(t);
  giveLocks(t);
  const thrown = reported(t);
  replace(t, "BroadcastChannel", class { postMessage() { refuse(); } close() { refuse(); } });
  const client = connect({ name: "ada" });
  const heard = hears(client, 2);
  (await next("/rt/sse")).stream(HELLO() + EVENT(1));
  await becomes(client, (state) => state.lastEvent);
  client.reconnect();
  (await next("/rt/sse")).stream(HELLO("e.1.id1") + EVENT(2));
  assert.deepEqual((await heard).map((event) => event.data), [1, 2]);
  client.close();
  await new Promise((resolve) => setTimeout(resolve, 1));
  assert.deepEqual(new Set(thrown), new Set(["The operation is insecure."]));
});

test("17 an answer that is no poll after all is a failure, and is asked again", async (t) => {
  const { connect, next } = await site(t);
  reported(t);
  const client = connect({ transport: "polling", timings: { ...FAST, open: 200 } });
  (await next("/rt/polling")).json({ events: [null], cursor: "e.1.id1" });
  (await next("/rt/polling")).json({ events: [], cursor: "e.1.id1" });
  assert.equal((await becomes(client, (state) => state.isConnected && !state.error)).activeMethod, "polling");
});

/** A clock that the test sets back by an hour. */
function turnedBack(t) {
  const { now } = Date;
  t.after(() => (Date.now = now));
  return () => (Date.now = () => now() - 3_600_000);
}

test("57 the clock is set back an hour: retries go on, and retryAt is of the clock as it is now", async (t) => {
  const { connect, next } = await site(t);
  const back = turnedBack(t);
  const client = connect({ transport: "sse" });
  (await next("/rt/sse")).refuse(503);
  await becomes(client, (state) => state.status === "waiting");
  back();
  (await next("/rt/sse")).refuse(503);
  const { retryAt } = await becomes(client, (state) => state.attempt === 2);
  assert.ok(retryAt > Date.now() - 60_000 && retryAt < Date.now() + 60_000);
});

test("57 the clock is set back an hour: a stream that stalls is ended", async (t) => {
  const { connect, next } = await site(t);
  const back = turnedBack(t);
  const client = connect({ timings: { ...FAST, stall: 100 } });
  (await next("/rt/sse")).stream(HELLO().replace("15000", "10"));
  await becomes(client, (state) => state.isConnected);
  back();
  assert.match((await becomes(client, (state) => state.error)).error.message, /stalled/);
});

test("57 the clock is set back an hour: polls that are not held go on, and the cursor is kept", async (t) => {
  const { connect, next } = await site(t);
  const kept = giveStorage(t);
  const back = turnedBack(t);
  const client = connect({ transport: "polling" });
  const poll = async (offset) => (await next("/rt/polling")).json({ events: [], cursor: `e.${offset}.id${offset}`, more: false, gap: null, wait: 30 });
  await poll(1);
  await becomes(client, (state) => state.isConnected);
  back();
  const since = Date.now();
  for (let offset = 2; ; offset += 1) {
    await poll(offset);
    const [text] = kept.values();
    if (JSON.parse(text).cursor !== "e.1.id1") break; // it is kept once a second
    assert.ok(Date.now() < since + 20_000, "nothing is kept any more");
  }
});

test("31 55 a storage as pages have it: the cursor, and that streams did not work, also after close()", async (t) => {
  const { connect, next } = await site(t);
  const kept = giveStorage(t);
  const client = connect({ cursor: "e.0.origin" });
  for (let tries = 0; tries < 3; tries += 1) (await next("/rt/sse")).refuse(502);
  (await next("/rt/polling")).json({ events: [], cursor: "e.2.id2", more: false, gap: null, wait: 30 });
  await becomes(client, (state) => state.activeMethod === "polling");
  const [key] = kept.keys();
  assert.equal(JSON.parse(kept.get(key)).name, undefined);
  kept.set(key, JSON.stringify({ cursor: "e.2.id2", pollUntil: Date.now() + 60_000 }));
  const again = connect({ cursor: null, timings: { ...FAST, soon: 20 } });
  assert.equal((await next("/rt/polling")).query.get("since"), "e.2.id2");
  assert.ok(await next("/rt/sse"), "and it looks soon");
  again.close();
  assert.equal(JSON.parse(kept.get(key)).cursor, "e.2.id2");
  kept.set(key, "of another client since");
  again.close();
  assert.equal(kept.get(key), "of another client since");
});

test("31 who closes and connects again goes on from where it was, and with persist: false begins at now", async (t) => {
  const { connect, next } = await site(t);
  giveStorage(t);
  const first = connect();
  (await next("/rt/sse")).stream(HELLO() + EVENT(1) + EVENT(2));
  await hears(first, 2);
  first.close();
  const other = connect({ persist: false });
  assert.equal((await next("/rt/sse")).query.get("since"), null);
  other.close();
  connect();
  assert.equal((await next("/rt/sse")).query.get("since"), "e.2.id2");
});

test("parse takes the place of JSON.parse, over both ways", async (t) => {
  const { connect, next } = await site(t);
  const large = "12345678901234567890";
  const parse = (text) => JSON.parse(text.replaceAll(large, `"n${large}"`), (_, value) => (/^n\d+$/.test(value) ? BigInt(value.slice(1)) : value));
  const client = connect({ parse, cursor: "e.0.origin", transport: "sse" });
  const heard = hears(client, 2);
  (await next("/rt/sse")).stream(`${HELLO()}id: e.1.a\ndata: {"n":${large}}\n\nid: e.2.b\ndata: no JSON\n\n`);
  assert.deepEqual((await heard).map((event) => event.data), [{ n: BigInt(large) }, "no JSON"]);
  const polling = connect({ parse, cursor: "e.0.origin", transport: "polling" });
  const polled = hears(polling, 2);
  const { response } = await next("/rt/polling");
  response.writeHead(200, { "Content-Type": "application/json" });
  response.end(`{"events":[{"id":"a","cursor":"e.1.a","type":"t","data":{"n":${large}},"at":7},{"id":"b","cursor":"e.2.b","type":"t","text":"no JSON","at":7}],"cursor":"e.2.b","more":false,"gap":null,"wait":30}`);
  assert.deepEqual((await polled).map((event) => event.data), [{ n: BigInt(large) }, "no JSON"]);
});
