"""One run of the command: what it writes, decided before the first byte is written, and the writing itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atb_models import __version__
from atb_models.errors import ConfigError
from atb_models.layers.storage import Storage
from atb_models.models.weights.loader import ProgressBar
from atb_models.quantizer.contents import Contents
from atb_models.quantizer.formats import FORMS
from atb_models.quantizer.formats.form import Form, QuantizedLinear, Stored
from atb_models.quantizer.origin import Origin
from atb_models.quantizer.plan import TensorGroup, index_of, shards_of
from atb_models.quantizer.recipe import Recipe
from atb_models.quantizer.record import Record
from atb_models.quantizer.shard_file import ShardFile
from atb_models.quantizer.target import check_space, copy_files, other_files, remove_temporary_files
from atb_models.quantizer.writing import tensors_of, write_json, write_shard
from atb_models.wording import counted, gib

logger = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"


class Conversion:
    """A checkpoint to be written to `folder`, with `storages` of its quantised weights."""

    def __init__(self, origin: Origin, folder: Path, recipe: Recipe, storages: Mapping[str, Storage]) -> None:
        self.origin, self.folder, self.recipe = origin, folder, recipe
        linears = {name: _linear(name, origin, storage) for name, storage in storages.items()}
        kept = [one.name.removesuffix(".weight") for one in origin.linears if one.name not in storages]
        floats = (*kept, *origin.other_linears)
        self.form: Form = FORMS[recipe.format](recipe.method, origin.dtype, tuple(linears.values()), floats)
        groups = [_group(name, origin, self.form, linears) for name in (one.name for one in origin.tensors)]
        self.shards = shards_of(groups, recipe.max_shard_bytes, self.form.file_name)
        self.record = Record(folder)

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(shard.nbytes for shard in self.shards)

    def begin(self, more: Mapping[str, Any]) -> None:
        """Note what is being written, or find that it is what was begun. more: noted too.

        Raises ConfigError where another command has written files.
        """
        wanted = {"version": __version__, **self.recipe.flags(), **more, "source": self.origin.fingerprint()}
        difference = self.record.difference(wanted)
        if difference and any(self.folder.glob("*.safetensors")):
            raise ConfigError(
                f"{self.folder} holds the unfinished result of another command: its {difference}; repeat that command,"
                " or begin anew with --overwrite"
            )
        if difference or not self.record.is_there():
            self.record.write(wanted)
        remove_temporary_files(self.folder)

    def write(self, contents: Contents) -> None:
        """Write what is not there yet; config.json comes last, so that until then the folder is no checkpoint.

        Raises AtbError, which names file or tensor.
        """
        files = [ShardFile(self.folder, shard) for shard in self.shards]
        left = [(file, shard) for file, shard in zip(files, self.shards, strict=True) if not file.is_written()]
        others = list(other_files(self.origin.folder))
        needed = sum(file.size for file, _ in left) + sum(path.stat().st_size for path in others)
        check_space(self.folder, needed)
        if len(left) < len(files):
            logger.info("%s has %d of %s", self.folder, len(files) - len(left), counted(len(files), "file"))
        done = self.nbytes - sum(shard.nbytes for _, shard in left)
        with ProgressBar(total=self.nbytes, initial=done, desc="quantizing", unit="B", unit_scale=True) as bar:
            for file, shard in left:
                write_shard(file, shard, contents, self.form, bar.update)
        copy_files(others, self.folder)
        self._describe()
        self.record.remove()
        logger.info("%s: %s, %s of tensors", self.folder, counted(len(files), "file"), gib(self.nbytes))

    def _describe(self) -> None:
        if len(self.shards) > 1 or self.shards[0].name != "model.safetensors":
            write_json(self.folder / INDEX, index_of(self.shards))
        for name, content in self.form.documents(tensors_of(self.shards)).items():
            write_json(self.folder / name, content)
        write_json(self.folder / "config.json", self.form.config(self.origin.raw))


def _linear(name: str, origin: Origin, storage: Storage) -> QuantizedLinear:
    outputs, inputs = origin.source.shape(name)
    return QuantizedLinear(name.removesuffix(".weight"), (outputs, inputs), storage)


def _group(name: str, origin: Origin, form: Form, linears: Mapping[str, QuantizedLinear]) -> TensorGroup:
    if (linear := linears.get(name)) is not None:
        return TensorGroup(form.stored(linear), linear)
    return TensorGroup((Stored(name, origin.checkpoint.dtype(name), origin.checkpoint.shape(name)),))
