# shellcheck shell=bash
# The firewall: one nftables table of our own, which decides before Docker does.
#
# Docker publishes a port by rewriting a packet's destination, and a rewritten packet never reaches the `input`
# chain: a firewall there is no firewall for containers. So the decision is taken in `prerouting` ahead of that
# rewriting, once for the machine's own ports and for published ones. A drop there is final, whatever Docker's
# rules accept. The table is replaced in one step and no other table is touched: `flush ruleset` would take
# Docker's rules with it.

FIREWALL_FILE=/etc/nftables.conf
FIREWALL_DROP_IN=/etc/systemd/system/nftables.service.d/mlops.conf
FIREWALL_TABLE=mlops_firewall

# family ADDRESS: the word that nft has for its kind.
family() {
    if [[ $1 == *:* ]]; then echo ip6; else echo ip; fi
}

# callers LIST: the addresses behind the third column of ports.conf.
callers() {
    local each name
    for each in ${1//,/ }; do
        case $each in
        1 | 2 | 3)
            name=SERVER${each}_HOST
            printf '%s ' "${!name}"
            ;;
        -) ;;
        clients) printf '%s ' "$API_CLIENT_NETWORKS" ;;
        cluster) printf '%s ' "$CLUSTER_NETWORKS" ;;
        *) refuse "ports.conf names the caller '$each': 1, 2, 3, clients, cluster or -" ;;
        esac
    done
}

# accept_rules SERVER PORTS_FILE: one rule a port and caller (not a set: networks in a set must not overlap).
accept_rules() {
    local server port from service list each
    while read -r server port from service; do
        [ "$server" = "$1" ] || continue
        list=$(callers "$from") || return
        for each in $list; do
            echo "        $(family "$each") saddr $each tcp dport $port counter accept comment \"$service\""
        done
    done < <(grep -v '^#' "$2")
}

all_ports() {
    awk '!/^#/ { print $2 }' "$1" | sort -nu | paste -sd, - | sed 's/,/, /g'
}

# ssh_rules SERVER: the other servers at any pace, ADMIN_NETWORKS (everybody where it is empty) at a limited one.
ssh_rules() {
    local each
    for each in $(other_servers "$1"); do
        echo "        $(family "$each") saddr $each accept comment \"another server\""
    done
    if [ -z "$ADMIN_NETWORKS" ]; then
        echo '        goto ssh_paced'
        return
    fi
    for each in $ADMIN_NETWORKS; do echo "        $(family "$each") saddr $each goto ssh_paced"; done
    echo '        counter drop'
}

other_servers() {
    local number name
    for number in 1 2 3; do
        name=SERVER${number}_HOST
        [ "$number" = "$1" ] || printf '%s ' "${!name}"
    done
}

# render_firewall SERVER PORTS_FILE: the whole rule file.
render_firewall() {
    local server=$1 ports=$2 ssh offered published
    ssh=$(ssh_rules "$server")
    offered=$(accept_rules "$server" "$ports") || return
    published=$(all_ports "$ports")
    cat <<END
#!/usr/sbin/nft -f
# Server $server. Written by its setup script: change lib/ports.conf or the settings, and run it again.
table inet $FIREWALL_TABLE
delete table inet $FIREWALL_TABLE
table inet $FIREWALL_TABLE {
    set ssh_pace4 {
        type ipv4_addr
        size 65536
        flags dynamic, timeout
        timeout 5m
    }
    set ssh_pace6 {
        type ipv6_addr
        size 65536
        flags dynamic, timeout
        timeout 5m
    }

    # Ahead of Docker's rewriting (priority -100) and behind connection tracking (-200).
    chain arriving {
        type filter hook prerouting priority mangle; policy drop;
        iifname "lo" accept
        ip daddr 127.0.0.0/8 counter drop comment "loopback addresses from outside"
        iifname "docker0" accept
        iifname "br-*" accept
        ct state established,related accept
        ct state invalid counter drop
        udp sport 67 udp dport 68 accept comment "DHCP"
        ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept comment "DHCPv6"
        icmpv6 type { nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept
        fib daddr type != local counter drop comment "not for this machine: nobody is routed to containers"
        icmp type { destination-unreachable, time-exceeded, parameter-problem } accept
        icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept
        icmp type echo-request limit rate 20/second accept
        icmpv6 type echo-request limit rate 20/second accept
        tcp dport $SSH_PORT goto ssh
        jump offered
        limit rate 10/minute burst 20 packets log prefix "mlops-firewall drop: " level info
        counter drop
    }

    chain ssh {
$ssh
    }

    chain ssh_paced {
        ct state new add @ssh_pace4 { ip saddr limit rate over 10/minute burst 10 packets } counter drop
        ct state new add @ssh_pace6 { ip6 saddr limit rate over 10/minute burst 10 packets } counter drop
        accept
    }

    chain offered {
$offered
    }

    # Containers reach what the servers publish, also by the machine's own address, and nothing else of the machine.
    chain from_containers {
        type filter hook input priority filter; policy accept;
        iifname != "docker0" iifname != "br-*" accept
        ct state established,related accept
        icmp type echo-request accept
        icmpv6 type { echo-request, nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } accept
        tcp dport { $published } accept
        counter drop
    }
}
END
}

# nft_usable: whether this place lets us look at rules at all (needs CAP_NET_ADMIN).
nft_usable() {
    nft list tables >/dev/null 2>&1
}

check_rules() {
    nft -c -f "$1"
}

# admin_stays_in: refuses rules that would lock out the connection this script is run over.
admin_stays_in() {
    local connection client port
    connection=${SSH_CONNECTION:-}
    [ -n "$connection" ] || return 0
    client=${connection%% *} port=${connection##* }
    [ "$port" = "$SSH_PORT" ] || refuse "you are connected to port $port and SSH_PORT is $SSH_PORT: the firewall would lock you out"
    [ -n "$ADMIN_NETWORKS" ] || return 0
    # shellcheck disable=SC2086  # a list of networks, split on purpose
    python3 - "$client" $ADMIN_NETWORKS "$SERVER1_HOST" "$SERVER2_HOST" "$SERVER3_HOST" <<'END' ||
import ipaddress, sys
client = ipaddress.ip_address(sys.argv[1].split("%")[0])
sys.exit(not any(client in ipaddress.ip_network(each, strict=False) for each in sys.argv[2:]))
END
        refuse "you are connected from $client, which is not in ADMIN_NETWORKS: the firewall would lock you out"
}

# outside_is_no_bridge: containers' bridges are trusted by their names, so the way out must not have such a name.
outside_is_no_bridge() {
    local device
    device=$(awk '$2 == "00000000" && $8 == "00000000" { print $1; exit }' /proc/net/route)
    [[ $device != br-* && $device != docker0 ]] ||
        refuse "the default route leaves by $device, a name that the firewall takes for a container network"
}

setup_firewall() {
    local server=$1 ports=$2 rules rules_changed check=()
    admin_stays_in
    outside_is_no_bridge
    if [ "$DRY_RUN" = no ]; then
        if nft_usable; then check=(check_rules); else not_done "nft can't be asked here (no right to): the rules are written unchecked"; fi
    fi
    rules=$(render_firewall "$server" "$ports")
    ensure_file "$FIREWALL_FILE" 0644 "${check[@]}" <<<"$rules"
    rules_changed=$FILE_CHANGED
    ensure_file "$FIREWALL_DROP_IN" 0644 <<END
# Stopping the service takes our table away; Debian's unit would flush Docker's rules with it.
[Service]
ExecStop=
ExecStop=/usr/sbin/nft delete table inet $FIREWALL_TABLE
END
    units_changed
    ensure_service nftables.service "$rules_changed" reload
    if [ "$DRY_RUN" = no ] && ! systemd_runs && nft_usable; then
        nft -f "$FIREWALL_FILE"
        say info "firewall rules loaded into this network namespace"
    fi
}
