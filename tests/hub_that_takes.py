"""A small stand-in of the Hub's upload API: repositories, LFS and commits, in the process of the test."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class TakingHub:
    """Keeps what is uploaded: `repos` are its files by repository and name, `private` who may read them."""

    def __init__(self, refuses: int = 0) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}
        self.headers: list[str] = []
        self.requests: list[str] = []
        self.refuses = refuses  # the status with which it answers what writes
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *words: Any) -> None:
                pass

            def answer(self, content: Any, status: int = 200, **headers: str) -> None:
                body = json.dumps(content).encode()
                self.send_response(status)
                for name, value in {
                    "Content-Type": "application/json",
                    "Content-Length": str(len(body)),
                    **headers,
                }.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(body)

            def body(self) -> bytes:
                hub.headers.append(self.headers.get("Authorization", ""))
                hub.requests.append(f"{self.command} {self.path}")
                if self.headers.get("Transfer-Encoding") == "chunked":
                    parts = []
                    while size := int(self.rfile.readline(), 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                    return b"".join(parts)
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def do_GET(self) -> None:
                self.body()
                name = self.path.removeprefix("/api/models/").split("?")[0].split("/revision")[0]
                if name in hub.private:
                    return self.answer({"id": name, "private": hub.private[name], "sha": "0" * 40, "gated": False})
                return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

            def do_POST(self) -> None:
                content = self.body()
                if hub.refuses:
                    return self.answer({"error": "no"}, hub.refuses)
                if self.path == "/api/repos/create":
                    asked = json.loads(content)
                    name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
                    if name in hub.private:
                        return self.answer({"error": "exists", "url": f"{hub.address}/{name}"}, 409)
                    hub.private[name] = asked.get("private", asked.get("visibility") == "private")
                    hub.repos[name] = {}
                    return self.answer({"url": f"{hub.address}/{name}"})
                if self.path == "/api/validate-yaml":
                    return self.answer({"warnings": [], "errors": []})
                if "/preupload/" in self.path:
                    names = [file["path"] for file in json.loads(content)["files"]]
                    modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
                    files = [
                        {"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": None}
                        for name, mode in modes.items()
                    ]
                    return self.answer({"files": files})
                if self.path.endswith("/info/lfs/objects/batch"):
                    objects = [
                        {**each, "actions": {"upload": {"href": f"{hub.address}/blob/{each['oid']}"}}}
                        for each in json.loads(content)["objects"]
                    ]
                    return self.answer({"transfer": "basic", "objects": objects})
                if "/commit/" in self.path:
                    name = self.path.removeprefix("/api/models/").split("/commit/")[0]
                    for line in map(json.loads, content.splitlines()):
                        value = line["value"]
                        if line["key"] == "file":
                            hub.repos[name][value["path"]] = base64.b64decode(value["content"])
                        elif line["key"] == "lfsFile":
                            hub.repos[name][value["path"]] = hub.blobs[value["oid"]]
                    return self.answer(
                        {"success": True, "commitOid": "1" * 40, "commitUrl": f"{hub.address}/{name}/commit/1"}
                    )
                return self.answer({"error": self.path}, 404)

            def do_PUT(self) -> None:
                hub.blobs[self.path.rpartition("/")[2]] = self.body()
                self.answer({})

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
