"""The conversation of the legacy API, without a server."""

from __future__ import annotations

from base64 import b64decode

import pytest

from arpo.agent.grammar import FormatError
from arpo.agent.profiles import get_profile
from arpo.protocol.actions import Click, Fail, Finished, Type
from arpo.protocol.messages import Observation, Screenshot
from arpo.server.legacy_episode import LegacyEpisode

CLICK = "Thought: There.\nAction: click(start_box='(966,546)')"


def seen(picture: bytes, *, unchanged: bool = False) -> Observation:
    data = b"" if unchanged else picture
    return Observation(
        screenshot=Screenshot(width=1920, height=1080, sha256="0" * 64, data=data), unchanged=unchanged
    )


def episode(profile: str = "uitars-1.5", max_steps: int = 16) -> LegacyEpisode:
    profiled = get_profile(profile, min_pixels=3136, max_pixels=2116800)
    return LegacyEpisode(profiled, max_steps, "Open the moon.", seen(b"first").screenshot)


def pictures(one: LegacyEpisode) -> list[bytes]:
    parts = [part for message in one.history for part in message.content]
    return [b64decode(part.b64) for part in parts if part.type == "image"]


def test_the_opening_is_system_text_prompt_with_instruction_and_picture() -> None:
    system, prompt, picture = episode().history
    assert (system.role, prompt.role, picture.role) == ("system", "user", "user")
    assert system.content[0].text == "You are a helpful assistant."
    assert prompt.content[0].text.startswith("You are a GUI agent.")
    assert prompt.content[0].text.endswith("## User Instruction\nOpen the moon.")
    assert picture.content[0].model_dump() == {
        "type": "image",
        "b64": "Zmlyc3Q=",
        "min_pixels": 3136,
        "max_pixels": 2116800,
    }


def test_coordinates_are_read_as_the_profile_says() -> None:
    # 1920x1080 is resized to 1932x1092 for uitars-1.5, and is 1000x1000 for uitars-1.
    assert episode().plan(CLICK) == [Click(x=960, y=540)]
    assert episode("uitars-1").plan("Action: click(start_box='(500,500)')") == [Click(x=960, y=540)]


def test_a_step_adds_what_was_said_and_what_was_seen() -> None:
    one = episode()
    reply = one.acted(CLICK, one.plan(CLICK), seen(b"second"))
    assert (reply.is_done, reply.format_reward, reply.obs_messages) == (False, 0.0, one.history)
    assert [message.role for message in one.history] == ["system", "user", "user", "assistant", "user"]
    assert pictures(one) == [b"first", b"second"]


def test_a_screen_that_did_not_change_is_shown_again() -> None:
    one = episode()
    one.acted(CLICK, one.plan(CLICK), seen(b"", unchanged=True))
    one.acted(CLICK, one.plan(CLICK), seen(b"third"))
    one.acted(CLICK, one.plan(CLICK), seen(b"", unchanged=True))
    assert pictures(one) == [b"first", b"first", b"third", b"third"]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("click(start_box='(212,90)')", "click(start_box='<|box_start|>(212,90)<|box_end|>')"),
        (
            "drag(start_box='(1,2)', end_box='(3, 4)')",
            "drag(start_box='<|box_start|>(1,2)<|box_end|>', end_box='<|box_start|>(3, 4)<|box_end|>')",
        ),
        (
            "click(start_box='<|box_start|>(1,2)<|box_end|>')",
            "click(start_box='<|box_start|>(1,2)<|box_end|>')",
        ),
        ("type(content='a (1,2) b')", "type(content='a (1,2) b')"),
    ],
)
def test_history_has_the_box_tokens_that_decoding_dropped(said: str, kept: str) -> None:
    one = episode()
    prediction = f"Thought: x\nAction: {said}"
    one.acted(prediction, one.plan(prediction), seen(b"second"))
    assert one.history[3].content[0].text == f"Thought: x\nAction: {kept}"


@pytest.mark.parametrize("call", ["finished(content='done')", "finished()", "error_env()", "call_user()"])
def test_terminal_calls_end_the_episode(call: str) -> None:
    one = episode()
    reply = one.acted(f"Action: {call}", one.plan(f"Action: {call}"), seen(b"second"))
    assert (reply.is_done, reply.obs_messages, reply.format_reward) == (True, None, 0.0)
    assert one.done
    assert [message.role for message in one.history][-1] == "assistant"


def test_a_call_for_a_person_gives_the_task_up() -> None:
    assert episode().plan("Action: call_user()") == [Fail(reason="call_user")]
    assert episode().plan("Action: finished()") == [Finished()]


def test_actions_are_counted_and_cut_at_the_limit() -> None:
    one = episode(max_steps=3)
    two = "Action: type(content='a')\n\ntype(content='b')"
    assert not one.acted(two, one.plan(two), seen(b"second")).is_done
    assert one.plan(two) == [Type(text="a")]
    assert one.acted(two, one.plan(two), seen(b"third")).is_done
    assert pictures(one) == [b"first", b"second"]


def test_what_is_no_action_costs_the_format_reward_and_ends_the_episode() -> None:
    one = episode()
    with pytest.raises(FormatError):
        one.plan("I click on it.")
    reply = one.misspoke("I click on it.")
    assert (reply.is_done, reply.obs_messages, reply.format_reward) == (True, None, -1.0)
    assert one.history[-1].content[0].text == "I click on it."
