"""Setup steps and file sources over a real guest and a real HTTP server."""

import asyncio
import http.server
import threading
import time
from dataclasses import replace

import pytest

from arpo.desktop import sources
from arpo.desktop.addresses import AddressPolicy
from arpo.desktop.setup import _STEPS, _UNSUPPORTED, SetupContext, SetupError, run_setup
from arpo.desktop.sources import SourceError, Sources, inside
from arpo.providers.base import Addresses
from arpo.providers.simulated.provider import SimulatedProvider
from arpo.tasks.model import SetupStep
from arpo.tasks.osworld_names import SETUP_STEPS

LOCAL = AddressPolicy.parse(["127.0.0.1"])


@pytest.fixture
def web():
    """A server and what it was asked for. /missing is 404, /broken 500, /huge 1 TiB, it says; else it answers the path."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response({"/missing": 404, "/broken": 500}.get(self.path, 200))
            if self.path == "/huge":
                self.send_header("Content-Length", str(2**40))
            self.end_headers()
            self.wfile.write(self.path.encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def set_up(steps, folder, *, addresses=None, **context):
    """Run steps on a fresh guest; returns it."""

    async def run():
        guest = replace(await SimulatedProvider().start(), addresses=addresses or Addresses())
        parsed = [SetupStep(type=kind, parameters=parameters) for kind, parameters in steps]
        await run_setup(parsed, SetupContext(guest, Sources(allow=LOCAL), folder, **context))
        return guest

    return asyncio.run(run()).client.machine


def test_every_step_type_of_osworld_is_performed_or_refused_with_a_reason():
    assert set(_STEPS) | set(_UNSUPPORTED) == SETUP_STEPS
    assert not set(_STEPS) & set(_UNSUPPORTED)


def test_files_come_over_http_and_from_suites_and_from_inside_the_task(web, tmp_path):
    address, _ = web
    files = [
        {"url": f"{address}/page", "path": "/home/user/page"},
        {"url": "suite:simulated/files/milk.txt", "path": "/home/user/milk"},
        {"url": "data:;base64,aGVsbG8=", "path": "/home/user/data"},
        {"url": "data:,a%20b", "path": "/home/user/text"},
    ]
    machine = set_up([("download", {"files": files})], tmp_path)
    names = ("page", "milk", "data", "text")
    assert [machine.files.read_text(f"~/{name}") for name in names] == ["/page", "milk", "hello", "a b"]


def test_upload_file_takes_the_files_that_download_takes(tmp_path):
    files = [{"local_path": "suite:simulated/files/milk.txt", "path": "/home/user/milk"}]
    assert set_up([("upload_file", {"files": files})], tmp_path).files.read_text("~/milk") == "milk"


def fetch(url, **arguments):
    return asyncio.run(Sources(**{"allow": LOCAL, **arguments}).fetch(url))


def test_a_download_is_kept_when_there_is_a_place_for_it(web, tmp_path):
    address, asked = web
    for _ in range(2):
        assert fetch(f"{address}/page", cache=tmp_path / "cache") == b"/page"
    assert asked == ["/page"]
    assert fetch(f"{address}/page") == b"/page"
    assert asked == ["/page", "/page"]
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize(
    ("url", "reason", "permanent"),
    [
        ("{web}/missing", "HTTP 404", True),
        ("{web}/broken", "HTTP 500", False),
        ("http://127.0.0.1:9/", "ConnectError", False),
        ("file:///etc/passwd", "only suite:", True),
        ("/etc/passwd", "only suite:", True),
        ("suite:simulated/../../sets.py", "leads outside", True),
        ("suite:nowhere/a", "no suite 'nowhere'", True),
        ("data:;base64,%%%", "data: URL", True),
        ("data:nothing", "without a comma", True),
    ],
)
def test_a_file_that_cannot_be_had_says_why_and_whether_to_try_again(web, url, reason, permanent):
    with pytest.raises(SourceError, match=reason) as caught:
        fetch(url.format(web=web[0]))
    assert caught.value.permanent is permanent


def test_a_download_that_is_too_large_is_refused(web, monkeypatch):
    with pytest.raises(SourceError, match="larger than 256 MiB") as caught:
        fetch(f"{web[0]}/huge")
    assert caught.value.permanent
    monkeypatch.setattr(sources, "MAX_DOWNLOAD_BYTES", 5)
    assert fetch(f"{web[0]}/page") == b"/page"
    with pytest.raises(SourceError, match="larger than"):
        fetch(f"{web[0]}/pages")


def test_a_task_given_name_stays_inside_its_folder(tmp_path):
    assert inside(tmp_path, "a/b.txt") == tmp_path / "a/b.txt"
    for name in ("../a", "/etc/passwd", "a/../../b"):
        with pytest.raises(SourceError, match="leads outside"):
            inside(tmp_path, name)
    with pytest.raises(SetupError, match=r"setup step 1 \(execute\): '../a' leads outside"):
        set_up([("execute", {"command": ["echo", "x"], "stdout": "../a"})], tmp_path)


def test_commands_know_the_screen_and_the_password(tmp_path):
    command = "echo {SCREEN_WIDTH} {SCREEN_HEIGHT_HALF} {CLIENT_PASSWORD} > ~/a"
    machine = set_up([("execute", {"command": command, "shell": True})], tmp_path, password="pw")
    assert machine.files.read_text("~/a") == "640 240 pw\n"


def test_execute_repeats_until_its_condition_holds(tmp_path):
    # each round adds a line; the third has three
    command = "echo x >> ~/a; wc -l ~/a"
    step = ("execute", {"command": command, "shell": True, "until": {"stdout": "3"}})
    assert set_up([step], tmp_path).files.read_text("~/a") == "x\n" * 3


def test_a_launch_without_a_shell_splits_its_command_as_osworld_does(tmp_path):
    machine = set_up([("launch", {"command": "notes /home/user/new.txt"})], tmp_path)
    assert machine.active.title == "new.txt - Notes"


def test_windows_are_raised_and_closed_by_name(tmp_path):
    steps = [
        ("launch", {"command": ["notes"]}),
        ("launch", {"command": ["calculator"]}),
        ("open", {"path": "/home/user"}),
        ("activate_window", {"window_name": "untitled"}),
        ("close_window", {"window_name": "calculator", "by_class": True, "strict": True}),
    ]
    assert [app.name for app in set_up(steps, tmp_path).windows] == ["files", "notes"]


def test_a_missing_window_fails_a_setup_after_a_while_but_not_a_postconfig(tmp_path):
    step = [("activate_window", {"window_name": "Gimp"})]
    began = time.monotonic()
    with pytest.raises(SetupError, match=r"\(activate_window\): no window 'Gimp' after 0.5 s"):
        set_up(step, tmp_path, window_wait_s=0.5)
    assert time.monotonic() - began >= 0.5
    set_up(step, tmp_path, windows_may_be_missing=True)


def test_a_verified_command_fails_when_its_effect_does_not_come(tmp_path):
    def verified(**verification):
        parameters = {"command": ["notes"], "verification": verification, "max_wait_time": 0.1}
        return set_up([("execute_with_verification", {**parameters, "check_interval": 0.05})], tmp_path)

    assert verified(window_exists="Notes", command_success="test -d ~").active.name == "notes"
    for wrong in ({"window_exists": "Gimp"}, {"command_success": "test -f ~/none"}):
        with pytest.raises(SetupError, match=r"did not come true in 0.1 s"):
            verified(**wrong)


def test_what_a_guest_cannot_do_is_an_error_with_its_words(tmp_path):
    with pytest.raises(SetupError, match="gsettings: command not found"):
        set_up([("change_wallpaper", {"path": "/a.png"})], tmp_path)


@pytest.mark.parametrize(
    ("kind", "parameters", "reason"),
    [
        ("download", {"files": "suite:a"}, "files: input should be a valid list"),
        ("download", {"files": [{"url": 7, "path": "/a"}]}, "files.0.url: input should be a valid string"),
        ("upload_file", {"files": [{"path": "/a"}]}, "'local_path' is missing"),
        ("open", {"path": ["/a"]}, "path: input should be a valid string"),
        ("launch", {"command": {"a": 1}}, "command."),
        ("execute", {"command": "true", "stdout": 1}, "stdout: input should be a valid string"),
        (
            "execute",
            {"command": "true", "until": {"stdout": 1}},
            "until.stdout: input should be a valid string",
        ),
        ("execute", {"command": "true", "cwd": "/"}, "unexpected keyword argument 'cwd'"),
        ("execute", {"command": "true", "context": "x"}, "unexpected keyword argument 'context'"),
        ("sleep", {"seconds": "long"}, "seconds: input should be a valid number"),
        ("chrome_open_tabs", {"urls_to_open": "http://a/"}, "urls_to_open: input should be a valid list"),
    ],
)
def test_parameters_of_the_wrong_shape_are_the_tasks_fault_and_named(kind, parameters, reason, tmp_path):
    with pytest.raises(SetupError) as caught:
        set_up([(kind, parameters)], tmp_path)
    assert caught.value.task_is_wrong
    assert str(caught.value).startswith(f"setup step 1 ({kind}): ")
    assert reason in str(caught.value)


@pytest.mark.parametrize("name", ["", " ", ".", "a\0b", "x" * 300, "../a", "/etc/a", "said.txt/a"])
def test_a_name_that_cannot_be_written_ends_the_step_and_writes_nothing(name, tmp_path):
    folder = tmp_path / "episode"
    folder.mkdir()
    (folder / "said.txt").write_text("x")
    step = ("execute", {"command": ["echo", "x"], "stdout": name})
    if name:
        with pytest.raises(SetupError, match=r"setup step 1 \(execute\): "):
            set_up([step], folder)
    else:
        set_up([step], folder)  # no name: nothing to keep
    assert [path.name for path in tmp_path.rglob("*")] == ["episode", "said.txt"]


def test_a_program_in_the_guest_that_poses_as_chromium_fails_its_step(web, tmp_path):
    addresses = Addresses(chromium=web[0].removeprefix("http://"))
    with pytest.raises(
        SetupError, match=r"\(chrome_close_tabs\): .* answered what is no list of tabs: '/json/list'"
    ):
        set_up([("chrome_close_tabs", {"urls_to_close": ["a"]})], tmp_path, addresses=addresses)
