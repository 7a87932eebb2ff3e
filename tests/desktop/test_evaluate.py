"""Scores equal those of OSWorld's own `DesktopEnv.evaluate`, run unmodified."""

import ast
import asyncio
import importlib.util
import itertools
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from rapidfuzz import fuzz

from arpo.desktop.evaluate import evaluate
from arpo.desktop.evaluators import EvaluatorPool
from arpo.desktop.getters import GetterContext
from arpo.desktop.setup import SetupContext
from arpo.desktop.sources import Sources
from arpo.protocol.problems import ProblemCode, ProblemError
from arpo.providers.simulated.provider import SimulatedProvider
from arpo.tasks.validate import parse_task

ABSENT = {"type": "cache_file", "path": "never-written"}


def rule(value):
    return {"type": "rule", "rules": value}


RESULTS = {0.0: rule("xyz"), 0.5: rule("abxy"), 1.0: rule("abcd"), "absent": ABSENT}
EXPECTED = rule({"expected": "abcd"})


def missing(env, config):
    raise FileNotFoundError(config["path"])


def upstream_score(evaluator, last_action):
    """The score by `DesktopEnv`'s own methods, cut out of its module, which cannot be imported here."""
    root = Path(importlib.util.find_spec("desktop_env").submodule_search_locations[0])
    module = ast.parse((root / "desktop_env.py").read_text())
    (env,) = (node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "DesktopEnv")
    wanted = [n for n in env.body if getattr(n, "name", "") in ("_set_evaluator_info", "evaluate")]
    metrics = SimpleNamespace(
        fuzzy_match=lambda result, rules: fuzz.ratio(result, rules["expected"]) / 100,
        literal_match=lambda result, expected, **options: float(
            (str(result).lower() == str(expected).lower())
            if options.get("ignore_case")
            else result == expected
        ),
        infeasible=lambda: None,
    )
    getters = SimpleNamespace(get_rule=lambda env, config: config["rules"], get_cache_file=missing)
    scope = {"metrics": metrics, "getters": getters, "logger": logging.getLogger("test")}
    exec("from __future__ import annotations\nfrom typing import *\nMetric = Getter = Any", scope)
    exec(compile(ast.Module(wanted, []), "desktop_env.py", "exec"), scope)
    me = SimpleNamespace(
        setup_controller=SimpleNamespace(setup=lambda *_: None),
        enable_proxy=False,
        action_history=[last_action] if last_action else [],
    )
    scope["_set_evaluator_info"](me, {"evaluator": evaluator})
    return float(scope["evaluate"](me))


def own_scores(cases, tmp_path):
    """The score of every (evaluator, last action), or the ProblemError in its place."""

    async def run():
        pool = EvaluatorPool(workers=1)
        guest = await SimulatedProvider().start()
        sources = Sources()
        setup = SetupContext(guest, sources, tmp_path, windows_may_be_missing=True)
        getters = GetterContext(guest, sources, tmp_path, pool, timeout_s=20)
        scores = []
        for evaluator, last_action in cases:
            task = parse_task({"id": "t", "instruction": "i", "evaluator": evaluator}, "task")
            try:
                scores.append(await evaluate(task, setup, getters, pool, gave_up=last_action == "FAIL"))
            except ProblemError as error:
                scores.append(error)
        await pool.close()
        return scores

    return asyncio.run(run())


def evaluators():
    yield {"func": "infeasible"}
    for value in RESULTS.values():
        yield {"func": "fuzzy_match", "result": value, "expected": EXPECTED}
    for options in ({}, {"ignore_case": True}):
        yield {"func": "literal_match", "result": rule("ABCD"), "expected": rule("abcd"), "options": options}
    for conj in ("and", "or", None):
        for pair in itertools.product(RESULTS, repeat=2):
            if conj == "or" and "absent" in pair:
                continue  # there OSWorld goes on with an unset variable; ours counts that metric as 0
            case = {
                "func": ["fuzzy_match", "fuzzy_match"],
                "result": [RESULTS[one] for one in pair],
                "expected": [EXPECTED, EXPECTED],
            }
            yield case if conj is None else {**case, "conj": conj}
    yield {
        "func": ["literal_match", "fuzzy_match"],
        "result": [rule("ABCD"), rule("abxy")],
        "expected": [rule("abcd"), EXPECTED],
        "options": [{"ignore_case": True}, None],
    }


def test_every_combination_scores_as_upstream_does(tmp_path):
    cases = list(itertools.product(evaluators(), (None, "DONE", "FAIL")))
    own = own_scores(cases, tmp_path)
    assert len(cases) > 100
    assert own == pytest.approx([upstream_score(*case) for case in cases])
    assert {0.0, 0.5, 0.75, 1.0} <= set(own)  # the cases tell the rules apart


def test_an_alternative_without_its_file_counts_as_0(tmp_path):
    evaluator = {
        "func": ["fuzzy_match"] * 2,
        "result": [ABSENT, rule("abcd")],
        "expected": [EXPECTED] * 2,
        "conj": "or",
    }
    assert own_scores([(evaluator, None)], tmp_path) == [1.0]


def test_a_file_that_the_agent_did_not_make_scores_0(tmp_path):
    file = {"type": "vm_file", "path": "/none", "dest": "a"}
    evaluators = [
        # upstream raises TypeError for the first two: they cannot take None
        {"func": "run_sqlite3", "result": file, "expected": rule({"sql": "select 1"})},
        {
            "func": "is_in_list",
            "result": {"type": "list_directory", "path": "/none"},
            "expected": rule({"expected": "a"}),
        },
        {"func": "compare_table", "result": file, "expected": rule({})},
    ]
    assert own_scores([(evaluator, None) for evaluator in evaluators], tmp_path) == [0.0, 0.0, 0.0]


GOES_WRONG = [
    (
        {"func": "fuzzy_match", "result": rule("a"), "expected": {"type": "rule"}},
        "fuzzy_match: expected (rule): 'rules' is missing",
    ),
    (
        {"func": "exact_match", "result": rule("a"), "expected": ABSENT},
        "exact_match: expected (cache_file)",
    ),
    ({"func": "exact_match", "result": rule("a")}, "exact_match: TypeError"),
    (
        {"func": "run_sqlite3", "result": rule(":memory:"), "expected": rule({"sql": "select 7"})},
        "run_sqlite3: returned 7.0, not a score between 0 and 1",
    ),
    (
        {"func": "fuzzy_match", "result": {"type": "vlc_config", "dest": "a"}, "expected": rule({})},
        "fuzzy_match: result (vlc_config): the guest has no HTTP address",
    ),
    (
        {
            "func": "compare_image_text",
            "postconfig": [{"type": "execute", "parameters": {"command": ["echo", "x"], "stdout": "a.png"}}],
            "result": {"type": "cache_file", "path": "a.png"},
            "expected": rule({}),
        },
        "compare_image_text: it needs packages that are not installed (pip install easyocr)"
        if shutil.which("file")
        else "compare_image_text: it needs a program that is not installed (apt-get install file)",
    ),
    (
        {"func": "check_gnome_favorite_apps", "result": rule("__import__('os')"), "expected": rule({})},
        "it would execute files that the agent wrote",
    ),
    (
        {
            "func": "exact_match",
            "result": rule("a"),
            "postconfig": [{"type": "launch", "parameters": {"command": ["gimp"]}}],
        },
        "postconfig: setup step 1 (launch): gimp: command not found",
    ),
]


def test_whatever_goes_wrong_is_named_and_is_no_score(tmp_path):
    outcomes = own_scores([(evaluator, None) for evaluator, _ in GOES_WRONG], tmp_path)
    for outcome, (_, reason) in zip(outcomes, GOES_WRONG, strict=True):
        assert isinstance(outcome, ProblemError), reason
        assert outcome.code is ProblemCode.EVALUATOR_FAILED
        assert reason in outcome.problem.detail


def test_postconfig_runs_first_and_tolerates_a_window_that_the_agent_closed(tmp_path):
    evaluator = {
        "postconfig": [
            {"type": "activate_window", "parameters": {"window_name": "Notes"}},
            {"type": "execute", "parameters": {"command": ["echo", "hello"], "stdout": "said.txt"}},
        ],
        "func": "check_list",
        "result": {"type": "cache_file", "path": "said.txt"},
        "expected": rule({"expect": ["^hello$"]}),
    }
    assert own_scores([(evaluator, None)], tmp_path) == [1.0]
