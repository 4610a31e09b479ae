"""Training the query side alone: a linear map of query vectors, against document vectors that stay as they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from bge_runtime import ConfigurationError, Embedder, QueryMap, VectorCache
from bge_runtime.evaluation.exact import search
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.evaluation.metrics import measure
from bge_runtime.training.examples import TrainingData
from bge_runtime.training.folders import Trained, Workplace, copy_model, write_row
from bge_runtime.training.gate import (
    METRIC,
    TOLERANCE,
    Gate,
    check_tolerance,
    general_questions,
    measure_with,
    pass_gate,
)
from bge_runtime.training.holding_out import SHARE, hold_out

__all__ = ["train_query"]

# How strongly the map is held to doing nothing: the factor of the squared distance from the identity.
HOLDS = (1.0, 0.3, 0.1, 0.05, 0.03, 0.02, 0.01)
EPOCHS = 30
EVERY = 5
BATCH = 64
RATE = 1e-3
TEMPERATURE = 0.05
# Documents of a softmax; of more, the positives and a sample.
MOST_DOCUMENTS = 50_000

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Step:
    """A map on its way, and what it scores."""

    hold: float
    epoch: int
    weight: Vectors
    loss: float
    scores: Mapping[str, float]

    @property
    def mean(self) -> float:
        return sum(self.scores.values()) / len(self.scores)


def train_query(
    data: TrainingData,
    out: str | os.PathLike[str],
    *,
    model: Embedder | str,
    share: float = SHARE,
    guard: Judgements | None = None,
    tolerance: float = TOLERANCE,
    force: bool = False,
    refit: bool = True,
    seed: int = 0,
    vector_cache: VectorCache | str | os.PathLike[str] | None = None,
    show_progress: bool = False,
) -> Trained:
    """Train a map of query vectors; documents are embedded as before, so that no index is embedded again.

    InfoNCE of each question's vector over the vectors of all documents, with a penalty for a map that is far from doing
    nothing. Several penalties are tried; of all maps on the way, the one with the highest mean score on the questions
    held out is taken, among those that lose no more than the tolerance on documents without a training question. The
    map is most useful for documents that training has questions of.

    Args:
        data: Examples, and all documents of the index.
        out: Folder that the model goes to: the old one's files and the map, which is part of `identity` and no part of
            `document_identity`.
        model: The embedder that the index was filled by: a name or folder, or an `Embedder`.
        share: How many questions each of the two development sets gets.
        guard: Questions of another kind; `None` takes those of the package.
        tolerance: By how much the guard may fall, and the map that is taken on documents without a training question.
        force: Hand the model over whatever the gate says.
        refit: Once the gate is open, fit the map again, with the settings found, on all questions: those held out are
            of documents of the index too. Their figures are of the map that had not seen them; the guard is measured
            again.
        seed: Of held-out questions and order.
        vector_cache: Holds the vectors, where they were computed before.
        show_progress: Whether to show progress on standard error.

    Raises:
        ConfigurationError: An argument has a wrong value, or the model has a map already.
        BGEError: The model cannot be run.
    """
    check_tolerance(tolerance)
    given = model if isinstance(model, Embedder) else Embedder(model, truncation="silent")
    folder = given.source.folder
    if QueryMap.read(folder) is not None:
        raise ConfigurationError(
            f"{given.model!r} has a query map already. Train from the model that it was made of, whose documents are "
            "the same."
        )
    others = guard or general_questions()
    split = hold_out(data, share=share, seed=seed)
    told = {
        "kind": "query map",
        "model": given.model,
        "identity": given.identity,
        "data": {"name": data.name, "digest": data.digest, "examples": len(split.training.examples)},
        "held_out": {name: len(each.queries) for name, each in split.development.items()},
        "guard": {"name": others.name, "digest": others.digest},
        "settings": {"holds": HOLDS, "epochs": EPOCHS, "batch_size": BATCH, "learning_rate": RATE, "seed": seed},
        "temperature": TEMPERATURE,
        "share": share,
        "refit": refit,
    }
    workplace = Workplace(out, told)
    cache = workplace.cache(vector_cache)
    embedder = Embedder(**{**given.options(), "vector_cache": cache, "truncation": "silent"})
    texts = list(dict.fromkeys(data.documents.values()))
    documents = embedder.encode_documents(texts, show_progress=show_progress)
    score = _scoring(embedder, split.development, texts, documents)
    start = score(np.eye(documents.shape[1], dtype=np.float32))
    problem = _Problem.of(embedder, split.training, texts, documents, seed)
    with tqdm(total=len(HOLDS) * EPOCHS, desc="training", unit="epoch", disable=not show_progress) as bar:
        steps = [
            _Step(hold, epoch, weight, loss, score(weight))
            for hold in HOLDS
            for epoch, weight, loss in problem.maps(hold, seed, lambda: bar.update(1))
            if epoch % EVERY == 0
        ]
    best = _best(steps, start, tolerance)

    def decided(weight: Vectors, sets: Mapping[str, Judgements]) -> tuple[Path, Gate]:
        candidate = workplace.candidate(lambda place: _save(weight, folder, place, embedder))
        trained = Embedder(**{**embedder.options(), "model": str(candidate)})
        return candidate, pass_gate(
            measure_with(embedder, cache),
            measure_with(trained, cache),
            development=sets,
            guard=others,
            tolerance=tolerance,
            force=force,
        )

    candidate, gate = decided(best.weight, split.development)
    if refit and gate.is_open:
        whole = _Problem.of(embedder, data, texts, documents, seed)
        weight = next(found for epoch, found, _ in whole.maps(best.hold, seed) if epoch == best.epoch)
        candidate, last = decided(weight, {})
        gate = replace(
            gate,
            measured=tuple(each for each in gate.measured if each.purpose == "development") + last.measured,
            reasons=last.reasons,
        )
    from bge_runtime.evaluation.charts import curves

    way = [each for each in steps if each.hold == best.hold]
    losses = [(each.epoch, each.loss) for each in way]
    scores = [(0, sum(start.values()) / len(start)), *((each.epoch, each.mean) for each in way)]
    report = {
        **told,
        "chosen": {"hold": best.hold, "epoch": best.epoch},
        "history": {"losses": losses, "scores": scores},
        "tried": [{"hold": each.hold, "epoch": each.epoch, **each.scores} for each in steps],
    }
    picture = curves(losses, scores, f"development {METRIC}").png
    return workplace.finish(candidate, gate, report, base=[given.model], picture=picture)


def _scoring(
    embedder: Embedder, development: Mapping[str, Judgements], texts: Sequence[str], documents: Vectors
) -> Callable[[Vectors], dict[str, float]]:
    """Return what measures a map on each development set."""
    queries = {name: embedder.encode_queries(each.queries.values()) for name, each in development.items()}
    place = {text: at for at, text in enumerate(texts)}
    names = [str(at) for at in range(len(texts))]
    grades = {
        name: {
            query: {str(place[each.documents[document]]): 1 for document in found if each.documents[document] in place}
            for query, found in each.grades.items()
        }
        for name, each in development.items()
    }

    def score(weight: Vectors) -> dict[str, float]:
        values = {}
        for name, each in development.items():
            rows, found = search(QueryMap(weight).apply(queries[name]), documents, 10)
            run = {
                query: [(names[row], float(cosine)) for row, cosine in zip(rows[at], found[at], strict=True)]
                for at, query in enumerate(each.queries)
            }
            values[name] = float(np.mean(list(measure(run, grades[name], [METRIC])[METRIC].values())))
        return values

    return score


@dataclass(frozen=True, slots=True)
class _Problem:
    """What a map is fitted on: a vector of each question, the row of its document, and all documents."""

    queries: torch.Tensor
    targets: torch.Tensor
    documents: torch.Tensor

    @classmethod
    def of(
        cls, embedder: Embedder, data: TrainingData, texts: Sequence[str], documents: Vectors, seed: int
    ) -> _Problem:
        place = {text: at for at, text in enumerate(texts)}
        pairs = [(each.query, place[text]) for each in data.examples for text in each.positives if text in place]
        if not pairs:
            raise ConfigurationError(
                f"No positive of {data.name!r} is among its {len(texts)} documents, so that nothing can be found. Pass "
                "the index's documents as corpus=."
            )
        queries = torch.from_numpy(embedder.encode_queries([query for query, _ in pairs]))
        targets = torch.tensor([at for _, at in pairs])
        if len(texts) <= MOST_DOCUMENTS:
            return cls(queries, targets, torch.from_numpy(documents))
        sample = np.random.default_rng(seed).choice(len(texts), MOST_DOCUMENTS, replace=False)
        kept = torch.from_numpy(np.union1d(targets.numpy(), sample))
        return cls(queries, torch.searchsorted(kept, targets), torch.from_numpy(documents)[kept])

    def maps(
        self, hold: float, seed: int, told: Callable[[], object] = lambda: None
    ) -> Iterator[tuple[int, Vectors, float]]:
        """Yield the map after each epoch, with the epoch and its mean loss."""
        identity = torch.eye(self.documents.shape[1])
        weight = identity.clone().requires_grad_()
        optimiser = torch.optim.Adam([weight], lr=RATE)
        order = torch.Generator().manual_seed(seed)
        for epoch in range(1, EPOCHS + 1):
            total = 0.0
            for batch in torch.randperm(len(self.targets), generator=order).split(BATCH):  # type: ignore[no-untyped-call]
                mapped = torch.nn.functional.normalize(self.queries[batch] @ weight.T, dim=-1)
                loss = torch.nn.functional.cross_entropy(mapped @ self.documents.T / TEMPERATURE, self.targets[batch])
                total += float(loss.detach()) * len(batch)
                optimiser.zero_grad()
                (loss + hold * ((weight - identity) ** 2).sum()).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            told()
            yield epoch, weight.detach().numpy().copy(), total / len(self.targets)


def _best(steps: Sequence[_Step], start: Mapping[str, float], tolerance: float) -> _Step:
    """Return the step with the highest mean, among those that keep unseen documents where there are any."""
    # Some dozens of questions cannot tell a smaller loss from none: one answer a rank lower would decide.
    least = start.get("unseen", 0.0) - tolerance
    sound = [each for each in steps if each.scores.get("unseen", 0.0) >= least]
    return max(sound or steps, key=lambda each: each.mean)


def _save(weight: Vectors, source: Path, folder: Path, embedder: Embedder) -> None:
    """Write the model's files and the map."""
    copy_model(source, folder)
    QueryMap(weight).write(folder)
    write_row(
        embedder.spec,
        folder,
        normalize=embedder.normalize,
        max_length=embedder.max_length,
        query_instruction=embedder.query_instruction,
        document_instruction=embedder.document_instruction,
    )
