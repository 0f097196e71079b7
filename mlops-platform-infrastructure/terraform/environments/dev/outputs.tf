output "addresses" {
  description = "SERVER1_HOST, SERVER2_HOST, SERVER3_HOST."
  value       = module.platform.addresses
}

output "sessions" {
  description = "How to get a shell on each server."
  value       = module.platform.sessions
}

output "web" {
  description = "How to reach Airflow's web interface."
  value       = module.platform.web
}

output "backup_bucket" {
  description = "Where backups go."
  value       = module.platform.backup_bucket
}
