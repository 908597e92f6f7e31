from __future__ import annotations

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from transforms.listing import list_media
from transforms.storage import locate


class HostedStore(MemoryFileSystem):
    """A store whose URLs name a host, as those of FTP do."""

    protocol = "hosted"

    def __init__(self, host, **options):
        super().__init__(**options)
        self.host = host

    @classmethod
    def _strip_protocol(cls, path):
        path = path.removeprefix("hosted://host") if path.startswith("hosted://") else path
        return f"/{path.strip('/')}".rstrip("/")

    @staticmethod
    def _get_kwargs_from_urls(url):
        return {"host": url.split("/")[2]} if url.startswith("hosted://h") else {}


@pytest.fixture
def hosted():
    fsspec.register_implementation("hosted", HostedStore, clobber=True)
    store = HostedStore("host")
    store.pipe_file("/hosted-shelf/a.jpg", b"12")
    yield store
    store.rm("/hosted-shelf", recursive=True)


def test_what_a_url_tells_of_its_store_reaches_the_client(hosted, monkeypatch):
    filesystem, path = locate("hosted://host/hosted-shelf/a.jpg")
    assert (filesystem.host, path) == ("host", "/hosted-shelf/a.jpg")
    monkeypatch.setattr("fsspec.implementations.ftp.FTPFileSystem._connect", lambda self: None)
    ftp, path = locate("ftp://me:secret@example.com:2121/deep/a.jpg")
    assert (ftp.host, ftp.port, ftp.cred[:2], path) == (
        "example.com", 2121, ("me", "secret"), "/deep/a.jpg",
    )  # fmt: skip
    over, _ = locate("ftp://me@example.com/a.jpg", username="you")
    assert over.cred[0] == "you"


@pytest.mark.parametrize("place", ["", "/", "/hosted-shelf", "/hosted-shelf/*.jpg"])
def test_uris_keep_their_host(hosted, place):
    uris = [ref.uri for ref in list_media(f"hosted://host{place}")]
    assert "hosted://host/hosted-shelf/a.jpg" in uris
    assert locate(uris[0])[0].host == "host"


def test_a_client_that_lacks_options_is_a_value_error(hosted):
    with pytest.raises(ValueError, match=r"^hosted:// needs other storage options: .*host"):
        locate("hosted://nobody/a.jpg")


@pytest.mark.parametrize("scheme", ["s3", "gs", "gcs", "http", "https", "memory"])
def test_names_of_object_stores_are_literal(scheme, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    name = "bucket/x?versionId=1.jpg"
    filesystem, path = locate(f"{scheme}://{name}")
    assert path.endswith(name)
    assert not getattr(filesystem, "version_aware", False)
