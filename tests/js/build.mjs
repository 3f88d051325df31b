// What is committed but made: the minified client, the classic script, the vendored libraries of
// the demo. `node tests/js/build.mjs` makes them anew; the tests prove that they are what comes out.
import { build } from "esbuild";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { minify } from "terser";

const root = new URL("../../", import.meta.url);
const source = (name) => fileURLToPath(new URL(`hybrid/static/${name}`, root));
const require = createRequire(import.meta.url);

// What the files of the client call each other's parts, shortened in the small ones alike. Nothing
// of this is on the wire, in storage, between tabs or in a page's hands.
const SHORT = { due: "a", silence: "b", kind: "c", greeted: "d", contentType: "e", retryAfter: "f", handle: "g", wakeAt: "h", controller: "i", hold: "j" };

/** A module of the client, made small, with what it imports of those that are not its own files. */
export async function small(name, { format = "esm", target = "es2022", global } = {}) {
  const bundled = await build({
    // The machine and the parser are for tests, which take them from the source.
    ...(name === "hybrid.js"
      ? { stdin: { contents: `export { connect } from "./hybrid.js"`, resolveDir: dirname(source(name)) } }
      : { entryPoints: [source(name)] }),
    mangleProps: new RegExp(`^(${Object.keys(SHORT).join("|")})$`),
    mangleCache: { ...SHORT },
    bundle: true,
    format,
    target,
    globalName: global,
    minifySyntax: true,
    write: false,
    external: ["react"],
    plugins: [
      {
        // Each file of the client stays one, and a small one asks for small ones.
        name: "the other files",
        setup: (build) =>
          build.onResolve({ filter: /^\.\/(hybrid|tabs|dashboard)\.js$/ }, ({ path, importer, kind }) =>
            global || importer === "<stdin>" || (path === "./dashboard.js" && kind === "import-statement") ? null : { path: path.replace(".js", ".min.js"), external: true },
          ),
      },
    ],
  });
  const made = await minify(bundled.outputFiles[0].text, {
    module: format === "esm",
    ecma: Number(target.slice(2)),
    compress: { passes: 3, unsafe: true, unsafe_arrows: true, pure_getters: true, keep_fargs: false, reduce_funcs: name !== "hybrid.js" },
    format: { comments: false },
  });
  return `${made.code}\n`;
}

/** React and its DOM renderer as one module, which import maps can name for both. */
export async function react(mode = "production") {
  const exports = (name) => Object.keys(require(name)).filter((each) => !each.startsWith("__")).join(", ");
  const bundled = await build({
    stdin: {
      contents: `export { ${exports("react")} } from "react"; export { ${exports("react-dom/client").replace("version", "version as domVersion")} } from "react-dom/client";`,
      resolveDir: dirname(fileURLToPath(import.meta.url)),
    },
    bundle: true,
    format: "esm",
    target: "es2022",
    minify: mode === "production",
    legalComments: "none",
    define: { "process.env.NODE_ENV": JSON.stringify(mode) },
    write: false,
  });
  const { version } = require("react/package.json");
  return `/*! React and React DOM ${version}, MIT, see react.LICENSE */\n${bundled.outputFiles[0].text}`;
}

const copy = (path) => readFile(new URL(`node_modules/${path}`, import.meta.url), "utf8");

/** Path in the repository to text, of everything that is made. */
export async function made() {
  return {
    "hybrid/static/hybrid.min.js": await small("hybrid.js"),
    "hybrid/static/tabs.min.js": await small("tabs.js"),
    "hybrid/static/dashboard.min.js": await small("dashboard.js"),
    "hybrid/static/react.min.js": await small("react.js"),
    "hybrid/static/hybrid.global.js": await small("hybrid.js", { format: "iife", target: "es2018", global: "Hybrid" }),
    "static/vendor/react.js": await react(),
    "static/vendor/react.LICENSE": await copy("react/LICENSE"),
    "static/vendor/htmx.js": await copy("htmx.org/dist/htmx.min.js"),
    "static/vendor/htmx.LICENSE": await copy("htmx.org/LICENSE"),
    "static/vendor/htmx-sse.js": await copy("htmx-ext-sse/dist/sse.min.js"),
    "static/vendor/htmx-sse.LICENSE": await copy("htmx-ext-sse/LICENSE"),
  };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  for (const [path, text] of Object.entries(await made())) {
    const file = new URL(path, root);
    await mkdir(new URL(".", file), { recursive: true });
    await writeFile(file, text);
    console.log(path, text.length);
  }
}
