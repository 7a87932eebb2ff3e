from arpo.config.load import load_config
from arpo.trainer.metrics import warnings

FINE = {"learner/engine_logprob_gap_alarm": 0.0, "learner/skipped_steps": 0.0, "learner/rows_left_out": 0.0}


def test_a_step_without_anything_wrong_has_no_warning():
    assert list(warnings(FINE, load_config(None, []))) == []


def test_what_is_wrong_with_a_step_is_said_with_its_setting():
    row = {
        "learner/engine_logprob_gap_alarm": 1.0,
        "learner/engine_logprob_gap": 0.3,
        "learner/skipped_steps": 2.0,
        "learner/rows_left_out": 5.0,
    }
    gap, skipped, left_out = warnings(row, load_config(None, ["engine.top_p=0.9"]))
    assert "log-probs differ by 0.3 on average" in gap
    assert "engine.top_p=0.9" in gap
    assert skipped.startswith("2 optimizer steps were skipped")
    assert "learner.max_row_tokens=65536" in left_out
    assert not any("\n" in line for line in (gap, skipped, left_out))
