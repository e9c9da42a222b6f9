"""After training: predict, evaluate and export, and loading the exports without fedsvd."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

import fedsvd
from fedsvd.cli import main
from fedsvd.runs.folder import read_rows
from fedsvd.trained.prediction import predict
from fedsvd.trained.run import load_trained_model, read_run

pytestmark = pytest.mark.slow

LOAD_SCRIPT = Path(__file__).with_name("load_exports.py")
TEXTS = ["A fine film.", "Dull, dull, dull.", "See it [twice] if you can."]


def train(folder: Path, *overrides: str) -> Path:
    fedsvd.train("experiment=smoke", "plots=false", *overrides, run_dir=folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # FedEx-LoRA merges updates into the frozen weights, which exports must include.
    return train(
        tmp_path_factory.mktemp("runs") / "classifier",
        "method=fedex_lora", "train.head=private", "train.learning_rate=2", "train.eval_every=2",
    )  # fmt: skip


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(
        tmp_path_factory.mktemp("runs") / "answerer",
        "model=tiny_llama", "privacy=none", "train.packing=true", "train.learning_rate=0.5",
        "data.prompt_template='Review: {text} Is it {choices}?'",
    )  # fmt: skip


@pytest.fixture(scope="module")
def exports(classifier: Path, answerer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exports")
    for name, folder in (("classifier", classifier), ("answerer", answerer)):
        assert main(["export", str(folder), "--to", str(root / f"{name}-merged"), "--merge"]) == 0
        assert main(["export", str(folder), "--to", str(root / f"{name}-adapter")]) == 0
    return root


def test_language_model_run_reports_perplexity_and_sample_answers(answerer: Path) -> None:
    rows = read_rows(answerer / "metrics.jsonl")
    samples = json.loads((answerer / "samples.json").read_text())

    assert all(row["perplexity"] == pytest.approx(math.exp(row["loss"])) for row in rows)
    assert rows[-1]["perplexity"] < 0.9 * rows[0]["perplexity"]
    assert len(samples) == 5
    assert all(row["expected"] in ("negative", "positive") for row in samples)
    assert all(row["prompt"].endswith("Is it negative, positive?") for row in samples)
    assert [row["before"] for row in samples] != [row["generated"] for row in samples]


def test_predict_prints_classes_and_probabilities(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [argument for text in TEXTS for argument in ("--text", text)]
    capsys.readouterr()
    assert main(["predict", str(classifier), *arguments, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert [row["text"] for row in rows] == TEXTS
    for row in rows:
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-6)
        assert row["probabilities"][row["label"]] == row["probability"] == max(row["probabilities"].values())
    loaded = load_trained_model(read_run(classifier))
    assert [row["label"] for row in predict(loaded, TEXTS, batch_size=1)] == [row["label"] for row in rows]


def test_predict_reads_files_and_prints_answers(
    answerer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n\n", encoding="utf-8")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))

    outputs = []
    capsys.readouterr()
    for name in ("texts.txt", "texts.jsonl"):
        assert main(["predict", str(answerer), "--file", str(tmp_path / name), "--json"]) == 0
        outputs.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])

    assert outputs[0] == outputs[1]
    assert [row["text"] for row in outputs[0]] == TEXTS
    answer = outputs[0][2]["answer"]
    assert answer
    for options in (["--stream"], []):
        assert main(["predict", str(answerer), "--text", TEXTS[2], *options]) == 0
        assert capsys.readouterr().out.split("  ← ")[0].split() == answer.split()


@pytest.mark.parametrize("name", ["classifier", "answerer"])
def test_evaluation_on_the_runs_data_matches_the_server(
    name: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = request.getfixturevalue(name)
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--json"]) == 0
    result, last = json.loads(capsys.readouterr().out), read_rows(folder / "metrics.jsonl")[-1]

    assert result["accuracy"] == pytest.approx(last["accuracy"], abs=1e-9)
    assert result["metrics"] == pytest.approx({key: last[key] for key in result["metrics"]}, abs=1e-4)
    assert ("auroc" in result["metrics"]) == (name == "classifier")
    assert result["loss"] == pytest.approx(last["loss"], abs=1e-5)
    assert result["num_examples"] == 100
    assert sum(score["num_examples"] for score in result["classes"]) in (0, 100)


def test_the_model_of_the_best_round_is_evaluated_predicted_and_exported(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(classifier, folder)
    # A model that is known, unlike that of a round with secret noise: all classes are equally probable.
    weights = folder / "adapter-best" / "adapter_model.safetensors"
    save_file({name: torch.zeros_like(t) for name, t in load_file(weights).items()}, weights, metadata={"format": "pt"})
    capsys.readouterr()

    assert main(["evaluate", str(folder), "--best", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert "It was chosen on these texts, so this figure is optimistic" in printed.err
    assert main(["predict", str(folder), "--best", "--text", TEXTS[0], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["probability"] == pytest.approx(0.5)
    assert main(["export", str(folder), "--best", "--to", str(tmp_path / "best")]) == 0
    assert not any(tensor.any() for tensor in load_file(tmp_path / "best" / "adapter_model.safetensors").values())
    assert not (tmp_path / "best" / "best_round.json").exists()
    card = (tmp_path / "best" / "README.md").read_text()
    assert "This is the model of round " in card
    assert "the round of adapter-best/ was chosen by them" in card

    shutil.rmtree(folder / "adapter-best")
    assert main(["evaluate", str(folder), "--best"]) == 1
    assert "holds no adapter of a best round" in capsys.readouterr().err


def test_other_data_is_matched_by_class_name(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The first class of the file is the second one of the model.
    labels = ["positive", "positive", "negative"]
    own = [{"text": f"{text} {i}", "label": labels[i % 3]} for i in range(10) for text in TEXTS]
    Dataset.from_list(own).to_csv(tmp_path / "own.csv")
    overrides = ["data=csv", f"data.path={tmp_path / 'own.csv'}", "data.max_train_examples=null", "--all", "--json"]
    capsys.readouterr()
    assert main(["evaluate", str(classifier), *overrides]) == 0
    result = json.loads(capsys.readouterr().out)

    loaded = load_trained_model(read_run(classifier))
    guesses = [row["label"] for row in predict(loaded, [row["text"] for row in own])]
    right = sum(guess == row["label"] for guess, row in zip(guesses, own, strict=True))
    assert result["num_examples"] == len(own)
    assert result["accuracy"] == pytest.approx(right / len(own))
    assert {score["name"]: score["num_examples"] for score in result["classes"]} == {"negative": 9, "positive": 21}
    assert 2 * right != len(own)


def test_exports_load_without_fedsvd(exports: Path, classifier: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", str(LOAD_SCRIPT), str(exports), json.dumps(TEXTS)]
    completed = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    outputs = json.loads(completed.stdout)

    for name in ("classifier", "answerer"):
        merged, adapter = (torch.tensor(outputs[f"{name}-{kind}"]) for kind in ("merged", "adapter"))
        torch.testing.assert_close(merged, adapter, atol=1e-4, rtol=1e-4)
    for kind in ("merged", "adapter"):
        assert outputs[f"classifier-{kind} labels"] == {"0": "negative", "1": "positive"}
    # Training disables the base model's dropout; the export restores it for further training.
    assert outputs["classifier-merged dropout"] == 0.1
    chances = torch.tensor(outputs["classifier-merged"]).softmax(-1)
    own = [list(row["probabilities"].values()) for row in predict(load_trained_model(read_run(classifier)), TEXTS)]
    torch.testing.assert_close(chances, torch.tensor(own), atol=1e-4, rtol=1e-4)


def test_merged_export_differs_from_its_base_model(exports: Path, answerer: Path) -> None:
    from fedsvd.models.loading import load_causal_lm

    base = load_causal_lm("embedded:tiny-llama").model.state_dict()
    merged = load_file(exports / "answerer-merged" / "model.safetensors")
    changed = [name for name, weight in merged.items() if not torch.equal(weight, base[name])]

    assert changed
    assert all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in changed)


def test_model_card_shows_loading_code_and_the_privacy_guarantee(exports: Path, classifier: Path) -> None:
    merged = (exports / "classifier-merged" / "README.md").read_text(encoding="utf-8")
    spent = max(row["epsilon"] for row in read_rows(classifier / "metrics.jsonl") if row["epsilon"])

    assert merged.startswith("---\nlibrary_name: transformers\npipeline_tag: text-classification\n")
    assert 'AutoModelForSequenceClassification.from_pretrained("FOLDER")' in merged
    assert f"ε = {math.ceil(spent * 100 - 1e-9) / 100:.2f}" in merged
    assert "δ = 1e-05" in merged
    assert re.search(r"federated learning over \d+ clients; their data stayed where they were", merged)
    adapter = (exports / "answerer-adapter" / "README.md").read_text(encoding="utf-8")
    assert 'AutoPeftModelForCausalLM.from_pretrained("FOLDER", dtype="float32")' in adapter
    assert "without differential privacy" in adapter


def test_export_does_not_overwrite_files(classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["export", str(classifier), "--to", str(tmp_path)]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict"], "the following arguments are required: RUN_DIR"),
        (["predict", "RUN"], "exactly one of --text and --file is required"),
        (["predict", "RUN", "--text", "a", "--text-pair", "b", "--text-pair", "c"], "1 --text and 2 --text-pair"),
        (["predict", "RUN", "--text", "a", "--text-pair", "b"], "expects single texts"),
        (["predict", "RUN", "--file", "nowhere.txt"], "cannot be read as text"),
        (["predict", "/nowhere", "--text", "a"], "is /nowhere a run directory?"),
        (["evaluate", "RUN", "model.rank=2"], "fedsvd evaluate does not accept model.rank=2"),
        (["evaluate", "RUN", "--all"], "--all is invalid for the run's own data"),
        (["evaluate", "RUN", "data=bbc_news"], "the model knows negative, positive"),
        (["export", "RUN"], "the following arguments are required: --to"),
        (["export", "RUN", "--too", "x"], "fedsvd export RUN_DIR --to DIR"),
    ],
)
def test_invalid_arguments_give_a_readable_error(
    arguments: list[str], message: str, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(classifier) if argument == "RUN" else argument for argument in arguments]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
