#!/bin/sh
# Installs fedsplit for this user into its own environment; run it from a clone. Nothing outside $HOME is touched.
#   sh client/install.sh [--extra edge|torch|server] [--service]
set -eu

extra=torch
service=no
while [ $# -gt 0 ]; do
    case "$1" in
        --extra) extra=${2:?--extra needs a name: edge, torch or server}; shift 2 ;;
        --extra=*) extra=${1#--extra=}; shift ;;
        --service) service=yes; shift ;;
        -h | --help) sed -n '2,3s/^# *//p' "$0"; exit 0 ;;
        *) echo "unknown option $1; see: sh client/install.sh --help" >&2; exit 2 ;;
    esac
done
case "$extra" in
    edge | torch | server) ;;
    *) echo "unknown extra $extra; one of edge, torch, server" >&2; exit 2 ;;
esac

root=$(cd "$(dirname "$0")/.." && pwd)
home=${FEDSPLIT_HOME:-$HOME/.local/share/fedsplit}

python=
for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    [ -n "$candidate" ] || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "Python 3.11 or newer is needed and was not found; install it, or name it: PYTHON=... sh client/install.sh" >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "$python cannot make environments. On Debian, Ubuntu and Raspberry Pi OS: sudo apt install python3-venv" >&2
    exit 1
fi

echo "Installing fedsplit[$extra] into $home"
"$python" -m venv "$home"
"$home/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$root/constraints.txt" "$root[$extra]"
mkdir -p "$HOME/.local/bin"
ln -sf "$home/bin/fedsplit" "$HOME/.local/bin/fedsplit"
"$home/bin/fedsplit" --version

if [ "$service" = yes ]; then
    mkdir -p "$HOME/.config/systemd/user" "$HOME/.config/fedsplit"
    sed "s|%h/.local/share/fedsplit|$home|" "$root/client/fedsplit-client.service" \
        >"$HOME/.config/systemd/user/fedsplit-client.service"
    settings=$HOME/.config/fedsplit/client.env
    if [ ! -f "$settings" ]; then
        umask 077
        printf '%s\n' "FEDSPLIT_LINK='fedsplit://HOST:PORT/?key=...'" "FEDSPLIT_DATA=$HOME/my.jsonl" \
            "FEDSPLIT_NAME=$(uname -n)" >"$settings"
    fi
    echo "Put the join line and your data into $settings, then:"
    echo "  systemctl --user daemon-reload && systemctl --user enable --now fedsplit-client"
    echo "  loginctl enable-linger    # so that it runs while you are not logged in"
fi
case ":$PATH:" in
    *":$HOME/.local/bin:"*) ;;
    *) echo "Add $HOME/.local/bin to your PATH, or call $HOME/.local/bin/fedsplit" ;;
esac
