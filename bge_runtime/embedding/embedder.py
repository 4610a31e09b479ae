"""Texts to vectors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, Self, Unpack

import numpy as np
from numpy.typing import NDArray

from bge_runtime.embedding import dense, heads
from bge_runtime.embedding.instructions import OTHER_NAMES, Example, Role, check_examples
from bge_runtime.embedding.settings import Encoding
from bge_runtime.engine.call import Rows
from bge_runtime.engine.deadline import Deadline
from bge_runtime.engine.flow import Flow
from bge_runtime.errors import ConfigurationError, check_count, check_flag, check_string, public
from bge_runtime.inputs.checks import check_items, check_text, check_texts
from bge_runtime.inputs.tokenizing import TokenSequence
from bge_runtime.loading.loaded import LoadedModel
from bge_runtime.loading.model import Model
from bge_runtime.loading.options import LoadingOptions, with_loading_options, with_other_names
from bge_runtime.loading.remote_source import source_of
from bge_runtime.loading.runner import Runner, Truncation
from bge_runtime.loading.store import arun, run
from bge_runtime.locks import cached_property
from bge_runtime.models.spec import DEFAULT_EMBEDDER, ModelSpec
from bge_runtime.vectors.cache import VectorCache, check_cache
from bge_runtime.vectors.finite import check_finite, named
from bge_runtime.vectors.similarity import unit_rows

__all__ = ["Embedder"]


@public
class Embedder(Model):
    """An embedding model: queries and documents in, float32 vectors out.

    Nothing is loaded before the first call. Embedders that differ only in instructions, lengths, pooling or
    normalisation share one copy of the weights and one queue with every other caller in the process.
    """

    other_names = OTHER_NAMES

    @with_loading_options
    @with_other_names(OTHER_NAMES)
    def __init__(
        self,
        model: str | os.PathLike[str] | ModelSpec = DEFAULT_EMBEDDER,
        *,
        query_instruction: str | None = None,
        document_instruction: str | None = None,
        task: str | None = None,
        examples: Iterable[Example] | None = None,
        legacy: bool = False,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        max_length: int | None = None,
        truncation: Truncation = "warn",
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        show_progress: bool = False,
        vector_cache: VectorCache | str | os.PathLike[str] | None = None,
        **loading: Unpack[LoadingOptions],
    ) -> None:
        """Describe the model; errors that need no files are raised here.

        Args:
            model: Hub id (any letter case), its part after the slash, a folder, or a `ModelSpec`.
            query_instruction: Text for queries; `""` turns it off, `None` takes the model's own.
            document_instruction: The same for documents; BGE models want none, but for llm-embedder. LangChain's and
                LlamaIndex's names of it, `embed_instruction` and `text_instruction`, are taken too.
            task: Named pair of instructions, for models that have some (llm-embedder).
            examples: In-context examples before queries, for models that take some (bge-en-icl): dictionaries with
                `query`, `response` and, where it is another than the query instruction, `instruct`. They come on top
                of `max_length`.
            legacy: Whether to read texts as `HuggingFaceBgeEmbeddings` did, for indexes that it filled: an English
                instruction with "question" instead of "sentence", and newlines as spaces.
            normalize: Whether vectors have length 1; `None` does as the model's authors do.
            truncate_dim: Keep this many leading dimensions, before normalising.
            max_length: Longest input in tokens; `None` takes the model's own.
            truncation: What to do about longer texts: cut `silent`, cut and `warn` the first time, or `error`.
            batch_size: Most texts in a forward pass; `None` sets no limit.
            batch_tokens: Most padded tokens in a forward pass; `None` takes the device's default.
            show_progress: Whether to show a progress bar on standard error.
            vector_cache: Remembers vectors: a `VectorCache`, or the path of its file; `None` remembers nothing.
            **loading: See `LoadingOptions`.

        Raises:
            ConfigurationError: An argument has a wrong value.
            ModelNotFoundError: The name cannot be a model.
            UnsupportedModelError: The model's kind cannot run.
        """
        source = source_of(model, loading)
        super().__init__(
            Runner(
                source,
                "embed",
                max_length=max_length,
                truncation=truncation,
                batch_size=batch_size,
                batch_tokens=batch_tokens,
                show_progress=show_progress,
            )
        )
        self._given = {
            "query_instruction": query_instruction,
            "document_instruction": document_instruction,
            "task": check_string(task, "task"),
            "examples": check_examples(examples),
            "legacy": check_flag(legacy, "legacy"),
        }
        self._normalize = None if normalize is None else check_flag(normalize, "normalize")
        self._truncate_dim = check_count(truncate_dim, "truncate_dim")
        self._cache = check_cache(vector_cache)
        self._check_known()

    @property
    def query_instruction(self) -> str:
        """Instruction that queries get; empty when none."""
        return self.encoding.instructions.query

    @property
    def document_instruction(self) -> str:
        """Instruction that documents get; empty when none."""
        return self.encoding.instructions.document

    @property
    def normalize(self) -> bool:
        """Whether vectors have length 1."""
        return self.encoding.normalize

    @property
    def dimension(self) -> int:
        """Length of a vector; known without loading weights."""
        return self.encoding.dimension

    @property
    def vector_cache(self) -> VectorCache | None:
        """Where vectors are remembered."""
        return self._cache

    @property
    def identity(self) -> str:
        """Digest of exactly what changes vectors; needs the model's files, not its weights in memory.

        Weights, instructions, pooling, normalisation, dimension, maximum length and the precision class are part
        of it; device, float width and batching are not.
        """
        return self.encoding.identity

    @property
    def document_identity(self) -> str:
        """Like `identity`, without the query side: what an index of documents depends on."""
        return self.encoding.document_identity

    @property
    def token_identity(self) -> str:
        """Like `identity`, for `encode_tokens`: neither instructions nor pooling matter."""
        return self.encoding.token_identity

    @property
    def output_identity(self) -> str:
        """Like `token_identity`, for the outputs of further heads."""
        return self.encoding.output_identity

    @cached_property
    def encoding(self) -> Encoding:
        """What is done to texts, settled when the model's facts are known."""
        spec = self.spec
        encoding = Encoding.of(
            self.source,
            self._given,
            normalize=self._normalize,
            truncate_dim=self._truncate_dim,
            max_length=self._runner.max_length,
        )
        if self.source.is_remote:
            self._check_remote(spec, encoding)
        return encoding

    def warm_up(self) -> Self:
        """Load the weights ahead of the first call."""
        self._hold()
        return self

    def encode_queries(self, texts: Iterable[str], *, show_progress: bool | None = None) -> NDArray[np.float32]:
        """Embed queries, each with the query instruction.

        Args:
            texts: Queries; any iterable of strings.
            show_progress: Overrides the constructor's value.

        Returns:
            Array float32 of shape (number of texts, dimension), rows in input order.

        Raises:
            InputError: Something is not a string, or too long with `truncation="error"`.
            BackendError: The computation failed, or a text's vector is not finite; the message names it.
        """
        return run(dense.vectors(self._request("query", show_progress), texts))

    def encode_documents(self, texts: Iterable[str], *, show_progress: bool | None = None) -> NDArray[np.float32]:
        """Embed documents; see `encode_queries`."""
        return run(dense.vectors(self._request("document", show_progress), texts))

    async def aencode_queries(self, texts: Iterable[str], *, show_progress: bool | None = None) -> NDArray[np.float32]:
        """Embed queries without blocking the event loop; see `encode_queries`."""
        return await arun(self._vectors("query", texts, show_progress))

    async def aencode_documents(
        self, texts: Iterable[str], *, show_progress: bool | None = None
    ) -> NDArray[np.float32]:
        """Embed documents without blocking the event loop; see `encode_queries`."""
        return await arun(self._vectors("document", texts, show_progress))

    def stream_documents(self, texts: Iterable[str], *, window: int = 2048) -> Iterator[NDArray[np.float32]]:
        """Embed documents from any iterable, holding `window` of them at a time.

        Yields:
            Arrays float32 of shape (at most `window`, dimension), in input order.
        """
        size = check_count(window, "window") or 2048
        items = iter(check_items(texts, "texts"))
        while block := list(islice(items, size)):
            yield self.encode_documents(block, show_progress=False)

    def encode_tokens(self, texts: Iterable[str], *, role: Role = "document") -> list[NDArray[np.float32]]:
        """Return the L2-normalised vector of every token, special tokens included, without any instruction.

        Returns:
            One array float32 of shape (tokens, hidden size) per text, in input order.
        """
        checked = check_texts(texts)
        rows = run(self.read_tokens(checked, bulk=role == "document"))
        check_finite(rows.values, self.model, lambda index: named("texts", index, checked[index]))
        self._runner.note_truncation(rows, checked)
        return rows.values

    def tokenize(self, texts: Iterable[str], *, role: Role = "document") -> list[TokenSequence]:
        """Return the tokens that the model reads of each text: instruction and special tokens included, cut.

        Args:
            texts: Any iterable of strings.
            role: `query` or `document`: whose instruction they get.

        Returns:
            Token ids, and segment ids, of each text, in input order and without padding.
        """
        checked = check_texts(texts)
        _ = self.source.folder  # what a server's tokenizer makes of them is not known here
        framed = [self.encoding.instructions.apply(text, role) for text in checked]
        return self._hold().tokenizing.texts(framed, self.encoding.max_length).sequences

    def count_tokens(self, texts: Iterable[str]) -> list[int]:
        """Return how many tokens each text has, special tokens included, uncut and without instructions."""
        return self._hold().tokenizing.count(check_texts(texts))

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """Return start and end, in characters, of every content token of `text`."""
        return self._hold().tokenizing.offsets(check_text(text))

    def encode_all(
        self,
        texts: Iterable[str],
        *,
        role: Role = "document",
        outputs: heads.Outputs | None = None,
        show_progress: bool | None = None,
    ) -> heads.EncodedTexts:
        """Embed texts in several ways with one forward pass each.

        Args:
            texts: Any iterable of strings.
            role: `query` or `document`: whose instruction they get.
            outputs: Some of the model's `spec.outputs`; `None` is all of them.
            show_progress: Overrides the constructor's value.

        Returns:
            The vectors, each kind in input order.

        Raises:
            ConfigurationError: The model has no such output.
            ModelNotFoundError: The model's folder lacks the trained heads.
            InputError: Something is not a string, or too long with `truncation="error"`.
        """
        return run(self._encoded(role, texts, outputs, show_progress))

    async def aencode_all(
        self,
        texts: Iterable[str],
        *,
        role: Role = "document",
        outputs: heads.Outputs | None = None,
        show_progress: bool | None = None,
    ) -> heads.EncodedTexts:
        """Embed texts in several ways without blocking the event loop; see `encode_all`."""
        return await arun(self._encoded(role, texts, outputs, show_progress))

    def encode_sparse(
        self, texts: Iterable[str], *, role: Role = "document", show_progress: bool | None = None
    ) -> list[dict[int, float]]:
        """Return the lexical weights of each text, token id to weight; see `EncodedTexts.sparse`.

        Texts that were embedded densely just before cost no forward pass, once `expect_sparse` was called.
        """
        return run(self._sparse(role, texts, show_progress))

    async def aencode_sparse(
        self, texts: Iterable[str], *, role: Role = "document", show_progress: bool | None = None
    ) -> list[dict[int, float]]:
        """Return lexical weights without blocking the event loop; see `encode_sparse`."""
        return await arun(self._sparse(role, texts, show_progress))

    def expect_sparse(self) -> None:
        """Announce that sparse vectors of the texts that are embedded densely will be asked for.

        As long as this object lives, every embedder of the same model then computes both with one forward pass and
        remembers the other until it is asked for.

        Raises:
            ConfigurationError: The model is known to have no sparse output.
        """
        if self.known_spec is not None:
            heads.check_outputs(self.spec, self.model, ("sparse",))
        # By the model as named, since its files may not be on this machine yet.
        heads.EXPECTED.add(self, heads.model_key(self._runner))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy as options; who expects sparse vectors still does."""
        copied = super().__deepcopy__(memo)
        if heads.EXPECTED.by(self):
            copied.expect_sparse()
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy as options; who expects sparse vectors still does."""
        built = super().__reduce__()
        return (*built, "expects sparse vectors") if heads.EXPECTED.by(self) else built

    def __setstate__(self, state: object) -> None:
        """Go on expecting sparse vectors, in this process too."""
        self.expect_sparse()

    def sparse_tokens(self, sparse: Mapping[int, float]) -> dict[str, float]:
        """Return lexical weights by token, as the model's vocabulary writes it, in the order of `sparse`."""
        tokenizing = self._hold().tokenizing
        return {tokenizing.token(token): weight for token, weight in sparse.items()}

    def read_tokens(
        self,
        texts: Sequence[str],
        *,
        output: Literal["tokens", "all"] = "tokens",
        bulk: bool = False,
        overlap: int | None = None,
        deadline: Deadline | None = None,
    ) -> Flow[Rows]:
        """Body of comparisons token by token; see `dense.token_rows` and, for `all`, `heads.output_rows`."""
        _ = self.spec
        read = dense.token_rows if output == "tokens" else heads.output_rows
        return read(self._runner, texts, bulk=bulk, overlap=overlap, deadline=deadline)

    def read_cosines(self, query: str, documents: Sequence[str]) -> Flow[NDArray[np.float32]]:
        """Body of the dense score of a query and documents, whatever `normalize` says."""
        query_vectors = yield from dense.vectors(self._request("query", False), [query])
        document_vectors = yield from dense.vectors(self._request("document", False), documents)
        return np.asarray(unit_rows(document_vectors) @ unit_rows(query_vectors)[0], dtype=np.float32)

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments, without the access token."""
        return {
            **self._runner.options(),
            **self._given,
            "vector_cache": self._cache,
            "normalize": self._normalize,
            "truncate_dim": self._truncate_dim,
        }

    def __repr__(self) -> str:
        """Show the model and the instructions in force."""
        known = self.source.known_spec is not None
        shown = f"query_instruction={self.query_instruction!r}, " if known else ""
        return f"Embedder({self.model!r}, {shown}max_length={self.max_length if known else self._runner.own_length})"

    def _check_known(self) -> None:
        if self.known_spec is not None:
            _ = self.encoding

    def _check_spec(self, spec: ModelSpec) -> None:
        super()._check_spec(spec)
        if spec.kind not in ("embedder", "vision"):
            raise ConfigurationError(f"{self.model!r} is a {spec.kind}, not an embedder. Use Reranker for it.")

    def _check_remote(self, spec: ModelSpec, encoding: Encoding) -> None:
        """Refuse what a server settles, where it is said otherwise here.

        Raises:
            ConfigurationError: Names it.
        """
        told: dict[str, tuple[Any, Any]] = {
            "normalize": (encoding.normalize, spec.normalize),
            "max_length": (encoding.max_length, spec.max_length),
        }
        if self.source.api == "bge":
            own = encoding.instructions
            told |= {
                "query_instruction": (own.query, spec.query_instruction),
                "document_instruction": (own.document, spec.document_instruction),
                "legacy": (own.joins_lines, False),
                "examples": (own.examples, ""),
            }
        elif self._runner.refuses_long:
            raise ConfigurationError(
                f"truncation='error' needs a server that says what it cuts, and api={self.source.api!r} does not. "
                "Use truncation='warn', or a server of ours."
            )
        for name, (here, there) in told.items():
            if here != there:
                raise ConfigurationError(
                    f"{name}={here!r} is not what the server {self.source.base_url!r} does with {self.model!r}: "
                    f"{there!r}. Leave it out here, and start the server with it."
                )

    # Bodies of async calls: what they ask for first may have to be fetched, and no event loop is to wait for that.

    def _vectors(self, role: Role, texts: Iterable[str], show_progress: bool | None) -> Flow[NDArray[np.float32]]:
        return (yield from dense.vectors(self._request(role, show_progress), texts))

    def _encoded(
        self, role: Role, texts: Iterable[str], outputs: heads.Outputs | None, show_progress: bool | None
    ) -> Flow[heads.EncodedTexts]:
        return (yield from heads.encoded(self._request(role, show_progress), texts, outputs))

    def _sparse(self, role: Role, texts: Iterable[str], show_progress: bool | None) -> Flow[list[dict[int, float]]]:
        return (yield from heads.sparse(self._request(role, show_progress), texts))

    def _hold(self) -> LoadedModel:
        _ = self.encoding
        return self._runner.hold()

    def _request(self, role: Role, show_progress: bool | None) -> dense.Request:
        return dense.Request(
            runner=self._runner,
            encoding=self.encoding,
            role=role,
            show_progress=show_progress,
            compute=heads.dense_too if self._shares_pass else dense.computed,
            cache=self._cache,
        )

    @property
    def _shares_pass(self) -> bool:
        """Whether the model has sparse vectors and somebody will ask for them."""
        return "sparse" in self.spec.outputs and heads.model_key(self._runner) in heads.EXPECTED
