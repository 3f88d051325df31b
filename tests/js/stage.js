// A page in React that tests drive: `stage` mounts, unmounts and tells.
import { createElement as h, Fragment, StrictMode, useEffect } from "react";
import { createRoot, hydrateRoot } from "react-dom/client";
import { DashboardProvider, useDashboard, useHybridRealtime } from "flask-hybrid/react";

const request = window.fetch;
const stage = (window.stage = {
  streams: 0, // that were asked for
  users: 0, // that are there, with their effects
  renders: 0,
  events: [],
  live: null,
  shown: [], // every state of the data that was rendered
  release: null,
  mount(users, { strict = true, data = false, share = false, hydrate = false } = {}) {
    const parts = Array.from({ length: users }, (_, key) => h(User, { key }));
    if (data) parts.push(h(DashboardProvider, { key: "data", url: "/api/realtime", name: "ada", share, reduce }, h(Numbers)));
    const whole = h(strict ? StrictMode : Fragment, null, parts);
    const element = document.getElementById("root");
    if (hydrate) {
      element.innerHTML = '<p id="numbers">nothing yet</p>'; // what a server renders
      this.root = hydrateRoot(element, whole);
    } else {
      this.root = createRoot(element);
      this.root.render(whole);
    }
  },
  unmount() {
    this.root.unmount();
  },
});

const held = new Promise((resolve) => (stage.release = resolve));

window.fetch = async (url, init) => {
  if (String(url).includes("/sse")) stage.streams += 1;
  if (url === "/data" && location.hash === "#hold") await held;
  return request(url, init);
};

function User() {
  const live = useHybridRealtime("/api/realtime", { onEvent: (event) => stage.events.push(event.data) });
  stage.live = live;
  useEffect(() => {
    stage.users += 1;
    return () => (stage.users -= 1);
  }, []);
  stage.renders += 1;
  return h("p", null, String(live.lastEvent?.data));
}

const reduce = (data, event) => (event.type === "added" ? [...data.filter((each) => each !== event.data), event.data] : data);

function Numbers() {
  const { data, isStale, isLoading, error } = useDashboard("/data");
  stage.shown.push({ data: data && [...data], isStale, isLoading, error });
  return h("p", { id: "numbers" }, data ? data.join(" ") : "nothing yet");
}
