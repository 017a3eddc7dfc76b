"""The text of a stream is the tokenizer's own decoding, cut at the stop, whatever the tokens."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from libs.engine.text_stream import TextPiece, TextStream
from libs.engine.tokenization import TokenizerDetokenizer

SPECIAL = "<eos>"
TEXTS = ["the tide, the tide! naïve café — 潮汐 и прилив 🌊🌊", "🌊 tide 潮 à la carte"]


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """Like llama 3 and qwen2: merges over bytes, so that a token may end within a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=[SPECIAL],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return wrapped(tokenizer)


@cache
def byte_fallback() -> PreTrainedTokenizerFast:
    """Like llama 2: pieces with a visible space, one token per raw byte of the rest, and the
    first space of a text stripped."""
    pieces = [SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁the", "▁a"]
    pieces += ["tide", "é", "▁▁", "!"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: token_id for token_id, piece in enumerate(pieces)},
            merges=[],
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return wrapped(tokenizer)


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    fast: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL
    )  # type: ignore[no-untyped-call]
    return fast


TOKENIZERS = {"byte_level": byte_level, "byte_fallback": byte_fallback}


def token_ids(tokenizer: PreTrainedTokenizerFast) -> st.SearchStrategy[list[int]]:
    """Random tokens, special ones and broken characters among them, and real text."""
    noise = st.lists(st.integers(0, len(tokenizer) - 1), max_size=12)
    text = st.text(alphabet="the tide潮🌊é !ab", max_size=12).map(
        lambda value: tokenizer.encode(value, add_special_tokens=False)
    )
    return st.lists(st.one_of(noise, text), max_size=4).map(
        lambda parts: [token_id for part in parts for token_id in part]
    )


def stop_strings() -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(
        st.one_of(
            st.sampled_from(["the", " t", "e", "tide!", "潮汐", "🌊🌊", "é", "\ufffd", "!!"]),
            st.text(alphabet="the i", min_size=1, max_size=3),
        ),
        max_size=3,
    ).map(tuple)


def pieces_of(
    tokenizer: PreTrainedTokenizerFast, tokens: list[int], stops: tuple[str, ...]
) -> list[TextPiece]:
    """Push tokens until one completes a stop string."""
    stream = TextStream(TokenizerDetokenizer(tokenizer), stop_strings=stops)
    pieces = []
    for token_id in tokens:
        pieces.append(stream.push(token_id, is_stop_token=False))
        if pieces[-1].is_stop_matched:
            break
    return pieces


def decoded(tokenizer: PreTrainedTokenizerFast, tokens: list[int]) -> str:
    text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_the_pieces_add_up_to_the_decoded_text(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]()
    tokens = data.draw(token_ids(tokenizer))
    pieces = pieces_of(tokenizer, tokens, ())
    assert all(not piece.is_stop_matched for piece in pieces)
    for end in range(1, len(tokens) + 1):
        before = "".join(piece.text for piece in pieces[: end - 1])
        assert before + pieces[end - 1].text_if_last == decoded(tokenizer, tokens[:end])


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_the_text_is_cut_at_the_stop_string(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]()
    tokens = data.draw(token_ids(tokenizer))
    stops = data.draw(stop_strings())
    pieces = pieces_of(tokenizer, tokens, stops)
    if not pieces:
        return
    emitted = "".join(piece.text for piece in pieces[:-1]) + pieces[-1].text_if_last
    whole = decoded(tokenizer, tokens[: len(pieces)])
    starts = [whole.find(stop) for stop in stops if stop in whole]
    assert emitted == whole[: min(starts, default=None)]
    if pieces[-1].is_stop_matched:
        assert starts
        assert pieces[-1].text == pieces[-1].text_if_last
    else:
        # What is not certain yet may hold a stop string; what is certain may not.
        certain = "".join(piece.text for piece in pieces)
        assert not any(stop in certain for stop in stops)


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_replayed_stream_goes_on_byte_for_byte(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]()
    tokens = data.draw(token_ids(tokenizer))
    stops = data.draw(stop_strings())
    pieces = pieces_of(tokenizer, tokens, stops)
    cut = data.draw(st.integers(0, max(0, len(pieces) - 1)))
    stream = TextStream(TokenizerDetokenizer(tokenizer), stop_strings=stops)
    stream.replay(tuple(tokens[:cut]))
    resumed = [stream.push(token_id, is_stop_token=False) for token_id in tokens[cut : len(pieces)]]
    assert resumed == pieces[cut:]


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_stop_token_flushes_and_adds_no_text(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]()
    tokens = data.draw(token_ids(tokenizer))
    stream = TextStream(TokenizerDetokenizer(tokenizer), stop_strings=())
    before = "".join(stream.push(token_id, is_stop_token=False).text for token_id in tokens)
    last = stream.push(data.draw(st.integers(0, len(tokenizer) - 1)), is_stop_token=True)
    assert before + last.text_if_last == decoded(tokenizer, tokens)


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_stop_string_before_min_tokens_is_text_like_any_other(
    kind: str, data: st.DataObject
) -> None:
    tokenizer = TOKENIZERS[kind]()
    tokens = data.draw(token_ids(tokenizer))
    stops = data.draw(stop_strings())
    min_tokens = data.draw(st.integers(0, len(tokens)))
    stream = TextStream(TokenizerDetokenizer(tokenizer), stop_strings=stops, min_tokens=min_tokens)
    pieces = [stream.push(token_id, is_stop_token=False) for token_id in tokens[:min_tokens]]
    assert all(not piece.is_stop_matched for piece in pieces)
    settled = "".join(piece.text for piece in pieces)
    for token_id in tokens[min_tokens:]:
        pieces.append(stream.push(token_id, is_stop_token=False))
        if pieces[-1].is_stop_matched:
            break
    if pieces:
        emitted = "".join(piece.text for piece in pieces[:-1]) + pieces[-1].text_if_last
        whole = decoded(tokenizer, tokens[: len(pieces)])
        starts = [whole.find(stop, len(settled)) for stop in stops]
        found = [start for start in starts if start >= 0]
        is_cut = len(pieces) > min_tokens
        assert emitted == whole[: min(found, default=None) if is_cut else None]


def test_no_piece_ends_within_a_character() -> None:
    tokenizer = byte_level()
    tokens = tokenizer.encode("🤖 潮 ü", add_special_tokens=False)
    pieces = pieces_of(tokenizer, tokens, ())
    assert len(tokens) > 6
    assert all("\ufffd" not in piece.text for piece in pieces)
    assert "".join(piece.text for piece in pieces) == "🤖 潮 ü"
