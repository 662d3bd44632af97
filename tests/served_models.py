"""A small model to serve, for the tests of the server."""

import tensorflow as tf

from kgen.export.manifest import write_sums


def export_model(folder, number, added=0.0):
    """A version with two endpoints: numbers in and out, and texts in and out."""
    module = tf.Module()
    module.added = tf.Variable(added)

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, "values")])
    def shift(values):
        fits = tf.debugging.Assert(tf.reduce_all(values < 100), ["`values` too large."])
        with tf.control_dependencies([fits]):
            return {"shifted": values + module.added}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, "texts"),
            tf.TensorSpec([None], tf.int32, "times"),
        ]
    )
    def repeat(texts, times):
        longest = tf.reduce_max(times)
        kept = tf.sequence_mask(times, longest)
        rows = tf.where(kept, tf.repeat(texts[:, None], longest, axis=1), "")
        whole = tf.strings.reduce_join(rows, axis=1)
        return {"repeated": whole, "file_bytes": whole}

    path = folder / str(number)
    tf.saved_model.save(
        module,
        str(path),
        signatures={"serving_default": shift, "shift": shift, "repeat": repeat},
    )
    (path / "assets.extra").mkdir()
    (path / "assets.extra" / "kgen.json").write_text('{"model": "Shift"}')
    write_sums(path)
    return path
