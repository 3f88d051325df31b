// An application that has said what its events carry.
import { connect, type AnyEvent } from "flask-hybrid";
import { DashboardProvider, useDashboard, useHybridRealtime } from "flask-hybrid/react";

interface Report {
  id: number;
  title: string;
}

declare module "flask-hybrid" {
  interface Events {
    "report.approved": Report;
    "report.removed": { id: number };
  }
}

const live = connect("/api/realtime");
live.on("report.approved", (event) => event.data.title.length);
live.on("*", (event) => {
  if (event.type === "report.removed") {
    event.data.id.toFixed();
    // @ts-expect-error what was removed has no title
    event.data.title;
  }
});
live.on("gap", ({ cursor }) => cursor);
live.on("report.*", (event) => event.data.id);

export async function loop() {
  for await (const event of live.events("report.approved")) event.data.title.length;
  for await (const event of live.events("report.*")) event.data.id.toFixed();
  // @ts-expect-error there is no event of this type
  for await (const event of live.events("report.aproved")) event;
}

// @ts-expect-error there is no event of this type
live.on("report.aproved", () => {});
// @ts-expect-error a report has no author
live.on("report.approved", (event) => event.data.author);

export function Reports() {
  const { data, error, isStale, refresh } = useDashboard<Report[]>("/reports");
  const { isConnected, activeMethod, lastEvent, reconnect } = useHybridRealtime(undefined, {
    onEvent: (event) => (event.type === "report.approved" ? event.data.title : event.data.id),
  });
  // @ts-expect-error it may not be known yet
  data.length;
  // @ts-expect-error the method has two names
  activeMethod === "websocket";
  // @ts-expect-error there may not have been one
  lastEvent.type;
  return (
    <ul aria-busy={isStale} onClick={() => void refresh()}>
      {data?.map((report) => <li key={report.id}>{report.title}</li>)}
      <li>{error?.status ?? (isConnected ? lastEvent?.type : "offline")}</li>
      <button onClick={reconnect}>Again</button>
    </ul>
  );
}

function reduce(data: Report[], event: AnyEvent) {
  return event.type === "report.removed" ? data.filter(({ id }) => id !== event.data.id) : undefined;
}

export const page = (
  <DashboardProvider url="/api/realtime" name="ada" topics={["report:17"]} reduce={reduce}>
    <Reports />
  </DashboardProvider>
);

// @ts-expect-error a provider needs an address
export const nowhere = <DashboardProvider />;
