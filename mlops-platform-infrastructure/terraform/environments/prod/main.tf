# The environment prod. Sizes and networks: plan.auto.tfvars; what the account gives: cloud.auto.tfvars (see the example).

locals {
  environment = "prod"
}

module "platform" {
  source              = "../../modules/platform"
  environment         = local.environment
  subnet_cidr         = var.subnet_cidr
  servers             = var.servers
  admin_networks      = var.admin_networks
  api_client_networks = var.api_client_networks
  cluster_networks    = var.cluster_networks
  repository_url      = var.repository_url
  commit              = var.commit
  platform_version    = var.platform_version
  subnet_id           = var.subnet_id
  ami_id              = var.ami_id
  kms_key_arn         = var.kms_key_arn
  backup_bucket       = var.backup_bucket
  alarm_topic_arns    = var.alarm_topic_arns
  protected           = true
  snapshots_kept      = 14
  backup_days         = { locked = 14, kept = 90 }
}
