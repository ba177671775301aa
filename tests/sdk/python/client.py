"""One official Python client, driven call by call.

    client.py SDK BASE_URL TOKEN [--retries off|default] [CALL ...]

SDK is `openai` or `google-genai`. Every CALL is made once and answered by one JSON line; without a CALL their names are
read from standard input, one per line, until it ends, so that a test can change the upstream between two calls.
The line says what the SDK's user would have seen: a value, or an exception with its class, status and message.
"""

import argparse
import io
import json
import sys

CHAT_MODEL = "gemini-2.5-flash"
EMBEDDING_MODEL = "gemini-embedding-001"
PROMPT = "Say something about rivers."
TIMEOUT_SECONDS = 30
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


class Incomplete(Exception):
    """The SDK reported success, but what it returned is not a whole answer."""


def whole(condition, what):
    if not condition:
        raise Incomplete(what)


class OpenAI:
    def __init__(self, base_url, token, retries):
        import openai

        options = {} if retries == "default" else {"max_retries": 0}
        self.client = openai.OpenAI(base_url=base_url, api_key=token, timeout=TIMEOUT_SECONDS, **options)
        self.calls = {
            "plain": self.plain,
            "stream": self.stream,
            "tools": self.tools,
            "stream_tools": self.stream_tools,
            "embeddings": self.embeddings,
            "models": self.models,
        }

    def chat(self, **more):
        messages = [{"role": "user", "content": PROMPT}]
        return self.client.chat.completions.create(model=CHAT_MODEL, messages=messages, **more)

    def plain(self):
        reply = self.chat()
        choice = reply.choices[0]
        whole(choice.finish_reason == "stop", f"finish_reason {choice.finish_reason}")
        whole(choice.message.content, "no content")
        whole(reply.usage.total_tokens > 0, "no usage")
        return choice.message.content, {}

    def stream(self):
        text, finish, usage, chunks = "", None, None, 0
        for chunk in self.chat(stream=True, stream_options={"include_usage": True}):
            chunks += 1
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
        whole(finish == "stop", f"the stream ended after {chunks} chunks with finish_reason {finish}")
        whole(text, "no content")
        return text, {"chunks": chunks, "total_tokens": usage and usage.total_tokens}

    def tools(self):
        reply = self.chat(tools=[{"type": "function", "function": WEATHER}], tool_choice="required")
        calls = reply.choices[0].message.tool_calls or []
        return self.tool_call(calls)

    def stream_tools(self):
        calls, finish = [], None
        tools = [{"type": "function", "function": WEATHER}]
        for chunk in self.chat(tools=tools, tool_choice="required", stream=True):
            for choice in chunk.choices:
                calls.extend(choice.delta.tool_calls or [])
                finish = choice.finish_reason or finish
        whole(finish, "the stream ended without a finish_reason")
        return self.tool_call(calls)

    @staticmethod
    def tool_call(calls):
        whole(len(calls) == 1, f"{len(calls)} tool calls")
        function = calls[0].function
        whole(function.name == WEATHER["name"], f"tool call {function.name}")
        whole(isinstance(json.loads(function.arguments), dict), "the arguments are no JSON object")
        return function.name, {"arguments": function.arguments}

    def embeddings(self):
        reply = self.client.embeddings.create(model=EMBEDDING_MODEL, input=["one", "two"])
        whole(len(reply.data) == 2, f"{len(reply.data)} embeddings")
        sizes = {len(item.embedding) for item in reply.data}
        whole(0 not in sizes, "an empty embedding")
        return "", {"dimensions": sorted(sizes)}

    def models(self):
        ids = [model.id for model in self.client.models.list()]
        whole(any(CHAT_MODEL in name for name in ids), f"{CHAT_MODEL} is not among {ids}")
        return "", {"models": len(ids)}

    @staticmethod
    def status(error):
        return getattr(error, "status_code", None)

    @staticmethod
    def message(error):
        return getattr(error, "message", None) or str(error)

    @staticmethod
    def headers(error):
        response = getattr(error, "response", None)
        return {} if response is None else dict(response.headers)

    @staticmethod
    def body(error):
        return getattr(error, "body", None)


class GoogleGenAI:
    def __init__(self, base_url, token, retries):
        from google import genai
        from google.genai import types

        self.types = types
        # Retries are off unless asked for: that is this SDK's own default.
        retry = types.HttpRetryOptions(attempts=3, initial_delay=0.2, max_delay=2) if retries == "default" else None
        self.client = genai.Client(
            api_key=token,
            vertexai=False,
            http_options=types.HttpOptions(base_url=base_url, timeout=TIMEOUT_SECONDS * 1000, retry_options=retry),
        )
        self.calls = {
            "plain": self.plain,
            "stream": self.stream,
            "tools": self.tools,
            "stream_tools": self.stream_tools,
            "embeddings": self.embeddings,
            "models": self.models,
            "files": self.files,
            "count_tokens": self.count_tokens,
        }

    def tool_config(self):
        types = self.types
        declaration = types.FunctionDeclaration(
            name=WEATHER["name"], description=WEATHER["description"], parameters_json_schema=WEATHER["parameters"]
        )
        calling = types.FunctionCallingConfig(mode="ANY")
        return types.GenerateContentConfig(
            tools=[types.Tool(function_declarations=[declaration])],
            tool_config=types.ToolConfig(function_calling_config=calling),
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        )

    def plain(self, contents=PROMPT):
        reply = self.client.models.generate_content(model=CHAT_MODEL, contents=contents)
        finish = reply.candidates[0].finish_reason
        whole(finish == "STOP", f"finish_reason {finish}")
        whole(reply.text, "no text")
        whole(reply.usage_metadata.total_token_count > 0, "no usage")
        return reply.text, {}

    def stream(self):
        text, finish, usage, chunks = "", None, None, 0
        for chunk in self.client.models.generate_content_stream(model=CHAT_MODEL, contents=PROMPT):
            chunks += 1
            usage = chunk.usage_metadata or usage
            for candidate in chunk.candidates or []:
                finish = candidate.finish_reason or finish
                for part in (candidate.content and candidate.content.parts) or []:
                    text += part.text or ""
        whole(finish == "STOP", f"the stream ended after {chunks} chunks with finish_reason {finish}")
        whole(text, "no text")
        return text, {"chunks": chunks, "total_tokens": usage and usage.total_token_count}

    def tools(self):
        reply = self.client.models.generate_content(model=CHAT_MODEL, contents=PROMPT, config=self.tool_config())
        return self.tool_call(reply.function_calls or [])

    def stream_tools(self):
        calls, finish = [], None
        for chunk in self.client.models.generate_content_stream(
            model=CHAT_MODEL, contents=PROMPT, config=self.tool_config()
        ):
            calls.extend(chunk.function_calls or [])
            for candidate in chunk.candidates or []:
                finish = candidate.finish_reason or finish
        whole(finish, "the stream ended without a finish_reason")
        return self.tool_call(calls)

    @staticmethod
    def tool_call(calls):
        whole(len(calls) == 1, f"{len(calls)} function calls")
        whole(calls[0].name == WEATHER["name"], f"function call {calls[0].name}")
        return calls[0].name, {"arguments": json.dumps(calls[0].args)}

    def embeddings(self):
        reply = self.client.models.embed_content(model=EMBEDDING_MODEL, contents=["one", "two"])
        whole(len(reply.embeddings) == 2, f"{len(reply.embeddings)} embeddings")
        sizes = {len(item.values) for item in reply.embeddings}
        whole(0 not in sizes, "an empty embedding")
        return "", {"dimensions": sorted(sizes)}

    def models(self):
        names = [model.name for model in self.client.models.list()]
        whole(any(CHAT_MODEL in name for name in names), f"{CHAT_MODEL} is not among {names}")
        return "", {"models": len(names)}

    def files(self):
        config = self.types.UploadFileConfig(mime_type="text/plain", display_name="rivers.txt")
        file = self.client.files.upload(file=io.BytesIO(b"The Danube passes ten countries."), config=config)
        text, _ = self.plain([PROMPT, file])
        whole(self.client.files.get(name=file.name).name == file.name, "another file came back")
        self.client.files.delete(name=file.name)
        return text, {"file": file.name}

    def count_tokens(self):
        reply = self.client.models.count_tokens(model=CHAT_MODEL, contents=PROMPT)
        whole(reply.total_tokens, "no total_tokens")
        return "", {"total_tokens": reply.total_tokens}

    @staticmethod
    def status(error):
        return getattr(error, "code", None)

    @staticmethod
    def message(error):
        return getattr(error, "message", None) or str(error)

    @staticmethod
    def headers(error):
        response = getattr(error, "response", None)
        return {} if response is None else dict(getattr(response, "headers", {}))

    @staticmethod
    def body(error):
        return getattr(error, "details", None)


SDKS = {"openai": OpenAI, "google-genai": GoogleGenAI}


def run(sdk, name, call):
    result = {"sdk": f"{name}-py", "call": call}
    try:
        text, detail = sdk.calls[call]()
        result.update(ok=True, text=text, detail=detail)
    except Exception as error:  # whatever the SDK raises is the result
        names = [base.__name__ for base in type(error).__mro__ if base not in (object, BaseException)]
        result.update(
            ok=False,
            error_class=type(error).__name__,
            error_bases=names,
            status=sdk.status(error),
            message=str(sdk.message(error)),
            detail={"body": sdk.body(error), "headers": sdk.headers(error)},
        )
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sdk", choices=SDKS)
    parser.add_argument("base_url")
    parser.add_argument("token")
    parser.add_argument("--retries", choices=["off", "default"], default="off")
    parser.add_argument("calls", nargs="*")
    arguments = parser.parse_args()
    sdk = SDKS[arguments.sdk](arguments.base_url, arguments.token, arguments.retries)
    names = arguments.calls or (line.strip() for line in sys.stdin)
    for call in names:
        print(json.dumps(run(sdk, arguments.sdk, call), default=str), flush=True)


if __name__ == "__main__":
    main()
