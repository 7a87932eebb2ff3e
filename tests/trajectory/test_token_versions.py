"""The record of an episode."""

from arpo.trajectory import Trajectory, Turn


def turn(start: int, end: int, version: int, pushes: list[tuple[int, int]]) -> Turn:
    return Turn(
        start=start, end=end, text="", actions=[], policy_version=version, pushes=pushes, observation="0" * 64
    )


def test_every_sampled_token_has_the_version_that_sampled_it_also_when_weights_were_pushed_amid_a_turn() -> (
    None
):
    trajectory = Trajectory(
        episode_id="e", task_id="t", domain="d", instruction="i", group_id="g",
        token_ids=list(range(9)), loss_mask=[False, True, True, False, True, True, True, True, False],
        logprobs=[0.0] * 9, images=[], turns=[turn(1, 3, 4, []), turn(4, 8, 5, [(6, 6), (7, 8)])],
        score=1.0, format=0.0, started_at=0.0, duration_s=1.0,
    )  # fmt: skip
    assert trajectory.token_versions == [None, 4, 4, None, 5, 5, 6, 8, None]
    assert trajectory.policy_version == 4
