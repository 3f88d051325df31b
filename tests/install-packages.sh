#!/bin/sh
# What the tests need of the system: a browser, Node and Redis. Installed where this may be done (root on
# Debian); otherwise said plainly, and the tests that need it are skipped. Under CI nothing is.
set -eu

missing=""
command -v chromium >/dev/null || missing="$missing chromium"
command -v node >/dev/null || missing="$missing nodejs"
command -v redis-server >/dev/null || missing="$missing redis-server"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing:$missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # shellcheck disable=SC2086 - a list of words
    apt-get install -y -qq --no-install-recommends $missing fonts-dejavu-core >/dev/null
elif [ -n "${CI:-}" ]; then
    echo "missing:$missing; under CI nothing is skipped" >&2
    exit 1
else
    echo "not installed, and this user may not install it:$missing"
    echo "the tests that need it are skipped; on Debian: apt-get install$missing"
fi
