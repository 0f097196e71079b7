output "instance_id" {
  description = "Id of the instance."
  value       = aws_instance.this.id
}

output "availability_zone" {
  description = "Where its disks have to be."
  value       = aws_instance.this.availability_zone
}

output "role_name" {
  description = "The role that the instance has."
  value       = aws_iam_role.this.name
}

output "session" {
  description = "How to get a shell on it."
  value       = "aws ssm start-session --target ${aws_instance.this.id}"
}
