# Where the state of an environment is kept, for all environments (each links to this file): an encrypted object with a
# lock beside it. Bucket, key and region differ: terraform init -backend-config=backend.hcl
terraform {
  backend "s3" {
    encrypt      = true
    use_lockfile = true
  }
}
