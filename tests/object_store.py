"""An object store for tests: moto's, which speaks S3 and runs in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cqlray.storage.locations import Location


@contextmanager
def s3_bucket(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[Location]:
    """A new bucket, which the environment's variables point to."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(
        ip_address="127.0.0.1", port=0, verbose=False
    )
    server.start()
    try:
        host, port = server.get_host_and_port()
        keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_REGION": "us-east-1"}
        for variable, value in {**keys, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            monkeypatch.setenv(variable, value)
        client = pytest.importorskip("boto3").client("s3", region_name="us-east-1")
        client.create_bucket(Bucket=name)
        yield Location.parse(f"s3://{name}")
    finally:
        server.stop()
