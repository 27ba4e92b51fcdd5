// What every part of the page needs: elements, the server it came from, files to save.

export const $ = (id) => document.getElementById(id);
export const status = (text) => { $("status").textContent = text; };
export const percent = (chance) => (chance < 0.0005 ? "<0.1%" : `${(100 * chance).toFixed(chance < 0.0995 ? 1 : 0)}%`);

export function element(name, { className = "", text, ...attributes } = {}, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export async function call(path, options = {}) {
  // Kept until the tab is closed, and sent to this server alone.
  const key = sessionStorage.getItem("key");
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  if (response.status === 401) askForKey(key);
  throw new Error(await reason(response));
}

export const post = (path, body, signal) => call(path, { method: "POST", body: JSON.stringify(body), signal });

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

export async function* lines(response) {
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

export function download(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
