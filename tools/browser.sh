#!/bin/sh
# A browser for the tests that open HTML reports: installed where apt is and this is root, else those tests say they skip.
set -eu

for name in chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$name" >/dev/null; then exit 0; fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing: chromium"
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium; } >/dev/null \
        || echo "note: could not install chromium; HTML reports are not opened in a browser" >&2
fi
