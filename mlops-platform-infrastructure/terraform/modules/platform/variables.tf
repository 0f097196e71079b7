variable "environment" {
  description = "Name of the environment."
  type        = string
}

variable "subnet_cidr" {
  description = "The private subnet that the three servers stand in."
  type        = string
}

variable "servers" {
  description = "By number: instance type and the memory it has, and the size of the disk that Docker's data is on."
  type        = map(object({ instance_type = string, memory_gib = number, data_gib = number }))
}

variable "admin_networks" {
  description = "Networks that may use SSH; none: the Session Manager alone."
  type        = list(string)
  default     = []
}

variable "api_client_networks" {
  description = "Networks whose programs call the REST APIs and whose people see the page."
  type        = list(string)
}

variable "cluster_networks" {
  description = "Networks that a Kubernetes cluster's pods reach the data of servers 1 and 2 from; none: there is no cluster."
  type        = list(string)
  default     = []
}

variable "repository_url" {
  description = "Where the servers fetch the platform from, over HTTPS."
  type        = string
}

variable "commit" {
  description = "The commit that is installed, all 40 digits."
  type        = string
}

variable "platform_version" {
  description = "Version of the platform's own images."
  type        = string
}

variable "subnet_id" {
  description = "Id of that subnet; it has a way out through a NAT gateway."
  type        = string
}

variable "ami_id" {
  description = "A Debian 12 image with cloud-init."
  type        = string
}

variable "kms_key_arn" {
  description = "The key that disks and backups are encrypted with."
  type        = string
}

variable "backup_bucket" {
  description = "Name of the bucket for backups."
  type        = string
}

variable "alarm_topic_arns" {
  description = "Topics that are told of alarms."
  type        = list(string)
}


variable "airflow_public_url" {
  description = "Address that people type for Airflow, where a proxy with HTTPS stands in front."
  type        = string
  default     = ""
}

variable "protected" {
  description = "Whether no instance can be ended by one call."
  type        = bool
}

variable "snapshots_kept" {
  description = "How many daily snapshots of each data disk are kept."
  type        = number
}

variable "backup_days" {
  description = "How many days a backup is locked, and after which it goes."
  type        = object({ locked = number, kept = number })
}
