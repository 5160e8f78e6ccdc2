"""Read and write objects in s3:// and gs:// with pyarrow: atomic writes, retries, appended lines.

Buckets and credentials are found as Amazon's and Google's tools find them, so that none is ever
in an address, a config or a message.

Why not obstore? Version 0.12.1 was tried on 2026-11-30 against moto and gcp-storage-emulator. It
reads an object in one request instead of three and can put one on condition that none is there.
But its errors have types for some failures only: 500, 503, no connection and a refused listing are
all a GenericError, and a missing bucket is a FileNotFoundError, so that texts would be read as
here. Its retries wait within Rust, where Ctrl-C has no effect, and report nothing meanwhile, so
that the loop below would stay. It finds no AWS profile or single sign-on without boto3. In Google's
store it speaks the XML API, which the emulator lacks, so that gs:// would go untested. pyarrow
would stay for Parquet in any case, and the lease needs no put on condition: see lease.py.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from cqlray.config.secrets import without_secrets
from cqlray.errors import StorageFailure
from cqlray.storage import append_parts as parts

GIVE_UP_AFTER = 300.0  # seconds for which one operation keeps failing
SAID_AFTER = 2.0  # seconds; what passes sooner is not worth a line
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 15.0  # seconds, before jitter
PARTS_PER_MERGE = 100
THREADS = 16
# From this size on pyarrow sends an object in parts. Its stream must then be opened at once: one
# whose opening was put off and failed sends an empty object under the final name when it is
# destroyed (seen with pyarrow 26).
PART_SIZE = 10 * 2**20

_T = TypeVar("_T")
_LOG = logging.getLogger("cqlray.storage.run_directory")
_AWS = re.compile(
    r"AWS Error (\w+)(?: \(HTTP status (\d+)\))? during (\w+) operation(?:: (.*))?", re.DOTALL
)
_REFUSED = {
    "ACCESS_DENIED",
    "INCOMPLETE_SIGNATURE",
    "INVALID_ACCESS_KEY_ID",
    "INVALID_CLIENT_TOKEN_ID",
    "INVALID_SIGNATURE",
    "MISSING_AUTHENTICATION_TOKEN",
    "OPT_IN_REQUIRED",
    "REQUEST_EXPIRED",
    "REQUEST_TIME_TOO_SKEWED",
    "SIGNATURE_DOES_NOT_MATCH",
    "UNRECOGNIZED_CLIENT",
}
_MISTAKES = {
    "INVALID_ACTION",
    "INVALID_PARAMETER_VALUE",
    "NO_SUCH_BUCKET",
    "RESOURCE_NOT_FOUND",
    "VALIDATION",
}
_GOOGLE_TRANSIENT = re.compile(
    r"UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|INTERNAL|ABORTED|UNKNOWN"
)
# Reported as UNAVAILABLE if nobody is logged in.
_NO_GOOGLE_TOKEN = "Could not create a OAuth2 access token"


_CHECK_AMAZON = "check the bucket's name, AWS_REGION and AWS_ENDPOINT_URL"
_CHECK_CREDENTIALS = (
    "check that the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE or the machine's role) are right"
    " and may list, read, write and delete there"
)
_CHECK_GOOGLE = (
    "check the bucket's name, GOOGLE_APPLICATION_CREDENTIALS, and that they may list, read, write"
    " and delete there"
)


class Fault(NamedTuple):
    """What one of pyarrow's errors means."""

    transient: bool
    reason: str  # one line, without secrets
    check: str  # what the user should look at, where it is permanent


def fault(error: Exception) -> Fault:
    """Tell a transient failure from a permanent one, by pyarrow's message (it has nothing else)."""
    text = " ".join(str(error).split())
    if found := _AWS.search(text):
        return _amazon_fault(*found.groups())
    if "google::cloud" in text or "GCS" in text:
        transient = bool(_GOOGLE_TRANSIENT.search(text)) and _NO_GOOGLE_TOKEN not in text
        return Fault(transient, without_secrets(text)[:200], _CHECK_GOOGLE)
    return Fault(False, without_secrets(text)[:200], _CHECK_AMAZON)


def _amazon_fault(code: str, http_status: str | None, operation: str, details: str | None) -> Fault:
    status = int(http_status or 0)
    reason = f"{code}, HTTP status {status}" if status else code
    reason += f", during {operation}"
    if details and details != "No response body.":
        reason += f", {details.split(' (Request ID')[0][:120].rstrip('. ')}"
    refused = code in _REFUSED or status in (401, 403)
    check = _CHECK_CREDENTIALS if refused else _CHECK_AMAZON
    return Fault(_is_transient(code, status), without_secrets(reason), check)


def _is_transient(code: str, status: int) -> bool:
    if status:
        return status >= 500 or status < 300 or status in (408, 429)
    return code not in _REFUSED | _MISTAKES


class ObjectStore:
    """One bucket. Paths are `bucket/key`, as in pyarrow; every method retries transient failures.

    Raises (every method):
        StorageFailure: refused, no such bucket, or no answer for GIVE_UP_AFTER seconds.
    """

    def __init__(self, scheme: str, bucket: str) -> None:
        self.name = f"{scheme}://{bucket}"
        self.scheme, self.bucket = scheme, bucket

    def read(self, path: str, most: int | None = None) -> bytes:
        """An object's bytes, or the first `most`, all of one version of it.

        Also raises FileNotFoundError.
        """

        def get() -> bytes | None:
            filesystem = self._filesystem()
            with filesystem.open_input_file(path) as file:
                size = file.size()
                # With a size it is one request; `read()` makes several.
                data: bytes = file.read(size if most is None else min(size, most))
                with filesystem.open_input_file(path) as now:
                    return data if now.metadata() == file.metadata() else None

        # Size and content are two requests, and the object may have been replaced in between.
        while (data := self._retrying(get)) is None:
            pass
        return data

    def write(self, path: str, data: bytes) -> None:
        """Write an object: readers see the old content or all of the new, however this process
        ends.
        """

        def put() -> None:
            # Unless told otherwise, pyarrow compresses what has a name such as rows.csv.gz.
            stream = self._filesystem(in_parts=len(data) >= PART_SIZE).open_output_stream(
                path, compression=None
            )
            try:
                stream.write(data)  # all of it at once: a close can then only complete the whole
                stream.close()
            finally:
                del stream  # before the next try, as its destruction may still send something

        self._retrying(put)

    def kind(self, path: str) -> fs.FileType:
        """File, Directory (a prefix of some object, or made by `mkdir`) or NotFound."""
        return self._retrying(lambda: self._filesystem().get_file_info(path)).type

    def names(self, path: str) -> list[str]:
        """The names in a directory, sorted; none if there is nothing."""
        # In Google's store pyarrow does not list what is a directory only by the objects below it,
        # so all of those are listed.
        selector = fs.FileSelector(path, allow_not_found=True, recursive=self.scheme == "gs")
        infos = self._retrying(lambda: self._filesystem().get_file_info(selector))
        return sorted({info.path.removeprefix(f"{path}/").split("/")[0] for info in infos})

    def mkdir(self, path: str) -> None:
        """Make a directory, which is an empty object whose name ends in a slash."""
        self._retrying(lambda: self._filesystem().create_dir(path, recursive=True))

    def remove(self, path: str) -> None:
        """Delete an object, or all below a prefix; do nothing if there is neither."""
        if self.kind(path) == fs.FileType.Directory:
            # In Google's store pyarrow finally deletes the object that marks a directory, which
            # need not exist.
            with contextlib.suppress(FileNotFoundError):
                self._retrying(lambda: self._filesystem().delete_dir(path))
        else:
            self._delete(path)

    def _delete(self, path: str) -> None:
        # It may be gone when the answer to an earlier try was lost.
        with contextlib.suppress(FileNotFoundError):
            self._retrying(lambda: self._filesystem().delete_file(path))

    # -- lines that are appended -------------------------------------------------------------------

    def append(self, path: str, text: str) -> None:
        """Append whole lines, as one object in `path.d/`; no object is ever changed.

        Whenever PARTS_PER_MERGE parts have come together they are merged. An append costs a LIST
        and a PUT, and for its share of the merges about two PUTs and four cheap requests more;
        reading costs three cheap ones a part.
        """
        folder = f"{path}.d"
        listed = parts.parse(self.names(folder))
        standing = parts.standing(listed)
        self._remove_all(f"{folder}/{part.name}" for part in set(listed) - set(standing))
        number = max((part.last for part in listed), default=-1) + 1
        added = parts.Part.of(number, number)
        self.write(f"{folder}/{added.name}", text.encode())
        standing.append(added)
        while len(tail := parts.mergeable(standing, PARTS_PER_MERGE)) >= PARTS_PER_MERGE:
            merged = parts.Part.of(tail[0].first, tail[-1].last)
            self.write(f"{folder}/{merged.name}", b"".join(self._read_all(folder, tail)))
            self._remove_all(f"{folder}/{part.name}" for part in tail)
            standing[-len(tail) :] = [merged]

    def read_appended(self, path: str) -> str:
        """Everything that was appended, in order; empty if nothing was."""
        folder = f"{path}.d"
        for _ in range(10):
            try:
                return b"".join(
                    self._read_all(folder, parts.standing(parts.parse(self.names(folder))))
                ).decode()
            except FileNotFoundError:  # merged by the writer since it was listed
                continue
        raise StorageFailure(
            f"{self.scheme}://{folder}: its parts keep disappearing; is another process writing or"
            " deleting there?"
        )

    def _read_all(self, folder: str, listed: list[parts.Part]) -> list[bytes]:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(lambda part: self.read(f"{folder}/{part.name}"), listed))

    def _remove_all(self, paths: Iterable[str]) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self._delete, paths))

    # -- pyarrow -----------------------------------------------------------------------------------

    def _filesystem(self, in_parts: bool = False) -> Any:
        if self.scheme == "gs":
            return _google(os.environ.get("STORAGE_EMULATOR_HOST"))
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        return _amazon(self.bucket, endpoint, region, in_parts)

    def _retrying(self, work: Callable[[], _T]) -> _T:
        """Do the work; repeat it after growing pauses while its failure may be transient."""
        started, pause, said = time.monotonic(), FIRST_PAUSE, False
        while True:
            try:
                done = work()
                if said:
                    _LOG.warning(
                        "%s answers again after %.0f s", self.name, time.monotonic() - started
                    )
                return done
            except FileNotFoundError:
                raise
            except (OSError, pa.ArrowException) as error:
                what, waited = fault(error), time.monotonic() - started
            if not what.transient:
                raise StorageFailure(f"{self.name}: {what.reason}; {what.check}")
            if waited + pause > GIVE_UP_AFTER:
                raise StorageFailure(
                    f"{self.name}: no answer for {waited:.0f} s ({what.reason}); is it there, and"
                    " reachable from here?"
                )
            if waited > SAID_AFTER and not said:
                said = True
                _LOG.warning(
                    "%s: %s; trying again for %.0f s",
                    self.name,
                    what.reason,
                    GIVE_UP_AFTER - waited,
                )
            time.sleep(pause * random.SystemRandom().uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)


@functools.cache
def _amazon(
    bucket: str, endpoint: str | None, region: str | None, in_parts: bool
) -> fs.S3FileSystem:
    """The S3 file system; we do the retries, except those of a large object's parts, so that one
    failed part does not resend all.
    """
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=3 if in_parts else 1)
    options: dict[str, Any] = {
        "allow_delayed_open": not in_parts,
        "connect_timeout": 5,
        "request_timeout": 20,
    }
    if endpoint:
        url = urlsplit(endpoint if "//" in endpoint else f"https://{endpoint}")
        options |= {"scheme": url.scheme, "endpoint_override": url.netloc + url.path.rstrip("/")}
    elif region is None:
        region = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(region=region, retry_strategy=retries, **options)


@functools.cache
def _google(emulator: str | None) -> fs.GcsFileSystem:
    """The Google file system, or the emulator that STORAGE_EMULATOR_HOST names."""
    options: dict[str, Any] = {"retry_time_limit": timedelta(seconds=20)}
    if emulator:
        url = urlsplit(emulator if "//" in emulator else f"http://{emulator}")
        options |= {"anonymous": True, "scheme": url.scheme, "endpoint_override": url.netloc}
    return fs.GcsFileSystem(**options)
