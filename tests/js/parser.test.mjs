// Behaviours 13, 40, 41: the parser against the cases of the web platform tests for event
// streams, each whole and cut into pieces of 1, 3 and 7 bytes.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createParser } from "../../hybrid/static/hybrid.js";

const NO = Symbol("nothing");

function parse(bytes, size) {
  const blocks = [];
  const retries = [];
  const parser = createParser((block) => {
    if (block.retry !== undefined) retries.push(block.retry);
    // What neither moves the cursor nor says anything is nothing.
    if ("id" in block || "data" in block) blocks.push(block);
  });
  for (let at = 0; at < bytes.length; at += size) parser.push(bytes.subarray(at, at + size));
  return { blocks, retries };
}

// name, stream, [[data, type, id]...]; data NO for a block that only moves the cursor
const CASES = [
  ["data over several lines", "data:a\ndata: b\ndata:\n\ndata\n\nfoo: bar\n\n", [["a\nb\n"], [""]]],
  ["a leading byte order mark is dropped, a later one is not", "\ufeffdata:1\n\n\ufeffdata:2\n\ndata:3\n\n", [["1"], ["3"]]],
  ["only one byte order mark is dropped", "\ufeff\ufeffdata:1\n\ndata:2\n\ndata:3\n\n", [["2"], ["3"]]],
  ["comments", `data:1\r:\0\n:\r\ndata:2\n:${"x".repeat(2000)}\rdata:3\n:data:fail\r:${"x".repeat(2000)}\ndata:4\n\n`, [["1\n2\n3\n4"]]],
  ["the last block is incomplete", "id: 1\ndata: a\n\nid: 2\ndata: b\n", [["a", "message", "1"]]],
  ["fields without a value", "data:\n\ndata\ndata\n\ndata:test\n\n", [[""], ["\n"], ["test"]]],
  ["a type holds for one block", "event:test\ndata:x\n\ndata:x\n\n", [["x", "test"], ["x"]]],
  ["an empty type is message", "event: \ndata:data\n\n", [["data"]]],
  ["ids", "id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\nid:\ndata: d\n\n", [["a", "message", "1"], ["b"], ["c", "message", ""], ["d", "message", ""]]],
  ["an id with NUL is ignored", "id: a\0b\ndata: 1\n\nid: \0\ndata: 2\n\nid: a\nid: b\0\ndata: 3\n\n", [["1"], ["2"], ["3", "message", "a"]]],
  ["field names", "data:\0\n data:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\ndata:4\n\n", [["\0\n1\n3\n\n4"]]],
  ["unknown fields", "data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\n\n", [["test\n"]]],
  ["one space is dropped, no tab", "data:\ttest\rdata: \ndata:test\n\ndata:  x\n\n", [["\ttest\n\ntest"], [" x"]]],
  ["every line end, and a CR at once", "data:test\r\ndata\ndata:test\r\n\r\ndata:x\r\rdata:y\n\n", [["test\n\ntest"], ["x"], ["y"]]],
  ["NUL in data", "data:\0\n\n\n\n", [["\0"]]],
  ["line separators end no line", "data:a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\n\n", [["a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg"]]],
  ["characters of two to four bytes", "data:ok \u2026 \u00e9 \ud83d\ude00\n\n", [["ok \u2026 \u00e9 \ud83d\ude00"]]],
  ["a block that only moves the cursor", "id: 5\n\ndata: a\n\n", [[NO, "message", "5"], ["a"]]],
  ["comments alone are nothing", ":\n\n: x\n\n", []],
  ["blank lines alone are nothing", "\n\n\r\n\r\r", []],
];

for (const [name, stream, wanted] of CASES) {
  for (const size of [1 << 20, 1, 3, 7]) {
    test(`41 ${name}, in pieces of ${size === 1 << 20 ? "any size" : size}`, () => {
      const { blocks } = parse(new TextEncoder().encode(stream), size);
      assert.deepEqual(
        blocks.map(({ data, event, id }) => [data, event || "message", id]),
        wanted.map(([data, type = "message", id]) => [data === NO ? undefined : data, type, id]),
      );
    });
  }
}

test("41 a trailing CR ends its block at once, not with the next bytes", () => {
  const blocks = [];
  const parser = createParser((block) => blocks.push(block.data));
  parser.push(new TextEncoder().encode("data: a\r\r"));
  assert.deepEqual(blocks, ["a"]);
  parser.push(new TextEncoder().encode("\ndata: b\n\n"));
  assert.deepEqual(blocks, ["a", "b"]);
});

test("41 bytes that are not UTF-8 end nothing", () => {
  const { blocks } = parse(new Uint8Array([...Buffer.from("data: "), 0xff, 0xc3, 10, 10]), 1);
  assert.deepEqual(blocks.map((block) => block.data), ["\ufffd\ufffd"]);
});

test("13 retry takes decimal digits and nothing else", () => {
  const stream = "retry: 03000\n\nretry: 1000x\n\nretry\n\nretry:\n\nretry: -1\n\nretry: 1\u0661\n\nretry: 200\ndata: a\n\n";
  assert.deepEqual(parse(new TextEncoder().encode(stream), 1).retries, ["03000", "200"]);
});

test("the fields of our own server", () => {
  const { blocks } = parse(new TextEncoder().encode("eid: abc\nat: 17\nevent: x\ndata: 1\n\n"), 1);
  assert.deepEqual(blocks, [{ eid: "abc", at: "17", event: "x", data: "1" }]);
});

test("40 the work is linear in the bytes, however small the pieces", () => {
  // Counted and not timed: the parser may look at each byte a constant number of times. A line
  // of n pieces that were searched again with each piece would make n * n / 2 of them.
  const size = 200_000;
  const bytes = new TextEncoder().encode(`data: ${"x".repeat(size)}\n\n`);
  let searched = 0;
  const { split } = String.prototype;
  String.prototype.split = function (...arguments_) {
    searched += this.length;
    return split.apply(this, arguments_);
  };
  try {
    assert.equal(parse(bytes, 1).blocks[0].data.length, size);
  } finally {
    String.prototype.split = split;
  }
  assert.equal(searched, bytes.length);
});

test("40 a block that does not end fails with a clear error", () => {
  for (const line of ["data: xxxxxxxxx\n", "x"]) {
    const parser = createParser(() => {}, 1000);
    const bytes = new TextEncoder().encode(line);
    assert.throws(() => {
      for (let at = 0; at < 2000; at += 1) parser.push(bytes);
    }, /longer than maxBuffer/);
  }
  // Many small ones are not a large one.
  const parser = createParser(() => {}, 1000);
  const bytes = new TextEncoder().encode("data: x\n\n");
  for (let at = 0; at < 2000; at += 1) parser.push(bytes);
});
