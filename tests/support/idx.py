"""Files as MNIST and its successors are published."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np


def save_idx(folder: Path, part: str, pictures: np.ndarray, labels: np.ndarray) -> None:
    """Write pictures and labels as MNIST is published: big-endian sizes, then bytes."""
    sizes = np.array([2051, *pictures.shape], ">i4").tobytes()
    content = sizes + pictures.tobytes()
    (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    content = np.array([2049, len(labels)], ">i4").tobytes() + labels.tobytes()
    (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content))
