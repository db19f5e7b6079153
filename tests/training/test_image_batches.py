"""Images as the source of batches: the same pixels with any number of workers and processes."""

import itertools
import time

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch import nn

from bmfl_lab.backbones import Preprocess, map_tokens, wrap
from bmfl_lab.data.stimuli import StimulusSet, from_files
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.files import sha256_bytes
from bmfl_lab.models.bmfl import BMFL
from bmfl_lab.training.batches import ImageBatches, Order, sweep


@pytest.fixture(scope="module")
def path():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 14, stride=14), nn.GELU())
    preprocess = Preprocess(image_size=28)
    return BMFL(backbone=wrap(net, preprocess=preprocess, tokens=map_tokens, name="toy"))


def generated(n, side=40):
    """Return a set whose images are made from their index when they are read."""

    def read(index):
        return np.random.default_rng(index).integers(0, 256, (side, side + 9, 3), dtype=np.uint8)

    return StimulusSet(
        name="generated",
        ids=np.array([f"n{i:08d}" for i in range(n)], dtype=object),
        read=read,
        digest_of=lambda i: sha256_bytes(str(i).encode()),
        labels=np.arange(n) % 3,
        class_names=("a", "b", "c"),
    )


def plan(n, epochs, rank=0, processes=1, batch_size=40):
    order = Order(n, batch_size, 5, processes)
    for epoch, within in itertools.product(range(epochs), range(order.per_epoch)):
        yield epoch, order.indices(epoch, within)[rank::processes]


def taken(batches, *arguments, **options):
    """Return (epoch, row) -> class token of all images of a plan."""
    batches.expect(plan(*arguments, **options))
    found = {}
    for epoch, rows in plan(*arguments, **options):
        batch = batches.take(rows)
        assert batch["index"].tolist() == rows.tolist()
        assert batch["label"].tolist() == (rows % 3).tolist()
        found |= {(epoch, int(row)): cls.numpy() for row, cls in zip(rows, batch["cls"])}
    return found


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")
@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_pixels_do_not_depend_on_workers_or_processes(path, augment):
    stimuli, found = generated(90), []
    for workers in (0, 1, 3):
        batches = ImageBatches(stimuli, path, augment=augment, seed=2, workers=workers)
        found.append(taken(batches, 90, 2))
    shares = [ImageBatches(stimuli, path, augment=augment, seed=2, workers=1) for _ in range(2)]
    halves = [taken(b, 90, 2, rank=k, processes=2) for k, b in enumerate(shares)]
    found.append(halves[0] | halves[1])
    assert not halves[0].keys() & halves[1].keys()
    for other in found:
        assert other.keys() == found[0].keys() and len(other) == 180
        for place, values in found[0].items():
            np.testing.assert_allclose(other[place], values, atol=1e-6)
    same = [np.allclose(found[0][0, i], found[0][1, i], atol=1e-6) for i in range(90)]
    assert all(same) if augment == "none" else not any(same)


def test_an_augmented_image_belongs_to_its_seed_and_id(path):
    stimuli = generated(30)
    reference = taken(ImageBatches(stimuli, path, augment="crop_flip", seed=1), 30, 1)
    other = taken(ImageBatches(stimuli, path, augment="crop_flip", seed=2), 30, 1)
    assert not any(np.allclose(reference[p], other[p]) for p in reference)
    few = stimuli.subset(np.arange(10, 20))
    part = ImageBatches(few, path, augment="crop_flip", seed=1)
    part.expect([(0, np.arange(10))])
    for i, cls in enumerate(part.take(np.arange(10))["cls"]):
        np.testing.assert_allclose(cls, reference[0, 10 + i], atol=1e-6)


def test_parts_of_a_batch_are_those_of_the_whole_batch_even_if_it_is_the_whole_set(path):
    stimuli = generated(12)
    whole = taken(ImageBatches(stimuli, path, augment="crop_flip"), 12, 3)
    batches = ImageBatches(stimuli, path, augment="crop_flip")
    batches.expect(plan(12, 3))
    for epoch, rows in plan(12, 3):  # out of memory: the whole batch again in two parts
        for part in (rows, *np.array_split(rows, 2), rows):
            for row, cls in zip(part, batches.take(part)["cls"]):
                np.testing.assert_allclose(cls, whole[epoch, int(row)], atol=1e-6)


def test_a_sweep_gives_all_rows_in_order_and_the_pixels_of_preprocess(path):
    stimuli = generated(70)
    for workers in (0, 2):
        batches = ImageBatches(stimuli, path, workers=workers)
        for _ in range(2):
            found = list(sweep(batches, 32))
            assert torch.cat([b["index"] for b in found]).tolist() == list(range(70))
            images = torch.stack([path.backbone.preprocess(stimuli.image(i)) for i in range(70)])
            cls = torch.cat([b["cls"] for b in found])
            torch.testing.assert_close(cls, path.tokens(images)["cls"])
    alone = batches.take(np.array([5, 3]))["cls"]  # rows that were not announced
    torch.testing.assert_close(alone, cls[[5, 3]])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_stops_and_names_itself(path, tmp_path, workers):
    files = [tmp_path / f"{i}.png" for i in range(40)]
    for i, file in enumerate(files):
        Image.fromarray(generated(40).image(i)).save(file)
    files[33].write_bytes(files[33].read_bytes()[:200])
    stimuli = from_files("photos", files, [f"id{i}" for i in range(40)], np.zeros(40, int))
    with pytest.raises(DataError, match=r"'id33' \(.*33\.png\) of 'photos'.*To fix it") as caught:
        list(sweep(ImageBatches(stimuli, path, workers=workers), 20))
    assert "Traceback" not in str(caught.value)
    files[33].unlink()
    with pytest.raises(DataError, match=r"33\.png"):
        list(sweep(ImageBatches(stimuli, path, workers=workers), 20))


def test_an_unknown_augmentation_is_refused(path):
    with pytest.raises(ConfigError, match="did you mean 'crop_flip'"):
        ImageBatches(generated(3), path, augment="crop-flip")


def test_random_crops_have_the_areas_ratios_and_flips_of_the_protocol():
    ramp = np.zeros((160, 160, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(160), np.arange(160)[:, None]
    preprocess, areas, ratios, flips = Preprocess(image_size=56), [], [], 0
    for i in range(400):
        crop = preprocess.random_crop(ramp, np.random.default_rng(i)).astype(float)
        # the slope of each ramp over the 56 pixels tells the side of the part that was cut
        across, down = crop[28, 45, 0] - crop[28, 10, 0], crop[45, 28, 1] - crop[10, 28, 1]
        width, height = abs(across) * 56 / 35, down * 56 / 35
        areas.append(width * height / 160**2)
        ratios.append(width / height)
        flips += across < 0
    assert 0.06 < min(areas) < 0.12 and 0.85 < max(areas) <= 1.05
    assert 0.68 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.45
    # large parts of a long shape do not fit and are drawn again: the mean is below 0.54
    assert 0.42 < np.mean(areas) < 0.54 and abs(np.mean(np.log(ratios))) < 0.03
    assert 160 < flips < 240
    strip = np.zeros((4, 900, 3), np.uint8)  # no random part fits: the central one is taken
    assert preprocess.random_crop(strip, np.random.default_rng(0)).shape == (56, 56, 3)


@pytest.mark.timeout(120)
def test_a_killed_worker_is_noticed_at_once_and_named(path):
    """Case 31: the main process must neither wait forever nor end with a bare RuntimeError."""
    others = set(psutil.Process().children())  # of earlier tests
    batches = ImageBatches(generated(4000), path, workers=1)
    batches.expect(plan(4000, 1))
    rows = [rows for _, rows in plan(4000, 1)]
    batches.take(rows[0])
    for worker in set(psutil.Process().children()) - others:
        worker.kill()
    began = time.monotonic()
    with pytest.raises(DataError, match=r"decode 'generated' to stay alive; got .*start again"):
        for row in rows[1:]:
            batches.take(row)
    assert time.monotonic() - began < 60  # torch asks every five seconds
