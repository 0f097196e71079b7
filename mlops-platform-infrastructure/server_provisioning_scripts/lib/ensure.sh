# shellcheck shell=bash
# Bring one thing to its wanted state, and only when it isn't there already.

# ensure_directory PATH MODE OWNER GROUP
ensure_directory() {
    local path=$1 mode=$2 owner=$3 group=$4
    if [ -d "$path" ] && [ "$(stat -c '%a %U %G' "$path")" = "${mode#0} $owner $group" ]; then
        kept "directory $path"
        return
    fi
    changed "directory $path ($mode $owner:$group)"
    [ "$DRY_RUN" = yes ] || install -d -m "$mode" -o "$owner" -g "$group" "$path"
}

# ensure_file PATH MODE [CHECK...]: content from standard input, owner root. CHECK is a command that gets the path
# of the new file and must succeed before it takes the old one's place. FILE_CHANGED says afterwards whether it was.
FILE_CHANGED=no
ensure_file() {
    local path=$1 mode=$2 new
    shift 2
    FILE_CHANGED=no
    new=$(mktemp)
    cat >"$new"
    if [ -f "$path" ] && cmp -s "$new" "$path" && [ "$(stat -c '%a %U %G' "$path")" = "${mode#0} root root" ]; then
        rm -f "$new"
        kept "file $path"
        return
    fi
    FILE_CHANGED=yes
    if [ "$DRY_RUN" = yes ]; then
        rm -f "$new"
        changed "file $path"
        return
    fi
    if [ $# -gt 0 ] && ! "$@" "$new"; then
        rm -f "$new"
        refuse "the new $path doesn't pass '$*'; the old one stays"
    fi
    mkdir -p "$(dirname "$path")"
    install -m "$mode" -o root -g root "$new" "$path.new"
    mv -f "$path.new" "$path"
    rm -f "$new"
    changed "file $path"
}

# ensure_packages NAME...: installs what is missing, from the sources that the machine has.
ensure_packages() {
    local name missing=()
    for name in "$@"; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null || true)" = installed ] || missing+=("$name")
    done
    if [ ${#missing[@]} -eq 0 ]; then
        kept "packages $*"
        return
    fi
    changed "packages ${missing[*]}"
    [ "$DRY_RUN" = yes ] && return
    apt_get update || refuse "apt-get update failed: is the machine's package source reachable?"
    # Files of ours that a package would bring as well are kept.
    apt_get install --no-install-recommends -o Dpkg::Options::=--force-confold "${missing[@]}" ||
        refuse "apt-get could not install ${missing[*]}"
}

apt_get() {
    local log
    log=$(mktemp)
    if ! DEBIAN_FRONTEND=noninteractive apt-get -y -q -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 "$@" >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

# ensure_group NAME GID and ensure_user NAME UID GROUP HOME: a system account without a shell.
ensure_group() {
    local name=$1 gid=$2 entry
    if entry=$(getent group "$name"); then
        [ "$(cut -d: -f3 <<<"$entry")" = "$gid" ] || refuse "group $name has id $(cut -d: -f3 <<<"$entry"), not $gid: set MLOPS_GID to it, or rename it"
        kept "group $name ($gid)"
        return
    fi
    if entry=$(getent group "$gid"); then refuse "id $gid belongs to the group ${entry%%:*}: choose another MLOPS_GID"; fi
    changed "group $name ($gid)"
    [ "$DRY_RUN" = yes ] || groupadd --system --key SYS_GID_MAX="$gid" --gid "$gid" "$name"
}

ensure_user() {
    local name=$1 uid=$2 group=$3 home=$4 entry
    if entry=$(getent passwd "$name"); then
        [ "$(cut -d: -f3 <<<"$entry")" = "$uid" ] || refuse "user $name has id $(cut -d: -f3 <<<"$entry"), not $uid: set MLOPS_UID to it, or rename it"
        kept "user $name ($uid)"
        return
    fi
    if entry=$(getent passwd "$uid"); then refuse "id $uid belongs to the user ${entry%%:*}: choose another MLOPS_UID"; fi
    changed "user $name ($uid)"
    [ "$DRY_RUN" = yes ] ||
        useradd --system --key SYS_UID_MAX="$uid" --uid "$uid" --gid "$group" --home-dir "$home" --no-create-home --shell /usr/sbin/nologin "$name"
}

systemd_runs() {
    [ -d /run/systemd/system ]
}

# units_changed: systemd reads its unit files again, where it runs.
units_changed() {
    [ "$DRY_RUN" = yes ] || ! systemd_runs || systemctl daemon-reload
}

# ensure_service NAME CHANGED VERB: enabled and running; VERB (reload, restart or start) when its files changed.
ensure_service() {
    local name=$1 was_changed=$2 verb=$3
    if [ "$DRY_RUN" = yes ]; then
        say info "service $name would be enabled and running"
        return
    fi
    if ! systemd_runs; then
        not_done "service $name is configured and not started: systemd isn't running here"
        return
    fi
    if ! systemctl --quiet is-enabled "$name" 2>/dev/null; then
        systemctl --quiet enable "$name"
        changed "service $name enabled"
    fi
    if [ "$verb" != enable ] && ! systemctl --quiet is-active "$name"; then
        systemctl start "$name"
        changed "service $name started"
    elif [ "$was_changed" = yes ] && [ "$verb" != enable ]; then
        systemctl "$verb" "$name"
        say info "service $name: $verb, as its configuration changed"
    else
        kept "service $name"
    fi
}
