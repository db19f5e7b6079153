"""Alignment on the planted study: it raises held-out RSA above every control; its pieces do what they say."""

from dataclasses import replace as swap

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ttest_rel

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data import imported, load_study
from bmfl_lab.data.simulate import simulate_eeg
from bmfl_lab.errors import CheckpointError, ConfigError, DataError
from bmfl_lab.evaluation.axes import brain_targets, gain_test
from bmfl_lab.evaluation.time_decoding import eeg_subject
from bmfl_lab.metrics.rsa import compare_rdms, rdm
from bmfl_lab.runtime import loaded_backbones
from bmfl_lab.training import aligned, checkpoint
from bmfl_lab.training import encoder as encoders
from bmfl_lab.training.encoder import train_brain_encoder
from bmfl_lab.training.loop import LoopConfig

CONTROLS = ("no_fmri", "shuffled", "noise")


def planted(seed=0, **sizes):
    return load_study(
        "planted",
        seed=seed,
        **({"n_encoder": 240, "n_encoder_val": 60, "n_encoder_test": 80} | sizes),
    )


def quick(epochs=3, **changes):
    return configs.replace(
        aligned.tiny(loop=LoopConfig(epochs=epochs, batch_size=24, lr=3e-3, optimiser="adam")),
        **changes,
    )


@pytest.fixture(scope="module")
def study():
    return planted()


@pytest.fixture(scope="module")
def original(study):
    return aligned.prepare_original(
        quick(pretrain=LoopConfig(epochs=3, batch_size=16, lr=3e-3)), study
    )


def test_figures_and_records_name_the_network_before_alignment(study, original):
    served = {(found["name"], found["weights"]) for found in loaded_backbones()}
    wanted = f"trained from scratch on {len(study.set('train'))} labelled images of planted"
    assert (f"CORnet-S of width {original.config.width}", wanted) in served


def held_out_rsa(model, subject):
    test = subject.rows("test")
    truth = rdm(subject.truth["noiseless"][test])[None]
    activations = model.activations(subject.stimuli.subset(test))
    return np.mean([compare_rdms(rdm(v)[None], truth)[0, 0] for v in activations.values()])


def every_roi(subject):
    return {"all": np.stack(list(brain_targets(subject).values()))}


def test_alignment_raises_held_out_rsa_and_controls_do_not(study, original):
    subject = study.subject()
    before = held_out_rsa(original, subject)
    after = aligned.train_aligned(quick(), study, original=original)
    shuffled = aligned.train_aligned(quick(control="shuffled"), study, original=original)
    assert held_out_rsa(after, subject) > before + 0.03
    assert held_out_rsa(after, subject) > held_out_rsa(shuffled, subject) + 0.03
    models = {"original": original, "aligned": after, "shuffled": shuffled}
    test = subject.stimuli.subset(subject.rows("test"))
    p = gain_test(models, test, every_roi(subject)).set_index("model")["p"]
    assert p["aligned"] < 0.05 < p["shuffled"]
    assert after.selection == "best val_loss" and "simulated" in after.label
    assert after.history[-1]["val_mse"] < after.history[0]["val_mse"]


def test_training_the_head_alone_leaves_the_network_as_it_was(study, original):
    subject = study.subject()
    test = subject.stimuli.subset(subject.rows("test"))
    frozen = aligned.train_aligned(quick(epochs=1, freeze=True), study, original=original)
    for layer, values in original.activations(test).items():
        assert np.array_equal(frozen.activations(test)[layer], values)
    assert frozen.history[-1]["val_mse"] < 1.1 and held_out_rsa(frozen, subject) == held_out_rsa(
        original, subject
    )


def test_beta_zero_is_the_control_without_fmri_and_gains_nothing(study, original):
    subject = study.subject()
    test = subject.stimuli.subset(subject.rows("test"))
    runs = {
        "beta 0": quick(epochs=1, beta=0.0),
        "no_fmri": quick(epochs=1, control="no_fmri"),
    }
    models = {k: aligned.train_aligned(c, study, original=original) for k, c in runs.items()}
    for layer, values in models["no_fmri"].activations(test).items():
        assert np.array_equal(models["beta 0"].activations(test)[layer], values)
    found = gain_test({"original": original, **models}, test, every_roi(subject))
    assert (found["p"] > 0.05).all() and (abs(found["gain"]) < 0.02).all()


def test_a_network_is_aligned_to_an_array_of_electrodes(study, original, tmp_path):
    whole, draw = study.subject(), np.random.default_rng(0)
    sites = draw.choice(whole.n_vertices, 80, replace=False)
    planted = whole.truth["noiseless"][:, sites]
    single = planted[:, None] + 0.5 * draw.normal(size=(len(planted), 3, len(sites)))
    for k in range(len(planted)):
        Image.fromarray(whole.stimuli.image(k)).save(tmp_path / f"{k:03d}.png")
    ids = [f"{k:03d}.png" for k in range(len(planted))]
    np.savez(tmp_path / "array.npz", responses=single, ids=ids)
    monkey = imported.load(
        tmp_path, responses="array.npz", images=".", space="electrodes", name="array", test=0.25
    ).subject()
    options = dict(study=study, subject=monkey, original=original)
    models = {
        "original": original,
        "aligned": aligned.train_aligned(quick(), **options),
        "shuffled": aligned.train_aligned(quick(control="shuffled"), **options),
    }
    test = monkey.stimuli.subset(monkey.rows("test"))
    found = gain_test(models, test, brain_targets(monkey), n_permutations=200).set_index("model")
    assert found.loc["aligned", "p"] < 0.05
    assert found.loc["aligned", "gain"] > found.loc["shuffled", "gain"] + 0.04
    assert monkey.kind == "measured" and "array (measured)" in models["aligned"].label


@pytest.mark.filterwarnings("ignore:expected at most 5%")
def test_a_network_and_an_encoder_are_trained_on_eeg(study, original, tmp_path):
    person = study.subject()
    signal = person.truth["noiseless"]
    sources = {roi: signal[:, person.atlas.select(roi)] for roi in ("V1", "FFC")}
    eeg = simulate_eeg(sources, {"V1": 0.1, "FFC": 0.3}, person.stimuli.ids)
    wearer = eeg_subject("sensors", eeg, person.stimuli, person.splits)
    options = dict(study=study, subject=wearer, original=original)
    models = {
        "original": original,
        "on EEG": aligned.train_aligned(quick(), **options),
        "shuffled": aligned.train_aligned(quick(control="shuffled"), **options),
    }
    test = person.stimuli.subset(person.rows("test"))
    found = gain_test(models, test, every_roi(person)).set_index("model")
    assert found.loc["on EEG", "p"] < 0.05
    assert found.loc["on EEG", "gain"] > found.loc["shuffled", "gain"] + 0.02
    wider = swap(study, subjects={"sensors": wearer})
    store = FeatureStore(tmp_path)
    encoder = train_brain_encoder(encoders.tiny("ridge"), wider, store=store, device="cpu")
    early, late = (encoder.scores[wearer.atlas.select(roi)] for roi in ("-50 ms", "350 ms"))
    assert np.nanmean(late) > np.nanmean(early) + 0.1


@pytest.mark.slow
def test_alignment_beats_every_control_over_five_seeds():
    rows = []
    for seed in range(5):
        study = planted(seed, n_encoder=400, n_encoder_val=120, n_encoder_test=120)
        config = aligned.tiny(seed=seed)
        start = aligned.prepare_original(config, study)
        rows.append(
            [
                held_out_rsa(
                    aligned.train_aligned(
                        configs.replace(config, control=c), study, original=start
                    ),
                    study.subject(),
                )
                for c in ("none", *CONTROLS)
            ]
        )
    rows = np.asarray(rows)
    for i in (1, 2, 3):
        assert ttest_rel(rows[:, 0], rows[:, i], alternative="greater").pvalue < 0.05 / 3


def test_detached_trains_to_the_same_bits_as_squared_error_only(study, original):
    states = {
        c: aligned.train_aligned(
            quick(epochs=1, contrast=c, selection="last"), study, original=original
        ).network.state_dict()
        for c in ("detached", "none", "matrix")
    }
    assert all(torch.equal(states["detached"][k], v) for k, v in states["none"].items())
    assert not all(torch.equal(states["detached"][k], v) for k, v in states["matrix"].items())


def test_backbone_runs_once_a_step_and_the_original_is_left_alone(study, original):
    before = {k: v.clone() for k, v in original.network.state_dict().items()}
    passes, forward = [], type(original.network).forward

    def counted(self, images, blocks=False):
        passes.append((self.training, len(images)))
        return forward(self, images, blocks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(original.network), "forward", counted)
        aligned.train_aligned(quick(epochs=2), study, original=original)
    assert sum(n for training, n in passes if training) == 2 * 240
    assert all(torch.equal(v, before[k]) for k, v in original.network.state_dict().items())


def test_outputs_and_files(study, original, tmp_path):
    model = aligned.train_aligned(quick(epochs=1), study, original=original)
    images = study.set("val").subset(np.arange(5))
    model.save(tmp_path / "m")
    again = aligned.load_aligned(tmp_path / "m")
    assert model.logits(images).shape == (5, 4) and model.responses(images).shape == (5, 32)
    np.testing.assert_array_equal(again.logits(images), model.logits(images))
    np.testing.assert_array_equal(again.responses(images), model.responses(images))
    assert (
        again.config == model.config
        and again.selection == model.selection
        and again.label == model.label
    )
    np.testing.assert_array_equal(again.features.components, model.features.components)
    assert {k: v.shape[1] for k, v in model.activations(images).items()} == {
        "V1": 4 * 14 * 14,
        "V2": 8 * 7 * 7,
        "V4": 16 * 4 * 4,
        "IT": 32 * 2 * 2,
    }
    original.save(tmp_path / "o")
    np.testing.assert_array_equal(
        aligned.load_aligned(tmp_path / "o").logits(images), original.logits(images)
    )
    with pytest.raises(ConfigError, match="the original, without a head"):
        original.responses(images)
    data = (tmp_path / "m" / "aligned.safetensors").read_bytes()
    (tmp_path / "m" / "aligned.safetensors").write_bytes(
        data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
    )
    with pytest.raises(CheckpointError, match="a damaged or exchanged file"):
        aligned.load_aligned(tmp_path / "m")
    checkpoint.write_bundle(tmp_path / "m", "aligned", {}, {}, what="fusion model")
    (tmp_path / "m" / "aligned.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"aligned model, in .* got files of: fusion model"):
        aligned.load_aligned(tmp_path / "m")


def test_dinov2_takes_cornets_place(study, tmp_path):
    config = quick(
        epochs=1,
        backbone="vit_tiny14",
        weights="random:0",
        blocks=(0, 2),
        pool=2,
        pretrain=LoopConfig(epochs=1, batch_size=48),
    )
    start = aligned.prepare_original(config, study)
    model = aligned.train_aligned(config, study, original=start)
    images = study.set("val").subset(np.arange(3))
    assert list(model.activations(images)) == ["block0", "block2"]
    assert np.isfinite(model.history[-1]["val_loss"])
    before, after = start.network.backbone.state_dict(), model.network.backbone.state_dict()
    assert not torch.equal(before["patch_embed.proj.weight"], after["patch_embed.proj.weight"])
    assert not np.allclose(
        start.activations(images)["block2"], model.activations(images)["block2"], atol=1e-4
    )
    model.save(tmp_path)
    np.testing.assert_array_equal(
        aligned.load_aligned(tmp_path).logits(images), model.logits(images)
    )


def test_test_images_take_no_part_in_training_or_selection(study, original):
    subject = study.subject()
    changed = np.array(subject.responses)
    changed[subject.rows("test")] = 1e6
    found = [
        aligned.train_aligned(quick(epochs=2), study, subject=s, original=original)
        for s in (subject, swap(subject, responses=changed))
    ]
    one, two = (m.network.state_dict() for m in found)
    assert all(torch.equal(one[k], two[k]) for k in one) and found[0].history == found[1].history


def test_soft_targets_and_labels(study, original):
    soft = aligned.train_aligned(quick(epochs=1, targets="soft"), study, original=original)
    assert np.isfinite(soft.history[0]["loss"])
    with pytest.raises(DataError, match=r"labels 0\.\.3 for the subject's images"):
        aligned.train_aligned(quick(targets="labels"), study, original=original)


def test_what_classification_is_held_to(study, original):
    known = np.asarray(study.subject().truth["labels"])[:30]
    stimuli = configs.replace(study.subject().stimuli.subset(np.arange(30)), labels=known)
    hard, soft, labels = (
        aligned._targets(quick(targets=t), original, stimuli)
        for t in ("original", "soft", "labels")
    )
    logits = original.logits(stimuli)
    np.testing.assert_array_equal(hard, logits.argmax(1))
    np.testing.assert_allclose(
        soft, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=1e-4
    )
    np.testing.assert_array_equal(labels, known)


def test_refusals(study, original):
    with pytest.raises(ConfigError, match="at least 2 stimuli"):
        aligned.train_aligned(quick(loop=LoopConfig(batch_size=1)), study, original=original)
    with pytest.raises(DataError, match="the rank of 240 training images"):
        aligned.train_aligned(quick(n_components=200), study, original=original)
    subject = study.subject()
    without = swap(
        subject,
        splits={
            "train": subject.splits["train"],
            "val": np.arange(0),
            "test": subject.splits["test"],
        },
    )
    with pytest.raises(DataError, match="validation stimuli of 'simulated-planted'"):
        aligned.train_aligned(quick(), study, subject=without, original=original)


def test_published_choices():
    config = aligned.published()
    assert (config.beta, config.n_components, config.image_size, config.width) == (
        100,
        1024,
        224,
        64,
    )
    assert (config.loop.lr, config.loop.batch_size, config.loop.epochs, config.loop.optimiser) == (
        2e-5,
        16,
        30,
        "adam",
    )
    assert (
        config.loop.schedule == "constant"
        and config.loop.weight_decay == config.loop.clip_norm == 0
    )
