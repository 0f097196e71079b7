output "volume_id" {
  description = "The disk of the append-only file."
  value       = module.data.volume_id
}
