"""LoRA adapters and their linear algebra. `peft_model` and `site` are the only modules that use PEFT's internals."""
