# shellcheck shell=bash
# The order of a run. A setup_server* script says which server it is and calls `provision "$@"`.

LIB=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib/report.sh
. "$LIB/report.sh"
# shellcheck source=lib/settings.sh
. "$LIB/settings.sh"
# shellcheck source=lib/ensure.sh
. "$LIB/ensure.sh"
# shellcheck source=lib/system.sh
. "$LIB/system.sh"
# shellcheck source=lib/firewall.sh
. "$LIB/firewall.sh"
# shellcheck source=lib/docker.sh
. "$LIB/docker.sh"

OS_CODENAME=''

usage() {
    cat <<END
usage: ${0##*/} [--settings FILE] [--dry-run] [--rules]

Makes this machine server $SERVER ($TITLE). Safe to run again: what is as it should be is left alone.
  --settings FILE  KEY=value lines (default: $SETTINGS_KEPT, kept from the last run); see settings.env.example
  --dry-run        say what would change, change nothing (needs no root)
  --rules          print the firewall's rules for these settings and end
END
}

# os_release NAME: a value of /etc/os-release.
os_release() {
    sed -n "s/^$1=\"\?\([^\"]*\)\"\?\$/\1/p" /etc/os-release
}

check_machine() {
    local release=/etc/os-release id version
    [ "$(uname -s)" = Linux ] || refuse "this is $(uname -s): the servers run Debian"
    [ -r "$release" ] || refuse "$release is missing: the servers run Debian 12"
    id=$(os_release ID) version=$(os_release VERSION_ID)
    if [ "$id" != debian ] || [ "${version:-0}" -lt 12 ]; then
        refuse "this is ${id:-an unknown system} ${version:-}: the servers run Debian 12 or newer"
    fi
    OS_CODENAME=$(os_release VERSION_CODENAME)
    [ "$DRY_RUN" = yes ] || [ "$(id -u)" -eq 0 ] || refuse "user $(id -un) may not do this: run it as root (sudo), or look with --dry-run"
}

# check_size: a note where the machine is smaller than the server's stacks need.
check_size() {
    local have
    have=$(awk '$1 == "MemTotal:" { print int($2 / 1048576 + 0.5) }' /proc/meminfo)
    [ "$have" -ge "$MEMORY_GIB" ] || not_done "this machine has $have GiB of memory; the stacks of server $SERVER want $MEMORY_GIB"
}

provision() {
    local settings='' rules_only=no
    while [ $# -gt 0 ]; do
        case $1 in
        --settings)
            [ $# -ge 2 ] || refuse "--settings needs a file"
            settings=$2
            shift
            ;;
        --dry-run) DRY_RUN=yes ;;
        --rules) rules_only=yes DRY_RUN=yes ;;
        -h | --help)
            usage
            return
            ;;
        *) refuse "unknown argument $1; --help says what there is" ;;
        esac
        shift
    done
    [ "$rules_only" = yes ] || check_machine
    settings=${settings:-$SETTINGS_KEPT}
    [ -r "$settings" ] || refuse "no settings in $settings: copy settings.env.example, fill it in and name it with --settings"
    read_settings "$settings"
    check_settings
    if [ "$rules_only" = yes ]; then
        render_firewall "$SERVER" "$LIB/ports.conf"
        return
    fi
    umask 022
    say info "server $SERVER ($TITLE), settings from $settings"
    check_size
    ensure_packages ca-certificates chrony git iproute2 logrotate make nftables openssh-server procps python3 \
        python3-venv unattended-upgrades
    setup_account
    setup_directories
    setup_time
    setup_kernel "$KERNEL"
    setup_firewall "$SERVER" "$LIB/ports.conf"
    setup_ssh
    setup_docker_source
    setup_docker
    setup_updates
    setup_logs
    setup_fail2ban
    setup_stack_unit "$SERVER" "$TITLE"
    summary
}
