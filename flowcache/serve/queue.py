"""Videos that were asked for: a queue in SQLite, which survives the process."""

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Literal

Status = Literal["queued", "in_progress", "completed", "failed"]

#: Videos that are not finished.
OPEN = "status IN ('queued', 'in_progress')"


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video that was asked for; times are seconds since 1970."""

    id: str
    prompt: str
    words: tuple[str, ...]  # options of ``flowcache generate``
    seconds: float
    size: str  # WIDTHxHEIGHT
    status: Status = "queued"
    progress: int = 0  # percent of the frames
    created_at: int = 0
    completed_at: int | None = None
    error: str | None = None
    attempts: int = 0  # claims that no end and no clean stop of the server followed


class QueueFull(Exception):
    """As many videos wait as may."""


class VideoQueue:
    """Videos in the order of their requests; safe to use from several threads.

    All methods raise OSError with one sentence where the file cannot be read or written, as on a full disk.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        with self._explained():
            self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._base.row_factory = sqlite3.Row
        self._execute("PRAGMA journal_mode = WAL")
        self._execute(
            "CREATE TABLE IF NOT EXISTS videos (place INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE, prompt TEXT, "
            "words TEXT, seconds REAL, size TEXT, status TEXT, progress INTEGER, created_at INTEGER, "
            "completed_at INTEGER, error TEXT, attempts INTEGER NOT NULL DEFAULT 0)"
        )
        if "attempts" not in [column["name"] for column in self._execute("PRAGMA table_info(videos)")]:
            self._execute("ALTER TABLE videos ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0")

    def add(self, video: Video, most: int) -> Video:
        """Append a video; raises QueueFull if ``most`` are not finished."""
        values = (video.id, video.prompt, json.dumps(video.words), video.seconds, video.size, int(time.time()), most)
        added = self._run(
            "INSERT INTO videos (id, prompt, words, seconds, size, status, progress, created_at) "
            f"SELECT ?, ?, ?, ?, ?, 'queued', 0, ? WHERE (SELECT COUNT(*) FROM videos WHERE {OPEN}) < ? RETURNING *",
            *values,
        )
        if not added:
            raise QueueFull
        return added[0]

    def claim(self) -> Video | None:
        """The oldest video that is not finished, now in progress; that of a process that was killed comes first."""
        oldest = f"SELECT place FROM videos WHERE {OPEN} ORDER BY place LIMIT 1"
        begun = "status = 'in_progress', attempts = attempts + 1"
        found = self._run(f"UPDATE videos SET {begun} WHERE place = ({oldest}) RETURNING *")
        return found[0] if found else None

    def release(self, id: str) -> bool:
        """Take back the attempt of a video that a clean stop of the server ended; returns whether it is wanted."""
        return bool(self._run("UPDATE videos SET attempts = attempts - 1 WHERE id = ? RETURNING *", id))

    def report(self, id: str, progress: int) -> None:
        self._run("UPDATE videos SET progress = ? WHERE id = ?", progress, id)

    def finish(self, id: str, error: str | None = None) -> bool:
        """Note the end of a video; returns whether it is still wanted."""
        ended = "status = ?, error = ?, completed_at = ?, progress = CASE WHEN ? THEN 100 ELSE progress END"
        values = ("failed" if error else "completed", error, int(time.time()), error is None)
        return bool(self._run(f"UPDATE videos SET {ended} WHERE id = ? RETURNING *", *values, id))

    def get(self, id: str) -> Video | None:
        found = self._run("SELECT * FROM videos WHERE id = ?", id)
        return found[0] if found else None

    def list(self, limit: int, after: str | None = None, ascending: bool = False) -> list[Video]:
        """Up to ``limit`` videos behind the one with the id ``after``, by default the newest first."""
        sign, order = (">", "ASC") if ascending else ("<", "DESC")
        behind = f"WHERE ?1 IS NULL OR place {sign} (SELECT place FROM videos WHERE id = ?1)"
        return self._run(f"SELECT * FROM videos {behind} ORDER BY place {order} LIMIT ?2", after, limit)

    def remove(self, id: str) -> bool:
        """Forget a video; returns whether there was one."""
        return bool(self._run("DELETE FROM videos WHERE id = ? RETURNING *", id))

    def close(self) -> None:
        self._base.close()

    def _run(self, command: str, *values: str | float | None) -> Sequence[Video]:
        return [_read(row) for row in self._execute(command, *values)]

    def _execute(self, command: str, *values: str | float | None) -> Sequence[dict]:
        with self._explained(), self._lock:
            return [dict(row) for row in self._base.execute(command, values)]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise OSError(f"{self._path}: {error}; make room on its disk, or move a damaged file away.") from error


def _read(row: dict) -> Video:
    del row["place"]
    return Video(**{**row, "words": tuple(json.loads(row["words"]))})
