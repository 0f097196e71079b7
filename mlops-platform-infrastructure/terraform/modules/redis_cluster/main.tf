# What the online store needs of the cloud. Redis itself runs in server 2's Compose stack: one node, since the services read
# a row from one connection and the store can be filled anew from the offline store. Here are the disk of its append-only
# file, which a rewrite fills with a second copy, and an alarm for the one thing that slows every write: a disk that queues.

module "data" {
  source            = "../data_volume"
  name              = var.name
  instance_id       = var.instance_id
  availability_zone = var.availability_zone
  size_gib          = var.data_gib
  kms_key_arn       = var.kms_key_arn
  snapshots_kept    = var.snapshots_kept
}

resource "aws_cloudwatch_metric_alarm" "queue" {
  alarm_name          = "${var.name}-queue"
  alarm_description   = "The disk of the append-only file queues: Redis waits for its fsync"
  namespace           = "AWS/EBS"
  metric_name         = "VolumeQueueLength"
  dimensions          = { VolumeId = module.data.volume_id }
  statistic           = "Average"
  period              = 300
  evaluation_periods  = 3
  comparison_operator = "GreaterThanThreshold"
  threshold           = 8
  treat_missing_data  = "missing"
  alarm_actions       = var.alarm_topic_arns
  ok_actions          = var.alarm_topic_arns

  lifecycle {
    precondition {
      # Data, its log, and the log's rewrite beside what else is on the disk.
      condition     = var.data_gib >= 3 * var.memory_gib + 20
      error_message = "The disk holds Redis' log twice while it is rewritten: at least three times its memory and 20 GiB."
    }
  }
}
