#!/bin/sh
# Make the virtual environment that the Makefile's targets run in. Usage: tools/setup.sh .venv
# On a Debian-like system, as root, this also installs the packages named below; elsewhere it says which are missing.
set -eu

venv=$1
python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")/.." && pwd)

# Needed: g++, cmake, git (its `apply`), venv. Only faster with: ninja-build, ccache.
packages=""
command -v c++   >/dev/null || packages="$packages g++"
command -v cmake >/dev/null || packages="$packages cmake"
command -v git   >/dev/null || packages="$packages git"
command -v ninja >/dev/null || packages="$packages ninja-build"
command -v ccache >/dev/null || packages="$packages ccache"
"$python" -c 'import ensurepip' 2>/dev/null || packages="$packages python3-venv"

# What the Vulkan tests need: ggml-vulkan's build, and a driver that runs on the CPU. And strace, by which a
# test sees in what order files are written, and tmux, by which others see screens.
if command -v dpkg-query >/dev/null; then
    for package in libvulkan-dev glslc spirv-headers mesa-vulkan-drivers strace tmux; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || packages="$packages $package"
    done
else
    command -v glslc >/dev/null || echo "note: no glslc: \`make test VULKAN=0\` leaves the Vulkan tests out" >&2
fi

if [ -n "$packages" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing:$packages"
        { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $packages; } >/dev/null \
            || echo "note: could not install:$packages" >&2
    else
        echo "note: not installed:$packages (ninja and ccache only make builds faster, libvulkan-dev and the three after it are for the Vulkan tests, strace and tmux for a few others)" >&2
    fi
fi

"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$here[dev]"

# The bindings alone: they run on the library that tools/patch_llamacpp.py builds.
sdist=$("$venv/bin/python" -c '
import sys
sys.path.insert(0, sys.argv[1])
from llamacpp.pin import SetupError
from llamacpp.source import fetch_sdist
try:
    print(fetch_sdist())
except SetupError as error:
    sys.exit(f"error: {error}")
' "$here/tools")
CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF" \
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$sdist"
