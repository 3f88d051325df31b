// What is shipped: made files come from their sources, are small, and the npm package works.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { cp, mkdtemp, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { runInNewContext } from "node:vm";
import { gzipSync } from "node:zlib";
import { made } from "./build.mjs";

const root = fileURLToPath(new URL("../../", import.meta.url));
const modules = join(root, "tests/js/node_modules");
const read = (path) => readFile(join(root, path), "utf8");

test("50 made files are what their sources make: after a change run node tests/js/build.mjs", async () => {
  for (const [path, text] of Object.entries(await made())) {
    assert.ok((await read(path).catch(() => "")) === text, `${path} is out of date: run node tests/js/build.mjs`);
  }
});

test("51 the hook and the dashboard take at most 2.6 KB, minified and gzipped", async (t) => {
  const size = gzipSync(await read("hybrid/static/react.min.js"), { level: 9 }).length;
  t.diagnostic(`react.js with dashboard.js: ${size} bytes`);
  assert.ok(size <= 2662, `${size} bytes`);
});

test("50 the classic script makes one global and no other", async () => {
  const page = { ReadableStream, Response, TextDecoder, URLSearchParams, Headers, AbortController, queueMicrotask, setTimeout, clearTimeout };
  const before = new Set(Object.keys(page));
  runInNewContext(await read("hybrid/static/hybrid.global.js"), page);
  assert.deepEqual(Object.keys(page).filter((name) => !before.has(name)), ["Hybrid"]);
  assert.equal(typeof page.Hybrid.connect, "function");
});

test("the classic script is of ES2018", async () => {
  const { transform } = await import("esbuild");
  const text = await read("hybrid/static/hybrid.global.js");
  const lowered = await transform(text, { target: "es2018", minifySyntax: false });
  const kept = await transform(text, { target: "esnext", minifySyntax: false });
  assert.equal(lowered.code, kept.code);
});

let folder;
const npm = (...given) => execFileSync("npm", given, { cwd: folder, encoding: "utf8", env: { ...process.env, npm_config_update_notifier: "false" } });

/** A project that has installed the package as npm packs it. */
before(async () => {
  folder = await mkdtemp(join(tmpdir(), "flask-hybrid-"));
  await writeFile(join(folder, "package.json"), '{"private":true,"type":"module"}');
  const [{ filename }] = JSON.parse(npm("pack", "--json", join(root, "hybrid/static")));
  npm("install", "--offline", "--no-audit", "--no-fund", "--silent", `./${filename}`);
});
after(() => rm(folder, { recursive: true }));

test("the npm package has the files, and says what the Python package says", async () => {
  const packed = new Set(await readdir(join(folder, "node_modules/flask-hybrid")));
  const wanted = (await readdir(join(root, "hybrid/static"))).filter((name) => /^(hybrid|tabs|dashboard|react)\b.*\.(js|ts)$/.test(name));
  for (const name of [...wanted, "package.json", "README.md", "LICENSE"]) assert.ok(packed.delete(name), `${name} is missing`);
  assert.deepEqual([...packed], []);
  const about = JSON.parse(await read("hybrid/static/package.json"));
  const [, version] = /__version__ = "(.+)"/.exec(await read("hybrid/__init__.py"));
  assert.equal(about.version, version);
  assert.equal(await read("hybrid/static/LICENSE"), await read("LICENSE"));
  assert.equal(about.dependencies, undefined);
  assert.equal(about.peerDependenciesMeta.react.optional, true);
  assert.match(await read("hybrid/static/react.js"), /^"use client";/, "frameworks that render on a server ask for it");
});

test("50 it imports in Node, without React and without a global", () => {
  const code = `
    const before = new Set(Object.getOwnPropertyNames(globalThis));
    const { connect } = await import("flask-hybrid");
    const { createDashboard } = await import("flask-hybrid/dashboard");
    const made = Object.getOwnPropertyNames(globalThis).filter((name) => !before.has(name));
    console.log(typeof connect, typeof createDashboard, made.length);
    await import("flask-hybrid/react").catch((error) => console.log(error.code));`;
  const said = execFileSync(process.execPath, ["--input-type=module", "-e", code], { cwd: folder, encoding: "utf8" });
  assert.equal(said.trim(), "function function 0\nERR_MODULE_NOT_FOUND");
});

test("44 with React it renders on a server, without a window and without a connection", async () => {
  for (const name of ["react", "react-dom", "scheduler", "@types", "csstype"]) {
    await symlink(join(modules, name), join(folder, "node_modules", name));
  }
  const code = `
    import { createElement as h } from "react";
    import { renderToString } from "react-dom/server";
    import { DashboardProvider, useDashboard, useHybridRealtime } from "flask-hybrid/react";
    globalThis.fetch = () => console.log("a request!");
    function Page() {
      const { isConnected, activeMethod, lastEvent, error, reconnect } = useHybridRealtime("/api/realtime", { onEvent() {} });
      const { data, isLoading, isStale, refresh } = useDashboard("/reports");
      return h("p", null, JSON.stringify([isConnected, activeMethod, lastEvent, error, typeof reconnect, data, isLoading, isStale, typeof refresh]));
    }
    if (typeof window !== "undefined") throw new Error("a window");
    console.log(renderToString(h(DashboardProvider, { url: "/api/realtime", name: "ada" }, h(Page))).replaceAll("&quot;", '"'));`;
  const said = execFileSync(process.execPath, ["--input-type=module", "-e", code], { cwd: folder, encoding: "utf8", timeout: 20_000 });
  assert.equal(said.trim(), '<p>[false,null,null,null,"function",null,true,true,"function"]</p>');
});

test("the types hold under tsc --strict: what must compile does, what must not does not", async () => {
  for (const name of await readdir(join(root, "tests/js/types"))) {
    await cp(join(root, "tests/js/types", name), join(folder, name));
  }
  const config = JSON.parse(await read("tests/js/types/tsconfig.json"));
  // Each by itself: what one application says of its events is not said for the others.
  for (const name of ["untyped.ts", "typed.tsx", "global.ts", "nodom.ts"]) {
    const compilerOptions = { ...config.compilerOptions, ...(name === "nodom.ts" && { lib: ["es2022"] }) };
    await writeFile(join(folder, "tsconfig.json"), JSON.stringify({ compilerOptions, files: [name] }));
    try {
      execFileSync(join(modules, ".bin/tsc"), ["-p", "."], { cwd: folder, encoding: "utf8" });
    } catch (error) {
      assert.fail(`${name}:\n${error.stdout}`);
    }
  }
});
