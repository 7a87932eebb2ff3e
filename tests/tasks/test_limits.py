"""No JSON document makes the reading of a task fail in any other way than by one readable line."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.protocol.codec import JSON, MSGPACK, encode
from arpo.protocol.messages import CreateSession, SessionOptions
from arpo.protocol.problems import ConfigError
from arpo.server.app import HttpLimits
from arpo.tasks import limits
from arpo.tasks.osworld_names import GETTERS, METRICS, SETUP_STEPS
from arpo.tasks.validate import file_problems, parse_task, read_task

EVALUATOR = {"func": "infeasible"}


def document(**changes):
    return {"id": "a", "instruction": "Do it.", "evaluator": EVALUATOR, **changes}


def nested(depth):
    value = []
    for _ in range(depth - 1):
        value = [value]
    return value


def refusal(value):
    with pytest.raises(ConfigError) as caught:
        parse_task(value, "task")
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"note": "x" * 2**20}, "task: note: the task is larger than 1024 KiB (files inside it not counted)"),
        ({"note": {"deep": nested(70)}}, ": more than 64 lists and objects inside one another"),
        ({"config": [{"type": "sleep"}] * 201}, "task: config: list should have at most 200 items"),
        (
            {"evaluator": {**EVALUATOR, "postconfig": [{"type": "sleep"}] * 201}},
            "task: evaluator.postconfig: list should have at most 200 items",
        ),
        ({"instruction": "x" * 20_001}, "task: instruction: string should have at most 20000 characters"),
        ({"id": "x" * 201}, "task: id: string should have at most 200 characters"),
        (
            {"config": [{"type": "x" * 201}]},
            "task: config.0.type: string should have at most 200 characters",
        ),
        (
            {"evaluator": {"func": ["exact_match"] * 65, "result": [{"type": "rule"}] * 65}},
            "task: evaluator.func: 65 metrics; 64 are the most",
        ),
        ({"note": float("nan")}, "task: note: nan is not JSON"),
        ({"note": 10**5000}, "task: note: an integer of more than 64 bits"),
        ({"note": ["\ud800"]}, "task: note.0: text with half a surrogate pair"),
        ({"note": {"\ud800": 1}}, "task: note: a key is text with half a surrogate pair"),
        ({"note": {1: 1}}, "task: note: a key is a int, not a string"),
        ({"note": b"x"}, "task: note: a bytes is not JSON"),
        (
            {"config": [{"type": "open", "parameters": {"path": "/a\0b"}}]},
            "task: config.0.parameters.path: text with a NUL character",
        ),
        (
            {"config": [{"type": "open", "parameters": {}, "more\nlines": 1}]},
            r"task: config.0.'more\nlines': extra inputs are not permitted",
        ),
    ],
)
def test_what_is_too_large_or_no_json_is_refused_with_its_field_and_limit(changes, message):
    found = refusal(document(**changes))
    assert message in found
    assert "\n" not in found
    assert len(found) < 1000


def test_what_is_just_small_enough_is_taken():
    parse_task(
        document(
            config=[{"type": "sleep"}] * limits.MAX_STEPS,
            instruction="x" * limits.MAX_INSTRUCTION,
            id="x" * limits.MAX_NAME,
            note=nested(limits.MAX_DEPTH - 1),
            numbers=[2**64 - 1, -(2**63), 1.5, True, None],
            much="x" * (limits.MAX_TASK_BYTES * 9 // 10),
        ),
        "task",
    )


def test_files_inside_a_task_have_a_limit_of_their_own():
    def with_files(size):
        files = [{"url": "data:," + "x" * size, "path": "/a"}]
        return document(config=[{"type": "download", "parameters": {"files": files}}])

    parse_task(with_files(6 * 2**20), "task")
    assert "the task's files are larger than 5 MiB; serve them over HTTP" in refusal(with_files(7 * 2**20))


def largest(build, most):
    """The document of the largest accepted size, within a tenth."""
    while limits.size_problem(build(most)) is not None:
        most = most * 9 // 10
    return build(most)


@pytest.mark.parametrize(
    ("item", "build"),
    [
        ("A", lambda size: "A" * size),
        ("é", lambda size: "é" * size),
        ("\x01", lambda size: "\x01" * size),
        ("\U0001f600", lambda size: "\U0001f600" * size),
        (10**9, lambda size: {str(10**9 + number): None for number in range(size)}),
        (-(2**63), lambda size: [-(2**63)] * size),
        (0.5, lambda size: [0.5] * size),
    ],
    ids=["ascii", "latin", "control", "emoji", "keys", "integers", "floats"],
)
def test_the_largest_task_fits_into_a_request(item, build):
    rest = largest(build, limits.MAX_TASK_BYTES // (1 if isinstance(item, str) else 9))
    text = item if isinstance(item, str) else "A"
    whole = document(note=rest, file=largest(lambda size: "data:," + text * size, limits.MAX_FILE_BYTES))
    whole["note"] = (
        whole["note"][:-100] if isinstance(rest, str | list) else rest
    )  # room for the other fields
    parse_task(whole, "task")
    options = SessionOptions(client_id="é" * 200)
    request = CreateSession(task=whole, options=options)
    sent = [
        encode(request, JSON), encode(request, MSGPACK),
        json.dumps({"task": whole, "options": options.model_dump()}).encode(),
    ]  # fmt: skip
    assert 6 * 2**20 < max(map(len, sent)) <= HttpLimits().max_body_bytes


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"id": ' + b"9" * 5000 + b"}", b"\xff\xfe", b'{"id": NaN}', b"", b'{"a": "\\ud800"}'],
)
def test_a_file_that_no_reader_likes_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_task(path)
    assert "\n" not in str(caught.value)
    assert len(file_problems(path)) >= 1


def test_a_huge_file_is_not_even_read(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ConfigError, match=r"larger than 7\.7 MiB, the most for a task"):
        read_task(path)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
FIELDS = (
    "id instruction config evaluator func result expected options conj postconfig type parameters path domain and or "
    "infeasible"
)
words = st.sampled_from([*FIELDS.split(), *METRICS, *GETTERS, *SETUP_STEPS])
anything = st.recursive(
    scalars | words | st.just("x" * 300_000) | st.builds(nested, st.integers(1, 200)),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(words | st.text(), inner, max_size=6),
    max_leaves=30,
)
tasks = st.fixed_dictionaries(
    {"id": st.just("a") | anything, "instruction": st.just("i") | anything},
    optional={
        "config": anything
        | st.lists(st.fixed_dictionaries({"type": words}, optional={"parameters": anything})),
        "evaluator": st.just(EVALUATOR)
        | anything
        | st.fixed_dictionaries(
            {"func": words | st.lists(words) | anything},
            optional=dict.fromkeys(("result", "expected", "options", "conj", "postconfig"), anything),
        ),
        "path": anything,
    },
)


@given(anything | tasks)
@settings(max_examples=300, deadline=None)
def test_any_json_is_a_task_or_one_readable_line(value):
    try:
        task = parse_task(value, "task")
    except ConfigError as error:
        refused = str(error)
    else:
        refused = "a readable line"
        assert task.wire() == {name: item for name, item in value.items() if name not in ("path", "domain")}
        json.dumps(task.wire(), allow_nan=False).encode()
        assert task.path is None
    assert refused.isprintable()
    assert len(refused) < 1000
