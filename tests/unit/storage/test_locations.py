"""Locations on disk and in an object store: moto's S3 behind a proxy that fails as asked."""

from __future__ import annotations

import http.client
import http.server
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cqlray.errors import UserError
from cqlray.storage import append_parts as parts
from cqlray.storage import object_store
from cqlray.storage.locations import Location

moto_server = pytest.importorskip("moto.server")
boto3 = pytest.importorskip("boto3")
SECRET = "wJalrXUtnFEMI/K7MDENG"
FAILURES = {500: b"InternalError", 503: b"SlowDown", 403: b"AccessDenied"}


class Proxy:
    """Between pyarrow and moto: answers with a failure, or refuses connections, as its fields
    say.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.requests: list[tuple[str, str]] = []
        self.calm()
        self.server = self._listen(0)
        self.port = self.server.server_port

    def calm(self) -> None:
        self.status, self.share, self.after, self.only = 500, 0.0, None, ""
        self.random = random.Random(0)
        self.down = False
        self.before_next_get: Callable[[], None] | None = None
        self.requests.clear()

    def fails(self, method: str) -> bool:
        """Whether to fail this request: one of `share`, and all from number `after` on; of the
        method `only`.
        """
        if self.only and method != self.only:
            return False
        return self.random.random() < self.share or (
            self.after is not None and len(self.requests) > self.after
        )

    def outage(self, seconds: float) -> None:
        """Refuse connections for so long."""
        self.down = True
        self.server.shutdown()
        self.server.server_close()

        def back() -> None:
            self.down = False
            self.server = self._listen(self.port)

        threading.Timer(seconds, back).start()

    def _listen(self, port: int) -> http.server.ThreadingHTTPServer:
        proxy = self

        class Bound(Handler):
            owner = proxy

        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Bound)
        server.daemon_threads = True
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        return server


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection to the proxy."""

    owner: Proxy
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def handle_expect_100(self) -> bool:
        done = super().handle_expect_100()
        self.wfile.flush()
        return done

    def do_GET(self) -> None:
        body = self._body()
        self.owner.requests.append((self.command, self.path))
        if self.owner.down:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif self.owner.fails(self.command):
            status = self.owner.status
            text = (
                b"<Error><Code>"
                + FAILURES[status]
                + b"</Code><Message>on purpose</Message></Error>"
            )
            self._answer(status, [("Content-Type", "application/xml")], text)
        else:
            if self.command == "GET" and self.owner.before_next_get:
                hook, self.owner.before_next_get = self.owner.before_next_get, None
                hook()
            self._pass_on(body)

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _pass_on(self, body: bytes) -> None:
        headers = {
            k: v
            for k, v in self.headers.items()
            if k.lower() not in ("transfer-encoding", "expect")
        }
        connection = http.client.HTTPConnection(*self.owner.target)
        connection.request(
            self.command, self.path, body, headers | {"Content-Length": str(len(body))}
        )
        response = connection.getresponse()
        content = response.read()
        connection.close()
        hop = ("content-length", "transfer-encoding", "connection", "server", "date")
        kept = [(k, v) for k, v in response.getheaders() if k.lower() not in hop]
        length = response.getheader("Content-Length") if self.command == "HEAD" else None
        self._answer(response.status, kept, content, length)

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, length: str | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()


@pytest.fixture(scope="module")
def server() -> Iterator[Proxy]:
    from werkzeug.serving import WSGIRequestHandler

    moto = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    proxy = Proxy(moto.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        # it answers in two packets
        patch.setattr(WSGIRequestHandler, "disable_nagle_algorithm", True)
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        patch.setenv("AWS_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield proxy
    moto.stop()


@pytest.fixture
def proxy(server: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr(object_store, "FIRST_PAUSE", 0.02)
    server.calm()
    yield server
    server.calm()


@pytest.fixture
def remote(proxy: Proxy, request: pytest.FixtureRequest) -> Location:
    return Location.parse(f"s3://bucket/{request.node.name}-{random.getrandbits(32)}")


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "GIVE_UP_AFTER", 0.0)


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "text", "name", "parent"),
    [
        ("s3://bucket/runs/x.y", "s3://bucket/runs/x.y", "x.y", "s3://bucket/runs"),
        ("s3://bucket", "s3://bucket", "bucket", "s3://bucket"),
        ("gs://b//a/./c/", "gs://b/a/c", "c", "gs://b/a"),
        ("runs/x", "runs/x", "x", "runs"),
        (Path("/data/x"), "/data/x", "x", "/data"),
    ],
)
def test_addresses(address: str | Path, text: str, name: str, parent: str) -> None:
    location = Location.parse(address)
    assert (str(location), location.name, str(location.parent)) == (text, name, parent)
    assert Location.parse(str(location)) == location == Location.parse(location)
    assert str(location / "a" / "b.c") == f"{text}/a/b.c"
    assert (location / "b.c").stem == "b"


@pytest.mark.parametrize(
    "address",
    [
        "ftp://host/x",
        "s3://",
        "s3:///x",
        "s3://b/x?endpoint_override=h",
        "s3://b/../x",
        f"s3://key:{SECRET}@b/x",
        "gs://b:80/x",
    ],
)
def test_addresses_that_cannot_be_are_refused_without_their_secrets(address: str) -> None:
    with pytest.raises(UserError) as raised:
        Location.parse(address)
    assert SECRET not in str(raised.value) and "\n" not in str(raised.value)


def test_a_local_place_serves_as_a_path_and_a_remote_one_does_not(tmp_path: Path) -> None:
    assert Path(Location.parse(tmp_path) / "x") == tmp_path / "x"
    with pytest.raises(UserError, match="a local path is needed here"):
        os.fspath(Location.parse("s3://bucket/x"))
    assert Location.parse("x").absolute() == Location.parse(Path.cwd() / "x")


# -- the same on disk and in a store ---------------------------------------------------------------

FOLDERS = ("", "a", "a/b", "c")
paths = st.builds(
    lambda folder, name: f"{folder}/{name}".lstrip("/"),
    st.sampled_from(FOLDERS),
    st.sampled_from("xy"),
)
operations = st.one_of(
    st.tuples(st.just("write"), paths, st.binary(max_size=20)),
    st.tuples(st.just("remove"), st.one_of(paths, st.sampled_from(FOLDERS[1:]))),
    st.tuples(st.just("mkdir"), st.sampled_from(FOLDERS[1:])),
    st.tuples(
        st.just("append"),
        st.sampled_from(["rows.jsonl", "c/rows.jsonl"]),
        st.text(max_size=9).map(repr),
    ),
)


def act(root: Location, operation: tuple[Any, ...]) -> None:
    name, path, *rest = operation
    if name == "append":
        (root / path).append(rest[0] + "\n")
    else:
        getattr(root / path, name)(*rest)


def seen(root: Location) -> dict[str, Any]:
    """All that can be seen of the places that the operations touch."""
    view: dict[str, Any] = {}
    for folder in FOLDERS:
        here = root / folder if folder else root
        if folder:
            view[folder] = (here.exists(), here.is_file(), here.is_dir())
        view[f"{folder}/*"] = [
            str(p).removeprefix(str(root)) for p in here.iterdir() if not p.name.startswith("rows")
        ]
        view[f"{folder}/x*"] = [p.name for p in here.glob("x*")]
        for name in "xy":
            place = here / name
            view[f"{folder}/{name}"] = (
                place.read_bytes() if place.is_file() else (place.exists(), place.is_dir())
            )
    return view | {name: (root / name).read_appended() for name in ("rows.jsonl", "c/rows.jsonl")}


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(operations, max_size=8))
def test_disk_and_store_behave_alike(
    proxy: Proxy, tmp_path: Path, sequence: list[tuple[Any, ...]]
) -> None:
    unique = uuid.uuid4().hex  # random is Hypothesis's, which repeats it
    local, remote = Location.parse(tmp_path / unique), Location.parse(f"s3://bucket/alike/{unique}")
    for place in (local, remote):
        place.mkdir()
        for operation in sequence:
            act(place, operation)
    assert seen(local) == seen(remote)


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_what_is_not_there(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    place = Location.parse(tmp_path) if kind == "local" else request.getfixturevalue("remote")
    nothing = place / "nothing"
    with pytest.raises(FileNotFoundError):
        nothing.read_bytes()
    with pytest.raises(FileNotFoundError):
        nothing.read_text()
    assert not nothing.exists() and list(nothing.iterdir()) == [] and nothing.read_appended() == ""
    nothing.remove()


@pytest.mark.parametrize("kind", ["local", "remote"])
@pytest.mark.parametrize("name", ["rows.csv.gz", "rows.zst"])
def test_bytes_are_written_as_they_are_whatever_the_name(
    name: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    place = Location.parse(tmp_path) if kind == "local" else request.getfixturevalue("remote")
    (place / name).write(b"as it is")
    assert (place / name).read_bytes() == b"as it is"


# -- whole or not there ----------------------------------------------------------------------------


def test_a_failed_local_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    place = Location.parse(tmp_path / "file")
    place.write(b"old")
    with pytest.raises(TypeError):
        place.write("not bytes")  # type: ignore[arg-type]
    assert place.read_bytes() == b"old"
    assert list(place.parent.iterdir()) == [place]


def test_a_line_cut_off_on_disk_spoils_no_other(tmp_path: Path) -> None:
    place = Location.parse(tmp_path / "run" / "rows.jsonl")
    place.append("1\n2\n")
    (tmp_path / "run" / "rows.jsonl").write_text("1\n2")
    place.append("3\n")
    assert place.read_appended() == "1\n2\n3\n"


@pytest.mark.parametrize("size", [100, 11 * 2**20])
@pytest.mark.parametrize("passed", range(5))
def test_an_upload_that_fails_at_any_request_leaves_the_old_object(
    size: int, passed: int, remote: Location, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = remote / "x"
    place.write(b"old")
    impatient(monkeypatch)
    proxy.requests.clear()
    proxy.after = passed
    new = os.urandom(size)
    try:
        place.write(new)
        written = True  # it needed no more requests than were let through
    except UserError as error:
        assert "INTERNAL_FAILURE" in str(error) or "500" in str(error)
        written = False
    proxy.calm()
    assert place.read_bytes() == (new if written else b"old")
    # Of the larger one: begin, two parts, finish.
    assert written == (passed >= (1 if size == 100 else 4))


@pytest.mark.parametrize("new", [b"new!" * 1000, b"n", b"long" * 100_000])
def test_a_reader_sees_all_of_one_version(new: bytes, remote: Location, proxy: Proxy) -> None:
    place = remote / "x"
    place.write(b"old!" * 1000)
    proxy.before_next_get = lambda: place.write(new)
    assert place.read_bytes() == new


# -- failures that pass, and that do not -----------------------------------------------------------


def test_a_share_of_failures_loses_and_doubles_nothing(
    remote: Location, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PARTS_PER_MERGE", 3)
    monkeypatch.setattr(object_store, "LONGEST_PAUSE", 0.1)
    proxy.share, proxy.status = 0.3, 503
    for index in range(7):
        (remote / f"{index:02d}").write(str(index).encode())
        (remote / "rows.jsonl").append(f"{index}\n")
    (remote / "03").remove()
    assert [p.read_bytes() for p in remote.glob("[01]*")] == [
        str(i).encode() for i in range(7) if i != 3
    ]
    assert (remote / "rows.jsonl").read_appended().split() == [str(i) for i in range(7)]
    assert (remote / "00").is_file() and not (remote / "03").exists()


def assert_outage_is_waited_for(
    seconds: float, remote: Location, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    (remote / "rows.jsonl").append("0\n")
    proxy.outage(seconds)
    started = time.monotonic()
    (remote / "rows.jsonl").append("1\n")
    (remote / "big").write(b"1" * (11 * 2**20))
    waited = time.monotonic() - started
    print(f"an outage of {seconds:.0f} s held the writer for {waited:.1f} s")
    assert seconds - 1 < waited < seconds + object_store.LONGEST_PAUSE + 5
    assert (remote / "rows.jsonl").read_appended() == "0\n1\n"
    assert (remote / "big").read_bytes() == b"1" * (11 * 2**20)
    assert (
        "trying again" in caplog.text
        and "answers again" in caplog.text
        and SECRET not in caplog.text
    )


def test_an_outage_is_waited_for(
    remote: Location,
    proxy: Proxy,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two seconds; a minute in nightly/test_bucket_runs.py."""
    monkeypatch.setattr(object_store, "SAID_AFTER", 0.5)
    assert_outage_is_waited_for(2.0, remote, proxy, caplog)


def test_what_does_not_pass_is_one_line_at_once(remote: Location, proxy: Proxy) -> None:
    started = time.monotonic()
    with pytest.raises(
        UserError, match=r"^s3://no-such-bucket: NO_SUCH_BUCKET.*check the bucket's name"
    ):
        Location.parse("s3://no-such-bucket/x").write(b"x")
    with pytest.raises(UserError, match=r"^s3://no-such-bucket: "):
        Location.parse("s3://no-such-bucket/x").mkdir()
    proxy.status, proxy.share = 403, 1.0
    for work in (
        remote.exists,
        remote.mkdir,
        lambda: list(remote.iterdir()),
        remote.read_bytes,
        lambda: remote.write(b"x"),
    ):
        with pytest.raises(
            UserError, match=r"^s3://bucket: ACCESS_DENIED.*AWS_ACCESS_KEY_ID.*may list, read"
        ) as raised:
            work()
        assert "\n" not in str(raised.value) and SECRET not in str(raised.value)
    assert time.monotonic() - started < 5


def test_no_answer_ends_in_one_line(
    remote: Location, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "GIVE_UP_AFTER", 0.5)
    proxy.outage(1.5)
    with pytest.raises(UserError, match=r"^s3://bucket: no answer for \d s \(NETWORK_CONNECTION"):
        remote.write(b"x")
    while proxy.down:
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("text", "transient"),
    [
        ("AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate.", True),
        (
            "AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body.",
            True,
        ),
        ("AWS Error UNKNOWN (HTTP status 400) during PutObject operation: ExpiredToken", False),
        (
            "AWS Error UNKNOWN (HTTP status 301) during ListObjectsV2 operation: PermanentRedirect",
            False,
        ),
        (
            (
                "AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 6, Couldn't"
                " resolve host name"
            ),
            True,
        ),
        ("google::cloud::Status(UNAVAILABLE: Retry policy exhausted)", True),
        (
            (
                "google::cloud::Status(UNAVAILABLE: Retry policy exhausted, Could not create a"
                " OAuth2 access token to"
            ),
            False,
        ),
        (
            (
                "google::cloud::Status(PERMISSION_DENIED: caller does not have"
                " storage.objects.create access)"
            ),
            False,
        ),
        (
            "Bucket 'x' not found. To create buckets, enable the allow_bucket_creation option.",
            False,
        ),
    ],
)
def test_what_may_pass(text: str, transient: bool) -> None:
    assert object_store.fault(OSError(text)).transient == transient


def test_secrets_are_taken_out_of_what_libraries_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    said = object_store.fault(OSError(f"cannot use {SECRET} at http://user:{SECRET}x@host"))
    assert SECRET not in said.reason and "user:" not in said.reason


# -- appended lines --------------------------------------------------------------------------------


def test_parts_are_merged_and_read_in_order(
    remote: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PARTS_PER_MERGE", 10)
    rows = remote / "rows.jsonl"
    for index in range(34):
        rows.append(f"{index}\n")
    assert rows.read_appended().split() == [str(index) for index in range(34)]
    assert [p.name[:19] for p in (remote / "rows.jsonl.d").iterdir()][:4] == [
        "000000000-000000009",
        "000000010-000000019",
        "000000020-000000029",
        "000000030-000000030",
    ]


def test_a_kill_between_merging_and_deleting_doubles_nothing(
    remote: Location, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PARTS_PER_MERGE", 4)
    rows = remote / "rows.jsonl"
    for index in range(3):
        rows.append(f"{index}\n")
    with monkeypatch.context() as patch:
        impatient(patch)
        proxy.only, proxy.share = "DELETE", 1.0
        with pytest.raises(UserError):
            rows.append("3\n")
    proxy.calm()
    assert len(list((remote / "rows.jsonl.d").iterdir())) == 5
    assert rows.read_appended() == "0\n1\n2\n3\n"
    rows.append("4\n")
    assert rows.read_appended() == "0\n1\n2\n3\n4\n"
    assert len(list((remote / "rows.jsonl.d").iterdir())) == 2


def test_a_reader_beside_a_merging_writer_sees_a_beginning(
    remote: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PARTS_PER_MERGE", 3)
    rows = remote / "rows.jsonl"
    writer = threading.Thread(target=lambda: [rows.append(f"{index}\n") for index in range(20)])
    writer.start()
    before = 0
    while writer.is_alive():
        seen = rows.read_appended().split()
        assert seen == [str(index) for index in range(len(seen))] and len(seen) >= before
        before = len(seen)
    writer.join()
    assert len(rows.read_appended().split()) == 20


part_ranges = st.builds(
    lambda first, width: (first, first + width - 1), st.integers(0, 40), st.sampled_from([1, 4, 16])
)


@given(st.lists(part_ranges, max_size=30, unique=True))
def test_standing_parts_hold_every_append_and_no_wider_one_holds_them(
    ranges: list[tuple[int, int]],
) -> None:
    # Merges nest: a range of 4 begins at a multiple of 4, one of 16 at a multiple of 16.
    nested = {
        (first - first % width, first - first % width + width - 1)
        for first, last in ranges
        for width in [last - first + 1]
    }
    listed = [parts.Part.of(*one) for one in nested]
    standing = parts.standing(parts.parse([part.name for part in listed]))
    held = [number for part in standing for number in range(part.first, part.last + 1)]
    assert held == sorted({number for first, last in nested for number in range(first, last + 1)})
