"""Callbacks: history, samples, TensorBoard, progress and checks of the losses."""

import csv
import math
import re
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kgen import training
from kgen.data import Pipeline
from kgen.models import VAE

IMAGES = np.random.default_rng(0).integers(0, 255, (24, 4, 4, 1)).astype(np.uint8)


def make_pipeline():
    return Pipeline(
        24, lambda rows, *_: {"images": tf.gather(IMAGES, rows)}, batch_size=8
    )


def make_model(model_class=VAE, **options):
    keras.utils.set_random_seed(0)
    model = model_class(image_shape=(4, 4, 1), latent_dim=2, hidden_units=(4,))
    model.compile(keras.optimizers.Adam(1e-2), **options)
    return model


class BadFromStepFive(VAE):
    """A term of its loss is NaN from its fifth step on, so the next one's weights."""

    def _bound(self, *arguments):
        terms = super()._bound(*arguments)
        bad = tf.where(self.step.value >= 4, math.nan, 0.0)
        return terms | {"kl": terms["kl"] + bad, "loss": terms["loss"] + bad}


@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_the_first_bad_term_and_its_step_are_named_and_the_checkpoint_stays(
    tmp_path, steps_per_execution
):
    model = make_model(BadFromStepFive, steps_per_execution=steps_per_execution)
    checkpointer = training.Checkpointer(tmp_path / "state.npz", every_seconds=0)
    with pytest.raises(FloatingPointError, match="`kl` became NaN .* at step 5, first"):
        training.fit(
            model,
            make_pipeline(),
            epochs=4,
            callbacks=[training.StopOnNonFinite(), checkpointer],
        )
    again = make_model()
    assert training.Checkpointer(tmp_path / "state.npz").restore(again)
    last_good = 4 if steps_per_execution == 1 else 3
    assert int(again.step.numpy()) == last_good
    assert all(np.isfinite(value).all() for value in again.get_weights())


def test_history_holds_every_digit_and_a_repeated_epoch_once(tmp_path):
    file = tmp_path / "history.csv"
    first = training.History(file)
    first.on_train_begin()
    for epoch, loss in enumerate([0.1, 1 / 3, 5.0]):
        first.on_epoch_end(epoch, {"loss": np.float64(loss), "kl": [1.0]})
    resumed = training.History(file)
    resumed.on_train_begin()
    resumed.on_epoch_end(1, {"loss": 0.25, "kl": 2.0})
    with open(file, newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert rows == [
        {"epoch": "1", "loss": "0.1", "kl": "1.0"},
        {"epoch": "2", "loss": "0.25", "kl": "2.0"},
    ]
    first.on_epoch_end(1, {"loss": 1 / 3, "kl": 1.0})
    assert repr(1 / 3) in file.read_text()


def test_history_takes_rows_of_other_columns(tmp_path):
    file = tmp_path / "history.csv"
    for epoch, logs in enumerate([{"loss": 1.0, "kl": 2.0}, {"loss": 3.0, "gan": 4.0}]):
        history = training.History(file)  # each in a process of its own
        history.on_train_begin()
        history.on_epoch_end(epoch, logs)
    assert file.read_text().splitlines() == [
        "epoch,loss,kl,gan",
        "1,1.0,2.0,",
        "2,3.0,,4.0",
    ]


def test_samples_are_written_every_so_many_epochs_and_after_the_last(tmp_path):
    images = IMAGES[:4] / 255.0
    for samples, suffix, kind in ((images, "png", "image"), ("a text", "txt", "items")):
        callback = training.Samples(lambda x=samples: x, tmp_path / suffix, 2)
        outputs = {"embeddings": "latent", "output": kind}
        signature = types.SimpleNamespace(outputs=outputs)
        callback.set_model(types.SimpleNamespace(signatures=lambda s=signature: [s]))
        callback.set_params({"epochs": 5})
        callback.on_train_begin()
        for epoch in range(5):
            callback.on_epoch_end(epoch)
        files = sorted(file.name for file in (tmp_path / suffix).iterdir())
        assert files == [f"epoch-{done:04d}.{suffix}" for done in (2, 4, 5)]
    with Image.open(tmp_path / "png" / "epoch-0002.png") as image:
        assert min(image.size) >= 8  # two by two images of four pixels
    assert (tmp_path / "txt" / "epoch-0005.txt").read_text() == "a text"


def test_tensorboard_holds_scalars_images_and_the_graph(tmp_path):
    model = make_model()
    samples = training.Samples(lambda: model.generate(range(20)), tmp_path / "samples")
    training.fit(
        model,
        make_pipeline(),
        epochs=2,
        validation=make_pipeline(),
        callbacks=[samples, training.TensorBoard(tmp_path, samples)],
    )
    events = EventAccumulator(str(tmp_path), {"tensors": 0, "images": 0}).Reload()
    tags = events.Tags()
    assert {"loss", "val_loss", "kl", "samples"} <= set(tags["tensors"])
    losses = events.Tensors("loss")
    assert [event.step for event in losses] == [1, 2]
    assert all(np.isfinite(tf.make_ndarray(event.tensor_proto)) for event in losses)
    # Width, height, and 16 encoded images.
    _, _, *pictures = tf.make_ndarray(events.Tensors("samples")[-1].tensor_proto)
    assert len(pictures) == 16
    assert tf.io.decode_png(pictures[0]).shape == (4, 4, 1)
    assert tags["graph"]
    assert "seeds" in {node.name for node in events.Graph().node}


def test_a_warning_is_passed_on_once_and_not_after_the_first_epoch():
    messages = []
    callback = training.HealthWarnings(messages.append)
    callback.set_model(types.SimpleNamespace(health=lambda logs: [f"ill: {logs['x']}"]))
    callback.on_epoch_end(0, {"x": 1.0})
    assert messages == []
    callback.on_epoch_end(1, {"x": 2.0})
    callback.on_epoch_end(2, {"x": 3.0})
    assert messages == ["ill: 2.0"]


def test_collapse_is_named():
    logs = {"active_units": 0.0, "kl": 0.01}
    [message] = make_model().health(logs)
    assert message.startswith("posterior collapse: 0 of 2")


def test_each_epoch_prints_its_values_rate_and_time_left():
    lines = []
    with training.Progress(3, 8, lines.append, total_steps=6) as progress:
        training.fit(make_model(), make_pipeline(), epochs=2, callbacks=[progress])
    assert len(lines) == 2
    for number, line in enumerate(lines, start=1):
        pattern = (
            rf"epoch {number}/2 .* loss [\d.]+ .* [\d,]+ rows/s  \d:\d\d:\d\d left"
        )
        assert re.fullmatch(pattern, line), line
    assert lines[-1].endswith("0:00:00 left")


def test_the_rate_counts_the_rows_of_this_epoch(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    lines = []
    progress = training.Progress(10, 8, lines.append, total_steps=40)
    step = types.SimpleNamespace(numpy=lambda: 15)  # resumed in the second epoch
    progress.set_model(types.SimpleNamespace(step=step))
    progress.on_epoch_begin(1)
    now[0] += 2.0
    progress.on_train_batch_end(4, {"loss": 1.0})
    progress.on_epoch_end(1, {"loss": 1.0})
    # 5 steps of 8 rows in 2 s; 20 steps left at 0.4 s each.
    assert lines == ["epoch 2/4  loss 1  20 rows/s  0:00:08 left"]


def test_the_line_of_an_epoch_fits_80_columns_and_begins_with_the_losses():
    lines = []
    progress = training.Progress(1, 8, lines.append, total_steps=20)
    step = types.SimpleNamespace(numpy=lambda: 0)
    progress.set_model(types.SimpleNamespace(step=step))
    names = ("active_units", "kl", "loss", "val_active_units", "val_loss", "val_kl")
    for epoch, value in enumerate([2.0, 1 / 3000, 2.0]):
        progress.on_epoch_begin(epoch)
        progress.on_train_batch_end(0, {})
        progress.on_epoch_end(epoch, dict.fromkeys(names, value))
    assert max(map(len, lines)) <= 80
    shown = [re.findall(r"(\w+) [\d.]+(?=  )", line) for line in lines]
    assert shown == [
        ["loss", "val_loss", "active_units"],
        ["loss", "val_loss"],
        ["loss", "val_loss"],
    ]
