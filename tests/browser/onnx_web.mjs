// Runs our ONNX folders in ONNX Runtime's WebAssembly, alone and under transformers.js; the test
// calls these by `window.ours`.

import * as ort from "onnxruntime-web";
import { env, pipeline } from "@huggingface/transformers";

ort.env.wasm.wasmPaths = "/npm/onnxruntime-web/dist/";
ort.env.wasm.numThreads = 1;
env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = "/models/";
env.useBrowserCache = false;

const integers = (rows) => new ort.Tensor("int64", BigInt64Array.from(rows.flat().map(BigInt)), [rows.length, rows[0].length]);

// Greedy ids after `ids`, with the cache, as any user of the graph's standard names would write it.
async function greedy(folder, ids, steps) {
  const config = await (await fetch(`${folder}/config.json`)).json();
  const session = await ort.InferenceSession.create(`${folder}/model.onnx`);
  const width = config.n_embd / config.n_head;
  let cache = {};
  for (const name of session.inputNames.filter((name) => name.startsWith("past_key_values."))) {
    cache[name] = new ort.Tensor("float32", new Float32Array(0), [1, config.n_head, 0, width]);
  }
  const all = [...ids];
  let fresh = ids;
  for (let step = 0; step < steps; step++) {
    const first = all.length - fresh.length;
    const outputs = await session.run({
      input_ids: integers([fresh]),
      attention_mask: integers([all.map(() => 1)]),
      position_ids: integers([fresh.map((_, i) => first + i)]),
      ...cache,
    });
    const { data, dims } = outputs.logits;
    const last = data.slice(data.length - dims[2]);
    fresh = [last.indexOf(last.reduce((most, value) => Math.max(most, value)))];
    all.push(fresh[0]);
    cache = Object.fromEntries(Object.keys(cache).map((name) => [name, outputs[name.replace("past_key_values", "present")]]));
  }
  return all;
}

// Logits of texts in ids, the shorter ones padded on the right as the tokenizer's folder says.
async function classify(folder, rows) {
  const session = await ort.InferenceSession.create(`${folder}/model.onnx`);
  const length = Math.max(...rows.map((row) => row.length));
  const pad = (row, value) => [...row, ...Array(length - row.length).fill(value)];
  const { logits } = await session.run({
    input_ids: integers(rows.map((row) => pad(row, 0))),
    attention_mask: integers(rows.map((row) => pad(row.map(() => 1), 0))),
  });
  return [...logits.data];
}

// What transformers.js writes after a text, or answers to the messages of a chat.
async function generate(name, input, steps) {
  const generator = await pipeline("text-generation", name, { subfolder: "", dtype: "fp32", device: "wasm" });
  const [{ generated_text: text }] = await generator(input, { max_new_tokens: steps, do_sample: false });
  return typeof text === "string" ? text : text.at(-1).content;
}

window.ours = { greedy, classify, generate };
