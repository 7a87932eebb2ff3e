"""Which rows go together into which forward pass, and onto which rank.

Invariant: every row is in exactly one pass of exactly one rank, every rank makes the same number of passes
(sharded weights are gathered together), and the plan depends on its arguments alone, so all ranks make the
same one.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

Pass = list[int]
"""Indices of the rows of one packed forward pass; empty where a rank only keeps the others company."""


def row_cost(length: int, hidden_size: int) -> float:
    """Work of a row of that many tokens, in tokens of a short row.

    A layer's matrices take 24·hidden² FLOPs a token, causal attention 2·hidden·length: their ratio is
    length / (12·hidden).
    """
    return length * (1 + length / (12 * hidden_size))


def plan(lengths: Sequence[int], *, ranks: int, limit: int, hidden_size: int) -> list[list[Pass]]:
    """For every rank its passes: rows of similar work a rank, at most `limit` tokens a pass.

    A row longer than the limit has a pass of its own. Passes of the same number are made at the same time, so
    each rank's are in the order of their work.
    """
    costs = [row_cost(length, hidden_size) for length in lengths]
    passes = [first_fit(share, lengths, limit) for share in balance(costs, ranks)]
    number = max((len(own) for own in passes), default=0)

    def work(rows: Pass) -> float:
        return sum(costs[row] for row in rows)

    for own in passes:
        while len(own) < number:
            # a rank with fewer passes makes them smaller: less memory, and no slower than waiting
            largest = max(own, key=len, default=[])
            if len(largest) < 2:
                own.append([])
            else:
                own.remove(largest)
                own += [half for half in balance_rows(largest, costs) if half]
        own.sort(key=work, reverse=True)
    return passes


def balance_rows(rows: Pass, costs: Sequence[float]) -> list[Pass]:
    """Rows in two parts of similar cost."""
    return [[rows[index] for index in part] for part in balance([costs[row] for row in rows], 2)]


def first_fit(rows: Sequence[int], lengths: Sequence[int], limit: int) -> list[Pass]:
    """Rows in as few passes of at most `limit` tokens as first-fit decreasing finds (at most 11/9 of the fewest)."""
    passes: list[Pass] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        place = next((number for number, free in enumerate(room) if lengths[row] <= free), None)
        if place is None:
            passes.append([row])
            room.append(limit - lengths[row])
        else:
            passes[place].append(row)
            room[place] -= lengths[row]
    return passes


@dataclass(order=True)
class _Partition:
    """Parts of a partial solution, largest first; ordered by the spread of their sums, largest first."""

    key: tuple[float, int]
    sums: list[float] = field(compare=False)
    parts: list[list[int]] = field(compare=False)


def balance(costs: Sequence[float], parts: int) -> list[list[int]]:
    """Indices in `parts` parts of nearly equal cost: Karmarkar and Karp's largest differencing method (1982).

    The two partial solutions that differ most are combined, the large parts of one with the small parts of the
    other, until one is left.
    """
    order = count()

    def partition(sums: list[float], members: list[list[int]]) -> _Partition:
        by_size = sorted(zip(sums, members, strict=True), key=lambda pair: (-pair[0], pair[1]))
        sums, members = [s for s, _ in by_size], [m for _, m in by_size]
        return _Partition((sums[-1] - sums[0], next(order)), sums, members)

    nothing = [[] for _ in range(parts - 1)]  # type: list[list[int]]
    heap = [partition([cost, *[0.0] * (parts - 1)], [[i], *nothing]) for i, cost in enumerate(costs)]
    if not heap:
        return [[] for _ in range(parts)]
    heapq.heapify(heap)
    while len(heap) > 1:
        one, other = heapq.heappop(heap), heapq.heappop(heap)
        sums = [a + b for a, b in zip(one.sums, reversed(other.sums), strict=True)]
        members = [a + b for a, b in zip(one.parts, reversed(other.parts), strict=True)]
        heapq.heappush(heap, partition(sums, members))
    return [sorted(part) for part in heap[0].parts]
