"""Stands for a guest that runs OSWorld's server: its routes, its habits, its disk, and a pyautogui that writes down input.

`python osworld_guest.py HOST PORT DISK WIDTHxHEIGHT [BOOT_S]`: the "disk" is a folder, which is the guest's home. What
was typed is in `typed.txt` there and is what the screen shows. Commands are really run.

Habits of OSWorld's server that are kept: it makes no folders for uploads, says that a window was activated whether there
is one or not, and answers 500 with `{"status": "error"}` when a command cannot be started.
"""

from __future__ import annotations

import contextlib
import email.parser
import email.policy
import io
import json
import os
import shlex
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

from PIL import Image, ImageDraw

PYAUTOGUI = """
import json, os
KEYS = "ctrl alt shift win enter tab esc space backspace delete up down left right home end apps".split()
home = os.path.expanduser("~")

def note(*what):
    with open(home + "/events.jsonl", "a") as file:
        file.write(json.dumps(what) + "\\n")

def write(text):
    note("write", text)
    with open(home + "/typed.txt", "a") as file:
        file.write(text)

def hotkey(*keys):
    note("hotkey", *keys)
    if keys == ("enter",):
        write("\\n")

def isValidKey(key):
    return len(key) == 1 or key in KEYS

def __getattr__(name):
    if name.startswith("_"):
        raise AttributeError(name)
    return lambda *args, **how: note(name, *args, *how.values())
"""


class Guest(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], disk: Path, screen: tuple[int, int]) -> None:
        self.disk, self.screen = disk, screen
        library = disk / ".lib"
        library.mkdir(exist_ok=True)
        (library / "pyautogui.py").write_text(PYAUTOGUI)
        with contextlib.suppress(FileExistsError):
            (library / "python").symlink_to(sys.executable)
        self.environment = {
            "HOME": str(disk),
            "PATH": f"{library}:/usr/bin:/bin",
            "PYTHONPATH": str(library),
        }
        super().__init__(address, Routes)


class Routes(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Guest

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/screenshot":
            self.answer(200, self.picture(), "image/png")
        elif self.path == "/terminal":
            self.answer_json(200, {"output": None, "status": "success"})
        elif self.path == "/accessibility":
            self.answer_json(200, {"AT": "<desktop-frame/>"})
        else:
            self.answer(404, b"Not Found", "text/html")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            if self.path in ("/execute", "/setup/execute"):
                self.execute(json.loads(body))
            elif self.path == "/setup/launch":
                self.launch(json.loads(body))
            elif self.path in ("/setup/activate_window", "/setup/close_window"):
                self.answer(200, b"Window activated successfully", "text/html")
            elif self.path == "/setup/upload":
                fields = self.form(body)
                Path(fields["file_path"].decode()).write_bytes(fields["file_data"])
                self.answer(200, b"File Uploaded", "text/html")
            elif self.path == "/file":
                path = Path(parse_qs(body.decode())["file_path"][0])
                if path.exists():
                    self.answer(200, path.read_bytes(), "application/octet-stream")
                else:
                    self.answer_json(404, {"error": "File not found"})
            else:
                self.answer(404, b"Not Found", "text/html")
        except Exception as error:
            self.answer_json(500, {"status": "error", "message": str(error)})

    def execute(self, body: dict) -> None:
        result = subprocess.run(
            self.wanted(body),
            shell=body.get("shell", False),
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.server.disk,
            env=self.server.environment,
            check=False,
        )
        answer = {"status": "success", "output": result.stdout, "error": result.stderr}
        self.answer_json(200, {**answer, "returncode": result.returncode})

    def launch(self, body: dict) -> None:
        command = self.wanted(body)
        subprocess.Popen(
            command, shell=body.get("shell", False), cwd=self.server.disk, env=self.server.environment
        )
        self.answer(200, f"{command} launched successfully".encode(), "text/html")

    def wanted(self, body: dict) -> str | list[str]:
        command = body["command"]
        return shlex.split(command) if isinstance(command, str) and not body.get("shell") else command

    def form(self, body: bytes) -> dict[str, bytes]:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
        return {
            str(part.get_param("name", header="content-disposition")): part.get_payload(decode=True) or b""
            for part in message.iter_parts()  # type: ignore[attr-defined]
        }

    def picture(self) -> bytes:
        image = Image.new("RGB", self.server.screen, "teal")
        typed = self.server.disk / "typed.txt"
        if typed.exists():
            ImageDraw.Draw(image).text((10, 10), typed.read_text(), "white")
        out = io.BytesIO()
        image.save(out, "PNG", compress_level=1)
        return out.getvalue()

    def answer_json(self, status: int, body: dict) -> None:
        self.answer(status, json.dumps(body).encode(), "application/json")

    def answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    host, port, disk, size, *boot = sys.argv[1:]
    width, height = map(int, size.split("x"))
    os.setpgid(0, 0)
    time.sleep(float(boot[0]) if boot else 0)
    Guest((host, int(port)), Path(disk), (width, height)).serve_forever()


if __name__ == "__main__":
    main()
