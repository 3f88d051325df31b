/**
 * The browser client of flask-hybrid: Server-Sent Events where they work, polling where they
 * don't, one cursor through both. An ES module without dependencies; runs in pages, workers and
 * Node. What the server promises is docs/protocol.md.
 *
 * Three parts: a parser (bytes to blocks), a machine (what to do next; no clock, network or DOM
 * in it) and a shell around the machine (fetch, one timer, the page's events).
 */

const DEFAULTS = {
  open: 10_000, // until the answer's head has come
  hello: 5_000, // from the head to the hello; a proxy that buffers shows here
  stallFactor: 2.5, // heartbeats without a byte until a stream counts as dead
  stallMin: 5_000,
  base: 1_000, // the first delay after a failure; doubles up to cap
  cap: 30_000,
  first: 250, // no delay is shorter
  poll: 5_000, // between polls that are not held, where the server suggests nothing
  probe: 60_000, // from falling back to the first look whether streams work; doubles
  probeMax: 600_000,
  shortLife: 5_000, // a stream that ended sooner proves nothing
};
const FAILURES = 3; // of streams in a row until polling
const HOLD = 20; // seconds that the server may hold a poll; under what proxies allow
const SPACING = 250; // between the starts of two polls
const HIDDEN = 4; // a page that nobody sees polls this much less often
const MAX_WAIT = 600_000;
const MEMORY = 20_000; // event ids; twice the longest replay, so that none comes twice
const MAX_BLOCK = 64 * 1024 * 1024;
const OWN = new Set(["*", "state", "gap", "error", "status"]);

// -- the parser

/**
 * A parser for Server-Sent Events (WHATWG HTML, section 9.2).
 *
 * A block is `{id, eid, at, type, data}`: `id` is null where the block sets none; `data` is null
 * for one that only moves the cursor. Time is linear in the bytes, however they are cut.
 *
 * @param {(block: {id: ?string, eid: ?string, at: ?string, type: string, data: ?string}) => void} onBlock
 * @param {{onRetry?: (ms: number) => void, maxBlock?: number}} [options] `maxBlock`: UTF-16
 *   units; `push` throws a RangeError at a block that is longer
 * @returns {{push: (bytes: Uint8Array) => void}}
 */
export function createParser(onBlock, { onRetry = () => {}, maxBlock = MAX_BLOCK } = {}) {
  const decoder = new TextDecoder(); // drops one leading byte order mark
  let partial = []; // pieces of the line that has not ended
  let held = 0; // units in partial and in the block so far
  let afterCR = false;
  let data, type, id, eid, at;

  const clear = () => {
    data = [];
    type = "";
    id = eid = at = null;
    held = 0;
  };
  clear();

  const line = (text) => {
    if (!text) {
      if (id !== null || data.length) {
        const block = { id, eid, at, type: type || "message", data: data.length ? data.join("\n") : null };
        clear();
        onBlock(block);
      } else {
        clear();
      }
      return;
    }
    const colon = text.indexOf(":");
    const name = colon < 0 ? text : text.slice(0, colon);
    let value = colon < 0 ? "" : text.slice(colon + 1);
    if (value[0] === " ") value = value.slice(1);
    if (name === "data") data.push(value);
    else if (name === "event") type = value;
    else if (name === "id") id = value.includes("\0") ? id : value;
    else if (name === "eid") eid = value;
    else if (name === "at") at = value;
    else if (name === "retry" && /^[0-9]+$/.test(value)) onRetry(Number(value));
  };

  return {
    push(bytes) {
      let text = decoder.decode(bytes, { stream: true });
      if (afterCR && text) {
        afterCR = false;
        if (text[0] === "\n") text = text.slice(1);
      }
      if (!text) return;
      held += text.length;
      let start = 0;
      for (const end of text.matchAll(/\r\n|\r|\n/g)) {
        partial.push(text.slice(start, end.index));
        const whole = partial.length > 1 ? partial.join("") : partial[0];
        partial = [];
        start = end.index + end[0].length;
        line(whole);
      }
      afterCR = text.endsWith("\r");
      if (start < text.length) partial.push(text.slice(start));
      if (held > maxBlock) throw new RangeError(`an event is longer than ${maxBlock} characters`);
    },
  };
}

// -- the machine

/**
 * What a client does next. Pure: time comes in with each message, chance through `random`, and
 * what is to be done goes out as a list of effects.
 *
 * Messages: `start`, `tick`, `head`, `bytes`, `block`, `retry`, `answer`, `end`, `fail`, `auth`,
 * `offline`, `online`, `hidden`, `visible`, `pause`, `resume`, `reconnect`, `close`. Those about
 * a request carry its number `n`; what an abandoned request still says is not listened to.
 * Effects: `open` and `abort` (a request), `auth`, `event`, `gap`, `status`, `error`.
 */
export class Machine {
  /**
   * @param {{transport?: 'auto'|'sse'|'polling', cursor?: ?string, streams?: boolean,
   *   auth?: boolean, timings?: object}} options `streams`: whether the platform has readable
   *   response bodies; `auth`: whether there is somebody to ask after a 401
   * @param {() => number} random from 0 up to 1
   */
  constructor({ transport = "auto", cursor = null, streams = true, auth = false, timings = {} } = {}, random = Math.random) {
    this.t = { ...DEFAULTS, ...timings };
    this.fixedBase = "base" in timings;
    this.auto = transport === "auto" && streams;
    this.auth = auth;
    this.random = random;

    this.phase = "idle"; // connecting, live, waiting, authorizing, paused, stopped, closed
    this.method = streams && transport !== "polling" ? "sse" : "polling";
    this.main = null; // the request that delivers
    this.probe = null; // the stream that may take over from polling
    this.requests = 0;

    this.cursor = cursor;
    this.place = parseCursor(cursor); // the same as {epoch, offset}; null if it is of no such form
    this.seen = new Set(); // event ids, oldest first

    this.attempts = 0; // that failed since a connection last proved itself
    this.failures = 0; // of streams, on the way to polling
    this.shortLives = 0;
    this.troubled = false; // a poll has failed since the last that did not
    this.authorized = false; // the hook has been asked since the last success
    this.retryAt = null;
    this.floorAt = 0; // what Retry-After forbids
    this.pollAt = null;
    this.probeAt = null;
    this.probeDelay = 0;
    this.offline = false;
    this.hidden = false;

    this.error = null;
    this.bus = null;
    this.lastEvent = null;
    this.effects = [];
  }

  /** Take a message in; returns the effects, in the order in which they are to happen. */
  handle(message, now) {
    this.effects = [];
    if (this.phase === "closed") return this.effects;
    if ("n" in message) {
      const request = [this.main, this.probe].find((each) => each?.n === message.n);
      if (request) this.#about(request, message, now);
      else if (message.type === "auth" && message.n === this.requests) this.#authorized(message, now);
    } else {
      this.#general(message, now);
    }
    return this.effects;
  }

  /** When `tick` is due, in the clock's milliseconds; Infinity if nothing is awaited. */
  get wakeAt() {
    const times = [Infinity];
    if (this.main) times.push(this.#deadline(this.main));
    if (this.probe) times.push(this.#deadline(this.probe));
    if (this.phase === "waiting") times.push(this.retryAt);
    if (this.phase === "live" && !this.main) times.push(this.pollAt);
    if (this.#mayProbe()) times.push(this.probeAt);
    return Math.min(...times);
  }

  /** What users see of it. */
  get state() {
    const isConnected = this.phase === "live";
    return {
      isConnected,
      activeMethod: isConnected ? this.method : null,
      lastEvent: this.lastEvent,
      error: this.error,
      attempt: isConnected ? 0 : this.attempts,
      retryAt: this.phase === "waiting" ? this.retryAt : null,
      bus: this.bus,
      stopped: this.phase === "stopped",
    };
  }

  // -- what is not about a request

  #general(message, now) {
    const resting = this.phase === "stopped" || this.phase === "paused";
    switch (message.type) {
      case "start":
        this.#open(now);
        break;
      case "tick":
        this.#tick(now);
        break;
      case "reconnect":
        this.#fresh();
        this.floorAt = 0;
        if (this.auto || this.method === "sse") this.method = "sse";
        this.#open(now);
        break;
      case "close":
        this.#abandon();
        this.phase = "closed";
        break;
      case "pause": // into the back/forward cache, which an open request would prevent
        if (this.phase === "stopped") break;
        this.#abandon();
        this.phase = "paused";
        break;
      case "resume": // requests that look open from before are dead
        if (this.phase !== "paused") break;
        this.attempts = 0;
        this.#open(now);
        break;
      case "offline":
        this.offline = true;
        if (resting) break;
        this.#abandon();
        this.authorized = false;
        this.#report({ message: "the browser is offline" });
        this.#wait(now, 0);
        break;
      case "online":
        this.offline = false;
        if (this.phase !== "waiting") break;
        this.attempts = 0;
        // Everybody on this network comes back in the same second.
        this.retryAt = Math.max(this.floorAt, now + this.random() * 1000);
        break;
      case "hidden":
        this.hidden = true;
        break;
      case "visible":
        this.hidden = false;
        this.#tick(now); // timers of a hidden page are late
        if (this.phase === "waiting") this.retryAt = Math.min(this.retryAt, Math.max(this.floorAt, now));
        if (this.pollAt !== null) this.pollAt = now;
        this.#tick(now);
        break;
    }
  }

  #tick(now) {
    if (this.main && now >= this.#deadline(this.main)) this.#overdue(this.main, now);
    if (this.probe && now >= this.#deadline(this.probe)) this.#probeFailed(now);
    if (this.phase === "waiting" && now >= this.retryAt) this.#open(now);
    if (this.phase === "live" && !this.main && now >= this.pollAt) this.#request("polling", now);
    if (this.#mayProbe() && now >= this.probeAt) this.probe = this.#send("sse", now);
  }

  // -- requests

  /** Begin anew with the current method. */
  #open(now) {
    this.#abandon();
    this.phase = "connecting";
    this.#request(this.method, now);
  }

  #request(kind, now) {
    this.main = this.#send(kind, now);
  }

  #send(kind, now) {
    const n = ++this.requests;
    const wait = kind === "polling" && this.cursor !== null && this.phase === "live" && !this.hidden ? HOLD : 0;
    this.effects.push({ do: "open", n, kind, cursor: this.cursor, wait });
    return { n, kind, wait, openedAt: now, headAt: null, helloAt: null, lastByte: now };
  }

  #abort(request) {
    if (request) this.effects.push({ do: "abort", n: request.n });
  }

  /** Drop every request and every plan. */
  #abandon() {
    this.#abort(this.main);
    this.#abort(this.probe);
    this.main = this.probe = this.retryAt = this.pollAt = null;
    this.requests += 1; // an answer of the auth hook is out of date as well
  }

  #deadline(request) {
    const t = this.t;
    if (request.kind === "polling") return request.openedAt + request.wait * 1000 + t.open;
    if (request.headAt === null) return request.openedAt + t.open;
    if (request.helloAt === null) return request.headAt + t.hello;
    // Without heartbeats silence means nothing.
    if (!request.heartbeat) return Infinity;
    return request.lastByte + Math.max(t.stallMin, t.stallFactor * request.heartbeat);
  }

  #overdue(request, now) {
    if (request.kind === "polling") {
      this.#failed({ message: "the poll was not answered in time" }, now);
    } else if (request.helloAt !== null) {
      this.#ended({ message: "the stream has stalled" }, now, request.lastByte);
    } else if (request.headAt !== null) {
      // Connected and mute: something on the way holds the bytes back. It will again.
      this.#failed({ message: "the stream is buffered on the way" }, now, { weight: 2 });
    } else {
      this.#failed({ message: "the stream was not answered in time" }, now);
    }
  }

  #about(request, message, now) {
    request.lastByte = now;
    switch (message.type) {
      case "head":
        this.#head(request, message, now);
        break;
      case "block":
        this.#block(request, message.block, now);
        break;
      case "retry":
        if (!this.fixedBase) this.t.base = Math.min(message.ms, this.t.cap);
        break;
      case "answer":
        this.#answer(request, message.body, now);
        break;
      case "end":
        if (request === this.probe) this.#probeFailed(now);
        else if (request.helloAt === null) this.#failed({ message: "the stream ended before its hello" }, now);
        else this.#ended({ message: "the stream ended" }, now, now);
        break;
      case "fail":
        if (request === this.probe) this.#probeFailed(now);
        else if (request.helloAt === null) this.#failed(message.error, now);
        else this.#ended(message.error, now, now);
        break;
    }
  }

  #head(request, { status, contentType, retryAfter = null }, now) {
    request.headAt = now;
    const wanted = request.kind === "sse" ? "text/event-stream" : "application/json";
    const type = (contentType ?? "").split(";")[0].trim().toLowerCase();
    if (status === 200 && type === wanted) return;
    const floor = retryAfter === null ? 0 : Math.min(MAX_WAIT, retryAfter * (1 + 0.2 * this.random()));
    if (request === this.probe) {
      this.#probeFailed(now, floor);
      return;
    }
    const error =
      status === 200
        ? { message: `the answer is ${type || "of no type"}, not ${wanted}`, status }
        : { message: `the server answered ${status}`, status };
    if ([204, 400, 404, 410].includes(status)) this.#stop(error);
    else if (status === 401 || status === 403) this.#unauthorized(error);
    else this.#failed(error, now, { floor });
  }

  #unauthorized(error) {
    if (!this.auth || this.authorized) {
      this.#stop(error);
      return;
    }
    this.authorized = true;
    this.#abandon();
    this.#report(error);
    this.phase = "authorizing";
    this.effects.push({ do: "auth", n: this.requests, error });
  }

  #authorized({ ok }, now) {
    if (ok) this.#open(now);
    else this.#stop(this.error);
  }

  #stop(error) {
    this.#abandon();
    this.#report(error);
    this.phase = "stopped";
  }

  #report(error) {
    this.error = error;
    this.effects.push({ do: "error", error });
  }

  // -- failure and return

  /** The main request came to nothing. */
  #failed(error, now, { weight = 1, floor = 0 } = {}) {
    const streamed = this.main.kind === "sse";
    this.#abort(this.main);
    this.main = this.pollAt = null;
    this.#report(error);
    this.attempts += 1;
    this.floorAt = now + floor;
    if (!streamed) {
      this.troubled = true;
    } else if (!this.offline) {
      this.failures += weight;
      // Refused for long is as good as not working; polls ask for themselves.
      if (this.auto && (this.failures >= FAILURES || floor > this.t.open)) {
        this.#fallBack(now, floor);
        return;
      }
    }
    this.#wait(now, Math.max(floor, this.#backoff()));
  }

  /** A stream that had said hello is over; `alive` is until when it was well. */
  #ended(error, now, alive) {
    if (alive - this.main.helloAt >= this.t.shortLife) {
      this.#fresh();
      this.probeDelay = 0;
    }
    const stalled = alive < now;
    const counts = stalled || ++this.shortLives > 1;
    this.#failed(error, now, { weight: counts ? 1 : 0 });
  }

  #fallBack(now, floor) {
    this.method = "polling";
    this.failures = this.floorAt = 0;
    this.probeDelay = this.probeDelay ? Math.min(this.t.probeMax, this.probeDelay * 2) : this.t.probe;
    this.#planProbe(now, floor);
    this.phase = "connecting";
    this.#request("polling", now);
  }

  #fresh() {
    this.attempts = this.failures = this.shortLives = 0;
    this.authorized = false;
  }

  #wait(now, delay) {
    this.phase = "waiting";
    // Browsers sometimes say wrongly that they are offline: look again, without haste.
    const least = this.offline ? this.t.cap : this.t.first;
    this.retryAt = now + Math.min(MAX_WAIT, Math.max(least, delay));
  }

  /** Half of it is chance, so that a server's clients do not come back together. */
  #backoff() {
    const whole = Math.min(this.t.cap, this.t.base * 2 ** Math.min(30, Math.max(0, this.attempts - 1)));
    return whole / 2 + (this.random() * whole) / 2;
  }

  // -- from polling back to a stream

  #mayProbe() {
    const polling = this.method === "polling" && ["connecting", "live", "waiting"].includes(this.phase);
    return this.auto && polling && !this.probe && this.probeAt !== null && !this.offline;
  }

  #planProbe(now, floor = 0) {
    this.probeAt = now + Math.max(floor, this.probeDelay * (0.75 + 0.5 * this.random()));
  }

  #probeFailed(now, floor = 0) {
    this.#abort(this.probe);
    this.probe = null;
    this.probeDelay = Math.min(this.t.probeMax, this.probeDelay * 2);
    this.#planProbe(now, floor);
  }

  #takeOver(probe) {
    this.#abort(this.main);
    this.main = probe;
    this.probe = this.probeAt = this.pollAt = this.retryAt = null;
    this.method = "sse";
    this.failures = FAILURES - 1; // until it has proved itself, one more is enough
  }

  // -- what the server says

  #block(request, block, now) {
    const control = block.type.startsWith("hybrid.") ? block.type.slice(7) : null;
    if (control === "hello") {
      const hello = parseJson(block.data) ?? {};
      if (request === this.probe) this.#takeOver(request);
      request.helloAt = now;
      request.heartbeat = Number(hello.heartbeat) || 0;
      this.phase = "live";
      this.authorized = false;
      this.error = null;
      if (typeof hello.bus === "string") this.bus = hello.bus;
      this.#commit(block.id);
    } else if (control === "bye") {
      this.#bye(request, parseJson(block.data) ?? {}, now);
    } else if (request.helloAt === null) {
      return; // whatever this is, it is not the server that the contract speaks of
    } else if (control === "gap") {
      const { reason = "unknown" } = parseJson(block.data) ?? {};
      this.#gap(reason, block.id, now);
    } else if (control === "status") {
      const status = parseJson(block.data) ?? {};
      if (typeof status.bus === "string") this.bus = status.bus;
      this.effects.push({ do: "status", status });
      this.#commit(block.id);
    } else if (control !== null || block.data === null) {
      this.#commit(block.id); // a heartbeat, or what a later server may say
    } else {
      const { id, eid, at, type, data } = block;
      this.#event({ id: eid ?? eventId(id), cursor: id, type, data: parseText(data), at: Number(at) || null, method: "sse" });
    }
  }

  #bye(request, { after }, now) {
    if (request === this.probe) {
      this.#probeFailed(now);
      return;
    }
    this.#abandon();
    // Not a failure: it was said in advance, with the time at which to come back.
    this.#wait(now, after >= 0 ? after * (1 + this.random()) : this.#backoff());
  }

  #answer(request, body, now) {
    if (!Array.isArray(body?.events) || typeof body.cursor !== "string") {
      this.#failed({ message: "the answer is not that of a poll" }, now);
      return;
    }
    this.main = null;
    this.phase = "live";
    this.error = null;
    this.#fresh();
    if (typeof body.bus === "string") this.bus = body.bus;
    if (this.troubled && this.probeAt !== null) {
      // It was the server and not the stream that failed: no need to wait for long.
      this.probeAt = Math.min(this.probeAt, now + this.t.base * (0.5 + this.random()));
    }
    this.troubled = false;
    if (body.gap) this.#gap(body.gap.reason, body.cursor, now);
    for (const { id, cursor, type, data, text, at } of body.events) {
      const value = text === undefined ? data : parseText(text.replace(/\r\n?/g, "\n"));
      this.#event({ id, cursor, type, data: value, at, method: "polling" });
    }
    this.#commit(body.cursor);
    this.pollAt = now + this.#pause(request, body, now);
    this.#tick(now);
  }

  /** How long until the next poll. */
  #pause(request, body, now) {
    if (body.more) return 0;
    const suggested = Number.isFinite(body.wait) && body.wait > 0 ? body.wait : this.t.poll;
    if (this.hidden) return HIDDEN * suggested;
    // A server that holds polls is asked again at once, one that does not when it suggests.
    // Which it is shows at the second poll: the first asks for an answer without delay.
    const took = now - request.openedAt;
    const held = took >= request.wait * 500;
    return held || body.events.length ? Math.max(0, SPACING - took) : suggested;
  }

  #gap(reason, cursor, now) {
    if (typeof cursor === "string" && cursor) {
      this.cursor = cursor;
      this.place = parseCursor(cursor);
    }
    this.effects.push({ do: "gap", gap: { reason, cursor: this.cursor } });
    if (this.probe) {
      // It asked from where there is no more going on, and would be told the same.
      this.#abort(this.probe);
      this.probe = null;
      this.#planProbe(now);
    }
  }

  #event(fields) {
    const { id, cursor } = fields;
    this.#commit(cursor);
    if (id !== null) {
      if (this.seen.has(id)) return;
      this.seen.add(id);
      if (this.seen.size > MEMORY) this.seen.delete(this.seen.values().next().value);
    }
    const event = Object.freeze({ ...fields, at: fields.at ?? null, cursor: cursor ?? null, provisional: !cursor });
    this.lastEvent = event;
    this.effects.push({ do: "event", event });
  }

  /** Move on to where the server says we are; within an epoch never back. */
  #commit(cursor) {
    if (typeof cursor !== "string" || !cursor) return;
    const place = parseCursor(cursor);
    if (place && this.place?.epoch === place.epoch && place.offset < this.place.offset) return;
    this.cursor = cursor;
    this.place = place;
  }
}

function parseCursor(text) {
  const parts = /^([^.]+)\.([0-9]+)\./.exec(text ?? "");
  return parts && { epoch: parts[1], offset: Number(parts[2]) };
}

/** The event's own id, which is the cursor's third part; any other id stands for itself. */
function eventId(cursor) {
  return cursor === null ? null : (/^[^.]+\.[0-9]+\.(.+)$/.exec(cursor)?.[1] ?? cursor);
}

function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** JSON, or else a text event's text. */
function parseText(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

// -- the shell

/**
 * Connect to a flask-hybrid server and stay connected.
 *
 * @param {string} url where the blueprint is mounted, for instance `/api/realtime`
 * @param {object} [options]
 * @param {string[]} [options.topics] to ask for, besides what is for this user anyway
 * @param {string} [options.cursor] where to begin: what the server gave with a snapshot.
 *   Without one, at now
 * @param {object|(() => object|Promise<object>)} [options.headers] for every request; a function
 *   is called before each
 * @param {(error: object) => boolean|Promise<boolean>} [options.onAuth] called once after a 401
 *   or 403; resolve to true to try once more
 * @param {RequestCredentials} [options.credentials]
 * @param {typeof fetch} [options.fetch] in place of the global one
 * @param {'auto'|'sse'|'polling'} [options.transport]
 * @param {object} [options.timings] in milliseconds; the keys of DEFAULTS
 * @returns {{
 *   readonly state: {isConnected: boolean, activeMethod: 'sse'|'polling'|null, lastEvent: ?object,
 *     error: ?{message: string, status?: number}, attempt: number, retryAt: ?number,
 *     bus: ?string, stopped: boolean},
 *   on: (type: string, listener: (value: any) => void) => () => void,
 *   subscribe: (listener: () => void) => () => void,
 *   reconnect: () => void,
 *   close: () => void,
 * }} `on` takes an event's type, `*` for every event, or `state`, `gap`, `error`, `status`,
 *   which are the client's own (an event of such a type comes under `*` alone); both `on` and
 *   `subscribe` return what takes the listener off. `state` is frozen and stays the same object
 *   until it changes. An event is `{id, cursor, type, data, at, method, provisional}`
 */
export function connect(url, options = {}) {
  const { topics = [], headers, onAuth, credentials = "same-origin" } = options;
  const base = url.replace(/\/+$/, "");
  const machine = new Machine({ ...options, streams: canStream(), auth: Boolean(onAuth) });
  const listeners = new Map();
  const requests = new Map(); // number to AbortController
  const cleanups = [];
  const inbox = [];
  let state = Object.freeze(machine.state);
  let busy = false;
  let closed = false;
  let timer = null;
  let timerAt = Infinity;

  // A listener may call reconnect() or close(): what it causes waits until all that the message
  // before it caused has happened.
  function tell(message) {
    inbox.push(message);
    if (busy) return;
    busy = true;
    try {
      while (inbox.length) {
        const effects = machine.handle(inbox.shift(), Date.now());
        refresh(); // first, so that listeners see the state that goes with their event
        for (const effect of effects) perform(effect);
      }
    } finally {
      busy = false;
    }
    arm();
  }

  function perform(effect) {
    switch (effect.do) {
      case "open":
        open(effect);
        break;
      case "abort":
        requests.get(effect.n)?.abort();
        requests.delete(effect.n);
        break;
      case "auth":
        authorize(effect);
        break;
      case "event":
        if (OWN.has(effect.event.type)) warnOnce(effect.event.type);
        else emit(effect.event.type, effect.event);
        emit("*", effect.event);
        break;
      default: // gap, status, error
        emit(effect.do, effect[effect.do]);
    }
  }

  function refresh() {
    const next = machine.state;
    if (Object.keys(next).every((key) => next[key] === state[key])) return;
    state = Object.freeze(next);
    emit("state", state);
  }

  function emit(type, value) {
    for (const listener of [...(listeners.get(type) ?? [])]) {
      if (closed) return;
      try {
        listener(value);
      } catch (error) {
        report(error);
      }
    }
  }

  /** One timer for everything. It may fire early, never late: deadlines mostly move away. */
  function arm() {
    const at = machine.wakeAt;
    if (at >= timerAt) return;
    clearTimeout(timer);
    timerAt = at;
    timer = setTimeout(
      () => {
        timerAt = Infinity;
        tell({ type: "tick" });
      },
      Math.max(0, Math.min(at - Date.now(), 2 ** 31 - 1)),
    );
  }

  async function open({ n, kind, cursor, wait }) {
    const controller = new AbortController();
    requests.set(n, controller);
    try {
      const query = new URLSearchParams(topics.map((topic) => ["topic", topic]));
      if (cursor !== null) query.set("since", cursor);
      if (wait) query.set("wait", wait);
      const sent = new Headers(typeof headers === "function" ? await headers() : headers);
      if (controller.signal.aborted) return;
      const streamed = kind === "sse";
      // The second type tells the server that this client reads statuses, unlike EventSource.
      sent.set("Accept", streamed ? "text/event-stream, application/problem+json" : "application/json");
      const response = await (options.fetch ?? fetch)(`${base}/${streamed ? "sse" : "polling"}?${query}`, {
        headers: sent,
        credentials,
        // Firefox lets a second request for the same address wait for the first otherwise.
        cache: "no-store",
        signal: controller.signal,
      });
      const retryAfter = parseRetryAfter(response.headers.get("Retry-After"));
      tell({ type: "head", n, status: response.status, contentType: response.headers.get("Content-Type"), retryAfter });
      if (controller.signal.aborted) return;
      if (streamed) await read(n, response.body, controller);
      else tell({ type: "answer", n, body: await response.json() });
    } catch (error) {
      tell({ type: "fail", n, error: { message: String(error?.message ?? error) } });
    } finally {
      // Also where somebody's own fetch did not heed the signal; otherwise long over.
      controller.abort();
      requests.delete(n);
    }
  }

  async function read(n, body, controller) {
    const reader = body.getReader();
    const parser = createParser((block) => tell({ type: "block", n, block }), {
      onRetry: (ms) => tell({ type: "retry", n, ms }),
    });
    while (!controller.signal.aborted) {
      const { done, value } = await reader.read();
      if (done) break;
      tell({ type: "bytes", n });
      parser.push(value);
    }
    tell({ type: "end", n });
  }

  async function authorize({ n, error }) {
    let ok = false;
    try {
      ok = (await onAuth(error)) === true;
    } catch (failure) {
      report(failure);
    }
    tell({ type: "auth", n, ok });
  }

  function listen(target, type, message) {
    if (typeof target?.addEventListener !== "function") return;
    const listener = (event) => {
      const telling = message(event);
      if (telling) tell({ type: telling });
    };
    target.addEventListener(type, listener);
    cleanups.push(() => target.removeEventListener(type, listener));
  }

  function on(type, listener) {
    if (!listeners.has(type)) listeners.set(type, new Set());
    // Wrapped, so that a listener added twice is called twice and taken off one by one.
    const own = (value) => listener(value);
    listeners.get(type).add(own);
    return () => listeners.get(type).delete(own);
  }

  listen(globalThis, "online", () => "online");
  listen(globalThis, "offline", () => "offline");
  listen(globalThis, "pagehide", () => "pause");
  // Not every browser says `persisted` when it should; being shown again says enough.
  listen(globalThis, "pageshow", () => "resume");
  const page = globalThis.document;
  listen(page, "visibilitychange", () => (page.visibilityState === "hidden" ? "hidden" : "visible"));
  if (page?.visibilityState === "hidden") tell({ type: "hidden" });
  // In a moment, so that listeners added right after connect() hear of everything.
  queueMicrotask(() => tell({ type: "start" }));

  return {
    get state() {
      return state;
    },
    on,
    subscribe: (listener) => on("state", () => listener()),
    reconnect() {
      tell({ type: "reconnect" });
    },
    close() {
      if (closed) return;
      closed = true;
      for (const cleanup of cleanups) cleanup();
      tell({ type: "close" });
      clearTimeout(timer);
    },
  };
}

function canStream() {
  return typeof ReadableStream === "function" && typeof Response === "function" && "body" in Response.prototype;
}

/** Milliseconds from a Retry-After header (RFC 9110, section 10.2.3), null without a usable one. */
function parseRetryAfter(text) {
  if (!text) return null;
  const ms = /^[0-9]+$/.test(text) ? Number(text) * 1000 : Date.parse(text) - Date.now();
  return Number.isNaN(ms) ? null : Math.max(0, ms);
}

/** What a listener threw is the page's error, not ours. */
function report(error) {
  if (typeof reportError === "function") reportError(error);
  else
    setTimeout(() => {
      throw error;
    });
}

const warned = new Set();

function warnOnce(type) {
  if (warned.has(type)) return;
  warned.add(type);
  console.warn(`hybrid: "${type}" is one of the client's own names; events of that type come under "*" alone`);
}
