// Several tabs of one person: the election, the frames, and random lives in which tabs come, go,
// freeze and lose messages for it, against a server with a log. A number at the start of a name is
// that of the behaviour that docs/client.md lists.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createMachine } from "../../hybrid/static/hybrid.js";
import { createTab } from "../../hybrid/static/tabs.js";
import { generator } from "./bench.mjs";

const SEED = Number(process.env.SEED ?? Date.now() % 1_000_000);
const LIVES = Number(process.env.LIVES ?? 200);

/** A browser: a clock, a lock, a channel, and a server with a log that forgets and turns back. */
class Browser {
  constructor(random = () => 0.5) {
    this.random = random;
    this.now = 1_000_000_000;
    this.back = 0; // by which the computer's clock was set back; tabs that were open do not notice
    this.tabs = [];
    this.queue = []; // waiting for the lock, oldest first
    this.holder = null;
    this.epochs = 0;
    this.ids = 0;
    this.down = false;
    this.credentials = 1; // that a page gets when it is loaded; older ones than `valid` are refused
    this.valid = 1;
    this.restart();
  }

  // -- the server

  restart() {
    this.epoch = `epoch${++this.epochs}`;
    this.log = [{ id: `origin${this.epochs}`, visible: false }];
    this.floor = 0;
    for (const tab of this.tabs) tab.drop();
  }

  /** Who is logged in must do so again, in a page that is loaded anew or asks for it. */
  logOut() {
    this.valid += 1;
    this.credentials = this.valid;
    for (const tab of this.tabs) tab.drop();
  }

  rollback() {
    this.log.length = Math.max(1, this.log.length - 1 - Math.floor(this.random() * 3));
    this.floor = Math.min(this.floor, this.head);
    for (const tab of this.tabs) tab.drop();
  }

  get head() {
    return this.log.length - 1;
  }

  emit(visible = true) {
    this.log.push({ id: `id${++this.ids}`, visible });
    if (this.head - this.floor > 40) this.floor += 10;
  }

  cursor(offset = this.head) {
    return `${this.epoch}.${offset}.${this.log[offset].id}`;
  }

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

  // -- the lock

  request(tab, steal) {
    this.release(tab);
    if (steal && this.holder) {
      this.holder.inbox.push({ type: "lost" });
      this.holder = null;
    }
    if (this.holder) this.queue.push(tab);
    else this.grant(tab);
  }

  grant(tab) {
    this.holder = tab;
    tab.inbox.push({ type: "granted" });
  }

  release(tab) {
    this.queue = this.queue.filter((each) => each !== tab);
    tab.inbox = tab.inbox.filter((message) => message.type !== "granted" && message.type !== "lost");
    if (this.holder !== tab) return;
    this.holder = null;
    if (this.queue.length) this.grant(this.queue.shift());
  }

  open(options = {}) {
    const tab = new Tab(this, options);
    this.tabs.push(tab);
    tab.say({ type: "start" });
    return tab;
  }

  /** Everything that can happen at this moment, until nothing more can. */
  settle(serve = true) {
    for (let turns = 0; ; turns += 1) {
      assert.ok(turns < 10_000, "it never comes to rest");
      let quiet = true;
      for (const tab of [...this.tabs]) if (tab.turn(serve)) quiet = false;
      if (quiet) return this;
    }
  }

  pass(ms) {
    const end = this.now + ms;
    for (;;) {
      this.settle();
      const next = Math.min(...this.tabs.map((tab) => tab.wakeAt));
      if (next > end) break;
      this.now = Math.max(this.now, next);
      for (const tab of this.tabs) if (tab.wakeAt <= this.now) tab.say({ type: "tick" });
    }
    this.now = end;
    return this.settle();
  }

  get leaders() {
    return this.tabs.filter((tab) => tab.state.role === "leader");
  }

  get streams() {
    return this.tabs.flatMap((tab) => [...tab.requests.values()]).filter((each) => each.kind === "sse").length;
  }

  get requests() {
    return this.tabs.reduce((sum, tab) => sum + tab.requests.size, 0);
  }
}

class Tab {
  constructor(browser, { cursor = null, timings = {}, hidden = false, ...options } = {}) {
    this.browser = browser;
    this.tab = createTab(createMachine({ cursor, timings, ...options }, browser.random), { timings }, browser.random);
    this.behind = browser.back;
    this.inbox = []; // of the page: what comes from the lock and the channel
    this.requests = new Map(); // in flight: number to what the server knows
    this.told = []; // events' ids and "gap", as a listener hears them
    this.listening = false; // to the channel
    this.frozen = false;
    this.asked = [];
    this.questions = []; // that the hook was asked
    this.credentials = browser.credentials;
    this.horizon = null; // {epoch, offset} of the last event, of the log as it is now
    this.last = null; // the same since the last gap, whatever became of the log
    if (hidden) this.say({ type: "hidden" });
  }

  get state() {
    return this.tab.state;
  }

  get wakeAt() {
    // By a little late, so that it is not early by what adding rounds off.
    return this.frozen ? Infinity : this.tab.wakeAt + this.behind + (this.behind && 0.001);
  }

  say(message) {
    for (const [what, value] of this.tab.handle(message, this.browser.now - this.behind)) {
      switch (what) {
        case "open":
          this.requests.set(value.n, { ...value, session: null });
          this.asked.push(value);
          break;
        case "abort":
          this.requests.delete(value.n);
          break;
        case "lock":
          this.listening = true;
          this.browser.request(this, value);
          break;
        case "release":
          this.browser.release(this);
          if (value) break;
          this.listening = false;
          this.inbox = [];
          break;
        case "post":
          for (const other of this.browser.tabs) {
            if (other !== this && other.listening) other.inbox.push({ type: "heard", message: structuredClone(value) });
          }
          break;
        case "auth":
          this.questions.push(value);
          break;
        case "event":
          this.hear(value);
          break;
        case "gap":
          this.told.push("gap");
          this.horizon = this.last = null;
          break;
      }
    }
    return this;
  }

  /** What a listener may rely on: once, in order, and nothing missing without a gap. */
  hear({ id, cursor }) {
    const { epoch, log } = this.browser;
    assert.ok(!this.told.includes(id), `${id} came twice`);
    this.told.push(id);
    const [of, text] = cursor.split(".");
    const offset = Number(text);
    if (this.last) {
      assert.equal(of, this.last.epoch, "a gap was swallowed");
      assert.ok(offset > this.last.offset, `${cursor} came after ${this.last.offset}`);
    }
    this.last = { epoch: of, offset };
    // From before the log was lost or turned back, which this tab has not been told yet.
    if (of !== epoch || log[offset]?.id !== id) {
      this.horizon = null;
      return;
    }
    if (this.horizon) {
      assert.ok(offset > this.horizon.offset, `${cursor} came after ${this.horizon.offset}`);
      for (let between = this.horizon.offset + 1; between < offset; between += 1) {
        assert.ok(!log[between].visible || this.told.includes(log[between].id), `${log[between].id} was lost before ${cursor}`);
      }
    }
    this.horizon = { epoch: of, offset };
  }

  /** The server has ended what was open. */
  drop() {
    this.horizon = null;
    for (const n of [...this.requests.keys()]) {
      this.requests.delete(n);
      this.inbox.push({ type: "fail", n, message: "reset" });
    }
  }

  turn(serve) {
    if (this.frozen) return false;
    if (this.inbox.length) {
      this.say(this.inbox.shift());
      return true;
    }
    if (serve) for (const request of this.requests.values()) if (this.serve(request)) return true;
    return false;
  }

  block(n, { type, ...fields }) {
    if (this.requests.has(n)) this.say({ type: "block", n, block: { event: type, ...fields } });
  }

  /** One step of the server for a request; false if there is nothing to do. */
  serve(request) {
    const { n, kind, cursor } = request;
    const { browser } = this;
    if (browser.down) {
      this.requests.delete(n);
      this.say({ type: "fail", n, message: "refused" });
      return true;
    }
    const { session } = request;
    if (!session && this.credentials < browser.valid) {
      this.requests.delete(n);
      this.say({ type: "head", n, status: 401, contentType: "application/problem+json", retryAfter: 0 });
      return true;
    }
    if (!session) {
      const { offset, gap } = browser.resolve(cursor);
      if (kind === "polling") {
        const upto = Math.min(browser.head, offset + 5);
        const events = [];
        for (let at = offset + 1; at <= upto; at += 1) {
          if (browser.log[at].visible) events.push({ id: browser.log[at].id, cursor: browser.cursor(at), type: "tick", data: at, at: 1 });
        }
        if (request.wait && !events.length && !gap && !request.held) {
          request.held = browser.now + request.wait * 1000; // answered when something comes, or the time is over
          return false;
        }
        if (request.held && !events.length && !gap && browser.now < request.held - 1) return false;
        this.requests.delete(n);
        this.say({ type: "head", n, status: 200, contentType: "application/json", retryAfter: 0 });
        this.say({ type: "answer", n, body: { events, cursor: browser.cursor(upto), more: upto < browser.head, gap: gap && { reason: gap }, wait: 5000 } });
        return true;
      }
      request.session = { at: offset };
      this.say({ type: "head", n, status: 200, contentType: "text/event-stream", retryAfter: 0 });
      this.block(n, { id: gap ? null : browser.cursor(offset), type: "hybrid.hello", data: '{"heartbeat":15000}' });
      if (gap) this.block(n, { id: browser.cursor(), type: "hybrid.gap", data: JSON.stringify({ reason: gap }) });
      return true;
    }
    if (session.at >= browser.head) return false;
    session.at += 1;
    if (browser.log[session.at].visible) this.block(n, { id: browser.cursor(session.at), at: "1", type: "tick", data: "1" });
    else if (browser.random() < 0.3) this.block(n, { id: browser.cursor(session.at) });
    return true;
  }

  /** The person answers what the hook asked: logs in, or does not. */
  answer(ok) {
    const { n } = this.questions.shift();
    if (ok) this.credentials = this.browser.credentials;
    this.say({ type: "auth", n, ok });
  }

  close() {
    this.say({ type: "close" });
    this.browser.tabs = this.browser.tabs.filter((tab) => tab !== this);
  }

  /** Gone without a word, as with a crash. */
  die() {
    this.listening = false;
    this.browser.tabs = this.browser.tabs.filter((tab) => tab !== this);
    this.browser.release(this);
  }
}

const ids = (tab) => tab.told.filter((each) => each !== "gap");

test("24 three tabs hold one stream, and each hears every event once and in order", () => {
  const browser = new Browser();
  const tabs = [browser.open(), browser.open(), browser.open()];
  browser.settle();
  for (let count = 0; count < 10; count += 1) browser.emit();
  browser.settle();
  assert.deepEqual(tabs.map((tab) => tab.state.role), ["leader", "follower", "follower"]);
  assert.equal(browser.requests, 1);
  for (const tab of tabs) {
    assert.deepEqual(ids(tab), browser.log.slice(1).map((event) => event.id));
    assert.equal(tab.state.isConnected, true);
    assert.equal(tab.state.activeMethod, "sse");
    assert.equal(tab.state.lastEvent.id, browser.log.at(-1).id);
  }
});

for (const how of ["close", "die"]) {
  test(`25 the leader's tab is gone (${how}): another goes on from its own cursor, and nobody misses anything`, () => {
    const browser = new Browser();
    const [first, ...others] = [browser.open(), browser.open(), browser.open()];
    browser.settle().emit();
    browser.settle();
    first[how]();
    browser.emit();
    browser.settle(); // no time has to pass
    assert.equal(browser.leaders.length, 1);
    assert.equal(browser.streams, 1);
    for (const tab of others) assert.deepEqual(tab.told, ["id1", "id2"]);
  });
}

test("26 a leader that is frozen is replaced by one that is seen, and follows when it wakes up", () => {
  const browser = new Browser();
  const [first, second, hidden] = [browser.open(), browser.open(), browser.open({ hidden: true })];
  browser.settle().emit();
  browser.pass(1_000);
  first.frozen = true;
  browser.emit();
  browser.pass(10_000);
  assert.equal(second.state.role, "leader");
  assert.equal(hidden.state.role, "follower");
  assert.deepEqual(second.told, ["id1", "id2"]);
  assert.deepEqual(hidden.told, ["id1", "id2"]);
  browser.emit();
  browser.pass(1_000);
  first.frozen = false;
  browser.pass(1_000);
  assert.equal(first.state.role, "follower");
  assert.deepEqual(first.told, ["id1", "id2", "id3"]);
  assert.equal(browser.requests, 1);
});

test("26 what a frozen leader still says when it wakes up confuses nobody", () => {
  const browser = new Browser();
  const [first, second] = [browser.open(), browser.open()];
  browser.settle();
  first.frozen = true;
  browser.pass(8_000);
  assert.equal(second.state.role, "leader");
  browser.emit();
  browser.settle();
  // Its stream delivers before it learns that it was replaced.
  const inbox = first.inbox.splice(0);
  first.frozen = false;
  browser.settle();
  first.inbox = inbox;
  browser.emit();
  browser.pass(3_000);
  assert.deepEqual(first.told, ["id1", "id2"]);
  assert.deepEqual(second.told, ["id1", "id2"]);
  assert.equal(browser.leaders.length, 1);
  assert.equal(browser.requests, 1);
});

test("a computer that slept does not make every tab take over", () => {
  const browser = new Browser();
  const tabs = [browser.open(), browser.open(), browser.open()];
  browser.settle();
  browser.now += 3_600_000;
  for (const tab of [...tabs].reverse()) tab.say({ type: "tick" });
  browser.pass(1_000);
  assert.equal(tabs[0].state.role, "leader");
  assert.ok(tabs.every((tab) => tab.state.isConnected));
});

test("54 reconnect() of a follower makes the leader reconnect", () => {
  const browser = new Browser();
  const [first, second] = [browser.open(), browser.open()];
  browser.settle();
  second.say({ type: "reconnect" });
  browser.settle();
  assert.equal(first.asked.length, 2);
  assert.equal(second.asked.length, 0);
  assert.equal(browser.streams, 1);
});

test("a tab from an older place is told what it missed, out of the leader's memory", () => {
  const browser = new Browser();
  const [first, second] = [browser.open(), browser.open()];
  browser.settle().emit();
  browser.settle();
  const { cursor } = second.tab;
  second.close();
  for (let count = 0; count < 5; count += 1) browser.emit();
  browser.settle();
  const again = browser.open({ cursor });
  browser.settle().emit();
  browser.settle();
  assert.deepEqual(again.told, ["id2", "id3", "id4", "id5", "id6", "id7"]);
  assert.equal(again.asked.length, 0, "without a request of its own");
  assert.equal(first.state.role, "leader");
});

test("a tab from a place that the leader does not know polls up to where it is", () => {
  const browser = new Browser();
  for (let count = 0; count < 9; count += 1) browser.emit();
  const cursor = browser.cursor(2);
  browser.open();
  browser.settle().emit();
  browser.settle();
  const tab = browser.open({ cursor });
  browser.settle().emit();
  browser.settle();
  assert.deepEqual(tab.told, ["id3", "id4", "id5", "id6", "id7", "id8", "id9", "id10", "id11"]);
  assert.ok(tab.asked.every((each) => each.kind === "polling"));
  assert.equal(browser.requests, 1, "and then it follows");
});

test("32 a gap is told to every tab, also to one that was not level yet", () => {
  const browser = new Browser();
  for (let count = 0; count < 9; count += 1) browser.emit();
  const tabs = [browser.open(), browser.open(), browser.open({ cursor: browser.cursor(2) })];
  browser.settle();
  browser.restart();
  browser.emit();
  browser.pass(5_000).emit();
  browser.settle();
  for (const tab of tabs) {
    assert.deepEqual(tab.told.slice(-2), ["gap", "id11"]);
    assert.equal(tab.told.filter((each) => each === "gap").length, 1);
  }
});

test("32 a cursor from before the log turned back is no cursor of the leader's", () => {
  const browser = new Browser();
  const [, second] = [browser.open(), browser.open()];
  for (let count = 0; count < 6; count += 1) browser.emit();
  browser.settle();
  second.say({ type: "pagehide" });
  browser.log.length = 4;
  for (const tab of browser.tabs) tab.drop();
  for (let count = 0; count < 6; count += 1) browser.emit();
  browser.pass(5_000);
  second.say({ type: "pageshow" });
  browser.pass(5_000).emit();
  browser.settle();
  assert.equal(second.told.filter((each) => each === "gap").length, 1);
  assert.equal(second.told.at(-1), browser.log.at(-1).id);
});

test("23 into the back/forward cache and back: the lock goes on, and the tab follows from its cursor", () => {
  const browser = new Browser();
  const [first, second] = [browser.open(), browser.open()];
  browser.settle().emit();
  browser.settle();
  first.say({ type: "pagehide" });
  browser.emit();
  browser.settle();
  assert.equal(second.state.role, "leader");
  assert.equal(first.requests.size, 0);
  assert.equal(first.wakeAt, Infinity);
  first.say({ type: "pageshow" });
  browser.settle();
  assert.equal(first.state.role, "follower");
  assert.deepEqual(first.told, ["id1", "id2"]);
  first.say({ type: "pageshow" }); // a page that was never away
  browser.settle();
  assert.equal(browser.requests, 1);
});

test("without locks after all it works alone", () => {
  const browser = new Browser();
  const tab = browser.open();
  tab.inbox = [{ type: "lost", alone: true }];
  browser.settle().emit();
  browser.settle();
  assert.equal(tab.state.role, "solo");
  assert.deepEqual(tab.told, ["id1"]);
});

test("a follower takes over the way that works: polls, when its leader polled", () => {
  const browser = new Browser();
  const serve = Tab.prototype.serve;
  Tab.prototype.serve = function (request) {
    if (request.kind !== "sse") return serve.call(this, request);
    this.requests.delete(request.n);
    this.say({ type: "head", n: request.n, status: 502, contentType: "text/html", retryAfter: 0 });
    return true;
  };
  try {
    const [first, second] = [browser.open(), browser.open()];
    browser.pass(10_000);
    assert.equal(second.state.activeMethod, "polling");
    first.close();
    browser.settle();
    assert.equal(second.asked[0].kind, "polling");
  } finally {
    Tab.prototype.serve = serve;
  }
});

test("who is seen polls, not who is hidden", () => {
  const browser = new Browser();
  const [first, second] = [browser.open({ transport: "polling" }), browser.open({ transport: "polling" })];
  browser.pass(1_000);
  first.say({ type: "hidden" });
  browser.pass(3_000);
  assert.equal(second.state.role, "leader");
  second.say({ type: "hidden" });
  browser.pass(60_000);
  assert.equal(browser.leaders.length, 1);
});

/** The first tab leads and has heard two events of four; the second has polled all of them. */
function aheadOfItsLeader() {
  const browser = new Browser();
  browser.emit();
  browser.emit();
  const first = browser.open();
  browser.settle();
  browser.emit();
  browser.emit();
  const ahead = browser.open({ cursor: browser.cursor(0) });
  const turns = (serve) => {
    while (ahead.turn(serve) || first.turn(false));
  };
  turns(true);
  assert.deepEqual([first.tab.cursor, ahead.tab.cursor], [2, 4].map((at) => browser.cursor(at)));
  return { browser, first, ahead, turns };
}

test("a tab that was ahead of its leader does not repeat that leader's frames over the hole", () => {
  const { browser, first, ahead, turns } = aheadOfItsLeader();
  first.drop(); // says an error, from where it is
  turns(false);
  first.close();
  ahead.turn(false);
  assert.equal(ahead.state.role, "leader");
  const late = browser.open({ cursor: browser.cursor(2) });
  browser.settle().emit();
  browser.settle();
  assert.deepEqual(late.told, ["id3", "id4", "id5"]);
});

test("a tab that was ahead of its leader when the log was turned back is told of the gap", () => {
  const { browser, first, ahead } = aheadOfItsLeader();
  browser.log.length = 3; // where the leader is: it will never hear of it
  first.drop();
  browser.pass(20_000);
  browser.emit();
  browser.settle();
  assert.deepEqual(first.told, ["id5"]);
  assert.deepEqual(ahead.told, ["id1", "id2", "id3", "id4", "gap", "id5"]);
});

test("401 stops all tabs, each after an attempt of its own; reconnect() of any starts them", () => {
  const browser = new Browser();
  const tabs = [browser.open(), browser.open()];
  browser.logOut();
  browser.settle();
  browser.pass(30_000);
  assert.deepEqual(tabs.map((tab) => tab.state.stopped), [true, true]);
  assert.equal(tabs[1].state.error.status, 401);
  assert.deepEqual(tabs.map((tab) => tab.asked.length), [1, 1]);
  assert.equal(browser.holder, null, "the lock is given back");
  tabs[1].credentials = browser.credentials;
  tabs[1].say({ type: "reconnect" });
  browser.settle().emit();
  browser.settle();
  assert.deepEqual(tabs.map((tab) => tab.state.isConnected), [true, true]);
  assert.deepEqual(tabs.map((tab) => tab.state.role), ["follower", "leader"]);
  for (const tab of tabs) assert.deepEqual(tab.told, ["id1"]);
});

for (const onAuth of [false, true]) {
  test(`58 a page that is loaded anew has an attempt of its own (its leader ${onAuth ? "waits for a person" : "has given up"})`, () => {
    const browser = new Browser();
    const first = browser.open({ onAuth });
    const second = browser.open({ onAuth });
    browser.logOut();
    browser.settle();
    browser.pass(1_500);
    assert.equal(first.state.status, onAuth ? "authorizing" : "stopped");
    second.close();
    const again = browser.open({ onAuth });
    browser.settle().emit();
    browser.settle();
    assert.equal(again.state.role, "leader");
    assert.equal(first.state.role, "follower");
    for (const tab of [first, again]) {
      assert.equal(tab.state.isConnected, true);
      assert.equal(tab.told.at(-1), "id1");
    }
    assert.equal(browser.requests, 1);
  });
}

test("58 a leader that waits for a person gives the lock to who can go on, and a late answer changes nothing", () => {
  const browser = new Browser();
  const [first, second, third] = [1, 2, 3].map(() => browser.open({ onAuth: true }));
  third.credentials = 2;
  browser.logOut();
  browser.pass(20_000);
  assert.deepEqual([first, second, third].map((tab) => tab.state.role), ["follower", "follower", "leader"]);
  assert.ok([first, second, third].every((tab) => tab.state.isConnected));
  first.answer(true); // late
  browser.settle();
  assert.equal(browser.requests, 1);
});

test("58 a leader that was live, is refused and tries again by itself gives way to each other once", () => {
  const browser = new Browser();
  const tabs = [browser.open(), browser.open({ hidden: true }), browser.open()];
  browser.settle();
  browser.logOut();
  tabs[1].credentials = browser.valid; // logged in again, and nobody looks at it
  tabs[0].drop();
  browser.pass(10_000).emit();
  browser.settle();
  assert.deepEqual(tabs.map((tab) => tab.state.role), ["follower", "leader", "follower"]);
  for (const tab of tabs) assert.deepEqual([tab.state.isConnected, tab.told], [true, ["id1"]]);
  assert.ok(tabs[2].asked.length <= 1, "who was refused since waits");
});

test("58 everybody waits for a person: who answers leads, and the others follow", () => {
  const browser = new Browser();
  const tabs = [1, 2, 3].map(() => browser.open({ onAuth: true }));
  browser.logOut();
  browser.settle();
  browser.pass(20_000);
  assert.ok(tabs.every((tab) => tab.questions.length === 1 && !tab.state.isConnected));
  assert.equal(browser.requests, 0);
  for (const tab of tabs) for (const type of ["offline", "online", "hidden", "visible"]) tab.say({ type });
  browser.pass(60_000);
  assert.equal(browser.requests, 0);
  tabs[1].answer(true);
  browser.settle().emit();
  browser.settle();
  assert.deepEqual(tabs.map((tab) => tab.state.role), ["follower", "leader", "follower"]);
  for (const tab of tabs) assert.deepEqual(tab.told, ["id1"]);
  assert.equal(browser.requests, 1);
});

test("close() gives the lock and the channel back, and nothing is heard afterwards", () => {
  const browser = new Browser();
  const tab = browser.open();
  browser.settle();
  tab.say({ type: "close" });
  assert.equal(browser.holder, null);
  assert.equal(tab.listening, false);
  assert.equal(tab.requests.size, 0);
  assert.equal(tab.wakeAt, Infinity);
  for (const type of ["start", "granted", "tick", "pageshow", "reconnect", "close"]) assert.deepEqual(tab.tab.handle({ type }, browser.now), []);
});

test("57 a page that was loaded after the clock was set back leads tabs that know a later term", () => {
  const browser = new Browser();
  const tabs = [browser.open(), browser.open({ hidden: true })];
  browser.logOut();
  browser.settle();
  browser.pass(5_000);
  assert.deepEqual(tabs.map((tab) => tab.state.stopped), [true, true]);
  browser.back = 3_600_000;
  tabs.push(browser.open());
  browser.settle().emit();
  browser.settle();
  for (const tab of tabs) assert.deepEqual([tab.state.isConnected, tab.told], [true, ["id1"]]);
  assert.equal(browser.requests, 1);
});

function live(seed) {
  const random = generator(seed);
  const chance = (p) => random() < p;
  const browser = new Browser(random);
  const all = [];
  let cursors = []; // as pages remember them
  const open = () => {
    const tab = browser.open({ onAuth: chance(0.5), cursor: chance(0.4) && cursors.length ? cursors[Math.floor(random() * cursors.length)] : null, hidden: chance(0.3) });
    all.push(tab);
  };
  open();
  for (let step = 0; step < 120; step += 1) {
    for (let count = Math.floor(random() * 3); count > 0; count -= 1) browser.emit(chance(0.7));
    if (chance(0.2)) browser.down = false;
    const tab = browser.tabs[Math.floor(random() * browser.tabs.length)];
    const dice = random();
    if (dice < 0.1 && browser.tabs.length < 5) open();
    else if (dice < 0.14 && tab) tab.close();
    else if (dice < 0.18 && tab) tab.die();
    else if (dice < 0.24 && tab) tab.frozen = !tab.frozen;
    else if (dice < 0.26) browser.restart();
    else if (dice < 0.28) browser.rollback();
    else if (dice < 0.3) browser.down = true;
    else if (dice < 0.31) browser.logOut();
    else if (dice < 0.32) browser.back += random() * 3_600_000;
    else if (dice < 0.33 && tab?.questions.length && !tab.frozen) tab.answer(chance(0.5));
    else if (dice < 0.45 && tab && !tab.frozen) {
      const types = ["offline", "online", "hidden", "visible", "pagehide", "pageshow", "reconnect"];
      tab.say({ type: types[Math.floor(random() * types.length)] });
    } else if (dice < 0.47) browser.now += random() * 20_000;
    // A few turns in any order, so that messages and bytes overtake one another.
    for (let turns = Math.floor(random() * 30); turns > 0 && browser.tabs.length; turns -= 1) {
      browser.tabs[Math.floor(random() * browser.tabs.length)].turn(chance(0.7));
    }
    if (chance(0.5)) browser.pass(random() * (chance(0.1) ? 30_000 : 1_000));
    cursors = [...cursors, ...browser.tabs.map((each) => each.tab.cursor)].filter(Boolean).slice(-12);
  }
  // The weather clears.
  browser.down = false;
  if (!browser.tabs.length) open();
  for (const tab of browser.tabs) {
    tab.frozen = false;
    for (const type of ["online", "visible", "pageshow"]) tab.say({ type });
  }
  browser.pass(20_000);
  open(); // with new credentials, whatever became of the others
  browser.pass(120_000);
  const [newest] = browser.tabs.slice(-1);
  assert.equal(newest.state.isConnected, true, "a page that was loaded anew believed one that was refused");
  for (const tab of browser.tabs) {
    tab.credentials = browser.credentials;
    if (!tab.state.isConnected) tab.say({ type: "reconnect" });
  }
  for (const tab of browser.tabs) if (!tab.state.isConnected) while (tab.questions.length) tab.answer(true);
  browser.pass(60_000).emit();
  browser.pass(60_000);
  assert.equal(browser.leaders.length, 1, "one leads");
  assert.ok(browser.requests <= 1, "and has the only connection, if it is not between two polls");
  for (const tab of browser.tabs) {
    assert.equal(tab.told.at(-1), browser.log.at(-1).id, `it never caught up: ${tab.state.role}`);
    assert.equal(tab.state.isConnected, true);
  }
  return { events: all.reduce((sum, tab) => sum + ids(tab).length, 0), gaps: all.reduce((sum, tab) => sum + tab.told.length - ids(tab).length, 0) };
}

test(`${LIVES} random lives of many tabs keep every promise (SEED=${SEED})`, () => {
  let events = 0;
  let gaps = 0;
  for (let number = 0; number < LIVES; number += 1) {
    try {
      const life = live(SEED * 100_003 + number);
      events += life.events;
      gaps += life.gaps;
    } catch (error) {
      error.message += ` (life ${number} of SEED=${SEED})`;
      throw error;
    }
  }
  console.log(`seed ${SEED}: ${LIVES} lives, ${events} events, ${gaps} gaps`);
  assert.ok(events > 50 * LIVES && gaps > LIVES / 2);
});
