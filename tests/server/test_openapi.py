"""The OpenAPI document and what the server does are the same thing: thousands of generated requests say so."""

from __future__ import annotations

import hashlib
import itertools
import re
from base64 import b64decode
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from server_process import ServerProcess, server_process

from arpo.protocol import messages
from arpo.protocol.codec import PROBLEM_JSON
from arpo.protocol.problems import Problem, ProblemCode, ProblemError
from arpo.server.app import HttpLimits, create_app
from arpo.server.legacy_sessions import LegacySettings
from arpo.server.metrics import ServerMetrics

EXAMPLES = 120
"""Generated requests an operation: so many as the document wants them, and so many with something wrong."""

TASK = {"id": "t", "instruction": "do it", "evaluator": {"func": "infeasible"}}


class Target:
    """A running server, a session on it for the requests that need one, and how often was asked what."""

    def __init__(self, server: ServerProcess) -> None:
        trainer, admin = (line.split()[0] for line in (server.folder / "token").read_text().splitlines()[:2])
        self.url = server.url
        self.admin = {"Authorization": f"Bearer {admin}"}
        # The session is a trainer's, and the generated requests are an admin's, who may do everything.
        self.http = httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {trainer}"}, timeout=30
        )
        self.asked = 0
        self.statuses: dict[int, int] = {}
        self._session: dict[str, Any] | None = None

    def session(self) -> dict[str, Any]:
        """A session that is ready, with its lease and its next seq."""
        if self._session is not None:
            view = self.http.get(f"/v1/sessions/{self._session['session_id']}").json()
            if view.get("state") == "ready" and view.get("score") is None:
                return {**self._session, "seq": view["seq"] + 1}
            self.http.delete(f"/v1/sessions/{self._session['session_id']}")
        made = self.http.post("/v1/sessions", json={"task": TASK})
        assert made.status_code == 201, made.text
        self._session = made.json()
        self.http.get(f"/v1/sessions/{self._session['session_id']}", params={"wait_s": 10})
        return {**self._session, "seq": 1}

    def release_others(self) -> None:
        """Give desktops back, so that no later request is refused for want of one."""
        kept = self._session and self._session["session_id"]
        for session in httpx.get(f"{self.url}/v1/sessions", headers=self.admin, timeout=30).json()[
            "sessions"
        ]:
            if session["session_id"] != kept:
                httpx.delete(
                    f"{self.url}/v1/sessions/{session['session_id']}", headers=self.admin, timeout=30
                )


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("openapi")
    with server_process(folder, "--capacity", "6", "--screen", "640x480") as server:
        yield Target(server)


def document() -> dict[str, Any]:
    """The document, without a server: requests are generated from it when the tests are collected."""
    nothing = SimpleNamespace(metrics=ServerMetrics(), pool=None)
    return create_app(
        nothing, None, provider="", screen=(0, 0), limits=HttpLimits(), legacy=LegacySettings()
    ).openapi()


schema = schemathesis.openapi.from_dict(document())
turn = itertools.count()

CONFORMANCE = [
    schemathesis.checks.CHECKS.get_one(name)
    for name in ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
]


def test_the_server_serves_the_document_that_the_requests_are_made_from(target: Target) -> None:
    assert target.http.get("/openapi.json").json() == document()


def aimed(case, target: Target):
    """Two of three creations ask for a task that can run; two of three requests about a session are about one that is
    there, half of them with its lease and often with its seq.
    """
    number = next(turn)
    if isinstance(case.body, dict) and "task" in case.body and number % 3:
        case.body = {**case.body, "task": TASK}
    if "session_id" not in (case.path_parameters or {}) or number % 3 == 0:
        return case
    session = target.session()
    case.path_parameters["session_id"] = session["session_id"]
    if isinstance(case.body, dict) and number % 3 == 1:
        case.body = {**case.body, "lease": session["lease"]}
        if number % 2 and "seq" in case.body:
            case.body["seq"] = session["seq"]
    return case


def names_a_lost_session(case, problem: Problem) -> bool:
    named = (case.path_parameters or {}).get("session_id", "")
    return problem.code is ProblemCode.BACKEND_LOST and bool(
        re.fullmatch(r"[0-9a-f]{8}\.[0-9a-f]{16}", named)
    )


OPERATIONS = {found.ok().label: found.ok() for found in schema.get_all_operations()}


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", OPERATIONS)
def test_every_answer_is_one_that_the_document_declares(
    label: str, mode: GenerationMode, target: Target
) -> None:
    @given(case=requests(OPERATIONS[label], mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    def ask(case) -> None:
        case = aimed(case, target)
        response = case.call(base_url=target.url, headers=target.admin)
        target.asked += 1
        target.statuses[response.status_code] = target.statuses.get(response.status_code, 0) + 1
        if response.status_code >= 400:
            assert response.headers["content-type"] == [PROBLEM_JSON], response.text
            problem = Problem.model_validate_json(response.content)
            # The one fault of the environment that a request by itself can bring about: it names a session of a
            # server that is no more, as the document's example does.
            assert response.status_code < 500 or names_a_lost_session(case, problem), response.text
        case.validate_response(response, checks=CONFORMANCE)
        if response.status_code == 201:
            target.release_others()

    ask()


def requests(operation, mode: GenerationMode):
    """Requests to an operation: as the document wants them, or with something wrong; those that cannot go wrong are as
    the document wants them.
    """
    wrong_is_possible = bool(operation.body or operation.query or operation.path_parameters)
    return operation.as_strategy(generation_mode=mode if wrong_is_possible else GenerationMode.POSITIVE)


@pytest.mark.slow
def test_that_were_thousands_of_requests_and_the_server_still_works(target: Target) -> None:
    assert target.asked >= 2000
    assert target.statuses[200] > 100
    assert target.statuses[422] > 100
    session = target.session()
    step = {"lease": session["lease"], "seq": session["seq"], "actions": [{"kind": "fail"}]}
    assert target.http.post(f"/v1/sessions/{session['session_id']}/step", json=step).json()["done"] is True
    score = target.http.post(
        f"/v1/sessions/{session['session_id']}/evaluate", json={"lease": session["lease"]}
    )
    assert score.json() == {"score": 1.0}


def test_without_a_token_every_operation_but_the_probes_is_unauthorized(target: Target) -> None:
    document = target.http.get("/openapi.json").json()
    for path, item in document["paths"].items():
        for method, operation in item.items():
            reply = httpx.request(method, target.url + path.replace("{session_id}", "x"), timeout=30)
            if "security" in operation:
                assert (reply.status_code, "401" in operation["responses"]) == (401, True), (method, path)
            else:
                assert reply.status_code == 200, (method, path)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "TRACE", "OPTIONS"])
def test_a_method_that_is_not_there_is_a_problem_too(target: Target, method: str) -> None:
    reply = target.http.request(method, "/v1/sessions")
    assert reply.status_code == 405
    assert Problem.model_validate_json(reply.content).code is ProblemCode.INVALID_REQUEST


def test_every_declared_error_has_an_example_that_is_a_problem(target: Target) -> None:
    document = target.http.get("/openapi.json").json()
    for item in document["paths"].values():
        for operation in item.values():
            for status, response in operation["responses"].items():
                if int(status) < 400:
                    continue
                examples = response["content"][PROBLEM_JSON]["examples"]
                assert examples
                for code, example in examples.items():
                    problem = Problem.model_validate(example["value"])
                    assert (problem.code.value, ProblemError(problem.code, "").status) == (code, int(status))


def test_every_message_of_the_api_has_an_example_and_it_is_valid() -> None:
    kinds = [
        kind
        for kind in vars(messages).values()
        if isinstance(kind, type)
        and issubclass(kind, messages._Message)
        and (kind.__doc__ or "").startswith(("Body", "Reply"))
    ]
    assert len(kinds) >= 12
    for kind in kinds:
        (example,) = kind.model_config["json_schema_extra"]["examples"]
        kind.model_validate(example)


def test_the_example_of_a_picture_is_one() -> None:
    picture = messages.StepReply.model_config["json_schema_extra"]["examples"][0]["observation"]["screenshot"]
    assert hashlib.sha256(b64decode(picture["data"])).hexdigest() == picture["sha256"]
