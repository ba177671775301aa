// One official JavaScript client, driven call by call.
//
//     client.mjs SDK BASE_URL TOKEN [--retries=off|default] [CALL ...]
//
// SDK is `openai` or `google-genai`. Every CALL is made once and answered by one JSON line; without a CALL their names
// are read from standard input, one per line, until it ends, so that a test can change the upstream between two calls.
// The line says what the SDK's user would have seen: a value, or an exception with its class, status and message.

import { createInterface } from "node:readline";
import process from "node:process";

const CHAT_MODEL = "gemini-2.5-flash";
const EMBEDDING_MODEL = "gemini-embedding-001";
const PROMPT = "Say something about rivers.";
const TIMEOUT_MS = 30_000;
const WEATHER = {
  name: "get_weather",
  description: "The weather of a city",
  parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
};

// The SDK reported success, but what it returned is not a whole answer.
class Incomplete extends Error {}

function whole(condition, what) {
  if (!condition) throw new Incomplete(what);
}

function sizes(vectors) {
  const lengths = vectors.map((vector) => vector.length);
  whole(!lengths.includes(0), "an empty embedding");
  return [...new Set(lengths)].sort((a, b) => a - b);
}

async function openai(baseURL, apiKey, retries) {
  const { default: OpenAI } = await import("openai");
  const options = retries === "default" ? {} : { maxRetries: 0 };
  const client = new OpenAI({ baseURL, apiKey, timeout: TIMEOUT_MS, ...options });
  const messages = [{ role: "user", content: PROMPT }];
  const tools = [{ type: "function", function: WEATHER }];
  const chat = (more) => client.chat.completions.create({ model: CHAT_MODEL, messages, ...more });

  function toolCall(calls) {
    whole(calls.length === 1, `${calls.length} tool calls`);
    const { name, arguments: text } = calls[0].function;
    whole(name === WEATHER.name, `tool call ${name}`);
    whole(typeof JSON.parse(text) === "object", "the arguments are no JSON object");
    return [name, { arguments: text }];
  }

  return {
    async plain() {
      const reply = await chat({});
      const choice = reply.choices[0];
      whole(choice.finish_reason === "stop", `finish_reason ${choice.finish_reason}`);
      whole(choice.message.content, "no content");
      whole(reply.usage.total_tokens > 0, "no usage");
      return [choice.message.content, {}];
    },
    async stream() {
      let [text, finish, usage, chunks] = ["", null, null, 0];
      for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) {
        chunks += 1;
        usage = chunk.usage ?? usage;
        for (const choice of chunk.choices) {
          text += choice.delta.content ?? "";
          finish = choice.finish_reason ?? finish;
        }
      }
      whole(finish === "stop", `the stream ended after ${chunks} chunks with finish_reason ${finish}`);
      whole(text, "no content");
      return [text, { chunks, total_tokens: usage?.total_tokens }];
    },
    async tools() {
      const reply = await chat({ tools, tool_choice: "required" });
      return toolCall(reply.choices[0].message.tool_calls ?? []);
    },
    async stream_tools() {
      const calls = [];
      let finish = null;
      for await (const chunk of await chat({ tools, tool_choice: "required", stream: true })) {
        for (const choice of chunk.choices) {
          calls.push(...(choice.delta.tool_calls ?? []));
          finish = choice.finish_reason ?? finish;
        }
      }
      whole(finish, "the stream ended without a finish_reason");
      return toolCall(calls);
    },
    async embeddings() {
      const reply = await client.embeddings.create({ model: EMBEDDING_MODEL, input: ["one", "two"] });
      whole(reply.data.length === 2, `${reply.data.length} embeddings`);
      return ["", { dimensions: sizes(reply.data.map((item) => item.embedding)) }];
    },
    async models() {
      const ids = [];
      for await (const model of client.models.list()) ids.push(model.id);
      whole(ids.some((id) => id.includes(CHAT_MODEL)), `${CHAT_MODEL} is not among ${ids}`);
      return ["", { models: ids.length }];
    },
  };
}

async function googleGenAI(baseUrl, apiKey, retries) {
  const { GoogleGenAI } = await import("@google/genai");
  const httpOptions = { baseUrl, timeout: TIMEOUT_MS };
  // Retries are off unless asked for: that is this SDK's own default.
  if (retries === "default") httpOptions.retryOptions = { attempts: 3, initialDelay: 0.2, maxDelay: 2 };
  const ai = new GoogleGenAI({ apiKey, vertexai: false, httpOptions });
  const { name, description, parameters: parametersJsonSchema } = WEATHER;
  const toolConfig = {
    tools: [{ functionDeclarations: [{ name, description, parametersJsonSchema }] }],
    toolConfig: { functionCallingConfig: { mode: "ANY" } },
    automaticFunctionCalling: { disable: true },
  };

  function toolCall(calls) {
    whole(calls.length === 1, `${calls.length} function calls`);
    whole(calls[0].name === WEATHER.name, `function call ${calls[0].name}`);
    return [calls[0].name, { arguments: JSON.stringify(calls[0].args) }];
  }
  async function generate(contents) {
    const reply = await ai.models.generateContent({ model: CHAT_MODEL, contents });
    const finish = reply.candidates[0].finishReason;
    whole(finish === "STOP", `finishReason ${finish}`);
    whole(reply.text, "no text");
    whole(reply.usageMetadata.totalTokenCount > 0, "no usage");
    return [reply.text, {}];
  }

  return {
    plain: () => generate(PROMPT),
    async stream() {
      let [text, finish, usage, chunks] = ["", null, null, 0];
      for await (const chunk of await ai.models.generateContentStream({ model: CHAT_MODEL, contents: PROMPT })) {
        chunks += 1;
        usage = chunk.usageMetadata ?? usage;
        for (const candidate of chunk.candidates ?? []) {
          finish = candidate.finishReason ?? finish;
          for (const part of candidate.content?.parts ?? []) text += part.text ?? "";
        }
      }
      whole(finish === "STOP", `the stream ended after ${chunks} chunks with finishReason ${finish}`);
      whole(text, "no text");
      return [text, { chunks, total_tokens: usage?.totalTokenCount }];
    },
    async tools() {
      const reply = await ai.models.generateContent({ model: CHAT_MODEL, contents: PROMPT, config: toolConfig });
      return toolCall(reply.functionCalls ?? []);
    },
    async stream_tools() {
      const calls = [];
      let finish = null;
      const request = { model: CHAT_MODEL, contents: PROMPT, config: toolConfig };
      for await (const chunk of await ai.models.generateContentStream(request)) {
        calls.push(...(chunk.functionCalls ?? []));
        for (const candidate of chunk.candidates ?? []) finish = candidate.finishReason ?? finish;
      }
      whole(finish, "the stream ended without a finishReason");
      return toolCall(calls);
    },
    async embeddings() {
      const reply = await ai.models.embedContent({ model: EMBEDDING_MODEL, contents: ["one", "two"] });
      whole(reply.embeddings.length === 2, `${reply.embeddings.length} embeddings`);
      return ["", { dimensions: sizes(reply.embeddings.map((item) => item.values)) }];
    },
    async models() {
      const names = [];
      for await (const model of await ai.models.list()) names.push(model.name);
      whole(names.some((id) => id.includes(CHAT_MODEL)), `${CHAT_MODEL} is not among ${names}`);
      return ["", { models: names.length }];
    },
    async files() {
      const blob = new Blob(["The Danube passes ten countries."], { type: "text/plain" });
      const file = await ai.files.upload({ file: blob, config: { mimeType: "text/plain", displayName: "rivers.txt" } });
      const part = { fileData: { fileUri: file.uri, mimeType: file.mimeType } };
      const [text] = await generate([{ role: "user", parts: [{ text: PROMPT }, part] }]);
      whole((await ai.files.get({ name: file.name })).name === file.name, "another file came back");
      await ai.files.delete({ name: file.name });
      return [text, { file: file.name }];
    },
    async count_tokens() {
      const reply = await ai.models.countTokens({ model: CHAT_MODEL, contents: PROMPT });
      whole(reply.totalTokens, "no totalTokens");
      return ["", { total_tokens: reply.totalTokens }];
    },
  };
}

const SDKS = { openai, "google-genai": googleGenAI };

function classes(error) {
  const names = [];
  for (let at = Object.getPrototypeOf(error); at && at !== Object.prototype; at = Object.getPrototypeOf(at)) {
    names.push(at.constructor.name);
  }
  return names;
}

async function run(calls, sdk, call) {
  const result = { sdk: `${sdk}-js`, call };
  try {
    if (!calls[call]) throw new Error(`no such call: ${call}`);
    const [text, detail] = await calls[call]();
    return { ...result, ok: true, text, detail };
  } catch (error) {
    const headers = error.headers instanceof Headers ? Object.fromEntries(error.headers) : {};
    return {
      ...result,
      ok: false,
      error_class: classes(error)[0],
      error_bases: classes(error),
      status: error.status ?? null,
      message: String(error.message),
      detail: { body: error.error ?? null, code: error.code ?? null, type: error.type ?? null, headers },
    };
  }
}

const flags = process.argv.slice(2).filter((argument) => argument.startsWith("--"));
const [sdk, baseUrl, token, ...calls] = process.argv.slice(2).filter((argument) => !argument.startsWith("--"));
if (!SDKS[sdk] || !token) {
  console.error("usage: client.mjs openai|google-genai BASE_URL TOKEN [--retries=off|default] [CALL ...]");
  process.exit(2);
}
const retries = flags.includes("--retries=default") ? "default" : "off";
const client = await SDKS[sdk](baseUrl, token, retries);
const names = calls.length > 0 ? calls : createInterface({ input: process.stdin });
for await (const name of names) {
  console.log(JSON.stringify(await run(client, sdk, name.trim())));
}
