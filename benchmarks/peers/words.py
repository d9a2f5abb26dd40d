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
    int8: str
    head: tuple[str, str, str]
    prefill: str
    decode: str
    failed: str
    whole: str
    left_out: str
    failures: str
    picture: str


WORDS = {
    "en": Words(
        machine="Machine: {processor}, threads: {threads}, instruction set level: {level}.",
        limits="Limits measured for {dtype}, medians of {rounds} rounds: {read:.1f} GB/s read, {peaks}.",
        model="Model: the width of {model}, {layers} of {of} layers, {vocabulary:,} tokens, random weights.",
        engines="Engines: {engines}.",
        how=(
            "The engines run in turns; each figure is the median of the rounds. A cell gives tokens per second and, in "
            "brackets, the share of the limit in the same round: of the multiply-add peak for prefill, of the read "
            "rate for decode. After x stands our rate over the peer's. Decode: {new} tokens a sequence after prompts "
            "of {context}. Our figures include scheduling, sampling and text; those of llama.cpp's programs do not."
        ),
        int8=(
            "w8a16: our weights are int8 with a float32 scale for each output feature, and are multiplied in bf16. The "
            "GGUF file is Q8_0: blocks of 32 int8 with an fp16 scale (34 bytes); its programs round the activations to "
            "int8 as well, and their prefill is compared with the int8 peak. Embedding and head are bf16 in both. "
            "Routers and norms are floats: fp32 in the GGUF file. The column of limits is ours; each share is of the "
            "limit of the engine's own way to hold the weights."
        ),
        head=("dtype", "case", "limit"),
        prefill="prefill of {prompt:,} tokens",
        decode="decode, batch size {sequences}",
        failed="failed",
        whole="all cases",
        left_out="Left out:",
        failures="Failed:",
        picture="Shares of the machine's limits by engine",
    ),
    "zh": Words(
        machine="机器：{processor}，线程数 {threads}，指令集级别 {level}。",
        limits="对 {dtype} 测得的上限，{rounds} 轮的中位数：读取 {read:.1f} GB/s，{peaks}。",
        model="模型：{model} 的宽度，{of} 层中的 {layers} 层，词表 {vocabulary:,}，随机权重。",
        engines="引擎：{engines}。",
        how=(
            "各引擎轮流运行，每个数值为各轮的中位数。单元格给出每秒 token 数，"
            "括号内为占同一轮中上限的比例：prefill 以乘加峰值为上限，decode 以读取带宽为上限。"
            "x 之后是本项目与该引擎的速率之比。decode：每个序列在 {context} 个 token 的提示之后生成 {new} 个。"
            "本项目的数值包含调度、采样与文本处理，llama.cpp 的程序不包含。"
        ),
        int8=(
            "w8a16：本项目的权重为 int8，每个输出特征一个 float32 缩放系数，乘法以 bf16 进行。GGUF 文件为 Q8_0："
            "每 32 个 int8 一块，带一个 fp16 缩放系数（34 字节）；其程序把激活也舍入为 int8，prefill 与 int8 峰值比较。"
            "两者的嵌入层与输出层均为 bf16。路由与归一化为浮点，在 GGUF 文件中是 fp32。上限一列为本项目的上限；"
            "每个比例相对于该引擎自己存放权重方式的上限。"
        ),
        head=("dtype", "情形", "上限"),
        prefill="prefill {prompt:,} 个 token",
        decode="decode，批大小 {sequences}",
        failed="失败",
        whole="所有情形",
        left_out="未参与：",
        failures="失败：",
        picture="各引擎占机器上限的比例",
    ),
}
