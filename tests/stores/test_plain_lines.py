"""Stores whose settings lead over a line that anybody can read: told from those that do not, and said."""

import pytest

import stores
from engine.adapters import parse_config
from stores._plain import plain_http

KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
SAS = "SharedAccessSignature=sv=2024-11-04&ss=b&srt=co&sp=rwdl&se=2099-01-01T00:00:00Z&sig=c2VjcmV0"


@pytest.mark.parametrize(
    ("kind", "values", "host"),
    [
        ("s3", {"bucket": "bucket", "endpoint": "http://store.example:9000"}, "store.example"),
        ("s3", {"bucket": "bucket", "endpoint": "HTTP://10.0.0.7"}, "10.0.0.7"),
        ("s3", {"bucket": "bucket", "endpoint": "https://store.example"}, ""),
        ("s3", {"bucket": "bucket", "endpoint": "http://127.0.0.1:8333"}, ""),
        ("s3", {"bucket": "bucket", "endpoint": "http://[::1]:8333"}, ""),
        ("s3", {"bucket": "bucket"}, ""),
        ("gcs", {"bucket": "bucket", "endpoint": "http://gcs.example"}, "gcs.example"),
        (
            "azure",
            {"container": "container", "connection_string": f"BlobEndpoint=http://a.example/;{SAS}"},
            "a.example",
        ),
        ("azure", {"container": "container", "connection_string": f"BlobEndpoint=https://a.example/;{SAS}"}, ""),
        (
            "azure",
            {
                "container": "container",
                "connection_string": f"DefaultEndpointsProtocol=http;AccountName=a;AccountKey={KEY}",
            },
            "blob storage of the account",
        ),
        (
            "azure",
            {
                "container": "container",
                "connection_string": f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={KEY}",
            },
            "",
        ),
        ("local", {"path": "/srv/http://store"}, ""),
    ],
)
def test_plain_lines_are_told(kind: str, values: dict[str, str], host: str) -> None:
    """Goal: http beyond this host is seen wherever it is written, and no secret is given away. Method: settings of each kind."""
    config = parse_config(stores.load(kind).Config, values)
    assert plain_http(config) == host
