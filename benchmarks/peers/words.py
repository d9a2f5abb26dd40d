"""The words around the figures, in the languages of the documentation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """Texts with fields for `str.format`."""

    machine: str
    limits: str
    model: str
    engines: str
    how: str
    head: tuple[str, str, str]
    prefill: str
    decode: str
    failed: str
    whole: str
    failures: str
    picture: str


WORDS = {
    "en": Words(
        machine="Machine: {processor}, threads: {threads}, instruction set level: {level}.",
        limits="Limits measured for {dtype}, medians of {rounds} rounds: {read:.1f} GB/s read, {flops:.0f} GFLOP/s.",
        model="Model: the width of Qwen1.5-MoE-A2.7B, {layers} of {of} layers, {vocabulary:,} tokens, random weights.",
        engines="Engines: {engines}.",
        how=(
            "The engines run in turns; each figure is the median of the rounds. A cell gives tokens per second and, in "
            "brackets, the share of the limit in the same round: of the multiply-add peak for prefill, of the read "
            "rate for decode. After x stands our rate over the peer's. Decode: {new} tokens a sequence after prompts "
            "of {context}. Our figures include scheduling, sampling and text; those of llama.cpp's programs do not."
        ),
        head=("dtype", "case", "limit"),
        prefill="prefill of {prompt:,} tokens",
        decode="decode, batch size {sequences}",
        failed="failed",
        whole="all cases",
        failures="Failed:",
        picture="Shares of the machine's limits by engine",
    ),
    "zh": Words(
        machine="机器：{processor}，线程数 {threads}，指令集级别 {level}。",
        limits="对 {dtype} 测得的上限，{rounds} 轮的中位数：读取 {read:.1f} GB/s，{flops:.0f} GFLOP/s。",
        model="模型：Qwen1.5-MoE-A2.7B 的宽度，{of} 层中的 {layers} 层，词表 {vocabulary:,}，随机权重。",
        engines="引擎：{engines}。",
        how=(
            "各引擎轮流运行，每个数值为各轮的中位数。单元格给出每秒 token 数，"
            "括号内为占同一轮中上限的比例：prefill 以乘加峰值为上限，decode 以读取带宽为上限。"
            "x 之后是本项目与该引擎的速率之比。decode：每个序列在 {context} 个 token 的提示之后生成 {new} 个。"
            "本项目的数值包含调度、采样与文本处理，llama.cpp 的程序不包含。"
        ),
        head=("dtype", "情形", "上限"),
        prefill="prefill {prompt:,} 个 token",
        decode="decode，批大小 {sequences}",
        failed="失败",
        whole="所有情形",
        failures="失败：",
        picture="各引擎占机器上限的比例",
    ),
}
