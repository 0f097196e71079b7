# Runs without a provider: terraform test in this module's folder.

variables {
  environment         = "test"
  subnet_cidr         = "10.99.7.0/24"
  api_client_networks = ["192.0.2.0/24", "198.51.100.7/32"]
  admin_networks      = ["203.0.113.0/28"]
  repository_url      = "https://git.example.org/platform.git"
  commit              = "0123456789abcdef0123456789abcdef01234567"
  platform_version    = "1.2.3"
  servers = {
    "1" = { instance_type = "m7i.xlarge", memory_gib = 16, data_gib = 200 }
    "2" = { instance_type = "m7i.xlarge", memory_gib = 16, data_gib = 100 }
    "3" = { instance_type = "m7i.xlarge", memory_gib = 16, data_gib = 100 }
  }
}

run "addresses_follow_the_subnet" {
  command = plan
  assert {
    condition     = [for number in ["1", "2", "3"] : output.servers[number].address] == ["10.99.7.11", "10.99.7.12", "10.99.7.13"]
    error_message = "server N stands at .1N"
  }
}

run "a_store_is_open_to_servers_alone" {
  command = plan
  assert {
    condition = toset([
      for rule in output.servers["2"].ingress : rule.network if rule.port == 6379
    ]) == toset(["10.99.7.11/32", "10.99.7.13/32"])
    error_message = "Redis is reached by the two other servers, and nobody else"
  }
  assert {
    condition     = alltrue([for number in ["1", "2"] : alltrue([for rule in output.servers[number].ingress : rule.network != "192.0.2.0/24"])])
    error_message = "clients reach server 3 only"
  }
}

run "clients_reach_what_serves_them" {
  command = plan
  assert {
    condition = alltrue([
      for port in [7860, 8001, 8002, 8003] : alltrue([
        for network in ["192.0.2.0/24", "198.51.100.7/32"] : contains(keys(output.servers["3"].ingress), "${port} from ${network}")
      ])
    ])
    error_message = "each client network reaches each API and the page"
  }
}

run "a_cluster_reaches_data_and_nothing_else" {
  command = plan
  variables {
    cluster_networks = ["10.99.8.0/24", "10.99.9.0/24"]
  }
  assert {
    condition = toset(flatten([
      for number, server in output.servers : [for rule in server.ingress : "${number} ${rule.port}" if rule.network == "10.99.9.0/24"]
    ])) == toset(["1 5432", "1 8081", "1 8333", "1 9092", "2 6379"])
    error_message = "the cluster reaches PostgreSQL, registry, object store, Kafka and Redis, and nothing else"
  }
  assert {
    condition     = strcontains(output.set_up["1"].provisioning, "CLUSTER_NETWORKS='10.99.8.0/24 10.99.9.0/24'\n")
    error_message = "the server's own firewall is told as well"
  }
  assert {
    condition     = [for number in ["1", "2", "3"] : lookup(output.servers_env[number], "DATABASE_NETWORKS", "")] == ["10.99.8.0/24 10.99.9.0/24", "", ""]
    error_message = "PostgreSQL lets the cluster's roles in"
  }
}

run "the_internet_is_no_cluster" {
  command = plan
  variables {
    cluster_networks = ["0.0.0.0/0"]
  }
  expect_failures = [var.cluster_networks]
}

run "what_one_may_ask_the_other_answers" {
  command = plan
  assert {
    condition = alltrue(flatten([
      for number, server in output.servers : [
        for rule in server.egress : anytrue([
          for other in output.servers : anytrue([
            for way in other.ingress : way.port == rule.port && way.network == "${server.address}/32" && "${other.address}/32" == rule.network
          ])
        ]) if rule.network != "0.0.0.0/0"
      ]
    ]))
    error_message = "a way out of one server is a way into another"
  }
}

run "nothing_is_open_to_the_world" {
  command = plan
  assert {
    condition     = alltrue(flatten([for server in output.servers : [for rule in server.ingress : rule.network != "0.0.0.0/0"]]))
    error_message = "a port is open to the Internet"
  }
  assert {
    condition     = toset(flatten([for server in output.servers : [for rule in server.egress : rule.port if rule.network == "0.0.0.0/0"]])) == toset([80, 443])
    error_message = "only web ports lead out"
  }
}

run "ssh_is_for_admins" {
  command = plan
  assert {
    condition     = [for rule in output.servers["1"].ingress : rule.network if rule.port == 22] == ["203.0.113.0/28"]
    error_message = "SSH is open to the given networks alone"
  }
}

run "without_admins_there_is_no_ssh" {
  command = plan
  variables {
    admin_networks = []
  }
  assert {
    condition     = alltrue(flatten([for server in output.servers : [for rule in server.ingress : rule.port != 22]]))
    error_message = "SSH is open though nobody was named"
  }
}

run "the_internet_is_no_client" {
  command = plan
  variables {
    api_client_networks = ["0.0.0.0/0"]
  }
  expect_failures = [var.api_client_networks]
}

run "the_internet_is_no_admin" {
  command = plan
  variables {
    admin_networks = ["0.0.0.0/0"]
  }
  expect_failures = [var.admin_networks]
}

run "a_public_subnet_is_refused" {
  command = plan
  variables {
    subnet_cidr = "8.8.8.0/24"
  }
  expect_failures = [var.subnet_cidr]
}

run "a_branch_is_no_commit" {
  command = plan
  variables {
    commit = "main"
  }
  expect_failures = [var.commit]
}

run "credentials_do_not_belong_in_an_address" {
  command = plan
  variables {
    repository_url = "https://user:password@git.example.org/platform.git"
  }
  expect_failures = [var.repository_url]
}

run "there_are_three_servers" {
  command = plan
  variables {
    servers = { "1" = { instance_type = "m7i.xlarge", memory_gib = 16, data_gib = 200 } }
  }
  expect_failures = [var.servers]
}
