// The machine on a bench: time is a number, the network is what the test says.
import { createMachine } from "../../hybrid/static/hybrid.js";

export class Bench {
  constructor(options = {}, random = () => 0.5) {
    this.machine = createMachine(options, random);
    this.now = 1_000_000;
    this.events = [];
    this.gaps = [];
    this.errors = [];
    this.asked = []; // what auth effects say
    this.open = new Map(); // what is in flight: number to effect
    this.opened = []; // every request ever, with its time
  }

  get state() {
    return this.machine.state;
  }

  say(message) {
    const effects = this.machine.handle(message, this.now);
    for (const [what, value] of effects) {
      if (what === "open") {
        this.open.set(value.n, value);
        this.opened.push({ ...value, at: this.now });
      } else if (what === "abort") this.open.delete(value.n);
      else if (what === "event") this.events.push(value);
      else if (what === "gap") this.gaps.push(value);
      else if (what === "error") this.errors.push(value);
      else if (what === "auth") this.asked.push(value);
    }
    return effects;
  }

  start() {
    this.say({ type: "start" });
    return this;
  }

  /** Let time pass, ticking exactly when the machine wants it. */
  pass(ms) {
    const end = this.now + ms;
    let ticks = 0;
    while (this.machine.wakeAt <= end) {
      if (++ticks > 10_000) throw new Error("the machine spins");
      this.now = Math.max(this.now, this.machine.wakeAt);
      this.say({ type: "tick" });
    }
    this.now = end;
    return this;
  }

  /** To the next attempt after a failure. */
  retry() {
    return this.pass(this.state.retryAt - this.now);
  }

  /** To the next probe, with every poll answered meanwhile. */
  toProbe() {
    for (let seconds = 0; !this.last("sse"); seconds += 1) {
      if (seconds > 1_000) throw new Error("it never probes");
      if (this.last("polling")) this.answer();
      this.pass(1_000);
    }
    while (!this.last("polling")) this.pass(this.machine.wakeAt - this.now);
    return this;
  }

  /** The newest request in flight, of a kind. */
  last(kind) {
    return [...this.open.values()].filter((each) => !kind || each.kind === kind).at(-1);
  }

  head(status = 200, { n = this.last()?.n, contentType, retryAfter = null, ...more } = {}) {
    const kind = this.open.get(n)?.kind;
    const type = contentType ?? (status !== 200 ? "application/problem+json" : kind === "sse" ? "text/event-stream; charset=utf-8" : "application/json");
    this.say({ type: "head", n, status, contentType: type, retryAfter, ...more });
    return this;
  }

  block({ type, ...fields }, n = this.last("sse").n) {
    this.say({ type: "block", n, block: { event: type, ...fields } });
    return this;
  }

  hello(cursor = "e.0.origin", { n = this.last("sse").n, heartbeat = 15_000 } = {}) {
    this.head(200, { n });
    return this.block({ id: cursor, type: "hybrid.hello", data: JSON.stringify({ protocol: 1, cursor, heartbeat }) }, n);
  }

  event(offset, { epoch = "e", id = `id-${epoch}-${offset}`, n } = {}) {
    return this.block({ id: `${epoch}.${offset}.${id}.0a1b2c3d`, type: "tick", data: JSON.stringify(offset), at: "5" }, n);
  }

  answer(fields = {}, n = this.last("polling").n) {
    this.head(200, { n });
    this.open.delete(n);
    this.say({ type: "answer", n, body: { events: [], cursor: this.machine.cursor ?? "e.0.origin", more: false, gap: null, wait: 5000, bus: "ok", ...fields } });
    return this;
  }

  fail(n = this.last().n, message = "network error") {
    this.open.delete(n);
    this.say({ type: "fail", n, message });
    return this;
  }

  end(n = this.last().n) {
    this.open.delete(n);
    this.say({ type: "fail", n, message: "the stream ended" });
    return this;
  }

  /** Fail streams until the machine polls. */
  toPolling() {
    for (let tries = 0; this.last()?.kind !== "polling"; tries += 1) {
      if (tries > 10) throw new Error("it never polls");
      if (this.last()) this.head(502);
      else this.pass(this.machine.wakeAt - this.now);
    }
    return this;
  }
}

export const item = (offset, epoch = "e") => ({
  id: `id-${epoch}-${offset}`,
  cursor: `${epoch}.${offset}.id-${epoch}-${offset}.0a1b2c3d`,
  type: "tick",
  data: offset,
  at: 5,
});

/** Random numbers from a seed (mulberry32). */
export function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
