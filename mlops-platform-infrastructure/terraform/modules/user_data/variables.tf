variable "set_up" {
  description = "What platform_plan says of the server's first start."
  type = object({
    number         = string
    title          = string
    hostname       = string
    provisioning   = string
    setup          = string
    data_root      = string
    repository_url = string
    commit         = string
  })
}

variable "servers_env" {
  description = "First lines of the server's settings file."
  type        = map(string)
  validation {
    condition     = alltrue([for name in keys(var.servers_env) : !can(regex("PASSWORD|SECRET|TOKEN|KEY", name))])
    error_message = "User data is readable by whoever may describe the instance: no secret may stand in it."
  }
}
