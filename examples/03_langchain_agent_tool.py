"""Two-stage retrieval as a tool of a LangChain agent.

The model is scripted: it calls the tool once and then answers from the first passage. Everything else is real, and
the loop is what any tool-calling model needs: bind_tools, run the calls, hand the results back.
"""

import argparse

from corpus import read_passages
from langchain_core.documents import Document
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import create_retriever_tool
from langchain_core.vectorstores import InMemoryVectorStore

from bge_runtime import DEFAULT_OFFLINE_MODEL
from langchain_bge import BGEEmbeddings, BGERerank, BGERetriever

QUESTION = "Why are fossils of comb jellies so rare?"


class ScriptedModel(GenericFakeChatModel):
    """Says what it was given; takes tools like a real model."""

    def bind_tools(self, tools, **options):
        """Know them already."""
        return self


def script():
    """Ask for a search first, then answer."""
    call = {"name": "search_encyclopedia", "args": {"query": QUESTION}, "id": "call-1"}
    yield AIMessage(content="", tool_calls=[call])
    yield AIMessage(content="Their bodies are soft and gelatinous, so they hardly ever fossilise.")


def run_agent(model, tools, question):
    """Let the model call tools until it answers; return all messages."""
    by_name = {tool.name: tool for tool in tools}
    bound = model.bind_tools(tools)
    messages = [HumanMessage(question)]
    while True:
        messages.append(bound.invoke(messages))
        if not messages[-1].tool_calls:
            return messages
        messages += [by_name[call["name"]].invoke(call) for call in messages[-1].tool_calls]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_OFFLINE_MODEL, help="embeds and reranks")
    options = parser.parse_args()

    store = InMemoryVectorStore(BGEEmbeddings(model=options.model))
    store.add_documents([Document(id=name, page_content=text) for name, text in read_passages().items()])
    retriever = BGERetriever(vectorstore=store, reranker=BGERerank(model=options.model), fetch_k=20, k=2)
    tool = create_retriever_tool(
        retriever, "search_encyclopedia", "Search 32 encyclopedia passages.", response_format="content_and_artifact"
    )
    for message in run_agent(ScriptedModel(messages=script()), [tool], QUESTION):
        if message.type == "tool":
            found = ", ".join(f"{each.id} ({each.metadata['relevance_score']:.4f})" for each in message.artifact)
            print(f"tool: {found}")
        elif message.content:
            print(f"{message.type}: {message.content}" + ("  (scripted)" if message.type == "ai" else ""))
        else:
            print(f"ai calls {message.tool_calls[0]['name']}({message.tool_calls[0]['args']['query']!r})  (scripted)")


if __name__ == "__main__":
    main()
