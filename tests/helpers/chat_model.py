"""The embedded tiny language model with a chat template, saved like a checkpoint."""

from pathlib import Path

from fedsvd.models.loading import load_causal_lm, load_tokenizer

# BERT's tokens for the end of a turn; no start or end token besides.
TEMPLATE = (
    "{% for m in messages %}{{ '[MASK] ' + m.role + ' : ' + m.content + ' [SEP]\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[MASK] assistant : ' }}{% endif %}"
)


def save_chat_model(folder: Path) -> str:
    """Save the model and its tokenizer, and return the directory."""
    tokenizer = load_tokenizer("embedded:tiny-llama")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    load_causal_lm("embedded:tiny-llama").model.save_pretrained(folder)
    return str(folder)
