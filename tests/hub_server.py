"""A server with the part of the Hub's API that `huggingface_hub` uses, which fails on demand.

`python -m tests.hub_server` starts one and prints its address, for HF_ENDPOINT.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LARGE = 10_000  # bytes; larger files go to the large file storage
TOKENS = {"hf_writer": "writer", "hf_reader": None}  # a token that may write, and one that may read


@dataclass
class Fault:
    """What happens to requests whose `METHOD /path` matches `where`.

    what: a status, `cut`, or seconds to wait.
    """

    where: str
    what: int | str | float
    times: int = 10**9
    seen: int = 0


@dataclass
class Repo:
    """private; the commits, each the files by path; and their names."""

    private: bool = False
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])

    @property
    def sha(self) -> str:
        """Of the last commit."""
        return f"{len(self.commits):040x}"


class Hub(ThreadingHTTPServer):
    """repos by name; large files by SHA-256; every request as `METHOD /path`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repo: str) -> dict[str, bytes]:
        """The files of the last commit."""
        return self.repos[repo].commits[-1]

    def handle_error(self, request, client_address) -> None:
        """A client that has gone is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args) -> None:
        pass

    def answer(self, status: int, body: bytes = b"{}", headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Length": len(body),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(name, str(value))
        if status >= 400 and body == b"{}":
            self.send_header("X-Error-Message", f"the test's {status}")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def give(self, value) -> None:
        self.answer(200, json.dumps(value).encode())

    def serve(self) -> None:
        line = f"{self.command} {self.path}"
        self.server.requests.append(line)
        for fault in self.server.faults:
            if re.search(fault.where, line) and fault.seen < fault.times:
                fault.seen += 1
                if isinstance(fault.what, float):
                    threading.Event().wait(fault.what)
                    continue
                if fault.what == "cut":  # after some of the body has come
                    self.rfile.read(min(5_000, int(self.headers.get("Content-Length", 0))))
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return None
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                return self.answer(fault.what)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        for method, pattern, name in ROUTES:
            found = re.fullmatch(pattern, self.path.partition("?")[0])
            if found and self.command in method:
                return getattr(self, name)(**found.groupdict())
        return self.answer(404)

    do_GET = do_POST = do_PUT = do_HEAD = serve

    def user(self) -> str | None:
        return TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "), "nobody")

    def may(self, write: bool, repo: str = "") -> bool:
        """Answer 401 or 403 where this is not allowed."""
        user = self.user()
        if user == "nobody" and (write or not repo):
            self.answer(401)
        elif write and (user is None or (repo and repo.split("/")[0] != user)):
            self.answer(403)
        elif repo and repo not in self.server.repos:
            self.answer(404, headers={"X-Error-Code": "RepoNotFound"})
        elif repo and self.server.repos[repo].private and user == "nobody":
            self.answer(401, headers={"X-Error-Code": "RepoNotFound"})
        else:
            return True
        return False

    def whoami(self) -> None:
        if self.may(write=False):
            self.give({"name": self.user() or "reader", "type": "user", "orgs": []})

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or self.user()}/{asked['name']}"
        if self.user() in ("nobody", None) or name.split("/")[0] != self.user():
            return self.answer(401 if self.user() == "nobody" else 403)
        known = name in self.server.repos
        if not known:
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.server.repos[name] = Repo(private)
        body = json.dumps({"url": f"{self.server.url}/{name}", "name": name, "id": name}).encode()
        return self.answer(409 if known else 200, body)

    def validate(self) -> None:
        head = json.loads(self.body)["content"].split("---")[1]
        errors = (
            []
            if "model-index" in head and "license" in head
            else [{"message": "metadata is missing"}]
        )
        self.answer(400 if errors else 200, json.dumps({"errors": errors, "warnings": []}).encode())

    def preupload(self, repo: str) -> None:
        if not self.may(True, repo):
            return
        there = self.server.files(repo)
        modes = []
        for each in json.loads(self.body)["files"]:
            mode = {"path": each["path"], "shouldIgnore": False}
            mode["uploadMode"] = "lfs" if each["size"] > LARGE else "regular"
            if each["path"] in there:
                mode["oid"] = oid(there[each["path"]])
            modes.append(mode)
        self.give({"files": modes})

    def batch(self, repo: str) -> None:
        if not self.may(True, repo):
            return
        objects = []
        for each in json.loads(self.body)["objects"]:
            if each["oid"] not in self.server.large:
                each["actions"] = {"upload": {"href": f"{self.server.url}/large/{each['oid']}"}}
            objects.append(each)
        self.give({"transfer": "basic", "objects": objects})

    def large(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.answer(400)
        self.server.large[oid] = self.body
        return self.answer(200)

    def commit(self, repo: str) -> None:
        if not self.may(True, repo):
            return
        made = dict(self.server.files(repo))
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                made[value["path"]] = base64.b64decode(value["content"])
            if entry["key"] == "lfsFile":
                made[value["path"]] = self.server.large[value["oid"]]
        self.server.repos[repo].commits.append(made)
        sha = self.server.repos[repo].sha
        self.give(
            {
                "commitUrl": f"{self.server.url}/{repo}/commit/{sha}",
                "commitOid": sha,
                "success": True,
            }
        )

    def info(self, repo: str, revision: str = "main") -> None:
        if self.may(False, repo) and self.known(repo, revision):
            siblings = [{"rfilename": path} for path in self.server.files(repo)]
            text = self.server.files(repo).get("README.md", b"").decode()
            found = re.search(r"^license: (.*)$", text, re.M)
            card = {"license": found[1]} if found else {}
            self.give(
                {
                    "id": repo,
                    "sha": self.server.repos[repo].sha,
                    "siblings": siblings,
                    "cardData": card,
                    "private": self.server.repos[repo].private,
                    "tags": [],
                    "downloads": 0,
                }
            )

    def known(self, repo: str, revision: str) -> bool:
        if revision in ("main", self.server.repos[repo].sha):
            return True
        self.answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        return False

    def tree(self, repo: str, revision: str) -> None:
        if self.may(False, repo) and self.known(repo, revision):
            listed = [
                {"type": "file", "path": path, "size": len(content), "oid": oid(content)}
                for path, content in self.server.files(repo).items()
            ]
            self.give(listed)

    def resolve(self, repo: str, revision: str, path: str) -> None:
        if not self.may(False, repo) or not self.known(repo, revision):
            return
        content = self.server.files(repo).get(path)
        if content is None:
            return self.answer(404, headers={"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{oid(content)}"', "X-Repo-Commit": self.server.repos[repo].sha}
        return self.answer(200, content, headers)


def oid(content: bytes) -> str:
    """As git, or the large file storage, names it."""
    if len(content) > LARGE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


NAME = r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate"),
    ("POST", f"/api/models/{NAME}/preupload/main", "preupload"),
    ("POST", f"/{NAME}.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/large/(?P<oid>\w+)", "large"),
    ("POST", f"/api/models/{NAME}/commit/main", "commit"),
    ("GET", f"/api/models/{NAME}", "info"),
    ("GET", f"/api/models/{NAME}/revision/(?P<revision>[^/]+)", "info"),
    ("GET", f"/api/models/{NAME}/tree/(?P<revision>[^/]+).*", "tree"),
    ("GET HEAD", f"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub, while the block runs."""
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


def environment(hub: Hub, home) -> dict[str, str]:
    """What a process needs to take `hub` for the Hub, with an empty cache below `home`."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_writer",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
    }


if __name__ == "__main__":
    with serving() as one:
        print(one.url, flush=True)
        threading.Event().wait()
