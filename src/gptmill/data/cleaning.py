"""Project Gutenberg's books without licence, credits and a printer's line breaks."""

import re
from itertools import pairwise

_START = re.compile(
    # The title may go on in the next line, and the closing stars may be missing.
    r"^ *(?:\*{3} ?START OF (?:THE|THIS) (?:COPYRIGHTED )?PROJECT GUTENBERG"
    r"(?:[^\n*]*\*{3}|[^\n*]*\n[^\n*]{0,100}\*{3}|[^\n]*)"
    r"|\*END[* ]?\*? ?THE SMALL PRINT![\s\S]*?\*END\*) *$",
    re.MULTILINE | re.IGNORECASE,
)
_END = re.compile(
    r"^ *(?:\*{3} ?END OF (?:THE|THIS) (?:COPYRIGHTED )?PROJECT GUTENBERG"
    r"|END (?:OF )?(?:THE )?(?:THIS )?PROJECT GUTENBERG"
    r"|\*PROJECT GUTENBERG ETEXT OF ).*",
    re.MULTILINE | re.IGNORECASE,
)
_CREDIT = re.compile(
    r"\W*(?:This (?:e-?text|eBook|file) was )?(?:(?:Produced|Prepared|Scanned|Transcribed|Edited) "
    r"(?:by|from)|E-?text (?:prepared|produced|scanned)|HTML version by"
    r"|Note: (?:Project Gutenberg also|Images of)|Images of the original"
    r"|See \d+-h|\[Portions of this header|\(?https?://|\[?Transcriber['’]?s?['’]? notes?\b)",
    re.IGNORECASE,
)
_NOTES = re.compile(r"^\W*Transcriber['’]?s?['’]? (?:end)?notes?\b.*", re.MULTILINE | re.IGNORECASE)
_BRACKETED = re.compile(
    r"^ *\[(?:Illustration|Picture|Frontispiece|Transcriber['’]?s?['’]? note)[^\]]*\]\.? *$",
    re.MULTILINE | re.IGNORECASE,
)
LONGEST_LICENCE = 40_000  # characters before and behind a book, at most
LEAST_KEPT = 0.3  # of a book; less than this was no licence alone
HEAD_BLOCKS = 8  # credits stand among the first few paragraphs
NOTES_SHARE = 0.1  # a transcriber's notes stand in the last tenth of a book,
NOTES_LENGTH = 3000  # or the last characters of the second half of a short one


def clean_gutenberg(text: str) -> str:
    """The author's text of a Project Gutenberg book; any other text comes back as it is.

    The licence, the credits of who prepared the file, transcribers' notes at either end and
    `[Illustration]` lines go. Hard line breaks inside a paragraph of prose become spaces, so that
    a model learns sentences and not a printer's width; verse, tables and headings, whose breaks
    were not forced by a full line, keep them. Paragraphs stay one blank line apart.
    """
    start = _START.search(text)
    if start is None:
        return text
    body = text[start.end() :]
    end = _END.search(body)  # of a short book the licence behind it is the longer part
    body = _without_end_notes(body[: end.start()] if end else body)
    blocks = re.split(r"\n\s*\n", _BRACKETED.sub("", body))
    blocks = [block.strip("\n").rstrip() for block in blocks if block.strip()]
    blocks = _without_credits(blocks)
    cleaned = "\n\n".join(_unwrap(block) for block in blocks) + "\n"
    if len(text) - len(cleaned) > LONGEST_LICENCE and len(cleaned) < LEAST_KEPT * len(text):
        print(
            f"a Project Gutenberg text of {len(text):,} characters would keep {len(cleaned):,}: "
            f"its markers are not where they should be, and it is left whole: {text[:60]!r} …"
        )
        return text
    return cleaned


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
