"""Project Gutenberg's books without license, credits and a printer's line breaks."""

import re
from collections.abc import Iterator
from itertools import pairwise

# In English, German or French, as volunteers wrote it.
_PROJECT = r"PROJE(?:[CK]?T)[- ]GUTENBERG"
_START = re.compile(
    # The title may go on in the next line, and the closing stars may be missing.
    rf"^[ \t]*(?:\*{{3}} ?(?:START|BEGINN?|D[EÉ]BUT)\b[^\n*:]{{0,40}}{_PROJECT}"
    r"(?:[^\n*]*\*{3}|[^\n*]*\n[^\n*]{0,100}\*{3}|[^\n]*)"
    r"|\*END[* ]?\*? ?THE SMALL PRINT![\s\S]*?\*END\*)[ \t]*$",
    re.MULTILINE | re.IGNORECASE,
)
_END = re.compile(
    rf"^[ \t]*(?:\*{{3}} ?)?(?:(?:THE )?(?:ENDE?|FIN)\b[^\n.!?:]{{0,40}}{_PROJECT}"
    r"|END OF TH(?:IS|E) E-?TEXT OF |\*PROJECT GUTENBERG ETEXT OF ).*",
    re.MULTILINE | re.IGNORECASE,
)
_LICENSE_BEHIND = re.compile(
    r"^[ \t]*\*{3} ?START(?::? FULL LICENSE|\*+ ?THE SMALL PRINT!)", re.MULTILINE | re.IGNORECASE
)
_INSIDE = re.compile(
    r"<<THIS ELECTRONIC VERSION OF[^>]*>>", re.IGNORECASE
)  # the Shakespeare files'
_LICENSES = (  # in lower case
    *(f"gutenberg{mark} license" for mark in ("", "-tm", "™")),
    "gutenberg literary archive",
    "the small print!",
)
_CREDIT = re.compile(
    r"\W*(?:This (?:e-?text|eBook|file) was )?(?:(?:Produced|Prepared|Scanned|Transcribed|Edited) "
    r"(?:by|from)|E-?text (?:prepared|produced|scanned)|HTML version by"
    r"|Note: (?:Project Gutenberg also|Images of)|Images of the original"
    r"|(?:The |\*+ ?(?:The )?)?Project Gutenberg['’]?s? (?:E-?text|EBook) of\b"
    r"|See \d+-h|\[Portions of this header|\(?https?://|\[?Transcriber['’]?s?['’]? notes?\b)",
    re.IGNORECASE,
)
_NOTES = re.compile(r"^\W*Transcriber['’]?s?['’]? (?:end)?notes?\b.*", re.MULTILINE | re.IGNORECASE)
_WORD = re.compile(r"\w")
_BRACKETED = re.compile(
    r"^ *\[(?:Illustration|Picture|Frontispiece|Transcriber['’]?s?['’]? note)[^\]]*\]\.? *$",
    re.MULTILINE | re.IGNORECASE,
)
# What must stand, in lower case, where a pattern matches: a search for it is far faster.
_START_WORDS, _END_WORDS = ("gutenberg", "small print!"), ("gutenberg", "text of ")
_LICENSE_BEHIND_WORDS = ("full license", "small print!")
_LICENSE_WORDS = ("gutenberg", "print!")  # a joined line may have parted the others
LONGEST_LICENSE = 40_000  # characters before and behind a book, at most
LEAST_KEPT = 0.3  # of a file; where less is kept, it is said
END_LINES = 3000  # characters from the first line that ends a book to the last, at most
HEAD_BLOCKS = 8  # credits stand among the first few paragraphs
NOTES_SHARE = 0.1  # a transcriber's notes stand in the last tenth of a book,
NOTES_LENGTH = 3000  # or the last characters of the second half of a short one


def clean_gutenberg(text: str) -> str:
    """The author's text of Project Gutenberg's books; any other text comes back as it is.

    The license, also where it stands inside, the credits of who prepared the file, transcribers'
    notes at either end and `[Illustration]` lines go. Hard line breaks inside a paragraph of prose
    become spaces, so that a model learns sentences and not a printer's width; verse, tables and
    headings, whose breaks were not forced by a full line, keep them. Paragraphs stay one blank
    line apart. A text that would lose more than 70% and more than a license comes back as it is;
    that, a text that loses 70%, and a license that stays, are printed.
    """
    lower = _lower(text)
    books = _books(text, lower)
    if not books:
        return text
    bodies = [_clean(text[start:end], lower[start:end]) for start, end in books]
    cleaned = "\n\n".join(filter(None, bodies)) + "\n"
    if len(cleaned) < LEAST_KEPT * len(text):
        kept = f"{len(cleaned.strip()):,} of {len(text):,} characters are the book"
        if not cleaned.strip() or len(text) - len(cleaned) > LONGEST_LICENSE:
            _say(text, f"{kept} by its markers, which are not where they should be: left whole")
            return text
        _say(text, kept)
    perhaps = any(_any_of(_LICENSE_WORDS, lower[start:end]) for start, end in books)
    if perhaps and _any_of(_LICENSES, cleaned.lower()):
        _say(text, "a license stays in it: its lines are not where they should be")
    return cleaned


def _say(text: str, what: str) -> None:
    print(f"Project Gutenberg's {' '.join(text[:60].split())!r} …: {what}", flush=True)


def _lower(text: str) -> str:
    """The text in lower case, each character where it was."""
    return text.replace("\u0130", "i").lower()


def _any_of(words: tuple[str, ...], lower: str) -> bool:
    return any(word in lower for word in words)


def _matches(
    pattern: re.Pattern[str], words: tuple[str, ...], text: str, lower: str
) -> Iterator[re.Match[str]]:
    """`pattern.finditer(text)` of a pattern that begins with a line and holds one of the words in
    that line."""
    lines: set[int] = set()
    for word in words:
        found = lower.find(word)
        while found >= 0:
            lines.add(lower.rfind("\n", 0, found) + 1)
            found = lower.find(word, found + len(word))
    end = 0
    for start in sorted(lines):
        match = pattern.match(text, start) if start >= end else None
        if match:
            yield match
            end = match.end()


def _books(text: str, lower: str) -> list[tuple[int, int]]:
    """Where each book begins and ends: between lines that say so, or before one that ends it."""
    starts = [(m.start(), m.end()) for m in _matches(_START, _START_WORDS, text, lower)]
    ends = [m.start() for m in _matches(_END, _END_WORDS, text, lower)]
    licenses: list[int] | None = None  # where they begin, once somebody asks
    books = []
    for (_, start), (following, _) in zip(starts, [*starts[1:], (len(text), 0)]):
        within = [end for end in ends if start <= end < following]
        if not within and licenses is None:
            behind = _matches(_LICENSE_BEHIND, _LICENSE_BEHIND_WORDS, text, lower)
            licenses = [m.start() for m in behind]
        within = within or [end for end in licenses or [] if start <= end < following]
        # A line that only looks like an end is far from the last.
        end = next((e for e in within if within[-1] - e < END_LINES), following)
        if text[start:end].strip() and (within or following == len(text)):
            books.append((start, end))
    if not books and ends and not any(start < ends[0] for start, _ in starts):
        return [(0, ends[0])]
    return books


def _clean(body: str, lower: str) -> str:
    if "<<this electronic" in lower:
        body = _INSIDE.sub("", body)
        lower = _lower(body)
    end = _end_notes(body, lower)
    body, lower = body[:end], lower[:end]
    bracketed = [m.span() for m in _matches(_BRACKETED, ("[",), body, lower)]
    kept = zip([0, *(end for _, end in bracketed)], [*(start for start, _ in bracketed), end])
    body = "".join(body[start:end] for start, end in kept)
    blocks = re.split(r"\n\s*\n", body)
    blocks = [block.strip("\n").rstrip() for block in blocks if block.strip()]
    return "\n\n".join(_unwrap(block) for block in _without_credits(blocks))


def _end_notes(body: str, lower: str) -> int:
    """Where a transcriber's notes begin, or the body ends."""
    length = len(body)
    earliest = max(length / 2, min(length * (1 - NOTES_SHARE), length - NOTES_LENGTH))
    begin = int(earliest)
    if lower.find("transcriber", begin) < 0:
        return length
    while begin and not _WORD.match(body, begin - 1):  # a match may begin with what is no word
        begin -= 1
    return next((m.start() for m in _NOTES.finditer(body, begin) if m.start() >= earliest), length)


def _without_credits(blocks: list[str]) -> list[str]:
    """Drop credits and notes among the first blocks, and the indented lines they begin."""
    kept: list[str] = []
    inside_note = False
    for block in blocks[:HEAD_BLOCKS]:
        inside_note = bool(_CREDIT.match(block)) or (inside_note and block.startswith("   "))
        if not inside_note:
            kept.append(block)
    return kept + blocks[HEAD_BLOCKS:]


SHORTEST_FULL_LINE = 50
WRAP_TOLERANCE = 12  # some printers break a little before the line is full


def _unwrap(block: str) -> str:
    """Join the lines of a paragraph if each break was forced by the line's width.

    A break is forced when the next line's first word would not have fitted.
    """
    if "\n" not in block:
        return block
    lines = list(map(str.rstrip, block.split("\n")))
    lengths = list(map(len, lines))
    width = max(lengths) - WRAP_TOLERANCE
    if width < SHORTEST_FULL_LINE - WRAP_TOLERANCE or "\n  " in block:
        return "\n".join(lines)
    if min(lengths[:-1]) + 2 < width:
        for line, following in pairwise(lines):
            if len(line) + 1 + len(following.split(maxsplit=1)[0]) < width:
                return "\n".join(lines)
    return " ".join(map(str.strip, lines))
