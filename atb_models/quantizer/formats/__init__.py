"""The formats that quantised checkpoints are written in."""

from __future__ import annotations

from atb_models.quantizer.formats.compressed_tensors import CompressedTensorsFiles
from atb_models.quantizer.formats.form import Form
from atb_models.quantizer.formats.modelslim import ModelSlimFiles

FORMS: dict[str, type[Form]] = {"modelslim": ModelSlimFiles, "compressed-tensors": CompressedTensorsFiles}
