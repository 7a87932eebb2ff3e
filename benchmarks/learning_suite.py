"""The tasks of the learning benchmark, in OSWorld's format: a calculator that wants somebody's code.

Invariant: a task scores 1 for its own code and 0 for every other sequence of keys. Nothing on the screen tells the code;
the instruction says whose it is, and what was pressed before says which key comes next.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from arpo.protocol.actions import Action, Finished, Press
from arpo.tasks.model import Task
from arpo.tasks.validate import parse_task

SCREEN = (640, 480)
LENGTHS = (3, 4, 5)
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn")


@dataclass(frozen=True)
class Code:
    """Somebody's code, and for every place of it the wrong key that is just as plausible to the warm-started policy."""

    name: str
    keys: str
    decoys: str

    def plausible(self) -> list[str]:
        """Every sequence of right keys and decoys, 2 to the power of the length; the code itself comes first."""
        pairs = zip(self.keys, self.decoys, strict=True)
        return ["".join(keys) for keys in itertools.product(*pairs)]

    def task(self) -> Task:
        """The task: the calculator writes what was entered into its history, which the evaluator reads."""
        document = {
            "id": f"code-{self.name.lower()}",
            "snapshot": "simulated",
            "instruction": f"Enter the code of {self.name}.",
            "config": [{"type": "launch", "parameters": {"command": ["calculator"]}}],
            "related_apps": ["calculator"],
            "evaluator": {
                "func": "check_include_exclude",
                "result": {
                    "type": "vm_command_line",
                    "command": "cat ~/calculator_history.txt",
                    "shell": True,
                },
                "expected": {
                    "type": "rule",
                    "rules": {"include": [f"{self.keys} = {self.keys}"], "exclude": []},
                },
            },
        }
        return parse_task(document, f"the code of {self.name}", domain="codes")


def codes() -> list[Code]:
    """Everybody's code: drawn once, always the same."""
    rng = random.Random("codes")
    drawn = []
    for number, name in enumerate(NAMES):
        pairs = [rng.sample("123456789", 2) for _ in range(LENGTHS[number % len(LENGTHS)])]
        drawn.append(Code(name, "".join(pair[0] for pair in pairs), "".join(pair[1] for pair in pairs)))
    return drawn


def turns(keys: str) -> list[list[Action]]:
    """Entering some keys: one a turn, and with the last one Enter and the end of the episode."""
    presses: list[list[Action]] = [[Press(key=key)] for key in keys]
    presses[-1] += [Press(key="enter"), Finished()]
    return presses
