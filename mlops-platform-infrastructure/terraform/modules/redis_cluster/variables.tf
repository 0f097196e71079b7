variable "name" {
  description = "Name of the disk and of what belongs to it."
  type        = string
}

variable "instance_id" {
  description = "The instance that Redis runs on."
  type        = string
}

variable "availability_zone" {
  description = "The zone of that instance."
  type        = string
}

variable "memory_gib" {
  description = "Memory that Redis may take, GiB."
  type        = number
}

variable "data_gib" {
  description = "Size of the disk that its append-only file is on, beside the other data of the machine."
  type        = number
  validation {
    condition     = var.data_gib >= 50
    error_message = "The disk has at least 50 GiB."
  }
}

variable "kms_key_arn" {
  description = "The key that the disk is encrypted with."
  type        = string
}

variable "snapshots_kept" {
  description = "How many daily snapshots are kept."
  type        = number
}

variable "alarm_topic_arns" {
  description = "Who is told when the disk falls behind."
  type        = list(string)
}
