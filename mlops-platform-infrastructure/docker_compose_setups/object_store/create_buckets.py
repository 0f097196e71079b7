"""Create the buckets named on the command line that do not stand yet, and write, read and delete one object."""

from __future__ import annotations

import os
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError


def main(names: list[str]) -> int:
    """Create each bucket once; an object that comes back proves that the store takes data."""
    client = boto3.client(
        "s3",
        endpoint_url=os.environ["S3_ENDPOINT_URL"],
        config=Config(connect_timeout=5, read_timeout=20, retries={"max_attempts": 5}),
    )
    standing = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in names:
        if name not in standing:
            try:
                client.create_bucket(Bucket=name)
            except ClientError as error:
                # Another run of this job was faster.
                if error.response["Error"]["Code"] not in {"BucketAlreadyExists", "BucketAlreadyOwnedByYou"}:
                    raise
        probe = {"Bucket": name, "Key": ".probe"}
        client.put_object(**probe, Body=name.encode())
        if client.get_object(**probe)["Body"].read() != name.encode():
            print(f"bucket {name}: what was written does not come back", file=sys.stderr)
            return 1
        client.delete_object(**probe)
        print(f"bucket {name}: {'there' if name in standing else 'created'}, writable", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
