"""What a GPTQ checkpoint declares in quantization_config or quantize_config.json, checked field by field."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from atb_models.errors import ConfigError
from atb_models.models.config_fields import Fields
from atb_models.models.quantized.declaration import Declaration
from atb_models.models.quantized.gptq.file import format_field
from atb_models.models.quantized.rules import as_bits, compiled, group_size
from atb_models.wording import shown

AGAIN: Final = "GPTQModel makes such a checkpoint of the float weights"
# Format -> whether zero points are stored less one.
FORMATS: Final = {"gptq": True, "gptq_v2": False}
# Those that are asked for, and those that tell how the weights were made.
FIELDS: Final = frozenset(
    """quant_method bits group_size sym desc_act checkpoint_format format lm_head modules_in_block_to_quantize dynamic
    damp_percent damp_auto_increment static_groups true_sequential
    model_name_or_path model_file_base_name meta quantizer tokenizer dataset batch_size use_exllama use_cuda_fp16
    exllama_config disable_exllama max_input_length cache_block_outputs model_seqlen block_name_to_quantize
    module_name_preceding_first_block pad_token_id backend is_marlin_format pack_dtype rotation adapter
    autoround_version iters lr minmax_lr nsamples seqlen low_gpu_mem_usage enable_quanted_input enable_minmax_tuning
    scale_dtype data_type offload_to_disk act_group_aware hyb_act mse mock_quantization""".split()
)


@dataclass(frozen=True)
class GptqForm:
    """How a linear map is packed. group: inputs that share a scale; None: all of them. symmetric: every zero point is
    the middle of the range. minus_one: zero points are stored less one. ordered: inputs were quantised by activation
    (desc_act), so they may be in any group."""

    bits: Literal[4, 8]
    group: int | None
    symmetric: bool
    minus_one: bool
    ordered: bool


@dataclass(frozen=True)
class Rule:
    """A pattern of `dynamic`: how the linear maps are packed whose names it matches; None: they stay floats."""

    pattern: re.Pattern[str]
    form: GptqForm | None


def form_of(fields: Fields) -> GptqForm:
    """What holds for every linear map that no rule changes."""
    return GptqForm(
        bits=_bits(fields),
        group=group_size(fields, "group_size"),
        symmetric=fields.flag("sym", True),
        minus_one=_minus_one(fields),
        ordered=fields.flag("desc_act", False),
    )


def check_the_rest(fields: Fields) -> None:
    """Refuse what changes the packing in a way that is not read."""
    if fields.flag("is_marlin_format", False):
        raise fields.fail("is_marlin_format", f"but weights in the order of that kernel are not read; {AGAIN}")
    if fields.get("pack_dtype") not in (None, "int32", "torch.int32"):
        raise fields.fail("pack_dtype", f"but only int32 is read; {AGAIN} with pack_dtype int32")
    if fields.get("rotation"):
        raise fields.fail("rotation", f"but rotated weights are not read; {AGAIN} without rotation")
    if fields.get("data_type") not in (None, "int"):
        raise fields.fail("data_type", "but only int is read")


def rules_of(declared: Declaration, form: GptqForm) -> tuple[Rule, ...]:
    """The rules of GPTQModel's `dynamic`, of which the first that matches holds.

    A pattern with "-:" before it excludes; one with "+:" or nothing gives other values of some fields.
    """
    dynamic = declared.fields.get("dynamic") or {}
    if not isinstance(dynamic, dict):
        raise declared.fail("dynamic", "but must be an object of patterns")
    return tuple(_rule(declared, form, text, changes) for text, changes in dynamic.items())


def parts_of_layers(declared: Declaration) -> tuple[str, ...] | None:
    """The ends of names that modules_in_block_to_quantize lists; None: whatever is linear."""
    value = declared.fields.get("modules_in_block_to_quantize")
    if value is None:
        return None
    lists = value if isinstance(value, list) else [None]
    names = [name for item in lists for name in (item if isinstance(item, list) else [item])]
    if not all(isinstance(name, str) for name in names):
        raise declared.fail("modules_in_block_to_quantize", "but must be a list of names, or of lists of names")
    return tuple(f".{name}" for name in names)


def _rule(declared: Declaration, form: GptqForm, text: str, changes: Any) -> Rule:
    expression = compiled(declared, "dynamic", text.removeprefix("-:").removeprefix("+:"))
    if text.startswith("-:"):
        return Rule(expression, None)
    if not isinstance(changes, dict):
        raise ConfigError(f"{declared.place}: dynamic has {shown(changes)} for {shown(text)}, but must have an object")
    base = {
        "bits": form.bits,
        "group_size": -1 if form.group is None else form.group,
        "sym": form.symmetric,
        "desc_act": form.ordered,
        "checkpoint_format": "gptq" if form.minus_one else "gptq_v2",
    }
    own = Fields(base | changes, Path(f"{declared.place}: dynamic {shown(text)}"))
    check_the_rest(own)
    return Rule(expression, form_of(own))


def _bits(fields: Fields) -> Literal[4, 8]:
    bits = fields.integer("bits", maximum=64)
    if bits not in (4, 8):
        raise fields.fail("bits", f"but only 4 and 8 are read; {AGAIN} with bits 4 or 8")
    return as_bits(bits)


def _minus_one(fields: Fields) -> bool:
    """From the name of the format, in upper or lower case."""
    field = format_field(fields.raw)
    name = fields.get(field, "gptq")
    if not isinstance(name, str) or name.lower() not in FORMATS:
        raise fields.fail(field, f"but only {', '.join(FORMATS)} are read; GPTQModel can save it with format gptq")
    return FORMATS[name.lower()]
