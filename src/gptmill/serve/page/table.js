// A CSV file: read, labeled by the classifier, and saved with its labels.

import { $, download, element, post } from "./server.js";

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

export async function openTable(file) {
  const rows = parseTable(await file.text());
  const usable = rows.length > 1;
  table = usable ? { name: file.name, rows } : null;
  $("columns").hidden = !usable;
  $("labeled").textContent = usable ? `${file.name}: ${rows.length - 1} rows` : `${file.name} has no rows below its first`;
  if (!usable) return;
  $("column").replaceChildren(...rows[0].map((name, at) => new Option(name || `column ${at + 1}`, at)));
  $("column").value = Math.max(0, rows[0].findIndex((name) => /^(text|message|sentence|content)$/i.test(name)));
}

const TOGETHER = 256; // texts of one request

export async function classifyTable(model) {
  const [head, ...rows] = table.rows;
  const texts = rows.map((row) => row[Number($("column").value)] ?? "");
  const asked = texts.flatMap((text, at) => (text.trim() ? [at] : [])); // an empty one gets no label
  const labels = texts.map(() => ["", ""]);
  $("label-table").disabled = true;
  try {
    for (let first = 0; first < asked.length; first += TOGETHER) {
      const part = asked.slice(first, first + TOGETHER);
      const body = { model, texts: part.map((at) => texts[at]) };
      const { results } = await (await post("classify", body)).json();
      results.forEach(({ label, probabilities }, i) => { labels[part[i]] = [label, String(probabilities[label])]; });
      $("labeled").textContent = `${Math.min(first + TOGETHER, asked.length)} of ${asked.length} texts labeled`;
    }
    const lines = [[...head, "label", "probability"], ...rows.map((row, at) => [...row, ...labels[at]])];
    const text = lines.map((row) => `${row.map(cell).join(",")}\r\n`).join("");
    download(table.name.replace(/(\.csv)?$/i, "-labeled.csv"), text, "text/csv");
    $("labeled").textContent = `${asked.length} texts labeled, ${texts.length - asked.length} empty`;
  } catch (error) {
    $("labeled").replaceChildren(element("span", { className: "fault", role: "alert", text: error.message }));
  }
  $("label-table").disabled = false;
}
