output "text" {
  description = "The cloud-config, at most 16 KiB."
  value       = local.text
  precondition {
    condition     = length(local.text) <= 16384
    error_message = "User data holds at most 16 KiB."
  }
}
