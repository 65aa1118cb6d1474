"""Read and sample a large generated corpus: MB/s per core, and the memory of driver and workers.

    python benchmarks/reading.py [--gigabytes 20] [--files 40] [--tasks 2] [--folder DIR] [--long-line 2] [--piece 64]

Documents are real text of the installation, made distinct by a number; the files are removed afterwards. `--long-line`
adds a file with one line of so many GB, which is refused for that line. `--piece`: MB that a task reads. The second
table: one process, without Ray. Memory: the largest resident set seen at ten looks a second.
"""

import json
import shutil
import tempfile
import threading
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Annotated

import psutil
import typer

MARK = b"@@@@@@@@@@@@"
BLOCK = 64 * 2**20


def generate(folder: Path, gigabytes: float, files: int) -> int:
    """Write JSONL files of about so many bytes in all; returns how many they are."""
    from align_ray.corpora.installed import INSTALLED

    texts = list(islice(INSTALLED["python-packages"](), 4000))
    lines = [json.dumps({"text": f"{MARK.decode()} {t[:4000]}"}).encode() + b"\n" for t in texts]
    each, written, number = int(gigabytes * 1e9 / files), 0, 0
    for i in range(files):
        with (folder / f"{i:05d}.jsonl").open("wb") as file:
            while file.tell() < each:
                block = b"".join(lines)[: min(BLOCK, each - file.tell() + 8000)]
                block = block[: block.rfind(b"\n") + 1] or lines[number % len(lines)]
                file.write(block.replace(MARK, b"%012d" % number))
                number += 1
            written += file.tell()
    return written


def long_line(folder: Path, gigabytes: float) -> None:
    """A file with a document, one line of so many GB, and another document."""
    with (folder / "long.jsonl").open("wb") as file:
        file.write(b'{"text": "before it"}\n{"text": "')
        for _ in range(int(gigabytes * 1e9 / BLOCK)):
            file.write(b"x" * BLOCK)
        file.write(b'"}\n{"text": "after it"}\n')


def rates(corpus, seconds: float = 10.0) -> dict[str, float]:
    """MB/s of one process: reading and drawing; that and the n-grams of the contamination check; tokenising."""
    from align_ray.checks.contamination import ngram_hashes
    from align_ray.corpora.draw import document_key
    from align_ray.corpora.sources import documents, plan_fragments
    from align_ray.fisher.probe import load_tokenizer, locate_probe
    from align_ray.fisher.settings import ProbeName

    tokenizer = load_tokenizer(locate_probe(ProbeName()))
    work = {
        "read and draw": lambda text: document_key(0, text),
        "contamination": ngram_hashes,
        "tokenise": lambda text: tokenizer(text, truncation=False, verbose=False),
    }
    found = {}
    for name, do in work.items():
        start, size = time.perf_counter(), 0
        for text in documents(corpus, plan_fragments(corpus), Counter()):
            do(text)
            size += len(text.encode())
            if time.perf_counter() - start > seconds:
                break
        found[name] = size / 1e6 / (time.perf_counter() - start)
    return found


class Memory(threading.Thread):
    """Watches this process and Ray's workers until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.driver = self.worker = 0
        self.ended = threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self.ended.wait(0.1):
            self.driver = max(self.driver, me.memory_info().rss)
            for child in me.children(recursive=True):
                try:
                    if "ray::" in (child.cmdline() or [""])[0]:
                        info = child.memory_info()
                        self.worker = max(self.worker, info.rss - info.shared)
                except psutil.Error:
                    continue


def spilled() -> int:
    """Bytes that Ray's object stores wrote to disk."""
    import ray

    folder = Path(ray._private.worker._global_node.get_session_dir_path()) / "ray_spilled_objects"
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) if folder.exists() else 0


def main(
    gigabytes: float = 20.0,
    files: int = 40,
    tasks: Annotated[int, typer.Option(help="Reading tasks at once: CPUs of the local Ray.")] = 2,
    folder: Path | None = None,
    piece: float = 64.0,
    long: Annotated[float, typer.Option("--long-line", help="GB of one line; 0: none.")] = 0.0,
) -> None:
    import ray

    from align_ray.config import Cluster, Sampling
    from align_ray.config_corpora import Corpus
    from align_ray.corpora import files as corpora
    from align_ray.corpora import tasks as reading
    from align_ray.corpora.draw import draw_corpora
    from align_ray.fisher.probe import load_tokenizer, locate_probe
    from align_ray.fisher.settings import ProbeName
    from align_ray.runtime import WORKER_ENVIRONMENT, connect

    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        size = generate(place, gigabytes, files)
        if long:
            long_line(place, long)
            size += int(long * 1e9)
        environment = {"env_vars": WORKER_ENVIRONMENT}
        ray.init("local", num_cpus=tasks, include_dashboard=False, runtime_env=environment, log_to_driver=False)
        connect(Cluster())
        corpora.FRAGMENT_BYTES = reading.TASK_BYTES = int(piece * 2**20)
        corpus, watch = Corpus(name="generated", source=str(place)), Memory()
        watch.start()
        tokenizer = load_tokenizer(locate_probe(ProbeName()))
        start = time.perf_counter()
        ((_, drawn),) = draw_corpora([(corpus, 1_000_000, 0)], Sampling(), 0, tokenizer)
        seconds = time.perf_counter() - start
        watch.ended.set()
        print(
            "| GB | files | tasks | documents | unreadable | s | MB/s per task | driver, MB | worker, MB | spilled, "
            "MB |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|")
        print(
            f"| {size / 1e9:.1f} | {files + bool(long)} | {tasks} | {drawn.counts['documents']:,} | "
            f"{drawn.counts.get('unreadable', 0)} | {seconds:.0f} | {size / 1e6 / seconds / tasks:.0f} | "
            f"{watch.driver / 1e6:.0f} | {watch.worker / 1e6:.0f} | {spilled() / 1e6:.0f} |"
        )
        tasks_run = len(reading.read_tasks([corpus], None))
        ray.shutdown()
        print(f"\n{tasks_run} tasks, {tasks_run / seconds:.0f} a second\n")
        print("| one process | MB/s |\n|---|---|")
        for name, rate in rates(corpus).items():
            print(f"| {name} | {rate:.0f} |")
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    typer.run(main)
