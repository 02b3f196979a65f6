"""The front page: the README's words, with a player that lives, and the lessons as cards with pictures."""

import base64
import html
import io
import json
import re

import numpy as np
from PIL import Image
from website_html import Page, PageRenderer

from fmdiff_helpers.filmstrip import Filmstrip

FILM_LESSON = "03"  # its first Filmstrip opens the front page
FILM_PANELS, FILM_CHARACTERS = 3, 200_000
COVER_SIZE = (560, 420)


def readme_parts(readme: str) -> dict[str, str]:
    """Return the README's sections by heading; what stands before the first is under an empty one."""
    parts = re.split(r"^## (.+)\n", readme, flags=re.M)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def lesson_rows(table: str) -> list[dict[str, str]]:
    """Return the rows of the README's table of lessons: columns by name, and each lesson's number, title and file."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
    for row in rows:
        lesson = re.match(r"\[(?P<number>\d+) (?P<title>.+)\]\(notebooks/(?P<file>.+)\.ipynb\)", row["lesson"])
        row |= lesson.groupdict()
    return rows


def short_film(film: str) -> str:
    """Return a Filmstrip with its first panels only, and with fewer frames if it is large."""
    panels = json.loads(re.search(r"const panels = (\[.*?\]), readout = ", film)[1])[:FILM_PANELS]
    readout = json.loads(re.search(r"readout = (\[.*?\]);", film)[1])
    titles = [html.unescape(title) for title in re.findall(r'data-title="([^"]*)"', film)]
    step = 1 + sum(len(uri) for frames in panels for uri in frames) // FILM_CHARACTERS
    kept = range(len(readout) - 1, -1, -step)[::-1]  # the last frame is the result

    def frame(frames: list[str], k: int) -> np.ndarray:
        image = Image.open(io.BytesIO(base64.b64decode(frames[k % len(frames)].partition(",")[2])))
        return np.asarray(image.convert("RGB" if image.mode == "P" else "L"))

    shown = {title: np.stack([frame(frames, k) for k in kept]) for title, frames in zip(titles, panels, strict=False)}
    return Filmstrip(shown, [readout[k] for k in kept], start=len(kept) // 2)._repr_html_()


def cover(png: bytes) -> bytes:
    """Return a lesson's picture for the front page: smaller, as WebP."""
    image, buffer = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    image.thumbnail(COVER_SIZE)
    image.save(buffer, "WEBP", quality=70, method=6)
    return buffer.getvalue()


def card(lesson: Page, texts: PageRenderer) -> str:
    """Return a lesson's entry on the front page."""
    row, what = lesson.row, lesson.row["you learn"]
    return f"""<li><img src="covers/{lesson.number}.webp" alt="" loading="lazy">
<div><h3><a href="{lesson.path}">{lesson.name}</a></h3>
{texts.render(what[0].upper() + what[1:] + ".")}<p class="costs">{costs(row)}</p></div></li>
"""


def costs(row: dict[str, str]) -> str:
    """Return how long it takes to read and to run a lesson."""
    return f"Reading {row['reading']}. Run All {row['Run All']}."


def front_page(parts: dict[str, str], lessons: list[Page], texts: PageRenderer, kept: dict[str, bytes]) -> str:
    """Return the front page; the lessons' pictures join `kept`.

    Its words are the README's: what the series is, how to start, in which order to read, where to go next.
    """
    kept |= {f"covers/{lesson.number}.webp": cover(lesson.row["cover"]) for lesson in lessons}
    title, *words = re.sub(r"^(!\[.*|\*[^*].*\*)\n", "", parts[""], flags=re.M).split("\n\n")
    films = [film for lesson in lessons if lesson.number == FILM_LESSON for film in lesson.row["films"]]
    notes = parts["Lessons"][parts["Lessons"].rindex("|\n") + 2 :]
    blocks = [
        texts.render(title),
        f'<div class="first">{short_film(films[0])}</div>' if films else "",
        texts.render("\n\n".join(words)),
        '<p class="ways">'
        f'<a href="{lessons[0].path}">Read lesson {lessons[0].number}</a> <a href="draw.html">Draw in the browser</a> '
        '<a href="#start">How to start</a></p>',
        texts.render("## Lessons"),
        f'<ol class="lessons">{"".join(card(lesson, texts) for lesson in lessons)}</ol>',
        texts.render(notes),
        *(texts.render(f"## {name}\n{parts[name]}") for name in ("Start", "Where next")),
    ]
    return "\n".join(blocks)
