import type { AnyEvent, Client, ClientError, Fetch, Off } from "./hybrid.js";

export interface DashboardState<Data = unknown> {
  /** Undefined until it is known. */
  readonly data: Data | undefined;
  /** What went wrong with the newest fetch; the data of an older one stays. */
  readonly error: ClientError | undefined;
  /** There is nothing to show yet. */
  readonly isLoading: boolean;
  /** The data may be older than what the server has. */
  readonly isStale: boolean;
  /** When the data last changed, in Unix milliseconds. */
  readonly updatedAt: number | undefined;
  /** Fetch now; never rejects. */
  refresh(): Promise<void>;
}

export interface DashboardOptions {
  /** Fetches a key's JSON; the answer's `X-Realtime-Cursor` header says what it contains. */
  fetcher?: ((key: string, init: any) => ReturnType<Fetch>) | undefined;
  /**
   * The data after an event: the same object where the event does not matter, undefined to have
   * the key fetched again. It must not change `data` itself.
   */
  reduce?: ((data: any, event: AnyEvent, key: string) => unknown) | undefined;
  /** Who is logged in; data is kept over a reload for the same name and for no other. */
  name?: string | null | undefined;
  /** Where; by default the tab's sessionStorage. */
  storage?: { getItem(key: string): string | null; setItem(key: string, text: string): void } | undefined;
}

export interface DashboardKey<Data = unknown> {
  /** The same object until something changes. */
  get(): DashboardState<Data>;
  /** The first starts the work for this key, the last that is taken back ends it. */
  subscribe(listener: () => void): Off;
}

export interface Dashboard {
  readonly client: DashboardClient;
  at<Data = unknown>(key: string): DashboardKey<Data>;
}

/** What a dashboard needs of a client. */
export type DashboardClient = Pick<Client, "state" | "on"> & Partial<Pick<Client, "cursor">>;

export function createDashboard(options: DashboardOptions & { client: DashboardClient }): Dashboard;
