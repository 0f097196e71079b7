output "instance_id" {
  description = "Id of the instance."
  value       = module.instance.instance_id
}

output "availability_zone" {
  description = "Where its disks have to be."
  value       = module.instance.availability_zone
}

output "session" {
  description = "How to get a shell on it."
  value       = module.instance.session
}

output "web" {
  description = "How to reach a web interface that binds to the machine itself: Airflow 8080, Jenkins 8090."
  value       = "aws ssm start-session --target ${module.instance.instance_id} --document-name AWS-StartPortForwardingSession --parameters portNumber=8080,localPortNumber=8080"
}
