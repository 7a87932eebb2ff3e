"""The vLLM engine. Importing this needs no vLLM; making a `VllmEngine` does."""

from arpo.rollout.engines.vllm.engine import VllmEngine

__all__ = ["VllmEngine"]
