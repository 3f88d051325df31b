// Behaviour 51: what the client costs on the way to a page.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { gzipSync } from "node:zlib";

for (const [name, most] of [
  ["hybrid", 4_812],
  ["tabs", 2_048],
]) {
  test(`51 ${name}.js takes at most ${most} bytes, minified and gzipped`, async (t) => {
    const text = await readFile(new URL(`../../hybrid/static/${name}.min.js`, import.meta.url));
    const size = gzipSync(text, { level: 9 }).length;
    t.diagnostic(`${name}.js: ${size} bytes`);
    assert.ok(size <= most, `${size} bytes`);
  });
}
