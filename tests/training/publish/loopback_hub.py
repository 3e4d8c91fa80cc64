"""A Hub on the loopback interface, for huggingface_hub's own client: repositories in memory, over real HTTP.

What it speaks: create and delete a repository, branches, whoami, YAML validation, preupload, Git LFS (batch, upload,
verify), commits as ndjson, repository info, tree, paths, and resolve with the headers that the cache is built on.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN, USER = "hf_loopback", "user"
LFS_SUFFIXES = (".safetensors", ".onnx", ".bin", ".mp4")
_RESOLVE = re.compile(r"/(?:(spaces|datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_BATCH = re.compile(r"/(?:(spaces|datasets)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch")
_API = re.compile(
    r"/api/(models|spaces|datasets)/([^/]+/[^/]+?)(?:/(revision|tree|preupload|commit|branch|paths-info|refs)(?:/(.*))?)?"
)


@dataclass(frozen=True)
class Blob:
    content: bytes
    lfs: bool

    @property
    def git_id(self) -> str:
        content = self.content
        if self.lfs:
            content = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(content)}\n".encode()
            )
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_id


@dataclass
class Commit:
    files: dict[str, Blob]
    title: str
    parent: str | None

    @property
    def sha(self) -> str:
        listed = sorted((path, blob.etag) for path, blob in self.files.items())
        return hashlib.sha1(json.dumps([listed, self.title, self.parent]).encode()).hexdigest()


@dataclass
class Repo:
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def add(self, ref: str, commit: Commit) -> str:
        self.commits[commit.sha] = commit
        self.refs[ref] = commit.sha
        return commit.sha

    def at(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)

    def log(self, ref: str = "main") -> list[str]:
        """Titles of the commits, the newest first."""
        titles, sha = [], self.refs.get(ref)
        while sha:
            titles.append(self.commits[sha].title)
            sha = self.commits[sha].parent
        return titles


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class LoopbackHub:
    """
    `with LoopbackHub() as hub:` serves at `hub.url`.

    At requests that match `break_at` the connection is cut, after waiting while `hold` is set; at `lose_answer_at` the
    request is carried out and the answer lost. `before_commit` is called once, before the next commit.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.break_at: str | None = None
        self.lose_answer_at: str | None = None
        self.before_commit: Callable[[], object] | None = None
        self.held, self.hold = threading.Event(), False
        hub = self

        class Handler(_Handler):
            state = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        # Content is fetched from another host than the Hub's: to one and the same the client would follow with HEAD.
        self.store = f"http://localhost:{self.server.server_address[1]}/lfs-store"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, name: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        repo = self.repos[kind, name]
        return {path: blob.content for path, blob in repo.commits[repo.refs[revision]].files.items()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: LoopbackHub

    def log_message(self, *_: object) -> None:
        return

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def answer(self) -> None:
        self.url = urlsplit(self.path)
        path = self.url.path
        self.state.requests.append(f"{self.command} {path}")
        self.body = self.read_body()
        if self.matches(self.state.break_at):
            self.state.held.set()
            while self.state.hold:
                time.sleep(0.01)
            self.close_connection = True
            return
        try:
            self.route(path)
        except Refused as error:
            headers = {"X-Error-Message": str(error)} | ({"X-Error-Code": error.code} if error.code else {})
            self.reply({"error": str(error)}, error.status, headers)

    def matches(self, place: str | None) -> bool:
        return place is not None and re.search(place, f"{self.command} {self.url.path}") is not None

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def reply(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if self.matches(self.state.lose_answer_at):
            self.close_connection = True
            return
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "Content-Type": "application/json"} | (headers or {})
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def signed_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def route(self, path: str) -> None:
        if self.command in ("POST", "PUT", "DELETE") and not self.signed_in and "/lfs-store/" not in path:
            raise Refused(401, "Invalid username or password.")
        if path == "/api/whoami-v2":
            return self.reply({"name": USER, "type": "user", "orgs": [], "auth": {}})
        if path == "/api/validate-yaml":
            return self.validate_yaml(json.loads(self.body)["content"])
        if path in ("/api/repos/create", "/api/repos/delete"):
            return self.create_or_delete(json.loads(self.body), create=path.endswith("create"))
        if path.startswith("/lfs-store/"):
            return self.store_object(path.rpartition("/")[2])
        if path == "/lfs-verify":
            known = json.loads(self.body)["oid"] in self.state.objects
            return self.reply({}, 200 if known else 404)
        if match := _BATCH.fullmatch(path):
            self.repo(match[1] or "models", match[2])
            return self.lfs_batch(json.loads(self.body)["objects"])
        if match := _RESOLVE.fullmatch(path):
            return self.resolve(self.repo(match[1] or "models", match[2]), unquote(match[3]), unquote(match[4]))
        if match := _API.fullmatch(path):
            return self.api(match[1], match[2], match[3], match[4] or "")
        raise Refused(404, f"no such place: {path}")

    def repo(self, kind: str, name: str) -> Repo:
        repo = self.state.repos.get((kind, name))
        if repo is None or repo.private and not self.signed_in:
            raise Refused(401, "Repository not found", "RepoNotFound")
        return repo

    def commit_at(self, repo: Repo, revision: str) -> tuple[str, Commit]:
        sha = repo.at(revision)
        if sha is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, repo.commits[sha]

    def validate_yaml(self, content: str) -> None:
        head = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        values = yaml.safe_load(head[1]) if head else None
        if not isinstance(values, dict) or not isinstance(values.get("license", ""), str):
            return self.reply(
                {"errors": [{"message": "no metadata, or a license that is no text"}], "warnings": []}, 400
            )
        return self.reply({"errors": [], "warnings": []})

    def create_or_delete(self, asked: dict, create: bool) -> None:
        kind, name = f"{asked.get('type') or 'model'}s", f"{asked.get('organization') or USER}/{asked['name']}"
        if not create:
            self.repo(kind, name)
            del self.state.repos[kind, name]
            return self.reply({})
        url = f"{self.state.url}/{'' if kind == 'models' else kind + '/'}{name}"
        if (kind, name) in self.state.repos:
            return self.reply({"error": "You already created this repo", "url": url}, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        attributes = Blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", False)
        repo = self.state.repos[kind, name] = Repo(private)
        repo.add("main", Commit({".gitattributes": attributes}, "initial commit", None))
        return self.reply({"url": url, "name": name})

    def lfs_batch(self, objects: list[dict]) -> None:
        answers: list[dict] = []
        for one in objects:
            answer = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.state.objects:
                upload = {"href": f"{self.state.store}/{one['oid']}"}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{self.state.url}/lfs-verify"}}
            answers.append(answer)
        self.reply({"transfer": "basic", "objects": answers})

    def store_object(self, oid: str) -> None:
        if self.command != "PUT":
            return self.reply(self.state.objects[oid])
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "the content is not what its name says")
        self.state.objects[oid] = self.body
        return self.reply({})

    def resolve(self, repo: Repo, revision: str, path: str) -> None:
        sha, commit = self.commit_at(repo, revision)
        blob = commit.files.get(path)
        if blob is None:
            raise Refused(404, f"{path} does not exist", "EntryNotFound")
        headers = {"X-Repo-Commit": sha, "ETag": f'"{blob.etag}"'}
        if not blob.lfs:
            return self.reply(blob.content, headers=headers)
        headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.content))}
        return self.reply(b"", 302, headers | {"Location": f"{self.state.store}/{blob.sha256}"})

    def api(self, kind: str, name: str, what: str | None, rest: str) -> None:
        repo = self.repo(kind, name)
        first, _, path = rest.partition("/")
        revision = unquote(first) or "main"
        if what in (None, "revision"):
            sha, commit = self.commit_at(repo, revision)
            siblings = [{"rfilename": path} for path in sorted(commit.files)]
            fields = {"_id": name, "id": name, "modelId": name, "sha": sha, "private": repo.private, "tags": []}
            return self.reply(fields | {"siblings": siblings, "downloads": 0, "likes": 0})
        if what == "refs":
            branches = [{"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": repo.refs[ref]} for ref in repo.refs]
            return self.reply({"branches": branches, "converts": [], "tags": []})
        if what == "branch":
            return self.branch(repo, revision)
        if what == "tree":
            return self.tree(self.commit_at(repo, revision)[1], unquote(path))
        if what == "paths-info":
            form = parse_qs(self.body.decode())
            commit = self.commit_at(repo, revision)[1]
            return self.reply([describe(path, commit.files[path]) for path in form["paths"] if path in commit.files])
        if what == "preupload":
            return self.preupload(self.commit_at(repo, revision)[1])
        return self.commit(repo, revision, name)

    def branch(self, repo: Repo, branch: str) -> None:
        if self.command == "DELETE":
            del repo.refs[branch]
        elif branch in repo.refs:
            raise Refused(409, "Reference already exists")
        else:
            start = json.loads(self.body).get("startingPoint") or "main"
            repo.refs[branch] = self.commit_at(repo, start)[0]
        self.reply({})

    def tree(self, commit: Commit, folder: str) -> None:
        inside = f"{folder}/" if folder else ""
        listed = [describe(path, blob) for path, blob in sorted(commit.files.items()) if path.startswith(inside)]
        if folder and not listed:
            raise Refused(404, f"{folder} does not exist", "EntryNotFound")
        self.reply(listed)

    def preupload(self, commit: Commit) -> None:
        answers = []
        for asked in json.loads(self.body)["files"]:
            path, there = asked["path"], commit.files.get(asked["path"])
            lfs = path.endswith(LFS_SUFFIXES) or asked["size"] > 10_000_000
            answer = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            answers.append(answer | ({"oid": there.etag} if there else {}))
        self.reply({"files": answers})

    def commit(self, repo: Repo, revision: str, name: str) -> None:
        meanwhile, self.state.before_commit = self.state.before_commit, None
        if meanwhile:
            meanwhile()
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        base = header.get("parentCommit") or self.commit_at(repo, revision)[0]
        pull_request = parse_qs(self.url.query).get("create_pr") == ["1"]
        if not pull_request and base != repo.at(revision):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[base].files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.state.objects:
                    raise Refused(400, f"LFS object {value['oid']} was never uploaded")
                files[value["path"]] = Blob(self.state.objects[value["oid"]], True)
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise Refused(400, f"unknown operation {line['key']}")
        ref = f"refs/pr/{1 + sum(ref.startswith('refs/pr/') for ref in repo.refs)}" if pull_request else revision
        sha = repo.add(ref, Commit(files, header["summary"], base))
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{self.state.url}/{name}/commit/{sha}"}
        if pull_request:
            answer["pullRequestUrl"] = f"{self.state.url}/{name}/discussions/{ref.rpartition('/')[2]}"
        self.reply(answer)


def describe(path: str, blob: Blob) -> dict[str, Any]:
    size = len(blob.content)
    lfs = {"lfs": {"oid": blob.sha256, "size": size, "pointerSize": 134}} if blob.lfs else {}
    return {"type": "file", "path": path, "size": size, "oid": blob.git_id} | lfs
