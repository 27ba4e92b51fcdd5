"""Project Gutenberg's books without license, credits and a printer's line breaks."""

import re
from functools import cache
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
_LICENSE = re.compile(
    r"Gutenberg(?:-tm|™)? License|THE SMALL PRINT!|Gutenberg Literary Archive", re.IGNORECASE
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
_BRACKETED = re.compile(
    r"^ *\[(?:Illustration|Picture|Frontispiece|Transcriber['’]?s?['’]? note)[^\]]*\]\.? *$",
    re.MULTILINE | re.IGNORECASE,
)
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
    bodies = [text[start:end] for start, end in _books(text)]
    if not bodies:
        return text
    cleaned = "\n\n".join(filter(None, map(_clean, bodies))) + "\n"
    if len(cleaned) < LEAST_KEPT * len(text):
        kept = f"{len(cleaned.strip()):,} of {len(text):,} characters are the book"
        if not cleaned.strip() or len(text) - len(cleaned) > LONGEST_LICENSE:
            _say(text, f"{kept} by its markers, which are not where they should be: left whole")
            return text
        _say(text, kept)
    if _LICENSE.search(cleaned):
        _say(text, "a license stays in it: its lines are not where they should be")
    return cleaned


@cache  # a corpus is read more than once
def _say(text: str, what: str) -> None:
    print(f"Project Gutenberg's {' '.join(text[:60].split())!r} …: {what}")


def _books(text: str) -> list[tuple[int, int]]:
    """Where each book begins and ends: between lines that say so, or before one that ends it."""
    starts = [(m.start(), m.end()) for m in _START.finditer(text)]
    ends = [m.start() for m in _END.finditer(text)]
    licenses = [m.start() for m in _LICENSE_BEHIND.finditer(text)]
    books = []
    for (_, start), (following, _) in zip(starts, [*starts[1:], (len(text), 0)]):
        within = [end for end in ends if start <= end < following]
        within = within or [end for end in licenses if start <= end < following]
        # A line that only looks like an end is far from the last.
        end = next((e for e in within if within[-1] - e < END_LINES), following)
        if text[start:end].strip() and (within or following == len(text)):
            books.append((start, end))
    if not books and ends and not any(start < ends[0] for start, _ in starts):
        return [(0, ends[0])]
    return books


def _clean(body: str) -> str:
    body = _without_end_notes(_INSIDE.sub("", body))
    blocks = re.split(r"\n\s*\n", _BRACKETED.sub("", body))
    blocks = [block.strip("\n").rstrip() for block in blocks if block.strip()]
    return "\n\n".join(_unwrap(block) for block in _without_credits(blocks))


def _without_end_notes(body: str) -> str:
    length = len(body)
    earliest = max(length / 2, min(length * (1 - NOTES_SHARE), length - NOTES_LENGTH))
    notes = next((m for m in _NOTES.finditer(body) if m.start() >= earliest), None)
    return body[: notes.start()] if notes else body


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
    lines = [line.rstrip() for line in block.split("\n")]
    width = max(len(line) for line in lines) - WRAP_TOLERANCE
    indented = sum(line.startswith("  ") for line in lines[1:])
    if len(lines) < 2 or width < SHORTEST_FULL_LINE - WRAP_TOLERANCE or indented:
        return "\n".join(lines)
    for line, following in pairwise(lines):
        if len(line) + 1 + len(following.split(maxsplit=1)[0]) < width:
            return "\n".join(lines)
    return " ".join(line.strip() for line in lines)
