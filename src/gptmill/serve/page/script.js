// The page: it talks to the server it came from, by Ollama's protocol and /classify.

const CANDIDATES = 8; // likeliest tokens asked for in each place
const PLAIN = "{{ .Prompt }}"; // the template of a model that only continues text

const HINT = "Point at a piece of an answer, or go there by Tab and the arrow keys, to see what else could "
  + "have stood there. The smaller its chance, the stronger its underline.";

const $ = (id) => document.getElementById(id);
const status = (text) => { $("status").textContent = text; };
const percent = (chance) => (chance < 0.0005 ? "<0.1%" : `${(100 * chance).toFixed(chance < 0.0995 ? 1 : 0)}%`);

let models = { write: [], classify: [] };
let tab = "write";
let messages = []; // of the conversation, as /api/chat takes them
let running = null; // AbortController of the answer under way
let answers = []; // one list of tokens for each answer
let saved = []; // what "Save as JSON" writes: each question with what it was asked with
let looked = null; // { answer, at }: the token whose candidates are shown

function element(name, { className = "", text, ...attributes } = {}, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// --- talking to the server

async function call(path, options = {}) {
  // Kept until the tab is closed, and sent to this server alone.
  const key = sessionStorage.getItem("key");
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  if (response.status === 401) askForKey(key);
  throw new Error(await reason(response));
}

const post = (path, body, signal) => call(path, { method: "POST", body: JSON.stringify(body), signal });

function askForKey(wrong) {
  $("locked").textContent = wrong ? "That key is not one of this server's." : "";
  $("unlock").hidden = false;
  $("key").focus();
}

async function reason(response) {
  try {
    return (await response.json()).error;
  } catch {
    return `the server answered ${response.status}`;
  }
}

async function* lines(response) {
  let rest = "";
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  for (;;) {
    const { value, done } = await reader.read();
    rest += decoder.decode(value, { stream: !done });
    const whole = rest.split("\n");
    rest = done ? "" : whole.pop();
    for (const line of whole) if (line) yield JSON.parse(line);
    if (done) return;
  }
}

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
  $("model").disabled = false;
  changeModel();
}

const short = ({ name }) => name.replace(/:latest$/, "");
const describe = ({ name, size, chat }) =>
  [short({ name }), ...(chat === undefined ? [] : [chat ? "answers" : "continues"]), size].join(" · ");
const model = () => models[tab].find(({ name }) => name === $("model").value);

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
  const { name, chat } = model();
  const options = controls();
  const turn = chat ? addChat(text) : addContinuation(text);
  const conversation = messages; // starting over makes a new one
  const body = { model: name, options, logprobs: true, top_logprobs: CANDIDATES, end_logprob: true };
  const [path, what] = chat
    ? ["api/chat", { messages: [...($("remember").checked ? conversation : []), { role: "user", content: text }] }]
    : ["api/generate", { prompt: text, raw: true }];
  busy(turn, true);
  try {
    const response = await post(path, { ...body, ...what }, running.signal);
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
  busy(turn, false);
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

function addChat(text) {
  const asked = element("div", { className: "turn asked" }, element("span", { className: "who", text: "You" }), element("p", { text }));
  return addTurn(asked, short(model()));
}

function addContinuation(text) {
  const turn = addTurn(null, short(model()));
  turn.paragraph.append(element("span", { className: "given", text }));
  return turn;
}

function addTurn(asked, who) {
  $("welcome").hidden = true;
  const tokens = [];
  const at = answers.push(tokens) - 1;
  const paragraph = element("p", {
    className: "answer", role: "group", tabindex: 0,
    "aria-label": `Answer ${at + 1}. Left and right arrow keys move through its tokens.`,
  });
  const figures = element("span", { className: "figures" });
  const whole = element("div", { className: "turn" }, element("span", { className: "who", text: who }), paragraph, figures);
  $("log").append(...(asked ? [asked, whole] : [whole]));
  paragraph.addEventListener("keydown", (event) => moveByKey(event, at));
  paragraph.addEventListener("focus", () => look(at, looked?.answer === at ? looked.at : 0));
  return { at, tokens, paragraph, figures, text: "", done: false };
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

function finish(turn, line, seed) {
  turn.done = true;
  const { eval_count: count, eval_duration: duration } = line;
  const rate = duration > 0 && count > 1 ? `, ${Math.round((count - 1) / (duration / 1e9))} tokens/s` : "";
  const why = line.done_reason === "length" ? ", cut at the limit" : "";
  turn.figures.textContent = `${count} tokens${rate}, seed ${seed}${why}`;
  status(`Answer: ${turn.text || "empty"}`);
}

function fail(turn, error) {
  if (error.name === "AbortError") {
    turn.figures.textContent = `${turn.tokens.length} tokens, stopped`;
    status(`Stopped after: ${turn.text || "nothing"}`);
  } else {
    turn.figures.replaceChildren(element("span", { className: "fault", role: "alert", text: `No answer: ${error.message}` }));
  }
}

function busy(turn, on) {
  const held = on ? $("send") : $("stop");
  const focused = document.activeElement === held;
  running = on ? new AbortController() : null;
  turn.paragraph.classList.toggle("busy", on);
  $("send").hidden = on;
  $("stop").hidden = !on;
  $("model").disabled = on;
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
  messages = [];
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

// --- a table

let table = null; // { name, rows }: the file that was chosen, its first row the names of columns

// RFC 4180: cells in quotes may hold commas, line ends and doubled quotes.
function parseTable(text) {
  const rows = [[""]];
  let quoted = false;
  const cells = text.replace(/^\uFEFF/, "").matchAll(/""|"|,|\r?\n|[^",\r\n]+|\r/g);
  for (const [part] of cells) {
    const row = rows.at(-1);
    if (part === '"') quoted = !quoted;
    else if (quoted || ![",", "\n", "\r\n"].includes(part)) {
      // Outside quotes two of them are an empty cell.
      row[row.length - 1] += part !== '""' ? part : quoted ? '"' : "";
    } else if (part === ",") row.push("");
    else rows.push([""]);
  }
  return rows.filter((row) => row.length > 1 || row[0] !== "");
}

const cell = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

async function openTable(file) {
  const rows = parseTable(await file.text());
  const usable = rows.length > 1;
  table = usable ? { name: file.name, rows } : null;
  $("columns").hidden = !usable;
  $("labelled").textContent = usable ? `${file.name}: ${rows.length - 1} rows` : `${file.name} has no rows below its first`;
  if (!usable) return;
  $("column").replaceChildren(...rows[0].map((name, at) => new Option(name || `column ${at + 1}`, at)));
  $("column").value = Math.max(0, rows[0].findIndex((name) => /^(text|message|sentence|content)$/i.test(name)));
}

const TOGETHER = 256; // texts of one request

async function classifyTable(event) {
  event.preventDefault();
  const [head, ...rows] = table.rows;
  const texts = rows.map((row) => row[Number($("column").value)] ?? "");
  const asked = texts.flatMap((text, at) => (text.trim() ? [at] : [])); // an empty one gets no label
  const labels = texts.map(() => ["", ""]);
  $("label-table").disabled = true;
  try {
    for (let first = 0; first < asked.length; first += TOGETHER) {
      const part = asked.slice(first, first + TOGETHER);
      const body = { model: model().name, texts: part.map((at) => texts[at]) };
      const { results } = await (await post("classify", body)).json();
      results.forEach(({ label, probabilities }, i) => { labels[part[i]] = [label, String(probabilities[label])]; });
      $("labelled").textContent = `${Math.min(first + TOGETHER, asked.length)} of ${asked.length} texts labelled`;
    }
    const lines = [[...head, "label", "probability"], ...rows.map((row, at) => [...row, ...labels[at]])];
    const text = lines.map((row) => `${row.map(cell).join(",")}\r\n`).join("");
    download(table.name.replace(/(\.csv)?$/i, "-labelled.csv"), text, "text/csv");
    $("labelled").textContent = `${asked.length} texts labelled, ${texts.length - asked.length} empty`;
  } catch (error) {
    $("labelled").replaceChildren(element("span", { className: "fault", role: "alert", text: error.message }));
  }
  $("label-table").disabled = false;
}

function download(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
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
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("controls").addEventListener("input", showValues);
$("controls").addEventListener("reset", () => setTimeout(showValues));
$("judge").addEventListener("submit", classify);
$("save").addEventListener("click", () => {
  const about = { saved_at: new Date().toISOString(), server: location.origin, turns: saved };
  download("conversation.json", `${JSON.stringify(about, null, 2)}\n`, "application/json");
});
$("table").addEventListener("submit", classifyTable);
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
