"""A brain encoder trained by two processes: ``python two_processes.py FOLDER KIND``, or the same under torchrun.

Without torchrun the process forks two children, so that both share its imports.
"""

import dataclasses
import os
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # not where a test imports `train`
    os.environ["OMP_NUM_THREADS"] = "1"

import accelerate  # noqa: F401  imported once for both children
import numpy as np
import torch._dynamo  # noqa: F401
from accelerate.utils import gather_object, wait_for_everyone

from bmfl_lab import load_study
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.config import replace
from bmfl_lab.evaluation import evaluate_ood
from bmfl_lab.runtime import divided
from bmfl_lab.training import LoopConfig, context, fusion, recipes, train_brain_encoder
from bmfl_lab.training.batches import ImageBatches, StoreBatches
from bmfl_lab.training.encoder import tiny


def train(folder, kind):
    """Train twice, so that the second time both processes read, and leave ``rank-<r>.txt``."""
    study = load_study(
        "planted", n_encoder=60, n_encoder_val=20, n_encoder_test=20, n_train=8, n_val=8, n_test=8
    )
    config = tiny(kind)
    config = replace(config, loop=replace(config.loop, epochs=2))
    scores = [
        train_brain_encoder(
            config,
            study,
            store=FeatureStore(folder / "features"),
            folder=folder / "encoder",
            device="cpu",
        ).scores
        for _ in range(2)
    ]
    assert (scores[0] == scores[1]).all()
    measure_in_parts(study, FeatureStore(folder / "features"))
    evaluate_in_parts(study, FeatureStore(folder / "features"))
    extract_in_parts(study, folder)
    (folder / f"rank-{os.environ.get('RANK', 'alone')}.txt").write_text(repr(scores[0].tolist()))


def extract_in_parts(study, folder):
    """Check that each process extracts a part, and that all bits are those of one process."""
    backbone, images = context.study_backbone(study.backbone, "cpu"), study.subject().stimuli
    whole = FeatureStore(folder / "features").get(backbone, images, batch_size=4)
    reads = []

    def read(i):
        reads.append(i)
        time.sleep(0.01)
        return images.read(i)

    store, watched = FeatureStore(folder / "divided"), dataclasses.replace(images, read=read)
    wait_for_everyone()
    wanted = [("patches", -1), ("cls", 0)]
    found = store.get_many(backbone, watched, wanted, batch_size=4)[0]
    assert found.key == whole.key and found.manifest["shards"] == whole.manifest["shards"]
    for name in ("cls", "mean", "patches"):
        assert (getattr(found, name) == getattr(whole, name)).all()
    wait_for_everyone()
    n_read = gather_object([len(reads)])
    assert sum(n_read) == len(images) and min(n_read) > 0
    assert not list((folder / "divided" / ".parts").glob("*/*.npy"))


def measure_in_parts(study, store):
    """Check that tokens and responses are standardised by all images, of which each reads a part."""
    before, fusion._ROWS = fusion._ROWS, 3
    who = study.subject()
    tokens = store.get(context.study_backbone(study.backbone, "cpu"), who.stimuli)
    taken, data = [], {"cls": np.asarray(tokens.cls), "patches": np.asarray(tokens.patches)}
    response = np.asarray(who.responses, np.float32)

    class Counted(StoreBatches):
        def take(self, index):
            taken.append(len(index))
            return super().take(index)

    for streamed in (True, False):
        taken.clear()
        batches = Counted(data | ({"response": response} if streamed else {}), "cpu")
        found = fusion._measure(batches, "cpu", None if streamed else response)
        pairs = [(found.cls, data["cls"]), (found.patches, data["patches"].reshape(-1, 48))]
        pairs += [(found, response)]
        for one, values in pairs:
            mean = one.mean if one is found else one.mean().numpy()
            spread = one.scale if one is found else one.std().numpy()
            np.testing.assert_allclose(mean, values.mean(0, dtype=np.float64), atol=1e-5)
            np.testing.assert_allclose(
                spread, values.std(0, dtype=np.float64), rtol=1e-4, atol=1e-5
            )
        np.testing.assert_array_equal(found.donors, response[: len(found.donors)])
        n_taken = gather_object([sum(taken)])
        assert sum(n_taken) == len(who.stimuli) and min(n_taken) > 0
    fusion._ROWS = before


def evaluate_in_parts(study, store):
    """Check that divided predictions are those of this process alone, and that each takes a part."""
    before, fusion._BATCH = fusion._BATCH, 3
    parts = int(os.environ.get("WORLD_SIZE", 1))
    model = fusion.train_fusion(
        recipes.tiny(kind="pooled:4", head="backbone", loop=LoopConfig(epochs=1, batch_size=4)),
        study,
        atlas=study.subject().atlas,
        store=store,
        device="cpu",
    )
    seen, classify = [], model.path.classify

    def counted(batch, **options):
        seen.append(len(batch["index"]))
        return classify(batch, **options)

    model.path.classify, test = counted, study.set("test")
    for batches in (model.batches(test), ImageBatches(test, model.path)):
        alone = fusion.predict(model.path, batches)["logits"]
        seen.clear()
        with divided():
            together = fusion.predict(model.path, batches)["logits"]
        assert (alone == together).all() and len(together) == 8
        assert sum(seen) < 8 if parts > 1 else sum(seen) == 8
    few = test.subset([0])  # one process has nothing to do
    with divided():
        assert len(fusion.predict(model.path, model.batches(few))["logits"]) == 1
    frame = evaluate_ood({"net": model}, study, shifts=[], sets=["test"], n_boot=5).per_image
    assert frame["predicted"].tolist() == alone.argmax(1).tolist()
    fusion._BATCH = before


if __name__ == "__main__":
    from kill_trials import free_port  # it sets the number of threads, too

    folder, kind = Path(sys.argv[1]), sys.argv[2]
    if "RANK" in os.environ:
        sys.exit(train(folder, kind))
    port, children = free_port(), []
    for rank in range(2):
        child = os.fork()
        if not child:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            code = 1
            try:
                train(folder, kind)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    sys.exit(max(os.waitpid(child, 0)[1] for child in children) != 0)
