# shellcheck shell=bash
# Settings: KEY=value lines of one file, read and never executed. The names, their defaults and their checks.

SETTINGS_KEPT=/etc/mlops/provisioning.env

# The three addresses have no default; everything else has one that fits.
SERVER1_HOST='' SERVER2_HOST='' SERVER3_HOST=''
ADMIN_NETWORKS=''
API_CLIENT_NETWORKS=''
CLUSTER_NETWORKS=''
SSH_PORT=22
SSH_HARDENING=yes
DOCKER_SOURCE=debian
DOCKER_APT_URI=''
DOCKER_APT_KEY=''
DOCKER_DATA_ROOT=/var/lib/docker
DOCKER_USERLAND_PROXY=false
NTP_SERVERS='0.debian.pool.ntp.org 1.debian.pool.ntp.org 2.debian.pool.ntp.org'
FAIL2BAN=no
REBOOT_TIME=''
MLOPS_UID=10001
MLOPS_GID=10001
MLOPS_REPOSITORY=/opt/mlops/platform

SETTING_NAMES="SERVER1_HOST SERVER2_HOST SERVER3_HOST ADMIN_NETWORKS API_CLIENT_NETWORKS CLUSTER_NETWORKS
SSH_PORT SSH_HARDENING DOCKER_SOURCE DOCKER_APT_URI DOCKER_APT_KEY DOCKER_DATA_ROOT DOCKER_USERLAND_PROXY NTP_SERVERS FAIL2BAN REBOOT_TIME
MLOPS_UID MLOPS_GID MLOPS_REPOSITORY"

# read_settings FILE: sets the variables of the file; refuses a line that is no KEY=value, and an unknown name.
read_settings() {
    local file=$1 line name value number=0
    while IFS= read -r line || [ -n "$line" ]; do
        number=$((number + 1))
        [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
        [[ $line =~ ^([A-Z][A-Z0-9_]*)=(.*)$ ]] || refuse "$file, line $number is no KEY=value"
        name=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
        [[ " ${SETTING_NAMES//$'\n'/ } " == *" $name "* ]] || refuse "$file, line $number: no setting is called $name"
        if [[ $value =~ ^\'([^\']*)\'$ || $value =~ ^\"([^\"]*)\"$ ]]; then value=${BASH_REMATCH[1]}; fi
        printf -v "$name" '%s' "$value"
    done <"$file"
}

# is_address TEXT: an IPv4 or IPv6 address, no name: a firewall rule must not hang on a name server.
is_address() {
    local part
    if [[ $1 =~ ^([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})$ ]]; then
        for part in "${BASH_REMATCH[@]:1}"; do ((10#$part <= 255)) || return 1; done
        return 0
    fi
    [[ $1 =~ ^[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:]*$ ]]
}

# is_network TEXT: an address, or an address with a prefix length.
is_network() {
    local address=${1%%/*} prefix=${1#*/}
    is_address "$address" || return 1
    [ "$1" = "$address" ] && return 0
    [[ $prefix =~ ^[0-9]{1,3}$ ]] || return 1
    if [[ $address == *:* ]]; then ((10#$prefix <= 128)); else ((10#$prefix <= 32)); fi
}

is_one_of() {
    local value=$1
    shift
    [[ " $* " == *" $value "* ]]
}

# check_settings: refuses the first value that cannot be right, naming it.
check_settings() {
    local name network
    for name in SERVER1_HOST SERVER2_HOST SERVER3_HOST; do
        [ -n "${!name}" ] || refuse "$name is not set: the three servers' addresses decide who may reach what"
        is_address "${!name}" || refuse "$name is '${!name}': an IP address is needed, not a name"
    done
    for network in $ADMIN_NETWORKS $API_CLIENT_NETWORKS; do
        is_network "$network" || refuse "'$network' in ADMIN_NETWORKS or API_CLIENT_NETWORKS is no network"
    done
    # Behind these ports are data, and users known by a password at most.
    for network in $CLUSTER_NETWORKS; do
        is_network "$network" || refuse "'$network' in CLUSTER_NETWORKS is no network"
        [[ ! $network =~ /0+$ ]] || refuse "'$network' in CLUSTER_NETWORKS is everybody: name the cluster's own network"
    done
    if ! [[ $SSH_PORT =~ ^[1-9][0-9]{0,4}$ ]] || ((SSH_PORT > 65535)); then
        refuse "SSH_PORT is '$SSH_PORT': a number from 1 to 65535 is needed"
    fi
    [[ $MLOPS_UID =~ ^[1-9][0-9]*$ && $MLOPS_GID =~ ^[1-9][0-9]*$ ]] ||
        refuse "MLOPS_UID and MLOPS_GID must be numbers above 0: the containers don't run as root"
    is_one_of "$SSH_HARDENING" yes no || refuse "SSH_HARDENING is '$SSH_HARDENING': yes or no"
    is_one_of "$FAIL2BAN" yes no || refuse "FAIL2BAN is '$FAIL2BAN': yes or no"
    is_one_of "$DOCKER_USERLAND_PROXY" true false || refuse "DOCKER_USERLAND_PROXY is '$DOCKER_USERLAND_PROXY': true or false"
    is_one_of "$DOCKER_SOURCE" debian docker || refuse "DOCKER_SOURCE is '$DOCKER_SOURCE': debian or docker"
    if [ "$DOCKER_SOURCE" = docker ]; then
        [ -n "$DOCKER_APT_URI" ] || refuse "DOCKER_SOURCE=docker needs DOCKER_APT_URI, the address of Docker's apt repository or your mirror of it"
        [ -r "$DOCKER_APT_KEY" ] || refuse "DOCKER_SOURCE=docker needs DOCKER_APT_KEY, a file with the key that signs DOCKER_APT_URI"
    fi
    [[ $REBOOT_TIME =~ ^([01][0-9]|2[0-3]):[0-5][0-9]$ || -z $REBOOT_TIME ]] || refuse "REBOOT_TIME is '$REBOOT_TIME': HH:MM, or empty for never"
    [[ $MLOPS_REPOSITORY == /* && $DOCKER_DATA_ROOT == /* ]] || refuse "MLOPS_REPOSITORY and DOCKER_DATA_ROOT are absolute paths"
    [[ $MLOPS_REPOSITORY$DOCKER_DATA_ROOT =~ ^[A-Za-z0-9._/-]+$ ]] || refuse "MLOPS_REPOSITORY and DOCKER_DATA_ROOT take letters, digits, '.', '_', '-' and '/'"
    [[ $NTP_SERVERS =~ ^[A-Za-z0-9.:\ -]+$ ]] || refuse "NTP_SERVERS is '$NTP_SERVERS': names or addresses, separated by spaces"
}

# settings_text: the settings in force, as they are kept for the next run.
settings_text() {
    local name
    echo "# Settings of the last provisioning run; setup_server* reads this file when it is called without --settings."
    for name in $SETTING_NAMES; do printf "%s='%s'\n" "$name" "${!name}"; done
}
