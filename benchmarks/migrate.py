"""A migration that is killed three times loses nothing, computes almost nothing twice, and disturbs no reader.

Of every kind of store an index is filled from a collection, and migrated to another embedder by a process that is
killed (SIGKILL) at three seeded points and started again, while another process queries the old index. Exit status 1
when a document, an id or metadata is missing, there twice or different, a kill costs more than one batch, a query
fails, or a new process finds another embedder's record.

    python benchmarks/migrate.py --data FOLDER [--stores langchain-Chroma ...] [--collection scifact] [--seed 0]

The stores of `WHOLE` get the whole collection, the others 500 documents. Results go to
benchmarks/results/migrate.json; stores that are not named keep what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
from itertools import islice
from pathlib import Path
from typing import Any

from published import MODEL, RESULTS, machine, read_collection

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for the stores of the tests
WHOLE = ("langchain-Faiss", "llamaindex-Chroma")
FEW = 500
KILLS = 3
DIMENSION = 128  # of the new embedder, where the old one has 384
MAX_LENGTH = 64  # tokens: what is shown does not depend on how long a text takes
BATCH = {True: 256, False: 32}  # of the whole collection, and of a few
RECORD_BYTES = 16 + 4 * DIMENSION + 4  # of the file of finished vectors
LATEST_S = {True: 3.0, False: 0.3}  # after a point was passed: about as long as a batch takes
PAUSE_S = 0.1  # between two queries of the reader


def stores() -> dict[str, Any]:
    """Return the kinds of stores by framework and name."""
    from tests.stores import langchain_stores, llamaindex_stores

    return {
        **{f"langchain-{name}": kind for name, kind in langchain_stores.STORES.items()},
        **{f"llamaindex-{name}": kind for name, kind in llamaindex_stores.STORES.items()},
    }


def embedding(store: str, **options: Any) -> Any:
    """Return the framework's embedding object."""
    if store.startswith("langchain"):
        from langchain_bge import BGEEmbeddings

        return BGEEmbeddings(model=MODEL, truncation="silent", max_length=MAX_LENGTH, **options)
    from llamaindex_bge import BGEEmbedding

    return BGEEmbedding(MODEL, truncation="silent", max_length=MAX_LENGTH, **options)


def identifier(name: str) -> str:
    """Return an id that every store takes."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, name))


def fill(store: str, folder: Path, documents: dict[str, str], cache: Path) -> None:
    """Fill and bind an index of the old embedder."""
    from bge_runtime import bind_index

    place, model = stores()[store](folder), embedding(store, vector_cache=cache)
    bind_index(folder, model.embedder)
    if store.startswith("langchain"):
        from langchain_core.documents import Document

        opened = place.open(model)
        rows = [
            Document(id=identifier(name), page_content=text, metadata={"name": name, "length": len(text)})
            for name, text in documents.items()
        ]
        opened.add_documents(rows, ids=[identifier(name) for name in documents])
        place.close()
        return
    from llama_index.core.schema import TextNode

    index = place.create(model)
    index.insert_nodes(
        [
            TextNode(id_=identifier(name), text=text, metadata={"name": name, "length": len(text)})
            for name, text in documents.items()
        ]
    )
    place.close(index)


def search(store: str, folder: Path, model: Any) -> Any:
    """Open an index and return a function from a question to the names of three documents."""
    place = stores()[store](folder)
    opened = place.open(model)
    if store.startswith("langchain"):
        return lambda question: [each.metadata["name"] for each in opened.similarity_search(question, k=3)]
    retriever = opened.as_retriever(similarity_top_k=3)
    return lambda question: [each.node.metadata["name"] for each in retriever.retrieve(question)]


def read(store: str, folder: Path, questions: list[str]) -> None:
    """Query until standard input ends; print how often, and what went wrong."""
    import threading

    ask = search(store, folder, embedding(store))
    expected = {question: ask(question) for question in questions}
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    print("reading", flush=True)
    answers, errors = 0, []
    while not ended.wait(PAUSE_S):
        question = questions[answers % len(questions)]
        try:
            if ask(question) != expected[question]:
                errors.append(f"another answer to {question!r}")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
            errors.append(f"{type(error).__name__}: {error}")
        answers += 1
    print(json.dumps({"answers": answers, "errors": errors}))


def run(source: Path, target: Path, batch_size: int, journal: Path) -> None:
    """Migrate; what is about to be computed is written down in a file that survives the process."""
    from bge_runtime import Embedder
    from bge_runtime.evaluation.migration import migrate

    class Counted(Embedder):
        def encode_documents(self, texts: Any, *, show_progress: bool | None = None) -> Any:
            with journal.open("a") as stream:
                stream.write(f"{len(texts)}\n")
            return super().encode_documents(texts, show_progress=show_progress)

    embedder = Counted(MODEL, truncate_dim=DIMENSION, truncation="silent", max_length=MAX_LENGTH)
    migrate(source, target, embedder, batch_size=batch_size)


def ask_anew(store: str, folder: Path, questions: list[str]) -> None:
    """Open the new index in a new process; print whose it is, and how many questions it answers."""
    from bge_runtime import IndexIdentityError, bind_index

    model = embedding(store, truncate_dim=DIMENSION)
    bind_index(folder, model.embedder)
    try:
        bind_index(folder, embedding(store).embedder)
        refused = False
    except IndexIdentityError:
        refused = True
    ask = search(store, folder, model)
    print(json.dumps({"old_embedder_refused": refused, "answered": sum(len(ask(each)) == 3 for each in questions)}))


def child(options: argparse.Namespace, role: str, *arguments: object) -> list[str]:
    """Return the command of a process with a part in this."""
    own = [sys.executable, __file__, "--data", str(options.data), "--collection", options.collection, "--role", role]
    return [*own, "--arguments", *map(str, arguments)]


def killed(options: argparse.Namespace, source: Path, target: Path, total: int, batch: int) -> list[dict[str, int]]:
    """Migrate with three kills, and return what each start found, began to compute and ended with."""
    journal = source.with_name("journal")
    vectors = target.with_name(f".{target.name}.bge-migration") / "vectors"
    dice = random.Random(options.seed)
    points = sorted(round(total * dice.uniform(0.05, 0.85)) for _ in range(KILLS))

    def stored() -> int:
        try:
            return vectors.stat().st_size // RECORD_BYTES
        except FileNotFoundError:
            return 0

    def begun() -> int:
        return sum(map(int, journal.read_text().split())) if journal.is_file() else 0

    starts = []
    for point in [*points, None]:
        before, done = stored(), begun()
        process = subprocess.Popen(child(options, "run", source, target, batch, journal))
        while process.poll() is None:
            time.sleep(0.01)
            if point is not None and stored() >= max(point, before + 1):
                time.sleep(dice.uniform(0, LATEST_S[batch == BATCH[True]]))
                process.kill()
                break
        code = process.wait()
        after = stored() if vectors.exists() else total
        starts.append({"found": before, "left": after, "begun": begun() - done, "exit": code})
    return starts


def rows(folder: Path, scratch: Path) -> list[tuple[str, str, bytes]]:
    """Return id, text, and a digest of everything else but the vector, of each entry."""
    from bge_runtime.evaluation.stores.recognised import recognised

    scratch.mkdir(exist_ok=True)
    store = recognised(folder, None, scratch, allow_pickle=False)
    return sorted((row.id, row.text, row.rest) for row in store.rows())


def shown(options: argparse.Namespace, store: str, documents: dict[str, str], work: Path) -> dict[str, Any]:
    """Fill, migrate, and compare one kind of store."""
    source, target = work / "old", work / "new"
    source.mkdir()
    names = json.dumps(list(documents))
    (work / "names.json").write_text(names)
    subprocess.run(child(options, "fill", store, source, work / "names.json", options.cache), check=True)
    reader = subprocess.Popen(
        child(options, "read", store, source), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    reader.stdout.readline()
    batch = BATCH[store in WHOLE]
    started = time.monotonic()
    total = len({text for _, text, _ in rows(source, work / "scratch")})
    starts = killed(options, source, target, total, batch)
    seconds = time.monotonic() - started
    told, _ = reader.communicate()
    asked = subprocess.run(child(options, "ask_anew", store, target), check=True, capture_output=True, text=True)
    before, after = rows(source, work / "scratch"), rows(target, work / "scratch")
    ids = [each for each, _, _ in after]
    return {
        "documents": len(documents),
        "distinct_texts": total,
        "batch_size": batch,
        "starts": starts,
        "most_computed_twice_by_a_kill": max(each["begun"] - (each["left"] - each["found"]) for each in starts),
        "ids_once": len(ids) == len(set(ids)) and set(ids) == {identifier(name) for name in documents},
        "ids_texts_metadata_equal": before == after,
        "reader": json.loads(told.splitlines()[-1]),
        "new_process": json.loads(asked.stdout.splitlines()[-1]),
        "left_over": sorted(path.name for path in work.glob(".*bge-migration")),
        "seconds": round(seconds, 1),
    }


def faults(store: str, entry: dict[str, Any], questions: int) -> list[str]:
    """Return what is not as it should be."""
    checks = {
        "the migration was not killed three times": [each["exit"] for each in entry["starts"]] == [-9] * KILLS + [0],
        "a kill cost more than a batch": entry["most_computed_twice_by_a_kill"] <= entry["batch_size"],
        "a document is missing or there twice": entry["ids_once"],
        "ids, texts or metadata differ": entry["ids_texts_metadata_equal"],
        "a query of the reader failed": entry["reader"]["answers"] > 0 and not entry["reader"]["errors"],
        "the old embedder was not refused": entry["new_process"]["old_embedder_refused"],
        "the new index does not answer": entry["new_process"]["answered"] == questions,
        "something is left over": not entry["left_over"],
    }
    return [f"{store}: {fault}" for fault, right in checks.items() if not right]


def main(arguments: list[str] | None = None) -> int:
    """Run and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the collection")
    parser.add_argument("--collection", default="scifact")
    parser.add_argument("--stores", nargs="+", help="some of those that are known; all by default")
    parser.add_argument("--seed", type=int, default=0, help="of the points at which the process is killed")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--role", help=argparse.SUPPRESS)  # what a child is told
    parser.add_argument("--arguments", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    collection = read_collection(options.data, options.collection)
    questions = list(islice(collection.queries.values(), 5))
    given = options.arguments
    if options.role == "fill":
        chosen = json.loads(Path(given[2]).read_text())
        fill(given[0], Path(given[1]), {name: collection.documents[name] for name in chosen}, Path(given[3]))
    elif options.role == "run":
        run(Path(given[0]), Path(given[1]), int(given[2]), Path(given[3]))
    elif options.role:
        {"read": read, "ask_anew": ask_anew}[options.role](given[0], Path(given[1]), questions)
    if options.role:
        return 0
    unknown = set(options.stores or ()) - set(stores())
    if unknown:
        parser.error(f"--stores {sorted(unknown)} are not known. Known are: {', '.join(stores())}.")
    file = options.results / "migrate.json"
    entry = json.loads(file.read_text()) if file.is_file() else {"stores": {}}
    found = []
    with tempfile.TemporaryDirectory() as name:
        options.cache = Path(name) / "vectors.sqlite"
        for store in options.stores or stores():
            documents = dict(islice(collection.documents.items(), None if store in WHOLE else FEW))
            work = Path(name) / store
            work.mkdir()
            entry["stores"][store] = shown(options, store, documents, work)
            print(store, json.dumps(entry["stores"][store]), flush=True)
            found += faults(store, entry["stores"][store], len(questions))
    entry.update(seed=options.seed, collection=options.collection, dimensions=[384, DIMENSION], machine=machine())
    options.results.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(entry, indent=2) + "\n")
    for line in found:
        print(f"OFF: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
