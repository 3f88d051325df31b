// Random lives of a client against a server with a log, in which anything may break
// at any time. Whatever happens, the promises hold: order, nothing lost without a gap, nothing
// twice, and when the weather clears everything has come.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Bench, generator } from "./bench.mjs";

const SEED = Number(process.env.SEED ?? Date.now() % 1_000_000);
const LIVES = Number(process.env.LIVES ?? 300);

/** A server as the contract describes it, with a log that forgets, restarts and turns back. */
class Server {
  constructor(random) {
    this.random = random;
    this.epochs = 0;
    this.ids = 0;
    this.stored = new Map(); // id to {epoch, offset}: everything ever visible to the client
    this.restart();
  }

  restart() {
    this.epoch = `epoch${++this.epochs}`;
    this.log = [{ id: "origin", visible: false }];
    this.floor = 0; // the oldest offset from which one can go on
  }

  rollback() {
    this.log.length = Math.max(1, this.log.length - 1 - Math.floor(this.random() * 4));
    this.floor = Math.min(this.floor, this.log.length - 1);
  }

  emit() {
    const visible = this.random() < 0.7;
    this.log.push({ id: `id${++this.ids}`, visible });
    if (this.log.length - this.floor > 60) this.floor += 10;
  }

  get head() {
    return this.log.length - 1;
  }

  cursor(offset = this.head) {
    return `${this.epoch}.${offset}.${this.log[offset].id}`;
  }

  /** Where a cursor leads: an offset to go on from, and a gap if there is one. */
  resolve(cursor) {
    if (cursor === null) return { offset: this.head, gap: null };
    const [epoch, text, id] = cursor.split(".");
    const offset = Number(text);
    let gap = null;
    if (epoch !== this.epoch) gap = "epoch";
    else if (offset > this.head) gap = "rollback";
    else if (offset < this.floor) gap = "expired";
    else if (this.log[offset].id !== id) gap = "forked";
    return { offset: gap ? this.head : offset, gap };
  }
}

function live(seed) {
  const random = generator(seed);
  const chance = (p) => random() < p;
  const server = new Server(random);
  const bench = new Bench({ onAuth: chance(0.5) }, random);
  const sessions = new Map(); // request number to what the server knows about it
  const told = []; // events and gaps, as a listener hears them
  let horizon = null; // where the client stands for a listener: {epoch, offset}
  let down = false;
  let blocked = false; // streams, by something on the way

  const hear = (effects) => {
    for (const [what, value] of effects) {
      if (what === "gap") {
        told.push("gap");
        horizon = null;
      } else if (what === "event") {
        const { cursor, id } = value;
        const [epoch, text] = cursor.split(".");
        const offset = Number(text);
        assert.ok(!told.includes(id), `${id} came twice`);
        told.push(id);
        if (epoch === server.epoch && horizon?.epoch === epoch) {
          assert.ok(offset > horizon.offset, `${cursor} came after ${horizon.offset}`);
          for (let between = horizon.offset + 1; between < offset; between += 1) {
            const { visible, id: lost } = server.log[between];
            assert.ok(!visible || told.includes(lost), `${lost} was lost before ${cursor}`);
          }
        }
        if (epoch === server.epoch) horizon = { epoch, offset };
      }
    }
  };
  const say = bench.say.bind(bench);
  bench.say = (message) => {
    const effects = say(message);
    hear(effects);
    assert.ok(bench.open.size <= 2);
    assert.ok([...bench.open.values()].filter((each) => each.kind === "polling").length <= 1);
    return effects;
  };
  const known = (n) => bench.open.has(n);

  /** One thing that the network does with a request in flight. */
  const serve = (request, fair) => {
    const { n, kind } = request;
    if (down || (!fair && chance(0.1))) return bench.fail(n);
    if (!fair && chance(0.1)) return bench.head([429, 502, 503][Math.floor(random() * 3)], { n, retryAfter: chance(0.5) ? random() * 20_000 : null });
    if (kind === "polling") {
      const { offset, gap } = server.resolve(request.cursor);
      const upto = Math.min(server.head, offset + 1 + Math.floor(random() * 5));
      const events = [];
      for (let at = offset + 1; at <= upto; at += 1) {
        if (server.log[at].visible) events.push({ id: server.log[at].id, cursor: server.cursor(at), type: "tick", data: at, at: 1 });
      }
      return bench.answer({ events, cursor: server.cursor(upto), more: upto < server.head, gap: gap && { reason: gap } }, n);
    }
    if (blocked) return fair || chance(0.5) ? bench.fail(n) : bench; // or it stays mute
    let session = sessions.get(n);
    if (!session) {
      const { offset, gap } = server.resolve(request.cursor);
      session = { at: offset, epoch: server.epoch, server };
      sessions.set(n, session);
      const cursor = gap ? null : server.cursor(offset);
      bench.head(200, { n });
      if (!known(n)) return bench;
      bench.block({ id: cursor, type: "hybrid.hello", data: JSON.stringify({ cursor, heartbeat: 15_000 }) }, n);
      if (!fair && chance(0.05)) return known(n) && bench.fail(n);
      if (gap) bench.block({ id: server.cursor(), type: "hybrid.gap", data: JSON.stringify({ reason: gap }) }, n);
      return bench;
    }
    if (session.epoch !== server.epoch || session.at > server.head) return bench.end(n);
    if (!fair && chance(0.05)) return bench.block({ type: "hybrid.bye", data: `{"reason":"drain","after":${Math.floor(random() * 3_000)}}` }, n);
    for (let count = Math.floor(random() * 4) + (fair ? 40 : 0); count > 0 && session.at < server.head && known(n); count -= 1) {
      session.at += 1;
      if (server.log[session.at].visible) bench.block({ id: server.cursor(session.at), at: "1", type: "tick", data: String(session.at) }, n);
    }
    if (known(n) && chance(0.5)) bench.block({ id: server.cursor(session.at) }, n);
    return bench;
  };

  // Whoever restarts or turns back the log drops the connections, as a real server does.
  const drop = () => {
    for (const n of [...bench.open.keys()]) if (known(n)) bench.fail(n);
    horizon = horizon?.epoch === server.epoch ? null : horizon;
  };

  server.emit();
  bench.start();
  const steps = 150;
  for (let step = 0; step < steps; step += 1) {
    for (let count = Math.floor(random() * 3); count > 0; count -= 1) server.emit();
    if (chance(0.3)) down = false;
    if (chance(0.1)) blocked = false;
    const dice = random();
    if (dice < 0.02) {
      server.restart();
      drop();
    } else if (dice < 0.03) {
      server.rollback();
      drop();
    } else if (dice < 0.05) down = true;
    else if (dice < 0.08) blocked = true;
    else if (dice < 0.14) {
      const types = ["offline", "online", "hidden", "visible", "pagehide", "pageshow", "reconnect"];
      bench.say({ type: types[Math.floor(random() * types.length)] });
    } else if (dice < 0.16) bench.now += random() * 100_000; // a page that slept
    for (const request of [...bench.open.values()]) if (known(request.n) && chance(0.7)) serve(request, false);
    bench.pass(random() * (chance(0.1) ? 60_000 : 2_000));
    assert.ok(bench.machine.wakeAt > bench.now || bench.machine.wakeAt === Infinity);
  }

  // The weather clears.
  down = blocked = false;
  for (const type of ["online", "visible", "pageshow"]) bench.say({ type });
  for (let step = 0; step < 300; step += 1) {
    for (const request of [...bench.open.values()]) if (known(request.n)) serve(request, true);
    if (bench.machine.cursor === server.cursor() && bench.state.isConnected && bench.open.size) break;
    bench.pass(5_000);
  }
  assert.equal(bench.machine.cursor, server.cursor(), "it never caught up");
  assert.equal(bench.state.isConnected, true);
  // From the last place that was established everything has been heard.
  const since = told.lastIndexOf("gap");
  const heard = new Set(told);
  const from = horizon?.offset ?? server.head;
  for (let offset = since < 0 ? from : server.head; offset <= server.head; offset += 1) {
    if (server.log[offset].visible && horizon && offset > horizon.offset) assert.ok(heard.has(server.log[offset].id));
  }
  return { events: told.filter((each) => each !== "gap").length, gaps: told.filter((each) => each === "gap").length, methods: new Set(bench.events.map((event) => event.method)) };
}

test(`${LIVES} random lives keep every promise (SEED=${SEED})`, () => {
  let events = 0;
  let gaps = 0;
  const methods = new Set();
  for (let number = 0; number < LIVES; number += 1) {
    try {
      const life = live(SEED * 100_003 + number);
      events += life.events;
      gaps += life.gaps;
      for (const method of life.methods) methods.add(method);
    } catch (error) {
      error.message += ` (life ${number} of SEED=${SEED})`;
      throw error;
    }
  }
  console.log(`seed ${SEED}: ${LIVES} lives, ${events} events, ${gaps} gaps`);
  // The test would show nothing if the lives were quiet.
  assert.ok(events > 20 * LIVES && gaps > LIVES / 2);
  assert.deepEqual([...methods].sort(), ["polling", "sse"]);
});
