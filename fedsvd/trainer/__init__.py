"""A node's trainer: a process that keeps model, tokenizer, data and caches from message to message.

On real nodes, Flower starts a new ClientApp process for each message. That process imports neither torch nor
transformers; it passes the message to its node's trainer (`connection`) over a Unix socket (`protocol`, `sockets`). The
trainer (`service`) answers one message at a time and ends with its executor (`watcher`) or when it has been idle.
"""
