# The three servers of an environment. What they are is platform_plan's; here each part gets its share of it.

module "plan" {
  source              = "../platform_plan"
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

data "aws_subnet" "this" {
  id = var.subnet_id

  lifecycle {
    postcondition {
      condition     = self.cidr_block == var.subnet_cidr && !self.map_public_ip_on_launch
      error_message = "The servers' addresses are planned for ${var.subnet_cidr}, in a subnet that gives no public addresses."
    }
  }
}

module "user_data" {
  for_each    = toset(["1", "3"])
  source      = "../user_data"
  set_up      = module.plan.set_up[each.key]
  servers_env = module.plan.servers_env[each.key]
}

module "postgresql_server" {
  source         = "../postgresql_server"
  server         = module.plan.servers["1"]
  user_data      = module.user_data["1"].text
  vpc_id         = data.aws_subnet.this.vpc_id
  subnet_id      = data.aws_subnet.this.id
  ami_id         = var.ami_id
  kms_key_arn    = var.kms_key_arn
  protected      = var.protected
  snapshots_kept = var.snapshots_kept
  backup_bucket  = var.backup_bucket
  backup_days    = var.backup_days
}

module "airflow_on_docker" {
  source      = "../airflow_on_docker"
  server      = module.plan.servers["2"]
  set_up      = module.plan.set_up["2"]
  servers_env = module.plan.servers_env["2"]
  memory_gib  = var.servers["2"].memory_gib
  public_url  = var.airflow_public_url
  vpc_id      = data.aws_subnet.this.vpc_id
  subnet_id   = data.aws_subnet.this.id
  ami_id      = var.ami_id
  kms_key_arn = var.kms_key_arn
  protected   = var.protected
}

module "redis_cluster" {
  source            = "../redis_cluster"
  name              = "${module.plan.servers["2"].name}-data"
  instance_id       = module.airflow_on_docker.instance_id
  availability_zone = module.airflow_on_docker.availability_zone
  memory_gib        = ceil(var.servers["2"].memory_gib / 4)
  data_gib          = var.servers["2"].data_gib
  kms_key_arn       = var.kms_key_arn
  snapshots_kept    = var.snapshots_kept
  alarm_topic_arns  = var.alarm_topic_arns
}

module "serving" {
  source      = "../compute_instance"
  server      = module.plan.servers["3"]
  user_data   = module.user_data["3"].text
  vpc_id      = data.aws_subnet.this.vpc_id
  subnet_id   = data.aws_subnet.this.id
  ami_id      = var.ami_id
  kms_key_arn = var.kms_key_arn
  protected   = var.protected
}

module "serving_data" {
  source            = "../data_volume"
  name              = "${module.plan.servers["3"].name}-data"
  instance_id       = module.serving.instance_id
  availability_zone = module.serving.availability_zone
  size_gib          = module.plan.servers["3"].data_gib
  kms_key_arn       = var.kms_key_arn
  snapshots_kept    = var.snapshots_kept
}
