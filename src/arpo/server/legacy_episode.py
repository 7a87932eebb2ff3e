"""The conversation that the legacy API keeps on the server: pure, no I/O.

Invariants
- A format reward of -1 comes from the policy's text alone: nothing that a desktop does can cause one.
- At most `max_steps` actions are performed in an episode; the one that reaches the limit ends it.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence

from arpo.agent.grammar import FormatError
from arpo.agent.profiles import Profile
from arpo.protocol.actions import TERMINAL, Action, CallUser, Fail
from arpo.protocol.messages import Observation, Screenshot
from arpo.server.legacy_messages import (
    MAX_PREDICTION,
    ImagePart,
    LegacyMessage,
    LegacyObservation,
    TextPart,
)

_BARE_BOX = re.compile(r"\b((?:start|end)_box=)'(\([0-9, ]+\))'")


class LegacyEpisode:
    """An episode from its first screenshot on: what was said, what was shown, and whether it is over."""

    def __init__(self, profile: Profile, max_steps: int, instruction: str, first: Screenshot) -> None:
        self._profile = profile
        self._left = max_steps
        self._screen = (first.width, first.height)
        self._picture = _picture(first)
        self.done = False
        self._history = [
            _text("system", profile.system()),
            _text("user", profile.user_prompt(instruction)),
            LegacyMessage(role="user", content=(self._picture,)),
        ]

    @property
    def history(self) -> tuple[LegacyMessage, ...]:
        """The conversation so far."""
        return tuple(self._history)

    def plan(self, prediction: str) -> list[Action]:
        """The actions to perform for a prediction, at least one. Raises FormatError."""
        if len(prediction) > MAX_PREDICTION:
            raise FormatError(f"{len(prediction)} characters; {MAX_PREDICTION} are the most")
        actions = self._profile.parse(prediction, self._screen)[: self._left]
        # A policy that calls for a person gives the task up: OSWorld's FAIL, which is right where it cannot be done.
        return [Fail(reason="call_user") if isinstance(a, CallUser) else a for a in actions]

    def acted(self, prediction: str, actions: Sequence[Action], seen: Observation) -> LegacyObservation:
        """The reply once the planned actions were performed. seen: the screen after them."""
        self._left -= len(actions)
        self.done = self._left <= 0 or any(isinstance(action, TERMINAL) for action in actions)
        self._said(prediction)
        if not self.done:
            if not seen.unchanged:
                self._picture = _picture(seen.screenshot)
            self._history.append(LegacyMessage(role="user", content=(self._picture,)))
        return self.observation()

    def misspoke(self, prediction: str) -> LegacyObservation:
        """The reply to a prediction that is no action: the episode is over."""
        self.done = True
        self._said(prediction)
        return LegacyObservation(obs_messages=None, is_done=True, format_reward=-1.0)

    def observation(self) -> LegacyObservation:
        """The conversation as a reset and a step answer it."""
        return LegacyObservation(obs_messages=None if self.done else self.history, is_done=self.done)

    def _said(self, prediction: str) -> None:
        # Decoding drops the box tokens that the policy had sampled; its history must have them.
        text = _BARE_BOX.sub(r"\1'<|box_start|>\2<|box_end|>'", prediction[:MAX_PREDICTION])
        self._history.append(_text("assistant", text))


def _text(role: str, text: str) -> LegacyMessage:
    return LegacyMessage.model_validate({"role": role, "content": (TextPart(text=text),)})


def _picture(screenshot: Screenshot) -> ImagePart:
    return ImagePart(b64=b64encode(screenshot.data).decode("ascii"))
