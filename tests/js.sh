#!/bin/sh
# The JavaScript: does it parse, and do its own tests pass. Needs Node 18 or newer.
set -eu
if ! command -v node >/dev/null; then
    [ -z "${CI:-}" ] || { echo "no node; under CI nothing is skipped" >&2; exit 1; }
    echo "SKIPPED: the JavaScript tests (no node here)"
    exit 0
fi
for file in hybrid/static/*.js static/*.js; do
    node --input-type=module --check - < "$file" || { echo "$file does not parse" >&2; exit 1; }
done
node --test tests/js/*.test.mjs
