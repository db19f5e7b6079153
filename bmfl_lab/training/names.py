"""Names of the models that comparisons train, and what each of them reads."""

from __future__ import annotations

COMPARED = {
    "backbone": "image tokens only: an MLP with as many trainable weights as the fusion "
    "(within 2 %)",
    "concat": "image and brain tokens joined without cross-attention",
    "fusion": "two-way cross-attention and the Pearson term",
    "attributes": "as fusion, but with predicted attribute labels in place of predicted "
    "responses: no cortex",
}
"""Models that `train_comparison` can train, and what each of them reads."""

CONTROL_MODELS = {
    "fusion": "predicted responses of the brain encoder; the controls are compared with this model",
    "backbone": "image tokens only, with as many weights",
    "noise": "noise with each vertex's mean and variance",
    "noise, covariance": "noise with the mean and full covariance of the predicted responses",
    "other image": "the predicted response to another training image",
    "same class": "the predicted response to another image of the same class (label in training, "
    "prediction elsewhere)",
    "permuted features": "the encoder, reading the image's own features in a permuted order",
    "random encoder": "the encoder with shuffled weights, never trained on responses",
    "random backbone": "an encoder trained on the responses, from tokens of a backbone with random "
    "weights",
    "untrained brain transformer": "predicted responses through a brain transformer left at its "
    "initial weights",
    "patch PCA": "principal components of the image's own patches, as many as vertices",
    "random projection": "a random projection of the image's own patches, as many numbers as "
    "vertices",
    "attributes": "predicted attributes that a simulated subject was built from: the same "
    "information without a cortex",
}
"""Models that `train_controls` can train, and what stands in place of the brain in each."""
