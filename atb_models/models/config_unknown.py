"""Whether a field that no table knows changes a model's mathematics, told by its name and its value.

A name may tell that any value but a neutral one does (a factor, a window). A value may: the word of a function that
this project does not compute, such as sigmoid or layernorm. Sizes and rates of training do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from atb_models.models.config_neutral import squeezed

# About training, which is over.
_TRAINING: Final = re.compile(r"(^|_)(grad(ient)?s?|loss|optim(izer)?|lr|warmup|dropout)(_|$)")
# Any value but a neutral one changes the model.
_ACTING: Final = re.compile(
    r"soft_?cap|multiplier|logits?_scal|scaling|alibi|quant|(^|_)mup(_|$)|(^|_)clip|(^|_)rope(_|$)|rotary|sliding"
    r"|(^|_)window|(^|_)lora(_|$)|softmax|qk_?(layer_?)?norm|parallel_(attn|residual|block)|logit_cap"
    r"|activation_sparsity"
)
# What is added: true or a word says so, a number is a rate.
_BIAS: Final = re.compile(r"(^|_)bias(es)?$")
# Any word but that of what is computed here changes the model; a number is a size, true says that there is one.
_CHOOSING: Final = re.compile(
    r"scor(e|ing)_f(n|unc)|(^|_)gat(e|ing)_(f(n|unc)|act)|(^|_)(pe|pos(ition(al)?)?_(emb|enc)[a-z]*)(_|$)|(^|_)act_f(n|unc)"
    r"|(^|_)activation(_func(tion)?|_fn|_type|$)|(^|_)(layer_?)?norm_(type|class)"
)
# Switches: true chooses a function by the word in the name, or false chooses another than that word's.
_OTHER: Final = re.compile(
    r"(^|_)(sigmoid|r?e?glu|[cgrs]elu|tanh|sinusoid(al)?|no_?pe)(_|$)|(^|_)(learned|absolute|relative)_(pos|pe(_|$))"
)
_OWN: Final = re.compile(
    r"^((use|enable|apply|is|has)_)?(softmax|silu|swish|swiglu|rms_?norm|rope|rotary(_[a-z]*)?|(gated|glu)_(mlp|ffn)|glu)$"
)
_FUSED: Final = re.compile(r"(^|_)fus")  # how it is computed, not what

_OWN_WORDS: Final = frozenset(
    "none null default auto softmax softmaxtopk topk greedy rope rotary rotaryembedding silu swish swiglu siluandmul"
    " rms rmsnorm fusedrmsnorm llamarmsnorm qwen2rmsnorm t5rmsnorm rmslayernorm".split()
)
# Words of published configurations for other gates, activations, norms, positions and attentions.
_OTHER_WORD: Final = re.compile(
    r"(torch|nn|apex|te|np|fused|quick|fast|hard|leaky|squared?|approx(imate)?|group(limited)?|lowprecision|log|bias(ed)?){0,2}"
    r"(sigmoid|tanh|(sqrt)?softplus|softsign|mish|laplace|noauxtc|sinkhorn|expertchoice"
    r"|[cgprs]?elu|x?ielu|geglu|reglu"
    r"|layernorm|batchnorm|groupnorm|scalenorm|deepnorm|crmsnorm"
    r"|alibi|learned|sinusoid(al)?|absolute|relative|nope|xpos|mrope|yarn|longrope|kerple"
    r"|slidingwindow|(sliding|local|linear|chunked)attention|mla|mamba2?|rwkv\d*)"
    r"(\d+|new|fast|quick|python|pytorch|tanh|accurate|approx[a-z]*|activation|torch|np|1p|2d|bias(ed)?|norm|top[kn]|topk\d"
    r"|noaffine|fp32|func(tion)?|fn|key(query)?|pos[a-z]*|emb[a-z]*|enc[a-z]*|absolute|rout[a-z]*|gat[a-z]*|scor[a-z]*){0,2}"
)
_WORD: Final = re.compile(r"[\w.-]{1,40}( [\w.-]{1,20})?")  # longer texts say something to people


def what_tells(name: str, value: Any) -> str | None:
    """By what a field changes the model's mathematics: "name" or "value"; None where neither tells.

    Letter case and separators of words do not matter.
    """
    if _TRAINING.search(name):
        return None
    texts = [text for text in _texts(value) if text]
    words = [squeezed(text) for text in texts if _WORD.fullmatch(text)]
    has_other = any(squeezed(text) not in _OWN_WORDS for text in texts)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    is_own = _OWN.search(name)
    switches = value in (False, 0) if is_own else value in (True, 1) and _OTHER.search(name) and not _FUSED.search(name)
    acts = _ACTING.search(name) and not _is_neutral(value) and not (is_own and value is True)
    biased = _BIAS.search(name) and not is_number and not _is_neutral(value)
    if switches or acts or biased or (_CHOOSING.search(name) and has_other):
        return "name"
    return "value" if any(_OTHER_WORD.fullmatch(word) for word in words) else None


def _is_neutral(value: Any) -> bool:
    if isinstance(value, str):
        return not value or squeezed(value) in _OWN_WORDS
    return value is not True and value in (None, False, 0, 1, [], {})


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value of a JSON file."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, (list, Mapping)):
            left.extend(item.values() if isinstance(item, Mapping) else item)
