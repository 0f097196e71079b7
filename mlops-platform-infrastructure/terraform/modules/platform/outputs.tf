output "addresses" {
  description = "SERVER1_HOST, SERVER2_HOST, SERVER3_HOST."
  value       = { for number, server in module.plan.servers : "SERVER${number}_HOST" => server.address }
}

output "sessions" {
  description = "How to get a shell on each server."
  value = {
    "1" = module.postgresql_server.session
    "2" = module.airflow_on_docker.session
    "3" = module.serving.session
  }
}

output "web" {
  description = "How to reach Airflow's web interface."
  value       = module.airflow_on_docker.web
}

output "backup_bucket" {
  description = "Where backups go."
  value       = module.postgresql_server.backup_bucket
}
