import pytest

from sdnet.runs.shown import all_visible, counted, visible


@pytest.mark.parametrize("text", ["", "linear decay, p_L 0.5", "é 漢 ± [red] $x$ `y` \\n"])
def test_what_can_be_read_is_left_as_it_is(text):
    assert visible(text) == text


def test_of_all_characters_no_other_comes_out_and_a_second_time_changes_nothing():
    every = "".join(map(chr, range(0x11000)))
    shown = visible(every)
    assert shown.isprintable() and visible(shown) == shown
    assert visible("\x1b[2J\r\n\u202e\udc80") == r"\x1b[2J\r\n\u202e\udc80"
    assert visible("a\n\tb", keep="\n") == "a\n\\tb"


def test_names_and_texts_at_any_depth():
    node = {"a\n": [{"b": "\x1b", "c": 1.5}, None, True], "d": "plain"}
    assert all_visible(node) == {"a\\n": [{"b": "\\x1b", "c": 1.5}, None, True], "d": "plain"}


def test_things_are_counted_to_the_last_one():
    found = [counted(n, "step") for n in (1, 0, 1_281_167, 1.0, 1.5, 2.0000001)]
    assert found == ["1 step", "0 steps", "1281167 steps", "1 step", "1.5 steps", "2 steps"]
