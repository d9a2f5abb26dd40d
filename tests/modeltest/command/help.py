"""What --help prints, in English or, under a Chinese locale, in Chinese."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from atb_models.models.families import FAMILIES
from modeltest.command.cases import MODES
from modeltest.command.families import MINDIE
from modeltest.command.language import chinese
from modeltest.command.options import ALL, CODE, FLAGS, QUESTIONS, ROOFLINE, SPEED
from modeltest.places import in_checkout

EN = """\
usage: {program} {form}
       {program} compare A.json B.json [--tolerance X]
       {program} report DIR

Accuracy and speed of a model. [ ]: may be left out. The words, in this order:
  model_type        pa_fp16 or pa_bf16
  test_mode         {modes}
  pairs             performance modes and precision_single: prompt and answer tokens, [[256,256],[128,128]];
                    [] stands for [[256,256],[512,512],[1024,1024],[2048,2048]]
  shots             full_MMLU, full_CEval and full_CMMLU: examples before each question, 0 or more
  prompts           performance_single and precision_single: '["Who are you?"]', or a file with a prompt a line
  batch_size        1, 1,4 or [1,4]: each size in turn; performance also [[1,4],[1,8]]: a list for each pair
                    performance_maxbs: [[1,64]] range of sizes for each pair, or [1,64] for all ([1,2000] if left out),
                    then the most milliseconds of a token after the first
  model_name        {types};
                    MindIE's names too: {names}
  chat | base       [chat]: questions go through the chat template
  weight_dir        folder of the checkpoint
  trust_remote_code [trust_remote_code]: let a tokenizer run its checkpoint's code
  chip_num          ranks that share the model, one on each of the devices in ASCEND_RT_VISIBLE_DEVICES
                    several hosts, on each: rank_table world_size node_num rank_id_start master_addr
  parallel          [dp,tp,sp,moe_tp,moe_ep,pp,microbatch,cp], -1 each where nothing is to be asked for
  positions         max_position_embedding in place of the checkpoint's

Options, after the words:
{flags}

Results go to outputs/results, outputs/data and outputs/debug beside run.sh. Exit status 0: the run came to its
end, whatever the score; 2: a mistake in the command, named on stderr; else a failure.
"""
ZH = """\
用法：{program} {form}
      {program} compare A.json B.json [--tolerance X]
      {program} report DIR

测试模型的精度与性能。[ ] 表示可省略。各参数依次为：
  model_type        pa_fp16 或 pa_bf16
  test_mode         {modes}
  pairs             performance 各模式与 precision_single：输入与输出 token 数，[[256,256],[128,128]]；
                    [] 代表 [[256,256],[512,512],[1024,1024],[2048,2048]]
  shots             full_MMLU、full_CEval、full_CMMLU：每题前的示例数，0 或更多
  prompts           performance_single 与 precision_single：'["你是谁？"]'，或每行一条提示词的文件
  batch_size        1、1,4 或 [1,4]：依次运行；performance 还可用 [[1,4],[1,8]]：每个长度对一个列表
                    performance_maxbs：[[1,64]] 每个长度对一个范围，或 [1,64] 用于全部（省略时为 [1,2000]），
                    其后是首 token 之后每个 token 的最大毫秒数
  model_name        {types}；
                    也可以用 MindIE 的名称：{names}
  chat | base       [chat]：题目套用对话模板
  weight_dir        权重目录
  trust_remote_code [trust_remote_code]：允许分词器运行权重目录中的代码
  chip_num          共同运行模型的 rank 数，ASCEND_RT_VISIBLE_DEVICES 中每个设备一个
                    多机时在每台机器上：rank_table world_size node_num rank_id_start master_addr
  parallel          [dp,tp,sp,moe_tp,moe_ep,pp,microbatch,cp]，不指定的填 -1
  positions         用 max_position_embedding 代替权重中的值

选项（写在位置参数之后）：
{flags}

结果在 run.sh 旁的 outputs/results、outputs/data 与 outputs/debug。退出码 0：运行完成，与得分无关；
2：命令有误，错误写在 stderr；其他：运行失败。
"""
COLUMN, LINE = 20, 116  # where descriptions begin and where they end
FORM = (
    "model_type test_mode [pairs|shots] [prompts] batch_size model_name [chat|base] weight_dir [trust_remote_code]"
    " chip_num [parallel] [positions] [options]"
)
MODES_ZH = {
    QUESTIONS: "full_ 各模式",
    CODE: "full_HumanEval",
    SPEED: "performance 各模式",
    ROOFLINE: "performance 与 performance_single",
    ALL: "所有模式",
}


def usage(program: str) -> str:
    """The words in one line, and where more is said."""
    if chinese():
        return f"用法：{program} {FORM}\n--help 说明各参数；README.zh.md 有更多内容"
    return f"usage: {program} {FORM}\n--help explains the words, README.md says more"


def help_text(program: str) -> str:
    """All words and options."""
    text = ZH if chinese() else EN
    modes, types, names = _wrapped(MODES), _wrapped(FAMILIES), ", ".join(MINDIE)
    whole = text.format(
        program=program, form=FORM, modes=modes, types=types, names=names, flags="\n".join(_flag_lines())
    ).rstrip()
    return whole if in_checkout() else _without_script(whole)


def _without_script(text: str) -> str:
    """The help of an installed package, which has no run.sh: files are looked for in the working folder."""
    return text.replace("beside run.sh", "in the working folder").replace("run.sh 旁", "当前目录下")


def _wrapped(names: Iterable[str]) -> str:
    """Several to a line, the lines under each other."""
    return f"\n{' ' * COLUMN}".join(textwrap.wrap(", ".join(names), LINE - COLUMN, break_on_hyphens=False))


def _flag_lines() -> list[str]:
    lines = []
    for modes in (ALL, QUESTIONS, CODE, SPEED, ROOFLINE):
        lines.append(f"  {MODES_ZH[modes]}：" if chinese() else f"  {modes}:")
        for flag in FLAGS:
            if flag.modes == modes:
                name = f"--{flag.name} {flag.metavar}".strip()
                lines.append(f"    {name:23} {flag.zh if chinese() else flag.en}")
    return lines
