/**
 * What an application's events carry, by type. Empty until the application says:
 *
 *     declare module "flask-hybrid" {
 *       interface Events { "report.approved": { id: number } }
 *     }
 *
 * From then on `on`, `onEvent` and `reduce` know these types and no others. As long as nothing is
 * said, every type is allowed and the data is unknown.
 */
export interface Events {}

/** The types of events that there are. */
export type EventType = [keyof Events] extends [never] ? string : keyof Events & string;

/** What an event of a type carries. */
export type EventData<T extends string> = T extends keyof Events ? Events[T] : unknown;

export interface HybridEvent<T extends string = string> {
  /** The same however often and on whichever way it is delivered; null if the server gave none. */
  readonly id: string | null;
  /** Where in the log it is; null while it is provisional. */
  readonly cursor: string | null;
  readonly type: T;
  readonly data: EventData<T>;
  /** When it was emitted, in Unix milliseconds. */
  readonly at: number | null;
  readonly method: "sse" | "polling";
  /** Delivered while the server's shared log was out of reach. */
  readonly provisional: boolean;
}

/** Any event; its `type` tells what its `data` is. */
export type AnyEvent = { [T in EventType]: HybridEvent<T> }[EventType];

export interface ClientError {
  /** What the server says of a refusal (the `detail` of its problem), or else what happened. */
  readonly message: string;
  /** The HTTP status, if there was an answer. */
  readonly status?: number;
}

export interface Gap {
  readonly reason: "expired" | "epoch" | "rollback" | "forked" | "too_far" | "overflow" | "invalid" | "unknown" | (string & {});
  /** Where it goes on from. */
  readonly cursor: string | null;
}

export interface Status {
  readonly bus: "ok" | "degraded" | (string & {});
  /** Unix milliseconds. */
  readonly since?: number;
}

export interface State {
  /** True from the server's hello on, or from the first poll that was answered. */
  readonly isConnected: boolean;
  readonly activeMethod: "sse" | "polling" | null;
  readonly lastEvent: AnyEvent | null;
  /** Why it is not connected, or not as it should be. */
  readonly error: ClientError | null;
  /** How many attempts have failed since it was last connected. */
  readonly attempt: number;
  /** When the next attempt is due, in Unix milliseconds. */
  readonly retryAt: number | null;
  readonly bus: string | null;
  /** It has given up until `reconnect()`. */
  readonly stopped: boolean;
  readonly status: "idle" | "connecting" | "live" | "waiting" | "authorizing" | "paused" | "stopped" | "closed";
  /** Which of the tabs that share a connection this is: the one that has it, or one that is told. */
  readonly role: "solo" | "leader" | "follower";
}

type HeaderValues = Record<string, string>;

/** Whether it is worth another try: anything truthy is, like a fresh token. */
type Answer = boolean | string | null;

/** The platform's `fetch`, in projects that have its types. */
export type Fetch = typeof globalThis extends { fetch: infer F extends (...given: any) => any }
  ? F
  : (address: string, init: any) => Promise<any>;

/** How long things may take, in milliseconds; docs/client.md says what each is. */
export interface Timings {
  open?: number;
  hello?: number;
  stall?: number;
  base?: number;
  cap?: number;
  first?: number;
  poll?: number;
  probe?: number;
  soon?: number;
  shortLife?: number;
  well?: number;
  beat?: number;
  patience?: number;
}

export interface Options {
  /** To ask for, besides what is for this user anyway. */
  topics?: readonly string[] | undefined;
  /**
   * Where to begin: what the server gave with a snapshot. Without one, where this page was before
   * it was loaded again, or its client closed, or else at now.
   */
  cursor?: string | null | undefined;
  /** Who is logged in, for instance the user's id: tabs of the same name share a connection. */
  name?: string | null | undefined;
  /** False: not with other tabs even so. */
  share?: boolean | undefined;
  /** False: remember nothing over a reload or a `close()`. */
  persist?: boolean | undefined;
  /** For every request; a function is called before each. */
  headers?: HeaderValues | (() => HeaderValues | Promise<HeaderValues>) | undefined;
  /**
   * Called once after a 401 or 403, or a redirect to a page, which is a login's. One more try follows if what it resolves to is truthy; where
   * it throws, or resolves to false, null or an empty string, the client stops.
   */
  onAuth?: ((error: ClientError) => Answer | Promise<Answer>) | undefined;
  credentials?: "omit" | "same-origin" | "include" | undefined;
  /** In place of the global one. */
  fetch?: Fetch | undefined;
  transport?: "auto" | "sse" | "polling" | undefined;
  /**
   * In place of `JSON.parse`, for instance for integers beyond 2^53: given an event's data by a
   * stream, and the whole answer by a poll. What it makes is not shared between tabs.
   */
  parse?: ((text: string) => any) | undefined;
  /** The longest event, in UTF-16 units. */
  maxBuffer?: number | undefined;
  /** In milliseconds. */
  timings?: Timings | undefined;
}

/** Takes a listener off; calling it again does nothing. */
export type Off = () => void;

/** What `load` shows, as `createDashboard()` has it. */
export interface LoadState<Data = unknown> {
  /** Undefined until it is known. */
  readonly data?: Data | undefined;
  /** What went wrong with the newest fetch; the data of an older one stays. */
  readonly error?: ClientError | undefined;
  readonly isLoading: boolean;
  /** The data may be older than what the server has. */
  readonly isStale: boolean;
}

export interface Client {
  /** Frozen, and the same object until something changes. */
  readonly state: State;
  on(type: "*", listener: (event: AnyEvent) => void): Off;
  on(type: "state", listener: (state: State) => void): Off;
  on(type: "gap", listener: (gap: Gap) => void): Off;
  on(type: "error", listener: (error: ClientError) => void): Off;
  on(type: "status", listener: (status: Status) => void): Off;
  on(type: `${string}.*`, listener: (event: AnyEvent) => void): Off;
  on<T extends EventType>(type: T, listener: (event: HybridEvent<T>) => void): Off;
  subscribe(listener: () => void): Off;
  /**
   * The events of a type, of a beginning of types (`order.*`) or all, as a loop that ends with
   * `close()`.
   */
  events<T extends EventType>(type: T): AsyncGenerator<HybridEvent<T>, void, void>;
  events(type?: "*" | `${string}.*`): AsyncGenerator<AnyEvent, void, void>;
  /**
   * Fetch JSON and keep it live: now, after a gap, and where `reduce` returns undefined or is none.
   * Events that arrive during a fetch are played over what it brings, unless the
   * `X-Realtime-Cursor` of the answer says that it contains them. A fetch that fails is made again.
   *
   * `source` is an address, or a function that fetches. `reduce` gives the data after an event:
   * the same object where the event does not matter; it must not change the old one. `show` is
   * called once a frame when something has changed. Returns what ends it, as `close()` does.
   */
  load<Data = any>(
    source: string | ((init: any) => ReturnType<Fetch>),
    reduce: ((data: Data, event: AnyEvent) => Data | undefined) | null | undefined,
    show: (state: LoadState<Data>) => void,
  ): Off;
  /** Where in the log the client is: what `cursor` of another `connect()` may begin with. */
  readonly cursor: string | null;
  /** Try now, also after it has stopped. */
  reconnect(): void;
  /** The end, for good: no request, no timer, no event. */
  close(): void;
}

/** Connect to a flask-hybrid server and stay connected. `url` is where the blueprint is mounted. */
export function connect(url: string, options?: Options): Client;
