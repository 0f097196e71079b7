# Server 2: the machine on whose Docker Engine Airflow runs, and its tasks beside it, each in the image of the root whose
# command it is. MLflow, Redis and Jenkins stand on it, too.

module "settings" {
  source     = "../airflow_settings"
  memory_gib = var.memory_gib
  public_url = var.public_url
}

module "user_data" {
  source      = "../user_data"
  set_up      = var.set_up
  servers_env = merge(var.servers_env, module.settings.settings)
}

module "instance" {
  source      = "../compute_instance"
  server      = var.server
  user_data   = module.user_data.text
  vpc_id      = var.vpc_id
  subnet_id   = var.subnet_id
  ami_id      = var.ami_id
  kms_key_arn = var.kms_key_arn
  protected   = var.protected
}
