// The client where there is no document: events go to the page.
import { connect } from "/client/hybrid.js";

onmessage = ({ data: { url, ...options } }) => {
  const before = Object.keys(globalThis).length;
  const rt = connect(url, options);
  rt.on("state", ({ status }) => postMessage(status));
  rt.on("*", (event) => postMessage(event.data.n));
  onmessage = () => {
    rt.close();
    postMessage(Object.keys(globalThis).length - before);
  };
};
