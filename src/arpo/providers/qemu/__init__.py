"""Virtual machines by QEMU itself: a read-only base image, and a golden state from which every desktop starts."""

from arpo.providers.qemu.provider import QemuProvider

__all__ = ["QemuProvider"]
