variable "server" {
  description = "What platform_plan says of the server."
  type = object({
    name          = string
    title         = string
    address       = string
    instance_type = string
    data_gib      = number
    ingress       = map(object({ port = number, network = string, description = string }))
    egress        = map(object({ port = number, network = string, description = string }))
  })
}

variable "user_data" {
  description = "The server's first start, a cloud-config."
  type        = string
}

variable "vpc_id" {
  description = "The VPC that the subnet is in."
  type        = string
}

variable "subnet_id" {
  description = "A private subnet, with a way out through a NAT gateway."
  type        = string
}

variable "ami_id" {
  description = "A Debian 12 image with cloud-init, by id: a name may point to another image tomorrow."
  type        = string
  validation {
    condition     = can(regex("^ami-[0-9a-f]{8,17}$", var.ami_id))
    error_message = "The image is given by its id, ami-..."
  }
}

variable "kms_key_arn" {
  description = "The key that disks are encrypted with."
  type        = string
  validation {
    condition     = can(regex("^arn:aws[a-z-]*:kms:", var.kms_key_arn))
    error_message = "The key is given by its ARN."
  }
}

variable "protected" {
  description = "Whether the instance can't be ended by one call."
  type        = bool
}
