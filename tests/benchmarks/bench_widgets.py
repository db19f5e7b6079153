"""What a change of a widget takes in the kernel, in milliseconds: median and largest of several changes.

Run by hand: ``python tests/benchmarks/bench_widgets.py [planted|demo]``. The aims are 300 ms for a lesion or an image
and 100 ms for a map on two quiet cores; the ratio to one forward pass over the batch says how much the widget adds.
"""

import statistics
import sys
import time

from bmfl_lab import load_study
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.evaluation import Explorer
from bmfl_lab.training import presets, train_brain_encoder, train_fusion


def timed(act, n=7):
    found = []
    for i in range(n):
        start = time.perf_counter()
        act(i)
        found.append(1000 * (time.perf_counter() - start))
    return statistics.median(found), max(found)


def main(name):
    import widgets

    study, store = load_study(name), FeatureStore()
    config, encoder_config = presets("tiny" if name == "planted" else "small", epochs=2)
    encoder = train_brain_encoder(encoder_config, study, store=store)
    model = train_fusion(config, study, encoder=encoder, store=store)
    explorer = Explorer(study, model, encoder, store=store)
    start = time.perf_counter()
    ablation = widgets.region_ablation(explorer)
    print(f"{name}: region_ablation opens in {time.perf_counter() - start:.2f} s (imports included)")
    surface = widgets.surface_viewer(explorer)
    attention = widgets.attention_explorer(explorer)
    regions = [("V1",), ("V2",), ("HVC",), ("LVC",), ("FFC",), ("LO",), ("hV4",)]
    rows = {
        "lesion": lambda i: ablation.set(regions=regions[i]),
        "image": lambda i: ablation.set(index=i + 1),
        "attention image": lambda i: attention.set(index=i + 1),
        "map swap, encoding accuracy": lambda i: surface.set(show=("encoding accuracy", "predicted response")[i % 2]),
        "forward pass over one batch": lambda i: explorer.batch("fusion", ["test"], explorer.lesion(regions[i])),
    }
    for label, act in rows.items():
        median, largest = timed(act)
        print(f"{label:<32} median {median:7.1f} ms   largest {largest:7.1f} ms")
    assert not (ablation.error or surface.error or attention.error)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "planted")
