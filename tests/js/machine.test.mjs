// The machine, message by message. A number at the start of a name is that of the behaviour that
// docs/client.md lists.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Bench, generator, item } from "./bench.mjs";

const data = (bench) => bench.events.map((event) => event.data);

test("1 connected only after the hello", () => {
  const bench = new Bench().start();
  assert.equal(bench.last().kind, "sse");
  assert.equal(bench.state.isConnected, false);
  bench.head();
  assert.equal(bench.state.isConnected, false);
  bench.hello();
  assert.equal(bench.state.isConnected, true);
  assert.equal(bench.state.activeMethod, "sse");
  assert.equal(bench.state.error, null);
});

test("9 what the hello says is a place to come back to", () => {
  const bench = new Bench().start().hello("e.3.x").fail().retry();
  assert.equal(bench.last().cursor, "e.3.x");
});

test("2 a stream that is held back on its way is given up, and the client polls and looks again soon", () => {
  const bench = new Bench().start();
  bench.pass(4_000).head().pass(4_999);
  assert.equal(bench.open.size, 1);
  bench.pass(1);
  assert.match(bench.state.error.message, /buffered/);
  assert.deepEqual([...bench.open.values()].map((each) => each.kind), ["polling"]);
  bench.answer();
  assert.equal(bench.state.activeMethod, "polling");
  bench.toProbe();
  assert.ok(bench.now - bench.opened[1].at <= 6_000);
  bench.pass(5_000);
  assert.equal(bench.last("sse"), undefined);
  assert.equal(bench.state.activeMethod, "polling");
});

test("2 one that does not even answer is as mute: Firefox tells of the head with the first byte", () => {
  const bench = new Bench().start().pass(5_000);
  assert.equal(bench.last().kind, "polling");
});

test("3 three refusals in a row, and events come by polling, in order", () => {
  const bench = new Bench({ cursor: "e.4.x" }).start().toPolling();
  assert.deepEqual(bench.opened.map((each) => each.kind), ["sse", "sse", "sse", "polling"]);
  bench.answer({ events: [item(5), item(6)], cursor: "e.7.y" });
  assert.deepEqual(data(bench), [5, 6]);
  assert.equal(bench.state.activeMethod, "polling");
  assert.equal(bench.pass(300).last("polling").cursor, "e.7.y");
  assert.equal(bench.events[0].method, "polling");
});

test("3 a network error and a wrong type count like a refusal", () => {
  const bench = new Bench().start();
  bench.fail().pass(1_000).head(200, { contentType: "text/html" }).pass(2_000).end();
  assert.equal(bench.last().kind, "polling");
});

test("55 57 that streams did not work is remembered for ten minutes of any clock", () => {
  const begins = (pollUntil) => new Bench({ pollUntil }).start().last().kind;
  assert.equal(begins(1_000_000 + 600_000), "polling");
  assert.equal(begins(1_000_000 + 3_600_000), "sse", "written before the clock was set back");
  assert.equal(begins(1_000_000 - 1), "sse");
});

test("4 a probe that is greeted takes over; nothing is lost, nothing comes twice", () => {
  const bench = new Bench({ cursor: "e.0.origin" }).start().toPolling();
  bench.answer({ events: [item(1)], cursor: item(1).cursor }).toProbe();
  const probe = bench.last("sse");
  assert.equal(probe.cursor, item(1).cursor);
  const poll = bench.last("polling");
  // The poll goes on, and delivers while the probe is under way.
  bench.answer({ events: [item(2), item(3)], cursor: item(3).cursor }, poll.n);
  bench.pass(300);
  assert.equal(bench.last("polling").cursor, item(3).cursor);
  bench.hello(probe.cursor, { n: probe.n });
  assert.equal(bench.state.activeMethod, "sse");
  assert.deepEqual([...bench.open.keys()], [probe.n], "the poll is given up");
  for (const offset of [2, 3, 4]) bench.event(offset);
  assert.deepEqual(data(bench), [1, 2, 3, 4]);
  assert.deepEqual(bench.events.map((event) => event.method), ["polling", "polling", "polling", "sse"]);
  assert.equal(bench.machine.cursor, "e.4.id-e-4.0a1b2c3d");
});

test("4 a probe that is greeted and then breaks leaves the polls' cursor", () => {
  const bench = new Bench({ cursor: "e.1.x" }).start().toPolling();
  bench.answer().toProbe();
  const probe = bench.last("sse");
  bench.answer({ events: [item(2)], cursor: item(2).cursor });
  bench.hello("e.1.x", { n: probe.n }).fail(probe.n);
  assert.equal(bench.machine.cursor, item(2).cursor);
});

test("5 a probe that fails disturbs nothing and comes half as often, up to ten minutes", () => {
  const bench = new Bench().start().toPolling();
  bench.answer();
  const times = [];
  for (let hour = 0; hour < 400 && times.length < 8; hour += 1) {
    bench.pass(10_000);
    if (bench.last("polling")) bench.answer();
    const probe = bench.last("sse");
    if (!probe) continue;
    times.push(bench.opened.find((each) => each.n === probe.n).at);
    bench.head(502, { n: probe.n });
    assert.equal(bench.state.isConnected, true);
    assert.equal(bench.state.error, null);
  }
  const minutes = times.slice(1).map((time, i) => Math.round((time - times[i]) / 60_000));
  assert.deepEqual(minutes, [2, 4, 8, 10, 10, 10, 10]);
});

test("5 a probe waits as long as Retry-After says", () => {
  const bench = new Bench({}, () => 0).start();
  bench.head(503, { retryAfter: 600_000 });
  assert.equal(bench.last().kind, "polling", "no stream for ten minutes: poll at once");
  bench.answer();
  for (let i = 0; i < 59; i += 1) {
    bench.pass(10_000);
    if (bench.last("polling")) bench.answer();
    assert.equal(bench.last("sse"), undefined);
  }
  bench.pass(10_000);
  assert.ok(bench.last("sse"));
});

test("after an outage of everything the way back to a stream is short", () => {
  const bench = new Bench().start().toPolling();
  for (let tries = 0; tries < 5; tries += 1) bench.fail(bench.last("polling").n).pass(31_000);
  bench.answer().pass(3_000);
  assert.ok(bench.last("sse"));
});

test("7 8 silence of 2.5 heartbeats ends a stream; every sign of life puts it off", () => {
  const bench = new Bench().start().hello("e.0.origin", { heartbeat: 10_000 });
  const { n } = bench.last();
  bench.pass(24_999).block({ id: "e.0.origin" });
  bench.pass(24_999).say({ type: "bytes", n }); // a comment
  bench.pass(24_999).event(1);
  bench.pass(24_999);
  assert.equal(bench.state.isConnected, true);
  bench.pass(1);
  assert.equal(bench.state.isConnected, false);
  assert.match(bench.state.error.message, /stalled/);
  assert.equal(bench.open.size, 0);
});

test("7 three streams that fall silent after their hello, and the client polls", () => {
  const bench = new Bench().start();
  for (let tries = 0; tries < 3; tries += 1) {
    assert.equal(bench.last().kind, "sse");
    bench.hello().pass(37_500);
    if (!bench.last()) bench.retry();
  }
  assert.equal(bench.last().kind, "polling");
});

test("7 stalls that lie apart are not three in a row", () => {
  const bench = new Bench().start();
  for (let tries = 0; tries < 5; tries += 1) {
    bench.hello().pass(20_000).block({ id: "e.0.origin" }).pass(37_500).retry();
    assert.equal(bench.last().kind, "sse");
  }
});

test("9 a block without data moves the cursor of the next request", () => {
  const bench = new Bench().start().hello();
  bench.block({ id: "e.9.z" }).fail().pass(1_000);
  assert.equal(bench.last().cursor, "e.9.z");
});

test("10 without heartbeats there is no watchdog", () => {
  const bench = new Bench().start().hello("e.0.origin", { heartbeat: 0 });
  assert.equal(bench.machine.wakeAt, Infinity);
});

for (const random of [0, 0.5, 0.999]) {
  test(`11 Retry-After is a floor, and chance spreads it (${random})`, () => {
    const bench = new Bench({}, () => random).start();
    bench.head(503, { retryAfter: 2_000 });
    const delay = bench.state.retryAt - bench.now;
    assert.ok(delay >= 2_000 && delay <= 2_400, String(delay));
    bench.pass(delay - 1);
    assert.equal(bench.open.size, 0);
    bench.pass(1);
    assert.equal(bench.open.size, 1);
  });
}

test("11 a poll obeys Retry-After too, and being seen does not shorten it", () => {
  const bench = new Bench({ transport: "polling" }).start();
  bench.head(429, { retryAfter: 60_000 });
  bench.say({ type: "visible" });
  bench.say({ type: "online" });
  bench.pass(59_999);
  assert.equal(bench.open.size, 0);
  bench.pass(13_000);
  assert.equal(bench.open.size, 1);
});

test("12 the delays of many clients spread over half of the window", () => {
  const seed = Number(process.env.SEED ?? Date.now());
  console.log("seed", seed);
  const random = generator(seed);
  const delays = [];
  for (let client = 0; client < 1000; client += 1) {
    const bench = new Bench({}, random).start().hello().pass(60_000 - 30_000);
    bench.end();
    delays.push(bench.machine.wakeAt - bench.now);
  }
  delays.sort((a, b) => a - b);
  assert.ok(delays[0] >= 500 && delays.at(-1) <= 1_000);
  assert.ok(delays[950] - delays[50] > 400, "the middle nine tenths fill nine tenths of the window");
});

test("R-101 12 a server is away for a minute: its thousand clients come back spread over half of the cap", () => {
  const seed = Number(process.env.SEED ?? Date.now());
  console.log("seed", seed);
  const random = generator(seed);
  const seconds = new Map();
  for (let client = 0; client < 1000; client += 1) {
    const bench = new Bench({ transport: "sse" }, random).start().hello().pass(30_000);
    const back = bench.now + 60_000;
    for (bench.end(); bench.now < back; bench.last() && bench.fail()) bench.pass(bench.machine.wakeAt - bench.now);
    const second = Math.floor((bench.now - back) / 1000);
    assert.ok(second < 30, "not later than the cap");
    seconds.set(second, (seconds.get(second) ?? 0) + 1);
  }
  assert.ok(Math.max(...seconds.values()) < 150, `in one second ${Math.max(...seconds.values())}`);
});

test("12 the delay doubles up to the cap", () => {
  const bench = new Bench({ transport: "sse" }, () => 1).start();
  const delays = [];
  for (let tries = 0; tries < 8; tries += 1) {
    bench.fail();
    delays.push(bench.state.retryAt - bench.now);
    bench.retry();
  }
  assert.deepEqual(delays, [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
});

test("13 the server's retry changes the base, unless the page has set one", () => {
  for (const [timings, wanted] of [[{}, 5_000], [{ base: 700 }, 700]]) {
    const bench = new Bench({ timings }, () => 1).start();
    bench.block({ retry: "5000" });
    bench.fail();
    assert.equal(bench.state.retryAt - bench.now, wanted);
  }
});

for (const status of [204, 400, 404, 410]) {
  test(`14 ${status} stops until reconnect()`, () => {
    const bench = new Bench().start().head(status).pass(86_400_000);
    assert.equal(bench.opened.length, 1);
    assert.equal(bench.state.stopped, true);
    assert.equal(bench.state.error.status, status);
    for (const type of ["visible", "online", "offline", "pagehide", "pageshow"]) bench.say({ type });
    assert.equal(bench.pass(86_400_000).opened.length, 1);
    bench.say({ type: "reconnect" });
    assert.equal(bench.state.stopped, false);
    bench.hello();
    assert.equal(bench.state.isConnected, true);
  });
}

for (const status of [400, 401, 403, 404, 410]) {
  test(`14 ${status} of a page, as a proxy says in a deployment, is a failure with backoff`, () => {
    for (const greeted of [false, true]) {
      const bench = new Bench({ transport: "sse" });
      bench.start();
      if (greeted) bench.hello().end().retry();
      for (let tries = 0; tries < 10; tries += 1) {
        bench.head(status, { contentType: "text/html; charset=utf-8" });
        assert.equal(bench.state.stopped, false);
        assert.equal(bench.state.error.message, `answered ${status} text/html`);
        assert.equal(bench.state.error.status, status);
        assert.ok(bench.state.retryAt - bench.now <= 30_000);
        bench.retry();
      }
      bench.hello();
      assert.equal(bench.state.isConnected, true);
      assert.equal(bench.state.error, null);
    }
  });

  test(`14 ${status} of the server to who was live is a failure, ever less often`, () => {
    for (const transport of ["sse", "polling"]) {
      const bench = new Bench({ transport }, () => 1).start();
      const connects = () => (transport === "sse" ? bench.hello().end() : bench.answer().pass(5_000).fail()).retry();
      connects();
      const delays = [];
      for (let tries = 0; tries < 12; tries += 1) {
        bench.head(status);
        assert.equal(bench.state.stopped, false);
        delays.push(bench.state.retryAt - bench.now);
        bench.retry();
      }
      assert.equal(delays.at(-1), 600_000, "who has logged out elsewhere is no load");
      bench.say({ type: "visible" });
      connects();
      assert.equal(bench.state.stopped, false);
    }
  });
}

test("15 onAuth says whether it is the end, also for who was live, and to a page of a proxy", () => {
  for (const [contentType, ok] of [["text/html", false], ["text/html", true], ["application/problem+json", false], ["application/problem+json", true]]) {
    const bench = new Bench({ onAuth: true, transport: "sse" }).start().hello().end().retry();
    bench.head(401, { contentType });
    bench.say({ type: "auth", n: bench.asked[0].n, ok });
    assert.equal(bench.state.stopped, !ok);
    if (!ok) continue;
    bench.head(401, { contentType });
    assert.equal(bench.asked.length, 1, "once until it works again");
    assert.equal(bench.state.stopped, contentType !== "text/html", "with these credentials it has not been live");
  }
});

test("15 a redirect to a page, which is a login's, is told to onAuth", () => {
  for (const onAuth of [false, true]) {
    const bench = new Bench({ onAuth }).start().head(200, { contentType: "text/html", moved: true });
    assert.equal(bench.state.error.message, "redirected, answered 200 text/html");
    assert.equal(bench.asked.length, onAuth ? 1 : 0);
    assert.equal(bench.state.status, onAuth ? "authorizing" : "waiting");
  }
});

test("14 a request that is too long for a server on the way is an end that says so", () => {
  for (const status of [414, 431]) {
    const bench = new Bench().start().head(status, { contentType: "text/html" });
    assert.equal(bench.state.stopped, true);
    assert.equal(bench.state.error.message, `answered ${status} text/html: the request is too long`);
    assert.equal(bench.pass(86_400_000).opened.length, 1);
  }
  const proxy = new Bench().start().hello().end().retry().head(414, { contentType: "text/html" });
  assert.equal(proxy.state.stopped, false, "it was short enough before");
});

test("14 who was told by another tab that it is live is as good as live", () => {
  const bench = new Bench({ transport: "sse" });
  bench.say({ type: "cursor", live: true, value: "e.1.x" });
  assert.equal(bench.start().head(401).state.stopped, false);
});

test("what the server says of a refusal is the error", () => {
  const bench = new Bench().start().head(403, { detail: "the topic 'secret' is not open to you" });
  assert.deepEqual(bench.state.error, { message: "the topic 'secret' is not open to you", status: 403 });
  assert.equal(new Bench().start().head(503, { detail: "it is full" }).state.error.message, "it is full");
});

test("56 a stream that was well for long and is cut is tried again before anybody is told", () => {
  const bench = new Bench().start().hello().event(1).pass(10_000);
  const before = bench.state;
  bench.end();
  assert.deepEqual(bench.state, before);
  assert.equal(bench.open.size, 0);
  assert.ok(bench.machine.wakeAt - bench.now >= 250);
  bench.pass(1_000);
  assert.equal(bench.last().cursor, "e.1.id-e-1.0a1b2c3d");
  assert.deepEqual(bench.state, before);
  bench.hello("e.1.x").event(2);
  assert.deepEqual(data(bench), [1, 2]);
  assert.equal(bench.errors.length, 0);
  bench.pass(9_999).end();
  assert.equal(bench.state.isConnected, false, "that was not for long");
});

test("56 if that attempt fails too, in whatever way, the state says so", () => {
  const ways = {
    fails: (bench) => bench.fail(),
    "is refused": (bench) => bench.head(503),
    "is mute": (bench) => bench.pass(5_000),
    "meets an offline machine": (bench) => bench.say({ type: "offline" }),
  };
  for (const [name, way] of Object.entries(ways)) {
    const bench = new Bench({ transport: "sse" }).start().hello().pass(20_000).end().pass(1_000);
    assert.equal(bench.state.isConnected, true);
    way(bench);
    assert.equal(bench.state.isConnected, false, name);
    assert.equal(bench.errors.length, 1, name);
    if (bench.open.size === 0) bench.retry();
    bench.hello();
    assert.equal(bench.state.isConnected, true);
  }
});

test("56 a poll that is cut as well", () => {
  const bench = new Bench({ transport: "polling" }).start().answer().pass(20_250).answer();
  const held = bench.last();
  assert.equal(held.wait, 20);
  bench.pass(5_000).fail();
  assert.equal(bench.state.isConnected, true);
  bench.pass(1_000);
  assert.equal(bench.last().wait, 0, "whether it works is to be known at once");
  bench.answer();
  assert.equal(bench.errors.length, 0);
});

test("56 a stream that fell silent is none that was cut", () => {
  const bench = new Bench().start().hello().pass(37_500);
  assert.equal(bench.state.isConnected, false);
});

test("15 a 401 asks once, then tries once more, then stops", () => {
  const bench = new Bench({ onAuth: true }).start().head(401);
  assert.equal(bench.asked.length, 1);
  assert.equal(bench.open.size, 0);
  assert.equal(bench.machine.wakeAt, Infinity);
  bench.say({ type: "auth", n: bench.asked[0].n, ok: true });
  bench.head(401);
  assert.equal(bench.asked.length, 1);
  assert.equal(bench.state.stopped, true);
  assert.equal(bench.state.error.status, 401);
});

test("15 after a success there is another chance; a refusal or no hook stops", () => {
  const bench = new Bench({ onAuth: true }).start().head(403);
  bench.say({ type: "auth", n: bench.asked[0].n, ok: true });
  bench.hello().end().pass(1_000).head(401);
  assert.equal(bench.asked.length, 2);
  bench.say({ type: "auth", n: bench.asked[1].n, ok: false });
  assert.equal(bench.state.stopped, true);
  assert.equal(new Bench().start().head(401).state.stopped, true);
});

test("15 an answer of the hook that comes too late does nothing", () => {
  for (const type of ["reconnect", "close", "offline", "pagehide"]) {
    const bench = new Bench({ onAuth: true }).start().head(401);
    bench.say({ type });
    const { size } = bench.open;
    bench.say({ type: "auth", n: bench.asked[0].n, ok: true });
    assert.equal(bench.open.size, size, type);
  }
});

test("17 a poll that is not one is a failure", () => {
  const bench = new Bench({ transport: "polling" }).start();
  bench.head(200, { contentType: "text/html" });
  assert.match(bench.state.error.message, /text\/html/);
  bench.pass(1_000).answer({ events: null });
  assert.match(bench.state.error.message, /not a poll/);
  assert.equal(bench.state.isConnected, false);
});

test("18 19 close() leaves no request and no timer, and nothing is heard of afterwards", () => {
  const situations = {
    connecting: (bench) => bench,
    live: (bench) => bench.hello(),
    waiting: (bench) => bench.fail(),
    authorizing: (bench) => bench.head(401),
    polling: (bench) => bench.toPolling().answer(),
    probing: (bench) => bench.toPolling().answer().toProbe(),
    stopped: (bench) => bench.head(404),
  };
  for (const [name, reach] of Object.entries(situations)) {
    const bench = reach(new Bench({ onAuth: true }).start());
    bench.say({ type: "close" });
    assert.equal(bench.open.size, 0, name);
    assert.equal(bench.machine.wakeAt, Infinity, name);
    assert.equal(bench.state.isConnected, false, name);
    for (const type of ["start", "tick", "reconnect", "online", "visible", "pageshow", "close"]) {
      assert.deepEqual(bench.say({ type }), [], `${name} ${type}`);
    }
    assert.deepEqual(bench.say({ type: "fail", n: 1, message: "the stream ended" }), []);
  }
});

test("20 hiding and showing over and over never leaves more than one stream", () => {
  const bench = new Bench().start();
  for (let times = 0; times < 20; times += 1) {
    for (const type of ["hidden", "pagehide", "visible", "pageshow", "visible"]) {
      bench.say({ type });
      assert.ok(bench.open.size <= 1);
    }
    if (times % 3) bench.hello();
  }
  assert.equal(bench.open.size, 1);
});

test("21 offline ends the connection, online brings it back within a second", () => {
  const bench = new Bench().start().hello().pass(60_000 - 30_000);
  bench.say({ type: "offline" });
  assert.equal(bench.state.isConnected, false);
  assert.equal(bench.open.size, 0);
  bench.pass(29_999);
  assert.equal(bench.open.size, 0, "it does not try while offline");
  bench.say({ type: "online" });
  bench.pass(1_000).hello();
  assert.equal(bench.state.isConnected, true);
});

test("21 what fails while offline says nothing against streams", () => {
  const bench = new Bench().start();
  bench.say({ type: "offline" });
  for (let tries = 0; tries < 6; tries += 1) {
    bench.pass(30_000);
    assert.equal(bench.last().kind, "sse");
    bench.fail();
  }
});

test("22 a page that is seen again reconnects if its stream is overdue, and else does nothing", () => {
  const bench = new Bench().start().hello();
  bench.now += 20_000;
  assert.deepEqual(bench.say({ type: "visible" }), []);
  bench.now += 40_000; // and no timer fired: the page was asleep
  bench.say({ type: "visible" });
  assert.equal(bench.last().kind, "sse");
  assert.equal(bench.opened.length, 2);
});

test("23 the back/forward cache: nothing is open inside, and afterwards it goes on from the cursor", () => {
  const bench = new Bench().start().hello().event(1);
  bench.say({ type: "pagehide" });
  assert.equal(bench.open.size, 0);
  assert.equal(bench.machine.wakeAt, Infinity);
  bench.now += 3_600_000;
  bench.say({ type: "pageshow" });
  assert.equal(bench.last().cursor, "e.1.id-e-1.0a1b2c3d");
});

test("29 without readable bodies it polls at once and never probes", () => {
  const bench = new Bench({ streams: false }).start().answer();
  for (let i = 0; i < 400; i += 1) {
    bench.pass(20_000);
    if (bench.last()) bench.answer();
  }
  bench.say({ type: "reconnect" });
  assert.ok(bench.opened.every((each) => each.kind === "polling"));
});

test("transport: sse never polls, polling never streams", () => {
  const sse = new Bench({ transport: "sse" }).start();
  for (let i = 0; i < 20; i += 1) sse.fail().retry();
  assert.ok(sse.opened.every((each) => each.kind === "sse"));
  const polling = new Bench({ transport: "polling" }).start().answer().pass(600_000);
  assert.ok(polling.opened.every((each) => each.kind === "polling"));
});

test("R-37 32 33 a gap is told once, also to one who reconnects, and live events follow", () => {
  const bench = new Bench({ cursor: "old.9.x" }).start();
  bench.head().block({ type: "hybrid.hello", data: '{"cursor":null,"heartbeat":15000}' });
  assert.equal(bench.machine.cursor, "old.9.x", "a break here is told of again");
  bench.block({ id: "new.2.y", type: "hybrid.gap", data: '{"reason":"epoch","cursor":"new.2.y"}' });
  bench.event(3, { epoch: "new" });
  assert.deepEqual(bench.gaps, [{ reason: "epoch", cursor: "new.2.y" }]);
  bench.end().retry();
  assert.equal(bench.last().cursor, "new.3.id-new-3.0a1b2c3d");
  assert.deepEqual(data(bench), [3]);
});

test("32 after a gap within an epoch lower numbers are new events", () => {
  const bench = new Bench({ cursor: "e.9.x" }).start().hello("e.9.x");
  bench.block({ id: "e.4.q", type: "hybrid.gap", data: '{"reason":"rollback"}' }).event(5, { id: "other" });
  assert.deepEqual(data(bench), [5]);
});

test("32 a poll's gap is told before what follows it; a probe from before it is given up", () => {
  const bench = new Bench({ cursor: "e.1.x" }).start().toPolling();
  bench.answer().toProbe();
  assert.ok(bench.last("sse"));
  const effects = [];
  const poll = bench.last("polling");
  const say = bench.say.bind(bench);
  bench.say = (message) => {
    effects.push(...say(message));
    return effects;
  };
  bench.answer({ gap: { reason: "overflow" }, events: [item(7)], cursor: item(7).cursor }, poll.n);
  assert.deepEqual(effects.map(([what]) => what).filter((what) => ["gap", "event"].includes(what)), ["gap", "event"]);
  assert.equal(bench.last("sse"), undefined);
});

test("34 an id comes once, whatever way it takes; events without one always come", () => {
  const bench = new Bench().start().hello();
  bench.block({ eid: "p1", type: "tick", data: "1" });
  assert.equal(bench.events[0].provisional, true);
  assert.equal(bench.events[0].cursor, null);
  bench.block({ eid: "p1", type: "tick", data: "1" });
  bench.block({ id: "e.1.p1", type: "tick", data: "1" });
  assert.equal(bench.events.length, 1);
  assert.equal(bench.machine.cursor, "e.1.p1", "a repeat moves the cursor all the same");
  bench.block({ type: "tick", data: "1" }).block({ type: "tick", data: "1" });
  assert.equal(bench.events.length, 3);
});

test("34 an event that was provisional is not told again when the log has it, over any way", () => {
  const bench = new Bench({ transport: "polling", cursor: "e.0.origin" }).start();
  bench.answer({ events: [{ ...item(0), id: "p1", cursor: null }], bus: "degraded" });
  assert.equal(bench.state.bus, "degraded");
  bench.pass(5_000).answer({ events: [{ ...item(0), id: "p1", cursor: null }] });
  bench.pass(5_000).answer({ events: [{ ...item(1), id: "p1", cursor: "e.1.p1" }, item(2)], cursor: "e.2.id-e-2" });
  assert.deepEqual(bench.events.map((event) => event.id), ["p1", "id-e-2"]);
});

test("34 the id is the cursor's third part, whatever a later server adds behind it", () => {
  const bench = new Bench().start().hello("e.0.origin.proof");
  bench.block({ eid: "p1", type: "tick", data: "1" });
  bench.block({ id: "e.1.p1.proof", type: "tick", data: "1" });
  bench.block({ id: "e.2.q1.another", type: "tick", data: "1" });
  assert.deepEqual(bench.events.map((event) => event.id), ["p1", "q1"]);
  assert.equal(bench.machine.cursor, "e.2.q1.another", "and all of it comes back to the server");
});

test("34 20,000 ids are remembered, and not more", () => {
  const bench = new Bench().start().hello();
  for (let i = 0; i < 20_001; i += 1) bench.block({ eid: `p${i}`, type: "tick", data: "1" });
  bench.block({ eid: "p1", type: "tick", data: "1" });
  assert.equal(bench.events.length, 20_001);
  bench.block({ eid: "p0", type: "tick", data: "1" });
  assert.equal(bench.events.length, 20_002);
});

test("36 more: the next poll leaves at once", () => {
  const bench = new Bench({ transport: "polling", cursor: "e.0.origin" }).start();
  bench.answer({ events: [item(1)], cursor: item(1).cursor, more: true });
  assert.equal(bench.last().cursor, item(1).cursor);
  assert.equal(bench.opened[1].at, bench.opened[0].at);
});

test("a server that holds polls is asked again at once, one that does not when it says", () => {
  const bench = new Bench({ transport: "polling", cursor: "e.0.origin" }).start();
  assert.equal(bench.last().wait, 0, "the first answer is to come at once");
  bench.answer().pass(250);
  assert.equal(bench.last().wait, 20);
  bench.pass(20_000).answer();
  assert.ok(bench.last(), "it was held");
  bench.pass(10).answer({ wait: 4_000 }).pass(3_989);
  assert.equal(bench.last(), undefined, "it was not");
  bench.pass(11);
  assert.ok(bench.last());
});

test("a server that says the same again at once is not asked again at once", () => {
  const bench = new Bench({ transport: "polling", cursor: "e.0.origin" }).start();
  const provisional = { id: "p", cursor: null, type: "tick", data: 1, at: 5 };
  const outage = { events: [provisional], cursor: "e.0.origin", bus: "degraded", wait: 2_000 };
  bench.answer(outage).pass(250);
  for (let minute = 0; minute < 30; minute += 1) {
    assert.equal(bench.last().wait, 20, "it may be held");
    bench.answer(outage).pass(1_999);
    assert.equal(bench.last(), undefined);
    bench.pass(1);
  }
  bench.answer({ ...outage, events: [provisional, { ...provisional, id: "q" }] }).pass(250);
  assert.ok(bench.last(), "what is new may have more behind it");
  assert.deepEqual(bench.events.map((event) => event.id), ["p", "q"]);
});

test("4 a probe waits for a cursor, since it would begin where polls have not been", () => {
  const bench = new Bench();
  for (bench.start(); bench.last()?.kind !== "polling"; bench.retry()) bench.fail();
  bench.pass(9_000).fail(bench.last().n);
  for (let minute = 0; minute < 5; minute += 1) bench.pass(60_000);
  assert.ok(!bench.opened.slice(3).some((each) => each.kind === "sse"), "there is no place to go on from");
  bench.answer().pass(5_000);
  const probe = bench.opened.findLast((each) => each.kind === "sse");
  assert.equal(probe.cursor, bench.machine.cursor);
});

test("37 a hidden page polls at a quarter of the rate and is not held", () => {
  const bench = new Bench({ transport: "polling", cursor: "e.0.origin" }).start();
  bench.say({ type: "hidden" });
  bench.answer().pass(19_999);
  assert.equal(bench.last(), undefined);
  bench.pass(1);
  assert.equal(bench.last().wait, 0);
  bench.answer();
  bench.say({ type: "visible" });
  assert.ok(bench.last(), "and at once when it is seen");
});

test("52 a goodbye is no failure, and its delay is spread", () => {
  for (const [random, wanted] of [[0, 500], [0.999, 1000]]) {
    const bench = new Bench({}, () => random).start();
    for (let times = 0; times < 10; times += 1) {
      bench.hello().block({ type: "hybrid.bye", data: '{"reason":"drain","after":500}' });
      assert.equal(Math.round(bench.state.retryAt - bench.now), wanted);
      assert.equal(bench.open.size, 0);
      bench.pass(1_000);
      assert.equal(bench.last().kind, "sse");
    }
    assert.equal(bench.errors.length, 0);
  }
});

test("53 no retry comes sooner than 250 ms", () => {
  const bench = new Bench({ timings: { base: 1 } }, () => 0).start().fail();
  assert.equal(bench.state.retryAt - bench.now, 250);
  const other = new Bench({}, () => 0).start().hello().block({ type: "hybrid.bye", data: '{"after":0}' });
  assert.equal(other.state.retryAt - other.now, 250);
});

test("a stream that is greeted and cut, over and over, is as good as none", () => {
  const bench = new Bench().start();
  for (let tries = 0; tries < 4; tries += 1) {
    assert.equal(bench.last().kind, "sse");
    bench.hello().pass(1_000).end();
    if (!bench.last()) bench.retry();
  }
  assert.equal(bench.last().kind, "polling");
  // A probe is greeted as well; once more, and it polls on, and looks less often.
  bench.answer().toProbe().hello().end().retry().hello().end();
  assert.equal(bench.last().kind, "polling");
  const fell = bench.now;
  bench.answer().toProbe();
  assert.ok(bench.opened.findLast((each) => each.kind === "sse").at - fell > 75_000);
});

test("what an abandoned request still says is not listened to", () => {
  const bench = new Bench().start();
  const { n } = bench.last();
  bench.say({ type: "reconnect" });
  assert.deepEqual(bench.say({ type: "head", n, status: 404 }), []);
  bench.hello();
  bench.say({ type: "block", n, block: { id: "e.1.a", event: "tick", data: "1" } });
  bench.say({ type: "fail", n, message: "the stream ended" });
  assert.equal(bench.events.length, 0);
  assert.equal(bench.state.isConnected, true);
});

test("before the hello nothing counts", () => {
  const bench = new Bench().start().head();
  bench.event(1).block({ id: "e.5.x" });
  assert.equal(bench.events.length, 0);
  assert.equal(bench.machine.cursor, null);
});

test("text that is no JSON arrives as text, the same over both ways", () => {
  const bench = new Bench({ cursor: "e.0.origin" }).start().hello();
  bench.block({ id: "e.1.a", type: "html", data: "<li>\na" });
  const polling = new Bench({ transport: "polling", cursor: "e.0.origin" }).start();
  polling.answer({ events: [{ id: "a", cursor: "e.1.a", type: "html", text: "<li>\r\na", at: 5 }], cursor: "e.1.a" });
  assert.equal(bench.events[0].data, "<li>\na");
  assert.equal(polling.events[0].data, "<li>\na");
});
