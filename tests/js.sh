#!/bin/sh
# The JavaScript: does it parse, and do its own tests pass. Needs Node 18 or newer, and npm for what
# tests/js/package-lock.json names.
set -eu
if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    [ -z "${CI:-}" ] || { echo "no node or no npm; under CI nothing is skipped" >&2; exit 1; }
    echo "SKIPPED: the JavaScript tests (no node or no npm here)"
    exit 0
fi
for file in hybrid/static/*.js static/*.js; do
    node --input-type=module --check - < "$file" || { echo "$file does not parse" >&2; exit 1; }
done
modules=tests/js/node_modules
if [ ! -e $modules/.installed ] || [ tests/js/package-lock.json -nt $modules/.installed ]; then
    npm ci --prefix tests/js --no-audit --no-fund --loglevel=error
    touch $modules/.installed
fi
node --test tests/js/*.test.mjs
