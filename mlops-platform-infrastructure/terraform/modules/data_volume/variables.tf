variable "name" {
  description = "Name of the disk."
  type        = string
}

variable "instance_id" {
  description = "The instance that it is attached to."
  type        = string
}

variable "availability_zone" {
  description = "The zone of that instance."
  type        = string
}

variable "size_gib" {
  description = "Size of the disk."
  type        = number
}

variable "iops" {
  description = "Operations a second that the disk is paid for; gp3 has 3000 without extra charge."
  type        = number
  default     = 3000
}

variable "kms_key_arn" {
  description = "The key that the disk and its snapshots are encrypted with."
  type        = string
}

variable "snapshots_kept" {
  description = "How many daily snapshots are kept."
  type        = number
  validation {
    condition     = var.snapshots_kept >= 2
    error_message = "At least two snapshots are kept: the newest may hold the accident."
  }
}
