"""The documentation's commands of fedsvd, run one after the other: as they stand, but on few texts and a tiny model."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_model import save_chat_model
from documented import ALL, ROOT
from transformers import AutoModel, AutoTokenizer

from fedsvd.cli import main
from fedsvd.models.embedded import resolve_source

pytestmark = pytest.mark.slow

# What only another place has: said in docs/limits.md where nothing else has run it.
ELSEWHERE = {
    "device=cuda": "a GPU",
    "data=dolly": "the model hub",
    "federation=remote": "a federation: tests/integration has one",
    "backups/": "a backup of a node's ledger",
    "--new-account": "a node's ledger: tests/client has one",
    "fedsvd compare": "tests/integration/test_compare.py",
    "experiment=paper/": "tests/integration/test_paper.py",
    "fedsvd trainer": "a real node: tests/unit/trainer",
    "model.quantization=": "bitsandbytes: tests/quantization",
    "data=chitchat": "the unit tests of its conversations, and tests/integration for others",
    "runs/smollm2": "a run with a quantized model: tests/quantization",
    "fedsvd watch": "tests/unit/watch",
    "lerning_rate": "an error that is shown",
    "target_epsilon=-1": "an error that is shown",
}
SMALL = {
    "model": "tiny", "data.max_train_examples": "240", "data.max_test_examples": "40", "train.num_rounds": "1",
    "train.local_steps": "1", "train.batch_size": "16", "federation.num_clients": "2", "privacy.accountant": "rdp",
    "plots": "false",
}  # fmt: skip
IN_SMALL = {
    "experiment=demo": "experiment=smoke", "model=smollm2": "model=tiny_llama", "seed=0,1,2,3,4": "seed=0",
    "privacy.target_epsilon=1,3,6": "privacy.target_epsilon=3,6",
    # The runs without privacy in docs/comparison.md.
    "train.local_steps=176": "train.local_steps=1", "train.num_rounds=6": "train.num_rounds=1",
    "train.local_steps=133": "train.local_steps=1", "train.num_rounds=5": "train.num_rounds=1",
    # The runs of SmolLM2 in docs/large_models.md.
    "data.max_train_examples=null": "data.max_train_examples=240", "train.batch_size=500": "train.batch_size=16",
    "data.max_test_examples=500": "data.max_test_examples=40",
}  # fmt: skip
# The tiny model has two layers.
POOLED = ["model.pooling_layer=1", "federation.num_clients=4"]
ADDED = {
    "experiment=best": POOLED, "experiment=best_large": POOLED, "experiment=shared_noise": POOLED,
    "data.messages_column=messages": ["model.source=models/chat"],
    "experiment=causal_lm": ["model=tiny_llama"],
    "experiment=epsilon_sweep": ["seed=0", "method=fedsvd", *POOLED],
    "experiment=tune": ["hydra.sweeper.n_trials=2", *POOLED],
}  # fmt: skip


def here(words: list[str]) -> bool:
    return words[0].removeprefix(".venv/bin/") == "fedsvd" and not any(mark in " ".join(words) for mark in ELSEWHERE)


def small(command: str, words: list[str]) -> list[str]:
    """Cut a command down to a few texts, one round and a tiny model, where it does not say otherwise itself."""
    if command == "train" and "data.messages_column=messages" in words:
        words = [*words, "hydra.run.dir=runs/chats"]
    if command not in ("train", "audit") or any(word.startswith("resume=") or word == "--cfg" for word in words):
        return words
    words = [IN_SMALL.get(word, word) for word in words]
    given = {word.partition("=")[0] for word in words}
    if any(word.startswith(("experiment=smoke", "experiment=paper")) for word in words):
        given |= SMALL.keys() - {"train.num_rounds", "data.max_train_examples", "plots"}
    if command == "audit":
        shadows = 4 if "audit.num_shadow_models" in given else 0
        words = [*words, "audit.num_canaries=20", f"audit.num_shadow_models={shadows}"]
        words = list({word.partition("=")[0]: word for word in words}.values())
    added = [more for word in words for more in ADDED.get(word, [])]
    given |= {word.partition("=")[0] for word in added}
    cut = [f"{key}={value}" for key, value in SMALL.items() if key not in given]
    return [*words, *added, *cut]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the files, the run and the sweep that the pages speak of."""
    folder, before = tmp_path_factory.mktemp("docs"), Path.cwd()
    os.chdir(folder)
    write_data()
    tiny = resolve_source("embedded:tiny")
    AutoModel.from_pretrained(tiny).save_pretrained("models/my-bert")
    AutoTokenizer.from_pretrained(tiny).save_pretrained("models/my-bert")
    save_chat_model(Path("models/chat"))
    assert main(["train", "experiment=smoke", "hydra.run.dir=runs/made"]) == 0
    pairs = ["data=jsonl", "data.path=pairs.jsonl", "data.text_pair_column=note", "partition=iid"]
    assert main(["train", "experiment=smoke", "plots=false", *pairs, "hydra.run.dir=runs/paired"]) == 0
    assert main(["train", "-m", "experiment=smoke", "plots=false", "seed=0,1", "hydra.sweep.dir=runs/swept"]) == 0
    shutil.copy("runs/made/clients/0/ledger.sqlite", "ledger.sqlite")
    subprocess.run([sys.executable, str(ROOT / "scripts" / "certs.py"), "--folder", "certs"], check=True)
    try:
        yield folder
    finally:
        os.chdir(before)


def write_data() -> None:
    """Write the files of the pages' commands into the working directory."""
    texts = [f"a {'fine' if number % 2 else 'dull'} case, number {number}" for number in range(240)]
    rows = [
        {"text": text, "note": text, "question": text, "reply": text[::-1], "answer": text[:6], "clinic": f"c{n % 3}",
         "urgency": ("low", "high")[n % 2], "helpful": n % 2, "label": ("negative", "positive")[n % 2],
         "stars": 1 + n % 5, "topics": ("billing;delays", "delays")[n % 2], "tokens": text.split(),
         "tags": ["O", "B-KIND", "I-KIND", *["O"] * (len(text.split()) - 3)],
         "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "noted"}]}
        for n, text in enumerate(texts)
    ]  # fmt: skip
    for name in ("pairs", "own", "qa", "chats", "names", "reviews"):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("notes.jsonl").write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows))
    for name in ("notes", "own", "tickets"):
        keys = [key for key, value in rows[0].items() if not isinstance(value, list)]
        lines = [",".join(f'"{row[key]}"' for key in keys) for row in rows]
        Path(f"{name}.csv").write_text("\n".join([",".join(keys), *lines]) + "\n")
    Path("texts.txt").write_text("\n".join(texts[:3]) + "\n")


# Optuna 2, which Hydra's sweeper needs, is written for a SQLAlchemy before the one that Flower brings.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("line", dict.fromkeys(shlex.join(words) for _, words in ALL if here(words)))
def test_the_command_runs(line: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["fedsvd"])
    words = shlex.split(line)
    made = "runs/chats" if {"chats.jsonl", "--stream"} & {*words} else "runs/made"
    made = "runs/paired" if "--text-pair" in words else made
    names = {"RUN_DIR": made, "SWEEP_DIR": "runs/swept", "RUN_OR_SWEEP_DIR…": "runs/swept"}
    for name in sorted(names, key=len, reverse=True):
        words = [word.replace(name, names[name]) for word in words]
    assert main([words[1], *small(words[1], words[2:])]) == 0
