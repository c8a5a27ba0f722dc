"""The shipped prompts and the reader that refuses files that are none."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from effillm_server import catalog
from effillm_server.catalog import TOKENIZER, Workload, load, read_workload
from effillm_server.catalog.train_tokenizer import VOCABULARY, main
from effillm_server.errors import BadInput

COUNTS = {
    "short-qa": 50, "summarization": 20, "creative-writing": 20, "code-generation": 30, "chat": 25, "legal": 15, "scientific": 15,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TOKENIZER))


def read(path: Path) -> Workload:
    return read_workload(path, "mine", "Prompts of my own")


def test_every_workload_of_the_paper_has_its_number_of_prompts() -> None:
    assert {name: len(workload.prompts) for name, workload in load().workloads.items()} == COUNTS


def test_no_prompt_and_no_id_stands_twice_anywhere() -> None:
    prompts = [prompt for workload in load().workloads.values() for prompt in workload.prompts]
    assert (
        len({prompt.id for prompt in prompts}) == len({prompt.render() for prompt in prompts}) == sum(COUNTS.values())
    )


def test_summaries_are_asked_of_ten_articles_and_ten_abstracts_of_120_to_250_words() -> None:
    prompts = load().workloads["summarization"].prompts
    assert Counter(prompt.kind for prompt in prompts) == {"news": 10, "abstract": 10}
    for prompt in prompts:
        instruction, body, close = prompt.render().split("\n\n")
        assert instruction.startswith("Summarise")
        assert 120 <= len(body.split()) <= 250
        assert close == "Summary:"


def test_code_is_asked_for_in_many_languages() -> None:
    languages = {prompt.language for prompt in load().workloads["code-generation"].prompts}
    assert None not in languages
    assert len(languages) >= 10


def test_conversations_have_two_to_four_turns_of_the_user_and_leave_the_answer_open() -> None:
    lengths = set()
    for prompt in load().workloads["chat"].prompts:
        users = [turn for turn in prompt.turns if turn.role == "user"]
        lengths.add(len(users))
        assert len(prompt.turns) == 2 * len(users) - 1
        assert prompt.render().startswith(f"User: {users[0].text}\nAssistant: ")
        assert prompt.render().endswith(f"User: {users[-1].text}\nAssistant:")
    assert lengths == {2, 3, 4}


def test_texts_are_clean() -> None:
    for workload in load().workloads.values():
        for prompt in workload.prompts:
            text = prompt.render()
            assert text == text.strip("\n ")
            assert all(character.isprintable() or character == "\n" for character in text)


def test_the_tokenizer_encodes_and_returns_anything(tokenizer: Tokenizer) -> None:
    for text in ("plain words", "日本語 🎉 \x00\x7f ßé\n\t  ", "".join(map(chr, range(256)))):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_tokenizer_s_ids_exist_in_every_model_of_the_catalog(tokenizer: Tokenizer) -> None:
    size = tokenizer.get_vocab_size()
    assert size <= VOCABULARY
    assert all(facts.architecture and size <= facts.architecture["vocab_size"] for facts in load().models.values())


def test_the_tokenizer_compresses_the_texts_it_was_made_for(tokenizer: Tokenizer) -> None:
    for workload in load().workloads.values():
        texts = [prompt.render() for prompt in workload.prompts]
        assert sum(map(len, texts)) / sum(len(tokenizer.encode(text).ids) for text in texts) > 3


def test_the_shipped_tokenizer_is_the_one_these_texts_give(tmp_path: Path) -> None:
    main(tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
    assert again == json.loads(TOKENIZER.read_text(encoding="utf-8")), (
        "run `python -m effillm_server.catalog.train_tokenizer`"
    )


def test_a_prompt_file_of_one_s_own_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    turns = [{"role": "user", "text": "a"}, {"role": "assistant", "text": "b"}, {"role": "user", "text": "c"}]
    path.write_text(
        json.dumps({"id": "1", "text": "Hé\u2028llo"}, ensure_ascii=False)
        + "\n\n"
        + json.dumps({"id": "2", "turns": turns})
    )
    assert [prompt.render() for prompt in read(path).prompts] == [
        "Hé\u2028llo",
        "User: a\nAssistant: b\nUser: c\nAssistant:",
    ]


def test_a_workload_added_as_the_documentation_says_is_there_and_a_broken_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(catalog.HERE, tmp_path / "catalog", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(catalog, "HERE", tmp_path / "catalog")
    monkeypatch.setitem(catalog.WORKLOADS, "mine", "Prompts of my own")
    file = tmp_path / "catalog/workloads/mine.jsonl"
    file.write_text('{"id": "q1", "text": "Why?"}\n')
    assert [prompt.render() for prompt in load.__wrapped__().workloads["mine"].prompts] == ["Why?"]
    file.write_text("")
    with pytest.raises(BadInput, match=r"mine\.jsonl: the prompt file is empty"):
        load.__wrapped__()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "mine.jsonl: the prompt file is empty"),
        (b"\n \n", "mine.jsonl: the prompt file is empty"),
        (b"\x89PNG\r\n\x1a\n", "mine.jsonl: not text: byte 0 is not UTF-8"),
        (b'{"id": "1", "text": "a"}\n\x00', "mine.jsonl line 2: not text: it has a zero byte"),
        (b'{"id": "1", "text": "a"}\nhello', "mine.jsonl line 2: not JSON"),
        (b'{"id": "1"}', "line 1: Value error, prompt '1' has a text or turns, one of the two"),
        (b'{"id": "1", "text": "a", "turns": [{"role": "user", "text": "b"}]}', "one of the two"),
        (b'{"id": "1", "text": "   "}', "mine.jsonl line 1: text: String should have at least 1 character"),
        (b'{"id": "1", "txt": "a"}', "mine.jsonl line 1: txt: Extra inputs are not permitted"),
        (b'["a"]', "mine.jsonl line 1: "),
        (
            b'{"id": "1", "turns": [{"role": "user", "text": "a"}, {"role": "assistant", "text": "b"}]}',
            "end with the user",
        ),
        (b'{"id": "1", "turns": [{"role": "system", "text": "a"}]}', "turns.0.role"),
        (b'{"id": "1", "text": "a"}\n{"id": "1", "text": "b"}', "the id '1' stands twice"),
        (b'{"id": "1", "text": "a"}\n{"id": "2", "text": "a"}', "the text 'a' stands twice"),
    ],
)
def test_a_file_that_is_no_prompt_file_is_refused_with_its_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        read(path)
    assert says in str(caught.value)


def test_a_missing_or_huge_prompt_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        read(tmp_path / "none.jsonl")
    huge = tmp_path / "huge.jsonl"
    with huge.open("wb") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(BadInput, match="17,825,792 bytes, a prompt file has at most 16,777,216"):
        read(huge)
