# The first start of a server as text: no provider takes part.

terraform {
  required_version = ">= 1.10.0"
}

locals {
  text = templatefile("${path.module}/templates/cloud_config.yaml.tftpl", {
    number       = var.set_up.number
    title        = var.set_up.title
    hostname     = var.set_up.hostname
    provisioning = var.set_up.provisioning
    servers_env  = join("", [for name, value in var.servers_env : "${name}=${value}\n"])
    script       = templatefile("${path.module}/templates/set_up_server.sh.tftpl", var.set_up)
  })
}
