// The page: it talks to the server it came from, by Ollama's protocol and /classify.

import { $, call, download, element, lines, percent, post, status } from "./server.js";
import { classifyTable, openTable } from "./table.js";

const CANDIDATES = 8; // likeliest tokens asked for in each place
const PLAIN = "{{ .Prompt }}"; // the template of a model that only continues text

const HINT = "Point at a piece of an answer, or go there by Tab and the arrow keys, to see what else could "
  + "have stood there. The smaller its chance, the stronger its underline.";

let models = { write: [], classify: [] };
let tab = "write";
let messages = {}; // of each model's conversation, as /api/chat takes them
let running = null; // AbortController of the answer under way
let answers = []; // one list of tokens for each answer
let saved = []; // what "Save as JSON" writes: each question with what it was asked with
let looked = null; // { answer, at }: the token whose candidates are shown

// --- models

async function start() {
  models = { write: [], classify: [] };
  try {
    const { models: listed } = await (await call("api/tags")).json();
    for (const { name, capabilities, details } of listed) {
      const size = details.parameter_size;
      if (capabilities.includes("classify")) {
        models.classify.push({ name, size });
      } else {
        const { template } = await (await post("api/show", { model: name })).json();
        models.write.push({ name, size, chat: template !== PLAIN });
      }
    }
  } catch (error) {
    $("welcome").textContent = $("unlock").hidden ? `The server does not answer: ${error.message}` : "";
    return;
  }
  models.write.sort((a, b) => b.chat - a.chat);
  if (!models.write.length) $("write-tab").hidden = true;
  if (!models.classify.length) $("classify-tab").hidden = true;
  choose(models.write.length ? "write" : "classify");
  for (const id of ["write-tab", "classify-tab", "send", "clear"]) $(id).disabled = false;
}

function choose(name) {
  tab = name;
  for (const each of ["write", "classify"]) {
    const chosen = each === name;
    $(each).hidden = !chosen;
    $(`${each}-tab`).setAttribute("aria-selected", chosen);
    $(`${each}-tab`).tabIndex = chosen ? 0 : -1;
  }
  $("model").replaceChildren(...models[name].map((model) => new Option(describe(model), model.name)));
  const others = models.write.map((model) => new Option(describe(model), model.name));
  $("beside").replaceChildren(new Option("no other", ""), ...others);
  $("beside").closest(".chooser").hidden = name !== "write" || others.length < 2;
  $("model").disabled = $("beside").disabled = false;
  changeModel();
}

const short = ({ name }) => name.replace(/:latest$/, "");
const describe = ({ name, size, chat }) =>
  [short({ name }), ...(chat === undefined ? [] : [chat ? "answers" : "continues"]), size].join(" · ");
const named = (wanted) => models[tab].find(({ name }) => name === wanted);
const model = () => named($("model").value);
const asked = () => [model(), ...($("beside").value ? [named($("beside").value)] : [])]; // one or two

function changeModel() {
  if (tab !== "write") return;
  const { chat } = model();
  clear();
  $("message-label").textContent = chat ? "Message" : "Text to continue";
  $("send").textContent = chat ? "Send" : "Continue";
  // A model that follows instructions has one answer, a story has many.
  $("temperature").defaultValue = chat ? 0 : 0.8;
  $("remember").closest("label").hidden = !chat;
  showValues();
}

// --- an answer

async function ask(text) {
  const options = controls();
  const those = asked();
  const turns = addTurns(text, those);
  busy(turns, true);
  const { signal } = running;
  await Promise.all(turns.map((turn, i) => answer(turn, those[i], text, options, signal)));
  busy(turns, false);
}

async function answer(turn, { name, chat }, text, options, signal) {
  const conversation = (messages[name] ??= []); // starting over makes a new one
  const body = { model: name, options, logprobs: true, top_logprobs: CANDIDATES, end_logprob: true };
  const [path, what] = chat
    ? ["api/chat", { messages: [...($("remember").checked ? conversation : []), { role: "user", content: text }] }]
    : ["api/generate", { prompt: text, raw: true }];
  try {
    const response = await post(path, { ...body, ...what }, signal);
    for await (const line of lines(response)) {
      if (line.error) throw new Error(line.error);
      addPiece(turn, chat ? line.message.content : line.response, line.logprobs);
      if (line.done) {
        finish(turn, line, options.seed);
        saved.push({ model: name, options, ...what, answer: turn.text, done_reason: line.done_reason });
        $("save").disabled = false;
      }
    }
    if (!turn.done) throw new Error("the answer was cut off");
  } catch (error) {
    fail(turn, error);
  }
  turn.paragraph.classList.remove("busy");
  if (chat && turn.text) {
    conversation.push({ role: "user", content: text }, { role: "assistant", content: turn.text });
  }
}

function controls() {
  const options = {};
  for (const { name, value } of $("controls").elements) {
    if (name === "stop") options.stop = value.split("\n").filter(Boolean);
    else if (name && value !== "") options[name] = Number(value);
  }
  // Drawn here, so that it can be shown and used again.
  options.seed ??= crypto.getRandomValues(new Uint32Array(1))[0];
  return options;
}

function addTurns(text, those) {
  $("welcome").hidden = true;
  if (those.some(({ chat }) => chat)) {
    $("log").append(element("div", { className: "turn asked" },
      element("span", { className: "who", text: "You" }), element("p", { text })));
  }
  const turns = those.map(addTurn);
  turns.forEach(({ paragraph }, i) => {
    if (!those[i].chat) paragraph.append(element("span", { className: "given", text }));
  });
  const wholes = turns.map(({ whole }) => whole);
  $("log").append(...(wholes.length > 1 ? [element("div", { className: "pair" }, ...wholes)] : wholes));
  return turns;
}

function addTurn(model) {
  const tokens = [];
  const at = answers.push(tokens) - 1;
  const paragraph = element("p", {
    className: "answer", role: "group", tabindex: 0,
    "aria-label": `Answer ${at + 1}, ${short(model)}. Left and right arrow keys move through its tokens.`,
  });
  const figures = element("span", { className: "figures" });
  const whole = element("div", { className: "turn" }, element("span", { className: "who", text: short(model) }), paragraph, figures);
  paragraph.addEventListener("keydown", (event) => moveByKey(event, at));
  paragraph.addEventListener("focus", () => look(at, looked?.answer === at ? looked.at : 0));
  return { at, who: short(model), whole, tokens, paragraph, figures, text: "", done: false };
}

function addPiece(turn, text, scored) {
  const near = atBottom();
  turn.text += text;
  if (!scored) {
    turn.paragraph.append(text);
  } else {
    const parts = divide(text, scored);
    scored.forEach((token, i) => addToken(turn, parts[i], token));
  }
  if (near) $("log").scrollTop = $("log").scrollHeight;
}

const atBottom = () => $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 40;

// A piece of text is one token's, unless tokens end inside a character or may begin a stop string.
function divide(text, scored) {
  const decoder = new TextDecoder();
  const parts = scored.map(({ bytes }) => {
    const length = decoder.decode(new Uint8Array(bytes), { stream: true }).length;
    const part = text.slice(0, length);
    text = text.slice(length);
    return part;
  });
  parts[parts.length - 1] += text;
  return parts;
}

function addToken(turn, text, { token, logprob, top_logprobs: top = [] }) {
  const at = turn.tokens.length;
  const ends = !text && token.startsWith("<|");
  const shown = element("span", { className: ends ? "token end" : "token", text: ends ? "■ end" : text });
  shown.style.setProperty("--chance", Math.exp(logprob));
  shown.addEventListener("pointerenter", () => look(turn.at, at));
  shown.addEventListener("click", () => look(turn.at, at));
  turn.tokens.push({ shown, token, logprob, top });
  turn.paragraph.append(shown);
  if (looked?.answer === turn.at) enableMoves();
}

// Of two, each is called by its name.
const who = (turn, word) => (turn.whole.closest(".pair") ? `${word} of ${turn.who}` : word);

function finish(turn, line, seed) {
  turn.done = true;
  const { eval_count: count, eval_duration: duration } = line;
  const rate = duration > 0 && count > 1 ? `, ${Math.round((count - 1) / (duration / 1e9))} tokens/s` : "";
  const why = line.done_reason === "length" ? ", cut at the limit" : "";
  turn.figures.textContent = `${count} tokens${rate}, seed ${seed}${why}`;
  status(`${who(turn, "Answer")}: ${turn.text || "empty"}`);
}

function fail(turn, error) {
  if (error.name === "AbortError") {
    turn.figures.textContent = `${turn.tokens.length} tokens, stopped`;
    status(`Stopped after: ${turn.text || "nothing"}`);
  } else {
    turn.figures.replaceChildren(element("span", { className: "fault", role: "alert", text: `No answer: ${error.message}` }));
  }
}

function busy(turns, on) {
  const held = on ? $("send") : $("stop");
  const focused = document.activeElement === held;
  running = on ? new AbortController() : null;
  for (const { paragraph } of turns) paragraph.classList.toggle("busy", on);
  $("send").hidden = on;
  $("stop").hidden = !on;
  $("model").disabled = $("beside").disabled = on;
  if (on) status("Answering");
  if (focused) (on ? $("stop") : $("message")).focus();
}

// --- candidates

function look(answer, at) {
  const tokens = answers[answer];
  if (!tokens?.[at]) return;
  if (looked) answers[looked.answer]?.[looked.at]?.shown.classList.remove("shown");
  looked = { answer, at };
  const { shown, token, logprob, top } = tokens[at];
  shown.classList.add("shown");
  const before = tokens.slice(0, at).map((other) => other.shown.textContent).join("");
  $("context").textContent = `after “${before.length > 60 ? `…${before.slice(-60)}` : before}”`;
  const listed = top.some((other) => other.token === token) ? top : [...top, { token, logprob }];
  $("chances").replaceChildren(...listed.map((each) => chance(each, each.token === token)));
  $("candidates").classList.add("filled");
  enableMoves();
}

function chance({ token, logprob }, chosen) {
  const value = Math.exp(logprob);
  const item = element("li", { className: chosen ? "chosen" : "" },
    element("code", { text: visible(token) }), element("span", { text: percent(value) }));
  if (chosen) item.append(element("span", { className: "unseen", text: "chosen" }));
  item.style.setProperty("--chance", value);
  return item;
}

const visible = (token) => token.replaceAll(" ", "␣").replaceAll("\n", "⏎") || "∅";

function enableMoves() {
  $("previous-token").disabled = !looked || looked.at === 0;
  $("next-token").disabled = !looked || looked.at >= answers[looked.answer].length - 1;
}

function move(by) {
  if (!looked) return;
  const { answer, at } = looked;
  look(answer, Math.min(Math.max(at + by, 0), answers[answer].length - 1));
  const { token, logprob, top } = answers[answer][looked.at];
  const others = top.filter((other) => other.token !== token).slice(0, 3);
  const spoken = [`${token}, ${percent(Math.exp(logprob))}`, ...others.map((o) => `${o.token}, ${percent(Math.exp(o.logprob))}`)];
  status(`${spoken[0]}. Instead: ${spoken.slice(1).join("; ")}`);
}

function moveByKey(event, answer) {
  const by = { ArrowRight: 1, ArrowLeft: -1, Home: -1e9, End: 1e9 }[event.key];
  if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  if (looked?.answer !== answer) look(answer, 0);
  move(by);
}

function clear() {
  running?.abort();
  messages = {};
  answers = [];
  saved = [];
  $("save").disabled = true;
  looked = null;
  $("log").replaceChildren($("welcome"));
  $("welcome").hidden = false;
  $("welcome").textContent = model().chat
    ? "Ask for something this model has learned."
    : "Begin a text and the model continues it.";
  $("chances").replaceChildren();
  $("candidates").classList.remove("filled");
  $("context").textContent = HINT;
  enableMoves();
}

// --- the classifier

const LABELS = 5; // of many, before the others are folded away

async function classify(event) {
  event.preventDefault();
  const texts = $("texts").value.split("\n").filter((text) => text.trim());
  if (!texts.length) return;
  $("label").disabled = true;
  try {
    const { results } = await (await post("classify", { model: model().name, texts })).json();
    $("labels").replaceChildren(...results.map((result, i) => verdict(texts[i], result)));
    status(results.map(({ label, probabilities }, i) => `${texts[i]}: ${label}, ${percent(probabilities[label])}`).join(". "));
  } catch (error) {
    $("labels").replaceChildren(element("li", { className: "fault", role: "alert", text: error.message }));
  }
  $("label").disabled = false;
}

function verdict(text, { label, probabilities }) {
  const rows = Object.entries(probabilities).sort((a, b) => b[1] - a[1]).map(([name, value]) => {
    const fill = element("span", { className: "fill" });
    fill.style.setProperty("--chance", value);
    return element("div", {}, element("dt", { className: name === label ? "chosen" : "", text: name }),
      element("dd", {}, element("span", { className: "track" }, fill), element("span", { className: "number", text: percent(value) })));
  });
  const verdict = element("li", {}, element("p", { text }), element("dl", {}, ...rows.slice(0, LABELS)));
  const rest = rows.slice(LABELS);
  if (rest.length) {
    verdict.append(element("details", {}, element("summary", { text: `${rest.length} more` }), element("dl", {}, ...rest)));
  }
  return verdict;
}

// --- what a person does

function showValues() {
  for (const output of document.querySelectorAll("#controls output")) {
    output.value = Number($(output.htmlFor.value).value).toFixed(2);
  }
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if ($("send").disabled) return; // the list of models is not here yet; what was typed stays
  const text = model().chat ? $("message").value.trim() : $("message").value;
  if (running || !text || !$("controls").reportValidity()) return;
  $("message").value = "";
  ask(text);
});
$("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("ask").requestSubmit();
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => { clear(); $("message").focus(); });
$("previous-token").addEventListener("click", () => move(-1));
$("next-token").addEventListener("click", () => move(1));
$("model").addEventListener("change", changeModel);
$("beside").addEventListener("change", clear);
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("controls").addEventListener("input", showValues);
$("controls").addEventListener("reset", () => setTimeout(showValues));
$("judge").addEventListener("submit", classify);
$("save").addEventListener("click", () => {
  const about = { saved_at: new Date().toISOString(), server: location.origin, turns: saved };
  download("conversation.json", `${JSON.stringify(about, null, 2)}\n`, "application/json");
});
$("table").addEventListener("submit", (event) => {
  event.preventDefault();
  classifyTable(model().name);
});
$("file").addEventListener("change", () => { if ($("file").files[0]) openTable($("file").files[0]); });
$("classify").addEventListener("dragover", (event) => event.preventDefault());
$("classify").addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files[0]) openTable(event.dataTransfer.files[0]);
});
$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value.trim());
  $("unlock").hidden = true;
  if (!models.write.length && !models.classify.length) start();
});
for (const name of ["write", "classify"]) {
  $(`${name}-tab`).addEventListener("click", () => choose(name));
  $(`${name}-tab`).addEventListener("keydown", (event) => {
    if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
    const other = name === "write" ? "classify" : "write";
    if ($(`${other}-tab`).hidden) return;
    choose(other);
    $(`${other}-tab`).focus();
  });
}
if (matchMedia("(max-width: 800px)").matches) $("settings").open = false;
start();
