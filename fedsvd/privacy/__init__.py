"""Differential privacy and its audit: accounting, the client's ledger, DP-SGD, noise, canaries and audit bounds."""
