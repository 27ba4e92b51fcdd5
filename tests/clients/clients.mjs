// One cell of one client: node clients.mjs CLIENT FEATURE; a line of JSON says what was seen.
const { SERVER, KEY, QUESTION } = process.env;
const [client, feature] = process.argv.slice(2);
const messages = [{ role: "user", content: QUESTION }];
const schema = {
  type: "object", required: ["name", "age"],
  properties: { name: { type: "string" }, age: { type: "integer" } },
};

async function openai() {
  const { default: OpenAI } = await import("openai");
  const api = new OpenAI({ baseURL: `${SERVER}/v1`, apiKey: KEY, maxRetries: 0 });
  const ask = { model: "instructions", temperature: 0, messages };
  const cells = {
    models: async () => ({ names: (await api.models.list()).data.map((model) => model.id) }),
    chat: async () => ({ text: (await api.chat.completions.create(ask)).choices[0].message.content }),
    stream: async () => {
      const pieces = [];
      for await (const chunk of await api.chat.completions.create({ ...ask, stream: true }))
        pieces.push(chunk.choices[0].delta.content ?? "");
      return { pieces };
    },
    completion: async () => ({
      text: (await api.completions.create({ model: "language_model", prompt: "One day", temperature: 0 }))
        .choices[0].text,
    }),
    structured: async () => {
      const format = { type: "json_schema", json_schema: { name: "person", schema } };
      const answer = await api.chat.completions.create({ ...ask, response_format: format });
      return { value: JSON.parse(answer.choices[0].message.content) };
    },
    embeddings: async () => {
      const answer = await api.embeddings.create({ model: "language_model", input: ["Mia", "barn"] });
      return { vectors: answer.data.map((one) => one.embedding) };
    },
    responses: async () => {
      const answer = await api.responses.create({ model: "instructions", input: QUESTION, temperature: 0 });
      return { text: answer.output_text };
    },
    error: async () => {
      try {
        await api.chat.completions.create({ ...ask, model: "nobody" });
      } catch (error) {
        return { status: error.status, code: error.code };
      }
    },
  };
  return await cells[feature]();
}

async function ollama() {
  const { Ollama } = await import("ollama");
  const api = new Ollama({ host: SERVER, headers: { Authorization: `Bearer ${KEY}` } });
  const ask = { model: "instructions", messages, options: { temperature: 0 } };
  const cells = {
    models: async () => ({ names: (await api.list()).models.map((model) => model.name) }),
    chat: async () => ({ text: (await api.chat(ask)).message.content }),
    stream: async () => {
      const pieces = [];
      for await (const part of await api.chat({ ...ask, stream: true })) pieces.push(part.message.content);
      return { pieces };
    },
    completion: async () => ({
      text: (await api.generate({ model: "language_model", prompt: "One day", options: { temperature: 0, num_predict: 16 } }))
        .response,
    }),
    structured: async () => ({ value: JSON.parse((await api.chat({ ...ask, format: schema })).message.content) }),
    embeddings: async () => ({ vectors: (await api.embed({ model: "language_model", input: ["Mia", "barn"] })).embeddings }),
    error: async () => {
      try {
        await api.chat({ ...ask, model: "nobody" });
      } catch (error) {
        return { status: error.status_code };
      }
    },
  };
  return await cells[feature]();
}

async function aiSdk(name) {
  const { generateText, streamText, generateObject, embedMany } = await import("ai");
  const { z } = await import("zod");
  let model, embedding;
  if (name === "ai-sdk") {
    const { createOpenAICompatible } = await import("@ai-sdk/openai-compatible");
    const provider = createOpenAICompatible({
      name: "gptmill", baseURL: `${SERVER}/v1`, apiKey: KEY, supportsStructuredOutputs: true,
    });
    [model, embedding] = [provider("instructions"), provider.textEmbeddingModel("language_model")];
  } else if (name === "ai-sdk-openai") {
    const { createOpenAI } = await import("@ai-sdk/openai");
    const provider = createOpenAI({ baseURL: `${SERVER}/v1`, apiKey: KEY }); // asks /v1/responses
    [model, embedding] = [provider("instructions"), provider.textEmbeddingModel("language_model")];
  } else {
    const { createOllama } = await import("ollama-ai-provider-v2");
    const provider = createOllama({ baseURL: `${SERVER}/api`, headers: { Authorization: `Bearer ${KEY}` } });
    [model, embedding] = [provider("instructions"), provider.textEmbeddingModel("language_model")];
  }
  const ask = { model, temperature: 0, maxRetries: 0, messages };
  const cells = {
    chat: async () => ({ text: (await generateText(ask)).text }),
    responses: async () => ({ text: (await generateText(ask)).text }),
    stream: async () => {
      const pieces = [];
      for await (const piece of streamText(ask).textStream) pieces.push(piece);
      return { pieces };
    },
    structured: async () => ({
      value: (await generateObject({ ...ask, schema: z.object({ name: z.string(), age: z.number().int() }) })).object,
    }),
    embeddings: async () => ({ vectors: (await embedMany({ model: embedding, values: ["Mia", "barn"] })).embeddings }),
  };
  return await cells[feature]();
}

const run = { openai, ollama }[client] ?? (() => aiSdk(client));
console.log(JSON.stringify(await run()));
