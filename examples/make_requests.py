"""Makes requests.jsonl out of two novels, the same bytes at every run.

    python examples/make_requests.py                  # fetches the two Debian packages into a temporary folder
    python examples/make_requests.py --packages DIR   # reads golang-github-*.deb that are there already

Needs Debian's apt-get and dpkg; nothing is installed. The texts are named in README.md.

The rows come in rounds: first a stretch of short ones (a sentence to classify, a paragraph to embed or to translate),
where a limit on requests is what one waits for, then a few whole chapters to summarise, where it is tokens.
That is what makes a file worth a scheduler: neither limit alone says how fast it can run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROUNDS = 14
LONGEST = 23_000
"""Bytes of text in the longest row: just under 6,000 tokens at four bytes each."""

CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"


class Book(NamedTuple):
    """Where a text is found, and that it is the one we know."""

    name: str
    package: str
    path: str
    sha256: str
    chapter: str
    """What a chapter's first line looks like."""


BOOKS = (
    Book(
        "moby-dick",
        "golang-github-colinmarc-hdfs-dev",
        "usr/share/gocode/src/github.com/colinmarc/hdfs/testdata/mobydick.txt",
        "870fe07753b139bbcbcf45a6de27e4ec620434972ec78c08267655003333f0f8",
        r"CHAPTER \d+\. .*",
    ),
    Book(
        "sherlock-holmes",
        "golang-github-jdkato-prose-dev",
        "usr/share/gocode/src/github.com/jdkato/prose/testdata/sherlock.txt",
        "a3b2d6055bbd290a278b70f35adb46b14685b500c1a494577093d7ed3663f169",
        r"(?:ADVENTURE )?[IVX]+\. (?:A|THE) [A-Z' -]+",
    ),
)

MOODS = "calm, joyful, angry, afraid, sad, amused, solemn, tense"
LANGUAGES = ("French", "German", "Spanish", "Italian", "Portuguese", "Dutch", "Japanese", "Polish")
SHORT_TASKS = (
    ("mood", f"Name the mood of the passage with one word out of: {MOODS}."),
    ("speech", "Does somebody speak in this passage? Answer yes or no."),
    ("names", "List the people named in the passage as a JSON array of strings; [] if there are none."),
    ("place", "Is this indoors, outdoors, at sea, or unclear? One word."),
    ("plain", "Say this in plain modern English, in one sentence."),
)
LONG_TASKS = (
    ("summary", "Summarise the text in five sentences. Keep names as they are written."),
    (
        "outline",
        "Give an outline of the text: at most twelve points, in order, each with the characters that take part.",
    ),
    ("questions", "Write eight questions that a reader of this text should be able to answer, then the answers."),
)


def main() -> int:
    """Write the file. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Make requests.jsonl out of two novels.")
    parser.add_argument("--packages", type=Path, help="a folder with the two .deb files; without it they are fetched")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("requests.jsonl"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        chapters = [chapter for book in BOOKS for chapter in _chapters(book, arguments.packages, Path(folder))]
    rows = list(_rows(chapters))
    arguments.output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{arguments.output}: {len(rows)} requests")
    return 0


class Chapter(NamedTuple):
    """A chapter's name, as in `moby-dick-042`, and its paragraphs, each on one line."""

    name: str
    paragraphs: tuple[str, ...]


def _chapters(book: Book, packages: Path | None, folder: Path) -> list[Chapter]:
    if packages is None:
        subprocess.run(["apt-get", "download", "-q", book.package], cwd=folder, check=True)  # noqa: S607 - as on PATH
    archive = next((packages or folder).glob(f"{book.package}_*.deb"))
    subprocess.run(["dpkg", "-x", archive, folder], check=True)  # noqa: S607
    raw = (folder / book.path).read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != book.sha256:
        sys.exit(f"{archive.name}: {book.path} has sha256 {found}, expected {book.sha256}: another edition")
    text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    # Only the author's words: what stands before the first chapter and after the last belongs to the transcribers.
    text = re.split(r"\nEnd of (?:the )?Project", text)[0]
    pieces = re.split(rf"^{book.chapter}$", text, flags=re.MULTILINE)[1:]
    return [Chapter(f"{book.name}-{number:03}", _paragraphs(piece)) for number, piece in enumerate(pieces, 1)]


def _paragraphs(text: str) -> tuple[str, ...]:
    joined = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))
    return tuple(block for block in joined if len(block) > 40)


def _rows(chapters: Sequence[Chapter]) -> Iterator[dict[str, object]]:
    """Rounds of short rows and long ones; no paragraph and no stretch of a chapter is used twice for the same task."""
    brief = _spread([(c.name, i, p) for c in chapters for i, p in enumerate(c.paragraphs) if 60 <= len(p) <= 420])
    medium = _spread([(c.name, i, p) for c in chapters for i, p in enumerate(c.paragraphs) if 420 < len(p) <= 1_500])
    long = _spread([(c.name, i, t) for c in chapters for i, t in enumerate(_lumps(c))])
    short_tasks, long_tasks, languages = cycle(SHORT_TASKS), cycle(LONG_TASKS), cycle(LANGUAGES)
    for number in range(ROUNDS):
        for _ in range(16):
            yield _short(*next(brief), *next(short_tasks))
        for _ in range(6):
            yield _embedding([next(brief)])
        yield _embedding(list(islice(brief, 6)))
        for _ in range(9):
            yield _translation(*next(medium), next(languages))
        for turn in range(4):
            yield _long(*next(long), *next(long_tasks), by_responses=(number + turn) % 2 == 0)


def _spread(found: list[tuple[str, int, str]]) -> Iterator[tuple[str, int, str]]:
    """Walk through the books in big steps, so that neighbours in the file are not neighbours in a chapter."""
    step = next(step for step in range(int(len(found) * 0.382), len(found)) if _coprime(step, len(found)))
    return iter([found[(index * step) % len(found)] for index in range(len(found))])


def _coprime(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a == 1


def _lumps(chapter: Chapter) -> Iterator[str]:
    """Cut a chapter, at paragraphs, into parts of at most LONGEST bytes; parts under 4,000 bytes are left out."""
    part: list[str] = []
    size = 0
    for paragraph in (*chapter.paragraphs, ""):
        length = len(paragraph.encode()) + 2
        if part and (size + length > LONGEST or not paragraph):
            if size >= 4_000:
                yield "\n\n".join(part)
            part, size = [], 0
        part.append(paragraph)
        size += length


def _short(chapter: str, index: int, text: str, task: str, instruction: str) -> dict[str, object]:
    messages = [{"role": "system", "content": instruction}, {"role": "user", "content": text}]
    body = {"model": "gpt-4o-mini", "messages": messages, "max_tokens": 60, "temperature": 0}
    return _row(f"{chapter}-p{index:03}-{task}", CHAT, body)


def _translation(chapter: str, index: int, text: str, language: str) -> dict[str, object]:
    # The content as a list of parts, which the format allows as well.
    parts = [{"type": "text", "text": f"Translate into {language}. Answer with the translation alone."}]
    parts.append({"type": "text", "text": text})
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": parts}]}
    return _row(f"{chapter}-p{index:03}-{language.lower()}", CHAT, body)


def _embedding(found: list[tuple[str, int, str]]) -> dict[str, object]:
    texts = [text for _, _, text in found]
    chapter, index, _ = found[0]
    body = {"model": "text-embedding-3-small", "input": texts[0] if len(texts) == 1 else texts}
    return _row(f"{chapter}-p{index:03}-embed-{len(texts)}", EMBEDDINGS, body)


def _long(chapter: str, index: int, text: str, task: str, instruction: str, *, by_responses: bool) -> dict[str, object]:
    name = f"{chapter}-part{index}-{task}"
    if by_responses:
        return _row(name, RESPONSES, {"model": "gpt-4o-mini", "instructions": instruction, "input": text})
    messages = [{"role": "system", "content": instruction}, {"role": "user", "content": text}]
    return _row(name, CHAT, {"model": "gpt-4o-mini", "messages": messages, "max_tokens": 800})


def _row(custom_id: str, url: str, body: dict[str, object]) -> dict[str, object]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


if __name__ == "__main__":
    sys.exit(main())
