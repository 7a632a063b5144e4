"""A wrong call costs nothing: exit code 2, one line that says what to change, and not a file written or touched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TRAIN = ["train", "photos", "--out", "new", "--steps", "3"]
EVALUATE = ["evaluate", "run", "--data", "photos"]
EMBED = ["embed", "run", "--data", "photos", "--out", "new.npz"]

# name: (words, what the line must contain)
WRONG = {
    "no sub-command": ([], ["name a sub-command", "train", "env"]),
    "unknown sub-command": (["trian", "photos"], ["'trian'", "train is the nearest"]),
    "option before the sub-command": (["--seed", "1", *TRAIN], ["--seed stands before the sub-command"]),
    "unknown option": ([*TRAIN, "--stesp", "3"], ["--stesp is not an option", "--steps is the nearest"]),
    "abbreviated option": ([*TRAIN, "--proj", "3"], ["--proj is not an option", "--projection-size"]),
    "unknown option with =": ([*TRAIN, "--bach-size=8"], ["--bach-size is not", "--batch-size"]),
    "unknown short option": ([*TRAIN, "-n", "3"], ["-n is not an option"]),
    "two unknown options": ([*TRAIN, "--bach-size", "8", "--sed", "1"], ["--batch-size", "--seed"]),
    "a flag with a value": ([*TRAIN, "--resume=yes"], ["--resume takes no value"]),
    "an option without its value": ([*TRAIN, "--seed"], ["--seed needs a value, N"]),
    "an option where a value should be": (["train", "photos", "--steps", "--out", "new"], ["--steps needs a value"]),
    "a decay without a target": (
        [*TRAIN, "--no-momentum", "--moving-average-decay", "0.5"],
        ["--moving-average-decay has no effect with --no-momentum"],
    ),
    "a negative number where nothing is": ([*TRAIN, "--resume", "-3:5"], ["'-3:5' is one word too many"]),
    "no data": (["train", "--out", "new", "--steps", "3"], ["DATA is missing", "folder of images"]),
    "no out": (["train", "photos", "--steps", "3"], ["--out RUN is missing"]),
    "one word too many": ([*TRAIN, "more"], ["'more' is one word too many"]),
    "everything at once": (
        ["train", "phtos", "--steps", "0", "--sed", "1", "--optimizer", "adm", "--image-size", "big"],
        ["--steps: '0'", "--seed", "--optimizer: 'adm'", "adam is the nearest", "--image-size", "--out RUN is missing"],
    ),
    "steps in words": ([*TRAIN, "--steps", "many"], ["--steps: 'many' is not a whole number above 0"]),
    "steps of nought": ([*TRAIN, "--steps", "0"], ["--steps: '0'"]),
    "steps below nought": ([*TRAIN, "--steps", "-5"], ["--steps: '-5'"]),
    "half a step": ([*TRAIN, "--steps", "1.5"], ["--steps: '1.5'"]),
    "steps beyond int32": ([*TRAIN, "--steps", "3000000000"], ["--steps"]),
    "a seed below nought": ([*TRAIN, "--seed", "-1"], ["--seed: '-1' is not a whole number, 0 or more"]),
    "a decay above one": ([*TRAIN, "--moving-average-decay", "1.1"], ["--moving-average-decay", "from 0 to 1"]),
    "a decay that is no number": ([*TRAIN, "--moving-average-decay", "nan"], ["--moving-average-decay"]),
    "a rate of nought": ([*TRAIN, "--learning-rate", "0"], ["--learning-rate: '0' is not a number above 0"]),
    "an infinite rate": ([*TRAIN, "--learning-rate", "inf"], ["--learning-rate"]),
    "an image size in words": ([*TRAIN, "--image-size", "96by96"], ["--image-size", "such as 96, or 96x128"]),
    "three image sizes": ([*TRAIN, "--image-size", "9x9x3"], ["--image-size"]),
    "an image size of nought": ([*TRAIN, "--image-size", "0"], ["--image-size"]),
    "a layout for a folder": ([*TRAIN, "--layout", "NCHW"], ["--layout NCHW: only .npy and .npz files have a layout"]),
    "a fit for an array": (
        ["train", "images.npy", "--out", "new", "--steps", "3", "--fit", "contain"],
        ["--fit contain: only for a folder of image files"],
    ),
    "an unknown fit": ([*TRAIN, "--fit", "contains"], ["--fit: 'contains' is not one of cover, contain, none"]),
    "an unknown layout": ([*TRAIN, "--layout", "HWC"], ["--layout: 'HWC' is not one of NHWC, NCHW"]),
    "a layout for the embedded images": (
        ["train", "fashion-mnist", "--out", "new", "--steps", "3", "--layout", "NHWC"],
        ["--layout NHWC: only .npy and .npz files have a layout"],
    ),
    "a fit for a run": ([*EMBED, "--fit", "contain"], ["--fit"]),
    "no workers": ([*TRAIN, "--workers", "0"], ["--workers: '0'"]),
    "unknown network": ([*TRAIN, "--network", "resnet81"], ["--network: 'resnet81'", "resnet18 is the nearest"]),
    "a library without a network": ([*TRAIN, "--network", "timm:"], ["--network: 'timm:'", "which: timm:NAME"]),
    "a network of a file": ([*TRAIN, "--network", "mine/net.py:make"], ["--network", "nor package.module:factory"]),
    "a colon and a name": ([*TRAIN, "--network", ":make"], ["--network: ':make'"]),
    "weights of a native network": ([*TRAIN, "--weights", "DEFAULT"], ["--network resnet18", "file with --init-from"]),
    "weights of a factory": (
        [*TRAIN, "--network", "mine.net:make", "--weights", "DEFAULT"],
        ["--network mine.net:make", "only torchvision and timm name weights"],
    ),
    "a file for a name of weights": (
        [*TRAIN, "--network", "timm:resnet18", "--weights", "weights.safetensors"],
        ["--weights weights.safetensors", "--init-from"],
    ),
    "two kinds of weights": (
        [*TRAIN, "--network", "timm:resnet18", "--weights", "DEFAULT", "--init-from", "weights.safetensors"],
        ["--weights and --init-from", "give one of them"],
    ),
    "neither a run nor a network": (
        ["embed", "--data", "photos", "--out", "new.npz"],
        ["RUN is missing", "byol-jax train", "--network NAME"],
    ),
    "a run and a network": ([*EMBED, "--network", "resnet18"], ["either RUN or --network, not both"]),
    "two runs": ([*EMBED, "run"], ["'run' is one word too many"]),
    "another size than the run's": (
        [*EMBED, "--image-size", "8", "--weights", "DEFAULT", "--hidden-layer", "fc"],
        ["--image-size needs --network", "--weights needs --network", "--hidden-layer needs --network"],
    ),
    "projections of a network": (
        ["embed", "--network", "resnet18", "--data", "photos", "--out", "new.npz", "--project"],
        ["--project needs RUN"],
    ),
    "the target of a network": (
        ["embed", "--network", "resnet18", "--data", "photos", "--out", "new.npz", "--which", "target"],
        ["--which target needs RUN"],
    ),
    "a preview of weights alone": (
        ["preview", "photos", "--out", "new.png", "--weights", "DEFAULT"],
        ["--weights needs --network"],
    ),
    "an import into a network of torchvision": (
        ["import", "weights.safetensors", "--out", "new.safetensors", "--network", "torchvision:vgg16"],
        ["--network: 'torchvision:vgg16' is not one of resnet18"],
    ),
    "unknown preset": (
        ["train", "photos", "--out", "new", "--preset", "imagenet-30"],
        ["--preset: 'imagenet-30'", "imagenet-300 is the nearest", "small_grey"],
    ),
    "a preset of another case": ([*TRAIN, "--preset", "Imagenette"], ["imagenette is the nearest"]),
    "views by another word": ([*TRAIN, "--views", "seperate"], ["--views", "separate is the nearest"]),
    "a preset with a batch of one": (
        ["train", "photos", "--out", "new", "--preset", "imagenette", "--batch-size", "1"],
        ["--batch-size 1"],
    ),
    "a preset with Adam and its decay": (
        ["train", "photos", "--out", "new", "--preset", "imagenette", "--optimizer", "adam", "--weight-decay", "0.1"],
        ["--weight-decay", "adamw"],
    ),
    "a preset with weights of a native network": (
        ["train", "photos", "--out", "new", "--preset", "imagenette", "--weights", "DEFAULT"],
        ["--network resnet18", "file with --init-from"],
    ),
    "a preset's batch that can't be shared": (
        ["train", "photos", "--out", "new", "--preset", "small_grey", "--num-processes", "3", "--process-id", "0"],
        ["--batch-size 64 must be a multiple of --num-processes 3"],
    ),
    "unknown augmentation": ([*TRAIN, "--augment", "simcrl"], ["--augment", "simclr is the nearest"]),
    "an address without a port": ([*TRAIN, "--coordinator-address", "host"], ["--coordinator-address", "host:port"]),
    "absent data": (["train", "potos", "--out", "new", "--steps", "3"], ["'potos' doesn't exist", "'photos'"]),
    "data in an absent folder": (["train", "no/where", "--out", "new", "--steps", "3"], ["the folder 'no'"]),
    "data that is a text": (["train", "notes.txt", "--out", "new", "--steps", "3"], ["notes.txt", ".npz or .npy"]),
    "absent weights": ([*TRAIN, "--init-from", "weigths.safetensors"], ["'weights.safetensors'"]),
    "a folder for weights": ([*TRAIN, "--init-from", "photos"], ["'photos' is a folder"]),
    "out below a file": (["train", "photos", "--out", "notes.txt/new", "--steps", "3"], ["notes.txt", "is a file"]),
    "out that is a file": (["train", "photos", "--out", "notes.txt", "--steps", "3"], ["'notes.txt' is a file"]),
    "out that isn't empty": (["train", "photos", "--out", "full", "--steps", "3"], ["isn't empty", "--overwrite"]),
    "an empty path": (["train", "photos", "--out", "", "--steps", "3"], ["--out: the path is empty"]),
    "neither steps nor epochs": (["train", "photos", "--out", "new"], ["either --steps or --epochs"]),
    "steps and epochs": ([*TRAIN, "--epochs", "2"], ["either --steps or --epochs, not both"]),
    "resume and overwrite": ([*TRAIN, "--resume", "--overwrite"], ["--resume and --overwrite contradict"]),
    "a batch of one": ([*TRAIN, "--batch-size", "1"], ["--batch-size 1", "2 or more"]),
    "processes without more": ([*TRAIN, "--num-processes", "2"], ["--process-id and --coordinator-address"]),
    "a process without number of": ([*TRAIN, "--process-id", "0"], ["--process-id needs --num-processes"]),
    "a process too high": (
        [*TRAIN, "--num-processes", "2", "--process-id", "2", "--coordinator-address", "a:1"],
        ["--process-id 2 must be below --num-processes 2"],
    ),
    "a batch that can't be shared": (
        [*TRAIN, "--batch-size", "9", "--num-processes", "2", "--process-id", "0", "--coordinator-address", "a:1"],
        ["--batch-size 9 must be a multiple of --num-processes 2"],
    ),
    "parts of different sizes": ([*TRAIN, "--accumulate", "3"], ["--accumulate 3 must divide --batch-size 256"]),
    "parts of a preset's batch": (
        ["train", "photos", "--out", "new", "--preset", "small_grey", "--accumulate", "48"],
        ["--accumulate 48 must divide --batch-size 64"],
    ),
    "parts of one image": (
        [*TRAIN, "--batch-size", "8", "--accumulate", "8"],
        ["--accumulate 8 leaves 1 image of --batch-size 8 a part: give 4 or less"],
    ),
    "no parts": ([*TRAIN, "--accumulate", "0"], ["--accumulate: '0'", "above 0"]),
    "a dtype that isn't": (
        [*TRAIN, "--dtype", "bfloat61"],
        ["--dtype: 'bfloat61'", "float32", "bfloat16 is the nearest"],
    ),
    "remat with a value": ([*TRAIN, "--remat", "4"], ["4"]),
    "decay with plain Adam": ([*TRAIN, "--weight-decay", "0.1"], ["--weight-decay", "adamw"]),
    "warm-up without schedule": ([*TRAIN, "--warmup-steps", "1"], ["--warmup-steps needs --schedule cosine"]),
    "warm-up without end": ([*TRAIN, "--schedule", "cosine", "--warmup-steps", "3"], ["fewer than --steps 3"]),
    "several combinations": (
        ["train", "photos", "--out", "full", "--batch-size", "1"],
        ["either --steps or --epochs", "isn't empty", "--batch-size 1"],
    ),
    "a run that isn't there": (["evaluate", "rnu", "--data", "photos"], ["'rnu' doesn't exist", "'run'"]),
    "a folder that is no run": (["evaluate", "photos", "--data", "photos"], ["no config.json", "byol-jax train"]),
    "no data to evaluate": (["evaluate", "run"], ["--data DIR is missing"]),
    "labels for a folder": ([*EVALUATE, "--labels", "images.npy"], ["--labels with a folder"]),
    "an array without labels": (["evaluate", "run", "--data", "images.npy"], ["an .npy has no labels", "--labels"]),
    "a k twice": ([*EVALUATE, "--k", "10,20,10"], ["--k: '10,20,10' has 10 twice"]),
    "a k that is none": ([*EVALUATE, "--k", "10,,20"], ["--k: '' is not a whole number above 0"]),
    "an unknown protocol": ([*EVALUATE, "--protocol", "knn,liner"], ["'liner' is not one of", "linear is the nearest"]),
    "a protocol twice": ([*EVALUATE, "--protocol", "knn,knn"], ["--protocol: 'knn,knn' has knn twice"]),
    "a fraction of labels without fine-tuning": (
        [*EVALUATE, "--label-fraction", "0.1", "--linear-epochs", "3"],
        ["--linear-epochs is of linear: give --protocol knn,logistic,linear", "--label-fraction is of finetune"],
    ),
    "neighbours without kNN": ([*EVALUATE, "--protocol", "linear", "--k", "3"], ["--k is of knn"]),
    "no labels at all": (
        [*EVALUATE, "--protocol", "finetune", "--label-fraction", "0"],
        ["--label-fraction: '0' is not a number above 0, at most 1"],
    ),
    "a batch of one to fine-tune": (
        [*EVALUATE, "--protocol", "finetune", "--finetune-batch-size", "1"],
        ["--finetune-batch-size 1", "2 or more"],
    ),
    "no neighbours": ([*EVALUATE, "--k", "0"], ["--k: '0'"]),
    "a third network": ([*EVALUATE, "--which", "onlin"], ["--which", "online is the nearest"]),
    "embeddings in a text": ([*EMBED, "--out", "new.txt"], ["'new.txt' must end in .npz or .npy or .parquet or .csv"]),
    "embeddings over a file": ([*EMBED, "--out", "done.npz"], ["'done.npz' exists", "--overwrite"]),
    "embeddings over a folder": ([*EMBED, "--out", "full"], ["'full' is a folder"]),
    "an export to nowhere": (["export", "run"], ["--out FILE is missing"]),
    "an export to onnx": (["export", "run", "--out", "net.onnx"], ["must end in .safetensors"]),
    "an import of nothing": (["import", "absent.pt", "--out", "new.safetensors"], ["FILE: 'absent.pt' doesn't exist"]),
    "half a conversion": (["convert", "weights.safetensors"], ["OUT is missing"]),
    "a conversion over a file": (["convert", "weights.safetensors", "done.npz"], ["OUT: 'done.npz' exists"]),
    "a preview as jpeg": (["preview", "photos", "--out", "new.jpg"], ["'new.jpg' must end in .png"]),
    "a demo over a folder": (["demo", "--out", "full"], ["'full' isn't empty", "--overwrite"]),
    "steps that aren't finite": ([*TRAIN, "--steps", "1e400"], ["--steps: '1e400'"]),
    "a rate beyond all floats": ([*TRAIN, "--learning-rate", "1e400"], ["--learning-rate: '1e400'"]),
    "a decay below nought": ([*TRAIN, "--moving-average-decay", "-1e-3"], ["--moving-average-decay"]),
    "a rate of minus nought": ([*TRAIN, "--learning-rate=-0.0"], ["--learning-rate: '-0.0'"]),
    "an empty number": ([*TRAIN, "--steps", ""], ["--steps: ''"]),
    "a very long number": ([*TRAIN, "--seed", "9" * 5000], ["--seed"]),
    "a name longer than any file's": (["train", "a" * 300, "--out", "new", "--steps", "3"], ["File name too long"]),
    "an image size of nothing by nothing": ([*TRAIN, "--image-size", "x"], ["--image-size: 'x'"]),
    "a pipe for weights": ([*TRAIN, "--init-from", "pipe.pt"], ["'pipe.pt' is a pipe"]),
    "a pipe for labels": (
        ["evaluate", "run", "--data", "images.npy", "--labels", "pipe.pt"],
        ["--labels: 'pipe.pt' is a pipe"],
    ),
    "a device for data": (["train", "/dev/zero", "--out", "new", "--steps", "3"], ["/dev/zero"]),
    "a link that leads to itself": (
        ["train", "loop.npy", "--out", "new", "--steps", "3"],
        ["'loop.npy' doesn't exist"],
    ),
    "a line break in a network's name": (
        [*TRAIN, "--network", "small\ncnn"],
        ["--network", "small_cnn is the nearest"],
    ),
    "an option of another": (["env", "--jsno"], ["--jsno is not an option", "--json is the nearest"]),
}


def _snapshot(folder):
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_call(call, files, name):
    words, expected = WRONG[name]
    before = _snapshot(files)
    answer = call(*words)
    assert answer.code == 2
    assert answer.out == ""
    assert answer.complaint.startswith("byol-jax")
    for part in expected:
        assert part in answer.complaint
    assert _snapshot(files) == before


LOAD_NOTHING = """
import sys
from test_wrong_calls import WRONG
from byol_jax.cli.main import main
codes = {main(words) for words, _ in WRONG.values()}
print(codes, {"jax", "flax", "optax", "torch", "numpy", "PIL", "interop"} & set(sys.modules))
"""


def test_no_wrong_call_loads_what_only_the_work_needs(files):
    """No JAX, hence no device touched; all of them in one process, so none of them loads anything."""
    before = _snapshot(files)
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", LOAD_NOTHING], capture_output=True, text=True, env=environment)
    assert done.stdout == "{2} set()\n", done.stderr[-2000:]
    assert len(done.stderr.splitlines()) == len(WRONG)
    assert _snapshot(files) == before


def test_debug_adds_a_traceback(call, files):
    answer = call(*TRAIN, "--steps", "0", "--debug")
    assert answer.code == 2
    assert "Traceback" in answer.err
    assert "--steps: '0'" in answer.err.splitlines()[-1]


def test_debug_may_stand_before_the_command(call, files):
    assert "Traceback" in call("--debug", *TRAIN, "--steps", "0").err


def test_a_line_break_in_a_name_stays_in_one_line(call, files):
    assert "one two" in call("train", "one\ntwo", "--out", "new", "--steps", "3").complaint.replace("\\n", " ")


def test_a_folder_that_cannot_be_written(call, files, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere, and tests may run as root
    assert "no permission to write" in call("train", "photos", "--out", "new", "--steps", "3").complaint
