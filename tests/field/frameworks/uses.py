"""How each framework is asked one question: the only place that knows their words, beside the page itself.

`USES[environment]` has the section of the page, and a function for each package that it is about: it takes the names
that the page's blocks have defined, and returns an async function of a text.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Nothing is downloaded, and nothing is told to anybody.
os.environ |= {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "LANGSMITH_TRACING": "false",
    "ANONYMIZED_TELEMETRY": "False",
    "DSPY_CACHEDIR": tempfile.mkdtemp(),
}

Ask = Callable[[str], Any]


@dataclass
class Use:
    """A section of the page, and what is asked in it, by package."""

    section: str
    asks: dict[str, Callable[[dict[str, Any]], Ask]]

    def beside(self, name: str, field: Any) -> str:
        """The SDK that a package goes through, whose version matters too."""
        return f", {field.version('anthropic' if name.endswith('anthropic') else 'openai')}"


def langchain(model: str) -> Callable[[dict[str, Any]], Ask]:
    def prepared(names):
        async def ask(text):
            assert (await names[model].ainvoke(text)).content

        return ask

    return prepared


def llamaindex(names):
    async def ask(text):
        assert str(await names["llm"].acomplete(text))

    return ask


def pydantic_ai(names):
    async def ask(text):
        agent = names["agents"][int(text.split()[1]) % 2]
        assert (await agent.run(text)).output

    return ask


def instructor(names):
    from pydantic import BaseModel

    class Part(BaseModel):
        """What a penstock is made of."""

        name: str
        count: int

    async def ask(text):
        asked = {"model": "gpt-4o", "response_model": Part, "messages": [{"role": "user", "content": text}]}
        assert (await names["client"].chat.completions.create(**asked)).count == 1

    return ask


def openai_agents(names):
    agent = names["Agent"](name="asked", model="gpt-4o")

    async def ask(text):
        assert (await names["Runner"].run(agent, text)).final_output

    return ask


def litellm(names):
    async def ask(text):
        messages = [{"role": "user", "content": text}]
        assert (await names["litellm"].acompletion("openai/gpt-4o", messages=messages)).choices[0].message.content

    return ask


def haystack(names):
    from haystack.dataclasses import ChatMessage

    async def ask(text):
        assert (await names["generator"].run_async([ChatMessage.from_user(text)]))["replies"][0].text

    return ask


def semantic_kernel(names):
    from semantic_kernel.connectors.ai.open_ai import OpenAIChatPromptExecutionSettings
    from semantic_kernel.contents import ChatHistory

    async def ask(text):
        history = ChatHistory()
        history.add_user_message(text)
        assert str(await names["service"].get_chat_message_content(history, OpenAIChatPromptExecutionSettings()))

    return ask


def autogen(names):
    from autogen_agentchat.agents import AssistantAgent

    async def ask(text):
        assert (await AssistantAgent("asked", names["model"]).run(task=text)).messages[-1].content

    return ask


def dspy(names):
    names["lm"].cache = False

    async def ask(text):
        assert (await names["lm"].acall(text))[0]

    return ask


USES = {
    "langchain": Use(
        "LangChain",
        {"langchain-openai": langchain("model"), "langchain-anthropic": langchain("claude")},
    ),
    "llamaindex": Use("LlamaIndex", {"llama-index-llms-openai": llamaindex}),
    "pydantic-ai": Use("Pydantic AI", {"pydantic-ai-slim": pydantic_ai}),
    "instructor": Use("Instructor", {"instructor": instructor}),
    "openai-agents": Use("OpenAI Agents", {"openai-agents": openai_agents}),
    "litellm": Use("LiteLLM", {"litellm": litellm}),
    "haystack": Use("Haystack", {"haystack-ai": haystack}),
    "semantic-kernel": Use("Semantic Kernel", {"semantic-kernel": semantic_kernel}),
    "autogen": Use("AutoGen", {"autogen-ext": autogen}),
    "dspy": Use("DSPy", {"dspy": dspy}),
}
