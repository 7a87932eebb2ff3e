from __future__ import annotations

import asyncio

import pytest
from scripted_desktop import Script, lost

from arpo.protocol.problems import ProblemCode, ProblemError
from arpo.server.pool import DesktopPool, PoolLimits, SlotState, Verdict, running_pool
from arpo.telemetry import phases

FAST = PoolLimits(start_s=0.5, stop_s=0.5, first_pause_s=0.02, longest_pause_s=0.05)


async def until(condition, timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def shortage(pool: DesktopPool) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        pool.lease()
    return caught.value


def test_desktops_start_in_parallel_are_leased_to_one_holder_each_and_closed_at_the_end() -> None:
    async def main() -> None:
        script = Script(start=lambda count: asyncio.sleep(0.1))
        loop = asyncio.get_running_loop()
        async with running_pool(script.desktop, 4, FAST) as pool:
            begun = loop.time()
            assert "4 starting" in shortage(pool).problem.detail
            await until(lambda: pool.count(SlotState.FREE) == 4)
            assert loop.time() - begun < 0.3
            slots = [pool.lease() for _ in range(4)]
            assert len({slot.desktop for slot in slots}) == 4
            assert shortage(pool).code is ProblemCode.CAPACITY
            pool.give_back(slots[0], Verdict.USED)
            await until(pool.available)
            assert pool.lease() is slots[0]
            with pytest.raises(RuntimeError, match="given back"):
                pool.give_back(slots[1], Verdict.USED) or pool.give_back(slots[1], Verdict.USED)
        assert (script.started, script.closed) == (4, 4)

    asyncio.run(main())


def test_a_desktop_whose_reset_fails_twice_in_a_row_is_quarantined_and_replaced() -> None:
    async def main() -> None:
        script = Script()
        async with running_pool(script.desktop, 1, FAST) as pool:
            await until(lambda: pool.count(SlotState.FREE))
            slot = pool.lease()
            pool.give_back(slot, Verdict.RESET_FAILED, "no calc")
            first = slot.desktop
            await until(pool.available)
            assert pool.lease().desktop is first
            pool.give_back(slot, Verdict.RESET_FAILED, "no calc")
            await asyncio.sleep(0)
            assert pool.count(SlotState.QUARANTINED) == 1
            assert "no calc" in pool.out_of_service()
            problem = shortage(pool)
            assert problem.code is ProblemCode.START_FAILED
            assert "no calc" in problem.problem.detail
            await until(lambda: pool.count(SlotState.FREE))
            assert pool.lease().desktop is not first
            assert not first.open

    asyncio.run(main())


def test_a_reset_that_works_forgets_the_failure_before_it() -> None:
    async def main() -> None:
        async with running_pool(Script().desktop, 1, FAST) as pool:
            await until(lambda: pool.count(SlotState.FREE))
            for _ in range(3):
                slot = pool.lease()
                pool.give_back(slot, Verdict.RESET_FAILED, "once")
                await until(pool.available)
                slot = pool.lease()
                pool.reset_worked(slot)
                pool.give_back(slot, Verdict.USED)
                await until(pool.available)
            assert pool.out_of_service() == ""

    asyncio.run(main())


def test_starts_are_tried_until_one_works_and_quarantine_tells_why_meanwhile() -> None:
    async def main() -> None:
        seen: list[str] = []
        script = Script(start=lambda count: lost() if count < 4 else None)
        async with running_pool(script.desktop, 1, FAST) as pool:
            await until(lambda: seen.append(pool.out_of_service()) or pool.count(SlotState.FREE))
            assert any("no guest today" in reason for reason in seen)
            assert script.started == 4
            assert pool.out_of_service() == ""

    asyncio.run(main())


def test_a_start_that_hangs_or_crashes_counts_as_failed() -> None:
    async def main() -> None:
        outcomes = {1: lambda: asyncio.sleep(60), 2: lambda: KeyError("surprise")}
        script = Script(start=lambda count: outcomes.get(count, lambda: None)())
        async with running_pool(script.desktop, 1, PoolLimits(start_s=0.1, first_pause_s=0.2)) as pool:
            await until(lambda: pool.count(SlotState.QUARANTINED))
            assert "KeyError" in pool.out_of_service()
            await until(lambda: pool.count(SlotState.FREE))
            assert script.started == 3

    asyncio.run(main())


def test_a_lost_desktop_is_replaced_at_once() -> None:
    async def main() -> None:
        script = Script()
        async with running_pool(script.desktop, 1, FAST) as pool:
            await until(lambda: pool.count(SlotState.FREE))
            slot = pool.lease()
            gone = slot.desktop
            pool.give_back(slot, Verdict.LOST, "gone")
            assert shortage(pool).code is ProblemCode.CAPACITY
            await until(lambda: pool.count(SlotState.FREE))
            assert slot.desktop is not gone
            assert slot.strikes == 0
        assert (script.started, script.closed) == (2, 2)

    asyncio.run(main())


def test_leaving_while_desktops_start_or_are_leased_closes_what_there_is() -> None:
    async def main() -> None:
        script = Script(start=lambda count: asyncio.sleep(60) if count == 2 else None)
        async with running_pool(script.desktop, 2, FAST) as pool:
            await until(lambda: pool.count(SlotState.FREE))
            pool.lease()
        assert (script.started, script.closed) == (2, 1)

    asyncio.run(main())


def test_a_desktop_is_free_again_only_once_it_was_cleaned() -> None:
    async def main() -> None:
        cleaned = asyncio.Event()
        script = Script(clean=lambda desktop: cleaned.wait())
        async with running_pool(script.desktop, 1, FAST) as pool:
            await until(pool.available)
            slot = pool.lease()
            pool.give_back(slot, Verdict.USED)
            await asyncio.sleep(0.02)
            assert "1 cleaning" in shortage(pool).problem.detail
            cleaned.set()
            await until(pool.available)
            assert pool.lease() is slot
        assert (script.started, script.closed) == (1, 1)

    asyncio.run(main())


def test_with_a_spare_nobody_waits_for_cleaning_and_no_more_than_the_capacity_is_leased() -> None:
    async def main() -> None:
        script = Script(clean=lambda desktop: asyncio.Event().wait())
        async with running_pool(script.desktop, 2, PoolLimits(), spares=1) as pool:
            await until(lambda: pool.count(SlotState.FREE) == 3)
            assert pool.available() == 2
            first, _ = pool.lease(), pool.lease()
            assert "no desktop of 2 is free: 2 leased" in shortage(pool).problem.detail
            pool.give_back(first, Verdict.USED)
            assert pool.lease() is not first
        assert script.closed == 3

    asyncio.run(main())


@pytest.mark.parametrize("failure", [lost, lambda: asyncio.sleep(60), lambda: KeyError("surprise")])
def test_a_desktop_that_cannot_be_cleaned_is_replaced_and_the_next_failure_quarantines_it(failure) -> None:
    async def main() -> None:
        starts = {2: lost, 3: lambda: asyncio.sleep(0.2)}
        script = Script(
            clean=lambda desktop: failure(), start=lambda count: starts.get(count, lambda: None)()
        )
        limits = PoolLimits(clean_s=0.05, first_pause_s=0.01)
        async with running_pool(script.desktop, 1, limits) as pool:
            await until(pool.available)
            slot = pool.lease()
            dirty = slot.desktop
            pool.reset_worked(slot)
            pool.give_back(slot, Verdict.USED)
            await until(pool.out_of_service)
            assert pool.view()[0].strikes == 2
            assert "no guest today" in pool.view()[0].reason
            assert not dirty.open
            await until(pool.available)
            assert pool.lease().desktop is not dirty
        assert script.closed == 2

    asyncio.run(main())


def test_resetting_the_pool_replaces_every_desktop_and_retries_quarantined_ones_at_once() -> None:
    async def main() -> None:
        broken = True
        script = Script(start=lambda count: lost() if count > 2 and broken else None)
        async with running_pool(
            script.desktop, 2, PoolLimits(first_pause_s=600, longest_pause_s=600)
        ) as pool:
            await until(lambda: pool.available() == 2)
            one, other = pool.lease(), pool.lease()
            pool.give_back(one, Verdict.LOST, "gone")
            await until(pool.out_of_service)
            broken = False
            pool.reset_all("an operator asked")
            await until(pool.available)
            assert pool.out_of_service() == ""
            old = other.desktop
            pool.give_back(other, Verdict.USED)
            await until(lambda: pool.available() == 2)
            assert not old.open
            free = {slot.desktop for slot in pool.slots}
            pool.reset_all("an operator asked")
            assert not pool.available()
            await until(lambda: pool.available() == 2)
            assert not free & {slot.desktop for slot in pool.slots}
        assert script.closed == script.started - 2

    asyncio.run(main())


def test_a_refused_task_quarantines_nothing_even_after_failed_starts() -> None:
    async def main() -> None:
        script = Script(start=lambda count: lost() if count < 3 else None)
        async with running_pool(script.desktop, 1, FAST) as pool:
            await until(pool.available)
            slot = pool.lease()
            kept = slot.desktop
            pool.give_back(slot, Verdict.USED)
            await until(pool.available)
            assert pool.lease().desktop is kept

    asyncio.run(main())


def test_what_the_pool_does_in_the_background_is_no_part_of_the_request_that_caused_it() -> None:
    async def main() -> None:
        async def clean() -> None:
            phases.add_phase("clean", 1.0)

        async with running_pool(Script(clean=lambda desktop: clean()).desktop, 1, FAST) as pool:
            await until(pool.available)
            with phases.record() as recorded:
                pool.give_back(pool.lease(), Verdict.USED)
                await until(pool.available)
            assert recorded == {}

    asyncio.run(main())
