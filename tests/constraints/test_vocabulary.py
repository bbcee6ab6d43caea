"""What each token spells, for every kind of tokenizer, and whether a constraint can be spelled at all."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lmguide.constraints import Choice, Grammar, JSONSchema, Literal, Regex, Vocabulary, compile
from lmguide.constraints.vocabulary import bytes_vocabulary
from tests.constraints.walks import allowed, byte_vocabulary, tales, walk


def _sentencepiece() -> PreTrainedTokenizerFast:
    """Pieces with a mark before words, and a token for each byte, as LLaMA's first tokenizer has them."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", "a", "b", "\u2581a", "ab", "\u2581ab", "\u00e9", "1", "{", '"', ":", "}"]
    inner = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, [("a", "b"), ("\u2581", "ab")],
                                 unk_token="<unk>", byte_fallback=True))  # fmt: skip
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                       decoders.Strip(" ", 1, 0)])  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _wordpiece() -> PreTrainedTokenizerFast:
    pieces = ["[PAD]", "[UNK]", "[SEP]", "yes", "no", "may", "##be", "##s", ".", "7"]
    inner = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", eos_token="[SEP]")


TEXTS = ["a", "ab", " ab", "ab ab", "  a", "b1", "\n", "a\nb", "\u00e9", "\U0001f600", '{"a": 1}', "x y z"]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_spell_the_text_they_were_cut_from(text: str) -> None:
    for vocabulary in (tales(), Vocabulary.of_tokenizer(_sentencepiece()), byte_vocabulary()):
        assert vocabulary.spell(vocabulary.encode(text)) == text.encode()


def test_sentencepiece_behind_a_word() -> None:
    vocabulary = Vocabulary.of_tokenizer(_sentencepiece())
    names = _sentencepiece().convert_ids_to_tokens(list(range(vocabulary.size)))
    spelled = dict(zip(names, vocabulary.tokens, strict=True))
    assert (spelled["\u2581ab"], spelled["ab"], spelled["\u2581"], spelled["<0x0A>"], spelled["</s>"]) == (
        b" ab",
        b"ab",
        b" ",
        b"\n",
        b"",
    )
    assert vocabulary.encode("ab") == [names.index("ab")]  # not with the mark of a first word
    assert vocabulary.encode(" ab") == [names.index("\u2581ab")]
    assert vocabulary.missing_bytes == frozenset()


@pytest.mark.parametrize("backend", ["llguidance", "xgrammar"])
def test_sentencepiece_under_a_constraint(backend: str) -> None:
    vocabulary = Vocabulary.of_tokenizer(_sentencepiece())
    for seed in range(5):
        assert walk(Choice(["ab a", "\u00e9\n"]), vocabulary, seed, backend) in {"ab a", "\u00e9\n"}


def test_words_without_bytes() -> None:
    vocabulary = Vocabulary.of_tokenizer(_wordpiece())
    assert vocabulary.tokens[3:8] == [b" yes", b" no", b" may", b"be", b"s"]
    assert set(vocabulary.missing_bytes) >= set(b"abcdefghij")
    assert {walk(Choice([" yes", " maybe.", " 7"]), vocabulary, seed) for seed in range(20)} == {
        " yes",
        " maybe.",
        " 7",
    }


UNSPELLABLE = [
    Regex("[0-6]"),
    Regex("[a-z]*!"),
    Literal("yes"),
    Regex("( ye)+"),
    Choice(["nope", " maybebo"]),
    Grammar('start: " yes" rest\nrest: "!" | "?"'),
    JSONSchema({"const": 3}),
]


@pytest.mark.parametrize("constraint", UNSPELLABLE, ids=str)
def test_what_no_tokens_spell_is_refused(constraint: Literal) -> None:
    with pytest.raises(ValueError, match=r"^constraint: expected one that some tokens of the vocabulary spell"):
        compile(constraint, Vocabulary.of_tokenizer(_wordpiece()))


def test_padding_of_the_logits_is_never_allowed() -> None:
    tokenizer = _sentencepiece()
    wide = Vocabulary.of_tokenizer(tokenizer, vocab_size=len(tokenizer) + 100)
    tokens = allowed(compile(Regex("(?s).*"), wide).start(), wide)
    assert max(tokens) < len(tokenizer)
    assert wide.tokens[len(tokenizer) :] == [b""] * 100
    narrow = Vocabulary.of_tokenizer(tokenizer, vocab_size=20)
    assert (narrow.size, len(narrow.tokens)) == (20, 20)


def test_several_ends() -> None:
    vocabulary = Vocabulary.of_tokenizer(_sentencepiece(), eos=[2, 1])
    matcher = compile(Literal("ab"), vocabulary).start()
    assert not set(allowed(matcher, vocabulary)) & {1, 2}
    assert all(map(matcher.accept, vocabulary.encode("ab")))
    assert allowed(matcher, vocabulary) == [1, 2]
    for end in (1, 2):
        ended = matcher.copy()
        assert ended.accept(end)
        assert ended.finished()


def test_a_tokenizer_is_worked_out_once() -> None:
    tokenizer = _sentencepiece()
    assert Vocabulary.of_tokenizer(tokenizer) is Vocabulary.of_tokenizer(tokenizer)
    assert Vocabulary.of_tokenizer(tokenizer) is not Vocabulary.of_tokenizer(tokenizer, eos=1)


def test_llguidance_reads_the_bundled_tokenizer_by_itself() -> None:
    vocabulary = tales()
    assert vocabulary.llguidance.tokenize_str("the fisher") == vocabulary.encode("the fisher")
    assert vocabulary._read_by_llguidance() is not None
    assert bytes_vocabulary()._read_by_llguidance() is None


def test_special_tokens_have_names_and_no_bytes() -> None:
    vocabulary = tales()
    assert vocabulary.specials["<|eos|>"] == vocabulary.eos[0]
    assert all(vocabulary.tokens[token] == b"" for token in vocabulary.specials.values())


def test_bad_vocabularies() -> None:
    with pytest.raises(ValueError, match=r"^vocabulary: expected tokens that spell text"):
        Vocabulary([b"", b""], eos=(0,))
    with pytest.raises(ValueError, match=r"^eos: expected ids from 0 to 1, got 2"):
        Vocabulary([b"a", b""], eos=(2,))
    with pytest.raises(ValueError, match=r"^eos: expected the id of at least one token"):
        Vocabulary([b"a", b""], eos=())
    with pytest.raises(ValueError, match=r"^text: expected one that the vocabulary can spell, got 'ac'"):
        Vocabulary([b"a", b""], eos=(1,)).encode("ac")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(ValueError, match=r"^eos: expected a tokenizer with an end-of-text token"):
        Vocabulary.of_tokenizer(tokenizer)
