"""Example-level differential privacy on the client: accounting, the durable ledger, and DP-SGD through Opacus."""
