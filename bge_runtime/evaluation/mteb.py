"""Any task of MTEB or C-MTEB, over the runtime: an `mteb` model whose instructions follow the kind of task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime import ConfigurationError, Embedder

if TYPE_CHECKING:
    from mteb.models import ModelMeta

__all__ = ["BGEEncoder", "evaluate_tasks"]

NO_MTEB = 'Tasks of MTEB need an extra: pip install "bge-integrations[mteb]"'
# Where short queries stand against documents. Everywhere else both sides are texts of one kind, and get no instruction:
# so the authors measured (FlagEmbedding, `eval_MTEB.py`: the instruction goes to queries of retrieval tasks alone).
ASYMMETRIC = frozenset({"Retrieval", "Reranking", "InstructionRetrieval", "InstructionReranking"})


class BGEEncoder:
    """An embedder as MTEB wants its models.

    Queries of retrieval and reranking tasks get the model's query instruction; documents, and the texts of all other
    tasks, get none but the model's own for documents. Batches are the runtime's: mteb's `batch_size` changes nothing.
    """

    def __init__(self, model: Embedder | str) -> None:
        """Take an embedder, or the name of one; nothing is loaded."""
        self.embedder = model if isinstance(model, Embedder) else Embedder(model, truncation="silent")

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """What mteb's results say of the model."""
        from mteb.models import ModelMeta

        embedder = self.embedder
        told = {
            # mteb wants an owner and a name; the path of a folder is nobody's business.
            "name": f"local/{Path(embedder.model).name}" if Path(embedder.model).is_dir() else embedder.model,
            "revision": embedder.identity,
            "embed_dim": embedder.dimension,
            "max_tokens": embedder.max_length,
            "use_instructions": bool(embedder.query_instruction),
        }
        return ModelMeta.create_empty(overwrites=told)

    def encode(
        self,
        inputs: Iterable[dict[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        **others: Any,
    ) -> NDArray[np.float32]:
        """Embed the texts of a task.

        Args:
            inputs: Batches with `text`.
            task_metadata: The task's, whose `type` decides about the instruction.
            hf_split: Not needed.
            hf_subset: Not needed.
            prompt_type: `query` or `document`, where the task tells.
            batch_size: Not needed.
            show_progress_bar: Whether to show a progress bar.
            **others: What further versions of mteb say to every model; nothing of it changes vectors.

        Returns:
            Array float32 of shape (texts, dimension).

        Raises:
            ConfigurationError: The task is of pictures or sounds.
        """
        texts = [text for batch in inputs for text in _texts(batch, task_metadata)]
        side = getattr(prompt_type, "value", prompt_type)
        asks = side == "query" and task_metadata.type in ASYMMETRIC
        encode = self.embedder.encode_queries if asks else self.embedder.encode_documents
        return encode(texts, show_progress=bool(show_progress_bar))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosine of every vector with every other, as a tensor."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosine of each vector with the one at the same place, as a tensor."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)


def evaluate_tasks(
    model: Embedder | str,
    tasks: Sequence[Any],
    *,
    notify: Callable[[str], None] = lambda message: None,
    show_progress: bool = False,
) -> dict[str, float]:
    """Run tasks of MTEB.

    Args:
        model: An embedder, or the name of one.
        tasks: Their names, or `mteb` task objects.
        notify: Called with a line before each task.
        show_progress: Whether to show mteb's progress bars.

    Returns:
        The main score of each task, 0 to 1.

    Raises:
        ConfigurationError: mteb is not installed, or a task does not exist.
    """
    try:
        import mteb
    except ImportError as error:
        raise ConfigurationError(NO_MTEB) from error
    encoder = BGEEncoder(model)
    found = [_task(mteb, each) for each in tasks]
    if not found:
        raise ConfigurationError("No task is named. Pass names such as SciFact,T2Retrieval.")
    scores = {}
    for number, task in enumerate(found, start=1):
        name = task.metadata.name
        notify(f"{number} of {len(found)}: {name}")
        result = mteb.evaluate(encoder, task, cache=None, show_progress_bar=show_progress, co2_tracker=False)
        scores[name] = float(result.task_results[0].get_score())
    return scores


def _task(mteb: Any, given: Any) -> Any:
    if not isinstance(given, str):
        return given
    try:
        return mteb.get_task(given)
    except (KeyError, ValueError) as error:
        raise ConfigurationError(
            f"Task {given!r} does not exist in mteb ({' '.join(str(error).split())[:200]})."
        ) from error


def _texts(batch: dict[str, Any], task_metadata: Any) -> list[str]:
    if "text" not in batch:
        raise ConfigurationError(
            f"Task {task_metadata.name!r} gives {sorted(batch)}, and an embedder of texts reads 'text'. Choose another."
        )
    return list(batch["text"])
