"""Poems: their form, their split, their encoding, and extraction from a package."""

import itertools
import json

import numpy as np
import pytest

from experiments.datasets import (
    poems,
)
from tests.support.dataset_files import set_of, tar_of, write

HEAVEN = "天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏閏餘成歲律呂調陽雲騰致雨露結為霜"


def quatrain(size, start, marks="，。，。"):
    """A meaningless poem whose lines are taken from a text."""
    lines = [(HEAVEN * 4)[start + 3 * k : start + 3 * k + size] for k in range(4)]
    return "".join(line + mark for line, mark in zip(lines, marks, strict=True))


def test_parse_splits_poems_into_lines_and_marks():
    one, two = poems.parse(f"{quatrain(5, 0, '，？；。')}\n{quatrain(7, 9)}。\n", "few")
    assert one.lines == ("天地玄黃宇", "黃宇宙洪荒", "洪荒日月盈", "月盈昃辰宿")
    assert one.marks == "，？；。"
    assert two.marks == "，。，。"  # the first of two marks counts
    assert poems.written(two) == quatrain(7, 9)
    with pytest.raises(ValueError, match="^few, line 2: not four lines of 5 or of 7 .*: 天地"):
        poems.parse(f"{quatrain(5, 0)}\n{quatrain(6, 0)}\n", "few")


@pytest.mark.parametrize("size", [5, 7])
def test_only_quatrains_have_correct_form(size):
    good = quatrain(size, 4)
    assert poems.form(good) == size
    assert poems.form(quatrain(size, 4, "；？，？")) == size
    assert poems.form("㐀" + good[1:]) == size  # a character of the first extension of Unicode
    wrong = {
        "empty": "",
        "three lines": good[: 3 * (size + 1)],
        "five lines": good + good[: size + 1],
        "a line too short": good[1:],
        "a line too long": "天" + good,
        "no last mark": good[:-1],
        "a comma at the end": good[:-1] + "，",
        "two marks": good + "。",
        "a mark inside": good[:2] + "，" + good[3:],
        "a letter": "a" + good[1:],
        "a gap": "□" + good[1:],
        "mixed lines": quatrain(12 - size, 4)[: 13 - size] + good[size + 1 :],
        "a line break": good + "\n",
        "two poems": good + good,
    }
    assert {name for name, text in wrong.items() if poems.form(text) is not None} == set()


def test_poems_that_share_a_line_stay_in_one_part():
    """Each poem shares a line with the next, so that all belong together."""
    rows = (f"{a * 5}，{b * 5}。{a * 4 + b}，{b * 4 + a}。\n" for a, b in itertools.pairwise(HEAVEN))
    chain = poems.parse("".join(rows), "chain")
    sizes = [len(part) for part in poems.split(chain)]
    assert sorted(sizes) == [0, 0, 39]
    for start in range(1, 39):  # the order of the poems does not matter
        assert [len(part) for part in poems.split(chain[start:] + chain[:start])] == sizes


def many_poems(count):
    """Poems that share no line."""
    return poems.parse(
        "".join(
            "".join(chr(0x4E00 + 16 * n + k) + "天地人"[k % 3] * 4 + "，。，。"[k] for k in range(4)) + "\n"
            for n in range(count)
        ),
        "many",
    )


def test_split_is_stable_and_holds_out_a_twentieth_twice():
    own = many_poems(1000)
    parts = poems.split(own)
    assert [len(part) for part in parts] == [901, 47, 52]
    assert poems.written(parts.test[0])[0] == "你"
    backwards = poems.split(own[::-1])
    for part, other in zip(parts, backwards, strict=True):
        assert set(part) == set(other)
        assert list(part) == [poem for poem in own if poem in set(part)]


def test_poems_are_encoded_and_decoded():
    first, second = poems.parse(f"{quatrain(5, 0)}\n{quatrain(7, 2)}\n", "few")
    own = poems.vocabulary([first])
    assert own.symbols[:5] == ("<pad>", "<unknown>", "<end>", "<5>", "<7>")
    assert list(own.symbols[5:]) == sorted(set(quatrain(5, 0)))
    encoded = poems.encode(own, first)
    assert (encoded[0], encoded[-1], len(encoded)) == (poems.FIVE, poems.END, 26)
    assert poems.decode(own, encoded) == quatrain(5, 0)
    rows, lengths = poems.encode_all(own, [first, second])
    assert rows.shape == (2, 34)
    np.testing.assert_array_equal(lengths, [26, 34])
    np.testing.assert_array_equal(rows[0], [*encoded, *[poems.PAD] * 8])
    assert rows[1, 0] == poems.SEVEN
    unseen = [c not in quatrain(5, 0) for c in quatrain(7, 2)]
    assert any(unseen)
    np.testing.assert_array_equal(rows[1, 1:-1] == poems.UNKNOWN, unseen)
    twice = poems.vocabulary([first, second], least=2)
    whole = quatrain(5, 0) + quatrain(7, 2)
    assert set(twice.symbols[5:]) == {c for c in whole if whole.count(c) > 1} != set(whole)


def as_package(texts):
    """The npm package with poems in its first and last file."""
    members = {f"package/dist/quantangshi/poet.tang.{k * 1000}.json": b"[]" for k in range(58)}
    for name, part in zip(("0", "57000"), (texts[::2], texts[1::2]), strict=True):
        rows = [{"author": "x", "paragraphs": [text[: len(text) // 2], text[len(text) // 2 :]]} for text in part]
        members[f"package/dist/quantangshi/poet.tang.{name}.json"] = json.dumps(rows).encode()
    return members


def test_quatrains_are_extracted_from_the_package(tmp_path):
    five, seven, again = quatrain(5, 0), quatrain(7, 1), quatrain(7, 5) + "。"
    others = [five + five, "□" + five[1:], seven[:-1], "𠀀" + five[1:], seven.replace("，", ",")]
    members = as_package([again, seven, five, *others, seven, five])
    write(tmp_path, {"p.tgz": tar_of(members)})
    made = poems.quatrains_of_archive(tmp_path / "p.tgz")
    assert made == {"tang_jueju_7.txt": f"{again}\n{seven}\n".encode(), "tang_jueju_5.txt": f"{five}\n".encode()}
    for damage in (b"[", b"[1]", b'[{"paragraphs": 1}]'):
        write(tmp_path, {"p.tgz": tar_of({**members, "package/dist/quantangshi/poet.tang.3000.json": damage})})
        with pytest.raises(ValueError, match="not the poems that were expected"):
            poems.quatrains_of_archive(tmp_path / "p.tgz")


def test_load_poems_selects_sizes(tmp_path):
    contents = {"tang_jueju_7.txt": f"{quatrain(7, 1)}\n".encode(), "tang_jueju_5.txt": f"{quatrain(5, 0)}\n".encode()}
    write(tmp_path, contents)
    for sizes in ((5,), (7,), (5, 7)):
        found = poems.load_poems(tmp_path, sizes, set_of(contents))
        assert sorted(len(poem.lines[0]) for part in found for poem in part) == list(sizes)
