#!/bin/sh
# What the suite compares with: a virtual environment and node_modules of their own, and Nchan where this
# may be done (root on Debian). What cannot be installed is left out, and named by the suite as missing.
cd "$(dirname "$0")" || exit 1

if [ ! -e .venv/.installed ] || [ requirements.txt -nt .venv/.installed ]; then
    echo "installing the Python peers"
    python3 -m venv .venv && .venv/bin/python -m pip install --quiet -r requirements.txt && touch .venv/.installed
fi
if command -v npm >/dev/null && { [ ! -e node_modules ] || [ package.json -nt node_modules ]; }; then
    echo "installing better-sse"
    npm install --no-audit --no-fund --silent && touch node_modules
fi
if [ ! -e /usr/lib/nginx/modules/ngx_nchan_module.so ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing Nchan"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends nginx-light libnginx-mod-nchan >/dev/null
fi
exit 0
