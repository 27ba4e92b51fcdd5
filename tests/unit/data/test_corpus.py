"""Cleaning, duplicates and splits, on texts made here and on real books."""

import json
import random
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest

from gptmill.data import cleaning
from gptmill.data import duplicates as module
from gptmill.data.cleaning import clean_gutenberg
from gptmill.data.corpus import SPLITS, Document, documents, write_documents
from gptmill.data.fingerprint import fingerprint
from gptmill.data.splits import CUT, DROPPED, plan_splits, split_documents
from gptmill.errors import UserError
from gptmill.fetch.download import fetch
from tests.support.mirror import MANIFESTS, MIRROR, needs_mirror

WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in "bdgklmnprst"]


def prose(seed: int, words: int) -> str:
    chance = random.Random(seed)
    return " ".join(chance.choice(WORDS) for _ in range(words))


def folder_of(path, texts: dict[str, str]):
    path.mkdir()
    for name, text in texts.items():
        (path / f"{name}.txt").write_text(text, encoding="utf-8")
    return path


def plan_of(folder, validation=0.2, test=0.2, seed=1):
    return plan_splits(folder, validation_fraction=validation, test_fraction=test, seed=seed)


def ids(folder, plan, split):
    return [document.id for document in split_documents(plan, split)]


# --- Reading


def test_text_files_come_by_name_with_one_kind_of_line_end(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"two\r\nlines\rhere\n")
    (tmp_path / "a.txt").write_bytes("\ufeffünf".encode())
    assert list(documents(tmp_path)) == [
        Document("a", "ünf", None),
        Document("b", "two\nlines\nhere\n", None),
    ]


def test_embedded_documents_come_back_as_written(tmp_path):
    stories = [SimpleNamespace(text="a\n\u2028b", nats=1 / 3), SimpleNamespace(text="c", nats=2.5)]
    write_documents(stories, tmp_path / "documents.jsonl")
    assert [(d.text, d.nats) for d in documents(tmp_path)] == [("a\n\u2028b", 1 / 3), ("c", 2.5)]


def test_bytes_that_are_no_utf8_are_told_with_file_and_offset(tmp_path):
    (tmp_path / "old.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"old\.txt is not UTF-8: byte 0xe9 at offset 3"):
        list(documents(tmp_path))


def test_an_empty_folder_and_a_broken_line_are_told(tmp_path):
    with pytest.raises(UserError, match=r"neither documents\.jsonl nor a \*\.txt file"):
        list(documents(tmp_path))
    good = json.dumps({"id": "0", "text": "t", "nats": None})
    (tmp_path / "documents.jsonl").write_text(good + '\n{"id": "1"}\n')
    with pytest.raises(UserError, match="line 2 is not a document"):
        list(documents(tmp_path))


# --- Cleaning

BOOK = """The Project Gutenberg EBook of Tales, by A. Writer

This eBook is for the use of anyone anywhere.

{start}




Produced by A. Helper and the
Distributed Proofreaders


[Illustration: a cat]

TALES

by A. Writer

He talked of the end of Project Gutenberg as if it were the weather,
and the fire went out while he was speaking; nobody rose to put a new
log on it.

    A verse is short,
    Its breaks are meant,
    And so is this.

Roses are red,
Violets are blue,
Nobody reads
What licenses do.

{notes}


{end}

Most people start at our Web site. Section 5. General Information.
"""
CLEAN = """TALES

by A. Writer

He talked of the end of Project Gutenberg as if it were the weather, and the fire went out while \
he was speaking; nobody rose to put a new log on it.

    A verse is short,
    Its breaks are meant,
    And so is this.

Roses are red,
Violets are blue,
Nobody reads
What licenses do.
"""
MARKERS = [
    ("*** START OF THIS PROJECT GUTENBERG EBOOK TALES ***", "*** END OF THIS PROJECT GUTENBERG"),
    ("***START OF THE PROJECT GUTENBERG EBOOK TALES***", "***END OF THE PROJECT GUTENBERG EBOOK"),
    ("*** START OF THIS PROJECT GUTENBERG\nEBOOK TALES ***", "End of Project Gutenberg's Tales"),
    ("*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*", "End of The Project "
     "Gutenberg Etext of Tales"),
    ("*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.10/04/01*END*", "*Project Gutenberg "
     "Etext of Tales, by A. Writer*"),
]  # fmt: skip


@pytest.mark.parametrize(("start", "end"), MARKERS)
@pytest.mark.parametrize("notes", ["", "Transcriber's Notes:\n\nPage 9, 'teh' changed to 'the'."])
def test_only_the_authors_text_stays(start, end, notes):
    assert clean_gutenberg(BOOK.format(start=start, end=end, notes=notes)) == CLEAN


def test_other_texts_stay_as_they_are():
    text = "I HAD always thought Jack Gisburn rather a cheap genius\n--though a good fellow\n\n\n"
    assert clean_gutenberg(text) == text


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("  *** START OF THIS PROJECT GUTENBERG EBOOK TALES ***",
         "  *** END OF THIS PROJECT GUTENBERG EBOOK TALES ***"),
        ("*** START OF THIS PROJECT GUTENBERG EBOOK TALES", "End of Project Gutenberg's Tales"),
        ("*** START OF THE PROJECT GUTENBERG EBOOK OF\nTALES AND MORE ***",
         "*** END OF THE PROJECT GUTENBERG EBOOK OF TALES ***"),
        ("*** START OF THE COPYRIGHTED PROJECT GUTENBERG EBOOK TALES ***",
         "*** END OF THE COPYRIGHTED PROJECT GUTENBERG EBOOK TALES ***"),
        ("\t*** START OF THE PROJECT GUTENBERG EBOOK TALES ***",
         "\t*** END OF THE PROJECT GUTENBERG EBOOK TALES ***"),
        ("*** START OF THIS PROJECT GUTENBERG EBOOK TALES\n* * *",
         "*** END OF THIS PROJECT GUTENBERG EBOOK TALES"),
        ("*END*THE SMALL PRINT! FOR COPYRIGHT PROTECTED ETEXTS*Ver.04.29.93*END*",
         "End of The Project Gutenberg Etext of Tales"),
        ("*** START OF THE PROJECT GUTENBERG EBOOK TALES ***", "*** START: FULL LICENSE ***"),
        ("*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*",
         "Ende dieses Projekt Gutenberg Etextes Tales, von A. Writer"),
        ("*** BEGINN DES PROJEKT GUTENBERG EBOOKS TALES ***",
         "*** ENDE DIESES PROJEKT GUTENBERG EBOOKS TALES ***"),
        ("*** START OF THE PROJECT GUTENBERG EBOOK TALES ***",
         "Fin de ce Project Gutenberg Etext de Tales, par A. Writer"),
        ("*** DÉBUT DE CE PROJET GUTENBERG EBOOK TALES ***", "Fin du Projet Gutenberg de Tales"),
    ],
)  # fmt: skip
def test_forms_of_gutenbergs_markers(start: str, end: str) -> None:
    book = f"{prose(1, 300)}\n\n* * *\n\n*** a row of stars ***\n\n{prose(2, 300)}"
    text = f"The license's head.\n\n{start}\n\n{book}\n\n{end}\n\nThe license.\n"
    assert clean_gutenberg(text).removeprefix("* * *\n\n") == book + "\n"


LICENSE_INSIDE = """<<THIS ELECTRONIC VERSION OF THE COMPLETE WORKS OF WILLIAM
SHAKESPEARE IS COPYRIGHT 1990-1993 BY WORLD LIBRARY, INC., AND IS
PROVIDED BY PROJECT GUTENBERG ETEXT WITH PERMISSION.>>"""


@pytest.mark.parametrize(
    "text",
    [
        "*END THE SMALL PRINT! FOR COMPLETE SHAKESPEARE*Ver.04.29.93*END*\n\n{inside}\n\n{one}\n\n"
        "{inside}\n\n{two}\n\nEnd of this Etext of The Complete Works of William Shakespeare\n",
        "The Project Gutenberg Etext of Tales\n\n{one}\n\n{two}\n\n"
        "End of the Project Gutenberg Etext of Tales\n\n"
        "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\nlawyers\n"
        "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n",
        "*** START OF THE PROJECT GUTENBERG EBOOK 1 ***\n\n{one}\n\n"
        "*** END OF THE PROJECT GUTENBERG EBOOK 1 ***\n\nlicense\n\n"
        "*** START OF THE PROJECT GUTENBERG EBOOK 2 ***\n\n{two}\n\n"
        "*** END OF THE PROJECT GUTENBERG EBOOK 2 ***\n\nlicense",
        "head\n\n*** START OF THE PROJECT GUTENBERG EBOOK 1 ***\n\nProduced by Somebody\n\n"
        "*** START OF THE PROJECT GUTENBERG EBOOK 1 ***\n\n{one}\n\n{two}\n\n"
        "End of Project Gutenberg's Tales\n\n*** END OF THE PROJECT GUTENBERG EBOOK 1 ***",
    ],
    ids=["licenses inside", "license behind", "two books", "two start lines"],
)  # fmt: skip
def test_licenses_where_they_should_not_be(text: str) -> None:
    one, two = prose(1, 300), prose(2, 300)
    found = clean_gutenberg(text.format(inside=LICENSE_INSIDE, one=one, two=two))
    assert found == f"{one}\n\n{two}\n"


def test_a_book_that_becomes_short_or_empty_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    start, end = (f"*** {what} OF THE PROJECT GUTENBERG EBOOK 9 ***" for what in ("START", "END"))
    license = "You may copy it under the Project Gutenberg License. " * 300
    assert clean_gutenberg(f"{start}\n\nA short tale.\n\n{end}\n\n{license}") == "A short tale.\n"
    assert "13 of " in capsys.readouterr().out
    empty = f"{start}\n\n{end}\n\n{license}"
    assert clean_gutenberg(empty) == empty
    kept = f"{start}\n\n{prose(1, 300)}\n\n{license}"
    assert "Project Gutenberg License" in clean_gutenberg(kept)
    assert "a license stays in it" in capsys.readouterr().out


def test_a_book_whose_markers_swallow_it_stays_whole(capsys: pytest.CaptureFixture) -> None:
    mark = "*** START OF THIS PROJECT GUTENBERG EBOOK TALES ***"
    text = f"{prose(1, 20000)}\n\n{mark}\n\nThe end.\n"
    assert clean_gutenberg(text) == text
    assert "left whole" in capsys.readouterr().out


def test_a_broken_line_is_joined_only_where_the_break_was_forced():
    words = prose(0, 60).split()
    lines, line = [], ""
    for word in words:
        if len(line) + 1 + len(word) > 70:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    wrapped = "\n".join([*lines, line])
    assert cleaning._unwrap(wrapped) == " ".join(words)
    early = wrapped.replace(lines[1], lines[1][:30] + "\n" + lines[1][30:])
    assert cleaning._unwrap(early) == early


# --- Duplicates


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}


def test_near_duplicates_are_dropped_and_named(tmp_path):
    base = prose(1, 4000)
    changed = base.split()
    for place in range(0, len(changed), 200):
        changed[place] = "other"
    contained = " ".join(base.split()[1000:1600])
    texts = {"long": base + " " + prose(2, 500), "edition": " ".join(changed), "tale": contained}
    texts |= {f"other{i}": prose(10 + i, 900) for i in range(5)}
    plan = plan_of(folder_of(tmp_path / "c", texts))
    assert plan.dropped.counts == {"empty": 0, "near_duplicate": 2}
    told = {d["document"]: d for d in plan.dropped.duplicates}
    assert {name: d["of"] for name, d in told.items()} == {"edition": "long", "tale": "long"}
    for name, report in told.items():
        own = shingles(texts[name])
        exact = len(own & shingles(texts["long"])) / len(own)
        assert report["share"] == pytest.approx(exact, abs=0.002)


def test_a_sampled_sketch_estimates_the_share(monkeypatch):
    whole, other = prose(1, 30000), prose(2, 30000)
    half = " ".join(whole.split()[:9000] + other.split()[:6000])
    sketches = module.Sketches(limit=4000)
    for number, text in enumerate([whole, half]):
        hashes = fingerprint(text).shingles
        sketches.add(hashes, np.full(len(hashes), number))
    assert len(sketches.arrays()[0]) <= 4000 and sketches.modulus == 16
    found = {o.document: o.share for o in module.overlaps(sketches, np.zeros(2, bool))}
    assert found[0] == 0
    assert found[1] == pytest.approx(0.6, abs=0.05)


def test_exact_duplicates_of_short_texts_are_dropped(tmp_path):
    texts = {"a": "one two", "b": "three four", "c": "one two", "d": "five", "e": " \n"}
    plan = plan_of(folder_of(tmp_path / "c", texts), 0.3, 0.3)
    assert plan.dropped.counts == {"empty": 1, "exact_duplicate": 1}
    assert plan.dropped.duplicates == [
        {"document": "c", "reason": "exact_duplicate", "of": "a", "share": 1.0}
    ]
    assert (plan.splits == DROPPED).tolist() == [False, False, True, False, True]


def test_an_exact_duplicate_of_a_long_text_is_counted_once(tmp_path):
    texts = {name: prose(ord(name), 300) for name in "abcd"}
    plan = plan_of(folder_of(tmp_path / "c", texts | {"e": texts["a"]}))
    assert plan.dropped.counts == {"empty": 0, "exact_duplicate": 1}


def test_what_only_a_dropped_document_repeats_stays(tmp_path):
    whole, own = prose(1, 2000).split(), prose(2, 700).split()
    edition = " ".join(whole[:900] + own)  # 900 of 1,600 words stand in `whole`
    tale = " ".join(own[:400])  # stands in the dropped edition alone
    texts = {"whole": " ".join(whole), "edition": edition, "tale": tale, "other": prose(3, 300)}
    plan = plan_of(folder_of(tmp_path / "c", texts))
    assert [d["document"] for d in plan.dropped.duplicates] == ["edition"]


def test_draws_of_a_known_source_all_stay(tmp_path):
    stories = [SimpleNamespace(text="the same story", nats=1.0)] * 10
    write_documents(stories, tmp_path / "documents.jsonl")
    plan = plan_of(tmp_path)
    assert np.bincount(plan.splits).tolist() == [6, 2, 2]


def test_related_documents_share_a_split(tmp_path):
    texts = {f"{i:02d}": prose(i, 400) for i in range(40)}
    for i in range(0, 40, 2):  # a tenth in common: too little to drop, too much to split
        texts[f"{i:02d}"] += " " + " ".join(texts[f"{i + 1:02d}"].split()[:60])
    folder = folder_of(tmp_path / "c", texts)
    for seed in range(5):
        plan = plan_of(folder, seed=seed)
        assert not plan.dropped.duplicates
        assert (plan.splits[::2] == plan.splits[1::2]).all()
        assert np.bincount(plan.splits).tolist() == [24, 8, 8]


# --- Splitting


def test_every_document_goes_to_one_split_whatever_the_others_are(tmp_path):
    texts = {f"{i:03d}": prose(i, 30) for i in range(100)}
    folder = folder_of(tmp_path / "c", texts)
    plan = plan_of(folder, 0.1, 0.05)
    parts = {split: ids(folder, plan, split) for split in SPLITS}
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 85,
        "validation": 10,
        "test": 5,
    }
    assert sorted(chain.from_iterable(parts.values())) == sorted(texts)
    assert (plan_of(folder, 0.1, 0.05).splits == plan.splits).all()
    assert (plan_of(folder, 0.1, 0.05, seed=2).splits != plan.splits).any()


def test_three_documents_fill_three_splits(tmp_path):
    folder = folder_of(tmp_path / "c", {name: prose(ord(name), 20) for name in "abc"})
    plan = plan_of(folder, 0.3, 0.3)
    assert [len(ids(folder, plan, split)) for split in SPLITS] == [1, 1, 1]


def test_one_book_and_three_notes_are_split_by_text(tmp_path):
    """By documents, the book may be the test, and train on three notes."""
    texts = {"book": prose(1, 9000), **{f"note{i}": prose(i + 2, 40) for i in range(3)}}
    for seed in range(5):
        plan = plan_of(folder_of(tmp_path / str(seed), texts), 0.1, 0.05, seed=seed)
        assert plan.shares == pytest.approx((0.85, 0.1, 0.05), abs=0.01)
        assert plan.splits[0] == CUT
    parts = [
        [d for d in split_documents(plan, split) if d.id.startswith("book")] for split in SPLITS
    ]
    assert "".join(part[0].text for part in parts) == texts["book"]
    assert [part[0].ends for part in parts] == [False, False, True]


def test_shares_of_the_text_are_met_whatever_the_lengths(tmp_path):
    chance = random.Random(3)
    texts = {f"{i:03d}": prose(i, int(chance.paretovariate(1.0) * 30)) for i in range(200)}
    folder = folder_of(tmp_path / "c", texts)
    for seed in range(5):
        plan = plan_of(folder, 0.1, 0.1, seed=seed)
        assert plan.shares == pytest.approx((0.8, 0.1, 0.1), abs=0.03)
        written = [sum(len(d.text) for d in split_documents(plan, split)) for split in SPLITS]
        assert [size / sum(written) for size in written] == pytest.approx(plan.shares, abs=1e-3)


def test_documents_of_named_splits_stay_in_them(tmp_path):
    lines = [
        {"id": f"{split}{i}", "text": prose(100 * n + i, 30), "nats": None, "split": split}
        for n, (split, count) in enumerate([("test", 3), ("train", 2), ("validation", 4)])
        for i in range(count)
    ]
    lines.append(lines[0] | {"id": "copy", "split": "train"})  # also in the test
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "documents.jsonl").write_text(text)
    plan = plan_of(tmp_path, 0.3, 0.3)
    assert ids(tmp_path, plan, "train") == ["train0", "train1"]
    assert len(ids(tmp_path, plan, "validation")) == 4
    assert ids(tmp_path, plan, "test") == ["test0", "test1", "test2"]
    assert [d["document"] for d in plan.dropped.duplicates] == ["copy"]


def test_a_split_that_is_not_named_is_drawn_from_train(tmp_path):
    lines = [
        {"id": f"{i:02d}", "text": prose(i, 40), "nats": None,
         "split": "test" if i < 10 else "train"}
        for i in range(50)
    ]  # fmt: skip
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    plan = plan_of(tmp_path, 0.2, 0.2)
    assert ids(tmp_path, plan, "test") == [f"{i:02d}" for i in range(10)]
    assert len(ids(tmp_path, plan, "validation")) == 10  # 0.2 of 0.2 + 0.6, of 40


def test_texts_that_differ_in_case_and_white_space_are_the_same(tmp_path):
    texts = {"a": "One  two\n\nthree", "b": "one two three", "c": "four", "d": "five six"}
    plan = plan_of(folder_of(tmp_path / "c", texts), 0.3, 0.3)
    assert [d["document"] for d in plan.dropped.duplicates] == ["b"]


def test_short_and_chinese_texts_are_compared_by_characters(tmp_path):
    chance = random.Random(5)
    signs = [chr(c) for c in range(0x4E00, 0x4E00 + 2000)]
    poems = {f"{i:02d}": "".join(chance.choice(signs) for _ in range(56)) for i in range(30)}
    poems["30"] = "又" + poems["07"][:40] + "，" + poems["07"][40:]
    short = {"x": prose(1, 20), "y": prose(1, 20) + " end", "z": prose(2, 20)}
    plan = plan_of(folder_of(tmp_path / "c", poems | short), 0.2, 0.2)
    told = {d["document"]: d["of"] for d in plan.dropped.duplicates}
    assert set(map(frozenset, told.items())) == {frozenset(("07", "30")), frozenset(("x", "y"))}


def test_no_fraction_no_documents(tmp_path):
    folder = folder_of(tmp_path / "c", {name: prose(ord(name), 20) for name in "abcd"})
    plan = plan_of(folder, 0.25, 0.0)
    assert [len(ids(folder, plan, split)) for split in SPLITS] == [3, 1, 0]


def test_one_document_is_cut_by_position(tmp_path):
    text = prose(1, 500)[:1994]
    folder = folder_of(tmp_path / "c", {"verdict": text})
    plan = plan_of(folder, 0.1, 0.0)
    pieces = [list(split_documents(plan, split)) for split in SPLITS]
    assert [len(part) for part in pieces] == [1, 1, 0]
    assert pieces[0][0].text + pieces[1][0].text == text
    assert len(pieces[0][0].text) == int(0.9 * len(text)) < round(0.9 * len(text))
    assert pieces[1][0].id == "verdict#validation"


def test_fractions_that_leave_nothing_and_no_text_are_told(tmp_path):
    folder = folder_of(tmp_path / "c", {"a": " "})
    with pytest.raises(UserError, match="holds no text"):
        plan_of(folder)
    with pytest.raises(UserError, match="leave nothing to train on"):
        plan_of(folder, 0.5, 0.5)


# --- Real books


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    folder = tmp_path_factory.mktemp("books")
    fetch(
        MANIFESTS / "gutenberg.json",
        folder / "corpus",
        cache=folder / "cache",
        mirror=str(MIRROR),
        offline=True,
    )
    return folder / "corpus"


@needs_mirror
def test_real_books_lose_their_license_and_their_copies(books):
    kept = ("Carroll", "Potter", "Nesbit")
    for path in books.glob("*.txt"):
        if not path.name.startswith(kept):
            path.unlink()
    for document in documents(books):
        assert "Gutenberg" not in document.text, document.id
        assert "\r" not in document.text
        assert len(document.text) > 1000
    told = {d["document"]: d["of"] for d in plan_of(books).dropped.duplicates}
    assert told["Potter, Beatrix - The Tale of Peter Rabbit"] == (
        "Potter, Beatrix - The Great Big Treasury of Beatrix Potter"
    )
    assert "Carroll, Lewis - Alice's Adventures in Wonderland" in told
    assert "Carroll, Lewis - Through the Looking-Glass" not in told
    assert not [name for name in told if name.startswith("Nesbit")]
