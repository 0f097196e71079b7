# What the environment is made of, computed without any provider: names, addresses, who may reach which port, how each
# server is set up. The other modules turn this into resources, and decide nothing.

terraform {
  required_version = ">= 1.10.0"
}

locals {
  titles = {
    "1" = { name = "dataproc", title = "data processing and feature store", script = "setup_server1_dataproc.sh" }
    "2" = { name = "orchestration", title = "orchestration", script = "setup_server2_orchestration.sh" }
    "3" = { name = "serving", title = "serving and monitoring", script = "setup_server3_serving.sh" }
  }
  # The cloud keeps the first four addresses of a subnet.
  addresses = { for number in keys(var.servers) : number => cidrhost(var.subnet_cidr, 10 + tonumber(number)) }
  data_root = "/srv/docker"

  # The one table of who may reach what, which the servers' own firewalls are made of, too.
  table = [
    for line in split("\n", file("${path.module}/../../../server_provisioning_scripts/lib/ports.conf")) :
    regex("^(?P<server>[123]) (?P<port>[0-9]+) (?P<callers>[0-9a-z,-]+) (?P<service>.+)$", trimspace(line))
    if trimspace(line) != "" && !startswith(trimspace(line), "#")
  ]
  # Callers that are no servers.
  networks = { clients = var.api_client_networks, cluster = var.cluster_networks }
  calls = flatten([
    for entry in local.table : [
      for caller in compact(split(",", replace(entry.callers, "-", ""))) : {
        server  = entry.server
        port    = tonumber(entry.port)
        service = entry.service
        caller  = caller
        sources = contains(keys(local.networks), caller) ? local.networks[caller] : ["${local.addresses[caller]}/32"]
      }
    ]
  ])
  ssh = flatten([
    for number in keys(var.servers) : [
      for network in var.admin_networks : { server = number, port = 22, service = "SSH", caller = "admins", sources = [network] }
    ]
  ])

  # By server: what comes in, and what goes to the others.
  ingress = {
    for number in keys(var.servers) : number => merge([
      for call in concat(local.calls, local.ssh) : {
        for source in call.sources : "${call.port} from ${source}" => {
          port        = call.port
          network     = source
          description = "${call.service}, from ${contains(["clients", "cluster", "admins"], call.caller) ? call.caller : "server ${call.caller}"}"
        }
      } if call.server == number
    ]...)
  }
  egress = {
    for number in keys(var.servers) : number => merge(
      merge([
        for call in local.calls : {
          "${call.port} to ${local.addresses[call.server]}/32" = {
            port        = call.port
            network     = "${local.addresses[call.server]}/32"
            description = "${call.service} of server ${call.server}"
          }
        } if call.caller == number
      ]...),
      {
        "443 to 0.0.0.0/0" = { port = 443, network = "0.0.0.0/0", description = "packages, images, repository, Session Manager" }
        "80 to 0.0.0.0/0"  = { port = 80, network = "0.0.0.0/0", description = "Debian packages, which are signed" }
      },
    )
  }

  provisioning = {
    SERVER1_HOST        = local.addresses["1"]
    SERVER2_HOST        = local.addresses["2"]
    SERVER3_HOST        = local.addresses["3"]
    ADMIN_NETWORKS      = join(" ", var.admin_networks)
    API_CLIENT_NETWORKS = join(" ", var.api_client_networks)
    CLUSTER_NETWORKS    = join(" ", var.cluster_networks)
    DOCKER_DATA_ROOT    = local.data_root
    # The clock of the machine below, which no firewall stands before.
    NTP_SERVERS = "169.254.169.123"
  }
  # The first settings of the servers; `make secrets` fills in the rest and never changes what stands there.
  servers_env = {
    for number in keys(var.servers) : number => merge(
      {
        SERVER1_HOST          = local.addresses["1"]
        SERVER2_HOST          = local.addresses["2"]
        SERVER3_HOST          = local.addresses["3"]
        MLOPS_VERSION         = var.platform_version
        DOCKER_CONTAINERS_DIR = "${local.data_root}/containers"
      },
      number == "3" ? { API_BIND = local.addresses["3"] } : {},
      number == "1" && length(var.cluster_networks) > 0 ? { DATABASE_NETWORKS = join(" ", var.cluster_networks) } : {},
    )
  }
}
