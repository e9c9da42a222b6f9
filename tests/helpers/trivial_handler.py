"""A handler for trainers without a model: it does what the message says, and replies with what it has seen."""

import atexit
import ctypes
import logging
import os
import sys
import time
import warnings
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict

import fedsvd
from fedsvd.errors import DataError

messages = 0


def answer(message: Message, context: Context) -> Message:
    global messages
    messages += 1
    context.state["seen"] = ConfigRecord({"messages": messages})
    action = str(message.content.config_records["task"]["action"])
    if action == "abort":
        print("a private text", flush=True)
        os.abort()
    elif action == "leave":
        print("a private text", flush=True)
        os._exit(3)
    elif action == "hang":
        time.sleep(600)
    elif action == "hold":
        # With the lock of the interpreter, so that no other thread of it runs.
        ctypes.PyDLL(None).sleep(600)
    elif action == "end slowly":
        atexit.register(time.sleep, 0.7)
    elif action == "refuse":
        raise DataError("no rows")
    elif action == "fail":
        raise ZeroDivisionError("by zero")
    elif action == "log":
        logging.getLogger("client.anything").warning("%d rows", 5)
        logging.getLogger("client.anything").info("nobody asked")
        logging.getLogger("flwr").error("of Flower")
        warnings.warn("a warning", stacklevel=1)
    place = {"cwd": str(Path.cwd()), "library": fedsvd.__file__, "preloaded": "opacus" in sys.modules}
    seen = ConfigRecord({"pid": os.getpid(), "messages": messages, **place})
    return Message(RecordDict({"seen": seen}), reply_to=message)
