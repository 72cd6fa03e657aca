"""The benchmarks of language models, on a tiny GPT-2 with random weights and the papers' words."""

import argparse
import json

import pytest
import tokenizers
import torch
import transformers

import fairness
import fairness_gap
import generate_speed
import language_models
import perplexity
import pictures
import regard
import render
import swapped_generations
from equitune.text._words import forms

HUMAN = regard.Sentences(
    ["XYZ was kind", "XYZ was a thief", "XYZ had a job", "XYZ was good", "he was a bad man"],
    [1, -1, 0, 1, -1],
)
SETTINGS = regard.Settings(words=1, characters=0, strength=10.0, published=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model and its tokenizer, as transformers store them."""
    groups = language_models.PAPERS_GROUPS
    lists = [words for demographic in groups for words in demographic.lists]
    told = [form for words in lists for form in forms(words)]
    texts = [" ".join(c) for c in language_models.TASKS.values()] + [d.subjects[0] for d in groups]
    words = [word for form in told for word in form] + " ".join(texts).split()
    words += ["a", "The", "Asian", ".", *language_models.PRONOUNS]
    words += [word.capitalize() for word in language_models.PRONOUNS]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["<unk>", "<s>", "</s>", *words]))}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    path = tmp_path_factory.mktemp("tiny")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(path)
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=len(vocabulary), n_positions=160, n_embd=16, n_layer=2, n_head=2,
            bos_token_id=1, eos_token_id=2, initializer_range=0.5,
        )
    ).save_pretrained(path)  # fmt: skip
    return path


@pytest.fixture
def classifier():
    return regard.RegardClassifier(SETTINGS, HUMAN, regard.Sentences([], []))


@pytest.fixture
def data(monkeypatch, tmp_path, classifier):
    """A data folder of which nothing is read."""
    monkeypatch.setattr(regard, "chosen", lambda folder: classifier)
    for benchmark in (fairness, swapped_generations):
        monkeypatch.setattr(benchmark, "data_folder", lambda: tmp_path)
    return tmp_path


def stored(folder, benchmark, output):
    return json.loads((output / f"{benchmark}_{folder.name}.json").read_text())


def test_fairness(folder, data, monkeypatch):
    monkeypatch.setattr(language_models, "PAPERS_GROUPS", language_models.PAPERS_GROUPS[:2])
    call = ["--model", str(folder), "--output", str(data), "--seeds", "2", "--new-tokens", "6"]
    fairness.main(call)
    found = stored(folder, "fairness", data)
    assert len(found["rows"]) == 2 * 2 * 5
    for name, row in found["rows"].items():
        for shares in row["regard"].values():
            assert sum(shares.values()) == pytest.approx(1)
        assert len(row["samples"]) == 5 * 2
        for sample in row["samples"]:
            assert sample["context"] in sample["text"]
        if row["model"] in {"EquiLM", "EquiZeroLM"}:
            assert row["translated_gap"] == 0, name
            assert row["gap"] == pytest.approx(row["classifier_gap"])
    plain = [row for row in found["rows"].values() if row["model"] == "plain"]
    assert all("chance" in row for row in plain)
    assert any(_texts(row, 0) != _texts(row, 1) for row in plain)
    # What is done is kept, and what is damaged is not done again unless it is asked for.
    found["rows"]["gender, respect, plain"]["gap"] = 5.0
    (data / f"fairness_{folder.name}.json").write_text(json.dumps(found))
    fairness.main(call)
    assert stored(folder, "fairness", data)["rows"]["gender, respect, plain"]["gap"] == 5.0
    fairness.main([*call, "--fresh"])
    again = stored(folder, "fairness", data)
    assert again["rows"]["gender, respect, plain"]["gap"] <= 1
    table = render.fairness(again)
    assert table.count(", respect, EquiLM | ") == 2
    assert "| plain | The man was known for" in render.fairness_samples(again)
    bars = pictures.regard_bars(again, "race", "occupation")
    assert list(bars)[:2] == ["plain\nBlack", "plain\nWhite"]
    assert sum(value for (value,) in bars["plain\nBlack"].values()) == pytest.approx(100)


def _texts(row, group):
    name = list(row["regard"])[group]
    return [
        sample["text"].split(sample["context"])[1]
        for sample in row["samples"]
        if sample["group"] == name
    ]


def test_swapped_generations(folder, data, monkeypatch):
    monkeypatch.setattr(language_models, "PAPERS_GROUPS", language_models.PAPERS_GROUPS[:1])
    call = ["--model", str(folder), "--output", str(data), "--seeds", "5", "--batch-size", "3"]
    swapped_generations.main([*call, "--new-tokens", "8"])
    found = stored(folder, "swapped_generations", data)
    rows = found["rows"].values()
    assert len(rows) == 10 * 4
    fair = [row for row in rows if row["model"] in {"EquiLM", "EquiZeroLM"}]
    assert {row["copies"] for row in fair} == {5}
    assert sum(row["copies_with_swapped_words"] for row in fair) > 0
    for kind in ("plain", swapped_generations.MULTINOMIAL):
        assert any(row["copies"] < 5 for row in rows if row["model"] == kind)
    assert "| ... worked as |" in render.swapped_generations(found)


def test_batches_that_end_at_different_lengths():
    class Loaded:
        tokenizer = argparse.Namespace(eos_token_id=2)

    short, long = torch.tensor([[1, 5], [1, 6]]), torch.tensor([[1, 5, 2], [1, 6, 7]])
    assert swapped_generations.equal(short, long, Loaded).tolist() == [True, False]


def test_fairness_gap(folder, tmp_path):
    fairness_gap.main(["--model", str(folder), "--output", str(tmp_path), "--prompts", "60"])
    found = stored(folder, "fairness_gap", tmp_path)
    assert found["rows"]["two demographics, plain"]["order"] == 4
    for row in found["rows"].values():
        assert (row["largest"] > 0.01) == (row["model"] == "plain")
        assert row["model"] == "plain" or row["largest"] <= 1e-5
    assert "Black/White/Asian" in render.fairness_gap(found)


def test_perplexity(folder, monkeypatch, tmp_path):
    text = torch.arange(3, 103)
    monkeypatch.setattr(perplexity, "wikitext", lambda loaded, count: text)
    call = ["--model", str(folder), "--output", str(tmp_path), "--story-tokens", "300"]
    perplexity.main([*call, "--window", "64"])
    rows = stored(folder, "perplexity", tmp_path)["rows"]
    assert len(rows) == 2 * (1 + 3 * 2)
    assert rows["WikiText-2, plain"]["ratio"] == 1
    for row in rows.values():
        plain = rows[f"{row['text']}, plain"]["perplexity"]
        assert row["ratio"] == pytest.approx(row["perplexity"] / plain)
        assert row["settings"]["stride"] == 48
    relaxed = rows["stories, gender, REquiLM"]["settings"]
    assert relaxed["exchanged"] == ["man/woman", "men/women"]
    assert "| man/woman, men/women | he, she, his, her, him |" in render.perplexity(
        stored(folder, "perplexity", tmp_path)
    )


def test_stories_end_where_the_model_ends_them(folder):
    assert perplexity.until([5, 6, 2, 7], [1, 2]) == [5, 6]
    assert perplexity.until([5, 6], [1, 2]) == [5, 6]
    loaded = language_models.load(str(folder))
    told = perplexity.stories(loaded, 200)
    assert told.shape == (200,)
    assert int(told[0]) == 1
    assert 2 not in told.tolist()
    assert torch.equal(told, perplexity.stories(loaded, 200))


def test_a_model_that_cannot_be_loaded(tmp_path):
    with pytest.raises(SystemExit, match="cannot be loaded: give the name"):
        language_models.load(str(tmp_path))


def test_subjects_that_are_no_single_tokens(folder):
    loaded = language_models.load(str(folder))
    gender, race, _ = loaded.demographics
    words = loaded.resolve(gender.lists)
    with pytest.raises(SystemExit, match="'The White person' is not 'The Black person'"):
        language_models.prompts(loaded, race, words, "worked as")


def test_speed(capsys):
    generate_speed.main(["--tiny", "--rounds", "1", "--without-cache", "1"])
    lines = capsys.readouterr().out.splitlines()
    held = {line[:56].strip(): line.split()[-1] for line in lines}
    assert held[generate_speed.NEUTRAL] == "1"
    assert held[generate_speed.MIDDLE] == held[generate_speed.FIRST] == "2"


def test_the_classifier(classifier):
    assert classifier.labels(["XYZ was kind", "XYZ was a thief"]) == [1, -1]
    good, bad = classifier(["good", "a bad thief"])
    assert good > 0 > bad
    # The placeholder is no feature.
    assert classifier(["XYZ was kind"]) == classifier(["was kind"])
    assert classifier.accuracy(HUMAN) == 1
    assert regard.own_bias(classifier, ["he was good", "it was good"])["sentences"] == 1


def test_swapped_sentences():
    assert regard.swapped("He saw a Woman and his men.") == "She saw a Man and her women."
    assert regard.swapped("The theory") == "The theory"


def test_sentences_are_read_and_kept_apart(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("-1\tXYZ was bad\n2\tXYZ was\n1\tThe Black person was good\nnothing\n")
    found = regard.read(path)
    assert found == regard.Sentences(["XYZ was bad", "XYZ was good"], [-1, 1])
    assert found.without([regard.Sentences(["XYZ was bad"], [0])]).texts == ["XYZ was good"]
