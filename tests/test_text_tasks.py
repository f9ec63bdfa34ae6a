"""The text tasks: what the models read and answer, and training and scoring with every adapter."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("datasets")

import evalkit
from evalkit.checkpoints import open_trajectory, trajectory_task
from evalkit.cli import main
from evalkit.settings import Settings
from evalkit.storage.run_folder import read_run
from evalkit.study.running import run_study
from evalkit.tasks import Samples, Task, load_task
from evalkit.tasks.pretrained import load_tokenizer
from evalkit.training.loop import train
from tests.support import hub

pytestmark = pytest.mark.usefixtures("own_data_cache")

IGNORED = -100


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.save_glue(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {"bert": hub.save_bert(place / "bert"), "t5": hub.save_t5(place / "t5")}


def made(name: str, model: Path, data: Path, **settings: object) -> Task:
    return load_task(name, {"model": str(model), "data": str(data), **settings})


def taken(samples: Samples | None, count: int = 4) -> tuple[dict[str, Tensor], Tensor]:
    assert samples is not None
    inputs, targets = samples.take(slice(count))
    assert isinstance(inputs, dict)
    return inputs, targets


# --- what models read and answer ---------------------------------------------------------------

ASKED = {
    "cola": "Say whether the grammar of this sentence is acceptable or unacceptable. "
    "sentence of row 1 and more",
    "sst2": "Say whether the opinion in this sentence is positive or negative. "
    "sentence of row 1 and more",
    "qqp": "Answer yes if these two questions ask the same, no if they do not. "
    "Q1: question1 of row 1 and more Q2: question2 of row 1 and more",
    "mrpc": "Answer yes if these two sentences mean the same, no if they do not. "
    "S1: sentence1 of row 1 and more S2: sentence2 of row 1 and more",
    "mnli": "Answer yes, maybe or no: does the hypothesis follow from the premise? "
    "premise: premise of row 1 and more hypothesis: hypothesis of row 1 and more",
    "qnli": "Answer yes if the sentence answers the question, no if it does not. "
    "Q: question of row 1 and more S: sentence of row 1 and more",
    "rte": "Answer yes if the second sentence follows from the first, no if it does not. "
    "S1: sentence1 of row 1 and more S2: sentence2 of row 1 and more",
}
ANSWERED = {
    "cola": ["unacceptable", "acceptable"],
    "sst2": ["negative", "positive"],
    "qqp": ["no", "yes"],
    "mrpc": ["no", "yes"],
    "mnli": ["yes", "maybe", "no"],
    "qnli": ["yes", "no"],
    "rte": ["yes", "no"],
}


@pytest.mark.parametrize("name", hub.GLUE)
def test_text_to_text_inputs_and_label_words(
    name: str, models: dict[str, Path], glue: Path
) -> None:
    task = made(f"glue-{name}", models["t5"], glue)
    tokenizer = load_tokenizer(str(models["t5"]))
    inputs, targets = taken(task.training_samples(), 3)
    assert set(inputs) == {"input_ids", "attention_mask", "decoder_input_ids"}
    texts = tokenizer.batch_decode(inputs["input_ids"], skip_special_tokens=True)
    assert texts[1] == ASKED[name]
    answers = [tokenizer.decode(row[row != IGNORED]) for row in targets]
    words = ANSWERED[name]
    assert answers == [f"{words[i % len(words)]}</s>" for i in range(3)]
    validation = task.validation_samples()
    assert validation is not None
    assert len(validation) == hub.VALIDATION_ROWS
    assert task.recipe.epochs == {"qqp": 5, "mnli": 5, "qnli": 15, "mrpc": 30, "rte": 40}.get(
        name, 20
    )


@pytest.mark.parametrize("name", hub.GLUE)
def test_encoders_read_pairs_and_answer_classes(
    name: str, models: dict[str, Path], glue: Path
) -> None:
    task = made(f"glue-{name}", models["bert"], glue, adapter="none")
    tokenizer = load_tokenizer(str(models["bert"]))
    inputs, targets = taken(task.training_samples(), 3)
    assert set(inputs) == {"input_ids", "attention_mask", "token_type_ids"}
    first, *second = (f"{column} of row 1 and more" for column in hub.GLUE[name])
    expected = f"[CLS]{first}[SEP]" + "".join(f"{text}[SEP]" for text in second)
    read = inputs["attention_mask"][1].bool()
    assert tokenizer.decode(inputs["input_ids"][1][read]) == expected
    assert set(inputs["token_type_ids"][1][read].tolist()) == set(range(len(hub.GLUE[name])))
    assert targets.tolist() == [i % len(ANSWERED[name]) for i in range(3)]
    with torch.no_grad():
        assert task.build_model(0)(**inputs).logits.shape == (3, len(ANSWERED[name]))


def test_an_instruction_of_ones_own(models: dict[str, Path], glue: Path) -> None:
    task = made("glue-rte", models["t5"], glue, instruction="rte")
    inputs, _ = taken(task.training_samples(), 1)
    text = load_tokenizer(str(models["t5"])).decode(inputs["input_ids"][0])
    assert text == "rte S1: sentence1 of row 0 S2: sentence2 of row 0</s>"


@pytest.mark.parametrize("labels", ["all", "first"])
def test_which_label_tokens_count(labels: str, models: dict[str, Path], glue: Path) -> None:
    samples = made("glue-cola", models["t5"], glue, labels=labels).training_samples()
    tokenizer = load_tokenizer(str(models["t5"]))
    words = [tokenizer(word)["input_ids"] for word in ANSWERED["cola"]]
    words = [word[:1] for word in words] if labels == "first" else words
    width = max(map(len, words))
    assert (width == 1) == (labels == "first")
    rows = [word + [IGNORED] * (width - len(word)) for word in words]
    assert samples.targets.tolist() == [rows[i % 2] for i in range(hub.ROWS)]
    # The decoder has read the start, and then what it should have answered so far.
    start = pad = tokenizer.pad_token_id
    before = [[start, *(pad if token == IGNORED else token for token in row[:-1])] for row in rows]
    assert isinstance(samples.inputs, dict)
    assert samples.inputs["decoder_input_ids"].tolist() == [before[i % 2] for i in range(hub.ROWS)]


def test_the_decoder_is_fed_as_the_model_itself_does(models: dict[str, Path], glue: Path) -> None:
    task = made("glue-cola", models["t5"], glue, adapter="none")
    model = task.build_model(0).eval()
    inputs, targets = taken(task.training_samples())
    with torch.no_grad():
        logits = model(**inputs).logits
        fed = {name: value for name, value in inputs.items() if name != "decoder_input_ids"}
        assert torch.equal(logits, model(**fed, labels=targets).logits)


def test_some_samples_and_cut_inputs(models: dict[str, Path], glue: Path) -> None:
    whole, some = (
        made("glue-sst2", models["bert"], glue, samples=count).training_samples()
        for count in (0, 5)
    )
    again = made("glue-sst2", models["bert"], glue, samples=5).training_samples()
    assert len(whole) == hub.ROWS
    assert [len(some), len(again)] == [5, 5]
    assert torch.equal(some.inputs["input_ids"], again.inputs["input_ids"])
    cut = made("glue-sst2", models["bert"], glue, max_length=4).training_samples()
    assert cut.inputs["input_ids"].shape == (hub.ROWS, 4)


def test_a_tokenizer_of_another_folder(models: dict[str, Path], glue: Path, tmp_path: Path) -> None:
    bare = tmp_path / "model"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((models["bert"] / name).read_bytes())
    task = made("glue-cola", bare, glue, tokenizer=str(models["bert"]))
    expected = made("glue-cola", models["bert"], glue).training_samples()
    found = task.training_samples()
    assert torch.equal(found.inputs["input_ids"], expected.inputs["input_ids"])


# --- trimming ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "adapter"), [("bert", "lora"), ("bert", "prompt"), ("t5", "lora"), ("t5", "prompt")]
)
def test_trimming_changes_no_score(
    kind: str, adapter: str, models: dict[str, Path], glue: Path
) -> None:
    task = made("glue-cola", models[kind], glue, adapter=adapter)
    samples = task.training_samples()
    # Short sentences, and of two label words the shorter.
    chosen = torch.tensor([i for i in range(hub.ROWS) if i % 4 == 1])
    trimmed = samples.take(chosen)
    whole = Samples(samples.inputs, samples.targets).take(chosen)
    assert trimmed[0]["input_ids"].shape[1] < whole[0]["input_ids"].shape[1]
    assert (kind == "bert") or trimmed[1].shape[1] < whole[1].shape[1]
    model = moved(task.build_model(0).eval())
    tables = [
        evalkit.score(
            model, *batch, methods=("sgd", "ef", "ief"), damping=1e-3, seed=0, dtype="float64"
        )
        for batch in (trimmed, whole)
    ]
    for column in ("gamma", "ratio", "efficiency", "norm", "slope"):
        found, expected = (table[column].tolist() for table in tables)
        assert found == pytest.approx(expected, rel=1e-9)


def moved(model: nn.Module) -> nn.Module:
    """The model with adapters that change something: fresh ones of LoRA do not."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


# --- training and scoring ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "adapter"),
    [("bert", "lora"), ("bert", "prompt"), ("bert", "none"), ("t5", "lora"), ("t5", "prompt")],
)
def test_what_is_trained_is_scored_from_disk(
    kind: str, adapter: str, models: dict[str, Path], glue: Path, tmp_path: Path
) -> None:
    name = "glue-mnli" if kind == "bert" else "glue-cola"
    task = made(name, models[kind], glue, adapter=adapter)
    folder = tmp_path / "checkpoints"
    train(task, folder=folder, epochs=2, batch_size=8)
    trajectory = open_trajectory(folder)
    assert trajectory.is_adapter == (adapter != "none")
    assert [checkpoint.progress for checkpoint in trajectory.checkpoints] == [0.0, 0.5, 1.0]
    again = trajectory_task(trajectory)
    assert again.settings == task.settings
    methods = ("sgd", "ef", "ief", "sf")
    run_study(trajectory, again, Settings(methods, batches=2, batch_size=6), tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert len(run.scores) == 3 * 2 * len(methods)
    assert run.scores["gamma"].map(math.isfinite).all()
    # The adapters moved, and so did the scores on the same batch.
    plain = run.scores[(run.scores["method"] == "sgd") & (run.scores["batch"] == 0)]
    assert plain["gamma"].nunique() == 3
    if adapter != "none":
        saved = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        assert saved < 3 * (models[kind] / "model.safetensors").stat().st_size


def test_one_command_each(models: dict[str, Path], glue: Path, tmp_path: Path) -> None:
    folder, run = tmp_path / "checkpoints", tmp_path / "run"
    settings = [f"model={models['bert']}", f"data={glue}", "samples=12"]
    chosen = [part for text in settings for part in ("--set", text)]
    options = ["--epochs", "1", "--batch-size", "6", "--out", str(folder)]
    assert main(["train", "glue-rte", *chosen, *options]) == 0
    # The checkpoints remember the settings.
    batches = ["--batches", "1", "--batch-size", "12"]
    assert main(["score", str(folder), *batches, "--out", str(run)]) == 0
    assert read_run(run).batches["num_samples"].tolist() == [12, 12]
