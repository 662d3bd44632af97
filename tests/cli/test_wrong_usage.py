"""Wrong usage is answered before TensorFlow, or anything as slow, is imported."""

import json
import sys
import zipfile

import pytest

from kgen_cli.main import kgen, run

HEAVY = ("tensorflow", "keras", "kgen.data", "kgen.models", "kgen.training")


FROM_0 = {"dtype": "float32", "low": 0}
SEEDS = {"seeds": {"dtype": "int64"}}
SAMPLING = {
    "max_new_tokens": {"dtype": "int32", "low": 1, "high": 4096},
    "temperature": FROM_0,
    "top_k": {"dtype": "int32", "low": 0},
    "top_p": {"dtype": "float32", "low": 0, "high": 1, "above": True},
}
SIGNATURES = {
    "vae": {
        "generate": ({**SEEDS, "temperature": FROM_0}, "image"),
        "reconstruct": ({"images": FROM_0}, "image"),
    },
    "classes": {
        "generate": (
            SEEDS | {"labels": {"dtype": "int32", "low": 0, "high": 2}},
            "image",
        )
    },
    "gan": {"generate": ({**SEEDS, "truncation": FROM_0 | {"above": True}}, "image")},
    "gpt": {
        "generate": (SEEDS | SAMPLING, "text"),
        "beam_search": (
            {"num_beams": {"dtype": "int32", "low": 1, "high": 64}},
            "text",
        ),
    },
    "bert": {"fill": ({"tokens": {"dtype": "int32", "low": -1, "high": 65}}, "scores")},
    "recommender": {"recommend": ({"remove_seen": {"dtype": "bool"}}, "items")},
    "encoder": {"encode": ({"images": FROM_0}, "latent")},
}


def write_run(folder, recipe, config, kind=None):
    folder.mkdir(parents=True)
    signatures = {
        name: {"inputs": inputs, "outputs": {"output": output}}
        for name, (inputs, output) in SIGNATURES[kind or recipe].items()
    }
    record = {"recipe": recipe, "options": {}, "signatures": signatures}
    (folder / "recipe.json").write_text(json.dumps(record))
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({"config": config}))


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """A run of each kind; whatever imports something heavy fails."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "saved_models"
    for recipe in ("vae", "gan", "gpt", "bert"):
        write_run(folder / recipe, recipe, {})
    write_run(folder / "classes", "vae", {}, "classes")
    write_run(folder / "encoder", "vae", {}, "encoder")
    items = {"item_ids": [10, 20, 30]}
    write_run(folder / "multvae", "multvae", items, "recommender")
    items = {"item_ids": ["a", "b", "c d"]}
    write_run(folder / "named", "recvae", items, "recommender")
    write_run(folder / "begun", "vae", {})
    (folder / "begun" / "model.keras").unlink()
    write_run(folder / "damaged", "multvae", {}, "recommender")
    (folder / "damaged" / "model.keras").write_bytes(b"PK")
    (tmp_path / "gan.png").write_text("not an image of ours")
    (tmp_path / "file").touch()
    for name in HEAVY:
        monkeypatch.setitem(sys.modules, name, None)
    for verb in ("evaluate", "export", "fit", "startup"):
        monkeypatch.setattr(f"kgen_cli.{verb}.load_tensorflow", loads)


def loads():
    raise AssertionError("TensorFlow would be loaded now.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("generate nothing", "There is no run 'nothing'"),
        ("generate begun", "training did not finish"),
        ("generate multvae", "Use: kgen recommend saved_models/multvae"),
        ("generate encoder", "Use: kgen export saved_models/encoder"),
        ("generate vae --prompt a", "takes no --prompt"),
        ("generate vae --stream", "takes no --stream"),
        ("generate vae --top-k 0", "takes no --top-k"),
        ("generate gan --temperature 0", "takes no --temperature"),
        ("generate vae --labels 0", "takes no --labels"),
        ("generate vae --temperature -1", "'--temperature': -1.0 is not in the range"),
        ("generate vae --temperature nan", "'--temperature': nan is not finite"),
        ("generate vae --temperature inf", "'--temperature': inf is not finite"),
        ("fit vae --latent-dim 0", "--latent-dim must be at least 1"),
        ("fit vae --hidden-units 400,0", "--hidden-units must be at least 1"),
        ("fit vae --kl-warmup-epochs -1", "--kl-warmup-epochs must be 0 or more"),
        ("fit vae --kl-warmup-epochs inf", "--kl-warmup-epochs must be 0 or more"),
        ("fit vae --data=", "--data must name a data set, a folder or a file"),
        ("fit gan --r1-weight nan", "--r1-weight must be 0 or more"),
        ("fit gpt --context 0", "--context must be at least 1"),
        ("fit bert --mask-rate 1", "--mask-rate must be above 0 and below 1"),
        ("fit recvae --latent-dim -5", "--latent-dim must be at least 1"),
        ("fit gan --resume --name vae", "recipe vae (now gan)"),
        ("generate gan --truncation 0", "0.0 is not in the range x>0"),
        ("generate classes --labels 1,3", "'--labels': 3 is not in the range 0<=x<=2"),
        ("generate vae --seeds 5-1", "Write 1-5"),
        ("generate vae --out x.jpg", "must end in .png or .npy"),
        ("generate vae --out no/x.png", "the folder no does not exist"),
        ("fit vae --activation nope", "an activation of Keras, such as swish"),
        ("fit vae --strategy multiworker", "TF_CONFIG must be JSON"),
        ("fit vae --data some/where.npz", "There is no file or folder some/where.npz"),
        ("fit gpt --data ./nowhere", "There is no file or folder ./nowhere"),
        ("generate vae --out file", "is a file, not a folder"),
        ("generate vae --out saved_models/gan", "is the folder of a run"),
        ("generate gan", "gan.png exists, and kgen did not write it"),
        ("generate gpt --labels 0", "takes no --labels"),
        ("generate gpt --out no/t.txt", "the folder no does not exist"),
        ("generate gpt --out .", "--out is a folder"),
        ("generate gpt --out saved_models/gpt/t.txt", "or a file of a run"),
        ("generate gpt --prompt=", "must not be empty"),
        ("generate gpt --stop=", "must not be empty"),
        ("generate gpt --num-beams 2 --top-k 0", "--num-beams 2 and --top-k"),
        ("generate gpt --stream --seeds 0,1", "--stream prints one text"),
        ("generate gpt --stream --num-beams 2", "--stream prints one text"),
        ("generate gpt --top-p 0", "0<x<=1"),
        ("generate gpt --temperature -1", "x>=0"),
        ("generate gpt --top-k -1", "x>=0"),
        ("generate gpt --max-new-tokens 4097", "1<=x<=4096"),
        ("generate gpt --num-beams 0", "'--num-beams': 0 is not in the range 1<=x<=64"),
        ("generate gpt --min-p 0", "takes no --min-p"),
        ("generate vae --num-beams 2", "takes no --num-beams"),
        ("generate bert", "A text with [MASK] in it is needed"),
        ("generate bert --prompt a", "A text with [MASK] in it is needed"),
        ("generate bert --prompt [MASK] --seeds 1 --out a", "takes no --out, --seeds"),
        ("generate bert --prompt [MASK] --top-k 0", "1<=x<=65"),
        ("generate bert --prompt [MASK] --top-k 66", "1<=x<=65"),
        ("generate bert --prompt [MASK] --stream", "takes no --stream"),
        ("recommend vae", "Use: kgen generate"),
        ("recommend begun", "training did not finish"),
        ("recommend multvae --items 10,77", "Received: 77."),
        ("recommend multvae --items 1_0", "--items must be whole numbers"),
        ("recommend named --items a,10", "Received: 10."),
        ("recommend multvae -k 4", "4 is not in the range 1<=x<=3"),
        ("recommend multvae -k 0", "0 is not in the range"),
        ("evaluate begun", "training did not finish"),
        ("evaluate gan --num-samples 3", "takes no --num-samples"),
        ("evaluate gpt --num-samples 3", "takes no --num-samples"),
        ("evaluate multvae --split train", "use --split test or validation"),
        ("evaluate vae --limit 0", "0 is not in the range"),
        ("evaluate vae --split all", "'all' is not one of"),
        ("evaluate vae --protocols", "metrics.json does not exist yet"),
        ("evaluate vae --protocols --limit 3", "--protocols measures nothing"),
        ("export nothing", "There is no run 'nothing'"),
        ("export begun", "training did not finish"),
        ("export vae --format saved_model --layout nchw", "of ONNX files alone"),
        ("export gpt --layout nchw", "takes no --layout"),
        ("export multvae --dtype uint8", "takes no --layout or --dtype"),
        ("export vae --check --format onnx", "takes no --format"),
        ("export vae --check --dtype uint8", "takes no --format, --layout or --dtype"),
        ("export vae --check", "holds no exports yet"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments, message, capsys):
    assert run(arguments.split()) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_damaged_model_is_named(capsys):
    assert run(["recommend", "damaged"]) == 1
    assert "damaged/model.keras is damaged" in capsys.readouterr().err


def test_right_usage_does_load_tensorflow():
    for arguments in (
        "generate vae --temperature 0.5 --out x.png",
        "generate classes --labels 2",
        "generate gpt --stream --seeds 3 --temperature 0 --top-k 0",
        "generate gpt --num-beams 3 --stop a --stop b --out t.txt",
        "generate bert --prompt a[MASK] --top-k 3",
        "recommend named -k 3",
        "evaluate vae --num-samples 5",
    ):
        with pytest.raises(AssertionError, match="would be loaded now"):
            kgen.main(arguments.split(), standalone_mode=False)
