"""A claim: what a paper says, and a function that looks whether it is so."""

import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from seriatim.core.errors import SeriatimError

__all__ = ["Claim", "Finding", "MissingDataError", "data", "find_claims"]

_NAME = re.compile(r"(\d{3})_(\w+)\.py")


@dataclass(frozen=True)
class Finding:
    """A row of a claim's table. holds: None where there was too little work to say."""

    what: str
    paper: str  # the paper's figure, in its own setting
    ours: str
    holds: bool | None


class MissingDataError(SeriatimError):
    """A claim cannot be tried here; what was found elsewhere is kept."""


def data(path: str) -> Path:
    """A file or folder in the one that the environment variable SERIATIM_DATA names.

    Raises:
        MissingDataError: it is not there.
    """
    folder = os.environ.get("SERIATIM_DATA", "")
    if not folder or not (Path(folder) / path).exists():
        raise MissingDataError(f"needs {path} in the folder that SERIATIM_DATA names, which is {folder!r}")
    return Path(folder) / path


@dataclass(frozen=True)
class Claim:
    """A script of the folder of claims.

    It has a docstring whose first paragraph is the claim and whose others, if any, are notes: what was compared and
    what else was tried; `SOURCE` (arXiv number); and `run(quick, seed)`, which returns findings. It may only use what
    it trains itself.
    """

    number: int
    name: str
    path: Path

    def load(self) -> ModuleType:
        """The script as a module."""
        found = importlib.util.spec_from_file_location(f"claim_{self.path.stem}", self.path)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        return module

    def says(self) -> str:
        """The claim, from the first lines of the script."""
        return self._paragraphs()[0]

    def notes(self) -> str:
        """The rest of its docstring."""
        return "\n\n".join(self._paragraphs()[1:])

    def function(self) -> Callable[[bool, int], Sequence[Finding]]:
        """What looks whether it is so."""
        function: Callable[[bool, int], Sequence[Finding]] = self.load().run
        return function

    def _paragraphs(self) -> list[str]:
        docstring = self.load().__doc__ or ""
        return [" ".join(paragraph.split()) for paragraph in docstring.strip().split("\n\n")]


def find_claims(folder: Path, numbers: Sequence[int]) -> list[Claim]:
    """The claims of a folder by number, or those of `numbers`.

    Raises:
        SeriatimError: there is no such folder, or no claim of such a number in it.
    """
    if not folder.is_dir():
        raise SeriatimError(f"folder is {folder}, which is no folder; run this in a checkout, or name one by --folder")
    matches = [(path, _NAME.fullmatch(path.name)) for path in sorted(folder.iterdir())]
    claims = [Claim(int(match[1]), match[2], path) for path, match in matches if match]
    known = {claim.number for claim in claims}
    for number in numbers:
        if number not in known:
            raise SeriatimError(
                f"there is no claim of paper {number} in {folder}; there are {', '.join(map(str, sorted(known)))}"
            )
    return [claim for claim in claims if not numbers or claim.number in numbers]
