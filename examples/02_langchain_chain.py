"""A LangChain chain that answers with citations: retrieve, rerank, prompt, model, and the passages it cites.

The model is LangChain's fake one, whose answer is written below; retrieval and citations are real. With a model of
your own: python examples/02_langchain_chain.py --llm openai:gpt-4.1-mini (needs `pip install langchain`).
"""

import argparse
import re

from corpus import read_passages
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from bge_runtime import DEFAULT_OFFLINE_MODEL
from langchain_bge import BGEEmbeddings, BGERerank, BGERetriever

QUESTION = "Who discovered oxygen?"
PROMPT = ChatPromptTemplate.from_template(
    "Answer in one sentence and cite passages as [1].\n\n{passages}\n\nQuestion: {question}"
)


def chat_model(name):
    """Return the model asked for, or LangChain's fake one."""
    if name is None:
        return FakeListChatModel(responses=["Carl Wilhelm Scheele and Joseph Priestley, independently [1]."])
    from langchain.chat_models import init_chat_model

    return init_chat_model(name)


def numbered(answer):
    """Write the passages as the prompt shows them."""
    return "\n\n".join(f"[{n}] {document.page_content}" for n, document in enumerate(answer["documents"], 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llm", help="provider:model; default: a fake model")
    parser.add_argument("--model", default=DEFAULT_OFFLINE_MODEL, help="embeds and reranks")
    options = parser.parse_args()

    store = InMemoryVectorStore(BGEEmbeddings(model=options.model))
    store.add_documents([Document(id=name, page_content=text) for name, text in read_passages().items()])
    retriever = BGERetriever(vectorstore=store, reranker=BGERerank(model=options.model), fetch_k=20, k=3)
    answer = RunnablePassthrough.assign(passages=numbered) | PROMPT | chat_model(options.llm) | StrOutputParser()
    chain = {"documents": retriever, "question": RunnablePassthrough()} | RunnablePassthrough.assign(answer=answer)

    result = chain.invoke(QUESTION)
    print(f"question: {QUESTION}\nanswer: {result['answer']}" + ("" if options.llm else "  (a fake model's)"))
    for number in sorted({int(found) for found in re.findall(r"\[(\d+)\]", result["answer"])}):
        document = result["documents"][number - 1]
        print(
            f"[{number}] {document.id}, relevance {document.metadata['relevance_score']:.4f}: "
            f"{document.page_content[:60]}"
        )


if __name__ == "__main__":
    main()
