#!/bin/sh
# The versions of tests/versions.txt, each in a folder of its own: install-versions.sh PYTHON FOLDER
# The servers come as wheels for some systems only; where one does not exist its tests are skipped.
set -eu
grep -v '^#' "$(dirname "$0")/versions.txt" | while read -r name package inside; do
    [ ! -e "$2/$name/$inside" ] || continue
    if "$1" -m pip install --quiet --no-deps --target "$2/$name" "$package"; then
        [ -d "$2/$name/$inside" ] || chmod +x "$2/$name/$inside"
    elif [ -n "${CI:-}" ]; then
        echo "no $package; under CI nothing is skipped" >&2
        exit 1
    fi
done
