# All of an environment that needs no provider: terraform plan works here without network, account or state. Called by
# `make terraform-plan ENVIRONMENT=dev`, with the environment's own plan.auto.tfvars.

terraform {
  required_version = ">= 1.10.0"
}

module "plan" {
  source              = "../modules/platform_plan"
  environment         = var.environment
  subnet_cidr         = var.subnet_cidr
  servers             = var.servers
  admin_networks      = var.admin_networks
  api_client_networks = var.api_client_networks
  cluster_networks    = var.cluster_networks
  repository_url      = var.repository_url
  commit              = var.commit
  platform_version    = var.platform_version
}

module "airflow_settings" {
  source     = "../modules/airflow_settings"
  memory_gib = var.servers["2"].memory_gib
}

module "user_data" {
  for_each    = module.plan.set_up
  source      = "../modules/user_data"
  set_up      = each.value
  servers_env = merge(module.plan.servers_env[each.key], each.key == "2" ? module.airflow_settings.settings : {})
}

output "servers" {
  description = "Names, sizes, addresses and who may reach which port."
  value       = module.plan.servers
}

output "user_data" {
  description = "The first start of each server."
  value       = { for number, each in module.user_data : number => each.text }
}
