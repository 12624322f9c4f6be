"""Spoken digits, sample by sample or as a spectrogram."""

import io
import math
import os
import re
import tarfile
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from seriatim.core.errors import SeriatimError, check_size
from seriatim.tasks.long_range.base import Examples, StoredTask

__all__ = ["SpokenDigits", "log_mel"]

NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")  # digit, speaker, take
TEST_TAKES = 5  # takes 0 to 4 are the official test split
RATE = 8000
FRAME, HOP, BINS = 200, 80, 256  # samples of a frame, from frame to frame, of its Fourier transform
LOWEST = 20.0  # Hz
QUIET = 1e-5  # energy that is added to that of a band
MEAN, DEVIATION = -5.3, 3.7  # of a logarithm, roughly


class SpokenDigits(StoredTask):
    """Spoken digits: which digit is said, from the raw sound, 8,000 samples a second.

    The Free Spoken Digit Dataset: its files *.wav, or tar.gz archives of them, in a folder. Takes 0 to 4 of each digit
    and speaker are held out, as its authors have it. Sound is scaled to a mean square of 1 and cut at `samples`; the
    question stands at its end. The level is the digit.

    With `bands` an element is a frame of 25 ms in the place of a sample, one every 10 ms (:func:`log_mel`), and the
    sound is as loud as it was recorded: a frame says nothing of what comes after it.

    Args:
        folder: where the files are; "": speech/fsdd in the folder that the environment variable SERIATIM_DATA names.
        samples: at most so many of a recording; the median is 3,400.
        every: means of so many samples are one element.
        bands: of the spectrogram; 0 is raw sound.

    Source: https://github.com/Jakobovski/free-spoken-digit-dataset; the protocol of raw speech is that of Gu et al.,
        2021, arXiv:2111.00396, section 4.3 (there: ten words of Speech Commands, 16,000 samples).
    """

    difficulty = "digit"
    vocab_size = 10

    def __init__(self, folder: str = "", samples: int = 8000, every: int = 1, bands: int = 0):
        check_size(samples=samples, every=every)
        if every > samples:
            raise SeriatimError(f"every is {every}; it must be at most samples, which is {samples}")
        if bands and every > 1:
            raise SeriatimError(f"every is {every}; it must be 1 where there are bands")
        if bands and samples < FRAME:
            raise SeriatimError(f"samples is {samples}; it must be at least {FRAME}, a frame")
        self.folder, self.samples, self.every, self.bands = folder, samples, every, bands
        self.channels = _filters(bands).size(1) if bands else 1
        self.length = self.shortest = (samples - FRAME) // HOP + 1 if bands else samples // every

    def load(self) -> tuple[Examples, Examples]:
        folder = self.folder or (os.environ.get("SERIATIM_DATA", "") and f"{os.environ['SERIATIM_DATA']}/speech/fsdd")
        found = sorted(_recordings(Path(folder))) if folder else []
        if not found:
            where = f"folder is {folder!r}, where" if folder else "folder is '' and SERIATIM_DATA is not set;"
            raise SeriatimError(
                f"{where} there are no recordings of the Free Spoken Digit Dataset, such as 0_jackson_5.wav or a "
                "tar.gz of them"
            )
        train, test = ([r for r in found if (r[2] < TEST_TAKES) == held] for held in (False, True))
        for part, use in ((train, "train on, which are those from take 5"), (test, "test on, which are takes 0 to 4")):
            if not part:
                raise SeriatimError(f"folder is {folder!r}, which holds no recording to {use}")
        return self._examples(train), self._examples(test)

    def _examples(self, recordings: list[tuple[int, str, int, bytes]]) -> Examples:
        series = [self._series(content) for *_, content in recordings]
        lengths = torch.tensor([len(z) for z in series], dtype=torch.int64)
        values = torch.stack([F.pad(z, (0, 0, 0, self.length - len(z))) for z in series])
        labels = torch.tensor([digit for digit, *_ in recordings], dtype=torch.int64)
        return Examples(values, lengths, labels, labels)

    def _series(self, content: bytes) -> Tensor:
        with wave.open(io.BytesIO(content)) as file:
            frames = torch.frombuffer(bytearray(file.readframes(file.getnframes())), dtype=torch.int16).float()
        if self.bands:
            return log_mel(frames[: self.samples] / 2**15, self.bands)
        frames = frames[: self.length * self.every]
        frames = frames / frames.square().mean().sqrt().clamp(min=1.0)
        whole = max(len(frames) // self.every, 1)
        missing = max(0, whole * self.every - len(frames))
        return F.pad(frames, (0, missing))[: whole * self.every].view(whole, -1).mean(1, keepdim=True)


def log_mel(sound: Tensor, bands: int) -> Tensor:
    """Logarithms of the energies of sound (samples,), 8,000 a second from -1 to 1, in mel bands, (frames, bands).

    A frame is 200 samples under a Hann window, and begins 80 samples after the one before. Bands are triangles, as wide
    as each other in mel from 20 to 4,000 Hz, on the bins of a Fourier transform of 256. The logarithms are shifted and
    scaled by constants to about mean 0 and deviation 1.

    Raises:
        SeriatimError: there are so many bands that one holds no bin.
    """
    frames = F.pad(sound, (0, max(0, FRAME - len(sound)))).unfold(0, FRAME, HOP)
    energy = torch.fft.rfft(frames * torch.hann_window(FRAME), BINS).abs().square()
    return ((energy @ _filters(bands).to(energy.dtype) + QUIET).log() - MEAN) / DEVIATION


def _filters(bands: int) -> Tensor:
    """(BINS / 2 + 1, bands): how much of each bin a band holds."""
    check_size(bands=bands)
    low, high = (1127 * math.log1p(f / 700) for f in (LOWEST, RATE / 2))
    places = 1127 * torch.log1p(torch.arange(BINS // 2 + 1) * (RATE / BINS / 700))
    away = (places[:, None] - torch.linspace(low, high, bands + 2)[1:-1]).abs()
    found = (1 - away * (bands + 1) / (high - low)).clamp(min=0)
    if not found.any(0).all():
        raise SeriatimError(f"bands is {bands}; with so many one holds no bin of the Fourier transform")
    return found


def _recordings(folder: Path) -> Iterator[tuple[int, str, int, bytes]]:
    """Digit, speaker, take and content of every file."""
    for path in sorted(folder.rglob("*")):
        if path.name.endswith(".tar.gz"):
            with tarfile.open(path) as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.isfile() else None
                    if file is not None:
                        yield from _recording(Path(member.name).name, file.read)
        elif path.is_file():
            yield from _recording(path.name, path.read_bytes)


def _recording(name: str, read: Callable[[], bytes]) -> Iterator[tuple[int, str, int, bytes]]:
    match = NAME.fullmatch(name)
    if match:
        yield int(match[1]), match[2], int(match[3]), read()
