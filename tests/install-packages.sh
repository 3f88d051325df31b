#!/bin/sh
# What the tests need of the system: browsers, Node, Redis, proxies. Installed where this may be done (root on
# Debian); otherwise said plainly, and the tests that need it are skipped. Under CI nothing is.
set -eu

missing=""
command -v chromium >/dev/null || missing="$missing chromium"
command -v firefox-esr >/dev/null || missing="$missing firefox-esr"
command -v WebKitWebDriver >/dev/null || missing="$missing webkit2gtk-driver"
command -v Xvfb >/dev/null || missing="$missing xvfb"
command -v haproxy >/dev/null || [ -x /usr/sbin/haproxy ] || missing="$missing haproxy"
command -v node >/dev/null || missing="$missing nodejs"
command -v npm >/dev/null || missing="$missing npm"
command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || missing="$missing nginx-light"
command -v systemd-analyze >/dev/null || missing="$missing systemd"
command -v redis-server >/dev/null || missing="$missing redis-server"
command -v faketime >/dev/null || missing="$missing faketime"
command -v curl >/dev/null || missing="$missing curl"
command -v openssl >/dev/null || missing="$missing openssl"
command -v cc >/dev/null || missing="$missing gcc libc6-dev"
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
