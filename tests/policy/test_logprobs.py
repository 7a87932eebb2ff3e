import pytest
import torch

from arpo.policy.inputs import ModelRow, collate
from arpo.policy.logprobs import TokenRow, packed_logprobs
from policy_kit import Pictures, fresh_policy, picture

PICTURES = Pictures()


@pytest.fixture(scope="module")
def policy():
    return fresh_policy(freeze_vision=False)


def row(policy, seed, replies, pictures=True):
    ids, images = policy.encoder.text_message("user", "Press it." * (1 + seed)), []
    wanted = []
    for number in range(replies):
        if pictures:
            size = (140 + 28 * seed, 84)
            message, _ = policy.encoder.image_message(*size)
            images.append(PICTURES.keep(picture(10 * seed + number, *size)))
            ids += message
        ids += policy.encoder.generation_prompt()
        reply = policy.encoder.encode_reply("Thought: It is done.\nAction: finished()" * (1 + seed % 2))
        wanted += range(len(ids), len(ids) + len(reply))
        ids += reply + policy.encoder.close_turn(True)
    return TokenRow(ids, images, wanted)


def model_row(policy, token_row):
    """The same with decoded pictures, as an engine has it."""
    return ModelRow(token_row.token_ids, [policy.images.encode(PICTURES[h]) for h in token_row.images])


def logprobs(policy, rows, temperature=1.0, **options):
    return packed_logprobs(policy, rows, PICTURES.__getitem__, temperature=temperature, **options)


def whole_softmax(policy, token_row, temperature):
    """What transformers' own forward pass says about one row, positions and all."""
    ids = torch.tensor(token_row.token_ids)[None]
    images = model_row(policy, token_row).images
    vision = {}
    if images:
        vision = {
            "pixel_values": torch.cat([i.pixel_values for i in images]),
            "image_grid_thw": torch.tensor([i.grid for i in images]),
            "mm_token_type_ids": (ids == policy.encoder.image_token_id).int(),
        }
    logits = policy.model(input_ids=ids, **vision).logits[0].float() / temperature
    logits[:, [policy.encoder.image_token_id, policy.encoder.video_token_id]] = -torch.inf
    log_p = logits.log_softmax(-1)
    return torch.stack([log_p[index - 1, ids[0, index]] for index in token_row.wanted])


def test_packed_rows_have_the_log_probs_that_transformers_gives_each_alone(policy):
    rows = [row(policy, 0, 1), row(policy, 3, 2), row(policy, 1, 2, pictures=False), row(policy, 2, 3)]
    with torch.no_grad():
        packed, _ = logprobs(policy, rows, 0.7)
        expected = torch.cat([whole_softmax(policy, r, 0.7) for r in rows])
    torch.testing.assert_close(packed, expected, atol=2e-5, rtol=0)


def test_what_else_is_packed_changes_no_log_prob(policy):
    one, other = row(policy, 0, 2), row(policy, 3, 1)
    with torch.no_grad():
        alone, _ = logprobs(policy, [one])
        for rows in ([one, other], [other, one], [one, one, other]):
            packed, _ = logprobs(policy, rows)
            start = len(other.wanted) if rows[0] is other else 0
            torch.testing.assert_close(packed[start : start + len(alone)], alone, atol=1e-5, rtol=0)


def test_cutting_the_head_into_chunks_changes_neither_value_nor_gradient(policy):
    token_row = row(policy, 1, 2)

    def value_and_gradient(chunk):
        policy.model.zero_grad()
        values, entropy = logprobs(policy, [token_row], chunk=chunk)
        values.sum().backward()
        return values, entropy, [p.grad.clone() for p in policy.model.parameters()]

    whole, whole_entropy, whole_gradient = value_and_gradient(10_000)
    cut, cut_entropy, cut_gradient = value_and_gradient(3)
    torch.testing.assert_close(cut, whole)
    torch.testing.assert_close(cut_entropy, whole_entropy)
    for a, b in zip(cut_gradient, whole_gradient, strict=True):
        assert float((a - b).norm()) <= 1e-5 * float(b.norm())


def test_entropy_is_that_of_the_tempered_distribution(policy):
    with torch.no_grad():
        _, hot = logprobs(policy, [row(policy, 0, 1)], 1e6)
    possible = len(policy.tokenizer) - 2  # the two ids that pretend to be pictures cannot be sampled
    torch.testing.assert_close(
        hot, torch.full_like(hot, float(torch.tensor(possible).log())), rtol=1e-4, atol=0
    )


def test_the_first_token_of_a_row_cannot_be_asked_for(policy):
    token_row = row(policy, 0, 1)
    with pytest.raises(ValueError, match="first token"):
        logprobs(policy, [TokenRow(token_row.token_ids, token_row.images, [0])])


def test_a_row_whose_image_tokens_are_not_its_pictures_is_refused(policy):
    whole = row(policy, 0, 2)
    with pytest.raises(ValueError, match=r"holds 30 image tokens, its 1 pictures are 15"):
        logprobs(policy, [TokenRow(whole.token_ids, whole.images[:1], whole.wanted)])


def test_an_empty_row_is_refused(policy):
    with pytest.raises(ValueError, match="a row is empty"):
        logprobs(policy, [TokenRow([], (), ())])


def test_rows_without_a_wanted_token_have_no_log_prob_and_a_gradient_of_zero(policy):
    policy.model.zero_grad()
    values, entropy = logprobs(policy, [TokenRow(row(policy, 0, 1, pictures=False).token_ids, (), ())])
    assert len(values) == len(entropy) == 0
    values.sum().backward()
    assert not any(p.grad.any() for p in policy.model.parameters() if p.grad is not None)


def test_the_position_after_a_row_is_where_the_next_token_would_stand(policy):
    one = model_row(policy, row(policy, 2, 2))
    longer = ModelRow([*one.token_ids, 5], one.images)
    inputs = collate(policy, [one])
    assert int(inputs.next_position[0]) == int(collate(policy, [longer]).position_ids[0, 0, -1])
