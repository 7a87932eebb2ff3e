from arpo.trainer.launch.pictures import Lacking, Pictures


def test_a_picture_is_sent_once():
    pictures = Pictures()
    assert pictures.take(["a", "b"], {"a": b"1"}) == Lacking(["b"])
    assert pictures.take(["a", "b", "a"], {"a": b"1", "b": b"2"}) == [b"1", b"2", b"1"]
    assert pictures.take(["b", "a"], {}) == [b"2", b"1"]


def test_the_one_that_was_used_longest_ago_leaves_first():
    pictures = Pictures(limit=3)
    for name in "abc":
        pictures.take([name], {name: b"1"})
    pictures.take(["a"], {})
    pictures.take(["d"], {"d": b"1"})
    assert pictures.take(["a", "b", "c", "d"], {}) == Lacking(["b"])


def test_a_prompt_larger_than_what_is_kept_still_gets_its_pictures():
    pictures = Pictures(limit=1)
    assert pictures.take(["a", "b"], {"a": b"1", "b": b"2"}) == [b"1", b"2"]
    assert pictures.take(["a"], {}) == Lacking(["a"])
