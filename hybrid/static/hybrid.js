/**
 * The browser client of flask-hybrid: Server-Sent Events where they work, polling where they
 * don't, one cursor through both. An ES module without dependencies; runs in pages, workers and
 * Node. What the server promises is docs/protocol.md.
 *
 * Three parts: a parser (bytes to blocks), a machine (what to do next; no clock, network or DOM
 * in it) and a shell around the machine (fetch, one timer, storage, the page's events). How
 * several tabs share one connection is in tabs.js, and `load` in dashboard.js, which are loaded
 * where they are asked for.
 */

const DEFAULTS = {
  open: 10_000, // until a poll is answered, besides the time for which it may be held
  hello: 5_000, // until a stream's head has come, and from there to the hello
  stall: 5_000, // without a byte a stream counts as dead after 2.5 heartbeats, and this at least
  base: 1_000, // the first delay after a failure; doubles up to cap
  cap: 30_000,
  first: 250, // no delay is shorter, nor is the time between the starts of two polls
  poll: 5_000, // between polls that are not held, where the server suggests nothing
  probe: 60_000, // from falling back to the first look whether streams work; doubles up to 10 min
  soon: 5_000, // to the first look of a page that begins with polls, since it fell back lately
  shortLife: 5_000, // a stream that ended sooner proves nothing
  well: 10_000, // who was connected for that long and is cut tries once more before the state says so
};
const FAILURES = 3; // of streams in a row until polling
const HOLD = 20; // seconds that the server may hold a poll; under what proxies allow
const HIDDEN = 4; // a page that nobody sees polls this much less often
const LONGEST = 600_000; // ten minutes: no wait is longer, nor the memory of what does not work
const MEMORY = 20_000; // event ids; twice the longest replay, so that none comes twice

// -- the parser

// A line that sets something: an id has no NUL in it, a retry is of digits.
const FIELD = /^(data|event|eid|at|id(?![^]*\0)|retry(?=: ?\d+$))(?:: ?([^]*))?$/;

/**
 * A parser for Server-Sent Events (WHATWG HTML, section 9.2).
 *
 * A block has what it sets of `{id, eid, at, retry, event, data}`, so that one with an id and no
 * data only moves the cursor. Time is linear in the bytes, however they are cut.
 *
 * @param {(block: {id?: string, eid?: string, at?: string, retry?: string, event?: string,
 *   data?: string}) => void} onBlock
 * @param {number} [maxBuffer] UTF-16 units; `push` throws a RangeError at a longer block
 * @returns {{push: (bytes: Uint8Array) => void}}
 */
export function createParser(onBlock, maxBuffer = 2 ** 26) {
  const decoder = new TextDecoder(); // drops one leading byte order mark
  let partial = ""; // the line that has not ended
  let afterCR = false;
  let block = {};

  const line = (text) => {
    const [, name, value = ""] = FIELD.exec(text) ?? [];
    if (name) block[name] = name === "data" && name in block ? `${block.data}\n${value}` : value;
    if (text) return;
    const whole = block;
    block = {};
    onBlock(whole);
  };

  return {
    push(bytes) {
      let text = decoder.decode(bytes, { stream: true });
      if (!text) return;
      if (afterCR && text[0] === "\n") text = text.slice(1);
      afterCR = text.endsWith("\r");
      const lines = text.split(/\r\n|\r|\n/);
      lines[0] = partial + lines[0]; // engines join such pieces once, when the line is read
      partial = lines.pop();
      lines.forEach(line);
      if (partial.length + (block.data ?? "").length > maxBuffer) throw RangeError("longer than maxBuffer");
    },
  };
}

// -- the machine

/**
 * What a client does next. Pure: time comes in with each message, chance through `random`, and
 * what is to be done goes out as a list of effects.
 *
 * Messages: `start`, `tick`, `offline`, `online`, `hidden`, `visible`, `pagehide`, `pageshow`,
 * `reconnect`, `close`; `head`, `bytes`, `block`, `answer`, `end`, `fail`, `auth` about a
 * request, whose number `n` they carry (what an abandoned one still says is not listened to);
 * from tabs.js `poll` (catch up by polls), `rest`, and `event`, `gap` and `cursor`, which the connection of
 * another tab heard.
 * Effects, each with a value: `open` and `abort` (a request), `auth`, `event`, `gap`, `status`,
 * `error`.
 *
 * @param {{transport?: 'auto'|'sse'|'polling', cursor?: ?string, streams?: boolean,
 *   onAuth?: function, pollUntil?: number, timings?: object}} options `streams`: whether the
 *   platform has readable response bodies; `onAuth`: whether there is somebody to ask after a 401;
 *   `pollUntil`: when to forget that streams did not work
 * @param {() => number} random from 0 up to 1
 */
export function createMachine(
  { transport = "auto", cursor = null, streams = true, onAuth, pollUntil = 0, parse: read = JSON.parse, timings = {} },
  random = Math.random,
) {
  const t = { ...DEFAULTS, ...timings };
  const streaming = streams && transport !== "polling";
  const auto = streaming && transport === "auto";

  let phase = "idle"; // connecting, live, waiting, authorizing, paused, stopped, closed
  let method = "sse"; // or polling
  let main = null; // the request that delivers
  let probe = null; // the stream that may take over from polling
  let requests = 0;

  let place = parseCursor(cursor); // the same as [epoch, offset]; null if it is of no such form
  const seen = new Set(); // event ids, oldest first

  let attempts = 0; // that failed since a connection last proved itself
  let failures = 0; // of streams, on the way to polling
  let shortLives = 0;
  let authorized = false; // the hook has been asked since the last success
  let proven = false; // has been live with these credentials: a refusal may be of a passing deployment
  let liveAt = Infinity; // since when it is live, without a cut
  let retryAt = null;
  let floorAt = 0; // what Retry-After forbids
  let pollAt = null;
  let probeAt = null;
  let probeDelay = 0;
  let offline = false;
  let hidden = false;

  let error = null;
  let bus = null;
  let lastEvent = null;
  let effects;
  let now;

  const say = (what, value) => effects.push([what, value]);

  // -- requests

  const send = (kind) => {
    const wait = kind === "polling" && cursor && phase === "live" && liveAt < Infinity && !hidden ? HOLD : 0;
    // `due`: when it will have taken too long; `silence`: how long it may, once it has said hello
    const due = now + (kind === "sse" ? t.hello : wait * 1000 + t.open);
    const request = { n: ++requests, kind, cursor, wait, at: now, due };
    say("open", request);
    return request;
  };

  const abort = (request) => request && say("abort", request);

  /** Drop every request and every plan, and be in another phase. */
  const enter = (next) => {
    abort(main);
    abort(probe);
    main = probe = retryAt = pollAt = null;
    liveAt = Infinity;
    phase = next;
  };

  /** Begin anew with the current method. */
  const open = (as = "connecting") => {
    enter(as);
    main = send(method);
  };

  const tick = () => {
    if (main && now >= main.due) {
      if (main.silence) ended("stream stalled", main.due - main.silence);
      // A mute stream: something on the way holds the bytes back, and will again. Firefox does
      // not even tell of the head then. Polls know better, and a look soon if it was only slow.
      else failed("no answer, or buffered", FAILURES);
    }
    if (probe && now >= probe.due) probeFailed();
    if (retryAt && now >= retryAt) open(phase === "live" ? phase : undefined);
    if (pollAt && !main && now >= pollAt) main = send("polling");
    if (mayProbe() && now >= probeAt) probe = send("sse");
  };

  // -- failure and return

  const report = (message, status) => say("error", (error = { message, status }));

  const fresh = () => {
    attempts = failures = shortLives = 0;
    authorized = false;
  };

  const wait = (delay) => {
    phase = "waiting";
    // Browsers sometimes say wrongly that they are offline: look again, without haste.
    retryAt = now + Math.min(LONGEST, Math.max(offline ? t.cap : t.first, delay));
  };

  /** Half of it is chance, so that a server's clients do not come back together. */
  const spread = (delay) => (delay * (1 + random())) / 2;
  const backoff = (cap = t.cap) => spread(Math.min(cap, t.base * 2 ** (attempts - 1)));

  const hurry = (delay) => {
    if (retryAt) retryAt = Math.min(retryAt, Math.max(floorAt, now + delay));
  };

  /** The main request came to nothing. */
  const failed = (message, weight = 1, floor = 0, status = undefined, cap = undefined) => {
    abort(main);
    main = pollAt = null;
    report(message, status);
    attempts += 1;
    floorAt = now + floor;
    if (method === "sse" && !offline) {
      failures += weight;
      // Refused for long is as good as not working; polls ask for themselves.
      if (auto && (failures >= FAILURES || floor > t.open)) {
        method = "polling";
        failures = attempts = floorAt = 0;
        planProbe(floor);
        if (weight === FAILURES) probeAt = now + spread(t.soon);
        return open();
      }
    }
    wait(Math.max(floor, backoff(cap)));
  };

  /**
   * A connection that was well for long is cut, as Firefox and WebKit do where a page is being left
   * or a download begins: one more attempt, and nobody is told unless that fails.
   */
  const retried = () => {
    if (phase !== "live" || now - liveAt < t.well) return;
    abort(main);
    main = pollAt = null;
    liveAt = Infinity;
    fresh();
    probeDelay = 0;
    return (retryAt = now + Math.max(t.first, spread(t.base)));
  };

  /** A stream that had said hello is over; `alive` is until when it was well. */
  const ended = (message, alive = now) => {
    if (alive - main.greeted >= t.shortLife) {
      fresh();
      probeDelay = 0;
    }
    failed(message, alive < now || ++shortLives > 1 ? 1 : 0);
  };

  // -- from polling back to a stream

  // Without a cursor a stream begins at its now, which polls may not have reached when it is greeted.
  const mayProbe = () => auto && cursor && method === "polling" && probeAt && !probe && !offline && /live|ting/.test(phase); // connecting, waiting

  const planProbe = (floor = 0) => {
    pollUntil = now + LONGEST;
    probeDelay = Math.min(LONGEST, probeDelay * 2 || t.probe);
    probeAt = now + Math.max(floor, probeDelay * (0.75 + 0.5 * random()));
  };

  const probeFailed = (floor) => {
    abort(probe);
    probe = null;
    planProbe(floor);
  };

  // -- what the server says

  /** Move on to where the server says we are; true if, within the epoch, we have been there. */
  const commit = (to) => {
    if (!to) return;
    const next = parseCursor(to);
    if (next && place?.[0] === next[0] && next[1] <= place[1]) return true;
    cursor = to;
    place = next;
  };

  const hearGap = ({ reason, cursor: to }) => {
    place = null; // so that whatever follows is new, also what a poll returns from before `to`
    commit(to);
    place = null;
    say("gap", { reason, cursor });
    // A probe asked from where there is no more going on, and would be told the same.
    if (probe) probeFailed();
  };

  /** Tell of an event, if it is new. */
  const hear = (event) => {
    const { id, cursor } = event;
    if (commit(cursor) || seen.has(id)) return;
    // A copy: engines keep all the text of which a string is a part.
    if (id) seen.add(id.split("").join(""));
    const [oldest] = seen;
    if (seen.size > MEMORY) seen.delete(oldest);
    lastEvent = Object.freeze({ ...event, provisional: !cursor });
    return say("event", lastEvent);
  };

  const on = {
    // About a request.

    head({ status, contentType, retryAfter, detail, moved }, request) {
      const streamed = request.kind === "sse";
      const type = /^[^; ]*/.exec(contentType)[0].toLowerCase();
      if (status === 200 && type === (streamed ? "text/event-stream" : "application/json")) {
        if (streamed) request.due = now + t.hello;
        return;
      }
      const floor = Math.min(LONGEST, retryAfter * (1 + 0.2 * random()));
      if (request === probe) return probeFailed(floor);
      const large = /^4(14|31)$/.test(status); // and will be as large the next time
      const asks = onAuth && !authorized && (/^40[13]$/.test(status) || (moved && status === 200));
      // The contract's own answer. What else says 401 or 404 may be a proxy during a deployment.
      const own = type === "application/problem+json" && /^4(0[0134]|10)$/.test(status);
      const message = detail ?? `${moved ? "redirected, " : ""}answered ${status} ${type}${large ? ": the request is too long" : ""}`;
      if (asks || status === 204 || (!proven && (own || large))) {
        authorized = asks;
        enter(asks ? "authorizing" : "stopped");
        report(message, status);
        if (asks) say("auth", (main = { n: ++requests, due: Infinity, error }));
      } else failed(message, 1, floor, status, own ? LONGEST : undefined);
    },
    auth({ ok }) {
      if (ok) {
        proven = false; // these are others
        open();
      } else enter("stopped");
    },
    block({ block: { id = null, eid, at, retry, event, data } }, request) {
      const type = event || "message";
      if (retry && !timings.base) t.base = Math.min(retry, t.cap);
      // Before its hello, whatever this is, it is not the server that the contract speaks of.
      if (!request.greeted && !/^hybrid\.(hello|bye)$/.test(type)) return;
      if (/^hybrid\./.test(type)) on[type]?.(parse(data) ?? {}, request, id);
      else if (data !== undefined) {
        hear({ id: eid ?? parseCursor(id)?.[2] ?? id, cursor: id, type, data: attempt(() => read(data), data), at: +at || null, method: "sse" });
      }
      if (main === request) commit(id); // also of a heartbeat, or what a later server may say
    },
    "hybrid.hello"({ heartbeat, bus: said = bus }, request) {
      if (request === probe) {
        abort(main);
        main = probe;
        probe = pollAt = retryAt = null;
        method = "sse";
        failures = FAILURES - 1; // until it has proved itself, one more is enough
      }
      // Without heartbeats silence means nothing.
      request.silence = heartbeat > 0 ? Math.max(t.stall, 2.5 * heartbeat) : Infinity;
      request.due = now + request.silence;
      request.greeted = liveAt = now;
      phase = "live";
      proven = true;
      bus = said;
      error = null;
      authorized = false;
      pollUntil = 0;
    },
    "hybrid.bye"({ after }, request) {
      // Not a failure: it was said in advance, with the time at which to come back.
      if (request === probe) return probeFailed();
      enter("waiting");
      wait(after >= 0 ? spread(2 * after) : backoff());
    },
    "hybrid.gap"({ reason = "unknown" }, request, cursor) {
      hearGap({ reason, cursor });
    },
    "hybrid.status"(status) {
      bus = status.bus ?? bus;
      say("status", status);
    },
    answer({ body }, request) {
      const { events, cursor, gap, more } = body ?? {};
      if (!Array.isArray(events) || !cursor) return failed("not a poll");
      error = null;
      phase = "live";
      proven = true;
      liveAt = Math.min(liveAt, now);
      bus = body.bus ?? bus;
      // Polls have failed as well: it was the server and not the stream, no need to wait for long.
      if (attempts) probeAt = Math.min(probeAt, now + spread(2 * t.base));
      fresh();
      if (gap) hearGap({ ...gap, cursor });
      let news;
      for (const { text, data = attempt(() => read(text), text?.replace(/\r\n?/g, "\n")), ...event } of events) {
        news = hear({ ...event, data, method: "polling" }) || news;
      }
      commit(cursor);
      main = null; // only now: were the above to fail, its time would still run out
      // A server that holds polls is asked again at once, one that does not when it suggests.
      // Which it is shows at the second poll: the first asks for an answer without delay. One that
      // says again what it has said, as it may while it has no log, has not held it.
      const held = !hidden && (news || now - request.at >= request.wait * 500);
      const next = held ? Math.max(now, request.at + t.first) : now + (hidden ? HIDDEN : 1) * (body.wait || t.poll);
      pollAt = more ? now : next;
      tick();
    },
    fail({ message }, request) {
      if (request === probe) probeFailed();
      else if (retried()) return;
      else if (request.greeted) ended(message);
      else failed(message);
    },

    // And about everything else.

    start({ polling }) {
      attempts = 0;
      // Later than that it was written before the clock was set back.
      const known = auto && (polling || (pollUntil > now && pollUntil <= now + LONGEST));
      method = streaming && !known ? "sse" : "polling";
      probeDelay = known && t.probe;
      probeAt = known && now + random() * t.soon;
      open();
    },
    poll() {
      method = "polling";
      probeAt = null;
      open();
    },
    tick,
    reconnect() {
      fresh();
      floorAt = 0;
      if (streaming) method = "sse";
      open();
    },
    close() {
      enter("closed");
    },
    pagehide() {
      // into the back/forward cache, which an open request would prevent
      if (phase !== "stopped") enter("paused");
    },
    rest() {
      enter("paused");
    },
    pageshow() {
      // requests that look open from before are dead
      if (phase === "paused") on.start({});
    },
    offline() {
      offline = true;
      if (/stopped|paused/.test(phase)) return;
      authorized = false;
      enter("waiting");
      report("offline");
      wait(0);
    },
    online() {
      offline = false;
      attempts = 0;
      hurry(random() * 1000); // as does everybody on this network
    },
    hidden() {
      hidden = true;
    },
    visible() {
      hidden = false;
      tick(); // timers of a hidden page are late
      hurry(0);
      if (pollAt) pollAt = now;
      tick();
    },
    event({ value }) {
      hear(value);
    },
    gap({ value }) {
      hearGap(value);
    },
    cursor({ value, live }) {
      proven ||= live; // another tab of this person is
      commit(value);
    },
  };

  return {
    /** Take a message in; returns the effects, in the order in which they are to happen. */
    handle(message, time) {
      effects = [];
      now = time;
      const { type, n } = message;
      const request = [main, probe].find((each) => each?.n === n);
      if (request?.silence) request.due = now + request.silence;
      if (phase !== "closed" && (request || !n)) on[type]?.(message, request);
      return effects;
    },

    /** When `tick` is due, in the clock's milliseconds; Infinity if nothing is awaited. */
    get wakeAt() {
      return Math.min(main?.due ?? pollAt ?? retryAt ?? Infinity, probe?.due ?? (mayProbe() ? probeAt : Infinity));
    },

    get cursor() {
      return cursor;
    },

    /** When to forget that streams did not work. */
    get pollUntil() {
      return pollUntil;
    },

    /** What users see of it. */
    get state() {
      const isConnected = phase === "live";
      return {
        isConnected,
        activeMethod: isConnected ? method : null,
        lastEvent,
        error,
        attempt: isConnected ? 0 : attempts,
        retryAt: isConnected ? null : retryAt,
        bus,
        stopped: phase === "stopped",
        status: phase,
        role: "solo",
      };
    },
  };
}

/** [epoch, offset, id] of a cursor, whatever follows them; nothing for text of another form. */
export function parseCursor(text) {
  const [, epoch, offset, id] = /^([^.]+)\.(\d+)\.([^.]+)/.exec(text) ?? [];
  return id && [epoch, +offset, id];
}

let ahead = 0; // milliseconds by which the computer's clock was set back
let latest = 0;

/**
 * The computer's clock, which counts sleep, but never back: where it is set back, time goes on from
 * what was read last, and no deadline moves away by more than has passed since.
 */
function clock() {
  const now = Date.now();
  ahead = Math.max(ahead, latest - now);
  return (latest = now + ahead);
}

/** What `act` returns, or `otherwise` where it throws. */
function attempt(act, otherwise) {
  try {
    return act();
  } catch {
    return otherwise;
  }
}

/** What `act` throws reaches the page's error handler, and stops nothing here. */
function guard(act) {
  try {
    act();
  } catch (error) {
    setTimeout(() => {
      throw error;
    });
  }
}

const parse = (text) => attempt(() => JSON.parse(text));

// -- the shell

/**
 * Connect to a flask-hybrid server and stay connected.
 *
 * @param {string} url where the blueprint is mounted, for instance `/api/realtime`
 * @param {object} [options]
 * @param {string[]} [options.topics] to ask for, besides what is for this user anyway
 * @param {string} [options.cursor] where to begin: what the server gave with a snapshot. Without
 *   one, where this page was before it was loaded again, or its client closed, or else at now
 * @param {string} [options.name] who is logged in, for instance the user's id. Tabs with the same
 *   url, topics and name share one connection; without a name a tab keeps to itself, since one
 *   person's events must not reach another's page
 * @param {boolean} [options.share] false: not with other tabs even so
 * @param {boolean} [options.persist] false: remember nothing over a reload or a `close()`
 * @param {object|(() => object|Promise<object>)} [options.headers] for every request; a function
 *   is called before each
 * @param {(error: object) => any} [options.onAuth] called once after a 401 or 403, or a redirect to
 *   a page, which is a login's; one more try follows if what it resolves to is truthy, for instance
 *   true or a fresh token
 * @param {RequestCredentials} [options.credentials]
 * @param {typeof fetch} [options.fetch] in place of the global one
 * @param {'auto'|'sse'|'polling'} [options.transport]
 * @param {(text: string) => any} [options.parse] in place of `JSON.parse`: given an event's data by
 *   a stream, and the whole answer by a poll. What it makes cannot be shared between tabs
 * @param {number} [options.maxBuffer] the longest event, in UTF-16 units; a longer one is a failure
 * @param {object} [options.timings] in milliseconds; the keys of DEFAULTS
 * @returns {{
 *   readonly state: {isConnected: boolean, activeMethod: 'sse'|'polling'|null, lastEvent: ?object,
 *     error: ?{message: string, status?: number}, attempt: number, retryAt: ?number,
 *     bus: ?string, stopped: boolean, status: string, role: 'solo'|'leader'|'follower'},
 *   on: (type: string, listener: (value: any) => void) => () => void,
 *   subscribe: (listener: () => void) => () => void,
 *   events: (type?: string) => AsyncGenerator<object>,
 *   load: (source: string|function, reduce: ?function, show: (state: object) => void) => () => void,
 *   readonly cursor: ?string,
 *   reconnect: () => void,
 *   close: () => void,
 * }} `on` takes an event's type, the beginning of types (`order.*`), `*` for every event, or
 *   `state`, `gap`, `error`, `status`, which are the client's own (an event of such a type comes
 *   under `*` alone); both `on` and `subscribe` return what takes the listener off. `state` is
 *   frozen and stays the same object until it changes. An event is
 *   `{id, cursor, type, data, at, method, provisional}`. `load` fetches JSON and keeps it live: now,
 *   after a gap, and where `reduce` cannot tell; events that arrive during a fetch are played over
 *   what it brings. It is dashboard.js, loaded when first used. `cursor` is where the client is
 */
export function connect(url, options = {}) {
  const { name, persist = true, headers, onAuth, credentials } = options;
  const topics = (options.topics ?? []).map(String);
  const base = url.replace(/\/+$/, "");
  // Somebody else's page begins anew; JSON, so that no two of them are written alike.
  const key = `hybrid:${JSON.stringify([base, [...topics].sort(), name])}`;
  const { document, navigator, BroadcastChannel } = globalThis;
  // Storage may be full, forbidden or missing; then nothing is remembered.
  const store = (text) => attempt(() => (sessionStorage[key] = text));
  const kept = persist && attempt(() => JSON.parse(sessionStorage[key]));
  const machine = createMachine({ ...kept, ...options, cursor: options.cursor ?? kept?.cursor, streams: !!globalThis.ReadableStream });
  const life = new AbortController();
  const { signal: over } = life;
  const listeners = new Set();
  const ends = new Set(); // of loops and loads that are under way
  const inbox = [];
  let driver = machine;
  let state = Object.freeze(machine.state);
  let timer;
  let timerAt = Infinity;
  let savedAt = 0;

  const save = () => {
    const { cursor, pollUntil } = machine;
    // The first cursor at once: Firefox may end the pagehide listener of a page that is left
    // before it saves. An older cursor repeats events, where none loses them.
    savedAt = cursor && clock();
    if (persist) store(JSON.stringify({ cursor, pollUntil }));
  };

  // A listener may call reconnect() or close(): what it causes waits until all that the message
  // before it caused has happened.
  const tell = (type, more) => {
    if (inbox.push({ ...more, type }) > 1) return;
    for (const message of inbox) {
      guard(() => {
        // Hidden, or pagehide: the page may be left.
        if (/hid/.test(message.type)) savedAt = 0;
        const effects = driver.handle(message, clock());
        const next = driver.state;
        if (next.retryAt) next.retryAt -= ahead; // which a page compares with Date.now()
        if (Object.keys(next).some((key) => next[key] !== state[key])) {
          state = Object.freeze(next);
          emit("state", state); // first, so that listeners see the state that goes with their event
        }
        for (const [what, value] of effects) guard(() => (acts[what] ? acts[what](value) : emit(what, value)));
      });
    }
    inbox.length = 0;
    if (!over.aborted && clock() > savedAt + 1000) save();
    // One timer for everything. It may fire early, never late: deadlines mostly move away.
    const at = driver.wakeAt;
    if (at < timerAt) {
      clearTimeout(timer);
      timerAt = at;
      timer = setTimeout(() => {
        timerAt = Infinity;
        tell("tick");
      }, at - clock());
    }
  };

  // An event's type has a space before it here, which tells it from what is the client's own.
  const emit = (type, value) => {
    for (const [wanted, listener] of [...listeners]) {
      if (over.aborted) return;
      if (wanted === type || wanted === `${type.slice(0, wanted.length - 1)}*`) {
        guard(() => listener(value));
      }
    }
  };

  const acts = {
    async open(request) {
      const { n, kind, cursor, wait } = request;
      const { signal } = (request.controller = new AbortController());
      try {
        let query = new URLSearchParams(topics.map((topic) => ["topic", topic]));
        // Servers on the way take a line of 4 KB, some of them less.
        const body = `${query}`.length > 2_000 ? JSON.stringify({ topics }) : undefined;
        if (body) query = new URLSearchParams();
        if (cursor) query.set("since", cursor);
        if (wait) query.set("wait", wait);
        const sent = new Headers(typeof headers === "function" ? await headers() : headers);
        if (signal.aborted) return;
        const streamed = kind === "sse";
        // The second type tells the server that this client reads statuses, unlike EventSource.
        sent.set("Accept", streamed ? "text/event-stream, application/problem+json" : "application/json");
        if (body) sent.set("Content-Type", "application/json");
        const response = await (options.fetch ?? fetch)(`${base}/${kind}?${query}`, {
          method: body && "POST",
          body,
          headers: sent,
          credentials,
          // Firefox lets a second request for the same address wait for the first otherwise.
          cache: "no-store",
          signal,
        });
        const after = response.headers.get("Retry-After"); // RFC 9110, section 10.2.3
        const contentType = response.headers.get("Content-Type");
        const problem = /problem/.test(contentType) && (await response.json().catch(() => {})); // RFC 9457
        tell("head", {
          n,
          status: response.status,
          contentType,
          retryAfter: after * 1000 || Date.parse(after) - Date.now() || 0,
          detail: problem?.detail,
          moved: response.redirected,
        });
        if (signal.aborted) return;
        if (streamed) {
          const reader = response.body.getReader();
          const parser = createParser((block) => tell("block", { n, block }), options.maxBuffer);
          for (;;) {
            const { done, value } = await reader.read();
            if (signal.aborted) return;
            if (done) throw "stream ended";
            tell("bytes", { n });
            parser.push(value);
          }
        }
        tell("answer", { n, body: (options.parse ?? JSON.parse)(await response.text()) });
      } catch (error) {
        // A hook may throw anything; other tabs are told of it.
        tell("fail", { n, message: attempt(() => String(error?.message ?? error), "unknown") });
      }
      // Also where somebody's own fetch did not heed the signal; otherwise long over.
      acts.abort(request);
    },
    abort(request) {
      request.controller?.abort();
    },
    async auth({ n, error }) {
      let ok;
      try {
        ok = await onAuth(error);
      } catch {}
      tell("auth", { n, ok });
    },
    event(event) {
      emit(` ${event.type}`, event);
    },
  };

  const listen = (target, type, react) => target?.addEventListener?.(type, react, { signal: over });

  const on = (type, listener) => {
    const entry = [/^(state|gap|error|status)$/.test(type) ? type : ` ${type}`, listener];
    listeners.add(entry);
    return () => listeners.delete(entry);
  };

  // Not every browser says `persisted` when it should; being shown again says enough.
  for (const type of ["online", "offline", "pagehide", "pageshow"]) listen(globalThis, type, () => tell(type));
  const looked = () => tell(document?.hidden ? "hidden" : "visible");
  listen(document, "visibilitychange", looked);
  (async () => {
    try {
      if (name && options.share !== false && !options.parse && navigator?.locks && BroadcastChannel) {
        const { share } = await import("./tabs.js");
        if (!over.aborted) driver = share(machine, key, tell, acts, options);
      }
    } catch {}
    await null; // so that listeners added right after connect() hear of everything
    looked();
    tell("start");
  })();

  const client = {
    get state() {
      return state;
    },
    get cursor() {
      return driver.cursor;
    },
    on,
    subscribe: (listener) => on("state", () => listener()),
    async *events(type = "*") {
      const queue = [];
      let wake;
      const off = on(type, (event) => wake?.(queue.push(event)));
      const end = () => wake?.();
      ends.add(end);
      try {
        while (!over.aborted) {
          if (queue.length) yield queue.shift();
          else await new Promise((resolve) => (wake = resolve));
        }
      } finally {
        off();
        ends.delete(end);
      }
    },
    load(...given) {
      let off;
      let ended;
      const end = () => {
        ended = true;
        off = off?.();
        ends.delete(end);
      };
      const begin = () =>
        import("./dashboard.js").then(
          ({ load }) => ended || (off = load(client, ...given)),
          (error) => {
            if (ended) return;
            setTimeout(begin, 5_000);
            given[2]({ error, isLoading: false, isStale: true });
          },
        );
      ends.add(end);
      begin();
      return end;
    },
    reconnect() {
      tell("reconnect");
    },
    close() {
      if (over.aborted) return;
      save(); // so that whoever connects again goes on from here
      life.abort();
      ends.forEach((end) => end());
      tell("close");
      clearTimeout(timer);
    },
  };
  return client;
}
