"""Stands for a Docker daemon: the part of the Engine API that an env-server uses, with state, delays and refusals.

`python docker_engine.py SOCKET STATE`: listens on a unix socket. A container of OSWorld's image "boots" a process that
answers OSWorld's routes at the published port; paused, that process is stopped; removed, it is gone with its disk.

`STATE/faults.json` asks for failures: `{"images": [...], "busy_ports": [...], "create_s": s, "start_says": text,
"boot_s": s, "dies": text, "no_kvm": true}`. `STATE/containers.json` is what there is, for tests to look at. Status codes
and words are those of Docker Engine 24 (API 1.43).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

GUEST = Path(__file__).with_name("osworld_guest.py")
IMAGE = {
    "Id": "sha256:" + "ab" * 32,
    "RepoTags": ["happysixd/osworld-docker:latest"],
    "Architecture": "amd64",
    "Os": "linux",
    "Config": {},
}


class Refused(Exception):  # noqa: N818 - an answer
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Engine:
    """The daemon's state."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.lock = threading.Lock()
        self.containers: dict[str, dict[str, Any]] = {}

    def faults(self) -> dict[str, Any]:
        path = self.state / "faults.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def note(self) -> None:
        fresh = self.state / "containers.new"
        fresh.write_text(json.dumps(self.containers))
        fresh.replace(self.state / "containers.json")

    def image(self, name: str) -> dict[str, Any]:
        if name not in self.faults().get("images", [name]):
            raise Refused(404, f"No such image: {name}")
        return IMAGE

    def find(self, name: str) -> dict[str, Any]:
        for container in self.containers.values():
            if container["Id"].startswith(name) or container["Name"] == "/" + name:
                return container
        raise Refused(404, f"No such container: {name}")

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        self.image(body["Image"])
        time.sleep(self.faults().get("create_s", 0.0))
        number = secrets.token_hex(32)
        self.containers[number] = {
            "Id": number,
            "Name": "/eager_" + number[:6],
            "Config": {
                "Tty": False,
                "Labels": body.get("Labels") or {},
                "Env": body.get("Env"),
                "Image": body["Image"],
            },
            "HostConfig": body["HostConfig"],
            "State": {"Status": "created", "Pid": 0},
            "NetworkSettings": {"Ports": {}},
            "Image": IMAGE["Id"],
        }
        self.note()
        return {"Id": number, "Warnings": []}

    def start(self, container: dict[str, Any]) -> None:
        faults = self.faults()
        host = container["HostConfig"]
        devices = [device["PathOnHost"] for device in host.get("Devices") or []]
        if faults.get("no_kvm") and "/dev/kvm" in devices:
            raise Refused(
                500,
                'error gathering device information while adding custom device "/dev/kvm": no such file or directory',
            )
        if "start_says" in faults:
            raise Refused(500, faults["start_says"])
        published = {}
        for inside, bindings in host["PortBindings"].items():
            wanted = bindings[0]
            number = int(wanted["HostPort"] or 0) or free_port()
            if number in faults.get("busy_ports", []):
                endpoint = f"{container['Name'][1:]}"
                raise Refused(
                    500,
                    f"driver failed programming external connectivity on endpoint {endpoint}: Bind for "
                    f"{wanted['HostIp'] or '0.0.0.0'}:{number} failed: port is already allocated",
                )
            published[inside] = [{"HostIp": wanted["HostIp"] or "0.0.0.0", "HostPort": str(number)}]
        disk = self.state / container["Id"]
        disk.mkdir()
        (disk / "installed.txt").write_text("from the image")
        address = published["5000/tcp"][0]
        container["NetworkSettings"]["Ports"] = published
        container["State"]["Status"] = "running"
        if "dies" in faults:
            container["State"]["Status"] = "exited"
        else:
            command = [
                sys.executable,
                str(GUEST),
                address["HostIp"],
                address["HostPort"],
                str(disk),
                "640x480",
            ]
            command.append(str(faults.get("boot_s", 0.0)))
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            container["State"]["Pid"] = process.pid
        self.note()

    def pause(self, container: dict[str, Any], paused: bool) -> None:
        status = container["State"]["Status"]
        if status != ("running" if paused else "paused"):
            raise Refused(
                409, f"Container {container['Id']} is {'already paused' if paused else 'not paused'}"
            )
        os.kill(container["State"]["Pid"], signal.SIGSTOP if paused else signal.SIGCONT)
        container["State"]["Status"] = "paused" if paused else "running"
        self.note()

    def remove(self, container: dict[str, Any], force: bool) -> None:
        if container["State"]["Status"] in ("running", "paused") and not force:
            raise Refused(
                409,
                f"You cannot remove a running container {container['Id']}. "
                "Stop the container before attempting removal or force remove",
            )
        self.kill(container)
        shutil.rmtree(self.state / container["Id"], ignore_errors=True)
        del self.containers[container["Id"]]
        self.note()

    def kill(self, container: dict[str, Any]) -> None:
        if container["State"]["Pid"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(container["State"]["Pid"], signal.SIGKILL)
            container["State"]["Pid"] = 0


class Routes(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: Engine

    def log_message(self, *_: object) -> None:
        pass

    def address_string(self) -> str:
        return "unix"

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        path = unquote(re.sub(r"^/v1\.\d+", "", url.path))
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        try:
            with self.engine.lock:
                status, answer = self.act(f"{self.command} {path}", query, json.loads(body) if body else {})
        except Refused as error:
            status, answer = error.status, {"message": str(error)}
        raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        raw = b"" if status == 204 else raw
        self.send_response(status)
        self.send_header("Api-Version", "1.43")
        self.send_header("Content-Type", "text/plain" if isinstance(answer, bytes) else "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    do_GET = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

    def act(self, call: str, query: dict[str, str], body: dict[str, Any]) -> tuple[int, Any]:
        engine = self.engine
        if call.endswith("/_ping"):
            return 200, b"OK"
        if call == "GET /version":
            return 200, {"Version": "24.0.7", "ApiVersion": "1.43", "MinAPIVersion": "1.12"}
        if match := re.fullmatch(r"GET /images/(.+)/json", call):
            return 200, engine.image(match[1])
        if call == "POST /containers/create":
            return 201, engine.create(body)
        if call == "GET /containers/json":
            return 200, self.listed(json.loads(query.get("filters", "{}")).get("label", []))
        match = re.fullmatch(r"(\w+) /containers/(\w+)(?:/(\w+))?", call)
        if match is None:
            raise Refused(404, "page not found")
        container = engine.find(match[2])
        what = f"{match[1]} {match[3] or ''}".strip()
        if what == "GET json":
            return 200, container
        if what == "GET logs":
            said = f"{engine.faults().get('dies', '')}\n".encode()
            return 200, b"\x01\0\0\0" + len(said).to_bytes(4, "big") + said
        if what == "POST start":
            engine.start(container)
        elif what in ("POST pause", "POST unpause"):
            engine.pause(container, what == "POST pause")
        elif what == "DELETE":
            engine.remove(container, query.get("force", "").lower() in ("1", "true"))
        else:
            raise Refused(404, "page not found")
        return 204, {}

    def listed(self, labels: list[str]) -> list[dict[str, Any]]:
        return [
            {
                "Id": container["Id"],
                "Names": [container["Name"]],
                "Image": container["Config"]["Image"],
                "Labels": container["Config"]["Labels"],
                "State": container["State"]["Status"],
            }
            for container in self.engine.containers.values()
            if all(label.partition("=")[0] in container["Config"]["Labels"] for label in labels)
        ]


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def main() -> None:
    path, state = sys.argv[1:]
    engine = Engine(Path(state))
    Routes.engine = engine

    def end(*_: object) -> None:
        for container in engine.containers.values():
            engine.kill(container)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    Server(path, Routes).serve_forever()


if __name__ == "__main__":
    main()
