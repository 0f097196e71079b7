variable "environment" {
  description = "Name of the environment, part of every name."
  type        = string
  validation {
    condition     = can(regex("^[a-z][a-z0-9]{1,11}$", var.environment))
    error_message = "The environment is 2 to 12 lower-case letters and digits."
  }
}

variable "subnet_cidr" {
  description = "The private subnet that the three servers stand in."
  type        = string
  validation {
    condition     = can(cidrhost(var.subnet_cidr, 13)) && can(regex("^(10\\.|172\\.(1[6-9]|2[0-9]|3[01])\\.|192\\.168\\.)", var.subnet_cidr))
    error_message = "The subnet is a private IPv4 network with room for three servers, such as 10.20.1.0/24."
  }
}

variable "servers" {
  description = "By number: instance type and the memory it has, and the size of the disk that Docker's data is on."
  type = map(object({
    instance_type = string
    memory_gib    = number
    data_gib      = number
  }))
  validation {
    condition     = toset(keys(var.servers)) == toset(["1", "2", "3"])
    error_message = "There are three servers: 1 (data), 2 (orchestration), 3 (serving and monitoring)."
  }
  validation {
    condition     = alltrue([for server in var.servers : server.memory_gib >= 8 && server.data_gib >= 50])
    error_message = "A server has at least 8 GiB of memory and 50 GiB for its data."
  }
}

variable "admin_networks" {
  description = "Networks that may use SSH; none: the servers are reached through the Session Manager alone."
  type        = list(string)
  default     = []
  validation {
    condition     = alltrue([for network in var.admin_networks : can(cidrhost(network, 0)) && !endswith(network, "/0")])
    error_message = "Networks are given as CIDR, and never all of the Internet."
  }
}

variable "api_client_networks" {
  description = "Networks whose programs call the REST APIs and whose people see the page."
  type        = list(string)
  validation {
    condition     = alltrue([for network in var.api_client_networks : can(cidrhost(network, 0)) && !endswith(network, "/0")])
    error_message = "Networks are given as CIDR, and never all of the Internet."
  }
}

variable "cluster_networks" {
  description = "Networks that a Kubernetes cluster's pods reach the data of servers 1 and 2 from; none: there is no cluster."
  type        = list(string)
  default     = []
  validation {
    condition     = alltrue([for network in var.cluster_networks : can(cidrhost(network, 0)) && !endswith(network, "/0")])
    error_message = "Networks are given as CIDR, and never all of the Internet."
  }
}

variable "repository_url" {
  description = "Where the servers fetch the platform from, over HTTPS."
  type        = string
  validation {
    condition     = can(regex("^https://[A-Za-z0-9./_-]+$", var.repository_url))
    error_message = "The repository is fetched over HTTPS, without credentials in its address."
  }
}

variable "commit" {
  description = "The commit that is installed, all 40 digits: a branch or a tag may be moved."
  type        = string
  validation {
    condition     = can(regex("^[0-9a-f]{40}$", var.commit))
    error_message = "The commit is named by all its 40 hexadecimal digits."
  }
}

variable "platform_version" {
  description = "Version of the platform's own images."
  type        = string
}
