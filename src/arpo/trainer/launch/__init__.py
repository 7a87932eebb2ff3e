"""Where the learner and the engine of a run work: in this process, on this machine, or in a Ray cluster."""

from arpo.trainer.launch.base import Launcher, LearnerLost, RunLearner
from arpo.trainer.launch.choose import launcher_of

__all__ = ["Launcher", "LearnerLost", "RunLearner", "launcher_of"]
