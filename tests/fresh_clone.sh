#!/bin/sh
# A fresh clone in an empty directory runs the two commands: `make run` serves the demo, `make test`
# is green. Minutes, since everything is installed anew; with `run` as an argument only the first.
set -eu

root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
folder=$(mktemp -d)
server=""
finish() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$folder"
}
trap finish EXIT INT TERM

git clone --quiet "$root" "$folder/clone"
cd "$folder/clone"

PORT=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export PORT
make run >"$folder/log" 2>&1 &
server=$!
tries=0
until python3 -c 'import os, urllib.request as u; u.urlopen("http://127.0.0.1:%s/api/realtime/health/ready" % os.environ["PORT"], timeout=2)' 2>/dev/null; do
    tries=$((tries + 1))
    if [ "$tries" -gt 600 ] || ! kill -0 "$server" 2>/dev/null; then
        cat "$folder/log"
        echo "make run does not serve the demo" >&2
        exit 1
    fi
    sleep 0.5
done
echo "make run serves the demo"
# make hands no signal on; what it has started writes its process id.
kill -TERM "$(sed -n 's/.*Listening at: .* (\([0-9]*\))$/\1/p' "$folder/log" | head -1)"
wait "$server" 2>/dev/null || true
server=""
[ "${1:-}" = run ] || make test
