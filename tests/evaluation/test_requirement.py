"""A migrated index has to find as much as the old one."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

from bge_runtime import DEFAULT_OFFLINE_MODEL, ConfigurationError, Embedder, InputError
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.evaluation.migration import migrate
from bge_runtime.evaluation.requirement import no_worse
from bge_runtime.evaluation.sources import Passage
from langchain_bge import BGEEmbeddings

FACTS = {
    "heart": "The heart pumps blood.",
    "paris": "Paris is the capital of France.",
    "bread": "Bread is baked from flour.",
    "river": "A river carries water to the sea.",
}
ASKED = {"heart": "Which organ moves blood?", "paris": "Where does the French president live?"}


@pytest.fixture
def index(tmp_path, hub_cache):
    """An index that a small seeded model filled, which knows nothing."""
    folder = tmp_path / "index"
    store = InMemoryVectorStore(BGEEmbeddings(model="BAAI/bge-small-en-v1.5"))
    store.add_documents([Document(id=name, page_content=text) for name, text in FACTS.items()])
    store.dump(str(folder / "store.json"))
    return folder


@pytest.fixture
def data():
    return Judgements(name="asked", queries=ASKED, grades={name: {name: 1} for name in ASKED})


def test_a_better_model_takes_the_place_and_a_worse_one_does_not(index, data, tmp_path):
    seeded, good = Embedder("BAAI/bge-small-en-v1.5"), Embedder(DEFAULT_OFFLINE_MODEL)
    better = migrate(index, tmp_path / "better", good, require=no_worse(data, seeded, good))
    assert better.target.is_dir()
    with pytest.raises(ConfigurationError, match=r"finds less than .* over 2 questions .* at most 0 less"):
        migrate(better.target, tmp_path / "worse", seeded, require=no_worse(data, good, seeded))
    assert not (tmp_path / "worse").exists()
    allowed = migrate(better.target, tmp_path / "worse", seeded, require=no_worse(data, good, seeded, tolerance=0.99))
    assert (allowed.computed, allowed.changed) == (0, True)


def test_places_are_judged_in_the_index_s_own_texts(index, tmp_path):
    data = Judgements(name="p", queries={"q": "What pumps blood?"}, passages={"q": (Passage(quote="pumps blood"),)})
    good = Embedder(DEFAULT_OFFLINE_MODEL)
    assert no_worse(data, good, good)(index)


def test_ids_that_the_index_lacks_and_a_wrong_tolerance_are_errors(index):
    good = Embedder(DEFAULT_OFFLINE_MODEL)
    other = Judgements(name="other", queries={"q": "?"}, grades={"q": {"elsewhere": 1}})
    with pytest.raises(InputError, match="'elsewhere'"):
        no_worse(other, good, good)(index)
    with pytest.raises(ConfigurationError, match="tolerance=1"):
        no_worse(other, good, good, tolerance=1)
