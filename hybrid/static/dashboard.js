/**
 * The Dashboard Context: what a page shows, fetched once and then kept live by events. An ES
 * module without dependencies; react.js has the same for React.
 *
 * A fetch and the events during it race, and so do two fetches. Both races end in one place:
 * events are remembered as they arrive, and what a fetch brings is a base over which all those are
 * played that it cannot contain. Which these are says the cursor that the server read before it
 * loaded (`X-Realtime-Cursor`); without one, those that arrived after the fetch had begun.
 * The first fetch does not wait for the connection; what it brings is fetched once more when the
 * connection stands, unless its cursor shows that the connection begins no later.
 * What a fetch brings that was begun before the one whose data is shown is thrown away.
 */

const MEMORY = 1000; // events that may arrive while a fetch is under way
const SOON = 100; // from an event that needs a fetch to that fetch: one for many such events
const RETRY = 1000; // after a failed fetch
const DOUBLINGS = 5; // of either, while it does not help
const LARGEST = 256e3; // characters of one key in the storage
const FRAME = 17; // a frame of most screens, and a bit
const LINGER = 3; // frames, within which a page that is drawn anew lets go and takes hold again
const NAME = "hybrid.data";
let owner = 0; // whose data may be in the storage: the name in the newest dashboard that has one

/** Whether what was loaded at one cursor contains another; undefined if nobody can tell. */
function contains(base, cursor) {
  const [epoch, offset] = `${base}`.split(".");
  const [other, later] = `${cursor}`.split(".");
  if (offset && epoch === other) return later - offset <= 0;
}

/** A function that acts in a moment, once however often it is called until then. */
export function perFrame(act) {
  let due;
  return () => {
    due ??= setTimeout(() => {
      due = null;
      act();
    }, FRAME);
  };
}

/**
 * A function that takes hold and returns how to let go. The first opens, the last closes, soon:
 * `open` returns how, which in turn returns nothing.
 */
export function shared(open) {
  let timer;
  let holders = 0;
  let close;
  // One frame after the other: in a page that is busy for long a single timer would be due before
  // the drawing that it waits for.
  const linger = (frames) => {
    timer = setTimeout(() => (frames ? linger(frames - 1) : (close = close())), FRAME);
  };
  return () => {
    clearTimeout(timer);
    holders++;
    close ??= open();
    return () => --holders || linger(LINGER);
  };
}

/** A function that lets go of several things. */
export const all = (...offs) => () => offs.forEach((off) => off());

/**
 * Keep what a page shows up to date.
 *
 * @param {object} options
 * @param {object} options.client what `connect()` returned
 * @param {(key: string, init: RequestInit) => Promise<Response>} [options.fetcher] by default
 *   `fetch`, a key being the address of its data. The answer is JSON, with the cursor in its
 *   X-Realtime-Cursor header
 * @param {(data: any, event: object, key: string) => any} [options.reduce] the data after an
 *   event: the same object where the event does not matter, undefined to have the key fetched
 *   again, which is also what happens without a `reduce`. It must not change `data` itself
 * @param {?string} [options.name] who is logged in, as for `connect()`. If given, data is kept for
 *   the next load of the page, and what was kept for anybody else is removed. Null is nobody, as
 *   after a logout
 * @param {Storage} [options.storage] where it is kept; by default the tab's sessionStorage
 * @returns {{client: object, at: (key: string) => {
 *   get: () => {data: any, error: ?{message: string, status?: number}, isLoading: boolean,
 *     isStale: boolean, updatedAt: ?number, refresh: () => Promise<void>},
 *   subscribe: (listener: () => void) => () => void,
 * }}} `get` returns the same object until something changes. `isStale` says that the data may be
 *   older than what the server has. The first `subscribe` to a key starts the work for it, and
 *   the last that is taken back ends it. `refresh` never rejects: `get` tells of errors
 */
export function createDashboard({ client, fetcher = fetch, reduce, name, storage }) {
  const entries = { __proto__: null }; // by key: of those that are looked at
  let kept = {}; // by key: {data, cursor, updatedAt} of those that were

  try {
    storage ??= sessionStorage;
    const [who, keys = {}] = JSON.parse(storage.getItem(NAME));
    if (who === name) kept = keys;
  } catch {
    // it may not be used, or nothing is there
  }
  if (name !== undefined) owner = name;
  write(kept);

  function write(keys) {
    kept = keys;
    try {
      if (name === owner) storage.setItem(NAME, JSON.stringify([name, keys]));
    } catch {
      // there is none, or it is full: the next load of the page waits for the network
    }
  }

  function makeEntry(key) {
    const listeners = new Set();
    const notify = perFrame(() => listeners.forEach((listener) => listener()));
    let { data, cursor, updatedAt } = kept[key] ?? {};
    let error;
    let asked = 1; // fetches, the first as soon as somebody looks
    let shown = 0; // which of them
    let tries = 0; // in a row that did not do
    let timer;
    let now;
    let recent = []; // events, oldest first
    let forgotten = 0; // events that were before these
    let listening = false; // nothing is missed any more: the client comes back from its cursor
    let begun; // the cursor from which on nothing is missed, where the client says so

    function change() {
      const isLoading = data === undefined && !error;
      now = { data, error, isLoading, isStale: !listening || !!timer || shown < asked, updatedAt, refresh };
      notify();
    }

    function put(next, at) {
      data = next;
      cursor = at;
      updatedAt = Date.now();
      change();
    }

    async function refresh() {
      const turn = ++asked;
      const from = forgotten + recent.length;
      const early = !listening;
      timer = clearTimeout(timer);
      try {
        const answer = await fetcher(key, { cache: "no-store" });
        if (!answer.ok) {
          // What the server says, where it says it as a problem (RFC 9457).
          const problem = /problem/.test(answer.headers.get("Content-Type")) && (await answer.json().catch(() => {}));
          throw { message: problem?.detail ?? `HTTP ${answer.status}`, status: answer.status };
        }
        const base = answer.headers.get("X-Realtime-Cursor");
        const found = await answer.json();
        if (turn < shown) return;
        shown = turn;
        error = undefined;
        put(found, base);
        recent.forEach((event, index) => play(event, base, forgotten + index < from));
        if (forgotten > from) again(SOON);
        else if (early && listening && !contains(base, begun)) refresh();
        if (!timer) tries = 0;
      } catch (failure) {
        if (turn < asked) return; // the newer one will say
        error = failure;
        again(RETRY);
      }
    }

    /** Fetch in a while: once, however often this is said until then. */
    function again(base) {
      timer ??= setTimeout(refresh, base * 2 ** Math.min(tries++, DOUBLINGS) * (1 - Math.random() / 2));
      change();
    }

    /** Take an event into the data, unless what was loaded at `base` contains it. */
    function play(event, base = cursor, otherwise) {
      if (data === undefined || (contains(base, event.cursor) ?? otherwise)) return;
      const next = reduce?.(data, event, key);
      if (next === undefined) again(SOON);
      else put(next, event.cursor ?? cursor);
    }

    function keep() {
      const value = { data, cursor, updatedAt };
      if (JSON.stringify(value).length < LARGEST) write({ ...kept, [key]: value });
    }

    function connected() {
      if (listening || !client.state.isConnected) return;
      listening = true;
      begun = client.cursor;
      // A fetch that is under way sees to it when it ends.
      if (!timer && (shown < asked || contains(cursor, begun))) change();
      else refresh();
    }

    const hold = shared(() => {
      globalThis.addEventListener?.("pagehide", keep);
      const offs = all(
        client.on("*", (event) => {
          if (recent.push(event) > MEMORY) {
            recent.shift();
            forgotten++;
          }
          play(event);
        }),
        client.on("gap", () => again(SOON)),
        client.on("state", connected),
        keep,
        () => {
          globalThis.removeEventListener?.("pagehide", keep);
          timer = clearTimeout(timer);
          shown = ++asked; // whatever is under way comes too late
          listening = false;
          recent = [];
          delete entries[key];
        },
      );
      listening = client.state.isConnected;
      refresh();
      return offs;
    });

    change();
    return {
      get: () => now,
      subscribe(listener) {
        listeners.add(listener);
        return all(() => listeners.delete(listener), hold());
      },
    };
  }

  return {
    client,
    at: (key) => (entries[key] ??= makeEntry(key)),
  };
}

/**
 * What a client's `load()` does: one key for as long as it is not taken back.
 *
 * @param {string|((init: RequestInit) => Promise<Response>)} source the data's address, or what
 *   fetches it
 * @param {function} [reduce] as for `createDashboard()`
 * @param {(state: object) => void} show what `get` returns, once a frame after it has changed
 * @returns {() => void} the end
 */
export function load(client, source, reduce, show) {
  const fetcher = source.call ? (_, init) => source(init) : fetch;
  const entry = createDashboard({ client, fetcher, reduce }).at(source);
  return entry.subscribe(() => show(entry.get()));
}
