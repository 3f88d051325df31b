import type { FunctionComponent, ReactNode } from "react";
import type { DashboardOptions, DashboardState } from "./dashboard.js";
import type { AnyEvent, ClientError, Options, State } from "./hybrid.js";

export interface Realtime extends Pick<State, "isConnected" | "activeMethod" | "lastEvent"> {
  readonly error: ClientError | null;
  reconnect(): void;
  readonly status?: State["status"];
  readonly role?: State["role"];
  readonly attempt?: number;
  readonly retryAt?: number | null;
  readonly bus?: string | null;
  readonly stopped?: boolean;
}

/**
 * The connection, as a component sees it; new at most once a frame. Without an address, that of
 * the `DashboardProvider` around.
 */
export function useHybridRealtime(
  url?: string | null,
  options?: Options & { onEvent?: ((event: AnyEvent) => void) | undefined },
): Realtime;

export interface DashboardProviderProps extends Options, DashboardOptions {
  /** Where the blueprint is mounted. */
  url: string;
  children?: ReactNode;
}

/** A dashboard for all components inside, over a connection of the page. */
export const DashboardProvider: FunctionComponent<DashboardProviderProps>;

/** The data of a key, fetched, cached and kept live. */
export function useDashboard<Data = unknown>(key: string): DashboardState<Data>;
