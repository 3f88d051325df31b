// A page without modules, which has included hybrid.global.js.
/// <reference types="flask-hybrid/hybrid.global.js" />

const live = Hybrid.connect("/api/realtime");
live.on("*", (event) => event.type.length);
window.Hybrid.connect("/api/realtime").close();
// @ts-expect-error there is no such function
Hybrid.conect("/api/realtime");
