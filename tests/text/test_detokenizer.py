"""Incremental text: whole characters, spaces, stop strings that span tokens, bounded work."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models

from atb_models.text.detokenizer import CONTEXT_TOKENS, Decode, Detokenizer
from atb_models.text.tokenizer import load_tokenizer
from atb_models.text.tokenizer_added import JsonBackend

HEADERS = Path(__file__).resolve().parents[3] / "shared" / "headers"

TEXTS = [
    "plain words, and more of them",
    "神经网络是什么？深度学习。",
    "mixed 中文 and 😀😃🏳️‍🌈 emoji, é, ñ; naïve",
    "👩‍👩‍👧‍👦" * 3,
    "ends with half 中",
]


def byte_pieces(text: str, rng: random.Random, longest: int) -> tuple[list[int], Decode]:
    """Cut UTF-8 bytes anywhere into tokens, as a byte-level vocabulary may."""
    data, pieces = text.encode(), []
    while data:
        length = rng.randint(1, longest)
        pieces.append(data[:length])
        data = data[length:]
    return list(range(len(pieces))), lambda ids: b"".join(pieces[i] for i in ids).decode("utf-8", "replace")


def stream(detokenizer: Detokenizer, tokens: list[int]) -> list[str]:
    deltas = []
    for token in tokens:
        stopped = detokenizer.push(token)
        deltas.append(detokenizer.take())
        if stopped:
            break
    detokenizer.finish()
    return [*deltas, detokenizer.take()]


@pytest.mark.parametrize("longest", [1, 2, 5])
@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_tokens_never_show_half_a_character(text: str, longest: int) -> None:
    for seed in range(10):
        tokens, decode = byte_pieces(text, random.Random(seed), longest)
        detokenizer = Detokenizer(decode)
        deltas = stream(detokenizer, tokens)
        assert "".join(deltas) == detokenizer.text == text
        assert not any("\ufffd" in delta for delta in deltas)


def test_text_comes_as_soon_as_it_is_whole() -> None:
    data = "ab中c".encode()
    detokenizer = Detokenizer(lambda ids: bytes(data[i] for i in ids).decode("utf-8", "replace"))
    assert stream(detokenizer, list(range(len(data)))) == ["a", "b", "", "", "中", "c", ""]
    joined = [b"a\xe4", b"\xb8\xad\xe4", b"\xb8\xadb"]
    detokenizer = Detokenizer(lambda ids: b"".join(joined[i] for i in ids).decode("utf-8", "replace"))
    assert stream(detokenizer, [0, 1, 2]) == ["a", "中", "中b", ""]


def test_a_character_cut_off_by_the_end_is_shown_as_decoded() -> None:
    data = "ab中".encode()[:-1]
    detokenizer = Detokenizer(lambda ids: bytes(data[i] for i in ids).decode("utf-8", "replace"))
    assert stream(detokenizer, list(range(4))) == ["a", "b", "", "", "\ufffd"]
    assert detokenizer.text == data.decode("utf-8", "replace")


@pytest.mark.parametrize("seed", range(20))
def test_invalid_bytes_do_not_stop_the_stream(seed: int) -> None:
    rng = random.Random(seed)
    data = bytes(rng.choice([rng.randrange(256), 0x80, 0xE4, 0xB8, 0xAD, 0x61]) for _ in range(300))
    calls: list[int] = []

    def decode(ids: list[int]) -> str:
        calls.append(len(ids))
        return bytes(data[i] for i in ids).decode("utf-8", "replace")

    detokenizer = Detokenizer(decode)
    deltas = stream(detokenizer, list(range(300)))
    assert "".join(deltas) == data.decode("utf-8", "replace")
    assert max(calls) <= 4 * CONTEXT_TOKENS
    assert all("".join(deltas[i : i + 8]) for i in range(0, 290, 8))


def test_a_replacement_character_of_the_text_itself_passes() -> None:
    text = "a\ufffdb\ufffd"
    tokens, decode = byte_pieces(text, random.Random(0), 1)
    assert "".join(stream(Detokenizer(decode), tokens)) == text


def sentence_pieces() -> tuple[Tokenizer, dict[str, int]]:
    """A decoder in the manner of sentencepiece: ▁ is a space, the first falls away, unknown characters are bytes."""
    words = ["▁Hello", "▁", "wor", "▁wor", "ld", "!", "中"]
    vocab = {word: i for i, word in enumerate([*words, *(f"<0x{byte:02X}>" for byte in range(256))])}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer, vocab


def test_sentencepiece_spaces_and_byte_fallback() -> None:
    tokenizer, vocab = sentence_pieces()
    fallback = [f"<0x{byte:02X}>" for byte in "é好😀吗".encode()]
    words = ["▁Hello", "▁wor", "ld", "▁", "▁", *fallback, "▁Hello", "中", *fallback, *fallback, "!", "▁wor", "ld"] * 3
    tokens = [vocab[word] for word in words]
    detokenizer = Detokenizer(tokenizer.decode)
    deltas = stream(detokenizer, tokens)
    assert "".join(deltas) == tokenizer.decode(tokens)
    assert not any("\ufffd" in delta for delta in deltas)
    assert deltas[:5] == ["Hello", " wor", "ld", " ", " "]


def test_byte_level_decoder_of_tokenizers() -> None:
    alphabet = {chr(code): byte for byte, code in byte_alphabet().items()}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.decoder = decoders.ByteLevel()
    text = "Who is 谁？ 😀 naïve"
    tokens = list(text.encode())
    deltas = stream(Detokenizer(tokenizer.decode), tokens)
    assert "".join(deltas) == text and not any("\ufffd" in delta for delta in deltas)


def byte_alphabet() -> dict[int, int]:
    """Byte -> code point of the letter that stands for it in byte-level vocabularies (GPT-2's rule)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {byte: 256 + i for i, byte in enumerate(others)}


def test_invisible_tokens_do_not_eat_a_space() -> None:
    pieces = {0: "", 1: " a"}  # 0: a special token; the decoder strips the first space as sentencepiece does
    detokenizer = Detokenizer(lambda ids: "".join(pieces[i] for i in ids).removeprefix(" "))
    tokens = [1, *[0] * 40, 1, 1]
    assert "".join(stream(detokenizer, tokens)) == "a a a"


def test_work_per_token_is_bounded() -> None:
    calls: list[int] = []

    def decode(ids: list[int]) -> str:
        calls.append(len(ids))
        return "x" * len(ids)

    detokenizer = Detokenizer(decode)
    for token in range(600):
        detokenizer.push(token)
    assert len(calls) <= 1.2 * 600 and max(calls) <= 2 * CONTEXT_TOKENS
    assert detokenizer.text == "x" * 600


BYTE_FALLBACK, FALLBACK_VOCAB = sentence_pieces()
BYTE_FALLBACK.add_special_tokens(["</s>"])
FALLBACK = JsonBackend(BYTE_FALLBACK)
EOS = BYTE_FALLBACK.token_to_id("</s>")


def decode_fallback(ids: list[int]) -> str:
    return FALLBACK.decode(ids, skip_special_tokens=True)


def pieces(*names: str | bytes) -> list[int]:
    """Ids of pieces by name, and of each byte of bytes."""
    split = [f"<0x{byte:02X}>" for name in names for byte in name] if isinstance(names[0], bytes) else names
    return [FALLBACK_VOCAB[str(name)] for name in split]


WORD = pieces("▁Hello")
STREAMS = {
    "eos from the start": [EOS],
    "eos after a word": [*WORD, EOS],
    "an id without a token": [10_000],
    "words between eos": [EOS, EOS, EOS, *WORD],
    "blanks": pieces("▁"),
    "whole characters of bytes": pieces("é好😀吗".encode()),
    "a first byte again and again": pieces(b"\xe4"),
    "a middle byte again and again": pieces(b"\x80"),
    "eos within characters": [part for byte in "好😀".encode() for part in (*pieces(bytes([byte])), EOS, EOS)],
    "half characters before eos": [*pieces(b"\xf0\x9f\x98"), EOS],
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_token_costs_the_same_whatever_came_before(name: str) -> None:
    cost = 0

    def decode(ids: list[int]) -> str:
        nonlocal cost
        cost += len(ids)
        return decode_fallback(ids)

    detokenizer, costs = Detokenizer(decode), []
    tokens = (STREAMS[name] * 3000)[:3000]
    for token in tokens:
        detokenizer.push(token)
        costs.append(cost)
        cost = 0
    assert max(costs) <= 8 * CONTEXT_TOKENS
    assert sum(costs[2000:]) <= 1.02 * sum(costs[1000:2000]) + 8 * CONTEXT_TOKENS
    detokenizer.finish()
    assert detokenizer.text == decode_fallback(tokens)


@pytest.mark.parametrize("seed", range(40))
def test_fumbled_characters_of_byte_fallback_are_the_same_streamed_and_at_once(seed: int) -> None:
    rng = random.Random(seed)
    data = "é好😀吗e\u0301𐍈▁".encode()
    for _ in range(50):
        tokens: list[int] = []
        while len(tokens) < 40:
            start = rng.randrange(len(data))
            known = pieces(data[start : start + rng.randint(1, 9)])
            tokens += rng.choice([known, known, pieces(bytes([rng.randrange(256)])), WORD, [EOS], pieces("▁", "中")])
        whole = Detokenizer(decode_fallback)
        whole.extend(tokens)
        whole.finish()
        deltas = stream(Detokenizer(decode_fallback), tokens)
        assert "".join(deltas) == whole.text == decode_fallback(tokens)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xcc\x81\xad", "\u0301\ufffd"),
        (b"\xad\xcc\x81", "\ufffd\u0301"),
        (b"\xe4\xb8", "\ufffd\ufffd"),
        (b"\xf0\x9f\x98\xf0\x9f\x98\x80", "\ufffd\ufffd\ufffd😀"),
        (b"\xc0\x80\xed\xa0\x80", "\ufffd" * 5),  # an overlong form and half a surrogate pair are no characters
        (b"a\xe2\x96\x81b", "a▁b"),  # SentencePiece's sign for a blank is none where its bytes are spelled out
    ],
)
def test_each_broken_byte_is_one_replacement_and_whole_characters_stay(data: bytes, text: str) -> None:
    assert decode_fallback([*WORD, *pieces(data), *WORD]) == f"Hello{text} Hello"


def test_special_tokens_part_bytes_only_where_they_are_shown() -> None:
    tokens = [*pieces(b"\xe4\xb8"), EOS, *pieces(b"\xad")]
    assert decode_fallback(tokens) == "中"
    assert FALLBACK.decode(tokens, skip_special_tokens=False) == "\ufffd\ufffd</s>\ufffd"


def letters(ids: list[int]) -> str:
    return "".join(map(chr, ids))


def test_a_stop_string_is_cut_and_held_back() -> None:
    detokenizer = Detokenizer(letters, ("END",))
    assert stream(detokenizer, list(map(ord, "so EN far END more"))) == [
        *["s", "o", " ", "", "", "EN ", "f", "a", "r", " ", "", "", ""],
        "",
    ]
    assert detokenizer.text == "so EN far "


def test_what_could_have_been_a_stop_string_comes_at_the_end() -> None:
    detokenizer = Detokenizer(letters, ("END",))
    assert stream(detokenizer, list(map(ord, "xEN"))) == ["x", "", "", "EN"]


@pytest.mark.parametrize("seed", range(60))
def test_stop_strings_against_a_search_letter_by_letter(seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(rng.choice("ab") for _ in range(40))
    stops = tuple({"".join(rng.choice("ab") for _ in range(rng.randint(2, 7))) for _ in range(rng.randint(1, 3))})
    want = text
    for end in range(len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            want = text[: end - max(map(len, hits))]
            break
    for longest in (1, 4):
        tokens, decode = byte_pieces(text, rng, longest)
        detokenizer = Detokenizer(decode, stops)
        shown = ""
        stopped = False
        for token in tokens:
            stopped = detokenizer.push(token)
            shown += detokenizer.take()
            assert want.startswith(shown)
            if stopped:
                break
        assert stopped == (want != text) and not (stopped and detokenizer.finish())
        detokenizer.finish()
        assert shown + detokenizer.take() == detokenizer.text == want


def test_a_stop_string_may_hold_wide_characters_and_show_only_at_the_end() -> None:
    data = "好停止吧".encode()
    detokenizer = Detokenizer(lambda ids: bytes(data[i] for i in ids).decode("utf-8", "replace"), ("停止",))
    assert "".join(stream(detokenizer, list(range(len(data))))) == "好"
    held = Detokenizer(lambda ids: "a\ufffd"[: len(ids)], ("\ufffd",))
    assert not held.push(0) and not held.push(1) and held.text == "a"
    assert held.finish() and held.text == "a"


@pytest.mark.parametrize("name", ["deepseek-moe-16b-chat", "qwen1.5-moe-a2.7b-chat", "xverse-moe-a4.2b"])
def test_real_tokenizers_give_one_text_for_any_tokens(name: str) -> None:
    if not (HEADERS / name).is_dir():
        pytest.skip(f"{HEADERS / name} is absent: the real tokenizers are not part of the project")
    tokenizer = load_tokenizer(HEADERS / name)
    assert tokenizer is not None
    size = 900 if name.startswith("xverse") else 151_700
    for seed in range(200):
        rng = random.Random(seed)
        tokens = [rng.randrange(rng.choice([300, size])) for _ in range(rng.randrange(1, 60))]
        assert "".join(stream(Detokenizer(tokenizer.decode), tokens)) == tokenizer.decode(tokens)
