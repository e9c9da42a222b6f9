"""Data of the sites of a deployment."""

import json
from pathlib import Path

import pandas

FILES = {0: "site.csv", 1: "site.jsonl", 2: "site.parquet"}


def write_site_data(folder: Path, number: int) -> None:
    """Write a site's data. Sites differ in size and file format, and the last one in its column names.

    The first two have conversations, too.
    """
    rows = [
        (f"case {number}.{i}: the stay was {word}", word) for i in range(20 + 8 * number) for word in ("fine", "poor")
    ]
    frame = pandas.DataFrame(rows, columns=["report", "outcome"] if number == 2 else ["text", "label"])
    folder.mkdir(parents=True)
    path = folder / FILES[number]
    if number < 2:
        turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": word}] for text, word in rows]
        frame["messages"] = turns if number else [json.dumps(conversation) for conversation in turns]
    if number == 0:
        frame.to_csv(path, index=False)
    elif number == 1:
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
