# One server: an instance without public address, whose disks are encrypted, whose metadata answers to sessions alone, and
# which is reached through the Session Manager. What it may be asked on, and whom it asks, is a rule each.

resource "aws_instance" "this" {
  ami                         = var.ami_id
  instance_type               = var.server.instance_type
  subnet_id                   = var.subnet_id
  private_ip                  = var.server.address
  associate_public_ip_address = false
  vpc_security_group_ids      = [aws_security_group.this.id]
  iam_instance_profile        = aws_iam_instance_profile.this.name
  disable_api_termination     = var.protected
  ebs_optimized               = true
  monitoring                  = true
  user_data                   = var.user_data

  metadata_options {
    http_endpoint = "enabled"
    http_tokens   = "required"
    # One hop: the machine itself, and no container on it.
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "disabled"
  }

  root_block_device {
    volume_type           = "gp3"
    volume_size           = 30
    encrypted             = true
    kms_key_id            = var.kms_key_arn
    delete_on_termination = true
  }

  tags        = { Name = var.server.name, Title = var.server.title }
  volume_tags = { Name = "${var.server.name}-root" }

  lifecycle {
    # A newer image or first start is no reason to replace a machine that runs.
    ignore_changes = [ami, user_data]
  }
}

resource "aws_security_group" "this" {
  name        = var.server.name
  description = "What server ${var.server.title} is asked on, and whom it asks"
  vpc_id      = var.vpc_id
  tags        = { Name = var.server.name }
}

resource "aws_vpc_security_group_ingress_rule" "this" {
  for_each          = var.server.ingress
  security_group_id = aws_security_group.this.id
  description       = each.value.description
  ip_protocol       = "tcp"
  from_port         = each.value.port
  to_port           = each.value.port
  cidr_ipv4         = each.value.network
}

resource "aws_vpc_security_group_egress_rule" "this" {
  for_each          = var.server.egress
  security_group_id = aws_security_group.this.id
  description       = each.value.description
  ip_protocol       = "tcp"
  from_port         = each.value.port
  to_port           = each.value.port
  cidr_ipv4         = each.value.network
}

resource "aws_iam_role" "this" {
  name = var.server.name
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ec2.amazonaws.com" }
    }]
  })
}

resource "aws_iam_role_policy_attachment" "session_manager" {
  role       = aws_iam_role.this.name
  policy_arn = "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"
}

resource "aws_iam_instance_profile" "this" {
  name = var.server.name
  role = aws_iam_role.this.name
}
