"""Flower's services, with one line in the log instead of one per attempt while a connection is lost."""
