# How much of server 2 Airflow gets, from the memory that the machine has: no provider takes part.

terraform {
  required_version = ">= 1.10.0"
}

variable "memory_gib" {
  description = "Memory of the machine, GiB."
  type        = number
  validation {
    condition     = var.memory_gib >= 8
    error_message = "Airflow, MLflow, Redis and Jenkins together want at least 8 GiB."
  }
}

variable "public_url" {
  description = "Address that people type, where a proxy with HTTPS stands in front; empty: none."
  type        = string
  default     = ""
  validation {
    condition     = var.public_url == "" || startswith(var.public_url, "https://")
    error_message = "People reach Airflow over HTTPS, or not at all."
  }
}

locals {
  # A task waits for its container: it costs the scheduler some 150 MiB, and the container what its command needs.
  # A quarter of the machine is the tasks' supervisors and the scheduler's.
  scheduler_mib = max(2048, floor(var.memory_gib * 1024 / 4))
  parallelism   = max(4, floor((local.scheduler_mib - 1024) / 256))
}

output "settings" {
  description = "Lines of the settings file."
  value = merge(
    {
      AIRFLOW_PARALLELISM      = tostring(local.parallelism)
      AIRFLOW_SCHEDULER_MEMORY = "${local.scheduler_mib}m"
      AIRFLOW_API_MEMORY       = var.memory_gib >= 16 ? "2g" : "1536m"
    },
    var.public_url == "" ? {} : { AIRFLOW_PUBLIC_URL = var.public_url },
  )
}
