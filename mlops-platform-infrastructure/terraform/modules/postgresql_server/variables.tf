variable "server" {
  description = "What platform_plan says of server 1."
  type        = any
}

variable "user_data" {
  description = "The server's first start."
  type        = string
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
  description = "The key that disks and backups are encrypted with."
  type        = string
}

variable "protected" {
  description = "Whether the instance can't be ended by one call."
  type        = bool
}

variable "snapshots_kept" {
  description = "How many daily snapshots are kept."
  type        = number
}

variable "iops" {
  description = "Operations a second of the data disk: WAL is synced with every commit."
  type        = number
  default     = 6000
}

variable "backup_bucket" {
  description = "Name of the bucket for backups; names are unique in the world."
  type        = string
}

variable "backup_days" {
  description = "How many days a backup can't be changed or deleted by anybody, and after which it goes."
  type        = object({ locked = number, kept = number })
  validation {
    condition     = var.backup_days.locked >= 1 && var.backup_days.kept > var.backup_days.locked
    error_message = "Backups are kept longer than they are locked, and locked for a day at least."
  }
}
