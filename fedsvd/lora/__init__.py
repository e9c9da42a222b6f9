"""LoRA adapters and their linear algebra. Only the modules `peft_model` and `site` use PEFT's internals."""
