// What the pages of the engine tests run: a client whose experience can be read.
const query = new URLSearchParams(location.search);

// An older browser, as far as asked.
const strips = {
  ReadableStream: () => delete window.ReadableStream,
  locks: () => Object.defineProperty(navigator, "locks", { value: undefined }),
  BroadcastChannel: () => delete window.BroadcastChannel,
  EventSource: () => delete window.EventSource,
  // As Firefox is where cookies are blocked: all of it is there, and refuses.
  cookies: () => {
    const refuse = () => {
      throw new DOMException("The operation is insecure.", "SecurityError");
    };
    window.BroadcastChannel = class {
      constructor() {
        refuse();
      }
    };
    LockManager.prototype.request = async () => refuse();
    strips.storage();
  },
  storage: () =>
    Object.defineProperty(window, "sessionStorage", {
      get() {
        throw new DOMException("forbidden", "SecurityError");
      },
    }),
};
for (const name of (query.get("strip") ?? "").split(",")) strips[name]?.();

// Only what a test waits for is short: a busy machine is not to look like a broken connection.
const FAST = { base: 60, first: 30, cap: 300, probe: 150, poll: 100, soon: 150, shortLife: 0, beat: 150 };

// The timers that have yet to fire, without those of WebKit's driver, which guard a script for two
// minutes; and what the policy refused, but for the icon, which the browser asks for by itself.
window.timers = new Set();
window.refused = [];
const { setTimeout, clearTimeout } = window;
window.setTimeout = (act, delay) => {
  const timer = setTimeout(() => {
    timers.delete(timer);
    act();
  }, delay);
  if (!(delay >= 100_000)) timers.add(timer);
  return timer;
};
window.clearTimeout = (timer) => {
  timers.delete(timer);
  clearTimeout(timer);
};
document.addEventListener("securitypolicyviolation", ({ effectiveDirective: what }) => what === "img-src" || refused.push(what));

// What this page asks for, and how many streams it has that it has not given up. The server learns
// of an end when it does, which may be after the next beginning.
window.asked = [];
window.streams = { open: 0, most: 0 };
const { fetch } = window;
window.fetch = (url, init) => {
  const kind = /rt\/(\w+)/.exec(url)[1];
  asked.push(kind);
  if (kind === "sse") {
    streams.most = Math.max(streams.most, ++streams.open);
    init.signal.addEventListener("abort", () => (streams.open -= 1));
  }
  return fetch(url, init);
};

const { connect } = await import("/client/hybrid.js");

window.heard = []; // the events' numbers, and "gap"
window.states = [];
window.errors = [];
window.methods = new Set();
window.start = (options = {}) => {
  const { timings, url = new URL("rt", location).pathname, ...rest } = options;
  window.rt = connect(url, { timings: { ...FAST, ...timings }, ...rest });
  rt.on("*", (event) => {
    heard.push(event.data.n);
    methods.add(event.method);
    if (query.has("keep")) sessionStorage.setItem("heard", JSON.stringify(heard));
  });
  rt.on("gap", () => heard.push("gap"));
  rt.on("state", (state) => states.push(`${state.status} ${state.activeMethod ?? "-"}`));
  rt.on("error", (error) => errors.push(error.message));
};
/** Resolves when the condition holds; to false after too long. */
window.until = async (condition, ms = 20_000) => {
  for (const end = Date.now() + ms; !condition(); ) {
    if (Date.now() > end) return false;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  return true;
};
/** As if the person had gone to another tab, or come back. */
window.look = (hidden) => {
  Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
};
if (query.has("keep")) window.heard = JSON.parse(sessionStorage.getItem("heard") ?? "[]");
if (query.has("auto")) start(JSON.parse(query.get("auto")));
window.ready = true;
