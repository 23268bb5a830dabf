"""An append-only record of what a command has done, so that the same command goes on after a stop.

JSON lines: first what the answers are of, then one line per photo. A line that a kill has cut off
is dropped, and its photo done again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from colorgan.errors import UsageError
from colorgan.files import LOCK, mapping


class Journal:
    """The rows done, and the open file that more are added to; `close` closes it.

    Attributes:
        rows: Each photo's row, by the photo's name.
    """

    def __init__(self, path: Path, rows: dict[str, dict[str, Any]]) -> None:
        self.rows = rows
        self._file = path.open("a", encoding="utf-8")

    @classmethod
    def open(cls, folder: Path, name: str, header: Mapping[str, Any], *, overwrite: bool) -> Self:
        """Open a folder's journal, or begin one.

        Args:
            folder: Owned by this process.
            name: Of the file.
            header: What its rows are of; rows of something else are not added to.
            overwrite: Begin afresh where the folder holds something else.

        Raises:
            UsageError: It does, and `overwrite` is off.
        """
        path = folder / name
        rows: dict[str, dict[str, Any]] = {}
        if path.is_file():
            found, rows, num_bytes = _read(path)
            if found == header:
                with path.open("r+b") as file:
                    file.truncate(num_bytes)
                return cls(path, rows)
            problem = "holds answers of another model or with other settings"
        else:
            problem = "holds other files"
            if not any(each.name not in (LOCK, name) for each in folder.iterdir()):
                overwrite = True  # nothing is there to be lost

        if not overwrite:
            raise UsageError(f"{folder} {problem}: choose another --out, or add --overwrite true")
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return cls(path, {})

    def add(self, photo: str, row: Mapping[str, Any]) -> None:
        """Add a photo's row; it is on its way to the disk when this returns."""
        whole = {"photo": photo, **row}
        self._file.write(json.dumps(whole, allow_nan=False) + "\n")
        self._file.flush()
        self.rows[photo] = whole

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]], int]:
    """Return the header, the rows, and the bytes up to the end of the last whole line."""
    header: dict[str, Any] = {}
    rows: dict[str, dict[str, Any]] = {}
    num_bytes = 0
    with path.open("rb") as file:
        for number, line in enumerate(file):
            row = _parsed(line)
            if not row:
                break
            num_bytes += len(line)
            if number == 0:
                header = row
            else:
                rows[str(row.get("photo"))] = row
    return header, rows, num_bytes


def _parsed(line: bytes) -> dict[str, Any]:
    """Return the object of a whole line; {} of any other."""
    try:
        return mapping(json.loads(line)) if line.endswith(b"\n") else {}
    except (ValueError, RecursionError):
        return {}
