"""The order of the work: look at the source, plan, calibrate, write, compare."""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from atb_models.errors import CapacityError, ConfigError
from atb_models.files import FOLDER_MODE
from atb_models.layers.storage import Storage
from atb_models.models.weights.seen.quantizing import QuantizingWeights
from atb_models.quantizer.check import compare
from atb_models.quantizer.contents import Contents
from atb_models.quantizer.conversion import Conversion
from atb_models.quantizer.measuring import ModelRun, input_ranges, prompts_for, running
from atb_models.quantizer.origin import Origin, opened
from atb_models.quantizer.recipe import STATIC, WHOLE_ROW, Recipe, even_group, kept_storages, storages, uneven
from atb_models.quantizer.record import locked
from atb_models.quantizer.static import InputRange
from atb_models.quantizer.target import begin_anew, checked_target
from atb_models.quantizer.texts import Text, texts_of
from atb_models.wording import counted, named, shortened

logger = logging.getLogger(__name__)

CALIBRATION_TOKENS = 1 << 16  # at most
RANGES = "ranges"  # of inputs, in the record of an unfinished checkpoint


def run(source: Path, target: Path, args: argparse.Namespace) -> None:
    """Write the checkpoint and print what quantisation has changed. args: of the command. Raises AtbError."""
    recipe = Recipe(args.to, args.format, args.group_size, tuple(args.floats or ()), args.max_shard_size)
    how = ModelRun(args.device, args.trust_remote_code)
    texts = texts_of(args.text, "--text", by_line=False)
    with opened(source) as origin:
        chosen = _chosen(recipe, origin)
        is_static = recipe.method == STATIC and origin.config.scheme is None
        calibration = texts_of(args.calibration, "--calibration", by_line=True) if is_static else []
        conversion = Conversion(origin, checked_target(source, target, overwrite=args.overwrite), recipe, chosen)
        conversion.folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        with locked(conversion.folder):
            if args.overwrite:
                begin_anew(conversion.folder)
            conversion.begin({"--calibration": _digest(calibration)} if is_static else {})
            try:
                ranges = _ranges(conversion, chosen, calibration, how) if is_static else {}
                scheme = origin.config.scheme
                weights = QuantizingWeights(origin.source, chosen) if scheme is None else origin.source
                conversion.write(Contents(weights, origin.dtype, ranges))
            except KeyboardInterrupt:
                print(f"{conversion.folder} is not finished; the same command goes on with it", file=sys.stderr)
                raise
        longest = origin.config.max_position_embeddings
    if not args.no_check:
        _compare(source, conversion.folder, texts, how, longest)


def _chosen(recipe: Recipe, origin: Origin) -> dict[str, Storage]:
    """The storage of each quantised weight; the log tells of groups that other engines may not take."""
    inputs = {one.name: origin.source.shape(one.name)[1] for one in origin.linears}
    if origin.config.scheme is not None:
        return kept_storages(recipe, origin.config.scheme, origin.tensors, inputs)
    chosen = storages(recipe, origin.linears)
    if names := uneven(chosen, inputs):
        fitting = even_group(inputs[name] for name in chosen)
        remedy = f"--group_size {fitting or WHOLE_ROW} fits all"
        logger.warning(
            "the last group of %s is smaller than %s: other engines may refuse that; %s",
            f"{counted(len(names), 'weight')} ({named(names, 1)})", chosen[names[0]].group, remedy,
        )  # fmt: skip
    return chosen


def _compare(source: Path, target: Path, texts: list[Text], how: ModelRun, longest: int) -> None:
    """Print the comparison. A model too large for this machine was quantised all the same: then the log says so."""
    try:
        comparison, place = compare(source, target, texts, how, longest)
    except CapacityError as error:
        logger.warning("%s is complete, but was not compared with %s: %s", target, source, shortened(error))
        return
    print(f"logits of {comparison.tokens} tokens, {place}: {comparison}")


def _ranges(
    conversion: Conversion, chosen: Mapping[str, Storage], texts: list[Text], how: ModelRun
) -> dict[str, InputRange]:
    """The ranges of inputs by the path of the linear map: measured, or noted by the run that was ended."""
    held = conversion.record.get(RANGES)
    if held is None:
        held = _measured(conversion.origin, chosen, texts, how)
        conversion.record.note(RANGES, held)
    return {path: InputRange(*seen) for path, seen in held.items()}


def _measured(
    origin: Origin, chosen: Mapping[str, Storage], texts: list[Text], how: ModelRun
) -> dict[str, tuple[float, float]]:
    with running(origin.folder, how, origin.config.max_position_embeddings) as llm:
        prompts = prompts_for(llm, texts, CALIBRATION_TOKENS, "--calibration")
        logger.info("calibrating with %d tokens", sum(map(len, prompts)))
        seen = input_ranges(llm, prompts)
    static = (one for one in origin.linears if one.name in chosen and chosen[one.name].activations == "static")
    found = {one.name.removesuffix(".weight"): seen[one.parameter.removesuffix(".weight")] for one in static}
    for path, ends in found.items():
        if not all(map(_is_finite, ends)):
            raise ConfigError(
                f"--calibration: inputs of {path} go from {ends[0]} to {ends[1]}, which no scale covers; --float"
                f" '{path}' leaves it as it is"
            )
    return found


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")


def _digest(texts: list[Text]) -> str:
    """What tells the texts of one calibration from others."""
    return hashlib.sha256(repr(texts).encode()).hexdigest()
