"""The service's documents say what it does: their examples are run, their tables compared with the code."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from atb_models import ops
from atb_models.limits import Limits
from atb_models.models.config_reader import load_model_config
from atb_models.plan import report
from atb_models.plan.capacity import Deployment
from atb_models.plan.plan import make_plan
from atb_models.server import errors, middleware
from atb_models.server.api.common import ERRORS
from atb_models.server.app import ENDPOINTS
from atb_models.server.args import build_parser
from tests.documents.reading import fences, rows
from tests.server.running import ROOT, Running

SERVICE = ["docs/service.md", "docs/service.zh.md"]
FAMILIES = ["deepseek", "qwen", "xverse"]
DEPLOY = [f"examples/models/{family}/deploy{suffix}.md" for family in FAMILIES for suffix in ("", ".zh")]
DOCUMENTS = [*SERVICE, *DEPLOY, "examples/service/README.md", "examples/service/README.zh.md"]
URL = "http://127.0.0.1:6006"
ATB = f'atb-models() {{ {shlex.quote(sys.executable)} -m atb_models "$@"; }}\n'
# What differs from run to run, after the keys' names.
VOLATILE = {
    "id", "created", "time", "timings", "first_token_cost", "decode_cost", "queue_wait_time", "prefill_time",
    "decode_time", "version", "cached_tokens", "request_id", "available_tokens_length", "TTFT", "TBT", "remainBlocks",
}  # fmt: skip
TRIES = 10  # for a stream to show every kind of event: on a busy machine several steps come as one
CLOSE = 0.5  # log-probabilities of unlikely tokens in fp16, whose rounding is each CPU level's own


def examples(document: str) -> list[tuple[str, str]]:
    """Commands that are followed by their output."""
    blocks = fences(document)
    return [
        (code, output)
        for (kind, code), (other, output) in zip(blocks, blocks[1:], strict=False)
        if kind == "shell" and other == "" and URL in code
    ]


def _parsed(output: str) -> list[Any] | None:
    """The JSON values of an output, of its events too; None where it is something else."""
    rest, found = output.replace("data: ", "").replace("[DONE]", '"[DONE]"').replace("...", "").strip(), []
    decoder = json.JSONDecoder()
    while rest:
        try:
            value, end = decoder.raw_decode(rest)
        except json.JSONDecodeError:
            return None
        found.append(value)
        rest = rest[end:].strip()
    return found


def _same(documented: Any, real: Any) -> bool:
    """Whether two values are equal, but for what differs from run to run."""
    if isinstance(documented, dict) and isinstance(real, dict):
        return list(documented) == list(real) and all(
            key in VOLATILE or _same(documented[key], real[key]) for key in documented
        )
    if isinstance(documented, list) and isinstance(real, list):
        return len(documented) == len(real) and all(map(_same, documented, real))
    if isinstance(documented, float):
        return isinstance(real, float) and abs(documented - real) < CLOSE
    return bool(documented == real)


@pytest.mark.parametrize("document", [SERVICE[0], *DEPLOY[::2]])
def test_examples_print_what_is_documented(document: str, server: Running, tmp_path: Path) -> None:
    found = examples(document)
    assert found
    for code, output in found:
        ran = _typed(code, server, tmp_path)
        documented, real = _parsed(output), _parsed(ran.stdout)
        if documented is None or real is None:
            assert _numberless(ran.stdout) == _numberless(output), code + ran.stderr
        elif "data: " in output:
            again = (_parsed(_typed(code, server, tmp_path).stdout) or [] for _ in range(TRIES))
            streams = (set(map(_shape, one)) for one in itertools.chain([real], again))
            assert any(set(map(_shape, documented)) <= kinds for kinds in streams), (code, ran.stdout)
        else:
            assert _same(documented, real), (code, ran.stdout)


def _typed(code: str, server: Running, folder: Path) -> subprocess.CompletedProcess[str]:
    """What a user's shell makes of it."""
    return subprocess.run(
        ["bash", "-c", ATB + code.replace(URL, server.url).replace("curl ", "curl -sS ")],
        cwd=folder, env=_environ(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("document", ["README.md", "README.zh.md"])
def test_the_front_pages_request_is_answered(document: str, server: Running, tmp_path: Path) -> None:
    (request,) = [line for _, code in fences(document) for line in code.splitlines() if line.startswith("curl ")]
    answer = json.loads(_typed(request, server, tmp_path).stdout)["response"]
    assert answer == " 我是随启动器附带的小型混合专家模型，可以回答一些简单的问题。"


def _shape(value: Any) -> Any:
    """What an event consists of; which tokens come together depends on how busy the machine is."""
    if isinstance(value, dict):
        return tuple((key, _shape(one)) for key, one in value.items())
    if isinstance(value, list):
        return frozenset(map(_shape, value))
    return float if isinstance(value, (int, float)) else type(value)


def _environ() -> dict[str, str]:
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "LC_ALL": "C.UTF-8",
    }


def _numberless(output: str) -> str:
    return re.sub(r"\s*\d[\d.,]*", " #", output).strip()


@pytest.mark.parametrize("document", DOCUMENTS[::2])
def test_both_languages_show_the_same_code(document: str) -> None:
    chinese = document.replace(".md", ".zh.md")
    english_blocks, chinese_blocks = (
        [(kind, _code(content)) for kind, content in fences(name)] for name in (document, chinese)
    )
    assert len(english_blocks) == len(chinese_blocks)
    for english, other in zip(english_blocks, chinese_blocks, strict=True):
        first, second = _parsed(english[1]), _parsed(other[1])
        assert (
            english == other
            or (first and second and _same(first, second))
            or _numberless(english[1]) == _numberless(other[1])
        )


def _code(content: str) -> str:
    """Without remarks."""
    return re.sub(r" +# .*", "", content)


@pytest.mark.parametrize("document", SERVICE)
def test_every_flag_has_one_line_with_its_default(document: str) -> None:
    parser = build_parser()
    flags = {action.option_strings[0]: action.default for action in parser._actions if action.dest != "help"}
    documented = {row[0].strip("`"): row[1] for row in rows(document) if row[0].startswith("`--")}
    assert sorted(documented) == sorted(flags)
    for flag, default in flags.items():
        if isinstance(default, (int, float, str)) and not isinstance(default, bool):
            assert documented[flag] == str(default), flag


@pytest.mark.parametrize("document", SERVICE)
def test_every_endpoint_has_one_line(document: str, server: Running) -> None:
    paths = server.json("/openapi.json")["paths"]
    real = [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]
    hidden = ["GET /", "GET /docs", "GET /openapi.json"]
    assert ENDPOINTS[-2:] == ("docs", "page")
    documented = [row[0].strip("`") for row in rows(document) if re.match("`(GET|POST) ", row[0])]
    assert sorted(documented) == sorted([*real, *hidden])


HEADERS = [
    ("deepseek", "deepseek-moe-16b-chat", 4096), ("qwen", "qwen1.5-moe-a2.7b-chat", 32768),
    ("xverse", "xverse-moe-a4.2b", 8192),
]  # fmt: skip
BODIES = {
    "ChatBody": (0, 1, 2, 8), "CompletionBody": (0, 1, 3, 8), "VllmBody": (0, 4, 8), "TgiParameters": (5, 6, 8),
    "MindieParameters": (5, 7, 8),
}  # fmt: skip


@pytest.mark.parametrize("document", SERVICE)
def test_every_field_has_its_place(document: str, server: Running) -> None:
    schemas = server.json("/openapi.json")["components"]["schemas"]
    lines = [re.findall(r"`(\w+)`", row[1] + row[2]) for row in _after(document, {"body", "请求体"}, 9)]
    for name, places in BODIES.items():
        documented = {field for place in places for field in lines[place]}
        assert documented == set(schemas[name]["properties"]), name


def _after(document: str, heads: set[str], count: int) -> list[list[str]]:
    """Rows of the table that begins with one of these."""
    table = rows(document)
    start = next(index for index, row in enumerate(table) if row[0] in heads) + 2
    return table[start : start + count]


@pytest.mark.parametrize("document", SERVICE)
def test_statuses_and_types_are_the_codes(document: str) -> None:
    table = {int(row[0]): row[1] for row in rows(document) if re.fullmatch(r"\d{3}", row[0])}
    assert set(table) == set(ERRORS) | {500}
    kinds = [kind for module in (errors, middleware) for kind in vars(module).values() if isinstance(kind, type)]
    for kind in kinds:
        if issubclass(kind, errors.ServiceError):
            assert table[kind.status] == kind.kind, kind


@pytest.mark.parametrize("document", SERVICE)
def test_every_series_has_one_line(document: str, server: Running) -> None:
    _, data = server.request("GET", "/metrics")
    real = re.findall(r"^# TYPE (\w+) (\w+)$", data.decode(), re.MULTILINE)
    documented = [(row[0].strip("`"), row[1]) for row in rows(document) if row[1] in ("counter", "gauge", "histogram")]
    assert documented == real


def programs() -> Iterator[Any]:
    for document in (SERVICE[0], *DEPLOY[::2]):
        blocks = fences(document)
        for index, (kind, code) in enumerate(blocks):
            if kind == "python" and "modelscope" not in code:
                family = Path(document).parent.name
                marks = [pytest.mark.full] if family in FAMILIES[1:] and "LLM" in code else []  # but for words alike
                yield pytest.param(document, index, id=f"{family}-{index}", marks=marks)


@pytest.mark.parametrize("document, index", list(programs()))
def test_programs_run(document: str, index: int, server: Running, demo: Path, tmp_path: Path) -> None:
    """With the embedded checkpoint in place of the weights. What a script prints is said after the next block."""
    needed = {"openai": "openai", "import requests": "requests"}
    blocks = fences(document)
    code = blocks[index][1]
    for word, package in needed.items():
        if word in code:
            pytest.importorskip(package)
    code = re.sub(r'LLM\("[^"]+"', f'LLM("{demo}"', code).replace(URL, server.url)
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=_environ(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    answer = ran.stdout.strip()
    assert answer and any(answer in output for kind, output in blocks if kind == ""), answer


@pytest.mark.usefixtures("clean_environ")
@pytest.mark.parametrize("family, name, positions", HEADERS)
def test_what_fits_is_what_a_plan_says(
    family: str, name: str, positions: int, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ops.bind("cpu")
    model = load_model_config(shared / "headers" / name, log=False)
    deployment = Deployment(model, torch.float16, 2, Limits(1, 2048, positions, 128))
    plan = make_plan(name, "fp16", deployment, None, {})
    table = next(content for _, content in fences(f"examples/models/{family}/deploy.md") if "rule of thumb" in content)
    assert table.splitlines() == list(report._cards(plan))[1:-1]
