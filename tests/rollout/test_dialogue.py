"""An episode in words: what the engine is shown of it, and that nothing can be learned from it."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Sequence

import pytest
from PIL import Image
from rollout_kit import CLICK, FINISH, NONSENSE, PROFILE, Letters, Says, rules, task
from scripted_desktop import SCREEN, Script, env_server

from arpo.config.sections import ReplaySection
from arpo.protocol.messages import Screenshot
from arpo.replay import ReplayBuffer, ReplayFolder
from arpo.rollout.dialogue import Words, open_dialogue
from arpo.rollout.engines.base import EngineError, EngineUnusableError, Message, Sampling, Utterance
from arpo.rollout.episode import EpisodeRunner
from arpo.rollout.groups import Episode
from arpo.trajectory import Trajectory
from arpo.trajectory.store import ScreenshotStore

WORDS = Words(history_screenshots=2, min_pixels=3_136, max_pixels=100_352)


class Talks:
    """A `WordsEngine` that says one text a turn; an exception among them is raised."""

    policy_version = 0

    def __init__(self, *replies: str | Exception) -> None:
        self.replies = replies
        self.heard: list[list[Message]] = []
        self.samplings: list[Sampling] = []

    async def say(self, messages: Sequence[Message], sampling: Sampling) -> Utterance:
        reply = self.replies[len(self.heard)]
        self.heard.append(list(messages))
        self.samplings.append(sampling)
        if isinstance(reply, Exception):
            raise reply
        return Utterance(reply)

    async def close(self) -> None: ...


def play(folder, engine: Talks, script: Script | None = None, **limits: int) -> Trajectory:
    async def main() -> Trajectory:
        async with env_server(folder, script or Script()) as server:
            await server.client.wait_ready(5)
            runner = EpisodeRunner(server.client, WORDS, PROFILE, ScreenshotStore(folder / "screenshots"))
            try:
                return await runner.run(Episode("g/0", "g", task(), seed=100), engine, rules(**limits))
            finally:
                assert (await server.client.capacity()).busy == 0, "the desktop is still leased"

    return asyncio.run(main())


def shape(messages: Sequence[Message]) -> str:
    return "".join("p" if message.picture else message.role[0] for message in messages)


def test_only_the_latest_screenshots_are_shown_and_every_answer(tmp_path) -> None:
    engine = Talks(CLICK, CLICK, CLICK, FINISH)
    t = play(tmp_path, engine)
    assert [shape(heard) for heard in engine.heard] == ["sup", "supap", "suapap", "suaapap"]
    assert engine.heard[0][1].text == PROFILE.user_prompt("do it")
    assert engine.heard[1][3].text == CLICK
    assert [s.seed for s in engine.samplings] == [100, 101, 102, 103]
    assert (t.score, len(t.turns), t.valid) == (1.0, 4, True)
    assert [turn.text for turn in t.turns] == [CLICK, CLICK, CLICK, FINISH]
    assert all(turn.started_at is not None for turn in t.turns)
    store = ScreenshotStore(tmp_path / "screenshots")
    assert [m.picture for m in engine.heard[3] if m.picture] == [
        store.get(turn.observation) for turn in t.turns[2:]
    ]


def test_a_dialogue_in_words_has_no_row_and_nothing_can_be_learned_from_it(tmp_path) -> None:
    t = play(tmp_path, Talks(FINISH))
    assert (t.token_ids, t.loss_mask, t.logprobs, t.images) == ([], [], [], [])
    assert not t.trainable
    assert Trajectory.model_validate_json(t.model_dump_json()) == t
    buffer = ReplayBuffer(ReplaySection(), ReplayFolder(tmp_path / "replay").rows)
    with pytest.raises(ValueError, match="without sampled tokens"):
        buffer.close_group([t, t], random.Random(0))
    with pytest.raises(ValueError, match="without sampled tokens"):
        buffer.store([t])


def test_what_is_no_action_is_answered_by_the_same_screen_again(tmp_path) -> None:
    engine = Talks(NONSENSE, FINISH)
    t = play(tmp_path, engine, max_format_errors=2)
    assert (t.format, t.score) == (-1.0, 1.0)
    assert t.turns[0].observation == t.turns[1].observation


def test_a_failure_of_the_server_is_a_fault_and_a_hopeless_one_ends_the_run(tmp_path) -> None:
    t = play(tmp_path, Talks(CLICK, EngineError("busy")))
    assert t.problem is not None
    assert t.problem.detail == "engine: busy"
    assert (t.score, len(t.turns)) == (None, 1)
    with pytest.raises(ExceptionGroup) as caught:
        play(tmp_path, Talks(EngineUnusableError("no such model")))
    assert caught.group_contains(EngineUnusableError)


@pytest.mark.parametrize(
    ("size", "seen"),
    [(SCREEN, SCREEN), ((1280, 720), (420, 224)), ((40, 30), (84, 56))],
)
def test_a_picture_beyond_the_bounds_is_resized_as_the_policys_coordinates_are(size, seen) -> None:
    data = io.BytesIO()
    Image.new("RGB", size, (1, 2, 3)).save(data, "PNG")
    engine = Talks(FINISH)
    dialogue = open_dialogue(engine, WORDS, "", "do it")
    dialogue.observe(Screenshot(width=size[0], height=size[1], sha256="", data=data.getvalue()))
    asyncio.run(dialogue.reply(Sampling()))
    picture = engine.heard[0][-1].picture
    assert Image.open(io.BytesIO(picture)).size == seen
    if seen == size:
        assert picture == data.getvalue()
    else:
        assert seen == PROFILE.grid(size).extent


def test_an_engine_is_not_spoken_to_in_a_language_that_is_not_its_own() -> None:
    with pytest.raises(TypeError, match="Says does not speak words"):
        open_dialogue(Says(FINISH), WORDS, "", "do it")
    with pytest.raises(TypeError, match="Talks speaks words, not token ids"):
        open_dialogue(Talks(FINISH), Letters(), "", "do it")
