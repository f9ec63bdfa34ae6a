"""What a score does not tell: how far a structure's matrix is from F, and how layers are scaled."""

from evalkit.diagnosis.matrix_errors import matrix_errors
from evalkit.diagnosis.scales import layer_scales

__all__ = ["layer_scales", "matrix_errors"]
