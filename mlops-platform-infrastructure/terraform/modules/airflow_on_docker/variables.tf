variable "server" {
  description = "What platform_plan says of server 2."
  type        = any
}

variable "set_up" {
  description = "What platform_plan says of the server's first start."
  type        = any
}

variable "servers_env" {
  description = "First lines of the server's settings file; Airflow's are added."
  type        = map(string)
}

variable "memory_gib" {
  description = "Memory of the machine, GiB."
  type        = number
}

variable "public_url" {
  description = "Address that people type, where a proxy with HTTPS stands in front."
  type        = string
  default     = ""
}

variable "vpc_id" {
  description = "The VPC that the subnet is in."
  type        = string
}

variable "subnet_id" {
  description = "The private subnet."
  type        = string
}

variable "ami_id" {
  description = "The Debian image."
  type        = string
}

variable "kms_key_arn" {
  description = "The key that disks are encrypted with."
  type        = string
}

variable "protected" {
  description = "Whether the instance can't be ended by one call."
  type        = bool
}
