"""A finished run: load its model, predict, evaluate, export, and write its model card."""
