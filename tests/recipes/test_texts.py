"""Recipes of text: from the text to the arguments of the model, and its measures."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from kgen import recipes


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(
        "to be or not to be, that is the question.\n" * 40
    )
    return str(tmp_path / "text.txt")


def small(recipe, text, **options):
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "context": 8}
    return dataclasses.replace(recipe, data=text, **sizes, **options)


def test_a_gpt_knows_its_tokenizer_and_how_long_tokens_are(text):
    recipe = small(recipes.GPTRecipe(), text, tokenizer="bpe", vocab_size=270)
    data = recipe.open_data()
    model = recipe.make_model(data, 3)
    assert model.tokenizer == data.tokenizer and model.vocab_size == 270
    ratio = data.splits["train"] / data.characters("train")
    assert model.tokens_per_character == pytest.approx(ratio) and ratio < 0.9
    sample = recipe.sample(model, data)
    assert sample.count("-" * 72) == 2


def test_xla_compiles_the_step_on_one_device_only(text):
    recipe = small(recipes.GPTRecipe(), text)
    data = recipe.open_data()
    assert recipe.make_model(data, 3).jit_compile
    # Its step cannot reach the variables of a second replica.
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        assert not recipe.make_model(data, 3).jit_compile


@pytest.mark.parametrize("context", [2, 9])
def test_learned_positions_end_where_the_context_does(text, context):
    recipe = small(recipes.GPTRecipe(), text, positions="learned")
    recipe = dataclasses.replace(recipe, context=context)
    data = recipe.open_data()
    model = recipe.make_model(data, 3)
    sample = recipe.sample(model, data)
    assert len(sample.split("|")) == 3
    assert [one.metric for one in recipe.evaluate(model, data, limit=2)][0] == "loss"


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan")])
def test_a_part_of_the_text_is_left_to_measure_on(share):
    with pytest.raises(ValueError, match="`validation_fraction` must be above 0"):
        recipes.GPTRecipe(validation_fraction=share)


def test_a_bert_reads_the_windows_of_its_data(text):
    recipe = small(recipes.BERTRecipe(), text)
    data = recipe.open_data()
    train, _ = recipe.pipelines(data)
    model = recipe.make_model(data, 3)
    [batch] = train.dataset().take(1)
    assert batch["tokens"].shape[1] == model.context == 9
    assert np.isfinite(float(model.train_step(batch)["loss"]))
    records = recipe.evaluate(model, data, limit=2)
    assert [record.metric for record in records][:1] == ["masked_loss"]
    assert "'" in recipe.sample(model, data)


@pytest.mark.parametrize("weight_decay", [-0.1, float("inf"), float("nan")])
def test_a_weight_decay_is_a_number(weight_decay):
    with pytest.raises(ValueError, match="`weight_decay` must be 0 or more"):
        recipes.GPTRecipe(weight_decay=weight_decay)


def test_the_default_text_needs_no_download():
    data = recipes.GPTRecipe().open_data(download=False)
    assert data.name == "python-manual" and sum(data.splits.values()) > 300_000
