"""Images for models: the rows of a data set as tensors, and a vision transformer with LoRA."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from evalkit.errors import EvalkitError, shortened
from evalkit.evaluation.given import Inputs
from evalkit.storage.files import check_regular
from evalkit.tasks.pretrained import check_number, load_model, load_rows, with_lora

_MOST_UNPACKED = 64
_ALWAYS_UNPACKED = 256 * 2**20
"""What pictures may unpack to, in the size of their files and in bytes."""


@dataclass(frozen=True)
class Pictures:
    """The pictures and labels of a data set.

    Attributes:
        data: hub name or path.
        labels: the column of the labels.
        samples: training samples, drawn at random; 0 for all.
        validation_samples: the same of the test split.
    """

    data: str
    labels: str
    samples: int
    validation_samples: int

    def __post_init__(self) -> None:
        check_number("samples", self.samples, 0)
        check_number("validation_samples", self.validation_samples, 0)

    def rows(self, split: str, most: int) -> Any:
        """Return some rows of a split."""
        rows = load_rows(self.data, None, split, most)
        if self._image(rows) is None or self.labels not in rows.features:
            raise EvalkitError(
                f"expected columns 'img' or 'image' and '{self.labels}' in the data '{self.data}', "
                f"found {', '.join(rows.features)}; pass data with the columns of the hub"
            )
        return rows

    def training(self) -> tuple[Tensor, Tensor]:
        """Return pictures (N, 3, H, W) uint8 and labels (N,)."""
        return self._tensors(self.rows("train", self.samples))

    def validating(self) -> tuple[Tensor, Tensor]:
        """Return pictures of the test split and their labels."""
        return self._tensors(self.rows("test", self.validation_samples))

    def classes(self) -> int:
        """Return the number of classes."""
        feature = self.rows("test", 1).features[self.labels]
        if not hasattr(feature, "num_classes"):
            raise EvalkitError(
                f"expected the column '{self.labels}' of the data '{self.data}' to name its "
                f"classes, found {feature}; cast it to datasets.ClassLabel"
            )
        return int(feature.num_classes)

    def _image(self, rows: Any) -> str | None:
        return next((name for name in ("img", "image") if name in rows.features), None)

    def _tensors(self, rows: Any) -> tuple[Tensor, Tensor]:
        name = self._image(rows)
        opened = [self._opened(cell) for cell in _undecoded(rows, name)[name]]
        sizes = {picture.size for picture in opened}
        if len(sizes) > 1:
            raise EvalkitError(
                f"expected pictures of one size in the data '{self.data}', found {len(sizes)} "
                "sizes; resize them, or write a task of your own"
            )
        # Compared before a picture is unpacked: a few bytes can unpack to gigabytes.
        unpacked = sum(3 * width * height for width, height in sizes) * len(opened)
        packed = sum(picture.fp.seek(0, io.SEEK_END) for picture in opened)
        if unpacked > max(_ALWAYS_UNPACKED, _MOST_UNPACKED * packed):
            raise EvalkitError(
                f"expected pictures about as large as their files in the data '{self.data}', found "
                f"{unpacked} bytes in {packed}; resize them, or write a task of your own"
            )
        pictures = [np.asarray(picture.convert("RGB")) for picture in opened]
        tensor = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
        return tensor, torch.tensor(list(rows[self.labels]))

    def _opened(self, cell: Any) -> Any:
        """Return a picture that is not unpacked yet, from its bytes or a file of the data."""
        from PIL import Image

        if not isinstance(cell, Mapping):
            raise EvalkitError(
                f"expected pictures in the data '{self.data}', found {type(cell).__name__}; pass "
                "data with the columns of the hub"
            )
        content = cell.get("bytes")
        if content is None:
            # A row may name any file of the machine: only those of the data are opened.
            path, home = Path(str(cell.get("path"))), Path(self.data).expanduser().resolve()
            if not home.is_dir() or not path.resolve().is_relative_to(home):
                raise EvalkitError(
                    f"expected pictures inside of the data '{self.data}', found one at "
                    f"{shortened(repr(str(path)))}; save the data with the pictures in it"
                )
            check_regular(path, "copy the data again")
            content = path.read_bytes()
        return Image.open(io.BytesIO(content))


def _undecoded(rows: Any, name: str | None) -> Any:
    """Return rows whose pictures are as in their files."""
    features = rows.features
    if not hasattr(features[name], "decode"):
        return rows
    return rows.cast_column(name, type(features[name])(decode=False))


def scaled(pictures: Tensor) -> Tensor:
    """Return pixels from -1 to 1, (N, 3, H, W) float32, of pixels from 0 to 255."""
    return pictures.float() / 127.5 - 1.0


@dataclass(frozen=True)
class Vision:
    """A vision transformer on pictures.

    Attributes:
        pictures: what it is trained on.
        model: hub name or path.
        size: height and width that the pictures are resized to.
        mean: subtracted from the pixels in [0, 1], one number for all channels.
        deviation: that they are then divided by.
    """

    pictures: Pictures
    model: str
    size: int
    mean: float
    deviation: float

    def base(self) -> nn.Module:
        """Return the pretrained model with a new classifier."""
        return load_model(
            "AutoModelForImageClassification",
            self.model,
            num_labels=self.pictures.classes(),
            ignore_mismatched_sizes=True,  # the classifier is of the new classes
        )

    def adapted(self) -> nn.Module:
        """Return the pretrained model with LoRA on queries and values, their biases trained."""
        return with_lora(self.base(), None, bias="lora_only", kept=["classifier"])

    def collate(self, inputs: Inputs, targets: Tensor) -> tuple[Inputs, Tensor]:
        """Return resized and normalised pictures by the name that the model knows them by."""
        assert isinstance(inputs, Tensor)
        pixels = functional.interpolate(
            inputs.float() / 255, (self.size, self.size), mode="bicubic", antialias=True
        )
        return {"pixel_values": (pixels.clamp(0, 1) - self.mean) / self.deviation}, targets
