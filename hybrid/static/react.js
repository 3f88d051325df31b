"use client"; // for frameworks that render on a server: what uses this runs in the browser
/**
 * React over hybrid.js and dashboard.js: a hook for the connection, a provider and a hook for the
 * data. `react` is a bare import: a bundler knows it, a page without one says in an import map
 * where it is.
 *
 * All of a page that asks for the same connection shares one. It opens with the first effect that
 * needs it and closes a moment after the last, so that StrictMode's second mount and a change of
 * view find it open. Rendering alone opens nothing, on a server in particular.
 */
import { createContext, createElement, useContext, useEffect, useMemo, useSyncExternalStore } from "react";
import { all, createDashboard, perFrame, shared } from "./dashboard.js";
import { connect } from "./hybrid.js";

const pool = {}; // {client, hold}, by address and options
const Context = createContext({});
const EMPTY = { isLoading: true, isStale: true, refresh() {} }; // on a server

/** The page's client for this address and these options; open while somebody listens to it. */
function useClient(url, options) {
  // Functions are no part of what tells connections apart: they are new with every render.
  const key = JSON.stringify([url, options]);
  return useMemo(() => {
    let line;
    return (
      url && {
        get state() {
          return line.client.state;
        },
        get cursor() {
          return line.client.cursor;
        },
        on(type, listener) {
          line = pool[key] ??= { hold: shared(() => (line.client = connect(url, options)).close) };
          return all(line.hold(), line.client.on(type, listener));
        },
        reconnect: () => line?.client.reconnect(),
      }
    );
  }, [key]);
}

/**
 * The connection, as a component sees it.
 *
 * @param {string} [url] where the blueprint is mounted; without one, the connection of the
 *   `DashboardProvider` around
 * @param {object} [options] what `connect()` takes; those of the first component that asks for
 *   the connection count. And:
 * @param {(event: object) => void} [options.onEvent] called for every event
 * @returns {{isConnected: boolean, activeMethod: 'sse'|'polling'|null, lastEvent: ?object,
 *   error: ?{message: string, status?: number}, reconnect: () => void}} and the rest of the
 *   client's state; new at most once a frame
 */
export function useHybridRealtime(url, { onEvent, ...options } = {}) {
  const client = useClient(url, options) || useContext(Context).client;
  useEffect(() => onEvent && client.on("*", onEvent), [client, onEvent]);
  const [subscribe, get, first] = useMemo(() => {
    const first = { isConnected: false, activeMethod: null, lastEvent: null, error: null, reconnect: client.reconnect };
    let view = first;
    const subscribe = (listener) => {
      const look = () => {
        view = { ...first, ...client.state };
        listener();
      };
      const off = client.on("state", perFrame(look));
      look();
      return off;
    };
    return [subscribe, () => view, () => first];
  }, [client]);
  return useSyncExternalStore(subscribe, get, first);
}

/**
 * A dashboard for all components inside, over a connection of the page.
 *
 * Its props are what `createDashboard()` and `connect()` take, and `url`. Functions among them
 * count once; another `name`, or another of the other props, is another dashboard.
 */
export function DashboardProvider({ url, storage, children, ...options }) {
  const client = useClient(url, options);
  const dashboard = useMemo(() => createDashboard({ client, storage, ...options }), [client]);
  return createElement(Context.Provider, { value: dashboard }, children);
}

/**
 * The data of a key, fetched, cached and kept live.
 *
 * @param {string} key
 * @returns {{data: any, error: ?{message: string, status?: number}, isLoading: boolean,
 *   isStale: boolean, updatedAt: ?number, refresh: () => Promise<void>}} as `createDashboard()`
 *   has it; on a server, and while its page is hydrated, nothing is there yet
 */
export function useDashboard(key) {
  const { subscribe, get } = useContext(Context).at(key);
  return useSyncExternalStore(subscribe, get, () => EMPTY);
}
