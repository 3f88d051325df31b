/**
 * One connection for all tabs of a person: hybrid.js loads this where a page has given a name.
 *
 * Two parts: a tab (who has the connection, what the others are told; pure like the machine) and
 * a shell around it (Web Locks, BroadcastChannel).
 */
const DEFAULTS = {
  beat: 2_000, // a leading tab says that it is alive
  patience: 7_000, // a seen tab without a sign of its leader takes over
};
const RING = 200; // frames that a leader can repeat

/**
 * Which of the tabs with the same name has the connection. Pure like the machine, and with the
 * same `handle`, `wakeAt`, `cursor` and `state`, so that whoever drives it need not know.
 *
 * One tab holds a lock: it leads, runs its machine and says what the machine has heard, as
 * frames. The others follow: their machines rest, and take the frames in, so that their cursors
 * move along and each can go on from its own when the lock comes to it.
 *
 * A tab follows once it is `level` with its leader, and asks until it is. The leader knows by
 * the cursor what it has to repeat; if it cannot tell, the tab polls for itself up to where the
 * leader is. A gap makes everybody level. Terms, which only grow and which no two share, tell a
 * leader from one that was frozen and does not know yet that it was replaced.
 *
 * A leader that is refused holds nobody up: others may have other credentials. Once it has given up,
 * or its hook waits for a person, it is `out`: it gives the lock back and asks for it again when
 * another is connected or there is something to try. From one that tries again by itself the others
 * take the lock, each that was not refused since somebody was last connected: one after the other,
 * and who is `fresh` at once.
 *
 * Besides the machine's messages: `granted` and `lost` (the lock), `heard` (from another tab).
 * Besides its effects: `lock` (ask for it, `steal`: at once), `release` (it, and the
 * channel unless it is told to `listen`), `post` (to the others).
 */
export function createTab(machine, { timings = {} } = {}, random = Math.random) {
  const t = { ...DEFAULTS, ...timings };
  const me = random();
  let role = "follower"; // leader, solo
  let joined; // false in the back/forward cache, null once closed
  let hidden = false;
  let due = Infinity; // a leader's next beat; the end of a follower's patience
  let term = 0;
  let late = 0; // a term that others know, beyond our clock: it was set back before this page was loaded
  let level = false; // with the leader
  let levelled = 0; // when
  let asked = 0; // when; 0 once answered
  let remote = null; // the leader's state
  let out = false; // refused: not waiting for the lock
  let eager = true; // not refused since somebody was last connected
  let fresh = false; // just loaded, or told to reconnect
  let ring = []; // frames, without a hole between them
  let effects;
  let now;

  const told = () => JSON.stringify({ ...machine.state, lastEvent: null });

  const post = (message) => effects.push(["post", message]);

  const ask = () => {
    asked = now;
    // Live it is by polls: then the server has just confirmed our cursor.
    post({ ask: machine.cursor, polled: machine.state.isConnected, me, at: Math.max(now, term) });
  };

  /** Be patient. Each tab ends at another moment, so that they do not take the lock away from one another. */
  const wait = (ms = t.patience) => (due = now + ms + me * 1_000);

  const lock = (steal) => {
    out = false;
    effects.push(["lock", steal]);
    wait();
  };

  const keep = (frame) => {
    if (frame.effects.length || frame.prev !== frame.cursor) ring.push(frame);
    if (ring.length > RING) ring.shift();
  };

  /** Say what changed, and the state. A frame in which nothing changed is a beat. */
  const say = (prev = machine.cursor, heard = [], answer = {}) => {
    const state = { ...machine.state, lastEvent: null };
    const frame = { term, prev, cursor: machine.cursor, effects: heard, state, hidden };
    post({ ...frame, ...answer });
    keep(frame);
    due = now + t.beat;
  };

  /** Let the machine handle a message; a leader says what came of it. */
  const run = (message) => {
    const prev = machine.cursor;
    const before = told();
    const done = machine.handle(message, now);
    effects.push(...done);
    if (machine.state.isConnected) eager = true;
    if (done.some(([what, value]) => what === "error" && /^40[13]$/.test(value.status))) eager = fresh = false;
    const heard = done.filter(([what]) => /event|gap|status|error/.test(what));
    if (role !== "leader") return;
    if (heard[0] || prev !== machine.cursor || before !== told()) say(prev, heard);
    if (machine.state.stopped) leave();
  };

  /** Be no leader, and not wait to be one. */
  const leave = () => {
    role = "follower";
    out = true;
    level = false;
    ring = [];
    due = Infinity;
    effects.push(["release", true]);
  };

  /** Whether to take the lock from a leader that was refused. */
  const insists = () => eager && !out && /stopped|authorizing|waiting:40[13]/.test(`${remote?.status}:${remote?.error?.status}`);

  const rest = () => {
    role = "follower";
    out = level = false;
    asked = 0;
    ring = [];
    run({ type: "rest" });
  };

  const follow = () => {
    rest();
    lock();
    ask();
  };

  const take = (frame) => {
    for (const [type, value] of [...frame.effects, ["cursor", frame.cursor]]) {
      const done = machine.handle({ type, value, live: frame.state.isConnected }, now);
      effects.push(...(/status|error/.test(type) ? [[type, value]] : done));
    }
    keep(frame);
  };

  /** What a tab at this cursor has missed; undefined if that cannot be told. */
  const missed = (cursor, polled) => {
    if (cursor === null || cursor === machine.cursor) return [];
    const from = ring.findIndex((frame) => frame.prev === cursor);
    if (from >= 0) return ring.slice(from);
    const [epoch, offset] = cursor.split(".");
    const [ours, reached] = (machine.cursor ?? "").split(".");
    if (polled && epoch === ours && +offset >= +reached) return [];
  };

  /**
   * Our own polls brought us further than our leader is. Did it come, or jump, past us without
   * having been where we are, or is it late, the log may have been turned back: the server knows.
   */
  const doubtful = ({ prev, cursor, effects }) => {
    const mine = machine.cursor;
    if (mine === prev || mine === cursor || effects.some(([what, value]) => what === "gap" || value?.cursor === mine)) return false;
    const at = (text) => +text?.split(".")[1];
    return at(cursor) >= at(mine) || now - levelled >= t.patience;
  };

  const begin = () => (term = Math.floor(Math.max(now, term + 1, late + 1)) + me);

  const general = {
    start() {
      joined = eager = fresh = true;
      follow();
    },
    pageshow() {
      if (joined === false) general.start();
    },
    pagehide() {
      joined = false;
      due = Infinity;
      effects.push(["release"]);
      rest();
    },
    close(message) {
      general.pagehide();
      joined = null;
      run(message);
    },
    granted() {
      role = "leader";
      fresh = false;
      begin();
      // Our own polls brought us further than our leader was.
      if (ring.at(-1)?.cursor !== machine.cursor) ring = [];
      run({ type: "start", polling: remote?.activeMethod === "polling" });
    },
    lost({ alone }) {
      if (!alone) return follow();
      role = "solo"; // no locks here after all
      due = Infinity;
      effects.push(["release"]);
      run({ type: "start" });
    },
    tick(message) {
      if (now >= due && role === "leader") {
        if (machine.state.status === "authorizing") leave();
        else say();
      } else if (now >= due && (!hidden || insists())) {
        // When the timer was late we slept, as the leader may have.
        if (now - due > t.patience) wait();
        else lock(true);
      }
      run(message);
    },
    hidden(message) {
      hidden = true;
      run(message);
    },
    visible(message) {
      hidden = false;
      run(message);
    },
    reconnect(message) {
      if (role !== "follower") return run(message);
      if (!joined) return; // it begins anew when it is
      eager = fresh = true;
      if (out) follow();
      else if (insists()) lock(true);
      else {
        post({ reconnect: true });
        if (/stopped|waiting/.test(machine.state.status)) run({ type: "poll" });
      }
    },
    auth(message) {
      if (out && message.ok) follow();
      else run(message);
    },
    offline(message) {
      if (!out) run(message);
    },
    heard({ message }) {
      const leads = role === "leader";
      if (message.me) {
        if (message.at < term && !leads) post({ to: message.me, late: term });
        if (leads) say(undefined, [], { to: message.me, since: message.ask, missed: missed(message.ask, message.polled) });
      } else if (message.late) {
        if (message.to !== me || message.late <= term) return;
        late = message.late;
        if (!leads) return;
        begin();
        say();
      } else if (message.reconnect) leads && run({ type: "reconnect" });
      else if (message.term > term || (message.term === term && !leads)) hearLeader(message);
    },
  };

  const hearLeader = (frame) => {
    if (frame.term > term) {
      term = frame.term;
      // A leader that hears this was replaced while it was frozen.
      if (role === "leader") return follow();
      level = false;
      asked = 0;
      ring = [];
    }
    remote = frame.state;
    if (remote.isConnected) eager = true;
    if (out) return remote.isConnected && follow();
    if (fresh && insists()) return lock(true);
    // One that nobody sees polls seldom; who is seen does that better, if it was not refused.
    wait(insists() || (frame.hidden && !hidden && remote.activeMethod === "polling" && !machine.state.error?.status) ? 0 : t.patience);
    // One from before we went on says nothing about here.
    const answer = frame.to === me && frame.since === machine.cursor;
    if (frame.to === me) asked = 0;
    if (level || (frame.to && frame.to !== me)) {
      if (frame.to) return;
      if (!doubtful(frame)) return take(frame);
      level = false;
      ring = [];
      asked = now;
      run({ type: "poll" });
    } else if ((answer && frame.missed) || frame.effects.some(([what]) => what === "gap")) {
      level = true;
      levelled = now;
      run({ type: "rest" });
      (frame.missed ?? []).forEach(take);
      take(frame);
    } else if (answer) {
      if (/idle|paused/.test(machine.state.status)) run({ type: "poll" });
    } else if (now - asked >= t.beat) ask();
  };

  return {
    handle(message, time) {
      effects = [];
      now = time;
      if (joined === null) return effects;
      if (general[message.type]) general[message.type](message);
      else run(message);
      if (message.type === "answer" && role === "follower" && machine.state.isConnected) ask();
      return effects;
    },
    get wakeAt() {
      return Math.min(machine.wakeAt, role === "follower" && hidden && !insists() ? Infinity : due);
    },
    get cursor() {
      return machine.cursor;
    },
    get state() {
      const state = machine.state;
      return { ...(level && role === "follower" ? { ...remote, lastEvent: state.lastEvent } : state), role };
    },
  };
}


/**
 * The tab that drives `machine`, with what it needs of the browser added to `acts`.
 *
 * @param {string} name of the lock and of the channel
 * @param {(type: string, more?: object) => void} tell takes messages to the tab
 */
export function share(machine, name, tell, acts, options) {
  let channel = null;
  let end = () => {};

  acts.post = (message) => channel?.postMessage(message);
  acts.lock = (steal) => {
    end();
    const controller = new AbortController();
    const { signal } = controller;
    const hold = () => {
      if (signal.aborted) return;
      tell("granted");
      return new Promise((resolve) => (signal.onabort = resolve));
    };
    end = () => controller.abort();
    // Where cookies are blocked, either may be there and refuse, at once or later.
    (async () => {
      if (!channel) {
        channel = new BroadcastChannel(name);
        channel.onmessage = ({ data }) => tell("heard", { message: data });
      }
      await navigator.locks.request(name, steal ? { steal } : { signal }, hold);
    })().catch((error) => signal.aborted || tell("lost", { alone: error.name !== "AbortError" }));
  };
  acts.release = (listen) => {
    end();
    if (listen) return;
    // Open, it would keep the page out of the back/forward cache, or wake it there.
    channel?.close();
    channel = null;
  };
  return createTab(machine, options);
}
