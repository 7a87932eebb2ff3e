"""The whole configuration."""

from __future__ import annotations

from arpo.config.sections import (
    AgentSection,
    EngineSection,
    EnvSection,
    HardwareSection,
    ImitationSection,
    LauncherSection,
    LearnerSection,
    ModelSection,
    ReplaySection,
    RolloutSection,
    RunSection,
    Section,
    TasksSection,
    TrainerSection,
)


class Config(Section):
    """Everything that a run depends on; written resolved to `<run directory>/config.yaml`."""

    run: RunSection = RunSection()
    env: EnvSection = EnvSection()
    tasks: TasksSection = TasksSection()
    agent: AgentSection = AgentSection()
    model: ModelSection = ModelSection()
    engine: EngineSection = EngineSection()
    rollout: RolloutSection = RolloutSection()
    replay: ReplaySection = ReplaySection()
    learner: LearnerSection = LearnerSection()
    imitation: ImitationSection = ImitationSection()
    trainer: TrainerSection = TrainerSection()
    launcher: LauncherSection = LauncherSection()
    hardware: HardwareSection = HardwareSection()

    @property
    def learner_ranks(self) -> int:
        """How many processes train together."""
        apart = self.launcher.kind == "ray" and not self.colocated
        engines = self.launcher.engines * self.engine_gpus if apart else 0
        return self.learner.ranks or max(1, self.hardware.gpus - engines)

    @property
    def engine_gpus(self) -> int:
        """GPUs of one engine, where there are any."""
        return self.engine.vllm.tensor_parallel if self.engine.kind == "vllm" else 1

    @property
    def colocated(self) -> bool:
        """Engines are on the learner's GPUs, and the two compute in turns."""
        return self.engine.kind == "vllm" and self.engine.vllm.colocate
