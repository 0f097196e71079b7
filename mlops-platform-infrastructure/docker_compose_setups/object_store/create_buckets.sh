#!/usr/bin/env bash
# Create the buckets of the arguments that do not stand yet, and write, read and delete one object in each. Safe to
# rerun. Address and keys come from the environment.
set -euo pipefail
export RCLONE_CONFIG_S3_TYPE=s3 RCLONE_CONFIG_S3_PROVIDER=Other RCLONE_CONFIG_S3_ENV_AUTH=true
export RCLONE_CONFIG_S3_ENDPOINT="$S3_ENDPOINT_URL" RCLONE_CONFIG_S3_REGION="$AWS_DEFAULT_REGION"

for bucket; do
    rclone mkdir "s3:$bucket"
    printf '%s' "$bucket" | rclone rcat "s3:$bucket/.probe"
    if [[ "$(rclone cat "s3:$bucket/.probe")" != "$bucket" ]]; then
        echo "bucket $bucket: what was written does not come back" >&2
        exit 1
    fi
    rclone deletefile "s3:$bucket/.probe"
    echo "bucket $bucket: ready"
done
