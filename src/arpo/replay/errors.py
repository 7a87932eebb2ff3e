"""What can be wrong with what a replay buffer has stored."""

from __future__ import annotations

from arpo.protocol.problems import ArpoError


class ReplayError(ArpoError, ValueError):
    """Something stored is damaged or gone; the message names it.

    A ValueError too, so that a checkpoint whose rows are damaged is a damaged checkpoint.
    """
