output "volume_id" {
  description = "Id of the disk."
  value       = aws_ebs_volume.this.id
}
