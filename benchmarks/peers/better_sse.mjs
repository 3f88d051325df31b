// better-sse on Node's own HTTP server: one channel, everybody in it.
import { createServer } from "node:http";
import { createChannel, createSession } from "better-sse";

const channel = createChannel();
const pad = "x".repeat(140);

createServer(async (request, response) => {
  const url = new URL(request.url, "http://127.0.0.1");
  if (url.pathname === "/emit") {
    for (let n = Number(url.searchParams.get("n")); n > 0; n--) channel.broadcast({ mark: "~", pad }, "tick");
    response.end();
  } else if (url.pathname === "/stream") {
    channel.register(await createSession(request, response));
  } else {
    response.end();
  }
}).listen(Number(process.argv[2]), "127.0.0.1", 4096);
