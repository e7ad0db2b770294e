"""The programs that the suite `data` starts. Each prints one line of JSON as its last one."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

from trainer.log import tell

BATCH = 1000
"""Documents that are tokenised at once, in both programs that tokenise: the default of `datasets.map`."""


SPARSE = "sparse.bin"
PIECES = 3
"""Documents in a sample of the epoch with synthetic lengths."""


def encode_batch(corpus: str, tokenizer: str, processes: str) -> dict[str, Any]:
    """Time `tokenizers.Tokenizer.encode_batch` over texts that are in memory.

    With one process the library's own threads use all cores; with more, each process has its share of the texts and
    one thread, and the slowest one counts.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if int(processes) == 1 else "false"
    import tokenizers

    with open(corpus, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    loaded = tokenizers.Tokenizer.from_file(str(Path(tokenizer) / "tokenizer.json"))
    if int(processes) == 1:
        # The threads start with the first call.
        loaded.encode_batch(texts[:BATCH], add_special_tokens=False)
        begun = time.perf_counter()
        tokens = _encoded(loaded, texts)
        return {"seconds": time.perf_counter() - begun, "tokens": tokens}
    context = multiprocessing.get_context("fork")
    ready, found = context.Barrier(int(processes)), context.SimpleQueue()

    def encode(share: list[str]) -> None:
        ready.wait()
        begun = time.perf_counter()
        tokens = _encoded(loaded, share)
        found.put((time.perf_counter() - begun, tokens))

    shares = [texts[number :: int(processes)] for number in range(int(processes))]
    children = [context.Process(target=encode, args=(share,)) for share in shares]
    for child in children:
        child.start()
    both = [found.get() for _ in children]
    for child in children:
        child.join()
    return {"seconds": max(seconds for seconds, _ in both), "tokens": sum(tokens for _, tokens in both)}


def _encoded(tokenizer: Any, texts: list[str]) -> int:
    """Encode texts in batches; return the number of their tokens, one more for each text."""
    tokens = 0
    for first in range(0, len(texts), BATCH):
        encoded = tokenizer.encode_batch(texts[first : first + BATCH], add_special_tokens=False)
        tokens += sum(len(one) for one in encoded)
    return tokens + len(texts)


def map_script(corpus: str, tokenizer: str, out: str, processes: str, batched: str) -> dict[str, Any]:
    """Tokenise as scripts do: load_dataset, map, save_to_disk.

    A plain script maps a function of one record in one process. Better ones map batches, which the tokenizer's own
    threads share, or batches in a process a core.
    """
    is_one = int(processes) == 1
    os.environ |= {"HF_HOME": out, "TOKENIZERS_PARALLELISM": "true" if is_one else "false", "HF_HUB_OFFLINE": "1"}
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    loaded: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_file=str(Path(tokenizer) / "tokenizer.json"), eos_token="<|endoftext|>"
    )

    def tokenize(record: dict[str, str]) -> dict[str, Any]:
        ids = loaded(record["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return {"input_ids": [*ids, loaded.eos_token_id]}

    def tokenize_batch(batch: dict[str, list[str]]) -> dict[str, Any]:
        ids = loaded(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return {"input_ids": [[*one, loaded.eos_token_id] for one in ids]}

    begun = time.perf_counter()
    rows = datasets.load_dataset("json", data_files=corpus, split="train", cache_dir=out)
    many: Any = {"batched": True, "batch_size": BATCH} if int(batched) else {}
    mapped = rows.map(
        tokenize_batch if many else tokenize,
        num_proc=None if is_one else int(processes),
        remove_columns=["text"],
        **many,
    )
    mapped.save_to_disk(str(Path(out) / "tokens"))
    return {"seconds": time.perf_counter() - begun, "rows": len(mapped)}


def read_at_random(folder: str, length: str, count: str) -> dict[str, Any]:
    """Time samples at random places of the training part of a folder of prepared tokens."""
    import numpy as np

    from trainer.data.dataset import TokenDataset
    from trainer.data.shard_set import ShardSet
    from trainer.data.token_manifest import read_manifest

    manifest = read_manifest(Path(folder))
    assert manifest is not None, "the folder was made just before"
    dataset = TokenDataset(ShardSet(Path(folder), manifest.parts["train"]), int(length))
    places = np.random.default_rng(0).integers(0, len(dataset), int(count)).tolist()
    begun = time.perf_counter()
    for place in places:
        dataset.rows(place)
    return {"seconds": time.perf_counter() - begun, "samples": len(places), "of": len(dataset)}


def open_epoch(folder: str, length: str, count: str, packing: str) -> dict[str, Any]:
    """Open an epoch of so many samples over sparse files, and read some of them in their order.

    Returns:
        Seconds to the first sample, seconds of 1,000 more, and memory that this took beside the imports.
    """
    from benchmarks.commands import own_bytes
    from trainer.data.best_fit import BestFitDataset, packed_pieces
    from trainer.data.dataset import TokenDataset
    from trainer.data.shard_set import ShardSet
    from trainer.data.token_manifest import Shard

    samples, size, place = int(count), int(length), Path(folder)
    held = own_bytes(os.getpid())
    begun = time.perf_counter()
    shard = Shard(str(place / SPARSE), "uint16", 0, samples * size + 1, 1, 0, None, "", "none")
    shards = ShardSet(place, [shard])
    dataset: TokenDataset | BestFitDataset = TokenDataset(shards, size)
    if packing == "best_fit":
        pieces = packed_pieces(place, "train", shards, size)
        dataset = BestFitDataset(shards, pieces, size, 0, -1, is_told=True, crosses=False)
    first, *others = read_places(samples)
    dataset.rows(first)
    opened = time.perf_counter()
    for number in others:
        dataset.rows(number)
    read = time.perf_counter()
    return {
        "packing": packing,
        "samples": len(dataset),
        "open_seconds": opened - begun,
        "read_seconds": read - opened,
        "bytes": own_bytes(os.getpid()) - held,
    }


def read_places(samples: int) -> list[int]:
    """Return the samples of an epoch that are read: its first one, and 1,000 of its middle."""
    from trainer.data.sampler import SampleOrder

    order = SampleOrder(samples, seed=1)
    return [int(order.samples(0, 1)[0]), *order.samples(samples // 2, 1000).tolist()]


def write_sparse(folder: Path, length: int, samples: int) -> None:
    """Write ids, and an index of best-fit packing, of so many samples; only those of `read_places` have pieces.

    Each has `PIECES` documents of random lengths, which fill it. All else is holes of the files.
    """
    import numpy as np

    from trainer.data.best_fit import FACTS, LENGTHS, OFFSETS, STARTS

    index = folder / f"best_fit-train-{length}"
    index.mkdir(parents=True)
    draws = np.random.default_rng(0)
    sizes = {folder / SPARSE: 2 * (samples * length + 1), index / OFFSETS: 8 * (samples + 1)}
    sizes |= {index / STARTS: 8 * PIECES * samples, index / LENGTHS: 4 * PIECES * samples}
    files = {path.name: path.open("w+b") for path in sizes}
    for path, size in sizes.items():
        files[path.name].truncate(size)
    for place in read_places(samples):
        ends = np.array([0, *sorted(draws.choice(length - 1, PIECES - 1, replace=False) + 1), length])
        first = PIECES * place
        for name, at, numbers in (
            (OFFSETS, 8 * place, np.array([first, first + PIECES], "<i8")),
            (STARTS, 8 * first, (place * length + ends[:-1]).astype("<i8")),
            (LENGTHS, 4 * first, np.diff(ends).astype("<i4")),
        ):
            files[name].seek(at)
            files[name].write(numbers.tobytes())
    for file in files.values():
        file.close()
    facts: dict[str, object] = {"tokens": samples * length, "cuts": 0}
    facts |= {"sizes": {path.name: size for path, size in sizes.items() if path.parent == index}}
    (index / FACTS).write_text(json.dumps(facts))


PROGRAMS = {one.__name__: one for one in (encode_batch, map_script, read_at_random, open_epoch)}

if __name__ == "__main__":
    tell(json.dumps(PROGRAMS[sys.argv[1]](*sys.argv[2:])))
