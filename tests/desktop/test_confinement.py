"""What a task tries on this host through its evaluator: refused, never a score, and nothing of a file is told."""

import ast
import asyncio
import contextlib
import importlib.util
import inspect
import io
import json
import logging
import pickle
import socket
import sqlite3
import subprocess
import sys
import tarfile
import threading
from collections import defaultdict
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from arpo.desktop import confinement, landlock, osworld
from arpo.desktop.addresses import AddressPolicy
from arpo.desktop.confinement import TAKES_PATHS
from arpo.desktop.evaluate import evaluate
from arpo.desktop.evaluator_messages import Answer, MetricCall, read_reply
from arpo.desktop.evaluators import EvaluatorPool, EvaluatorRefused
from arpo.desktop.getters import GetterContext
from arpo.desktop.setup import SetupContext
from arpo.desktop.sources import Sources
from arpo.protocol.problems import ProblemCode, ProblemError
from arpo.providers.base import Addresses
from arpo.providers.simulated.provider import SimulatedProvider
from arpo.tasks.osworld_names import METRICS
from arpo.tasks.validate import parse_task

SECRET = "hunter2-of-this-host"
kernel_wall = pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")


@pytest.fixture
def folder(tmp_path):
    """The episode's folder; beside it lies secret.txt."""
    (tmp_path / "secret.txt").write_text(SECRET)
    (tmp_path / "episode").mkdir()
    return tmp_path / "episode"


def rule(value):
    return {"type": "rule", "rules": value}


def data(content, name):
    return {"type": "cloud_file", "path": f"data:,{content}", "dest": name}


def outcome(evaluator, folder, *, addresses=None, **pool_arguments):
    """The score of an evaluator, or the ProblemError in its place."""

    async def run():
        pool = EvaluatorPool(workers=1, **pool_arguments)
        guest = replace(await SimulatedProvider().start(), addresses=addresses or Addresses())
        await guest.client.write_file("/home/user/a.txt", b"a")
        sources = Sources()
        setup = SetupContext(guest, sources, folder, windows_may_be_missing=True)
        task = parse_task({"id": "t", "instruction": "i", "evaluator": evaluator}, "task")
        getters = GetterContext(guest, sources, folder, pool, timeout_s=60)
        try:
            return await evaluate(task, setup, getters, pool, gave_up=False)
        except ProblemError as error:
            return error
        finally:
            await pool.close()

    return asyncio.run(run())


def refused(evaluator, folder, caplog, **arguments):
    caplog.set_level(logging.DEBUG)
    problem = outcome(evaluator, folder, **arguments)
    assert isinstance(problem, ProblemError), f"a score of {problem}"
    assert problem.code is ProblemCode.EVALUATOR_FAILED
    assert SECRET not in problem.problem.detail + caplog.text
    assert "root:" not in problem.problem.detail + caplog.text
    return problem.problem.detail


A_FILE = {"type": "vm_file", "path": "/home/user/a.txt", "dest": "a.txt"}
NO_FILE = {"type": "vm_file", "path": "/none", "dest": "a.txt"}
REACHING = {
    "a path where rules belong": ("compare_text_file", A_FILE, rule("{secret}"), {}),
    "the same path twice, which would score 1": ("compare_text_file", rule("{secret}"), rule("{secret}"), {}),
    "a path although there is no result": ("compare_table", NO_FILE, rule("{secret}"), {}),
    "a system file": ("compare_text_file", rule("/etc/passwd"), rule("/etc/passwd"), {}),
    "a relative path": ("compare_text_file", A_FILE, rule("../../../../../../etc/shadow"), {}),
    "a path that is not there": ("compare_text_file", A_FILE, rule("/none/at/all"), {}),
    "what the agent says": (
        "check_list", {"type": "vm_command_line", "command": ["echo", "-n", "{secret}"]}, rule({"expect": ["h"]}), {},
    ),
    "only whether it is there": ("check_file_exists", rule("{secret}"), None, {}),
    "a C library": ("check_libre_locale", rule("{secret}"), rule({"locale_set": ["en"]}), {}),
    "a database": ("run_sqlite3", rule("{secret}"), rule({"sql": "select 1"}), {}),
    "SQL": ("run_sqlite3", rule(":memory:"), rule({"sql": "ATTACH DATABASE '{secret}' AS a"}), {}),
    "the environment of the process": (
        "compare_text_file", rule("/proc/self/environ"), rule("/proc/self/environ"), {},
    ),
    "a getter that opens its path": (
        "exact_match", {"type": "conference_city_in_order", "csv_path": "{secret}", "expected": "x"}, rule({}), {},
    ),
    "a folder in an archive's options": (
        "compare_archive", data("{tar}", "a.tar"), data("{tar}", "b.tar"), {"file_path": "{outside}"},
    ),
    "an option, only whether it is there": ("check_file_exists", data("a", "b"), None, {"filename": "{secret}"}),
    "an option that climbs": ("check_file_exists", data("a", "b"), None, {"filename": "../../secret.txt"}),
    "an option that is not there": ("check_file_exists", data("a", "b"), None, {"filename": "/none/at/all"}),
    "an option in a list": ("compare_pdfs", data("a", "b"), None, {"pdf2_path": [["{secret}"]]}),
    "an option's key": ("compare_pdfs", data("a", "b"), None, {"pdf2_path": {"{secret}": 1}}),
    "an argument's key": ("compare_pdfs", data("a", "b"), rule({"{secret}": 1}), {}),
    "an option of a C library": ("compare_audios", data("a", "b"), None, {"audio_path_2": "{secret}"}),
    "another option of a C library": ("compare_videos", data("a", "b"), None, {"video_path2": "{secret}"}),
    "SQL in an option": (
        "run_sqlite3", rule(":memory:"), None, {"rules": {"sql": "ATTACH DATABASE '{secret}' AS a"}},
    ),
    "an option that Python opens": ("compare_text_file", data("a", "b"), None, {"expected": "{secret}"}),
}  # fmt: skip


@pytest.mark.parametrize("name", REACHING)
def test_no_evaluator_reads_another_file_of_this_host(name, folder, caplog):
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    blanks = {
        "{secret}": str(folder.parent / "secret.txt"),
        "{outside}": str(folder.parent),
        "{tar}": "".join(f"%{byte:02x}" for byte in tar.getvalue()),
    }
    func, result, expected, options = REACHING[name]
    text = json.dumps({"func": func, "result": result, "expected": expected, "options": options})
    for blank, value in blanks.items():
        text = text.replace(blank, value)
    detail = refused(json.loads(text), folder, caplog)
    assert func in detail
    assert "it may not " in detail


def test_what_the_task_may_read_still_scores(folder):
    assert outcome({"func": "compare_text_file", "result": A_FILE, "expected": data("a", "b")}, folder) == 1.0
    assert outcome({"func": "compare_text_file", "result": A_FILE, "expected": data("b", "c")}, folder) == 0.0


def test_a_file_beside_the_result_may_be_asked_for(folder):
    def score(name):
        (folder / "there").mkdir(exist_ok=True)
        (folder / "there/a.txt").touch()
        result = {"type": "cache_file", "path": "there"}
        return outcome({"func": "check_file_exists", "result": result, "options": {"filename": name}}, folder)

    assert score("a.txt") == 1.0
    assert score("b.txt") == 0.0


def test_a_link_that_an_archive_left_is_not_asked_for(folder, caplog):
    (folder / "link").symlink_to(folder.parent)
    evaluator = {
        "func": "check_file_exists",
        "result": data("a", "b"),
        "options": {"filename": "../link/secret.txt"},
    }
    assert "it may not read" in refused(evaluator, folder, caplog)


def test_rules_may_name_files_of_the_guest_and_expressions(folder):
    path = "/home/user/../user/Documents"
    (folder / "a.json").write_text(json.dumps({"folder": path}))
    rules = {"expect": [{"key": ["folder"], "method": "re", "ref": "^/home/.+/Doc"},
                        {"key": ["folder"], "method": "eq", "ref": path}]}  # fmt: skip
    both = {"func": "check_json", "result": {"type": "cache_file", "path": "a.json"}}
    assert outcome({**both, "expected": rule(rules)}, folder) == 1.0
    assert outcome({**both, "options": {"rules": rules}}, folder) == 1.0


def archive_with(folder, *members):
    """A tar in the episode's folder of (name, link target or None)."""
    path = folder / "agent.tar"
    with tarfile.open(path, "w") as archive:
        for name, target in members:
            member = tarfile.TarInfo(name)
            if target is not None:
                member.type, member.linkname = tarfile.SYMTYPE, str(target)
            archive.addfile(member)
    return {"type": "cache_file", "path": path.name}


def test_a_link_in_an_archive_of_the_agents_leads_nowhere(folder, caplog):
    link = archive_with(folder, ("a.txt", folder.parent / "secret.txt"))
    evaluator = {
        "func": "compare_archive",
        "result": link,
        "expected": link,
        "options": {"file_type": "text"},
    }
    assert "compare_archive: it may not " in refused(evaluator, folder, caplog)


def test_an_archive_of_the_agents_writes_nothing_outside(folder, caplog):
    for name in ("../../planted", str(folder.parent / "planted")):
        climbing = archive_with(folder, (name, None))
        detail = refused(
            {"func": "compare_archive", "result": climbing, "expected": climbing}, folder, caplog
        )
        assert "it may not write" in detail
    assert not (folder.parent / "planted").exists()


def test_an_entity_in_xml_of_the_agents_is_not_filled_in(folder):
    secret = (folder.parent / "secret.txt").as_uri()
    (folder / "a.xcu").write_text(
        f"""<?xml version="1.0"?><!DOCTYPE a [<!ENTITY secret SYSTEM "{secret}">]>
        <oor:items xmlns:oor="http://openoffice.org/2001/registry">
        <item oor:path="/org.openoffice.Setup/L10N"><prop oor:name="ooSetupSystemLocale"><value>&secret;</value>
        </prop></item></oor:items>"""
    )
    result = {"type": "cache_file", "path": "a.xcu"}
    for value in (SECRET, "-".join(SECRET.split("-")[:2])):
        evaluator = {
            "func": "check_libre_locale",
            "result": result,
            "expected": rule({"locale_set": [value]}),
        }
        assert outcome(evaluator, folder) != 1.0


@contextlib.contextmanager
def guest_over_http():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<root/>")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_getter_writes_its_copy_inside_the_episodes_folder_only(folder, caplog):
    with guest_over_http() as address:
        addresses = Addresses(server=address, vlc=address)
        evaluator = {"func": "exact_match", "expected": rule({"expected": "x"})}

        def playing(dest):
            return {**evaluator, "result": {"type": "vlc_playing_info", "dest": dest}}

        named = Addresses(vlc=address.replace("127.0.0.1", "localhost"))
        for name, reached in (("a.xml", addresses), ("b.xml", named)):
            assert outcome(playing(name), folder, addresses=reached) == 0.0
            assert (folder / name).exists()
        for dest in ("../outside.xml", str(folder.parent / "outside.xml")):
            detail = refused(playing(dest), folder, caplog, addresses=addresses)
            assert "exact_match: result (vlc_playing_info): it may not write" in detail
        assert not (folder.parent / "outside.xml").exists()


@pytest.mark.parametrize("dest", ["../a", "/etc/a", "", ".", "a\\b", "x" * 300, "a.txt/b", 3, None])
def test_our_own_getters_copy_into_the_episodes_folder_or_say_why_not(folder, caplog, dest):
    (folder / "a.txt").write_text("x")
    before = set(folder.parent.iterdir())
    evaluator = {
        "func": "check_list",
        "result": {**A_FILE, "dest": dest},
        "expected": rule({"expect": ["a"]}),
    }
    if dest == "a\\b":
        assert outcome(evaluator, folder) == 1.0
    else:
        assert "check_list: result (vm_file): " in refused(evaluator, folder, caplog)
    assert set(folder.parent.iterdir()) == before


@pytest.mark.parametrize(
    "getter",
    [{"type": "vm_file", "path": ["a"], "dest": "a"}, {"type": "vm_file", "multi": True, "path": ["a"], "dest": []},
     {"type": "vm_file", "multi": True, "path": "a", "dest": "a"}, {"type": "vm_file", "path": "/a"},
     {"type": "vm_file", "path": "/home/user/a.txt", "dest": "a", "gives": 0}, {"type": "cache_file"},
     {"type": "cloud_file", "path": 7, "dest": "a"}, {"type": "vm_command_line", "command": {}},
     {"type": "list_directory"}, {"type": "content_from_vm_file", "path": []}, {"type": "rule"}],
)  # fmt: skip
def test_a_getter_of_the_wrong_shape_is_named(getter, folder, caplog):
    evaluator = {"func": "exact_match", "result": getter, "expected": rule({})}
    assert f"exact_match: result ({getter['type']}): " in refused(evaluator, folder, caplog)


def probe(code, folder, *, name="probe", **arguments):
    """What a metric that runs `code` as test() returns; it can do whatever Python can."""
    (folder / f"{name}.py").write_text(
        f"def test():\n    import os, socket, sqlite3, ctypes\n    {code}\n    return True\n"
    )
    call = MetricCall("check_python_file_by_test_suite", ("", str(folder / f"{name}.py")), {}, str(folder))

    async def run():
        pool = EvaluatorPool(workers=1, run_agent_code=True, **arguments)
        try:
            return await pool.call(call, timeout_s=60)
        finally:
            await pool.close()

    return asyncio.run(run())


def test_an_evaluator_connects_to_public_and_allowed_addresses_only(folder):
    with guest_over_http() as address:
        port = int(address.rpartition(":")[2])
        code = f"socket.create_connection(('{{}}', {port}), 5)"
        with pytest.raises(
            EvaluatorRefused, match=r"it may not connect to '127\.0\.0\.1' .* is a loopback address"
        ):
            probe(code.format("127.0.0.1"), folder)
        assert probe(code.format("127.0.0.1"), folder, allow=AddressPolicy.parse(["127.0.0.1"])) == 1.0
    with pytest.raises(EvaluatorRefused, match=r"169\.254\.169\.254 is a link-local address"):
        probe(
            "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('169.254.169.254', 80))", folder
        )


def test_sockets_of_this_host_are_out_of_reach(folder):
    path = folder.parent / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(EvaluatorRefused, match="use a socket of this host"):
            probe(f"socket.socket(socket.AF_UNIX).connect({str(path)!r})", folder)


@pytest.mark.parametrize(
    "code",
    [
        "open({secret!r})",
        "os.open({secret!r}, os.O_RDONLY)",
        "open({secret!r}.encode(), 'ab')",
        "os.listdir({outside!r})",
        "list(os.scandir({outside!r}))",
        "os.remove({secret!r})",
        "os.rename({secret!r}, 'mine')",
        "os.symlink('x', {outside!r} + '/link')",
        "os.link({secret!r}, 'mine')",
        "os.mkdir({outside!r} + '/made')",
        "os.chmod({secret!r}, 0o777)",
        "os.truncate({secret!r}, 0)",
        "os.chdir({outside!r})",
        "sqlite3.connect({outside!r} + '/new.db')",
        "sqlite3.connect('file:' + {secret!r}, uri=True)",
        "__import__('shutil').rmtree({outside!r})",
        "ctypes.CDLL({secret!r})",
        "os.symlink({secret!r}, {inside!r} + '/link'); open({inside!r} + '/link')",
        "__import__('threading').Thread(target=open, args=({secret!r},)).run()",
    ],
)
def test_python_itself_is_held_to_the_episodes_folder(code, folder):
    words = {
        "secret": str(folder.parent / "secret.txt"),
        "outside": str(folder.parent),
        "inside": str(folder),
    }
    with pytest.raises(EvaluatorRefused, match="it may not "):
        probe(f"try: {code.format(**words)}\n    except OSError: pass", folder)
    assert (folder.parent / "secret.txt").read_text() == SECRET
    assert sorted(path.name for path in folder.parent.iterdir()) == ["episode", "secret.txt"]


@kernel_wall
def test_below_python_the_kernel_holds_it(folder):
    secret, database = str(folder.parent / "secret.txt"), str(folder.parent / "other.db")
    sqlite3.connect(database).execute("CREATE TABLE secrets (a)")
    (folder / "own.db").touch()
    attach = "sqlite3.connect(':memory:').execute(\"ATTACH DATABASE '{}' AS a\")"
    assert probe(attach.format(folder / "own.db"), folder) == 1.0
    assert probe(attach.format(database), folder) == 0.0
    assert probe(f"assert ctypes.CDLL(None).open({secret.encode()!r}, 0) == -1", folder) == 1.0
    assert probe(f"assert os.system('cat {secret}') != 0", folder, name="program") == 1.0


@kernel_wall
def test_a_process_that_served_one_episode_serves_the_next_and_no_longer_the_first(tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        (folder / "a.txt").write_text("x")

    async def run():
        pool = EvaluatorPool(workers=1)

        def compare(path, folder):
            call = MetricCall("compare_text_file", (str(path / "a.txt"),) * 2, {}, str(folder))
            return pool.call(call, timeout_s=60)

        try:
            for folder in (*folders, *folders):
                assert await compare(folder, folder) == 1.0
            (worker,) = pool._idle
            with pytest.raises(EvaluatorRefused, match="it may not read"):
                await compare(folders[0], folders[1])
            assert pool._idle == [worker]
        finally:
            await pool.close()

    asyncio.run(run())


def test_what_a_metric_leaves_lying_about_is_gone_with_the_call(folder):
    code = "d = tempfile.gettempdir(); assert not os.listdir(d); open(d + '/left', 'w').close()"
    homes = []

    async def run():
        pool = EvaluatorPool(workers=1, run_agent_code=True)
        for name in ("one", "two"):
            (folder / f"{name}.py").write_text(
                f"import os, tempfile\ndef test():\n    {code}\n    return True\n"
            )
            call = MetricCall(
                "check_python_file_by_test_suite", ("", str(folder / f"{name}.py")), {}, str(folder)
            )
            assert await pool.call(call, timeout_s=60) == 1.0
            homes.append(pool._idle[0].folder.path)
            assert not list(homes[-1].rglob("left"))
        await pool.close()

    asyncio.run(run())
    assert homes[0] == homes[1]
    assert not homes[0].exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds a process's memory so")
def test_a_file_that_unfolds_into_more_than_the_memory_is_no_end_of_the_process(folder, caplog):
    with (folder / "a.txt").open("wb") as file:
        file.truncate(2**34)
    both = {"type": "cache_file", "path": "a.txt"}
    assert "MemoryError" in refused(
        {"func": "compare_text_file", "result": both, "expected": both}, folder, caplog
    )


def test_without_the_kernels_help_the_env_server_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(landlock, "abi", lambda: 0)

    async def run():
        pool = EvaluatorPool(workers=2)
        calls = (
            pool.call(MetricCall("exact_match", (n, {"expected": n}), {}), timeout_s=60) for n in range(2)
        )
        await asyncio.gather(*calls)
        await pool.close()

    asyncio.run(run())
    assert [record.levelname for record in caplog.records if "Landlock" in record.message] == ["WARNING"]


def test_python_alone_refuses_where_there_is_no_landlock(folder):
    program = f"""
from pathlib import Path
from arpo.desktop import landlock
landlock.abi = lambda: 0
from arpo.desktop.addresses import AddressPolicy
from arpo.desktop.evaluator_messages import MetricCall, Order
from arpo.desktop.evaluator_worker import confined
secret = {str(folder.parent / "secret.txt")!r}
calls = [("compare_text_file", (secret, secret), {{}}), ("check_libre_locale", (secret, {{"locale_set": ["en"]}}), {{}}),
         ("run_sqlite3", (":memory:", {{"sql": "attach '" + secret + "' as a"}}), {{}}),
         ("check_libre_locale", (), {{"config_file": secret, "rules": {{"locale_set": ["en"]}}}})]
for name, arguments, options in calls:
    reply = confined(Order(MetricCall(name, arguments, options, {str(folder)!r}), AddressPolicy()), Path.cwd())
    print(reply.refused, reply.reason)
"""
    result = subprocess.run(
        [sys.executable, "-P", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 4, result.stderr
    assert all(line.startswith("True it may not ") for line in lines)
    assert SECRET not in result.stdout


def test_every_metric_that_hands_a_path_to_c_code_has_its_arguments_checked():
    unseen = {"cv2.imread", "cv2.VideoCapture", "fitz.open", "lxml.etree.parse", "librosa.load", "sqlite3.connect",
              "os.path.exists", "os.path.isfile", "os.path.getsize", "os.stat"}  # fmt: skip
    (root,) = importlib.util.find_spec("desktop_env").submodule_search_locations
    calls = defaultdict(set)
    for module in Path(root).glob("evaluators/metrics/*.py"):
        for function in ast.parse(module.read_text()).body:
            if isinstance(function, ast.FunctionDef):
                found = (node for node in ast.walk(function) if isinstance(node, ast.Call))
                calls[function.name] |= {ast.unparse(call.func) for call in found}

    def reaches(name, seen):
        seen.add(name)
        return calls[name] & unseen or any(
            reaches(c, seen) for c in calls[name] if c in calls and c not in seen
        )

    assert {name for name in METRICS if reaches(name, set())} == TAKES_PATHS


def test_every_parameter_of_those_metrics_is_a_path_a_name_or_known_to_be_data():
    paths = {
        "actual_config_path", "audio_path_1", "audio_path_2", "config_file", "directory", "expected", "file_path",
        "filename", "gold_path", "image1", "image2", "image_path", "pdf1_path", "pdf2_path", "pred_path", "result",
        "src_path", "tgt_path", "video_path1", "video_path2",
    }  # fmt: skip
    data = {"is_yaml", "line_number", "max_frames_to_check", "rule", "rules", "threshold"}
    named = {
        parameter.name
        for metric in TAKES_PATHS
        for parameter in inspect.signature(osworld.load_metric(metric)).parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    assert named <= paths | data
    assert data == confinement._DATA - {"file_type"}
    assert not confinement._DATA & paths


def test_a_reply_carries_plain_data_only():
    assert read_reply(pickle.dumps(Answer({"a": [1, {2}, b"x"]}))).value == {"a": [1, {2}, b"x"]}
    for value in (subprocess.Popen, Path("a"), json.dumps):
        with pytest.raises(pickle.UnpicklingError):
            read_reply(pickle.dumps(Answer(value)))
    with pytest.raises(pickle.UnpicklingError):
        read_reply(pickle.dumps("x"))
