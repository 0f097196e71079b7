# Server 1, which holds what can't be computed again: PostgreSQL's tables beside the log and the objects. The machine, the
# disk that survives it, and a bucket for backups that nobody can take back.

module "instance" {
  source      = "../compute_instance"
  server      = var.server
  user_data   = var.user_data
  vpc_id      = var.vpc_id
  subnet_id   = var.subnet_id
  ami_id      = var.ami_id
  kms_key_arn = var.kms_key_arn
  protected   = var.protected
}

module "data" {
  source            = "../data_volume"
  name              = "${var.server.name}-data"
  instance_id       = module.instance.instance_id
  availability_zone = module.instance.availability_zone
  size_gib          = var.server.data_gib
  iops              = var.iops
  kms_key_arn       = var.kms_key_arn
  snapshots_kept    = var.snapshots_kept
}

resource "aws_s3_bucket" "backups" {
  #checkov:skip=CKV_AWS_144:backups stand apart from the servers already; a copy in another region is a decision of its own
  #checkov:skip=CKV2_AWS_62:nobody waits for a backup to arrive; the drill looks whether it can be restored
  #checkov:skip=CKV_AWS_18:who calls the bucket is in the account's CloudTrail; a log bucket would need one for itself
  bucket              = var.backup_bucket
  object_lock_enabled = true

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_s3_bucket_versioning" "backups" {
  bucket = aws_s3_bucket.backups.id
  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_object_lock_configuration" "backups" {
  bucket = aws_s3_bucket.backups.id
  rule {
    default_retention {
      mode = "COMPLIANCE"
      days = var.backup_days.locked
    }
  }
  depends_on = [aws_s3_bucket_versioning.backups]
}

resource "aws_s3_bucket_server_side_encryption_configuration" "backups" {
  bucket = aws_s3_bucket.backups.id
  rule {
    bucket_key_enabled = true
    apply_server_side_encryption_by_default {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = var.kms_key_arn
    }
  }
}

resource "aws_s3_bucket_public_access_block" "backups" {
  bucket                  = aws_s3_bucket.backups.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_lifecycle_configuration" "backups" {
  bucket = aws_s3_bucket.backups.id
  rule {
    id     = "old-backups"
    status = "Enabled"
    filter {}
    expiration {
      days = var.backup_days.kept
    }
    noncurrent_version_expiration {
      noncurrent_days = 1
    }
    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }
  }
  depends_on = [aws_s3_bucket_versioning.backups]
}

resource "aws_s3_bucket_policy" "backups" {
  bucket = aws_s3_bucket.backups.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "EncryptedConnectionsOnly"
      Effect    = "Deny"
      Principal = "*"
      Action    = "s3:*"
      Resource  = [aws_s3_bucket.backups.arn, "${aws_s3_bucket.backups.arn}/*"]
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }]
  })
}

# The server writes backups and reads them back; deleting is left to their age.
resource "aws_iam_role_policy" "backups" {
  name = "backups"
  role = module.instance.role_name
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Effect   = "Allow"
        Action   = ["s3:ListBucket"]
        Resource = [aws_s3_bucket.backups.arn]
      },
      {
        Effect   = "Allow"
        Action   = ["s3:GetObject", "s3:PutObject"]
        Resource = ["${aws_s3_bucket.backups.arn}/*"]
      },
      {
        Effect   = "Allow"
        Action   = ["kms:Decrypt", "kms:GenerateDataKey"]
        Resource = [var.kms_key_arn]
      },
    ]
  })
}
