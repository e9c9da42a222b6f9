"""Load exported models without fedsvd, and print their outputs for texts as JSON."""

import importlib
import json
import sys
from contextlib import suppress


class Blocked:
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in ("fedsvd", "server", "client"):
            raise ImportError(f"{name} is blocked")


def main(root: str, texts: list[str]) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    outputs = {}
    for kind, load in {
        "classifier-merged": AutoModelForSequenceClassification.from_pretrained,
        # With PEFT installed, transformers loads the base model in the subdirectory as well.
        "classifier-adapter": AutoModelForSequenceClassification.from_pretrained,
        "answerer-merged": AutoModelForCausalLM.from_pretrained,
        "answerer-adapter": AutoPeftModelForCausalLM.from_pretrained,
    }.items():
        model, tokenizer = load(f"{root}/{kind}").eval(), AutoTokenizer.from_pretrained(f"{root}/{kind}")
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        outputs[kind] = (logits if logits.dim() == 2 else logits[:, 0, :8]).tolist()
        outputs[kind + " labels"] = getattr(model.config, "id2label", None)
        outputs[kind + " dropout"] = getattr(model.config, "hidden_dropout_prob", None)
    print(json.dumps(outputs))


if __name__ == "__main__":
    sys.meta_path.insert(0, Blocked())
    with suppress(ImportError):
        importlib.import_module("fedsvd")
        raise SystemExit("fedsvd is here")
    main(sys.argv[1], json.loads(sys.argv[2]))
