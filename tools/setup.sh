#!/usr/bin/env bash
# Makes the virtual environment and fetches what the machine lacks. Called by `make setup`.
# Safe to repeat. Needs Python 3.11 or newer; on Debian and Ubuntu apt supplies the rest.
#
#   PYTHON       the interpreter (default python3.11)
#   VENV         where to make the environment (default .venv)
#   TORCH_INDEX  the package index for torch. The default serves the CPU build: the general index
#                serves a CUDA build on Linux, with gigabytes of CUDA libraries. For a GPU machine:
#                make setup TORCH_INDEX=https://download.pytorch.org/whl/cu126
set -euo pipefail
PYTHON=${PYTHON:-python3.11}
VENV=${VENV:-.venv}
TORCH_INDEX=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
APT_UPDATED=no

say() { printf 'setup: %s\n' "$*"; }

# Installs Debian packages, as root or by a sudo that asks for no password; fails otherwise.
apt_install() {
  command -v apt-get >/dev/null || return 1
  local sudo=()
  if [[ $(id -u) != 0 ]]; then
    sudo -n true 2>/dev/null || return 1
    sudo=(sudo -n)
  fi
  say "apt-get install $*"
  if [[ $APT_UPDATED == no ]]; then
    "${sudo[@]}" apt-get update -qq || true
    APT_UPDATED=yes
  fi
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

if ! command -v "$PYTHON" >/dev/null; then
  if command -v python3 >/dev/null && python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'
  then PYTHON=python3
  else
    echo "setup: $PYTHON not found; install it (apt-get install python3.11) or set PYTHON" >&2
    exit 1
  fi
fi

if [[ ! -x $VENV/bin/python ]]; then
  if ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
    version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    apt_install "python$version-venv" || apt_install python3-venv || {
      echo "setup: $PYTHON cannot make environments; as root: apt-get install python3-venv" >&2
      exit 1
    }
  fi
  say "making $VENV"
  "$PYTHON" -m venv "$VENV"
fi

PIP=("$VENV/bin/python" -m pip --disable-pip-version-check)
TORCH=$(grep -E '^torch==' constraints.txt)
if ! "$VENV/bin/python" -c \
  "import importlib.metadata as m, sys; sys.exit(m.version('torch').split('+')[0] != '${TORCH#*==}')" \
  2>/dev/null; then
  # First and alone, without its dependencies: the rest then finds torch present and never asks
  # the general index for it.
  say "installing $TORCH"
  if ! "${PIP[@]}" install -q -q --retries 1 --no-deps --index-url "$TORCH_INDEX" "$TORCH"; then
    say "nothing from $TORCH_INDEX; asking the general index"
    "${PIP[@]}" install -q -q --no-deps "$TORCH"
  fi
fi
say "installing TideServe and its tools"
"${PIP[@]}" install -q -q -e '.[dev]' -c constraints.txt
# The broker that `tideserve up` embeds: one on PATH, or Debian's package unpacked into the cache
# folder. Installing that package would start a service of its own on port 4222.
"$VENV/bin/python" - <<'END' || true
from libs.kernel.errors import ConfigError
from libs.runtime.nats_server_search import find_nats_server
try:
    print(f"setup: nats-server is {find_nats_server().binary}")
except ConfigError as error:
    print(f"setup: {error}")
END
say "done; the command is $VENV/bin/tideserve"
