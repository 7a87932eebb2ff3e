"""OSWorld's guest API, so that its controllers, getters and set-up steps run on this server unmodified."""

from __future__ import annotations

import platform
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import accessibility, files
from .machine import Machine
from .programs import Finished, OutputTooLarge, execute
from .recording import Recorder
from .terminal import terminal_text
from .wallpaper import Wallpaper
from .web import Handler, HttpError, Request, Response, json_response, text_response
from .windows import Window

_EXECUTE_TIMEOUT_S = 120.0
_MAX_FILE_BYTES = 64 * 2**20  # the env-server reads no more of one

# Routes after which a quiet desktop is as quiet as before.
_ONLY_LOOKS = frozenset(
    {("GET", "/screenshot"), ("GET", "/platform"), ("GET", "/cursor_position"), ("POST", "/file")}
)


def routes(machine: Machine) -> Mapping[tuple[str, str], Handler]:
    """The table of OSWorld's routes."""
    looking = _Looking(machine)
    setting_up = _SettingUp(machine)
    recorder = Recorder(machine.display, machine.screen.size)
    table: dict[tuple[str, str], Handler] = {
        ("GET", "/screenshot"): looking.screenshot,
        ("GET", "/accessibility"): looking.accessibility,
        ("GET", "/terminal"): looking.terminal,
        ("GET", "/platform"): lambda _: text_response(platform.system()),
        ("GET", "/cursor_position"): lambda _: json_response(machine.hands.position()),
        ("POST", "/screen_size"): looking.screen_size,
        ("POST", "/window_size"): looking.window_size,
        ("POST", "/wallpaper"): setting_up.wallpaper,
        ("POST", "/desktop_path"): lambda _: json_response({"desktop_path": str(Path.home() / "Desktop")}),
        ("POST", "/list_directory"): list_directory,
        ("POST", "/file"): read_file,
        ("POST", "/execute"): run_command,
        ("POST", "/run_python"): run_python,
        ("POST", "/run_bash_script"): run_bash_script,
        ("POST", "/start_recording"): lambda _: recorder.start(),
        ("POST", "/end_recording"): lambda _: recorder.end(),
        ("POST", "/setup/execute"): run_command,
        ("POST", "/setup/execute_with_verification"): setting_up.execute_with_verification,
        ("POST", "/setup/launch"): setting_up.launch,
        ("POST", "/setup/open_file"): setting_up.open_file,
        ("POST", "/setup/upload"): upload,
        ("POST", "/setup/download_file"): download_file,
        ("POST", "/setup/activate_window"): setting_up.activate_window,
        ("POST", "/setup/close_window"): setting_up.close_window,
        ("POST", "/setup/change_wallpaper"): setting_up.change_wallpaper,
    }
    return {
        route: handler if route in _ONLY_LOOKS else _disturbing(machine, handler)
        for route, handler in table.items()
    }


def _disturbing(machine: Machine, handler: Handler) -> Handler:
    def handle(request: Request) -> Response | None:
        machine.settler.disturb()
        return handler(request)

    return handle


def _field(body: Mapping[str, Any], name: str) -> Any:
    value = body.get(name)
    if not value:
        raise HttpError(400, f"{name} is required")
    return files.at_home(value)


def _run(
    command: str | list[str], *, shell: bool = False, timeout_s: float, cwd: str | None = None
) -> Finished:
    try:
        return execute(command, shell=shell, timeout_s=timeout_s, cwd=cwd)
    except subprocess.TimeoutExpired:
        raise HttpError(
            500, f"not finished within {timeout_s:g} s: {command}", returncode=-1, output=""
        ) from None
    except OutputTooLarge as error:
        raise HttpError(413, f"ended: {error}: {command}", returncode=-1, output="") from None
    except (OSError, ValueError) as error:
        raise HttpError(500, str(error), returncode=-1, output="") from None


def _finished(result: Finished, *, status: str = "success", **extra: object) -> Response:
    answer = {
        "status": status,
        "output": result.output,
        "error": result.error,
        "returncode": result.returncode,
    }
    return json_response(answer | extra)


def run_command(request: Request) -> Response:
    """`/execute`: 200 with output, error and return code, whatever the code is.

    500 when it could not be run or did not end in time, 413 when it was ended because it printed too much.
    """
    body = request.json()
    timeout_s = float(body.get("timeout") or _EXECUTE_TIMEOUT_S)
    return _finished(_run(_field(body, "command"), shell=bool(body.get("shell")), timeout_s=timeout_s))


def run_python(request: Request) -> Response:
    """`/run_python`: a Python script."""
    result = _run(["python3", "-c", _field(request.json(), "code")], timeout_s=_EXECUTE_TIMEOUT_S)
    status = "error" if result.returncode else "success"
    return _finished(result, status=status, message=result.output, need_more=False)


def run_bash_script(request: Request) -> Response:
    """`/run_bash_script`: a bash script, its two outputs together."""
    body = request.json()
    script, timeout_s = str(_field(body, "script")), float(body.get("timeout") or 30)
    result = _run(["bash", "-c", f"exec 2>&1\n{script}"], timeout_s=timeout_s, cwd=body.get("working_dir"))
    return _finished(result, status="error" if result.returncode else "success")


def read_file(request: Request) -> Response:
    """`/file`: a file's content; 404 when there is none, 413 when it is too large."""
    path = files.resolve(_field(request.form, "file_path"))
    if not path.is_file():  # a device or a pipe might never end
        raise HttpError(404, f"File not found: {path}")
    with path.open("rb") as file:
        content = file.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise HttpError(413, f"larger than {_MAX_FILE_BYTES >> 20} MiB: {path}")
    return Response(content, "application/octet-stream")


def list_directory(request: Request) -> Response:
    """`/list_directory`: OSWorld's directory tree."""
    folder = files.resolve(_field(request.json(), "path"))
    if not folder.is_dir():
        raise HttpError(400, f"not a directory: {folder}")
    return json_response({"directory_tree": files.tree(folder)})


def upload(request: Request) -> Response:
    """`/setup/upload`: a file sent as a form."""
    path = files.resolve(_field(request.form, "file_path"))
    if "file_data" not in request.files:
        raise HttpError(400, "file_data is required")
    files.write(path, request.files["file_data"].data)
    return text_response("File Uploaded")


def download_file(request: Request) -> Response:
    """`/setup/download_file`: fetch a URL from inside the desktop."""
    body = request.json()
    url, path = str(_field(body, "url")), files.resolve(_field(body, "path"))
    if not url.startswith(("http://", "https://")):
        raise HttpError(400, f"not an http URL: {url}")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - the scheme was checked
            files.write(path, answer.read())
    except OSError as error:
        raise HttpError(500, f"cannot download {url}: {error}") from None
    return text_response("File downloaded successfully")


class _Looking:
    """Routes that look at the desktop."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def screenshot(self, _: Request) -> Response:
        return Response(self._machine.screen.png(), "image/png")

    def accessibility(self, _: Request) -> Response:
        return json_response({"AT": accessibility.tree_in_subprocess()})

    def terminal(self, _: Request) -> Response:
        return json_response({"output": terminal_text(self._machine), "status": "success"})

    def screen_size(self, _: Request) -> Response:
        width, height = self._machine.screen.size
        return json_response({"width": width, "height": height})

    def window_size(self, request: Request) -> Response:
        name = _field(request.form, "app_class_name")
        windows = self._machine.windows.list()
        for window in windows:
            if name.lower() in [text.lower() for text in window.classes]:
                return json_response({"width": window.width, "height": window.height})
        raise HttpError(404, f"no window of class {name!r}")


class _SettingUp:
    """Routes that bring the desktop into a task's initial state."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._wallpaper = Wallpaper(machine.windows)

    def launch(self, request: Request) -> Response:
        body = request.json()
        command = _field(body, "command")
        try:
            self._machine.launcher.launch(command, shell=bool(body.get("shell")))
        except (OSError, ValueError) as error:
            raise HttpError(500, str(error)) from None
        return text_response(
            f"{command if isinstance(command, str) else ' '.join(command)} launched successfully"
        )

    def open_file(self, request: Request) -> Response:
        path = files.resolve(_field(request.json(), "path"))
        if not path.exists():
            raise HttpError(404, f"File not found: {path}")
        try:
            self._machine.launcher.open_file(path)
        except (OSError, TimeoutError) as error:
            raise HttpError(500, f"Failed to open {path}: {error}") from None
        return text_response("File opened successfully")

    def execute_with_verification(self, request: Request) -> Response:
        """Run a command, then wait until a window exists or a second command succeeds."""
        body = request.json()
        wanted = body.get("verification") or {}
        deadline = time.monotonic() + float(body.get("max_wait_time") or 10)
        result = _run(_field(body, "command"), shell=bool(body.get("shell")), timeout_s=_EXECUTE_TIMEOUT_S)
        while True:
            if self._verified(wanted, shell=bool(body.get("shell"))):
                return _finished(result, verification="passed")
            if time.monotonic() >= deadline:
                raise HttpError(500, f"not verified in time: {wanted}", output=result.output)
            time.sleep(float(body.get("check_interval") or 1.0))

    def _verified(self, wanted: Mapping[str, Any], *, shell: bool) -> bool:
        name, command = wanted.get("window_exists"), wanted.get("command_success")
        if name and self._machine.windows.find(name) is None:
            return False
        return (
            not command or _run(command, shell=shell or isinstance(command, str), timeout_s=5).returncode == 0
        )

    def activate_window(self, request: Request) -> Response:
        self._machine.windows.activate(self._named_window(request))
        return text_response("Window activated successfully")

    def close_window(self, request: Request) -> Response:
        self._machine.windows.close(self._named_window(request))
        return text_response("Window closed successfully.")

    def _named_window(self, request: Request) -> Window:
        body = request.json()
        name, strict, by_class = (
            _field(body, "window_name"),
            bool(body.get("strict")),
            bool(body.get("by_class")),
        )
        window = self._machine.windows.find(name, strict=strict, by_class=by_class)
        if window is None:
            raise HttpError(404, f"no window named {name!r}")
        return window

    def wallpaper(self, _: Request) -> Response:
        path = self._wallpaper.path
        if path is None:
            raise HttpError(404, "no wallpaper was set")
        return Response(path.read_bytes(), "image/png")

    def change_wallpaper(self, request: Request) -> Response:
        path = files.resolve(_field(request.json(), "path"))
        if not path.is_file():
            raise HttpError(404, f"File not found: {path}")
        self._wallpaper.path = path
        return text_response("Wallpaper changed successfully")
