#!/bin/bash
# Makes this server a node of the Berth platform at @URL@.
#
#   bash node.sh                 install and join; asks for the join token, or takes it from BERTH_JOIN_TOKEN
#   bash node.sh --name NAME     the same, under this name (else: the token's, or this machine's)
#   bash node.sh --remove        take everything of the platform off this server, its apps included
#
# For a server with nothing on it: Debian 12 or newer, or Ubuntu 24.04 or newer. What it does, in this order:
#   1. installs the container engine, iptables and Python from the system's own packages, where missing;
#   2. tells the engine to run every container in a user namespace of its own, apart from this server's users;
#   3. fetches the agent from @URL@ (checked against the digest below), and what it stands on from the
#      Python package index this server is configured for (every file checked against a digest in the bundle),
#      into /opt/berth-node;
#   4. makes a key, joins with the token, and starts two services: the agent, and the ingress (ports 80, 443).
# It may be run again at any time: what is there is kept, a newer agent replaces the old one.
set -euo pipefail

URL='@URL@'
BUNDLE_SHA256='@SHA256@'
HOME_DIR=/opt/berth-node
USERS=berth-map
FIRST_ID=1073741824
IDS=1073741824
DAEMON_JSON=/etc/docker/daemon.json

say() { printf 'berth: %s\n' "$*"; }
give_up() { printf 'berth: %s\n' "$*" >&2; exit 1; }

check() {
    [ "$(id -u)" = 0 ] || give_up "run this as root: sudo bash node.sh"
    command -v apt-get >/dev/null || give_up "this server is neither Debian nor Ubuntu"
    case "$(uname -m)" in x86_64 | aarch64) ;; *) give_up "$(uname -m) is not supported: x86_64 or aarch64" ;; esac
    local free
    free=$(df --output=avail -m /var | tail -n 1)
    [ "$free" -ge 2048 ] || give_up "/var has $free MB free and needs 2048"
}

install_packages() {
    local missing=()
    command -v dockerd >/dev/null || missing+=(docker.io)
    command -v iptables >/dev/null || missing+=(iptables)
    command -v ip >/dev/null || missing+=(iproute2)
    command -v curl >/dev/null || missing+=(curl)
    command -v mkfs.ext4 >/dev/null || missing+=(e2fsprogs)
    [ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
    if [ "${#missing[@]}" -gt 0 ]; then
        say "installing ${missing[*]}"
        export DEBIAN_FRONTEND=noninteractive
        apt-get -qq -o DPkg::Lock::Timeout=120 update
        apt-get -qq -o DPkg::Lock::Timeout=120 install --yes --no-install-recommends "${missing[@]}" >/dev/null
    fi
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || give_up "Python 3.11 or newer is needed"
}

# A container's root is nobody out here. The ranges of the platform's organizations lie inside this one.
remap_users() {
    id -u "$USERS" >/dev/null 2>&1 || useradd --system --no-create-home --shell /usr/sbin/nologin "$USERS"
    local file
    for file in /etc/subuid /etc/subgid; do
        touch "$file"
        grep -q "^$USERS:$FIRST_ID:$IDS\$" "$file" || {
            sed -i "/^$USERS:/d" "$file"
            echo "$USERS:$FIRST_ID:$IDS" >>"$file"
        }
    done
}

engine_settings() {
    cat <<JSON
{
  "userns-remap": "$USERS",
  "live-restore": true,
  "userland-proxy": false,
  "no-new-privileges": true,
  "log-driver": "json-file",
  "log-opts": {"max-size": "10m", "max-file": "3"}
}
JSON
}

configure_engine() {
    mkdir -p /etc/docker
    if [ -e "$DAEMON_JSON" ] && [ "$(engine_settings)" != "$(cat "$DAEMON_JSON")" ]; then
        python3 - "$DAEMON_JSON" "$USERS" <<'PY' || give_up "$DAEMON_JSON is somebody else's and has no \"userns-remap\": \"$USERS\": move it away (this server should have nothing on it), or add that line"
import json, sys
sys.exit(json.load(open(sys.argv[1])).get("userns-remap") != sys.argv[2])
PY
        return
    fi
    [ -e "$DAEMON_JSON" ] && return
    # Containers that ran without a namespace would be out of the engine's sight, and go on running.
    if docker ps --quiet 2>/dev/null | grep -q .; then
        give_up "containers run on this server already: a node starts from a server with nothing on it"
    fi
    engine_settings >"$DAEMON_JSON"
    if [ -d /run/systemd/system ]; then
        systemctl enable --quiet docker
        systemctl restart docker
    fi
}

install_agent() {
    local release="$HOME_DIR/releases/$BUNDLE_SHA256"
    if [ ! -e "$release/complete" ]; then
        say "installing the agent"
        rm -rf "$release"
        mkdir -p "$release"
        curl --fail --silent --show-error --location --output "$release/bundle.tar.gz" "$URL/install/node.tar.gz"
        echo "$BUNDLE_SHA256  $release/bundle.tar.gz" | sha256sum --check --quiet ||
            give_up "the bundle is not the one this script was made for: fetch the script again"
        tar --extract --gzip --no-same-owner --file "$release/bundle.tar.gz" --directory "$release"
        python3 -m venv "$release/venv"
        "$release/venv/bin/pip" install --quiet --no-cache-dir --only-binary :all: --require-hashes \
            --requirement "$release/requirements.txt"
        "$release/venv/bin/pip" install --quiet --no-cache-dir --no-index --no-deps "$release"/*.whl
        touch "$release/complete"
    fi
    ln -sfn "$release" "$HOME_DIR/current"
    local old
    for old in "$HOME_DIR"/releases/*; do
        [ "$old" = "$release" ] || rm -rf "$old"
    done
    ln -sfn "$HOME_DIR/current/venv/bin/berth-node" /usr/local/sbin/berth-node
}

remove() {
    [ "$(id -u)" = 0 ] || give_up "run this as root: sudo bash node.sh --remove"
    if [ -x "$HOME_DIR/current/venv/bin/berth-node" ]; then
        "$HOME_DIR/current/venv/bin/berth-node" remove
    fi
    if [ -e "$DAEMON_JSON" ] && [ "$(engine_settings)" = "$(cat "$DAEMON_JSON")" ]; then
        rm "$DAEMON_JSON"
        if [ -d /run/systemd/system ]; then systemctl restart docker; fi
        rm -rf "/var/lib/docker/$FIRST_ID.$FIRST_ID"
    fi
    sed -i "/^$USERS:/d" /etc/subuid /etc/subgid
    if id -u "$USERS" >/dev/null 2>&1; then userdel "$USERS"; fi
    rm -rf "$HOME_DIR" /usr/local/sbin/berth-node
    say "nothing of the platform is left; the packages of the system stay"
}

main() {
    local name=() key
    while [ $# -gt 0 ]; do
        case "$1" in
            --remove) remove; return ;;
            --name) [ $# -ge 2 ] || give_up "--name needs a name"; name=(--name "$2"); shift 2 ;;
            *) give_up "what is $1? See the head of this script" ;;
        esac
    done
    check
    install_packages
    remap_users
    configure_engine
    install_agent
    key=/etc/berth-node/key
    if [ ! -e "$key" ] && [ -z "${BERTH_JOIN_TOKEN:-}" ]; then
        [ -r /dev/tty ] || give_up "set BERTH_JOIN_TOKEN to the join token"
        printf 'Join token: ' >/dev/tty
        read -rs BERTH_JOIN_TOKEN </dev/tty
        printf '\n' >/dev/tty
    fi
    # In the environment, which only root can read, and not among the arguments, which everybody can.
    export BERTH_JOIN_TOKEN="${BERTH_JOIN_TOKEN:-}"
    exec /usr/local/sbin/berth-node join --url "$URL" "${name[@]}"
}

# As one command: a download that breaks off runs nothing.
main "$@"
