"""Images for models: the rows of a data set as tensors, and a vision transformer with LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from evalkit.errors import EvalkitError
from evalkit.evaluation.given import Inputs
from evalkit.tasks.pretrained import check_number, load_model, load_rows, with_lora


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
        pictures = [np.asarray(picture.convert("RGB")) for picture in rows[name]]
        sizes = {picture.shape for picture in pictures}
        if len(sizes) > 1:
            raise EvalkitError(
                f"expected pictures of one size in the data '{self.data}', found {len(sizes)} "
                "sizes; resize them, or write a task of your own"
            )
        tensor = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
        return tensor, torch.tensor(list(rows[self.labels]))


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
