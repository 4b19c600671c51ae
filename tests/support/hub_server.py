# SPDX-License-Identifier: Apache-2.0
"""Loopback server with the parts of the Hub's HTTP API that the real `huggingface_hub` client uses.

    with LoopbackHub() as hub:      # hub.endpoint -> "http://127.0.0.1:PORT"
        ...

Everything is in memory. The server has repositories, branches, tags, pull-request refs, commits (ndjson), the LFS
"basic" transfer, file resolution by revision and tree listings; it does not use git.

The client reads `HF_ENDPOINT` when it is imported, so the server has to run before that: see `conftest.py`.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

REPO_TYPES = {"models": "model", "datasets": "dataset", "spaces": "space", "kernels": "kernel"}
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".npz", ".so", ".mp4")
LFS_MINIMUM_SIZE = 10 * 1024 * 1024


class HubError(Exception):
    """A failure the client maps to one of its error classes through the header `X-Error-Code`."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def git_blob_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Repo:
    """One repository: refs (name -> commit) and commits (oid -> parent, files, title, date).

    `files` of a commit maps a path to `(kind, oid, size)` with kind "regular" or "lfs".
    """

    def __init__(self, repo_type: str, repo_id: str):
        self.type, self.id = repo_type, repo_id
        self.branches, self.tags, self.pull_requests, self.commits = {}, {}, {}, {}
        self.branches["main"] = self.add_commit(None, {}, "initial commit")

    def add_commit(self, parent: str | None, files: dict, title: str) -> str:
        content = json.dumps([self.id, parent, sorted(files.items()), title, len(self.commits)])
        oid = hashlib.sha1(content.encode()).hexdigest()
        date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        self.commits[oid] = {"parent": parent, "files": files, "title": title, "date": date}
        return oid

    def resolve(self, revision: str) -> str:
        refs = {
            **self.pull_requests,
            **{f"refs/tags/{name}": oid for name, oid in self.tags.items()},
            **{f"refs/heads/{name}": oid for name, oid in self.branches.items()},
            **self.tags,
            **self.branches,
        }
        if revision in refs:
            return refs[revision]
        if revision in self.commits:
            return revision
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def files(self, revision: str) -> dict:
        return self.commits[self.resolve(revision)]["files"]

    def history(self, revision: str) -> list[dict]:
        """Return the commits of a revision, newest first."""
        commits, oid = [], self.resolve(revision)
        while oid:
            commits.append({"id": oid, **self.commits[oid]})
            oid = self.commits[oid]["parent"]
        return commits


class LoopbackHub:
    """The server. `log` holds every request as `(method, path)`."""

    def __init__(self, user: str = "tester", trusted_publishers: tuple[str, ...] = ("kernels-community",)):
        self.user, self.trusted = user, set(trusted_publishers)
        self.lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        """Forget all repositories, files, requests and injected failures."""
        self.repos, self.blobs, self.lfs, self.log, self.failures = {}, {}, {}, [], []

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()

    def repo(self, repo_type: str, repo_id: str) -> Repo:
        try:
            return self.repos[repo_type, repo_id]
        except KeyError:
            raise HubError(404, "RepoNotFound", "Repository not found") from None

    @contextmanager
    def failing(self, method: str, path_pattern: str, status: int = 403) -> Iterator[None]:
        """Refuse requests whose method and path (`re.search`) match with `status`, inside the context."""
        failure = (method, re.compile(path_pattern), status)
        self.failures.append(failure)
        try:
            yield
        finally:
            self.failures.remove(failure)


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Keep requests out of stderr; they are in `hub.log`."""

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def reply(self, status, payload=b"", headers=None):
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        content_type = "application/octet-stream" if isinstance(payload, bytes) else "application/json"
        self.send_response(status)
        for key, value in {"Content-Type": content_type, **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def reply_error(self, error: HubError, headers=None):
        codes = {"X-Error-Code": error.code, "X-Error-Message": error.message}
        self.reply(error.status, {"error": error.message}, {**codes, **(headers or {})})

    def handle_any(self):
        split = urlsplit(self.path)
        body = self.body()
        self.hub.log.append((self.command, self.path))
        try:
            with self.hub.lock:
                for method, pattern, status in self.hub.failures:
                    if method == self.command and pattern.search(split.path):
                        raise HubError(status, "Injected", f"{self.command} {split.path}: injected failure")
                self.route(self.command, split.path, parse_qs(split.query), body)
        except HubError as error:
            self.reply_error(error)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_any  # noqa: N815 - names of `BaseHTTPRequestHandler`

    def route(self, method, path, query, body):
        fixed = {
            "/api/whoami-v2": self.whoami,
            "/api/validate-yaml": lambda _: self.reply(200, {"errors": [], "warnings": []}),
            "/api/agent-harnesses": lambda _: self.reply(200, {}),
            "/api/repos/create": self.create_repo,
            "/api/repos/delete": self.delete_repo,
        }
        if path in fixed:
            return fixed[path](body)
        if match := re.fullmatch(r"/api/organizations/([^/]+)/overview", path):
            name = match[1]
            overview = {"name": name, "fullname": name, "avatarUrl": ""}
            return self.reply(200, {**overview, "trustedKernelPublisher": name in self.hub.trusted})
        if re.fullmatch(r"/(?:(?:datasets|spaces|kernels)/)?[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            return self.lfs_batch(body)
        if match := re.fullmatch(r"/_lfs/([0-9a-f]{64})(/verify)?", path):
            return self.lfs_object(match[1], bool(match[2]), body)
        if match := re.fullmatch(r"/(?:(datasets|spaces|kernels)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo = self.hub.repo(REPO_TYPES[match[1] or "models"], match[2])
            return self.resolve_file(repo, unquote(match[3]), unquote(match[4]))
        pattern = r"/api/(models|datasets|spaces|kernels)/([^/]+/[^/]+)(?:/([a-z-]+)(?:/(.*))?)?"
        if match := re.fullmatch(pattern, path):
            repo = self.hub.repo(REPO_TYPES[match[1]], match[2])
            action = getattr(self, "repo_" + (match[3] or "revision").replace("-", "_"), None)
            if action is not None:
                return action(method, repo, unquote(match[4] or ""), query, body)
        raise HubError(404, "NotFound", f"no route {method} {path}")

    # Accounts and repositories

    def whoami(self, body):
        token = {"type": "access_token", "accessToken": {"role": "write"}}
        user = self.hub.user
        self.reply(200, {"type": "user", "name": user, "fullname": user, "orgs": [], "auth": token})

    def repo_key(self, request):
        return request.get("type") or "model", f"{request.get('organization') or self.hub.user}/{request['name']}"

    def create_repo(self, body):
        repo_type, repo_id = key = self.repo_key(json.loads(body))
        url = f"{self.hub.endpoint}/{'' if repo_type == 'model' else repo_type + 's/'}{repo_id}"
        if key in self.hub.repos:
            return self.reply(409, {"error": "You already created this repo", "url": url})
        self.hub.repos[key] = Repo(repo_type, repo_id)
        self.reply(200, {"url": url, "name": repo_id, "id": repo_id})

    def delete_repo(self, body):
        key = self.repo_key(json.loads(body))
        self.hub.repo(*key)
        del self.hub.repos[key]
        self.reply(200, {})

    # Files

    def lfs_batch(self, body):
        objects = []
        for item in json.loads(body)["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.lfs:  # an entry without `actions` is uploaded already
                href = f"{self.hub.endpoint}/_lfs/{item['oid']}"
                entry["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(entry)
        self.reply(200, {"transfer": "basic", "objects": objects})

    def lfs_object(self, oid, verify, body):
        if verify:
            return self.reply(200 if oid in self.hub.lfs else 404, {})
        if hashlib.sha256(body).hexdigest() != oid:
            raise HubError(400, "BadChecksum", "sha256 mismatch")
        self.hub.lfs[oid] = body
        self.reply(200)

    def resolve_file(self, repo, revision, name):
        commit = repo.resolve(revision)
        headers = {"X-Repo-Commit": commit}
        files = repo.files(commit)
        if name not in files:
            return self.reply_error(HubError(404, "EntryNotFound", "Entry not found"), headers)
        kind, oid, size = files[name]
        data = self.hub.lfs[oid] if kind == "lfs" else self.hub.blobs[oid]
        headers |= {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"}
        if kind == "lfs":
            headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(size)}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(match[1]), int(match[2]) if match[2] else size - 1
            headers["Content-Range"] = f"bytes {start}-{end}/{size}"
            return self.reply(206, data[start : end + 1], headers)
        self.reply(200, data, headers)

    # One repository: `/api/{type}s/{id}/{action}/{rest}` runs `repo_{action}`

    def repo_revision(self, method, repo, revision, query, body):
        oid = repo.resolve(revision or "main")
        commit = repo.commits[oid]
        info = {"_id": "0", "id": repo.id, "modelId": repo.id, "sha": oid, "private": False, "downloads": 0, "likes": 0}
        siblings = [{"rfilename": name} for name in sorted(commit["files"])]
        self.reply(200, {**info, "tags": [], "lastModified": commit["date"], "siblings": siblings})

    def repo_refs(self, method, repo, rest, query, body):
        def listing(kind, refs):
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in refs.items()]

        pull_requests = [{"name": ref, "ref": ref, "targetCommit": oid} for ref, oid in repo.pull_requests.items()]
        refs = {"branches": listing("heads", repo.branches), "tags": listing("tags", repo.tags), "converts": []}
        self.reply(200, {**refs, "pullRequests": pull_requests})

    def repo_branch(self, method, repo, name, query, body):
        if method == "DELETE":
            repo.branches.pop(name)
        elif name in repo.branches:
            return self.reply(409, {"error": f"Reference already exists: refs/heads/{name}"})
        else:
            repo.branches[name] = repo.resolve(json.loads(body or b"{}").get("startingPoint") or "main")
        self.reply(200, {})

    def repo_tag(self, method, repo, rest, query, body):
        if method == "DELETE":
            repo.tags.pop(rest)
            return self.reply(200, {})
        name = json.loads(body)["tag"]
        if name in repo.tags:
            return self.reply(409, {"error": f"Tag already exists: refs/tags/{name}"})
        repo.tags[name] = repo.resolve(rest or "main")
        self.reply(200, {})

    def repo_commits(self, method, repo, revision, query, body):
        author = [{"user": self.hub.user}]
        history = repo.history(revision or "main")
        commits = [{"id": c["id"], "title": c["title"], "message": "", "date": c["date"]} for c in history]
        self.reply(200, [{**commit, "authors": author} for commit in commits])

    def repo_tree(self, method, repo, rest, query, body):
        depth = 3 if rest.startswith("refs/") else 1  # refs/pr/1 has slashes of its own
        parts = rest.split("/")
        revision, folder = "/".join(parts[:depth]), "/".join(parts[depth:])
        prefix = f"{folder}/" if folder else ""
        recursive = query.get("recursive", ["false"])[0].lower() == "true"
        entries, folders = [], set()
        for name, file in sorted(repo.files(revision).items()):
            if not name.startswith(prefix):
                continue
            *parents, _ = name[len(prefix) :].split("/")
            for depth in range(1, len(parents) + 1) if recursive else range(1, min(len(parents), 1) + 1):
                path = prefix + "/".join(parents[:depth])
                if path not in folders:
                    folders.add(path)
                    oid = hashlib.sha1(path.encode()).hexdigest()
                    entries.append({"type": "directory", "oid": oid, "size": 0, "path": path})
            if recursive or not parents:
                entries.append(self.file_entry(name, file))
        self.reply(200, entries)

    def repo_paths_info(self, method, repo, revision, query, body):
        request = json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())
        files = repo.files(revision)
        self.reply(200, [self.file_entry(name, files[name]) for name in request["paths"] if name in files])

    def file_entry(self, name, file):
        kind, oid, size = file
        entry = {"type": "file", "path": name, "size": size, "oid": oid}
        if kind == "lfs":
            entry |= {"oid": git_blob_oid(oid.encode()), "lfs": {"oid": oid, "size": size, "pointerSize": 134}}
        return entry

    def repo_preupload(self, method, repo, revision, query, body):
        present = repo.files(revision)
        files = []
        for file in json.loads(body)["files"]:
            lfs = file["path"].endswith(LFS_SUFFIXES) or file["size"] > LFS_MINIMUM_SIZE
            entry = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            if file["path"] in present:
                entry["oid"] = present[file["path"]][1]
            files.append(entry)
        self.reply(200, {"files": files})

    def repo_commit(self, method, repo, revision, query, body):
        header, *operations = [json.loads(line) for line in body.splitlines() if line.strip()]
        create_pull_request = bool(query.get("create_pr"))
        parent = repo.resolve(revision)
        if header["value"].get("parentCommit") not in (None, "", parent) and not create_pull_request:
            return self.reply(412, {"error": "A commit has happened since. Please refresh and try again."})
        files = self.apply_operations(dict(repo.files(parent)), operations)
        oid = repo.add_commit(parent, files, header["value"]["summary"])
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{repo.id}/commit/{oid}"}
        if create_pull_request:
            number = len(repo.pull_requests) + 1
            repo.pull_requests[f"refs/pr/{number}"] = oid
            answer["pullRequestUrl"] = f"{self.hub.endpoint}/{repo.id}/discussions/{number}"
        elif revision in repo.pull_requests:
            repo.pull_requests[revision] = oid
        elif revision in repo.branches:
            repo.branches[revision] = oid
        else:
            raise HubError(404, "RevisionNotFound", f"cannot commit on {revision}")
        self.reply(200, answer)

    def apply_operations(self, files, operations):
        for operation in operations:
            kind, value = operation["key"], operation["value"]
            path = value["path"]
            if kind == "file":
                data = base64.b64decode(value["content"])
                oid = git_blob_oid(data)
                self.hub.blobs[oid] = data
                files[path] = ("regular", oid, len(data))
            elif kind == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise HubError(400, "LfsMissing", f"{path}: LFS object {value['oid']} was not uploaded")
                files[path] = ("lfs", value["oid"], len(self.hub.lfs[value["oid"]]))
            elif kind == "deletedFile":
                files.pop(path, None)
            elif kind == "deletedFolder":
                folder = path.rstrip("/") + "/"
                files = {name: file for name, file in files.items() if not name.startswith(folder)}
        return files
