// The dashboard with a clock, a client and answers that the test gives: every race by hand, and
// then thousands of them by chance.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createDashboard, shared } from "../../hybrid/static/dashboard.js";

const settle = () => new Promise((resolve) => setImmediate(resolve));

/** Timers that fire when the test says so. */
function stopClock(t) {
  const real = { setTimeout: globalThis.setTimeout, clearTimeout: globalThis.clearTimeout };
  const timers = new Map();
  let now = 0;
  let numbers = 0;
  globalThis.setTimeout = (act, ms = 0) => {
    timers.set(++numbers, { act, at: now + ms });
    return numbers;
  };
  globalThis.clearTimeout = (number) => void timers.delete(number);
  t.after(() => Object.assign(globalThis, real));
  return {
    timers,
    async advance(ms) {
      const end = now + ms;
      for (;;) {
        const [number, timer] = [...timers].sort((a, b) => a[1].at - b[1].at)[0] ?? [];
        if (!timer || timer.at > end) break;
        now = Math.max(now, timer.at);
        timers.delete(number);
        timer.act();
        await settle();
      }
      now = end;
      await settle();
    },
  };
}

/** A client, connected or not, that says what it is told to. */
function fakeClient(isConnected = true) {
  const listeners = new Map();
  return {
    state: { isConnected },
    on(type, listener) {
      if (!listeners.has(type)) listeners.set(type, new Set());
      listeners.get(type).add(listener);
      return () => listeners.get(type).delete(listener);
    },
    say: (type, value) => [...(listeners.get(type) ?? [])].forEach((listener) => listener(value)),
    event(offset, type = "added", epoch = "e") {
      this.say("*", { cursor: offset && `${epoch}.${offset}.id`, type, data: offset });
    },
    connect() {
      this.state = { isConnected: true };
      this.say("state", this.state);
    },
    listening: () => [...listeners.values()].reduce((all, each) => all + each.size, 0),
  };
}

function fakeStorage(kept = {}) {
  return { kept, getItem: (key) => kept[key] ?? null, setItem: (key, text) => (kept[key] = text) };
}

const added = (data, event) => (event.type === "added" ? [...data, event.data] : undefined);

/** A dashboard whose fetches the test answers, with one key looked at. */
async function stage(t, { client = fakeClient(), reduce = added, ...options } = {}) {
  const clock = stopClock(t);
  const asked = [];
  const fetcher = (key) =>
    new Promise((resolve, reject) => {
      asked.push({
        key,
        answer: async (data, offset = null) => {
          resolve(new Response(JSON.stringify(data), { headers: offset === null ? {} : { "X-Realtime-Cursor": `e.${offset}.id` } }));
          await settle();
        },
        refuse: async (status, body = "{}", type = "application/json") => {
          resolve(new Response(body, { status, headers: { "Content-Type": type } }));
          await settle();
        },
        fail: async () => {
          reject(new TypeError("no network"));
          await settle();
        },
      });
    });
  const dashboard = createDashboard({ client, fetcher, reduce, storage: fakeStorage(), ...options });
  let told = 0;
  const entry = dashboard.at("k");
  const off = entry.subscribe(() => (told += 1));
  return { clock, client, asked, dashboard, entry, off, told: () => told, data: () => entry.get().data };
}

test("fetched once, then kept live", async (t) => {
  const { client, asked, entry, data, clock, told } = await stage(t);
  assert.deepEqual({ ...entry.get(), refresh: 0 }, { data: undefined, error: undefined, isLoading: true, isStale: true, updatedAt: undefined, refresh: 0 });
  await asked[0].answer([1], 1);
  assert.deepEqual(data(), [1]);
  assert.equal(entry.get().isLoading, false);
  assert.equal(entry.get().isStale, false);
  client.event(2);
  client.event(3);
  assert.deepEqual(data(), [1, 2, 3], "at once");
  await clock.advance(100);
  assert.equal(told(), 1, "listeners are told once a frame");
  assert.equal(asked.length, 1);
  assert.equal(entry.get(), entry.get(), "the same object until something changes");
});

test("45 an event that arrives while the first fetch is in flight is in the final data", async (t) => {
  const { client, asked, data } = await stage(t);
  client.event(1);
  client.event(2);
  client.event(3);
  await asked[0].answer([1, 2], 2);
  assert.deepEqual(data(), [1, 2, 3], "what the answer contains is not played again");
});

test("45 the same without a cursor: what arrives after the fetch began is played", async (t) => {
  const { client, asked, data, entry } = await stage(t);
  await asked[0].answer([]);
  client.event(1);
  entry.get().refresh();
  client.event(2);
  await asked[1].answer([1]);
  assert.deepEqual(data(), [1, 2]);
});

test("an event that the data contains already is not played when it arrives late", async (t) => {
  const { client, asked, data } = await stage(t);
  await asked[0].answer([1, 2], 2);
  client.event(1);
  client.event(2);
  client.event(3);
  assert.deepEqual(data(), [1, 2, 3]);
});

test("an answer from an instance that lags behind what the page has heard is caught up", async (t) => {
  const { client, asked, data, entry } = await stage(t);
  await asked[0].answer([], 0);
  client.event(1);
  client.event(2);
  entry.get().refresh();
  await asked[1].answer([1], 1);
  assert.deepEqual(data(), [1, 2]);
});

test("46 an older fetch that resolves after a newer one never overwrites it", async (t) => {
  const { asked, data, entry } = await stage(t);
  entry.get().refresh();
  assert.equal(asked.length, 2, "a fetch asked for while one is in flight is a new one");
  await asked[1].answer(["new"], 5);
  await asked[0].answer(["old"], 1);
  assert.deepEqual(data(), ["new"]);
  assert.equal(entry.get().isStale, false);
});

test("46 nor does its failure", async (t) => {
  const { asked, entry } = await stage(t);
  entry.get().refresh();
  await asked[1].answer(["new"], 5);
  await asked[0].fail();
  assert.equal(entry.get().error, undefined);
});

test("of two fetches the older one is shown while the newer is awaited, as stale", async (t) => {
  const { asked, data, entry } = await stage(t);
  entry.get().refresh();
  await asked[0].answer(["old"], 1);
  assert.deepEqual(data(), ["old"]);
  assert.equal(entry.get().isStale, true);
});

test("47 a failed fetch keeps the data, as stale and with the error, and is tried again", async (t) => {
  const { asked, data, entry, clock } = await stage(t);
  await asked[0].answer([1], 1);
  const refreshed = entry.get().refresh();
  await asked[1].refuse(503);
  await refreshed; // does not reject
  assert.deepEqual(data(), [1]);
  assert.equal(entry.get().isStale, true);
  assert.deepEqual(entry.get().error, { message: "HTTP 503", status: 503 });
  await clock.advance(1000);
  await asked[2].fail();
  assert.equal(entry.get().error.message, "no network");
  await clock.advance(999);
  assert.equal(asked.length, 3, "the second time not before a second");
  await clock.advance(1001);
  await asked[3].answer([1, 2], 2);
  assert.deepEqual(data(), [1, 2]);
  assert.equal(entry.get().isStale, false);
  assert.equal(entry.get().error, undefined);
});

test("what the server says of a refusal is the error", async (t) => {
  const { asked, entry } = await stage(t);
  await asked[0].refuse(403, '{"detail":"only for managers"}', "application/problem+json");
  assert.deepEqual(entry.get().error, { message: "only for managers", status: 403 });
  for (const body of ["{", "null", "{}"]) {
    const refreshed = entry.get().refresh();
    await asked.at(-1).refuse(403, body, "application/problem+json; charset=utf-8");
    await refreshed;
    assert.deepEqual(entry.get().error, { message: "HTTP 403", status: 403 });
  }
});

test("retries of a fetch that keeps failing come ever later, at most every 32 seconds", async (t) => {
  const { asked, clock } = await stage(t);
  await clock.advance(0);
  for (let each = 0; each < 12; each += 1) {
    await asked.at(-1).fail();
    await clock.advance(32_000);
  }
  assert.equal(asked.length, 13);
  await asked.at(-1).fail();
  await clock.advance(15_999);
  assert.equal(asked.length, 13);
});

test("an event that reduce cannot take in has the key fetched again, once for many", async (t) => {
  const { client, asked, data, entry, clock } = await stage(t);
  await asked[0].answer([1], 1);
  for (let offset = 2; offset < 9; offset += 1) client.event(offset, "strange");
  assert.equal(entry.get().isStale, true);
  await clock.advance(100);
  assert.equal(asked.length, 2);
  await asked[1].answer([9], 8);
  assert.deepEqual(data(), [9]);
  await clock.advance(10_000);
  assert.equal(asked.length, 2, "the answer contains them");
});

test("such an event during the first fetch is not swallowed", async (t) => {
  const { client, asked, data, clock } = await stage(t);
  client.event(1, "strange");
  await asked[0].answer(["before"], 0);
  await clock.advance(100);
  await asked[1].answer(["after"], 1);
  assert.deepEqual(data(), ["after"]);
});

test("without a reduce every event has it fetched again", async (t) => {
  const { client, asked, clock } = await stage(t, { reduce: null });
  await asked[0].answer([], 0);
  client.event(1);
  await clock.advance(100);
  assert.equal(asked.length, 2);
});

test("under a storm of such events fetches come ever less often, at most every few seconds apart", async (t) => {
  const { client, asked, clock } = await stage(t, { reduce: null });
  for (let offset = 1; offset < 2000; offset += 1) {
    client.event(offset);
    await clock.advance(10);
    if (offset % 10 === 0) await asked.at(-1).answer([], offset - 1);
  }
  assert.ok(asked.length > 6 && asked.length < 40, `${asked.length} fetches in 20 s`);
});

test("a gap has everything fetched again", async (t) => {
  const { client, asked, data, entry, clock } = await stage(t);
  await asked[0].answer([1], 1);
  client.say("gap", { reason: "expired", cursor: "e.50.id" });
  assert.equal(entry.get().isStale, true);
  await clock.advance(100);
  client.event(51);
  await asked[1].answer([50], 50);
  assert.deepEqual(data(), [50, 51]);
  assert.equal(entry.get().isStale, false);
});

test("a gap while a fetch is in flight has another one follow", async (t) => {
  const { client, asked, entry, clock } = await stage(t);
  client.say("gap", { reason: "epoch" });
  await asked[0].answer(["from before"], 1);
  assert.equal(entry.get().isStale, true);
  await clock.advance(100);
  await asked[1].answer(["after"], 0);
  assert.deepEqual(entry.get().data, ["after"]);
});

test("the first fetch leaves at once, and another when the connection stands", async (t) => {
  const client = fakeClient(false);
  const { asked, entry, data } = await stage(t, { client });
  assert.equal(asked.length, 1);
  await asked[0].answer(["early"], 1);
  assert.deepEqual(data(), ["early"]);
  assert.equal(entry.get().isStale, true, "events may have been missed");
  client.connect();
  await asked[1].answer(["sure"], 2);
  assert.deepEqual(data(), ["sure"]);
  assert.equal(entry.get().isStale, false);
  client.connect();
  assert.equal(asked.length, 2, "a connection that comes back goes on from its cursor");
});

for (const [begins, again] of [["e.4.id", false], ["e.5.id", false], ["e.6.id", true], ["f.4.id", true], [null, true]]) {
  test(`data of e.5 and a connection that begins at ${begins}: fetched ${again ? "again" : "once"}`, async (t) => {
    for (const late of [false, true]) {
      const client = fakeClient(false);
      client.cursor = begins;
      const { asked, data, entry, clock } = await stage(t, { client });
      if (!late) await asked[0].answer([5], 5);
      client.connect();
      assert.equal(asked.length, again && !late ? 2 : 1, "one fetch at a time");
      client.event(7);
      if (late) await asked[0].answer([5], 5);
      if (again) await asked[1].answer([5, 6], 6);
      await clock.advance(10_000);
      assert.equal(asked.length, again ? 2 : 1);
      assert.deepEqual(data(), again ? [5, 6, 7] : [5, 7]);
      assert.equal(entry.get().isStale, false);
    }
  });
}

test("a first fetch that fails is not waited for when the connection stands", async (t) => {
  const client = fakeClient(false);
  const { asked, data } = await stage(t, { client });
  await asked[0].fail();
  client.connect();
  await asked[1].answer([1], 1);
  assert.deepEqual(data(), [1]);
});

test("a provisional event, which has no place in the log, is always played", async (t) => {
  const { client, asked, data } = await stage(t);
  await asked[0].answer([], 9);
  client.say("*", { cursor: null, type: "added", data: "provisional" });
  assert.deepEqual(data(), ["provisional"]);
  client.event(10);
  assert.deepEqual(data(), ["provisional", 10]);
});

test("more events during a fetch than are remembered have it fetched again", async (t) => {
  const { client, asked, clock } = await stage(t);
  for (let offset = 1; offset <= 1500; offset += 1) client.event(offset);
  await asked[0].answer([], 0);
  await clock.advance(100);
  assert.equal(asked.length, 2);
});

test("the last that lets go ends the work; whoever comes back sees the old data first", async (t) => {
  const { client, asked, dashboard, off, clock } = await stage(t);
  await asked[0].answer([1], 1);
  off();
  const again = dashboard.at("k").subscribe(() => {});
  await clock.advance(1000);
  assert.equal(asked.length, 1, "within a moment nothing has ended");
  again();
  await clock.advance(1000);
  assert.equal(client.listening(), 0);
  assert.equal(clock.timers.size, 0);
  const late = dashboard.at("k");
  late.subscribe(() => {});
  assert.deepEqual(late.get().data, [1]);
  assert.equal(late.get().isStale, true);
  await asked[1].answer([1, 2], 2);
  assert.deepEqual(late.get().data, [1, 2]);
});

test("42 a page that is busy for long and then takes hold again finds it open", async (t) => {
  const clock = stopClock(t);
  const calls = [];
  const hold = shared(() => {
    calls.push("open");
    return () => void calls.push("close");
  });
  hold()();
  // What is drawn anew waits behind the work, as the timer does, which is due first.
  const [[number, { act }]] = clock.timers;
  clock.timers.delete(number);
  act();
  const off = hold();
  await clock.advance(1000);
  assert.deepEqual(calls, ["open"]);
  off();
  await clock.advance(1000);
  assert.deepEqual(calls, ["open", "close"]);
  assert.equal(clock.timers.size, 0);
});

test("what comes for a key that nobody looks at any more is thrown away", async (t) => {
  const { asked, entry, off, clock } = await stage(t);
  off();
  await clock.advance(100);
  await asked[0].answer(["late"], 1);
  assert.equal(entry.get().data, undefined);
  entry.get().refresh();
  await clock.advance(0);
  await asked[1].fail();
  off();
});

test("keys are apart, also those named like what every object has", async (t) => {
  const { asked, dashboard } = await stage(t);
  for (const key of ["constructor", "__proto__", "toString"]) {
    const entry = dashboard.at(key);
    entry.subscribe(() => {});
    await asked.at(-1).answer([key], 1);
    assert.equal(asked.at(-1).key, key);
    assert.deepEqual(entry.get().data, [key]);
  }
});

test("48 a reload shows the kept data before the network answers, then the fresh", async (t) => {
  const storage = fakeStorage();
  const first = await stage(t, { storage, name: "ada" });
  await first.asked[0].answer([1], 1);
  first.client.event(2);
  first.off();
  await first.clock.advance(100);
  const second = await stage(t, { storage, name: "ada" });
  assert.deepEqual(second.data(), [1, 2]);
  assert.equal(second.entry.get().isStale, true);
  assert.equal(second.entry.get().isLoading, false);
  assert.ok(second.entry.get().updatedAt);
  await second.asked[0].answer([1, 2, 3], 3);
  assert.deepEqual(second.data(), [1, 2, 3]);
  assert.equal(second.entry.get().isStale, false);
});

test("what is kept is for one person: another identity, or none, removes it", async (t) => {
  for (const other of ["ben", null]) {
    const storage = fakeStorage();
    const ada = await stage(t, { storage, name: "ada" });
    await ada.asked[0].answer(["secret"], 1);
    ada.off();
    await ada.clock.advance(100);
    assert.match(JSON.stringify(storage.kept), /secret/);
    const next = await stage(t, { storage, name: other });
    assert.equal(next.data(), undefined);
    assert.doesNotMatch(JSON.stringify(storage.kept), /secret/);
  }
});

test("who has been replaced writes nothing any more", async (t) => {
  const storage = fakeStorage();
  const ada = await stage(t, { storage, name: "ada" });
  await ada.asked[0].answer(["secret"], 1);
  await stage(t, { storage, name: null });
  ada.off();
  await ada.clock.advance(100);
  assert.doesNotMatch(JSON.stringify(storage.kept), /secret/);
});

test("without a name nothing is kept, and what others keep stays", async (t) => {
  const storage = fakeStorage({ "hybrid.data": '["ada",{"k":{"data":["hers"]}}]' });
  const before = JSON.stringify(storage.kept);
  const { asked, off, data, clock } = await stage(t, { storage });
  assert.equal(data(), undefined);
  await asked[0].answer(["anybody's"], 1);
  off();
  await clock.advance(100);
  assert.equal(JSON.stringify(storage.kept), before);
});

test("a key that is too large is not kept", async (t) => {
  const storage = fakeStorage();
  const { asked, off, clock } = await stage(t, { storage, name: "ada" });
  await asked[0].answer(["x".repeat(256_000)], 1);
  off();
  await clock.advance(100);
  assert.ok(storage.kept["hybrid.data"].length < 1000);
});

test("a storage that throws, or holds nonsense, does no harm", async (t) => {
  const broken = () => {
    throw new DOMException("no", "SecurityError");
  };
  for (const storage of [{ getItem: broken, setItem: broken }, fakeStorage({ "hybrid.data": "{" }), fakeStorage({ "hybrid.data": "7" }), fakeStorage({ "hybrid.data": '["ada"]' })]) {
    const { asked, data, off, clock } = await stage(t, { storage, name: "ada" });
    await asked[0].answer([1], 1);
    assert.deepEqual(data(), [1]);
    off();
    await clock.advance(100);
  }
});

function mulberry(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

test("whatever races: in the end the page shows what the server has", async (t) => {
  const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 32));
  t.diagnostic(`SEED=${seed}`);
  for (let run = 0; run < 150; run += 1) {
    const random = mulberry(seed + run);
    const withCursor = random() < 0.7;
    const clock = stopClock(t);
    const client = fakeClient(random() < 0.5);
    const log = []; // the server's events: each sets one of three fields to its number
    let delivered = null; // how many the client has heard of; null before it is connected
    const requests = [];
    const truth = (upTo) => Object.fromEntries(log.slice(0, upTo).map(({ data }, index) => [data.field, index + 1]));
    const reduce = (data, event) => (event.type === "set" ? { ...data, [event.data.field]: event.data.value } : undefined);
    const fetcher = () => new Promise((resolve, reject) => requests.push({ resolve, reject, cursor: null, data: null }));
    const dashboard = createDashboard({ client, fetcher, reduce, storage: fakeStorage() });
    const entry = dashboard.at("k");
    entry.subscribe(() => {});
    const connect = () => {
      delivered = log.length;
      client.cursor = random() < 0.7 ? `e.${delivered}.id` : null;
      client.connect();
    };
    if (client.state.isConnected) delivered = 0;
    const pick = (list) => list[Math.floor(random() * list.length)];
    const respond = (request, good = true) => {
      requests.splice(requests.indexOf(request), 1);
      if (!good) return request.reject(new TypeError("no network"));
      request.cursor ??= log.length;
      request.data ??= truth(log.length);
      const headers = withCursor ? { "X-Realtime-Cursor": `e.${request.cursor}.id` } : {};
      return request.resolve(new Response(JSON.stringify(request.data), { headers }));
    };
    const steps = [
      () => log.push({ type: random() < 0.15 ? "strange" : "set", data: { field: pick(["a", "b", "c"]), value: log.length + 1 } }),
      () => {
        if (delivered === null) return connect();
        if (delivered < log.length) client.say("*", { ...log[delivered], cursor: `e.${++delivered}.id` });
      },
      () => requests.length && (pick(requests).cursor ??= log.length), // first the cursor,
      () => {
        const request = requests.length && pick(requests); // then, some time later, the data
        if (request) {
          request.cursor ??= log.length;
          request.data ??= truth(log.length);
        }
      },
      () => requests.length && respond(pick(requests), random() < 0.8),
      () => random() < 0.2 && void entry.get().refresh(),
      () => {
        if (delivered === null || random() > 0.1) return;
        delivered = log.length; // the rest is lost, and said to be
        client.say("gap", { reason: "expired", cursor: `e.${delivered}.id` });
      },
      () => clock.advance(random() * 300),
    ];
    for (let step = 0; step < 120; step += 1) {
      await pick(steps)();
      if (random() < 0.5) await settle();
    }
    if (delivered === null) connect();
    while (delivered < log.length) client.say("*", { ...log[delivered], cursor: `e.${++delivered}.id` });
    for (let round = 0; entry.get().isStale || requests.length; round += 1) {
      assert.ok(round < 50, `it never comes to rest: SEED=${seed + run}`);
      for (const request of [...requests]) respond(request);
      await clock.advance(5000);
    }
    assert.deepEqual(entry.get().data, truth(log.length), `SEED=${seed + run}`);
    assert.equal(entry.get().error, undefined);
  }
});
