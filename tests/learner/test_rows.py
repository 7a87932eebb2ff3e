import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.config.sections import LearnerSection
from arpo.learner.rows import cut, rows_of, whole_row
from arpo.trajectory import GroupMember
from policy_kit import Pictures, conversation, fresh_policy

REPLIES = ["Press the button.", "Thought: It is done.\nAction: finished()", "Press.", "It is done."]


@pytest.fixture(scope="module")
def encoder():
    return fresh_policy().encoder


@pytest.fixture(scope="module")
def trajectory():
    policy = fresh_policy()
    return conversation(policy, Pictures(), REPLIES, score=1.0)


def pads(row, encoder):
    return int((row.token_ids == encoder.image_token_id).sum())


@settings(deadline=None)
@given(limit=st.integers(1, 400))
@pytest.mark.parametrize("rule", ["last_turns", "oldest_screenshots"])
def test_a_cut_row_fits_and_keeps_whole_turns_and_whole_pictures(encoder, trajectory, rule, limit):
    whole = whole_row(trajectory)
    row = cut(trajectory, encoder, limit=limit, rule=rule)
    if row is None:
        return
    assert len(row.token_ids) <= limit
    assert pads(row, encoder) == sum(i.tokens for i in trajectory.images if i.sha256 in row.images)
    # what is trained on are whole turns, token for token
    turns = [torch.tensor(trajectory.token_ids[t.start : t.end]) for t in trajectory.turns]
    kept = turns[: len(turns) - row.turns_cut][row.screenshots_cut :]
    assert torch.equal(row.token_ids[row.sampled.long()].long(), torch.cat(kept))
    if len(whole.token_ids) <= limit:
        assert torch.equal(row.token_ids, whole.token_ids)
        assert row.turns_cut == row.screenshots_cut == 0
    elif limit < trajectory.turns[-1].end:  # what follows the last turn may go uncounted
        assert row.turns_cut + row.screenshots_cut > 0


def test_without_its_last_turns_a_row_is_a_prefix_so_every_context_is_the_sampled_one(encoder, trajectory):
    limit = trajectory.turns[2].end
    row = cut(trajectory, encoder, limit=limit, rule="last_turns")
    assert row.token_ids.tolist() == trajectory.token_ids[:limit]
    assert len(row.images) == 3
    assert row.turns_cut == 1
    assert row.same_context


def test_without_its_oldest_screenshots_a_row_keeps_all_text(encoder, trajectory):
    row = cut(trajectory, encoder, limit=len(trajectory.token_ids) - 1, rule="oldest_screenshots")
    message, tokens = encoder.image_message(140, 84)
    assert len(row.token_ids) == len(trajectory.token_ids) - len(message)
    assert row.images == tuple(i.sha256 for i in trajectory.images[1:])
    assert not row.same_context
    # the first turn is read and no longer trained on
    assert torch.equal(row.behaviour, whole_row(trajectory).behaviour[row.behaviour.shape[0] * -1 :])
    first = trajectory.token_ids[trajectory.turns[0].start : trajectory.turns[0].end]
    text = row.token_ids.tolist()
    assert any(text[i : i + len(first)] == first for i in range(len(text)))
    assert tokens > 0


def test_a_trajectory_of_which_nothing_fits_still_counts_in_its_groups_baseline(encoder):
    policy, pictures = fresh_policy(), Pictures()
    long = conversation(policy, pictures, REPLIES, score=1.0, seed=1)
    short = conversation(policy, pictures, ["Press."], score=0.0, seed=2)
    limit = len(short.token_ids)
    group = [[GroupMember(trajectory=long), GroupMember(trajectory=short)]]
    batch = rows_of(group, LearnerSection(max_row_tokens=limit, cut="skip"), encoder)
    assert batch.left_out == 1
    (row,) = batch.rows
    assert row.advantage < 0
