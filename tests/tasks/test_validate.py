import json
import runpy
from pathlib import Path

import pytest

from arpo.protocol.problems import ConfigError
from arpo.tasks import osworld_names
from arpo.tasks.validate import file_problems, parse_task, read_task

EXACT = {
    "func": "exact_match",
    "result": {"type": "vm_command_line", "command": ["true"]},
    "expected": {"type": "rule", "rules": {"expected": ""}},
}


def document(**changes):
    return {"id": "a", "instruction": "Do it.", "config": [], "evaluator": EXACT, **changes}


def test_the_name_table_equals_the_installed_package():
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts/osworld_names.py"))
    names = script["read_names"]()

    def flat(families):
        return {name: family for family, members in families.items() for name in members}

    assert names.version == osworld_names.DESKTOP_ENV_VERSION
    assert flat(names.metrics) == osworld_names.METRICS
    assert flat(names.getters) == osworld_names.GETTERS
    assert set(names.setup_steps) == osworld_names.SETUP_STEPS
    assert osworld_names.METRICS["check_file_exists"] == "gimp"  # defined twice: the later import wins


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"evaluator": {**EXACT, "func": "compare_tabel"}},
            "evaluator.func: unknown metric 'compare_tabel'; nearest: 'compare_table'",
        ),
        (
            {"evaluator": {**EXACT, "result": {"type": "vm_fil"}}},
            "evaluator.result.type: unknown getter 'vm_fil'; nearest: 'vm_file'",
        ),
        (
            {"evaluator": {**EXACT, "expected": {"type": "rulez"}}},
            "evaluator.expected.type: unknown getter 'rulez'; nearest: 'rule'",
        ),
        (
            {"evaluator": {**EXACT, "expected": {"rules": 1}}},
            "evaluator.expected.type: missing; name a getter",
        ),
        (
            {"evaluator": {**EXACT, "result": {}}},
            "evaluator.result: missing; say what 'exact_match' is given",
        ),
        (
            {"config": [{"type": "lunch", "parameters": {}}]},
            "config.0.type: unknown setup step 'lunch'; nearest: 'launch'",
        ),
        (
            {"evaluator": {**EXACT, "postconfig": [{"type": "slepp"}]}},
            "evaluator.postconfig.0.type: unknown setup step 'slepp'; nearest: 'sleep'",
        ),
        (
            {"evaluator": {**EXACT, "func": ["exact_match", "exact_match"]}},
            "evaluator.result: one object, but func is a list of 2; give a list of 2",
        ),
        (
            {"evaluator": {"func": ["exact_match"], "result": [EXACT["result"]] * 2}},
            "evaluator.result: 2 entries, but func has 1",
        ),
        (
            {"evaluator": {**EXACT, "result": [EXACT["result"]]}},
            "evaluator.result: a list, but func is one name; give an object",
        ),
        ({"evaluator": {**EXACT, "conj": "xor"}}, "evaluator.conj: input should be 'and' or 'or'"),
        (
            {"id": "a\nWARNING forged"},
            "id: it has characters that do not print",
        ),
        (
            {"id": "\x1b]0;title\x07"},
            "id: it has characters that do not print",
        ),
        ({"id": "a\u2028b"}, "id: it has characters that do not print"),
        ({"id": "a\u202eb"}, "id: it has characters that do not print"),
        ({"instruction": ""}, "instruction: string should have at least 1 character"),
        ({"evaluator": {"func": 3}}, "evaluator.func: input should be a valid string"),
    ],
)
def test_an_invalid_task_is_refused_with_file_field_and_reason(changes, message):
    with pytest.raises(ConfigError) as caught:
        parse_task(document(**changes), "suites/x/examples/calc/a.json")
    assert str(caught.value).startswith(f"suites/x/examples/calc/a.json: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["bb5e4c0d-f964-439c-97b6-bdb9747de3f4", "calc-sum-column", "Überweisung 2/3", "x" * 200]
)
def test_an_id_is_any_line_of_text(name):
    assert parse_task(document(id=name), "task").id == name


def test_an_infeasible_task_needs_no_getter():
    task = parse_task(document(evaluator={"func": "infeasible"}), "task")
    assert task.evaluator.infeasible
    assert task.evaluator.terms() == ()


def test_lists_of_metrics_pair_with_their_getters_and_options():
    result, expected = EXACT["result"], EXACT["expected"]
    task = parse_task(
        document(
            evaluator={
                "func": ["exact_match", "check_include_exclude"],
                "result": [result, result],
                "expected": [None, expected],
                "options": [{}, {"a": 1}],
                "conj": "or",
            }
        ),
        "task",
    )
    first, second = task.evaluator.terms()
    assert (first.func, first.expected, first.options) == ("exact_match", None, {})
    assert (second.func, second.expected, second.options) == ("check_include_exclude", expected, {"a": 1})


def test_the_wire_form_is_the_document_that_was_read():
    original = document(snapshot="calc", trajectory="trajectories/", proxy=False)
    assert parse_task(original, "task", domain="calc").wire() == original


def test_a_file_reports_every_problem_it_has(tmp_path):
    path = tmp_path / "b.json"
    path.write_text(json.dumps(document(config=[{"type": "lunch"}, {"type": "opne"}])))
    assert file_problems(path) == [
        f"{path}: id: 'a' is not the file's name 'b'",
        f"{path}: config.0.type: unknown setup step 'lunch'; nearest: 'launch'",
        f"{path}: config.1.type: unknown setup step 'opne'; nearest: 'open'",
    ]
    with pytest.raises(ConfigError, match=r"is not the file's name 'b' \(and 2 more\)"):
        read_task(path)


def test_a_file_that_is_no_json_names_the_place(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"id": }')
    with pytest.raises(ConfigError, match=r"not JSON: .*line 1, column 8"):
        read_task(path)
    with pytest.raises(ConfigError, match="no such task file"):
        read_task(tmp_path / "none.json")
