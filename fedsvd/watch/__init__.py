"""A page on this machine that shows a run while it is in progress."""
