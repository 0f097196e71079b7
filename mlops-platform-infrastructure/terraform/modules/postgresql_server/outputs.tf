output "address" {
  description = "What settings call SERVER1_HOST."
  value       = var.server.address
}

output "session" {
  description = "How to get a shell on it."
  value       = module.instance.session
}

output "backup_bucket" {
  description = "Where backups go."
  value       = aws_s3_bucket.backups.bucket
}
