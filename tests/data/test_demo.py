"""The demo study: readers and simulation on made input offline, and the whole study over the network."""

import hashlib
import http.server
import io
import json
import tarfile
import threading

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

from bmfl_lab.data import cifar, demo, simulate
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.splits import check_leakage
from bmfl_lab.errors import ConfigError


def archive(path, members):
    with tarfile.open(path, "w:gz") as out:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return path


def small_cifar(n=20):
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (n * 6, 32, 32, 3), dtype=np.uint8), generator.integers(
        0, 10, n * 6
    )


def png(images):
    out = io.BytesIO()
    Image.fromarray(images.reshape(len(images), 1024, 3)).save(out, "PNG")
    return out.getvalue()


def test_both_sources_give_the_same_arrays(tmp_path):
    images, labels = small_cifar()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    parts = [slice(20 * i, 20 * i + 20) for i in range(6)]
    records = {
        f"cifar-10-batches-bin/{name}.bin": b"".join(
            bytes([label]) + image.transpose(2, 0, 1).tobytes()
            for label, image in zip(labels[part], images[part])
        )
        for name, part in zip(names, parts)
    }
    official = cifar.read_official(archive(tmp_path / "official.tgz", records))
    pictures = {f"package/{name}.png": png(images[part]) for name, part in zip(names, parts)}
    pictures["package/train_lables.json"] = json.dumps(labels[:100].tolist()).encode()
    pictures["package/test_lables.json"] = json.dumps(labels[100:].tolist()).encode()
    npm = cifar.read_npm(archive(tmp_path / "npm.tgz", pictures))
    for found in (official, npm):
        assert np.array_equal(found[0], images) and np.array_equal(found[1], labels)


def test_unreachable_or_wrong_official_archive_is_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("BMFL_OFFLINE", raising=False)
    monkeypatch.setenv("BMFL_HOME", str(tmp_path))
    assert cifar.fetch_official((tmp_path / "absent").as_uri()) is None
    (tmp_path / "cut").write_bytes(b"half an archive")
    assert cifar.fetch_official((tmp_path / "cut").as_uri()) is None
    said = capsys.readouterr().out
    assert "is not reachable" in said and "did not arrive whole" in said
    assert not list((tmp_path / "downloads" / "cifar-10-binary").glob("archive*"))
    monkeypatch.setenv("BMFL_OFFLINE", "1")
    (tmp_path / "whole").write_bytes(b"never read")
    assert cifar.fetch_official((tmp_path / "whole").as_uri()) is None
    assert "which forbids every download" in capsys.readouterr().out


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_official_archive_is_gone_on_from_and_never_taken_for_a_whole_one(
    ranges, tmp_path, monkeypatch
):
    data = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
    ranges_requested, cut = [], [True]

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            ranges_requested.append(self.headers["Range"])
            start = (
                int(ranges_requested[-1].removeprefix("bytes=").rstrip("-"))
                if ranges_requested[-1] and ranges
                else 0
            )
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            self.wfile.write(data[start:2_000_000] if cut.pop() else data[start:])

        def log_message(self, *_):
            pass

    monkeypatch.delenv("BMFL_OFFLINE", raising=False)
    monkeypatch.setenv("BMFL_HOME", str(tmp_path))
    monkeypatch.setattr(cifar, "OFFICIAL_BYTES", len(data))
    monkeypatch.setattr(cifar, "OFFICIAL_SHA256", hashlib.sha256(data).hexdigest())
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        assert cifar.fetch_official(url) is None
        cut.append(False)
        whole = cifar.fetch_official(url)
        server.shutdown()
    assert whole.read_bytes() == data and ranges_requested == [None, "bytes=2000000-"]
    assert [p.name for p in whole.parent.iterdir() if p.name != ".lock"] == [whole.name]
    assert cifar.fetch_official(url) == whole  # from the cache: the server is gone


def test_photographs_are_balanced_disjoint_and_never_repeated():
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (60_000, 1, 1, 3), dtype=np.uint8)
    images[:, 0, 0, 0] %= 8  # many repeats on purpose
    labels = np.arange(60_000) % 10
    found = demo._choose({"images": images, "labels": labels}, 0, 300, (200, 50, 100))
    rows = np.concatenate(list(found.values()))
    assert len(np.unique(images[rows].reshape(len(rows), 3), axis=0)) == len(rows) == 650
    assert all(np.ptp(np.bincount(labels[r])) == 0 for r in found.values())
    assert (found["test"] >= 50_000).all() and (found["encoder"] < 50_000).all()
    more = demo._choose({"images": images, "labels": labels}, 0, 300, (100, 50, 100))
    assert set(more["train"]) < set(found["train"]) and np.array_equal(
        more["encoder"], found["encoder"]
    )


def test_every_class_has_its_own_semantics():
    assert tuple(simulate.SEMANTIC_TABLE) == cifar.CLASS_NAMES
    table = np.asarray(list(simulate.SEMANTIC_TABLE.values()))
    assert (
        table.shape == (10, len(simulate.SEMANTIC_DIMENSIONS))
        and len(np.unique(table, axis=0)) == 10
    )
    known = {*simulate.SEMANTIC_DIMENSIONS, *simulate.IMAGE_DIMENSIONS}
    assert all(set(profile) <= known for profile in simulate.AREA_PROFILE.values())


def test_energy_finds_orientation_wavelength_and_place():
    y, x = np.mgrid[0:64, 0:64]
    for channel in range(8):
        wavelength, angle = simulate.WAVELENGTHS[channel // 4], np.pi * (channel % 4) / 4
        wave = 0.5 + 0.3 * np.cos(2 * np.pi * (-x * np.sin(angle) - y * np.cos(angle)) / wavelength)
        wave[:, 32:] = 0.5
        energy = simulate.contrast_energy(wave[None].astype(np.float32))[0]
        assert energy[:, 16:48, 8:24].mean((1, 2)).argmax() == channel
        assert energy[channel, 16:48, 44:60].mean() < 1e-3 * energy[channel, 16:48, 8:24].mean()


def ring():
    """Eight vertices on a ring of 2 degrees, four per hemisphere."""
    angle = np.array([20.0, 60, 110, 160, -20, -60, -110, -160])
    maps = {"polar_angle": angle, "eccentricity": np.full(8, 2.0), "rf_size": np.full(8, 0.4)}
    return Atlas(np.repeat([0, 1], 4).astype(np.int8), {"V1": np.ones(8, bool)}, maps=maps)


def test_receptive_fields_lie_where_the_maps_say():
    atlas = ring()
    weights = simulate.field_weights(atlas, np.arange(8)).reshape(8, simulate.SIDE, simulate.SIDE)
    assert np.allclose(weights.sum((1, 2)), 1, atol=1e-3)
    centres = (
        np.arange(simulate.SIDE) + 0.5
    ) * simulate.DEGREES / simulate.SIDE - simulate.DEGREES / 2
    x, y = (weights.sum(1) * centres).sum(1), -(weights.sum(2) * centres).sum(1)
    assert np.allclose(np.hypot(x, y), 2, atol=0.02)
    assert np.allclose(np.degrees(np.arctan2(x, y)), atlas.maps["polar_angle"], atol=1)
    assert (x[:4] > 0).all() and (x[4:] < 0).all()  # the left hemisphere sees the right half


def test_retinotopic_vertices_respond_to_their_own_place_only():
    atlas = ring()
    rois = {name: np.zeros(8, bool) for name in simulate.CEILINGS} | dict(atlas.rois)
    atlas = Atlas(atlas.hemisphere, rois, np.arange(8), "fsaverage5", maps=atlas.maps)
    generator = np.random.default_rng(0)
    images = np.full((9, 64, 64, 3), 128, np.uint8)
    for i in range(8):
        angle = np.radians(atlas.maps["polar_angle"][i])
        column = int(32 + 2 * np.sin(angle) * 64 / simulate.DEGREES)
        row = int(32 - 2 * np.cos(angle) * 64 / simulate.DEGREES)
        patch = generator.integers(0, 256, (8, 8, 1), dtype=np.uint8)
        images[i, row - 4 : row + 4, column - 4 : column + 4] = patch
    noiseless, attributes, truth = simulate.simulate_responses(
        images, np.zeros((9, 10)), atlas, np.random.default_rng(1)
    )
    assert np.array_equal(noiseless[:8].argmax(0), np.arange(8))
    assert np.isfinite(attributes).all() and np.isnan(truth["semantic_tuning"]).all()


def test_too_small_or_too_large_requests_are_refused():
    with pytest.raises(ConfigError, match="n_train of at least 10; got 5"):
        demo.load(n_train=5)
    images = np.zeros((60_000, 1, 1, 3), np.uint8)
    images.reshape(60_000, 3)[:] = np.arange(180_000).reshape(60_000, 3) % 251
    with pytest.raises(ConfigError, match="images for 'val'; got 20000"):
        demo._choose({"images": images, "labels": np.arange(60_000) % 10}, 0, 10, (10, 20_000, 10))


@pytest.mark.network
@pytest.mark.slow
def test_the_whole_demo():
    data = cifar.load_cifar10()
    labels, images = np.asarray(data["labels"]), data["images"]
    assert images.shape == (60_000, 32, 32, 3) and images[0, 0, 0].tolist() == [59, 62, 63]
    assert np.bincount(labels[: cifar.N_TRAIN]).tolist() == [5000] * 10
    assert labels[:5].tolist() == [6, 9, 9, 4, 1]
    assert labels[cifar.N_TRAIN :][:5].tolist() == [3, 8, 8, 0, 6]
    study = demo.load()
    subject = study.subject()
    assert study.simulated and "simulated" in study.description and "simulated" in subject.name
    assert check_leakage({**study.sets, "encoder": subject.stimuli})["by_image"] == 0
    assert {k: len(v) for k, v in study.sets.items()} == {
        "train": 1200,
        "val": 300,
        "test": 400,
        "clipart": 102,
    }
    assert np.isfinite(subject.responses).all()
    first, second = subject.repeats[:, 0].astype(float), subject.repeats[:, 1].astype(float)
    single = (
        np.mean((first - first.mean(0)) * (second - second.mean(0)), 0)
        / first.std(0)
        / second.std(0)
    )
    assert abs(np.mean(3 * single / (1 + 2 * single) - subject.noise_ceiling)) < 0.02
    train, test = subject.rows("train"), subject.rows("test")

    def decode(group):
        responses = subject.truth["noiseless"][:, subject.atlas.select(group)]
        model = LogisticRegression(C=0.01, max_iter=300).fit(
            responses[train], subject.stimuli.labels[train]
        )
        return model.score(responses[test], subject.stimuli.labels[test])

    assert decode("HVC") > 0.9 and decode("LVC") < 0.45
