"""What a push asks of the loopback hub: accounts, new repositories, large files, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field

from tests.voices.loopback_xet import LoopbackXet


@dataclass(frozen=True)
class Account:
    """Who has a token."""

    name: str
    role: str = "write"
    """Of the token: "write", "read" or "fineGrained"."""
    orgs: dict[str, str] = field(default_factory=dict)
    """Role by organisation."""
    scoped: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(namespace, permissions) of a fine-grained token."""

    def may_write(self, owner: str) -> bool:
        if self.role == "fineGrained":
            return any(
                name == owner and "repo.write" in permissions for name, permissions in self.scoped
            )
        return self.role == "write" and (
            owner == self.name or self.orgs.get(owner, "read") in ("write", "admin")
        )


@dataclass
class Fault:
    """Something that goes wrong with matching requests."""

    method: str
    pattern: str
    """Found in the path."""
    status: int | None = None
    """What is answered; None to close the connection."""
    message: str = "out of order"
    after_bytes: int | None = None
    """Of the body, read before that; None for all."""
    late: bool = False
    """The request is carried out first, and only its answer is lost."""
    silent: float = 0.0
    """Seconds for which nothing is said."""
    times: int | None = None
    """For how many requests; None for all."""


class PushCalls:
    """The calls, for a handler with `hub`, `body`, `account`, `_json`, `_error` and `_send`."""

    def _write(self, path: str) -> None:
        """What a push asks for."""
        if match := re.fullmatch(
            r"/storage/([0-9a-f]{64})(?:/(\d+))?", path
        ):  # a signed address: nobody is asked for a token
            return (
                self._put(match[1], match[2]) if self.command == "PUT" else self._complete(match[1])
            )
        if self.account is None:
            return self._error(401, "", "Invalid credentials in Authorization header")
        if path == "/api/whoami-v2":
            return self._whoami(self.account)
        values = json.loads(self.body) if not path.endswith("/commit/main") else None
        if path == "/api/repos/create":
            return self._create(self.account, values)
        if path == "/api/validate-yaml":
            return self._validate(values["content"])
        if path == "/storage/verify":
            return (
                self._json({})
                if values["oid"] in self.hub.objects
                else self._error(404, "", "no such object")
            )
        match = re.fullmatch(
            r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main|/([^/]+/[^/]+)\.git/info/lfs/objects/batch",
            path,
        )
        repo_id = (match[1] or match[3]) if match else ""
        if not self._seen(repo_id):
            return self._error(404, "RepoNotFound", "Repository not found")
        if not self.account.may_write(repo_id.partition("/")[0]):
            return self._error(403, "", "You don't have the rights to write to this repository")
        if match[3]:
            return self._batch(values["objects"])
        return (
            self._preupload(repo_id, values["files"])
            if match[2] == "preupload"
            else self._commit(repo_id)
        )

    def _xet_token(self, repo_id: str) -> None:
        if self.account is None or not self.account.may_write(repo_id.partition("/")[0]):
            return self._error(403, "", "You don't have the rights to write to this repository")
        token, until = "xet-" + self.account.name, int(time.time()) + 3600
        headers = {
            "X-Xet-Cas-Url": self.hub.url,
            "X-Xet-Access-Token": token,
            "X-Xet-Token-Expiration": str(until),
        }
        body = json.dumps({"casUrl": self.hub.url, "accessToken": token, "exp": until}).encode()
        return self._send(200, body, {**headers, "Content-Type": "application/json"})

    def _xet(self, storage: LoopbackXet, path: str) -> None:
        if not self.headers.get("Authorization", "").startswith("Bearer xet-"):
            return self._error(401, "", "no token of the storage")
        if match := re.fullmatch(r"/v1/xorbs/default/([0-9a-f]{64})", path):
            storage.put_xorb(match[1], self.body)
            return self._json({"was_inserted": True})
        if re.fullmatch(r"/v1/shards", path):
            self.hub.objects.update(storage.files_of(self.body))
            return self._json({"result": 1})
        return self._error(404, "", "not found")

    def _whoami(self, account: Account) -> None:
        access = {"displayName": "a token", "role": account.role}
        if account.role == "fineGrained":
            scoped = [
                {"entity": {"type": "user", "name": name}, "permissions": list(may)}
                for name, may in account.scoped
            ]
            access["fineGrained"] = {"global": [], "scoped": scoped}
        orgs = [
            {"type": "org", "name": name, "roleInOrg": role} for name, role in account.orgs.items()
        ]
        self._json(
            {
                "type": "user",
                "name": account.name,
                "orgs": orgs,
                "auth": {"type": "access_token", "accessToken": access},
            }
        )

    def _create(self, account: Account, values: dict) -> None:
        owner = values.get("organization") or account.name
        repo_id = f"{owner}/{values['name']}"
        if not account.may_write(owner):
            return self._error(
                403,
                "",
                f"You don't have the rights to create a model under the namespace {owner!r}",
            )
        if repo_id in self.hub.repositories:
            return self._error(409, "", "You already created this model repo")
        private = values.get("visibility") == "private" and not self.hub.public_always
        first = self.hub.blank(private)
        self.hub.publish(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"}, first)
        return self._json({"url": f"{self.hub.url}/{repo_id}", "name": repo_id})

    def _validate(self, content: str) -> None:
        import yaml

        front = re.match(r"---\n(.*?)\n---", content, re.DOTALL)
        try:
            well = isinstance(yaml.safe_load(front[1]), dict) if front else True
        except yaml.YAMLError:
            well = False
        errors = [] if well else [{"message": "bad indentation of a mapping entry"}]
        body = json.dumps({"errors": errors, "warnings": []}).encode()
        self._send(400 if errors else 200, body, {"Content-Type": "application/json"})

    def _preupload(self, repo_id: str, files: list[dict]) -> None:
        held = self.hub.files(repo_id)
        answers = []
        for file in files:
            name = file["path"]
            answer = {
                "path": name,
                "uploadMode": "lfs" if self.hub.is_large(name) else "regular",
                "shouldIgnore": name in self.hub.ignored,
            }
            if name in held:
                answer["oid"] = (
                    hashlib.sha256(held[name]).hexdigest()
                    if self.hub.is_large(name)
                    else git_hash(held[name])
                )
            answers.append(answer)
        self._json({"files": answers})

    def _batch(self, wanted: list[dict]) -> None:
        answers = []
        for file in wanted:
            oid, answer = file["oid"], {"oid": file["oid"], "size": file["size"]}
            if oid not in self.hub.objects:
                upload = {"href": f"{self.hub.url}/storage/{oid}", "header": {}}
                if self.hub.part_bytes:
                    count = -(-file["size"] // self.hub.part_bytes)
                    numbered = {
                        str(part): f"{self.hub.url}/storage/{oid}/{part}"
                        for part in range(1, count + 1)
                    }
                    upload["header"] = {"chunk_size": str(self.hub.part_bytes), **numbered}
                answer["actions"] = {
                    "upload": upload,
                    "verify": {"href": f"{self.hub.url}/storage/verify"},
                }
            answers.append(answer)
        self._json(
            {"transfer": "multipart" if self.hub.part_bytes else "basic", "objects": answers}
        )

    def _put(self, oid: str, part: str | None) -> None:
        if part is not None:
            self.hub.parts.setdefault(oid, {})[int(part)] = self.body
            return self._send(200, b"", {"ETag": f'"{part}"'})
        return self._keep(oid, self.body)

    def _complete(self, oid: str) -> None:
        parts = self.hub.parts.pop(oid)
        self._keep(
            oid, b"".join(parts[part["partNumber"]] for part in json.loads(self.body)["parts"])
        )

    def _keep(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            return self._error(400, "", "The content does not have the checksum")
        self.hub.objects[oid] = content
        return self._json({})

    def _commit(self, repo_id: str) -> None:
        if self.hub.before_commit is not None:
            self.hub.before_commit()
        lines = [json.loads(line) for line in self.body.splitlines()]
        header, changes = lines[0]["value"], lines[1:]
        with self.hub.lock:
            current = self.hub.find(repo_id, "main")
            if header.get("parentCommit") not in (None, current.commit):
                return self._error(
                    412, "", "A commit has happened since. Please refresh and try again."
                )
            files = self.hub.files(repo_id)
            for change in changes:
                value = change["value"]
                if change["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif change["key"] == "lfsFile":
                    if value["oid"] not in self.hub.objects:
                        return self._error(400, "", "An LFS object of the commit was not uploaded")
                    files[value["path"]] = self.hub.objects[value["oid"]]
                elif files.pop(value["path"], None) is None:
                    return self._error(404, "EntryNotFound", "A file with this name doesn't exist")
            made = self.hub.publish(repo_id, files, current)
            named = {
                key: [c["value"]["path"] for c in changes if c["key"] == key]
                for key in ("file", "lfsFile", "deletedFile")
            }
            self.hub.commits.append({**header, **named, "repo": repo_id})
        return self._json(
            {
                "commitUrl": f"{self.hub.url}/{repo_id}/commit/{made.commit}",
                "commitOid": made.commit,
                "success": True,
            }
        )


def time_silent(seconds: float) -> None:
    """Wait, also where a test has taken the client's time.sleep away."""
    threading.Event().wait(seconds)


def git_hash(content: bytes) -> str:
    """The name that git gives to a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
