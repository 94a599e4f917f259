"""Quatrains of the Tang dynasty: four lines of five or of seven characters, in traditional script."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.datasets._archives import tar_members
from experiments.datasets._files import decoded, read_files
from experiments.datasets._sources import DataSet, File, Package
from experiments.datasets.batching import pad

HAN = "[\u3400-\u4dbf\u4e00-\u9fff]"  # the common characters and the first extension; rarer ones are in no poem here
MARKS = "，。？；"
LAST_MARKS = "。？"
NAMES = {7: "tang_jueju_7.txt", 5: "tang_jueju_5.txt"}
SPECIAL = ("<pad>", "<unknown>", "<end>", "<5>", "<7>")  # a poem begins with the symbol of its form
PAD, UNKNOWN, END, FIVE, SEVEN = range(len(SPECIAL))
LONGEST = 4 * (7 + 1) + 2  # symbols of a poem: lines with their marks, the form and the end


class Poem(NamedTuple):
    """A quatrain without the signs after its lines, and those."""

    lines: tuple[str, ...]  # four, of one length
    marks: str  # four, one after each line


class Poems(NamedTuple):
    """Three parts; poems that share a line are in the same one."""

    train: tuple[Poem, ...]
    validation: tuple[Poem, ...]
    test: tuple[Poem, ...]


class Vocabulary(NamedTuple):
    """What a poem is written in."""

    symbols: tuple[str, ...]  # the special ones, then characters and marks in the order of code points
    places: Mapping[str, int]


def quatrains_of_archive(path: Path) -> dict[str, bytes]:
    """The two files, made from the poems in the archive of the npm package chinese-poetry.

    Each distinct poem of four lines of one length is a line, in the order in which the package has them.
    """
    members = [f"package/dist/quantangshi/poet.tang.{first}.json" for first in range(0, 58_000, 1000)]
    contents = tar_members(path, {member: member for member in members})
    try:
        texts = ["".join(poem["paragraphs"]) for member in members for poem in json.loads(contents[member])]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not the poems that were expected: {error!r}") from error
    made = {}
    for size, name in NAMES.items():
        pattern = re.compile(f"(?:{HAN}{{{size}}}[，。？！；]+){{4}}")
        made[name] = "".join(f"{text}\n" for text in dict.fromkeys(texts) if pattern.fullmatch(text)).encode()
    return made


QUATRAINS = DataSet(
    "poems",
    "14,136 quatrains of the Tang dynasty",
    "public domain",
    "85 MB",
    (
        File(NAMES[7], "e589f48ecc6068032627ccab86069a04fac63e7881ddf49ff51e32f66039217d"),
        File(NAMES[5], "bd39b68c6bce85fbe48f4e434be014e20c09bb78508daa0933dc3f31880d7409"),
    ),
    (Package("npm", "chinese-poetry@2.0.1", "chinese-poetry-2.0.1.tgz", quatrains_of_archive),),
)


def load_poems(data_dir: Path | None = None, sizes: Sequence[int] = (5, 7), source: DataSet = QUATRAINS) -> Poems:
    """The quatrains with lines of those sizes, always split in the same way.

    Raises:
        MissingData: naming the command that gets the set.
        ValueError: naming the file, if it is not the published one.
    """
    contents = read_files(source, data_dir)
    return split([poem for size in sizes for poem in parse(decoded(contents[NAMES[size]], NAMES[size]), NAMES[size])])


def parse(text: str, name: str) -> list[Poem]:
    """The poems of a text, one a line. Of two marks in a row, which are misprints, the first is kept.

    Raises:
        ValueError: naming the line that is no quatrain.
    """
    poems = []
    for number, line in enumerate(text.splitlines(), 1):
        once = re.sub(f"([{MARKS}])[{MARKS}]+", r"\1", line)
        if form(once) is None:
            raise ValueError(f"{name}, line {number}: not four lines of 5 or of 7 characters with marks: {line[:40]}")
        *lines, _ = re.split(f"[{MARKS}]", once)
        poems.append(Poem(tuple(lines), "".join(re.findall(f"[{MARKS}]", once))))
    return poems


def form(text: str) -> int | None:
    """How many characters the lines of a quatrain have, 5 or 7; None if the text is not in correct form.

    Correct are four lines of one of these lengths, all Chinese characters, and after each a mark: ，。？ or ；
    after the first three, 。 or ？ after the last. Rhyme and tones are not looked at.

    Example:
        >>> form("白日依山盡，黃河入海流。欲窮千里目，更上一層樓。"), form("白日依山盡，黃河入海流。")
        (5, None)
    """
    for size in NAMES:
        if re.fullmatch(f"(?:{HAN}{{{size}}}[{MARKS}]){{3}}{HAN}{{{size}}}[{LAST_MARKS}]", text):
            return size
    return None


def written(poem: Poem) -> str:
    """Lines and marks in one text."""
    return "".join(line + mark for line, mark in zip(poem.lines, poem.marks, strict=True))


def split(poems: Sequence[Poem]) -> Poems:
    """A twentieth for testing, one for validation, the rest for training.

    Many poems came down to us in several wordings. Poems that share a line, with each other or with a third,
    are kept together; a hash of the least of them says in which part.
    """
    leader = list(range(len(poems)))

    def find(k: int) -> int:
        while leader[k] != k:
            leader[k] = leader[leader[k]]
            k = leader[k]
        return k

    first_with: dict[str, int] = {}
    for k, poem in enumerate(poems):
        for line in poem.lines:
            leader[find(k)] = find(first_with.setdefault(line, k))
    least: dict[int, str] = {}
    for k, poem in enumerate(poems):
        text = written(poem)
        least[find(k)] = min(text, least.get(find(k), text))
    parts: tuple[list[Poem], ...] = ([], [], [])
    for k, poem in enumerate(poems):
        place = int.from_bytes(hashlib.sha256(least[find(k)].encode()).digest()[:8]) % 20
        parts[{0: 2, 1: 1}.get(place, 0)].append(poem)
    return Poems(*map(tuple, parts))


def vocabulary(poems: Iterable[Poem], least: int = 1) -> Vocabulary:
    """Special symbols, and all characters and marks that occur at least so many times in these poems.

    Example:
        >>> vocabulary([Poem(("一", "二", "三", "一"), "，。，。")]).symbols[len(SPECIAL) :]
        ('。', '一', '三', '二', '，')
    """
    counts = Counter(character for poem in poems for character in written(poem))
    symbols = (*SPECIAL, *sorted(character for character, count in counts.items() if count >= least))
    return Vocabulary(symbols, {symbol: place for place, symbol in enumerate(symbols)})


def encode(own: Vocabulary, poem: Poem) -> np.ndarray:
    """Form, lines with marks, end: `(N,)`, int32. What is not in the vocabulary becomes `UNKNOWN`."""
    begin = {5: FIVE, 7: SEVEN}[len(poem.lines[0])]
    return np.array([begin, *(own.places.get(c, UNKNOWN) for c in written(poem)), END], np.int32)


def encode_all(own: Vocabulary, poems: Sequence[Poem]) -> tuple[np.ndarray, np.ndarray]:
    """Poems in one array `(N, 34)`, `PAD` after their ends, and their lengths `(N,)`."""
    return pad([encode(own, poem) for poem in poems], LONGEST)


def decode(own: Vocabulary, numbers: Iterable[int]) -> str:
    """The text up to the end symbol, without the symbol of the form."""
    text = []
    for number in numbers:
        if number == END:
            break
        if number not in (FIVE, SEVEN):
            text.append(own.symbols[number])
    return "".join(text)
