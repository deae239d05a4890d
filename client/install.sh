#!/bin/sh
# Installs fedsplit for this user into an environment of its own; run it from a clone, as often as you like.
#   sh client/install.sh [--extra edge|torch|server] [--dir FOLDER] [--service]
#   sh client/install.sh --uninstall [--dir FOLDER]
#
# edge (default on ARM): without torch, the packages of client/edge-packages.txt; torch (default elsewhere): any model,
# any topology. FOLDER is by default ~/.local/share/fedsplit; ~/.local/bin/fedsplit points into it. --service adds a
# systemd unit for this user. --uninstall removes all of these and keeps keys, settings and what was learned.
set -eu

extra='' service=no uninstall=no
home=${FEDSPLIT_HOME:-$HOME/.local/share/fedsplit}
bin=$HOME/.local/bin
units=$HOME/.config/systemd/user
settings=$HOME/.config/fedsplit/client.env

stop() {
    echo "$1" >&2
    exit "${2:-1}"
}

while [ $# -gt 0 ]; do
    case "$1" in
        --extra) extra=${2:?--extra needs a name: edge, torch or server}; shift 2 ;;
        --extra=*) extra=${1#--extra=}; shift ;;
        --dir) home=${2:?--dir needs a folder}; shift 2 ;;
        --dir=*) home=${1#--dir=}; shift ;;
        --service) service=yes; shift ;;
        --uninstall) uninstall=yes; shift ;;
        -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) stop "unknown option $1; see: sh client/install.sh --help" 2 ;;
    esac
done
case "$home" in
    /*) ;;
    *) home=$(pwd)/$home ;;
esac
# What is in the folder must be ours before anything in it is replaced or removed.
if [ -d "$home" ] && [ -n "$(ls -A "$home")" ] && [ ! -f "$home/pyvenv.cfg" ]; then
    stop "$home holds something else than an environment made by this script; choose another folder with --dir"
fi

# ---- removing --------------------------------------------------------------------------------------------------------

if [ "$uninstall" = yes ]; then
    if [ -f "$units/fedsplit-client.service" ]; then
        systemctl --user disable --now fedsplit-client 2>/dev/null || true
        rm -f "$units/fedsplit-client.service"
    fi
    case "$(readlink "$bin/fedsplit" 2>/dev/null || true)" in
        "$home"/*) rm -f "$bin/fedsplit" ;;
    esac
    rm -rf "$home"
    echo "Removed $home. Keys, settings and what was learned are still in"
    echo "  $HOME/.local/state/fedsplit  $HOME/.config/fedsplit"
    exit 0
fi

# ---- is this machine fit for it? -------------------------------------------------------------------------------------

machine=$(uname -m)
case "$machine" in
    aarch64 | arm64) : "${extra:=edge}" ;;
    x86_64 | amd64) : "${extra:=torch}" ;;
    armv6l | armv7l | armv8l | i?86)
        stop "This is a 32-bit system ($machine), for which onnxruntime and torch do not exist. A Raspberry Pi Zero 2 W, 3, 4
or 5 can run the 64-bit one: write Raspberry Pi OS Lite (64-bit) to the card, client/README.md says how." ;;
    *) stop "Found the processor $machine; expected aarch64 or x86_64: there are no packages for others." ;;
esac
case "$extra" in
    edge) needs_mb=500 ;;
    torch | server) needs_mb=3000 ;;
    *) stop "unknown extra $extra; one of edge, torch, server" 2 ;;
esac

python='' found=''
for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    [ -n "$candidate" ] || continue
    version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    found="$found $version"
    case "$version" in
        3.11 | 3.12 | 3.13) python=$candidate; break ;;
    esac
done
[ -n "$python" ] || stop "Python 3.11, 3.12 or 3.13 is needed, found:${found:- none}. Raspberry Pi OS 12 and 13 bring one;
elsewhere install it, or name it: PYTHON=/path/to/python3.12 sh client/install.sh"
# A 64-bit kernel with 32-bit programs calls itself aarch64.
[ "$("$python" -c 'import struct; print(8 * struct.calcsize("P"))')" = 64 ] || stop "\
The processor and the kernel are 64-bit, but the programs are 32-bit ($python is): write Raspberry Pi OS Lite (64-bit)
to the card, client/README.md says how."
"$python" -c 'import ensurepip, venv' 2>/dev/null || stop "\
$python cannot make environments. On Debian, Ubuntu and Raspberry Pi OS: sudo apt install python3-venv"

mkdir -p "$home"
free_mb=$(($(df -Pk "$home" | awk 'NR == 2 { print $4 }') / 1024))
[ -f "$home/pyvenv.cfg" ] || [ "$free_mb" -ge "$needs_mb" ] || stop "\
fedsplit[$extra] needs about $needs_mb MB, and $free_mb MB are free at $home: make room, or choose --dir FOLDER"
if [ -r /proc/meminfo ]; then
    memory_mb=$(($(awk '/^MemTotal:/ { print $2 }' /proc/meminfo) / 1024))
    [ "$memory_mb" -ge 380 ] || echo "Only $memory_mb MB of memory: the server will find few plans that fit, if any." >&2
fi
# A Pi has no clock of its own; without the time no certificate is valid.
[ "$(date +%Y)" -ge 2026 ] || stop "The clock says $(date): set it (timedatectl set-ntp true), or wait for the network."

# ---- installing ------------------------------------------------------------------------------------------------------

root=$(cd "$(dirname "$0")/.." && pwd)
echo "Installing fedsplit[$extra] into $home ($machine, Python $version)"
# After an upgrade of the system the old environment's Python may be gone.
"$home/bin/python" -c '' 2>/dev/null || fresh=--clear
"$python" -m venv ${fresh:+"$fresh"} "$home"
# /tmp may lie in memory, of which there is little; pip's cache would take the same space once more.
mkdir -p "$home/tmp"
trap 'rm -rf "$home/tmp"' EXIT
pip() {
    TMPDIR="$home/tmp" "$home/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir \
        --constraint "$root/constraints.txt" "$@"
}
if [ "$extra" = edge ]; then
    # Wheels only: compiling one of these would keep a small device busy for hours.
    # Bytecode is a third of the space and most of it is never used; what is used is compiled when it first is.
    pip --no-deps --no-compile --only-binary :all: --requirement "$root/client/edge-packages.txt"
    # Without the first, a changed clone of the same version would stay as it was.
    pip --no-deps --force-reinstall "$root"
else
    command -v nvidia-smi >/dev/null || [ -n "${PIP_EXTRA_INDEX_URL:-}" ] || echo "\
No GPU was found here. torch's CPU build saves several GB: stop this with Ctrl-C and put in front of the command
  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu" >&2
    pip "${root}[$extra]"
    pip --no-deps --force-reinstall "$root"
fi
mkdir -p "$bin"
ln -sf "$home/bin/fedsplit" "$bin/fedsplit"
"$home/bin/fedsplit" --version

if [ "$service" = yes ]; then
    mkdir -p "$units" "${settings%/*}"
    sed "s|%h/.local/share/fedsplit|$home|" "$root/client/fedsplit-client.service" >"$units/fedsplit-client.service"
    if [ ! -f "$settings" ]; then
        umask 077
        printf '%s\n' "FEDSPLIT_LINK='fedsplit://HOST:PORT/?key=...'" "FEDSPLIT_DATA=$HOME/my.jsonl" \
            "FEDSPLIT_NAME=$(uname -n)" "FEDSPLIT_FLAGS=" >"$settings"
    fi
fi

# ---- what is next ----------------------------------------------------------------------------------------------------

if "$home/bin/fedsplit" doctor --help >/dev/null 2>&1; then
    "$home/bin/fedsplit" doctor </dev/null || echo "The list above says what to mend before you join." >&2
fi
case ":$PATH:" in
    *":$bin:"*) fedsplit=fedsplit ;;
    *) fedsplit=$bin/fedsplit; echo "Log in again, or add $bin to your PATH." ;;
esac
if [ "$service" = yes ]; then
    echo "Put the join line and your data into $settings, then:"
    echo "  systemctl --user daemon-reload && systemctl --user enable --now fedsplit-client"
    echo "  loginctl enable-linger    # so that it runs while you are not logged in"
else
    echo "Next: $fedsplit join 'fedsplit://HOST:PORT/?key=...' --data my.jsonl    (the operator gives you the line)"
fi
