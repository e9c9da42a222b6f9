"""Load exports of a run on pooled features where fedsvd is not installed, and print their logits."""

import json
import sys

from load_exports import Blocked


def main(root: str, texts: list[str]) -> None:
    import torch
    from peft import AutoPeftModelForSequenceClassification, PeftModel
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    stock = AutoModelForSequenceClassification.from_pretrained
    models = {
        "merged": stock(f"{root}/merged"),
        "adapter": PeftModel.from_pretrained(stock(f"{root}/adapter/base"), f"{root}/adapter"),
        "adapter by its path": AutoPeftModelForSequenceClassification.from_pretrained(f"{root}/adapter"),
    }
    found = {"sentence": SentenceTransformer(f"{root}/sentence", device="cpu").encode(texts).tolist()}
    for name, model in models.items():
        batch = AutoTokenizer.from_pretrained(f"{root}/{name.split()[0]}")(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            found[name] = model.eval()(**batch).logits.tolist()
    found["labels"] = [models["merged"].config.id2label[index] for index in range(2)]
    found["dropout"] = models["merged"].config.hidden_dropout_prob
    print(json.dumps(found))


if __name__ == "__main__":
    sys.meta_path.insert(0, Blocked())
    main(sys.argv[1], json.loads(sys.argv[2]))
