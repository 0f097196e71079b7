output "servers" {
  description = "By number, all that a server's module needs."
  value = {
    for number, server in var.servers : number => {
      name          = "mlops-${var.environment}-server${number}"
      title         = local.titles[number].title
      address       = local.addresses[number]
      instance_type = server.instance_type
      data_gib      = server.data_gib
      ingress       = local.ingress[number]
      egress        = local.egress[number]
    }
  }
}

output "subnet_cidr" {
  description = "The subnet that the addresses are in."
  value       = var.subnet_cidr
}

output "servers_env" {
  description = "By server, the first lines of its settings file."
  value       = local.servers_env
}

output "set_up" {
  description = "By server, what its first start needs; airflow_on_docker adds to server 2's settings."
  value = {
    for number, server in var.servers : number => {
      number         = number
      title          = local.titles[number].title
      hostname       = "mlops-${var.environment}-server${number}"
      provisioning   = join("", [for name, value in local.provisioning : "${name}='${value}'\n"])
      setup          = local.titles[number].script
      data_root      = local.data_root
      repository_url = var.repository_url
      commit         = var.commit
    }
  }
}
