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
}

type HeaderValues = Record<string, string>;

/** Whether it is worth another try: anything truthy is, like a fresh token. */
type Answer = boolean | string | null;

export interface Options {
  /** To ask for, besides what is for this user anyway. */
  topics?: readonly string[];
  /**
   * Where to begin: what the server gave with a snapshot. Without one, where this page was before
   * it was loaded again, or else at now.
   */
  cursor?: string | null;
  /** Who is logged in, for instance the user's id: tabs of the same name share a connection. */
  name?: string | null;
  /** False: not with other tabs even so. */
  share?: boolean;
  /** False: remember nothing over a reload. */
  persist?: boolean;
  /** For every request; a function is called before each. */
  headers?: HeaderValues | (() => HeaderValues | Promise<HeaderValues>);
  /**
   * Called once after a 401 or 403. One more try follows if what it resolves to is truthy; where
   * it throws, or resolves to false, null or an empty string, the client stops.
   */
  onAuth?: (error: ClientError) => Answer | Promise<Answer>;
  credentials?: RequestCredentials;
  /** In place of the global one. */
  fetch?: typeof fetch;
  transport?: "auto" | "sse" | "polling";
  /** The longest event, in UTF-16 units. */
  maxBuffer?: number;
  /** In milliseconds. */
  timings?: Partial<Record<string, number>>;
}

/** Takes a listener off; calling it again does nothing. */
export type Off = () => void;

export interface Client {
  /** Frozen, and the same object until something changes. */
  readonly state: State;
  on(type: "*", listener: (event: AnyEvent) => void): Off;
  on(type: "state", listener: (state: State) => void): Off;
  on(type: "gap", listener: (gap: Gap) => void): Off;
  on(type: "error", listener: (error: ClientError) => void): Off;
  on(type: "status", listener: (status: Status) => void): Off;
  on<T extends EventType>(type: T, listener: (event: HybridEvent<T>) => void): Off;
  subscribe(listener: () => void): Off;
  /** Try now, also after it has stopped. */
  reconnect(): void;
  /** The end, for good: no request, no timer, no event. */
  close(): void;
}

/** Connect to a flask-hybrid server and stay connected. `url` is where the blueprint is mounted. */
export function connect(url: string, options?: Options): Client;
