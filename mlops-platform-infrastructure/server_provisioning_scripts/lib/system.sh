# shellcheck shell=bash
# The machine below Docker: account, folders, clock, kernel, SSH, updates, logs.

setup_account() {
    ensure_group mlops "$MLOPS_GID"
    ensure_user mlops "$MLOPS_UID" mlops /var/lib/mlops
}

setup_directories() {
    ensure_directory /etc/mlops 0755 root root
    ensure_directory "$(dirname "$MLOPS_REPOSITORY")" 0755 root root
    ensure_directory "$MLOPS_REPOSITORY" 0755 mlops mlops
    ensure_directory /var/lib/mlops 0750 mlops mlops
    ensure_directory /var/lib/mlops/servers 0700 mlops mlops
    ensure_directory /var/lib/mlops/servers/secrets 0700 mlops mlops
    ensure_directory /var/backups/mlops 0700 mlops mlops
    ensure_directory /var/log/mlops 0750 mlops mlops
    # Kept, so that the next run needs no argument.
    ensure_file "$SETTINGS_KEPT" 0644 < <(settings_text)
}

setup_time() {
    local server lines=''
    for server in $NTP_SERVERS; do lines+="server $server iburst"$'\n'; done
    ensure_file /etc/chrony/chrony.conf 0644 check_chrony <<END
# Decisions, features and logs of three servers are compared by their times.
${lines}driftfile /var/lib/chrony/chrony.drift
ntsdumpdir /var/lib/chrony
# At start the clock may jump, later it only runs a little faster or slower.
makestep 1.0 3
rtcsync
leapsectz right/UTC
logdir /var/log/chrony
# This machine asks for the time and doesn't give it.
port 0
cmdport 0
END
    ensure_service chrony.service "$FILE_CHANGED" restart
}

check_chrony() {
    chronyd -p -f "$1" >/dev/null
}

# setup_kernel LINES: settings of all servers and of this one.
setup_kernel() {
    local sysctl_changed
    ensure_file /etc/sysctl.d/60-mlops.conf 0644 <<END
# All servers
net.core.somaxconn = 4096
net.ipv4.tcp_max_syn_backlog = 4096
net.ipv4.tcp_syncookies = 1
net.ipv4.ip_forward = 1
net.ipv4.conf.all.rp_filter = 1
net.ipv4.conf.default.rp_filter = 1
net.ipv4.conf.all.accept_redirects = 0
net.ipv4.conf.default.accept_redirects = 0
net.ipv4.conf.all.send_redirects = 0
net.ipv4.conf.all.accept_source_route = 0
net.ipv6.conf.all.accept_redirects = 0
net.ipv6.conf.default.accept_redirects = 0
kernel.dmesg_restrict = 1
kernel.kptr_restrict = 1
fs.protected_fifos = 2
fs.protected_regular = 2
fs.inotify.max_user_instances = 1024
# Memory pages of databases are not swapped out for the sake of a file cache.
vm.swappiness = 1
# This server
$1
END
    sysctl_changed=$FILE_CHANGED
    # Huge pages only where a program asks: forked copies (Redis) and latencies suffer from unasked ones.
    ensure_file /etc/tmpfiles.d/mlops-hugepages.conf 0644 <<END
w /sys/kernel/mm/transparent_hugepage/enabled - - - - madvise
w /sys/kernel/mm/transparent_hugepage/defrag - - - - defer+madvise
END
    [ "$DRY_RUN" = yes ] && return
    if systemd_runs; then
        # A machine may lack some (IPv6 switched off): those are passed over.
        if [ "$sysctl_changed" = yes ]; then sysctl --quiet --ignore --load=/etc/sysctl.d/60-mlops.conf; fi
        systemd-tmpfiles --create /etc/tmpfiles.d/mlops-hugepages.conf
    else
        not_done "kernel settings are written and not loaded: this is no booted machine, they count from the next boot"
    fi
}

somebody_has_a_key() {
    local file
    for file in /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys; do
        if [ -s "$file" ] && grep -q '^[^#]' "$file"; then return 0; fi
    done
    return 1
}

check_ssh() {
    # Host keys and the folder below come with the service's first start; the check needs them, too.
    local scratch status=0
    scratch=$(mktemp -d)
    ssh-keygen -q -t ed25519 -N '' -f "$scratch/key"
    mkdir -p /run/sshd
    # The file alone, then the way Debian reads it: what it says first, counts.
    sshd -t -h "$scratch/key" -f "$1" || status=1
    rm -rf "$scratch"
    return $status
}

setup_ssh() {
    local passwords=no
    if [ "$SSH_HARDENING" = no ]; then
        say info "SSH is left as it is (SSH_HARDENING=no)"
        return
    fi
    if ! somebody_has_a_key; then
        passwords=yes
        not_done "SSH keeps accepting passwords: nobody has an authorized key yet; add one and run this again"
    fi
    ensure_file /etc/ssh/sshd_config.d/10-mlops.conf 0600 check_ssh <<END
# Debian's sshd_config includes this file first, and the first value counts.
Port $SSH_PORT
PasswordAuthentication $passwords
KbdInteractiveAuthentication no
PermitEmptyPasswords no
PermitRootLogin prohibit-password
MaxAuthTries 3
MaxSessions 10
LoginGraceTime 30
ClientAliveInterval 60
ClientAliveCountMax 5
X11Forwarding no
AllowAgentForwarding no
# Administrators reach the pages on 127.0.0.1 by ssh -L.
AllowTcpForwarding local
PermitTunnel no
PermitUserEnvironment no
LogLevel VERBOSE
END
    ensure_service ssh.service "$FILE_CHANGED" reload
}

setup_updates() {
    ensure_file /etc/apt/apt.conf.d/20auto-upgrades 0644 check_apt <<END
APT::Periodic::Update-Package-Lists "1";
APT::Periodic::Unattended-Upgrade "1";
APT::Periodic::AutocleanInterval "7";
END
    ensure_file /etc/apt/apt.conf.d/52mlops-unattended-upgrades 0644 check_apt <<END
// Security updates only. Docker's engine is upgraded by people: containers restart with it.
#clear Unattended-Upgrade::Origins-Pattern;
Unattended-Upgrade::Origins-Pattern { "origin=Debian,codename=\${distro_codename}-security,label=Debian-Security"; };
Unattended-Upgrade::Package-Blacklist { "docker\\.io\$"; "docker-ce"; "containerd"; "runc\$"; };
Unattended-Upgrade::Automatic-Reboot "$([ -n "$REBOOT_TIME" ] && echo true || echo false)";
Unattended-Upgrade::Automatic-Reboot-Time "${REBOOT_TIME:-now}";
END
    ensure_service unattended-upgrades.service "$FILE_CHANGED" restart
}

check_apt() {
    APT_CONFIG=$1 apt-config dump >/dev/null
}

setup_logs() {
    ensure_file /etc/logrotate.d/mlops 0644 check_logrotate <<END
/var/log/mlops/*.log {
    su mlops mlops
    weekly
    rotate 8
    maxsize 100M
    compress
    delaycompress
    missingok
    notifempty
    copytruncate
}
END
    ensure_file /etc/systemd/journald.conf.d/mlops.conf 0644 <<END
[Journal]
SystemMaxUse=1G
MaxRetentionSec=1month
END
    if [ "$FILE_CHANGED" = yes ] && [ "$DRY_RUN" = no ] && systemd_runs; then systemctl restart systemd-journald; fi
}

check_logrotate() {
    logrotate --debug "$1" >/dev/null 2>&1
}

setup_fail2ban() {
    [ "$FAIL2BAN" = yes ] || return 0
    ensure_packages fail2ban python3-systemd
    ensure_file /etc/fail2ban/jail.d/mlops.conf 0644 <<END
[DEFAULT]
banaction = nftables-multiport
backend = systemd
ignoreip = 127.0.0.0/8 ::1 $SERVER1_HOST $SERVER2_HOST $SERVER3_HOST

[sshd]
enabled = true
port = $SSH_PORT
maxretry = 5
findtime = 10m
bantime = 1h
END
    ensure_service fail2ban.service "$FILE_CHANGED" restart
}
