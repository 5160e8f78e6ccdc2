"""As much of a W&B server as its client asks for when it resumes a run and appends rows: the
protocol of wandb 0.31.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = {"id": "E", "name": "someone"}
# by id: history, lines as sent; config, summary and what the run was begun with
Runs = dict[str, dict[str, Any]]


@contextmanager
def wandb_server() -> Iterator[tuple[str, Runs]]:
    """Its address and what it was sent."""
    runs: Runs = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path.endswith("/file_stream"):
                _append(runs[self.path.split("/")[-2]], json.loads(body).get("files") or {})
            asked = json.loads(body) if self.path.endswith("/graphql") else {}
            address = f"http://{self.headers['Host']}"
            self._answer(
                {
                    "data": _reply(
                        runs, asked.get("query", ""), asked.get("variables") or {}, address
                    )
                }
            )

        do_PUT = do_POST

        def _answer(self, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", runs
    finally:
        server.shutdown()
        server.server_close()


def _append(run: dict[str, Any], files: dict[str, Any]) -> None:
    for name, chunk in files.items():
        if name == "wandb-history.jsonl":
            run["history"][chunk["offset"] : chunk["offset"] + len(chunk["content"])] = chunk[
                "content"
            ]
        elif name == "wandb-summary.json":
            run["summary"] = chunk["content"][-1]


def _reply(runs: Runs, query: str, variables: dict[str, Any], address: str) -> dict[str, Any]:
    name = variables.get("name")
    if "upsertBucket" in query:
        inserted = name not in runs
        run = runs.setdefault(str(name), {"history": [], "summary": "{}"})
        run |= {key: value for key, value in variables.items() if value is not None}
        project = {"id": "P", "name": run["project"], "entity": ENTITY}
        return {
            "upsertBucket": {"bucket": _bucket(run) | {"project": project}, "inserted": inserted}
        }
    if "RunResumeStatus" in query:
        bucket = _bucket(runs[str(name)]) if name in runs else None
        return {
            "model": {"id": "P", "name": variables["project"], "entity": ENTITY, "bucket": bucket}
        }
    if "createRunFiles" in query:
        files = [{"name": file, "uploadUrl": f"{address}/upload"} for file in variables["files"]]
        return {"createRunFiles": {"runID": "R", "uploadHeaders": [], "files": files}}
    if "serverInfo" in query:
        return {"serverInfo": {"features": []}}
    return {
        "viewer": {
            "id": "U",
            "entity": ENTITY["name"],
            "username": ENTITY["name"],
            "flags": "{}",
            "teams": {"edges": []},
        }
    }


def _bucket(run: dict[str, Any]) -> dict[str, Any]:
    history = run["history"]
    return {
        "id": f"R{run['name']}",
        "name": run["name"],
        "displayName": run.get("displayName"),
        "config": run.get("config"),
        "summaryMetrics": run["summary"],
        "historyLineCount": len(history),
        "historyTail": json.dumps(history[-1:]),
        "eventsLineCount": 0,
        "eventsTail": "[]",
        "logLineCount": 0,
        "tags": run.get("tags") or [],
        "wandbConfig": '{"t": 1}',
    }
